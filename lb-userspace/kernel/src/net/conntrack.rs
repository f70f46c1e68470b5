//! Connections that netfilter translates, as its own table has them (ctnetlink).
//! `include/uapi/linux/netfilter/nfnetlink_conntrack.h` has the numbers.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::netfilter::{ACKNOWLEDGE, DUMP, NESTED, REQUEST, answers, attribute, find, number, open, request};

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
/// Bit of the status: the destination is translated.
const DESTINATION_IS_TRANSLATED: u32 = 1 << 5;

/// A connection whose destination netfilter translates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Translated {
    /// IP protocol.
    pub proto: u8,
    /// Where its client sends to.
    pub frontend: SocketAddr,
    /// Who answers.
    pub backend: SocketAddr,
    family: u8,
    /// What names it: the attributes that came.
    name: Vec<u8>,
}

/// Every connection of both families whose destination is translated, one by one.
pub fn each_translated(take: &mut dyn FnMut(Translated)) -> io::Result<()> {
    each(&mut |family, body| {
        if let Some(connection) = translated(family, body) {
            take(connection);
        }
    })
}

/// How the answers of every connection look: protocol, source and destination.
pub fn each_answer(take: &mut dyn FnMut(u8, SocketAddr, SocketAddr)) -> io::Result<()> {
    each(&mut |_, body| {
        if let Some((proto, from, to)) = find(body, REPLY).and_then(ends) {
            take(proto, from, to);
        }
    })
}

/// Every connection of both families: family and attributes.
fn each(take: &mut dyn FnMut(u8, &[u8])) -> io::Result<()> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let socket = open()?;
        socket.send(&request(GET, REQUEST | DUMP, family as u8, 0, &[]), 0)?;
        let listed = answers(&socket, &mut |kind, family, body| {
            if kind == NEW {
                take(family, body);
            }
        });
        match listed {
            // Nobody follows connections here.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Has netfilter forget a connection. Whether it was still there.
pub fn forget(connection: &Translated) -> io::Result<bool> {
    let socket = open()?;
    socket.send(&request(DELETE, REQUEST | ACKNOWLEDGE, connection.family, 0, &connection.name), 0)?;
    match answers(&socket, &mut |_, _, _| {}) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn translated(family: u8, body: &[u8]) -> Option<Translated> {
    if find(body, STATUS).and_then(number)? & DESTINATION_IS_TRANSLATED == 0 {
        return None;
    }
    let (original, reply) = (find(body, ORIGINAL)?, find(body, REPLY)?);
    let (proto, _, frontend) = ends(original)?;
    let (_, backend, _) = ends(reply)?;
    let mut name = attribute(ORIGINAL | NESTED, original);
    name.extend(find(body, ID).into_iter().flat_map(|id| attribute(ID, id)));
    Some(Translated { proto, frontend, backend, family, name })
}

/// Protocol, source and destination of one direction.
fn ends(tuple: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (addresses, protocol) = (find(tuple, 1)?, find(tuple, 2)?);
    let address = |v4, v6| {
        let v4 = || find(addresses, v4)?.first_chunk::<4>().map(|octets| IpAddr::from(*octets));
        v4().or_else(|| find(addresses, v6)?.first_chunk::<16>().map(|octets| IpAddr::from(*octets)))
    };
    let port = |kind| find(protocol, kind)?.first_chunk().map(|octets| u16::from_be_bytes(*octets));
    let source = SocketAddr::new(address(1, 3)?, port(2)?);
    Some((*find(protocol, 1)?.first()?, source, SocketAddr::new(address(2, 4)?, port(3)?)))
}

#[cfg(test)]
mod tests {
    use super::super::netfilter::nested;
    use super::*;

    fn tuple(kind: u16, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let addresses = nested(1, &[attribute(1, &from.0), attribute(2, &to.0)]);
        let ports =
            [attribute(1, &[17]), attribute(2, &from.1.to_be_bytes()), attribute(3, &to.1.to_be_bytes())];
        nested(kind, &[addresses, nested(2, &ports)])
    }

    #[test]
    fn a_translated_connection_names_who_is_asked_and_who_answers() {
        let (client, vip, pod) = (([198, 51, 100, 1], 4000), ([10, 96, 0, 1], 53), ([10, 244, 1, 9], 5353));
        let body = |status: u32| {
            let tuples = [tuple(ORIGINAL, client, vip), tuple(REPLY, pod, client)].concat();
            [tuples, attribute(STATUS, &status.to_be_bytes()), attribute(ID, &[0, 0, 0, 7])].concat()
        };
        let found = translated(2, &body(DESTINATION_IS_TRANSLATED | 2)).expect("translated");
        assert_eq!((found.proto, found.frontend), (17, SocketAddr::from(vip)));
        assert_eq!(found.backend, SocketAddr::from(pod));
        assert_eq!(find(&found.name, ID), Some(&[0, 0, 0, 7][..]));
        assert_eq!(translated(2, &body(2)), None, "not translated");
        let whole = body(DESTINATION_IS_TRANSLATED);
        for length in 0..whole.len() {
            let _ = translated(2, &whole[..length]);
        }
    }
}
