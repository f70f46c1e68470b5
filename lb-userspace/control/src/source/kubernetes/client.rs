//! The client: kube's own parts, put together here so that proxies are ours to choose, each request is seen ([`Reach`]),
//! and nothing is logged for every request that fails.

use hyper::Uri;
use hyper::rt::{Read, Write};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::{Client, Config};
use tower::{BoxError, Service, ServiceBuilder};

use super::proxy::{Proxy, Scheme};
use super::reach::Reach;

/// Makes a client that asks through a proxy, or directly. (What kube makes tries for itself again after some answers, up to
/// sixteen minutes later: our watches have their own pauses.)
pub(super) fn client(config: &Config, proxy: Option<Proxy>, reach: &Reach) -> kube::Result<Client> {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    let Some(proxy) = proxy else { return over(direct, config, reach) };
    match proxy.scheme {
        Scheme::Http => over(tunnel(proxy, direct), config, reach),
        Scheme::Https => {
            over(tunnel(proxy, config.rustls_https_connector_with_connector(direct)?), config, reach)
        }
        Scheme::Socks5 => {
            let socks = SocksV5::new(proxy.url, direct);
            let socks = match proxy.user {
                Some((user, password)) => socks.with_auth(user, password),
                None => socks,
            };
            over(socks, config, reach)
        }
    }
}

fn tunnel<C>(proxy: Proxy, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.url, connector);
    match proxy.basic_auth {
        Some(header) => tunnel.with_auth(header),
        None => tunnel,
    }
}

/// The rest is the same whatever leads to the API server.
fn over<C>(connector: C, config: &Config, reach: &Reach) -> kube::Result<Client>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: std::error::Error + Send + Sync + 'static,
{
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let http = hyper_util::client::legacy::Builder::new(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .layer(reach.clone())
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::source::ConnectionErrors;
    use crate::source::kubernetes::reach::CALM;

    /// Reads the head of a request.
    async fn head(stream: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head"));
        }
        String::from_utf8(head).expect("text")
    }

    /// Asks an API server that exists behind a proxy only. Also how many requests got no answer.
    async fn ask(proxy: &str, port: u16) -> (kube::Result<String>, u64) {
        let proxy = Proxy::parse(&proxy.replace("PORT", &port.to_string()), "HTTP_PROXY").ok();
        let errors = ConnectionErrors::default();
        let (reach, _connection) = Reach::new(errors.clone(), CALM);
        let config = Config::new(Uri::from_static("http://api.invalid:6443"));
        let client = client(&config, Some(proxy.expect("a proxy")), &reach).expect("a client");
        let request = Request::get("/version").body(Vec::new()).expect("a request");
        (client.request_text(request).await, errors.total())
    }

    async fn listen() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("bound").port();
        (listener, port)
    }

    async fn answer_as_api(mut stream: TcpStream) {
        assert!(head(&mut stream).await.starts_with("GET /version HTTP/1.1\r\nhost: api.invalid:6443\r\n"));
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.expect("written");
    }

    #[tokio::test]
    async fn an_http_proxy_is_asked_to_connect() {
        let (listener, port) = listen().await;
        let proxy = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let asked = head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("written");
            answer_as_api(stream).await;
            asked
        });
        let (answer, errors) = ask("http://user:p%40ss@127.0.0.1:PORT", port).await;
        assert_eq!((answer.expect("an answer").as_str(), errors), ("{}", 0));
        let asked = proxy.await.expect("a proxy").to_ascii_lowercase();
        assert!(asked.starts_with("connect api.invalid:6443 http/1.1\r\n"), "{asked}");
        assert!(asked.contains("proxy-authorization: basic dxnlcjpwqhnz\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_socks_proxy_looks_the_name_up() {
        let (listener, port) = listen().await;
        let proxy = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut hello = [0; 3];
            stream.read_exact(&mut hello).await.expect("a greeting");
            stream.write_all(&[5, 0]).await.expect("written");
            let mut asked = [0; 18];
            stream.read_exact(&mut asked).await.expect("a request");
            stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.expect("written");
            answer_as_api(stream).await;
            asked.to_vec()
        });
        let (answer, errors) = ask("socks5h://127.0.0.1:PORT", port).await;
        assert_eq!((answer.expect("an answer").as_str(), errors), ("{}", 0));
        let expected = [&[5, 1, 0, 3, 11][..], b"api.invalid", &6443_u16.to_be_bytes()].concat();
        assert_eq!(proxy.await.expect("a proxy"), expected);
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_a_request_without_an_answer() {
        let (listener, port) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await.expect("written");
        });
        let (answer, errors) = ask("127.0.0.1:PORT", port).await;
        assert!(matches!(answer, Err(kube::Error::Service(_))), "{answer:?}");
        assert_eq!(errors, 1);
    }
}
