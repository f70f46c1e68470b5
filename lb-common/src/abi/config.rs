//! What the agent tells the programs about this node.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Moment;
use crate::addr::{Ipv4, Ipv6};

/// The one entry of the config map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Seed of the flow hash: the same on every node of a cluster.
    pub hash_seed: u64,
    /// Network namespace the agent runs in (`SO_NETNS_COOKIE`).
    pub host_netns_cookie: u64,
    /// Turns the kernel's ticks into moments.
    pub clock: Clock,
    /// Whom frames are for on the only interface that XDP may run on ([`super::Station::only`]); 0: there are several, and the table
    /// says.
    pub station: u64,
    /// See [`ConfigFlags`].
    pub flags: ConfigFlags,
    /// First port for masqueraded flows, host order.
    pub nat_port_first: u16,
    /// Number of ports for masqueraded flows.
    pub nat_port_count: u16,
    /// Refusals each CPU may send in a [`Moment`]; 0: as many as there are.
    pub refusal_limit: u32,
    /// What belongs to IPv4.
    pub ipv4: Config4,
    /// What belongs to IPv6.
    pub ipv6: Config6,
}

impl Config {
    /// What a packet bears that a program of ours has translated on its way into the node, or out of it, so that the next one on its
    /// way leaves it alone: a bridge after its port, a tunnel and the device below. Another node of the same machine has others, for
    /// what a packet bears (`tc_index`) goes with it from one network namespace to the next. Never 0, which every packet bears.
    #[inline(always)]
    pub const fn translated(&self, leaves: bool) -> u16 {
        (self.host_netns_cookie as u16) << 2 | if leaves { 2 } else { 1 }
    }

    /// What a packet bears that a program of ours has translated and sent in by an interface, for this node.
    #[inline(always)]
    pub const fn turned_inwards(&self) -> u16 {
        (self.host_netns_cookie as u16) << 2 | 3
    }
}

/// The programs' clock: jiffies, which cost a load where reading a clock costs a call.
///
/// A tick lasts `TICK_NSEC`, which is also the resolution of `CLOCK_MONOTONIC_COARSE`, and both advance
/// together (`kernel/time/tick-sched.c`), the ticks behind by what passes at boot before the first of them. The count
/// starts five minutes before it overflows 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Clock {
    /// The kernel's count when it booted (`INITIAL_JIFFIES`).
    pub first_tick: u64,
    /// Nanoseconds from one tick to the next.
    pub tick_nanos: u64,
}

impl Clock {
    /// Seconds before the count would overflow 32 bits at which the kernel starts it.
    const HEAD_START: u64 = 300;

    /// Of a kernel whose ticks last `tick_nanos`.
    pub const fn new(tick_nanos: u64) -> Self {
        let frequency = match (1_000_000_000 + tick_nanos / 2).checked_div(tick_nanos) {
            Some(frequency) => frequency,
            None => 0,
        };
        Self { first_tick: (1 << 32) - Self::HEAD_START * frequency, tick_nanos }
    }

    /// The moment after so many ticks, as `bpf_jiffies64` counts them.
    #[inline(always)]
    pub const fn moment(&self, ticks: u64) -> Moment {
        Moment::from_nanos(ticks.wrapping_sub(self.first_tick).wrapping_mul(self.tick_nanos))
    }
}

/// Declares what the config says about one family.
macro_rules! family_config {
    ($(#[$meta:meta])* $name:ident, $address:ty) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            /// This node's address; the source of masqueraded flows when the interface has none.
            pub node_address: $address,
            /// The pods that count as local, or as the cluster's (`detect-local-mode`): those inside
            /// are not masqueraded on their way to a ClusterIP.
            pub local_network: $address,
            /// Netmask of `local_network`. It counts where [`ConfigFlags::LOCAL_RANGE`] is set.
            pub local_mask: $address,
            /// With `service_mask` a range that holds every ClusterIP and Service CIDR, so that packets
            /// to elsewhere need no second look. No ClusterIP at all: network `UNSPECIFIED`, mask all ones.
            pub service_network: $address,
            /// Netmask of `service_network`.
            pub service_mask: $address,
            /// Number of sets in the flow table less one (a power of two less one).
            pub flow_set_mask: u32,
            /// Number of lines in the NAT index less one (a power of two less one).
            pub nat_line_mask: u32,
        }
    };
}

family_config! {
    /// What the config says about IPv4.
    Config4, Ipv4
}

family_config! {
    /// What the config says about IPv6.
    Config6, Ipv6
}

/// Bits of [`Config::flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ConfigFlags(pub u32);

impl ConfigFlags {
    /// The socket hooks serve processes in every network namespace, not the node's alone.
    pub const SOCKETS_EVERYWHERE: Self = Self(1);
    /// `detect-local-mode` by range: who is local stands in `local_network` of each family. A family
    /// whose mask is all zeros (and whose network is zero) has no range: nobody is known to be foreign.
    pub const LOCAL_RANGE: Self = Self(2);
    /// `detect-local-mode` by interface: who comes out of a pod's interface is local, nobody else.
    pub const LOCAL_INTERFACE: Self = Self(4);
    /// `masqueradeAll`: every flow to a ClusterIP is masqueraded, and so with [`Self::MASQUERADE_EXTERNAL`].
    pub const MASQUERADE_ALL: Self = Self(8);
    /// Every flow to an external frontend is masqueraded, unless its policy is Local, and every one that comes to a ClusterIP from
    /// outside the cluster.
    pub const MASQUERADE_EXTERNAL: Self = Self(32);
    /// Every local client that has a flow stands in the filter `CLIENTS`. The agent sets it when it has seen to that, and takes
    /// it back before others are local.
    pub const CLIENTS_NOTED: Self = Self(16);
    /// Networks are the node's own as a whole: see [`super::SourceRange::NODE_NETWORKS`].
    pub const NODE_NETWORKS: Self = Self(64);
    /// The host has rules of its own that packets of Services have to meet, so netfilter translates new flows
    /// ([`crate::datapath::conntrack`]).
    pub const BY_CONNTRACK: Self = Self(128);
    /// Netfilter may know connections to Services: it is asked before a packet begins a flow. Set with [`Self::BY_CONNTRACK`], and
    /// after it for as long as such connections last.
    pub const ASK_CONNTRACK: Self = Self(256);
    /// What this node itself sends to a ClusterIP of IPv4 leaves it through a program of ours, so that sockets may be left to that.
    pub const NODE_PACKETS4: Self = Self(512);
    /// The same for IPv6.
    pub const NODE_PACKETS6: Self = Self(1024);
    /// The host has rules for what its own processes send: they are to see ClusterIPs.
    pub const OUTPUT_RULES: Self = Self(2048);

    /// Whether every bit of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits that are not in `other`.
    #[inline(always)]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Both sets of bits.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What an interface is to us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Role {
    /// Leads to the outside or to other nodes: uplink or overlay device.
    Uplink = 1,
    /// Host side of a pod's veth.
    Pod = 2,
}

/// The value of the interface map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Interface {
    /// A [`Role`] as a number.
    pub role: u32,
    /// Source for flows that are masqueraded out of this interface.
    pub masquerade4: Ipv4,
    /// [`Interface::XDP_SEES`] and [`Interface::XDP_SENDS`].
    pub flags: u32,
    /// An [`XdpForward`] as a number: why XDP sends out of here, or does not. For people; programs look at the flags.
    pub forward: u32,
    /// Source for IPv6 flows that are masqueraded out of this interface.
    pub masquerade6: Ipv6,
}

impl Interface {
    /// Bit of [`Interface::flags`]: an XDP program of ours sees what comes in here before tc does.
    pub const XDP_SEES: u32 = 1;
    /// Bit of [`Interface::flags`]: and XDP may send out of this interface by itself, which takes the driver, and leave to go past
    /// the host's own rules.
    pub const XDP_SENDS: u32 = 2;
    /// Bit of [`Interface::flags`]: frames from here to other pods of this node are switched, and netfilter does not see them.
    pub const SWITCHED: u32 = 4;
    /// Bit of [`Interface::flags`]: the keeper has served it in the agent's place. For the agent; programs do not look.
    pub const KEPT: u32 = 8;
    /// Bit of [`Interface::flags`]: it has several addresses, and [`super::maps::SOURCES`] says which of them flows are masqueraded with.
    pub const MANY_SOURCES: u32 = 16;
}

/// Key of the map of sources, a longest-prefix trie, 24 bytes: where flows go that leave by an interface with several addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SourceToward {
    /// Bits that count of what follows, in the machine's order: 32 for the interface, and the prefix; 96 more for IPv4.
    pub prefix_length: u32,
    /// Index of the interface, in network order, as tries compare from the first byte on.
    pub interface: [u8; 4],
    /// IPv4: the next hop, as an IPv4-mapped address. IPv6: the destination, since next hops there are link-local mostly.
    pub address: Ipv6,
}

impl SourceToward {
    /// A network of `bits` (0 to 128) that is reached by an interface. For IPv4, 96 + its prefix length.
    #[inline(always)]
    pub const fn new(interface: u32, address: Ipv6, bits: u32) -> Self {
        Self { prefix_length: 32 + bits, interface: interface.to_be_bytes(), address }
    }

    /// Index of the interface.
    pub const fn interface(&self) -> u32 {
        u32::from_be_bytes(self.interface)
    }
}

const _: () = assert!(size_of::<SourceToward>() == 24);

/// Why XDP sends out of an interface by itself, or does not (`--xdp-forward`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum XdpForward {
    /// There is no XDP here, or not in the driver.
    #[default]
    NoXdp = 0,
    /// It sends: the driver transmits frames, and no rule of the host's would be passed by.
    Card = 1,
    /// It sends: so the user said.
    Told = 2,
    /// It does not: so the user said.
    Forbidden = 3,
    /// It does not: what is sent into a device of this kind arrives only if the other end is prepared for it.
    Virtual = 4,
    /// It does not: rules of the host's that forwarded packets have to meet would be passed by.
    HostRules = 5,
    /// It does not: rules of the host's routing look at more than XDP can ask for (marks, ports).
    RoutingRules = 6,
}

impl XdpForward {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::NoXdp,
        Self::Card,
        Self::Told,
        Self::Forbidden,
        Self::Virtual,
        Self::HostRules,
        Self::RoutingRules,
    ];

    /// Whether XDP sends.
    pub const fn sends(self) -> bool {
        matches!(self, Self::Card | Self::Told)
    }

    /// The reason of a number in a map; none of ours: nothing is known.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u32 == number)
    }
}

const _: () = assert!(size_of::<Config>() == 168);
const _: () = assert!(size_of::<Interface>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_count_from_five_minutes_before_their_overflow() {
        for (tick_nanos, frequency) in
            [(1_000_000, 1000), (3_333_333, 300), (4_000_000, 250), (10_000_000, 100)]
        {
            let clock = Clock::new(tick_nanos);
            let booted = (1_u64 << 32) - 300 * frequency;
            assert_eq!(clock.moment(booted), Moment(0));
            let day = clock.moment(booted + 86_400 * frequency);
            let (expected, rounding) = (Moment::steps(86_400), 1);
            assert!(expected - day.0 <= rounding, "{expected} {day:?}");
        }
    }
}
