//! The small HTTP server that health checks and metrics share.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, error, info};

use super::room::{Heard, Room, Ticket};

/// Wait before another try to listen.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections there may be, of all listeners together: whoever comes then takes the place of who has been silent longest.
const CONNECTIONS: usize = 512;
/// Connections that may wait to be accepted: as many as Linux allows by default, so that a rush turns no SYN away.
const BACKLOG: u32 = 4096;
/// Wait for a descriptor of a connection that has just been ended.
const BREATH: Duration = Duration::from_millis(1);
/// Wait for a descriptor where no connection of ours can be ended.
const PAUSE: Duration = Duration::from_millis(100);

static ROOM: LazyLock<Arc<Room>> = LazyLock::new(|| Room::new(CONNECTIONS));

/// An answer over HTTP.
pub type Reply = Response<Full<Bytes>>;

/// Answers to paths: none where there is nothing.
pub type Routes = Arc<dyn Fn(&str) -> Option<Reply> + Send + Sync>;

/// An answer with a body.
pub fn reply(status: StatusCode, content_type: &'static str, body: String) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Whether a listener of IPv6 takes clients of IPv4 as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Families {
    /// `[::]` stands for every address of both families.
    Both,
    /// The address's own family alone.
    Own,
}

/// Listens on `address`.
pub fn listen(address: SocketAddr, families: Families) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &(families == Families::Own))?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Listens on `address` and answers, for as long as the agent lives. While the port is taken it says so
/// and tries again; traffic does not wait for it.
pub async fn serve(address: SocketAddr, flag: &'static str, routes: Routes) {
    let mut reported = false;
    let listener = loop {
        match listen_of_flag(address) {
            Ok(listener) => break listener,
            Err(source) => {
                if !reported {
                    error!(
                        "--{flag} {address}: cannot listen: {source}; trying again every {} s, traffic is served \
                         meanwhile. Is kube-proxy or another agent running? Choose another address with --{flag}",
                        RETRY.as_secs()
                    );
                }
                reported = true;
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    info!(%address, "--{flag} answers");
    accept(listener, routes).await;
}

/// As Go does it, `0.0.0.0` means every address of both families where there are both.
fn listen_of_flag(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen(address, Families::Own);
    }
    let both = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, address.port()));
    match listen(both, Families::Both) {
        Err(error) if is_not_here(&error) && address.is_ipv4() => listen(address, Families::Own),
        other => other,
    }
}

/// Whether there is no such address, or no such family.
pub fn is_not_here(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Answers whoever comes. Dropped, it ends its connections.
pub async fn accept(listener: TcpListener, routes: Routes) {
    accept_into(&ROOM, listener, routes).await;
}

async fn accept_into(room: &Arc<Room>, listener: TcpListener, routes: Routes) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                while connections.try_join_next().is_some() {}
                let ticket = room.enter();
                let id = ticket.id();
                room.ends_by(id, connections.spawn(converse(stream, ticket, routes.clone())));
                // Those who have come speak before more are let in.
                tokio::task::yield_now().await;
            }
            Err(source) => {
                debug!(%source, "cannot accept a connection");
                let full = matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                let made_way = full && room.make_way();
                tokio::time::sleep(if made_way { BREATH } else { PAUSE }).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, ticket: Ticket, routes: Routes) {
    let ticket = Arc::new(ticket);
    let stream = Heard::new(stream, ticket.clone());
    let service = service_fn(move |request| {
        let reply = answer(request, &routes);
        ticket.answered();
        std::future::ready(Ok::<_, Infallible>(reply))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(true)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "connection ended");
    }
}

/// Whatever the method, as kube-proxy does.
fn answer(request: Request<Incoming>, routes: &Routes) -> Reply {
    routes(request.uri().path()).unwrap_or_else(|| {
        reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".into())
    })
}

#[cfg(test)]
#[path = "http/tests.rs"]
mod tests;
