//! Where the API server is and how one may ask it: kubeconfig or service account, and the environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use hyper::Uri;
use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::proxy::{Proxy, Unusable, Variables};
use crate::source::SourceError;

/// Stands in a kubeconfig where no proxy does, or kube would go by the environment, and not by Go's rules.
const NO_PROXY_URL: &str = "http://none.invalid/";

/// Where the API server is and how one may ask it.
pub(super) struct Access {
    pub(super) config: kube::Config,
    pub(super) proxy: Option<Proxy>,
    /// Its address, as far as it is written down.
    pub(super) address: Option<SocketAddr>,
    /// It is asked at the address of a Service; how that is known.
    pub(super) at_a_service: Option<&'static str>,
}

impl Access {
    /// Reads what there is. `ranges`: those of ClusterIPs, as far as they are known.
    pub(super) async fn read(
        kubeconfig: Option<PathBuf>,
        ranges: &[IpNet],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SourceError> {
        let (mut config, in_cluster) = config(kubeconfig).await?;
        let url = &config.cluster_url;
        let named = config.proxy_url.take().filter(|url| *url != Uri::from_static(NO_PROXY_URL));
        let proxy = match &named {
            // As client-go: what the file says does not depend on NO_PROXY.
            Some(named) => Proxy::parse(&named.to_string(), "proxy-url of the kubeconfig").map(Some),
            None => Variables::read(&variable).proxy_for(url),
        };
        let proxy = match proxy {
            Ok(proxy) => proxy,
            Err(unusable @ Unusable::NoUrl(_)) if named.is_none() => {
                tracing::warn!("{unusable}; the API server {url} is asked without a proxy");
                None
            }
            Err(unusable) => {
                let remedy = if named.is_some() {
                    "correct it"
                } else {
                    "correct it, or name the API server in NO_PROXY"
                };
                return Err(SourceError::Kubernetes { message: format!("{url}: {unusable}; {remedy}") });
            }
        };
        let address = address_of(url);
        let of_kubelet = variable("KUBERNETES_PORT").filter(|_| in_cluster);
        let at_a_service = at_a_service(url, address, of_kubelet.as_deref(), ranges);
        Ok(Self { config, proxy, address, at_a_service })
    }
}

/// Where a URL leads, when it says so by number.
fn address_of(url: &Uri) -> Option<SocketAddr> {
    let host = url.host()?.trim_matches(['[', ']']).parse().ok()?;
    let standard = if url.scheme_str() == Some("http") { 80 } else { 443 };
    Some(SocketAddr::new(host, url.port_u16().unwrap_or(standard)))
}

/// Whether a URL leads to a Service, which somebody has to serve first; how that is known. `of_kubelet`: `KUBERNETES_PORT`,
/// where the kubelet tells each pod of the Service default/kubernetes, whatever else the environment says.
fn at_a_service(
    url: &Uri,
    address: Option<SocketAddr>,
    of_kubelet: Option<&str>,
    ranges: &[IpNet],
) -> Option<&'static str> {
    let of_kubelet = of_kubelet.and_then(|text| text.parse::<Uri>().ok());
    let host = url.host().unwrap_or_default();
    if address.is_some_and(|address| ranges.iter().any(|range| range.contains(&address.ip()))) {
        Some("it is inside --service-cidr")
    } else if address.is_some() && of_kubelet.is_some_and(|url| url.host() == Some(host)) {
        Some("it is that of the Service default/kubernetes, as the kubelet tells every pod")
    } else if host == "kubernetes.default" || host.starts_with("kubernetes.default.svc") {
        Some("it is the name of the Service default/kubernetes")
    } else {
        None
    }
}

/// The configuration, and whether it is that of a pod.
async fn config(kubeconfig: Option<PathBuf>) -> Result<(kube::Config, bool), SourceError> {
    let failed = |message| SourceError::Kubernetes { message };
    if let Some(path) = kubeconfig {
        let name = path.display().to_string();
        let unreadable = move |error: KubeconfigError| {
            let error = first_line(&error);
            failed(format!("kubeconfig {name}: {error}; correct the file or --kubeconfig"))
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(&unreadable)?;
        return Ok((of_kubeconfig(kubeconfig).await.map_err(unreadable)?, false));
    }
    let found = match Kubeconfig::read() {
        Ok(kubeconfig) => of_kubeconfig(kubeconfig).await,
        Err(error) => Err(error),
    };
    let (mut config, in_cluster) = match found {
        Ok(config) => (config, false),
        Err(kubeconfig) => {
            let config = kube::Config::incluster().map_err(|in_cluster| {
                failed(format!(
                    "no service account: {in_cluster}; no kubeconfig: {}; give --kubeconfig FILE, run in a pod, or use \
                     --source manifests",
                    first_line(&kubeconfig)
                ))
            })?;
            (config, true)
        }
    };
    config.apply_debug_overrides();
    Ok((config, in_cluster))
}

/// The lines after the first quote the file, which holds secrets.
fn first_line(error: &KubeconfigError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

async fn of_kubeconfig(mut kubeconfig: Kubeconfig) -> Result<kube::Config, KubeconfigError> {
    for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        let given = cluster.proxy_url.take().filter(|url| !url.is_empty());
        cluster.proxy_url = given.or_else(|| Some(NO_PROXY_URL.to_owned()));
    }
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kubeconfig of an API server, with more about its cluster.
    fn kubeconfig(server: &str, more: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"{server}\"{more}}}}}]\n\
             users: [{{name: u, user: {{}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    async fn proxy(more: &str, set: &[(&str, &str)]) -> Result<Option<String>, String> {
        let (_folder, path) = kubeconfig("https://192.0.2.1:6443", more);
        let variable =
            |name: &str| set.iter().find(|(its, _)| *its == name).map(|(_, value)| (*value).to_owned());
        let access = Access::read(Some(path), &[], variable).await;
        access.map(|access| access.proxy.map(|proxy| proxy.to_string())).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_proxy_comes_from_the_kubeconfig_or_from_the_environment() {
        let environment = [("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "192.0.2.0/24,")];
        assert_eq!(proxy("", &environment).await, Ok(None));
        assert_eq!(proxy("", &environment[..1]).await, Ok(Some("http://p:1/ (HTTPS_PROXY)".to_owned())));
        let given = ", proxy-url: \"http://q:2\"";
        assert_eq!(
            proxy(given, &environment).await,
            Ok(Some("http://q:2/ (proxy-url of the kubeconfig)".to_owned()))
        );
        assert_eq!(proxy(", proxy-url: \"\"", &environment).await, Ok(None));
    }

    #[tokio::test]
    async fn a_proxy_that_cannot_be_one_is_named() {
        // As Go takes it: as if it were not there.
        assert_eq!(proxy("", &[("HTTPS_PROXY", "http://a b")]).await, Ok(None));
        let error = proxy("", &[("HTTPS_PROXY", "socks4://p")]).await.unwrap_err();
        assert!(error.contains("HTTPS_PROXY does not begin with") && error.contains("NO_PROXY"), "{error}");
        assert_eq!(proxy("", &[("HTTPS_PROXY", "socks4://p"), ("NO_PROXY", "*")]).await, Ok(None));
    }

    #[test]
    fn the_api_servers_address_is_read_where_it_stands() {
        let of = |text: &'static str| {
            address_of(&Uri::from_static(text)).map_or_else(String::new, |at| at.to_string())
        };
        assert_eq!(of("https://10.0.0.1:6443/"), "10.0.0.1:6443");
        assert_eq!(of("https://[2001:db8::1]/"), "[2001:db8::1]:443");
        assert_eq!(of("https://kubernetes.default.svc/"), "");
    }

    #[test]
    fn the_address_of_a_service_is_known() {
        let ranges: [IpNet; 2] = ["10.96.0.0/12".parse().unwrap(), "fd00:96::/108".parse().unwrap()];
        let at = |text: &'static str, of_kubelet, ranges: &[IpNet]| {
            let url = Uri::from_static(text);
            at_a_service(&url, address_of(&url), of_kubelet, ranges).unwrap_or_default()
        };
        let kubelet = Some("tcp://10.96.0.1:443");
        assert!(at("https://10.96.0.1/", kubelet, &[]).contains("default/kubernetes"));
        assert!(at("https://[fd00:96::1]/", Some("tcp://[fd00:96::1]:443"), &[]).contains("kubelet"));
        assert!(at("https://10.96.0.1/", None, &ranges).contains("--service-cidr"));
        assert!(at("https://[fd00:96::1]/", None, &ranges).contains("--service-cidr"));
        assert!(at("https://kubernetes.default.svc/", None, &[]).contains("name"));
        // KUBERNETES_SERVICE_HOST has been set to a real address.
        assert_eq!(at("https://192.0.2.1:6443/", kubelet, &ranges), "");
        assert_eq!(at("https://10.96.0.1/", None, &[]), "");
        assert_eq!(at("https://10.96.0.1/", Some("no URL at all"), &[]), "");
    }
}
