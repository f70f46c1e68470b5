//! What is measured.

use std::fmt;
use std::net::Ipv4Addr;

use lb_common::addr::Proto;

/// How many flows the packets of a case belong to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flows {
    /// All to one.
    One,
    /// In turn, in an order that no prefetcher guesses.
    Many,
    /// Each packet to one that was never seen.
    New,
}

impl Flows {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::One, Self::Many, Self::New];

    /// How many; `None`: no end of them.
    pub const fn count(self) -> Option<u64> {
        match self {
            Self::One => Some(1),
            Self::Many => Some(1024),
            Self::New => None,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::One => "1 flow",
            Self::Many => "1024 flows",
            Self::New => "new flows",
        }
    }
}

/// Who carries packets between client and backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Carrier {
    /// Nobody: they are counted where they come in.
    Drop,
    /// `floor_swap`: back to where they came from.
    Swap,
    /// `floor_dnat`: the least a load balancer can do.
    Dnat,
    /// `wire_route`: back, after the kernel was asked for the route.
    Route,
    /// `wire_door`: out of another interface.
    Door,
    /// The kernel, with no rules.
    Forwarding,
    /// The kernel, with kube-proxy's iptables rules for so many Services.
    Iptables(u32),
    /// The kernel, with kube-proxy's nftables rules for so many Services.
    Nftables(u32),
    /// The agent's programs, with so many Services.
    Shunt(u32),
}

impl Carrier {
    /// How many Services it has.
    pub const fn services(self) -> Option<u32> {
        match self {
            Self::Iptables(services) | Self::Nftables(services) | Self::Shunt(services) => Some(services),
            _ => None,
        }
    }

    /// Whether the kernel keeps track of connections for it.
    pub const fn tracks(self) -> bool {
        matches!(self, Self::Iptables(_) | Self::Nftables(_))
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, services) = match *self {
            Self::Drop => return f.write_str("floor: XDP_DROP at once"),
            Self::Swap => return f.write_str("floor: swap MACs + XDP_TX"),
            Self::Dnat => return f.write_str("floor: one look-up + DNAT + XDP_TX"),
            Self::Route => return f.write_str("floor: route look-up + swap MACs + XDP_TX"),
            Self::Door => return f.write_str("floor: other MACs + redirect"),
            Self::Forwarding => return f.write_str("kernel forwarding, no rules"),
            Self::Iptables(services) => ("iptables", services),
            Self::Nftables(services) => ("nftables", services),
            Self::Shunt(services) => ("Shunt", services),
        };
        write!(f, "{name}, {services} Service{}", if services == 1 { "" } else { "s" })
    }
}

/// Where packets go to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Aim {
    /// No Service: a pod's own address (for floors, what they send on untouched).
    Pod,
    /// An external address with a hundred pods of another node, reached by the interface that packets come from: to be
    /// masqueraded.
    Back,
    /// The same, reached by another uplink.
    Across,
    /// An external address with a hundred pods of this node.
    Here,
    /// The ClusterIP of the same.
    Inside,
}

impl Aim {
    /// The frontend; the backend itself where there is no Service.
    pub const fn destination(self) -> (Ipv4Addr, u16) {
        match self {
            Self::Pod => (Ipv4Addr::new(10, 244, 1, 101), 8080),
            Self::Back => (Ipv4Addr::new(198, 51, 100, 2), 80),
            Self::Across => (Ipv4Addr::new(198, 51, 100, 3), 80),
            Self::Here => (Ipv4Addr::new(198, 51, 100, 1), 80),
            Self::Inside => (Ipv4Addr::new(10, 96, 0, 1), 80),
        }
    }

    /// The network of the backends, a /24.
    pub const fn backends(self) -> Ipv4Addr {
        match self {
            Self::Pod | Self::Here | Self::Inside => Ipv4Addr::new(10, 244, 1, 0),
            Self::Back => Ipv4Addr::new(10, 244, 2, 0),
            Self::Across => Ipv4Addr::new(10, 244, 3, 0),
        }
    }
}

/// One row, or more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// Who carries.
    pub carrier: Carrier,
    /// What packets aim at.
    pub aim: Aim,
    /// UDP, or TCP: a connection that is established, or the first segments of new ones.
    pub proto: Proto,
    /// How many flows.
    pub flows: Flows,
}

impl Case {
    /// Whether the backend is to see an address of the node's.
    pub const fn is_masqueraded(self) -> bool {
        match self.carrier {
            Carrier::Iptables(_) | Carrier::Nftables(_) => matches!(self.aim, Aim::Here),
            Carrier::Shunt(_) => matches!(self.aim, Aim::Back | Aim::Across),
            _ => false,
        }
    }

    /// The number of the first flow: clients are different ones for each aim, since a client port with several flows is
    /// rare, and takes longer.
    pub const fn first_flow(self) -> u64 {
        (2 * self.aim as u64 + (self.proto.0 == Proto::TCP.0) as u64) << 20
    }

    /// Where the backends are.
    pub const fn end(self) -> End {
        match self.aim {
            Aim::Back => End::Client,
            Aim::Across => End::Uplink,
            _ => End::Pods,
        }
    }

    /// The case of the same run that stands for the least it can cost.
    pub const fn floor(self) -> Self {
        Self { carrier: Carrier::Swap, aim: Aim::Pod, proto: Proto::UDP, flows: self.flows }
    }
}

/// An outer end of a node's wires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The clients', and that of other nodes.
    Client,
    /// That of the second uplink.
    Uplink,
    /// The pods'.
    Pods,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match (self.carrier, self.aim) {
            (Carrier::Shunt(_), Aim::Back) => ", sent back by XDP, masqueraded",
            (Carrier::Shunt(_), Aim::Across) => ", sent on by XDP to another uplink, masqueraded",
            (Carrier::Shunt(_), _) => ", to a pod here (the kernel forwards)",
            (carrier, _) if !carrier.tracks() => "",
            (_, Aim::Inside) => ", client's address kept",
            _ => ", masqueraded",
        };
        let proto = if self.proto == Proto::TCP { "TCP, " } else { "" };
        write!(f, "{}{way}, {proto}{}", self.carrier, self.flows.label())
    }
}

/// Sizes that tell whether more Services cost more.
const SIZES: [u32; 3] = [1, USUAL, LARGEST];
/// The largest.
pub const LARGEST: u32 = 10_000;
/// The size at which the less usual ways are measured, and TCP.
const USUAL: u32 = 1000;

/// Everything, or the usual.
pub fn list(all: bool) -> Vec<Case> {
    let mut ways = vec![
        (Carrier::Drop, Aim::Pod),
        (Carrier::Swap, Aim::Pod),
        (Carrier::Dnat, Aim::Back),
        (Carrier::Route, Aim::Pod),
        (Carrier::Door, Aim::Pod),
        (Carrier::Forwarding, Aim::Pod),
    ];
    for services in SIZES {
        let more = services == USUAL || all;
        for carrier in [Carrier::Iptables(services), Carrier::Nftables(services)] {
            ways.push((carrier, Aim::Here));
            if more {
                ways.push((carrier, Aim::Inside));
            }
        }
        ways.push((Carrier::Shunt(services), Aim::Back));
        if more && services > 1 {
            ways.extend([Aim::Across, Aim::Here].map(|aim| (Carrier::Shunt(services), aim)));
        }
    }
    ways.sort();
    let mut cases = Vec::new();
    for (carrier, aim) in ways {
        let of = |proto, flows| Case { carrier, aim, proto, flows };
        cases.extend(Flows::ALL.map(|flows| of(Proto::UDP, flows)));
        let has_tcp = matches!(
            (carrier, aim),
            (Carrier::Iptables(USUAL) | Carrier::Nftables(USUAL), Aim::Here)
                | (Carrier::Shunt(USUAL), Aim::Back)
        );
        if has_tcp {
            cases.extend([Flows::One, Flows::New].map(|flows| of(Proto::TCP, flows)));
        }
    }
    cases
}
