//! Asks the kernel for a single route, and whether the gateway on it answers.

use std::io;
use std::net::IpAddr;

use lb_control::network::node_packets::{Exit, Gateway};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};

/// A connection to the routes of the network namespace that the thread was in.
#[derive(Debug)]
pub struct Routes(Socket);

impl Routes {
    /// Opens a connection.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// How what this node sends to an address leaves it; none: not at all.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn exit(&self, address: IpAddr) -> io::Result<Option<Exit>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(address);
        question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        question.attributes.push(RouteAttribute::Destination(address.into()));
        match self.ask(RouteNetlinkMessage::GetRoute(question), 0)? {
            Some(RouteNetlinkMessage::NewRoute(route)) => Ok(exit(&route)),
            // An error is an answer as well: there is no route.
            _ => Ok(None),
        }
    }

    /// Whether a gateway has an Ethernet address that counts: if not, what goes there waits, and meets no program.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn answers(&self, gateway: Gateway) -> io::Result<bool> {
        match self.ask(RouteNetlinkMessage::GetNeighbour(neighbour(gateway)), 0)? {
            Some(RouteNetlinkMessage::NewNeighbour(neighbour)) => Ok(!matches!(
                neighbour.header.state,
                NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed
            )),
            _ => Ok(false),
        }
    }

    /// Has the kernel find out a gateway's Ethernet address, as a packet to it would.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn resolve(&self, gateway: Gateway) -> io::Result<()> {
        let mut question = neighbour(gateway);
        question.header.flags = NeighbourFlags::Use;
        self.ask(RouteNetlinkMessage::NewNeighbour(question), NLM_F_CREATE | NLM_F_ACK).map(|_| ())
    }

    /// The first message of the answer; none for an error, or for nothing but an acknowledgement.
    fn ask(&self, question: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, question.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let (bytes, _) = self.0.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        Ok(match answer.payload {
            NetlinkPayload::InnerMessage(message) => Some(message),
            _ => None,
        })
    }
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn exit(route: &RouteMessage) -> Option<Exit> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let interface = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })?;
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address))
        | RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address))
        | RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    Some(Exit { interface, gateway: gateway.map(|address| Gateway { interface, address }) })
}

fn neighbour(Gateway { interface, address }: Gateway) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = interface;
    let address = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_where_its_packets_leave() {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        assert_eq!(exit(&route), None);
        route.attributes.push(RouteAttribute::Oif(7));
        assert_eq!(exit(&route), Some(Exit { interface: 7, gateway: None }));
        let mut over = route.clone();
        let address: IpAddr = "fe80::1".parse().expect("an address");
        over.attributes.push(RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().expect("an address"))));
        assert_eq!(
            exit(&over),
            Some(Exit { interface: 7, gateway: Some(Gateway { interface: 7, address }) })
        );
        over.header.kind = RouteType::Local;
        assert_eq!(exit(&over), None, "it is this node's own");
    }

    #[test]
    fn the_kernel_answers() {
        let routes = Routes::open().expect("a connection");
        let loopback: IpAddr = "127.0.0.1".parse().expect("an address");
        assert_eq!(routes.exit(loopback).expect("asked"), None, "it does not leave");
        let nobody = Gateway { interface: 1, address: "192.0.2.254".parse().expect("an address") };
        assert!(!routes.answers(nobody).expect("asked"));
    }
}
