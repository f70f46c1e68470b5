//! Every way a packet's visit can end: sizes the counters, names the metric, fills docs/packet-path.md.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Declares a closed enum with a label for each variant.
macro_rules! labelled {
    ($(#[$meta:meta])* $name:ident, $count:ident { $($(#[doc = $doc:literal])* $variant:ident = $label:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }

        impl $name {
            /// Every variant, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The metric label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_ascii(),)* }
            }
        }

        /// Number of variants.
        pub const $count: u32 = $name::ALL.len() as u32;
    };
}

labelled! {
    /// Where a program runs.
    Hook, HOOKS {
        /// XDP on an uplink.
        UplinkXdp = "uplink_xdp",
        /// tc ingress of an uplink or overlay device.
        UplinkIngress = "uplink_ingress",
        /// tc egress of an uplink or overlay device.
        UplinkEgress = "uplink_egress",
        /// tc ingress of a pod's host-side interface: packets from the pod.
        PodIngress = "pod_ingress",
        /// tc egress of a pod's host-side interface: packets to the pod.
        PodEgress = "pod_egress",
        /// cgroup connect.
        Connect = "connect",
        /// cgroup sendmsg.
        Sendmsg = "sendmsg",
        /// cgroup recvmsg.
        Recvmsg = "recvmsg",
        /// cgroup getpeername.
        Getpeername = "getpeername",
    }
}

labelled! {
    /// Why a packet or call left a program the way it did. Exactly one is counted per visit.
    Reason, REASONS {
        /// Neither IPv4 nor IPv6 (ARP, VLAN-tagged frames in XDP): passed untouched.
        NotIp = "not_ip",
        /// Header lies about its length or is cut short: passed untouched.
        Malformed = "malformed",
        /// Later fragment of a datagram whose first was translated: translated alike.
        Fragment = "fragment",
        /// Later fragment of a datagram whose first has not been seen: passed untouched.
        FragmentUnknown = "fragment_unknown",
        /// Later fragment towards a ClusterIP, whose first has not been seen: dropped.
        FragmentLost = "fragment_lost",
        /// ICMP error about a translated flow: outer and inner headers translated.
        IcmpError = "icmp_error",
        /// None of TCP, UDP and SCTP, or an ICMP error about something else: passed untouched.
        OtherProtocol = "other_protocol",
        /// Matches no Service and no flow of ours: passed untouched.
        NoService = "no_service",
        /// Source (0.0.0.0, 127/8, 224/4, 255.255.255.255) or destination (127/8) that no network sends: passed to the kernel, which drops it. Source that nobody else has (the node's own) at a Service: dropped.
        Martian = "martian",
        /// Frame for another station or for many: passed untouched.
        NotForUs = "not_for_us",
        /// Another program of ours, on a device that it has passed before, has translated it: passed untouched.
        Translated = "translated",
        /// Packet of a connection of the node's own that shares a port with Services: passed, or given another port.
        OwnConnection = "own_connection",
        /// A connection to a Service that netfilter translates, where the host has rules of its own: passed untouched.
        Conntrack = "conntrack",
        /// First packet of a flow: backend chosen and translated.
        NewFlow = "new_flow",
        /// Packet of a known flow, client to backend: translated.
        Forward = "forward",
        /// Packet of a known flow, backend to client: translated back.
        Reply = "reply",
        /// Packet of a masqueraded flow leaving: source replaced.
        Masquerade = "masquerade",
        /// Packet of a masqueraded flow coming back: destination restored.
        MasqueradeReply = "masquerade_reply",
        /// XDP cannot forward it by itself (no route, no neighbour, options), its TTL is at an end, or a call is left to the programs on its packets' way: passed untouched.
        LeftToStack = "left_to_stack",
        /// The source is in none of the Service's `loadBalancerSourceRanges`: dropped.
        SourceDenied = "source_denied",
        /// A port that no Service has, on a ClusterIP, or on an external address where it would circle: refused.
        UnknownPort = "unknown_port",
        /// An address of the Service range that no Service has: dropped.
        UnknownAddress = "unknown_address",
        /// The Service has no endpoint: TCP RST sent.
        RefusedReset = "refused_reset",
        /// The Service has no endpoint: ICMP(v6) port unreachable sent.
        RefusedUnreachable = "refused_unreachable",
        /// The Service has no endpoint: the call fails with ECONNREFUSED.
        RefusedCall = "refused_call",
        /// The policy is Local and no endpoint is on this node: dropped.
        NoLocalEndpoint = "no_local_endpoint",
        /// No endpoint, and an answer cannot be made (fragment of a larger packet, IP options, RST): dropped.
        NoEndpointSilent = "no_endpoint_silent",
        /// A refusal that was not sent because too many were, lately: dropped.
        RefusalLimited = "refusal_limited",
        /// RST, SYN+ACK or flags that nobody sends, to a Service without a flow: dropped.
        Stray = "stray",
        /// Every way of the flow's set holds an established flow: refused.
        FlowTableFull = "flow_table_full",
        /// Another CPU held the flow's set for too long: dropped, the client repeats.
        FlowTableContended = "flow_table_contended",
        /// No free port to masquerade with, or a protocol whose ports cannot change (SCTP): refused.
        NatPortsExhausted = "nat_ports_exhausted",
        /// A helper refused the change: dropped.
        RewriteFailed = "rewrite_failed",
    }
}

/// Index into the counter map.
#[inline(always)]
pub const fn counter_index(hook: Hook, reason: Reason) -> u32 {
    hook as u32 * REASONS + reason as u32
}

/// What went to a Service, per CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Traffic {
    /// Flows begun, or calls translated by a socket hook.
    pub flows: u64,
    /// Packets, both directions; the socket hooks see none.
    pub packets: u64,
    /// Bytes of those packets, link-layer header included.
    pub bytes: u64,
}
