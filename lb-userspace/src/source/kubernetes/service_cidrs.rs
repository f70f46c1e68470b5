//! ServiceCIDR objects, where the API has them: since Kubernetes 1.33, before that where a gate opens it.

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::networking::{v1, v1beta1};
use kube::Client;
use kube::runtime::watcher;

use super::{Retries, Watched, watch};
use crate::model::Kind;
use crate::source::Object;

enum Version {
    V1,
    V1Beta1,
}

/// Watches them. An API without them has none.
pub(super) fn watched(client: Client) -> BoxStream<'static, Watched> {
    let found = async move {
        let all = watcher::Config::default;
        match version(&client).await {
            Some(Version::V1) => watch(&client, all(), Kind::ServiceCidr, |object: v1::ServiceCIDR| {
                Object::ServiceCidr(Box::new(object))
            }),
            Some(Version::V1Beta1) => {
                watch(&client, all(), Kind::ServiceCidr, |object: v1beta1::ServiceCIDR| {
                    let spec = object.spec.map(|spec| v1::ServiceCIDRSpec { cidrs: spec.cidrs });
                    Object::ServiceCidr(Box::new(v1::ServiceCIDR {
                        metadata: object.metadata,
                        spec,
                        status: None,
                    }))
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
async fn version(client: &Client) -> Option<Version> {
    for pause in Retries::new() {
        match newest(client).await {
            Ok(version) => return version,
            Err(error) => tracing::debug!(%error, "cannot ask which ServiceCIDRs the API has"),
        }
        tokio::time::sleep(pause).await;
    }
    None
}

async fn newest(client: &Client) -> kube::Result<Option<Version>> {
    for (group, version) in
        [("networking.k8s.io/v1", Version::V1), ("networking.k8s.io/v1beta1", Version::V1Beta1)]
    {
        match client.list_api_group_resources(group).await {
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
