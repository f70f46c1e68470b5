//! The programs. Each parses, asks lb-common, and carries the verdict out; nothing is decided here.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "compare-and-swap exists for BPF only as an intrinsic")]
#![expect(missing_docs, reason = "the attribute macros leave the doc comments behind")]

mod checksum;
mod conntrack;
mod counters;
mod desk;
mod family;
mod functions;
mod log;
mod making;
mod maps;
mod order;
mod own;
mod packet;
mod peers;
mod refusals;
mod routes;
mod run;
mod socket;
mod tables;
mod tc;
mod xdp;

use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use lb_common::abi::{Hook, tail};
use lb_common::addr::{Ipv4, Ipv6};
use lb_common::datapath::{Origin, Point};

/// Uplink, first in line: local backends get their packets, remote ones get them from here.
#[xdp]
#[inline(always)]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    run::xdp(&ctx)
}

/// Uplink and overlay devices, inwards: what XDP left over, or all where there is no XDP.
#[classifier]
#[inline(always)]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    run::tc(&ctx, Hook::UplinkIngress, Point::Ingress(Origin::Uplink), tail::UPLINK_IPV6)
}

/// Uplink and overlay devices, outwards.
#[classifier]
#[inline(always)]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    run::tc(&ctx, Hook::UplinkEgress, Point::Egress, tail::UPLINK_IPV6)
}

/// A pod's host-side interface: packets from the pod.
#[classifier]
#[inline(always)]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    run::tc(&ctx, Hook::PodIngress, Point::Ingress(Origin::Pod), tail::POD_IPV6)
}

/// A pod's host-side interface: packets to the pod.
#[classifier]
#[inline(always)]
pub fn pod_egress(ctx: TcContext) -> i32 {
    run::tc(&ctx, Hook::PodEgress, Point::Egress, tail::POD_IPV6)
}

/// IPv6 after [`uplink_xdp`].
#[xdp]
pub fn uplink_xdp6(ctx: XdpContext) -> u32 {
    run::xdp_of::<Ipv6>(&ctx)
}

/// IPv6 after [`uplink_ingress`].
#[classifier]
pub fn uplink_ingress6(ctx: TcContext) -> i32 {
    run::tc6(&ctx, Hook::UplinkIngress, Point::Ingress(Origin::Uplink))
}

/// IPv6 after [`uplink_egress`].
#[classifier]
pub fn uplink_egress6(ctx: TcContext) -> i32 {
    run::tc6(&ctx, Hook::UplinkEgress, Point::Egress)
}

/// IPv6 after [`pod_ingress`].
#[classifier]
pub fn pod_ingress6(ctx: TcContext) -> i32 {
    run::tc6(&ctx, Hook::PodIngress, Point::Ingress(Origin::Pod))
}

/// IPv6 after [`pod_egress`].
#[classifier]
pub fn pod_egress6(ctx: TcContext) -> i32 {
    run::tc6(&ctx, Hook::PodEgress, Point::Egress)
}

/// After [`uplink_ingress`] and [`pod_ingress`], where netfilter translates.
#[classifier]
pub fn conntrack4(ctx: TcContext) -> i32 {
    run::conntrack::<Ipv4>(&ctx)
}

/// After [`uplink_ingress6`] and [`pod_ingress6`], where netfilter translates.
#[classifier]
pub fn conntrack6(ctx: TcContext) -> i32 {
    run::conntrack::<Ipv6>(&ctx)
}

/// connect(2) to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect(&ctx, socket::Family::V4)
}

/// connect(2) to an IPv6 address, which may be an IPv4-mapped one.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect(&ctx, socket::Family::V6)
}

/// sendmsg(2) of an unconnected UDP socket to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg(&ctx, socket::Family::V4)
}

/// sendmsg(2) of an unconnected UDP socket to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::sendmsg(&ctx, socket::Family::V6)
}

/// recvmsg(2) of a UDP datagram from an IPv4 address.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::show_frontend(&ctx, socket::Family::V4, Hook::Recvmsg)
}

/// recvmsg(2) of a UDP datagram from an IPv6 address.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::show_frontend(&ctx, socket::Family::V6, Hook::Recvmsg)
}

/// getpeername(2) of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::show_frontend(&ctx, socket::Family::V4, Hook::Getpeername)
}

/// getpeername(2) of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::show_frontend(&ctx, socket::Family::V6, Hook::Getpeername)
}

// Some helpers are for GPL-compatible programs only; the source itself is Apache-2.0.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier proves that nothing gets here: it rejects the endless loop otherwise.
    loop {}
}
