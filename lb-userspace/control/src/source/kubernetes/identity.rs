//! Who the cluster is: the UID of its Namespace kube-system, which lives as long as the cluster does. Nodes read it; of
//! those who only send packets nobody knows it.

use std::time::Duration;

use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};

use super::Retries;

/// What came of asking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Identity {
    /// A seed is given, so nobody asks.
    NotAsked,
    /// The UID of the Namespace kube-system.
    Namespace(String),
    /// That of the Service default/kubernetes, which we may read anyway; the second says why.
    Service(String, String),
    /// Neither, and why.
    Unknown(String),
}

impl Identity {
    /// What tells the cluster from any other.
    pub(super) fn uid(self) -> Option<String> {
        match self {
            Self::Namespace(uid) | Self::Service(uid, _) => Some(uid),
            Self::NotAsked | Self::Unknown(_) => None,
        }
    }

    /// Why it is not the Namespace's.
    pub(super) fn why(&self) -> &str {
        match self {
            Self::Service(_, why) | Self::Unknown(why) => why,
            Self::NotAsked | Self::Namespace(_) => "",
        }
    }
}

/// How often a refusal is not believed: a cluster that has just begun lacks what it will have, and a role that has just been
/// written comes into force a moment later. Nodes that believe at once would choose otherwise than those that come later.
const DISBELIEF: usize = 4;

/// Asks until the API server answers; that it does not let us is an answer.
pub(super) async fn read(client: &Client) -> Identity {
    ask_until_answered(client, Retries::new()).await
}

async fn ask_until_answered(client: &Client, pauses: impl Iterator<Item = Duration>) -> Identity {
    let mut refusals = 0;
    for pause in pauses {
        match ask(client).await {
            Ok(identity @ Identity::Namespace(_)) => return identity,
            Ok(identity) if refusals == DISBELIEF => return identity,
            Ok(_) => refusals += 1,
            Err(error) => tracing::debug!(%error, "cannot ask who the cluster is"),
        }
        tokio::time::sleep(pause).await;
    }
    Identity::NotAsked
}

async fn ask(client: &Client) -> kube::Result<Identity> {
    let namespaces = of_kind("Namespace", "namespaces");
    let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &namespaces);
    let why = match namespaces.get("kube-system").await.map(|namespace| namespace.metadata.uid) {
        Ok(Some(uid)) => return Ok(Identity::Namespace(uid)),
        Ok(None) => "it has no UID".to_owned(),
        Err(error) => refusal(error)?,
    };
    // The API server makes a new one if it is deleted, so it is the second choice; who may list Services may read it.
    let services: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), "default", &of_kind("Service", "services"));
    let parameters = ListParams::default().fields("metadata.name=kubernetes");
    let uid = match services.list(&parameters).await {
        Ok(list) => list.items.into_iter().find_map(|service| service.metadata.uid),
        Err(error) => refusal(error).map(|_| None)?,
    };
    Ok(match uid {
        Some(uid) => Identity::Service(uid, why),
        None => Identity::Unknown(why),
    })
}

fn of_kind(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
}

/// An answer of the API server that will be the same next time; any other error.
fn refusal(error: kube::Error) -> kube::Result<String> {
    match error {
        kube::Error::Api(status) if status.code == 403 => Ok("403 Forbidden".to_owned()),
        kube::Error::Api(status) if status.code == 404 => Ok("404 Not Found".to_owned()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Answers one request as an API server that lets us read these, or is busy.
    async fn answer(stream: TcpStream, namespace: bool, service: bool, busy: bool) -> std::io::Result<()> {
        const OF_SERVICE: &str = "fieldSelector=metadata.name%3Dkubernetes";
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let request = lines.next_line().await?.unwrap_or_default();
        while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
        let failure = |code: u16| {
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no",
                   "reason": "", "code": code})
        };
        let of = |kind: &str, uid: &str| json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": "n", "uid": uid}});
        let path = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (status, body): (&str, Value) = match path {
            _ if busy => ("503 Service Unavailable", failure(503)),
            "/api/v1/namespaces/kube-system" if namespace => ("200 OK", of("Namespace", "of-namespace")),
            "/api/v1/namespaces/default/services" if service && query.contains(OF_SERVICE) => {
                let items = [of("Service", "of-service")];
                ("200 OK", json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {}, "items": items}))
            }
            _ => ("403 Forbidden", failure(403)),
        };
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        writer.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
        writer.shutdown().await
    }

    /// With an API server that is busy for so many requests, and lets us read the Namespace from a request on.
    async fn identity(namespace: Option<u32>, service: bool, busy: u32) -> Identity {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let namespace = namespace.is_some_and(|from| number >= from);
                tokio::spawn(answer(stream, namespace, service, number < busy));
            }
        });
        let config = kube::Config::new(url.parse().expect("a URL"));
        let pauses = std::iter::repeat(Duration::from_millis(1));
        ask_until_answered(&Client::try_from(config).expect("a client"), pauses).await
    }

    #[tokio::test]
    async fn the_namespace_counts_and_next_to_it_the_service_that_we_may_read() {
        assert_eq!(identity(Some(0), true, 0).await, Identity::Namespace("of-namespace".to_owned()));
        let why = "403 Forbidden".to_owned();
        assert_eq!(identity(None, true, 0).await, Identity::Service("of-service".to_owned(), why.clone()));
        assert_eq!(identity(None, false, 0).await, Identity::Unknown(why));
    }

    #[tokio::test]
    async fn a_busy_api_server_is_asked_again_and_a_refusal_is_not_believed_at_once() {
        let late = identity(Some(3), true, 0).await;
        assert_eq!(late, Identity::Namespace("of-namespace".to_owned()), "a role that was not in force yet");
        assert_eq!(identity(Some(0), true, 1).await, Identity::Namespace("of-namespace".to_owned()));
    }
}
