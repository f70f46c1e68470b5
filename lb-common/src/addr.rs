//! The numbers that name an endpoint, each in a type of its own.
//!
//! Addresses and ports hold **network byte order in memory**, so that a header field, a map key and a
//! value of these types are the same bytes. Conversions to and from host order happen here and nowhere
//! else.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An address of one family, as the datapath sees it.
pub trait Address: Copy + Eq + fmt::Debug {
    /// The unspecified address, `0.0.0.0` or `::`.
    const UNSPECIFIED: Self;

    /// Folds the address into 64 bits, for hashing.
    fn fold(self) -> u64;

    /// The address as an IPv6 one; IPv4 as an IPv4-mapped address (RFC 4291, 2.5.5.2).
    fn to_mapped(self) -> Ipv6;

    /// The inverse of [`Address::to_mapped`]. What it gives for an address of the other family means
    /// nothing.
    fn from_mapped(address: Ipv6) -> Self;

    /// The bits of the address that `mask` has.
    #[must_use]
    fn masked(self, mask: Self) -> Self;

    /// Whether no packet of a network comes from there: whoever gets one drops it.
    fn is_martian_source(self) -> bool;

    /// Whether nobody has the address, and the kernel forwards what comes from there all the same.
    fn is_nobodys(self) -> bool;

    /// Whether routers keep what comes from there on its link.
    fn stays_on_its_link(self) -> bool;

    /// Whether it names the host itself.
    fn is_loopback(self) -> bool;
}

/// An IPv4 address; four bytes in network order.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Ipv4(u32);

impl Ipv4 {
    /// The address whose four bytes, as they stand in a header, are `bytes`.
    #[inline(always)]
    pub const fn from_octets(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// The four bytes as they stand in a header.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// The number whose memory is the header's bytes: what kernel helpers call `__be32`.
    #[inline(always)]
    pub const fn to_be32(self) -> u32 {
        self.0
    }

    /// The inverse of [`Ipv4::to_be32`].
    #[inline(always)]
    pub const fn from_be32(be32: u32) -> Self {
        Self(be32)
    }
}

impl Address for Ipv4 {
    const UNSPECIFIED: Self = Self(0);

    #[inline(always)]
    fn fold(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn to_mapped(self) -> Ipv6 {
        Ipv6::mapped(self)
    }

    #[inline(always)]
    fn from_mapped(address: Ipv6) -> Self {
        Self(address.0[3])
    }

    #[inline(always)]
    fn masked(self, mask: Self) -> Self {
        Self(self.0 & mask.0)
    }

    /// `0.0.0.0`, `127/8`, `224/4` and `255.255.255.255` (RFC 1812, 5.3.7). The rest of `0/8` and `240/4` is nobody's by the RFC, and a
    /// host's like any other by the kernel (since Linux 5.3): some clusters have their pods there.
    #[inline(always)]
    fn is_martian_source(self) -> bool {
        let first = self.octets()[0];
        self.0 == 0 || first == 127 || first >> 4 == 14 || self.0 == u32::MAX
    }

    #[inline(always)]
    fn is_nobodys(self) -> bool {
        false
    }

    /// Not even `169.254/16`: the kernel forwards it.
    #[inline(always)]
    fn stays_on_its_link(self) -> bool {
        false
    }

    /// `127.0.0.0/8`.
    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.octets()[0] == 127
    }
}

impl From<Ipv4Addr> for Ipv4 {
    fn from(addr: Ipv4Addr) -> Self {
        Self::from_octets(addr.octets())
    }
}

impl From<Ipv4> for Ipv4Addr {
    fn from(addr: Ipv4) -> Self {
        Self::from(addr.octets())
    }
}

impl fmt::Display for Ipv4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ipv4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(*self).fmt(f)
    }
}

/// An IPv6 address; sixteen bytes in network order.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Ipv6([u32; 4]);

impl Ipv6 {
    /// The four words as they stand in memory, for `user_ip6` of the socket hooks.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The inverse of [`Ipv6::from_words`].
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// The address whose sixteen bytes, as they stand in a header, are `bytes`.
    #[inline(always)]
    pub const fn from_octets(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The sixteen bytes as they stand in a header.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [first, second, third, fourth] = self.0;
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        let ([i, j, k, l], [m, n, o, p]) = (third.to_ne_bytes(), fourth.to_ne_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// `::ffff:a.b.c.d`, which an `AF_INET6` socket uses to speak IPv4 (RFC 4291, 2.5.5.2).
    #[inline(always)]
    pub const fn mapped(addr: Ipv4) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), addr.0])
    }

    /// The IPv4 address inside a mapped one.
    #[inline(always)]
    pub const fn unmapped(self) -> Option<Ipv4> {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be() {
            Some(Ipv4(self.0[3]))
        } else {
            None
        }
    }
}

impl Address for Ipv6 {
    const UNSPECIFIED: Self = Self([0; 4]);

    #[inline(always)]
    fn fold(self) -> u64 {
        let [a, b, c, d] = self.0;
        let high = (a as u64) << 32 | b as u64;
        let low = (c as u64) << 32 | d as u64;
        high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low
    }

    #[inline(always)]
    fn to_mapped(self) -> Ipv6 {
        self
    }

    #[inline(always)]
    fn from_mapped(address: Ipv6) -> Self {
        address
    }

    #[inline(always)]
    fn masked(self, mask: Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, mask.0);
        Self([a & e, b & f, c & g, d & h])
    }

    /// `::1` and multicast (RFC 4291, 2.5.3 and 2.7).
    #[inline(always)]
    fn is_martian_source(self) -> bool {
        self.is_loopback() || self.octets()[0] == 0xff
    }

    /// `::` and IPv4-mapped (RFC 4291, 2.5.2 and 2.5.5.2).
    #[inline(always)]
    fn is_nobodys(self) -> bool {
        let [a, b, c, d] = self.0;
        a | b == 0 && (c == 0 && d == 0 || c == 0xffff_u32.to_be())
    }

    /// `fe80::/10` (RFC 4291, 2.5.6).
    #[inline(always)]
    fn stays_on_its_link(self) -> bool {
        let [first, second, ..] = self.octets();
        first == 0xfe && second >> 6 == 2
    }

    /// `::1`.
    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.0 == [0, 0, 0, 1_u32.to_be()]
    }
}

impl From<Ipv6Addr> for Ipv6 {
    fn from(addr: Ipv6Addr) -> Self {
        Self::from_octets(addr.octets())
    }
}

impl From<Ipv6> for Ipv6Addr {
    fn from(addr: Ipv6) -> Self {
        Self::from(addr.octets())
    }
}

impl fmt::Display for Ipv6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ipv6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(*self).fmt(f)
    }
}

impl From<Ipv4> for IpAddr {
    fn from(addr: Ipv4) -> Self {
        Self::V4(addr.into())
    }
}

impl From<IpAddr> for Ipv6 {
    /// IPv4 becomes an IPv4-mapped address.
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::mapped(addr.into()),
            IpAddr::V6(addr) => addr.into(),
        }
    }
}

impl From<Ipv6> for IpAddr {
    /// An IPv4-mapped address becomes IPv4.
    fn from(addr: Ipv6) -> Self {
        match addr.unmapped() {
            Some(addr) => Self::V4(addr.into()),
            None => Self::V6(addr.into()),
        }
    }
}

/// A transport port; two bytes in network order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// The port people write, e.g. `Port::new(80)`.
    #[inline(always)]
    pub const fn new(host_order: u16) -> Self {
        Self(host_order.to_be())
    }

    /// The port people read.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// Below 1024: of a process that was root's.
    #[inline(always)]
    pub const fn is_privileged(self) -> bool {
        self.get() < 1024
    }

    /// The number whose memory is the header's bytes: what kernel helpers call `__be16`.
    #[inline(always)]
    pub const fn to_be16(self) -> u16 {
        self.0
    }

    /// The inverse of [`Port::to_be16`].
    #[inline(always)]
    pub const fn from_be16(be16: u16) -> Self {
        Self(be16)
    }

    /// The port whose two bytes, as they stand in a header, are `bytes`.
    #[inline(always)]
    pub const fn from_octets(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// The two bytes as they stand in a header.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// A transport protocol, by its IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Proto(pub u8);

impl Proto {
    /// ICMP, RFC 792.
    pub const ICMP: Self = Self(1);
    /// ICMP for IPv6, RFC 4443.
    pub const ICMPV6: Self = Self(58);
    /// TCP, RFC 9293.
    pub const TCP: Self = Self(6);
    /// UDP, RFC 768.
    pub const UDP: Self = Self(17);
    /// SCTP, RFC 9260.
    pub const SCTP: Self = Self(132);
    /// No protocol (reserved by IANA): in keys that stand for an address of the node.
    pub const NODE: Self = Self(255);
    /// No protocol of ours (for experiments, RFC 3692): in keys that stand for an external address of Services.
    pub const EXTERNAL: Self = Self(254);
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("ICMP"),
            Self::ICMPV6 => f.write_str("ICMPv6"),
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::SCTP => f.write_str("SCTP"),
            Self(number) => write!(f, "proto {number}"),
        }
    }
}

impl fmt::Debug for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
