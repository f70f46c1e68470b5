//! ServiceCIDR objects, where the API has them: since Kubernetes 1.33, before that where a gate opens it.

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use kube::Client;
use kube::runtime::watcher;

use super::{Retries, Watched, watch};
use crate::model::Kind;
use crate::source::Object;

/// Watches them. An API without them has none.
pub(super) fn watched(client: Client) -> BoxStream<'static, Watched> {
    let found = async move {
        match version(&client).await {
            // What we read of them is the same in every version.
            Some(version) => {
                watch(&client, version, watcher::Config::default(), Kind::ServiceCidr, |object| {
                    Object::ServiceCidr(Box::new(object))
                })
            }
            None => {
                let none = Watched { kind: Kind::ServiceCidr, result: Ok(watcher::Event::InitDone) };
                stream::iter([none]).boxed()
            }
        }
    };
    found.into_stream().flatten().boxed()
}

/// The newest version the API server has. Asks until it answers.
async fn version(client: &Client) -> Option<&'static str> {
    for pause in Retries::new() {
        match newest(client).await {
            Ok(version) => return version,
            Err(error) => tracing::debug!(%error, "cannot ask which ServiceCIDRs the API has"),
        }
        tokio::time::sleep(pause).await;
    }
    None
}

async fn newest(client: &Client) -> kube::Result<Option<&'static str>> {
    for version in ["v1", "v1beta1"] {
        match client.list_api_group_resources(&format!("networking.k8s.io/{version}")).await {
            Ok(list) if list.resources.iter().any(|resource| resource.name == "servicecidrs") => {
                return Ok(Some(version));
            }
            Ok(_) => {}
            // No such group, or not for us: as good as none.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Answers as an API server that has ServiceCIDRs in one version of their group, or in none.
    async fn answer(stream: TcpStream, has: Option<&'static str>) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        while let Some(request) = lines.next_line().await? {
            while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
            let path = request.split(' ').nth(1).unwrap_or_default();
            let version = path.strip_prefix("/apis/networking.k8s.io/").unwrap_or_default();
            let version = version.split(['/', '?']).next().unwrap_or_default();
            let group_version = format!("networking.k8s.io/{version}");
            let (status, body): (&str, Value) = if path.contains("watch=") {
                // Nothing changes.
                std::future::pending().await
            } else if path.contains("servicecidrs") {
                let object = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
                let list = json!({"kind": "ServiceCIDRList", "apiVersion": group_version,
                                  "metadata": {"resourceVersion": "1"}, "items": [object]});
                ("200 OK", list)
            } else if version == "v1" || has == Some(version) {
                let of = |name: &str| json!({"name": name, "singularName": "", "namespaced": false, "kind": "", "verbs": []});
                let mut resources = vec![of("ingressclasses")];
                resources.extend((has == Some(version)).then(|| of("servicecidrs")));
                (
                    "200 OK",
                    json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources}),
                )
            } else {
                ("404 Not Found", json!({"kind": "Status", "status": "Failure", "code": 404}))
            };
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            writer.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
        }
        Ok(())
    }

    async fn listed(has: Option<&'static str>) -> Vec<Object> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, has));
            }
        });
        let config = kube::Config::new(url.parse().expect("a URL"));
        let mut watched = watched(Client::try_from(config).expect("a client"));
        let mut objects = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(10), watched.next());
            match next.await.expect("in time").expect("not the end").result.expect("a list") {
                watcher::Event::InitApply(object) => objects.push(object.expect("readable")),
                watcher::Event::InitDone => return objects,
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn the_newest_version_there_is_is_read() {
        for version in ["v1", "v1beta1"] {
            let objects = listed(Some(version)).await;
            let [Object::ServiceCidr(object)] = &objects[..] else { panic!("{version}: {objects:?}") };
            assert_eq!(object.spec.cidrs, ["10.96.0.0/16"], "{version}");
        }
        assert_eq!(listed(None).await, []);
    }
}
