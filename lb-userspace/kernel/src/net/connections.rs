//! Connections that this node has with others: of its sockets, and those that netfilter masquerades for pods.

use std::io;
use std::net::SocketAddr;

use lb_common::addr::Proto;

use super::conntrack;
use super::sock_diag::SockDiag;

/// A connection, as its packets look where they leave.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection {
    /// TCP or UDP.
    pub proto: Proto,
    /// This node's end.
    pub own: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
}

/// Every connection, one by one; some of them twice.
///
/// # Errors
/// Neither sockets nor netfilter can be asked. (Either may be missing.)
pub fn each(take: &mut dyn FnMut(Connection)) -> io::Result<()> {
    let sockets = SockDiag::open().and_then(|sockets| {
        sockets.each_connected(&mut |proto, own, peer| take(Connection { proto, own, peer }))
    });
    let tracked = conntrack::each_answer(&mut |proto, from, to| {
        let proto = Proto(proto);
        if proto == Proto::TCP || proto == Proto::UDP {
            take(Connection { proto, own: to, peer: from });
        }
    });
    sockets.or(tracked)
}
