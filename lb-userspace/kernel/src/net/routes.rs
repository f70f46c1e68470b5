//! Asks the kernel for a single route (RTM_GETROUTE). `include/uapi/linux/rtnetlink.h` has the numbers.

use std::io;
use std::net::IpAddr;

use lb_control::network::node_packets::Exit;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::netfilter::attribute;
use super::netfilter::attributes;

const GET_ROUTE: u16 = 26;
const NEW_ROUTE: u16 = 24;
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// Of a message's header, and of a route's behind it.
const HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
/// Byte of the latter that says what becomes of the packets.
const TYPE: usize = 7;
const UNICAST: u8 = 1;

/// How what this node sends to an address leaves it; none: not at all.
///
/// # Errors
/// The kernel cannot be asked.
pub fn exit(address: IpAddr) -> io::Result<Option<Exit>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&question(address), 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    Ok(answer(&bytes))
}

fn question(address: IpAddr) -> Vec<u8> {
    const DESTINATION: u16 = 1;
    let (family, bits, octets) = match address {
        IpAddr::V4(address) => (libc::AF_INET, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 128, address.octets().to_vec()),
    };
    let destination = attribute(DESTINATION, &octets);
    let length = HEADER + ROUTE_HEADER + destination.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(GET_ROUTE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(destination);
    message
}

/// An error is an answer as well: there is no route.
fn answer(bytes: &[u8]) -> Option<Exit> {
    const INTERFACE: u16 = 4;
    const GATEWAY: u16 = 5;
    const VIA: u16 = 18;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let route = bytes.get(HEADER..)?;
    if kind == ERROR || kind != NEW_ROUTE || *route.get(TYPE)? != UNICAST {
        return None;
    }
    let attributes = || attributes(route.get(ROUTE_HEADER..).unwrap_or_default());
    let (_, interface) = attributes().find(|(kind, _)| *kind == INTERFACE)?;
    Some(Exit {
        interface: u32::from_ne_bytes(*interface.first_chunk()?),
        over_gateway: attributes().any(|(kind, _)| kind == GATEWAY || kind == VIA),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_far_as_it_is_whole() {
        let message = |kind: u16, what: u8, attributes: &[Vec<u8>]| {
            let mut route = [0; ROUTE_HEADER];
            route[TYPE] = what;
            let body = [route.as_slice(), &attributes.concat()].concat();
            let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.resize(HEADER, 0);
            [message, body].concat()
        };
        let out = attribute(4, &7_u32.to_ne_bytes());
        let over = attribute(5, &[192, 0, 2, 254]);
        let exit = |over_gateway| Some(Exit { interface: 7, over_gateway });
        let whole = message(NEW_ROUTE, UNICAST, &[out.clone(), over]);
        assert_eq!(answer(&whole), exit(true));
        assert_eq!(answer(&message(NEW_ROUTE, UNICAST, std::slice::from_ref(&out))), exit(false));
        assert_eq!(answer(&message(NEW_ROUTE, 2, std::slice::from_ref(&out))), None, "it is this node's own");
        assert_eq!(answer(&message(ERROR, 0, &[])), None);
        for length in 0..whole.len() {
            let _ = answer(&whole[..length]);
        }
    }

    #[test]
    fn the_kernel_answers() {
        let loopback = exit("127.0.0.1".parse().expect("an address")).expect("asked");
        assert_eq!(loopback, None, "it does not leave");
    }
}
