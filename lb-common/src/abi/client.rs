//! What is kept about clients beyond their flows: affinity, permitted sources, fragments of datagrams.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{BackendId, Moment, ServiceId};
use crate::addr::{Address, Ipv6, Proto};

/// Key of the affinity map, 20 bytes: `sessionAffinity: ClientIP` holds per Service port, whatever
/// address of it the client uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address; IPv4 as an IPv4-mapped address.
    pub client: Ipv6,
    /// The Service port.
    pub service: ServiceId,
}

/// Where a client went last, 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Affinity {
    /// The endpoint.
    pub backend: BackendId,
    /// [`super::Backend::generation`] at that time.
    pub generation: u32,
    /// When the client last began a flow.
    pub used: Moment,
}

/// Key of the source-range map, a longest-prefix trie, 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SourceRange {
    /// Bits that count of what follows, in the machine's order: 32 for the Service port, and the
    /// prefix of the range; 96 more for IPv4.
    pub prefix_length: u32,
    /// The Service port, in network order, as tries compare from the first byte on.
    pub service: [u8; 4],
    /// The range's first address; IPv4 as an IPv4-mapped address.
    pub address: Ipv6,
}

impl SourceRange {
    /// In place of a Service port: the ranges ClusterIPs are taken from (`ServiceCIDR`). What is in
    /// one of them and nobody's is dropped.
    pub const SERVICE_CIDRS: ServiceId = u32::MAX;

    /// In place of a Service port: the networks that are the node's own as a whole (routes of type `local`), and that nodePorts are
    /// served in. They count where [`super::ConfigFlags::NODE_NETWORKS`] is set.
    pub const NODE_NETWORKS: ServiceId = u32::MAX - 1;

    /// A range of `bits` (0 to 128) that may reach `service`. For IPv4, 96 + its prefix length.
    #[inline(always)]
    pub const fn new(service: ServiceId, address: Ipv6, bits: u32) -> Self {
        Self { prefix_length: 32 + bits, service: service.to_be_bytes(), address }
    }

    /// A single address that is looked for among the ranges of `service`.
    #[inline(always)]
    pub fn of<A: Address>(service: ServiceId, address: A) -> Self {
        Self::new(service, address.to_mapped(), 128)
    }
}

/// Key of the fragment map, 40 bytes: the fragments of one datagram share it (RFC 791, RFC 8200 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentKey {
    /// Source as the hook sees it; IPv4 as an IPv4-mapped address.
    pub source: Ipv6,
    /// Destination as the hook sees it.
    pub destination: Ipv6,
    /// Identification as it stands in the header; IPv4 uses two bytes.
    pub identification: u32,
    /// Transport protocol.
    pub proto: Proto,
    /// 0: on the way into the node; 1: out of it.
    pub direction: u8,
    pad: [u8; 2],
}

impl FragmentKey {
    /// The key with its padding zeroed.
    #[inline(always)]
    pub const fn new(
        source: Ipv6,
        destination: Ipv6,
        identification: u32,
        proto: Proto,
        direction: u8,
    ) -> Self {
        Self { source, destination, identification, proto, direction, pad: [0; 2] }
    }
}

/// What becomes of the later fragments of a datagram: what became of the first, 48 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fragment {
    /// Their new source; IPv4 as an IPv4-mapped address; `::` where it stays.
    pub source: Ipv6,
    /// Their new destination; `::` where it stays.
    pub destination: Ipv6,
    /// The Service port they belong to.
    pub service: ServiceId,
    /// The endpoint they belong to.
    pub backend: BackendId,
    /// When the first fragment came.
    pub seen: Moment,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<AffinityKey>() == 20);
const _: () = assert!(size_of::<SourceRange>() == 24);
const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<Fragment>() == 48);
