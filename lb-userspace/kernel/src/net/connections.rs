//! Connections that this node has with others: of its sockets, and those that netfilter masquerades for pods.

use std::io;

use lb_common::addr::Proto;
use lb_control::network::connection::Connection;

use super::conntrack;
use super::sock_diag::SockDiag;

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
