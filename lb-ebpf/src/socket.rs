//! Carries out answers in the cgroup socket hooks.

use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{Hook, Reason, SocketFrontend, SocketPeer};
use lb_common::addr::{Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::socket::{Answer, Call, resolve};

use crate::counters::{count_call, count_service_call};
use crate::family::KernelFamily;
use crate::peers;
use crate::tables::Maps;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// Which address fields of the context count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `user_ip4`.
    V4,
    /// `user_ip6`, which holds IPv4 as an IPv4-mapped address.
    V6,
}

/// The address and port a call is about; IPv4 as an IPv4-mapped address.
#[derive(Clone, Copy)]
struct Peer {
    address: Ipv6,
    port: Port,
}

impl Peer {
    #[inline(always)]
    fn read(ctx: &SockAddrContext, family: Family) -> Self {
        // SAFETY: the context is valid while the program runs.
        let fields = unsafe { &*ctx.sock_addr };
        let address = match family {
            Family::V4 => Ipv6::mapped(Ipv4::from_be32(fields.user_ip4)),
            Family::V6 => {
                let [a, b, c, d] = fields.user_ip6;
                Ipv6::from_words([a, b, c, d])
            }
        };
        Self { address, port: Port::from_be16(fields.user_port as u16) }
    }

    #[inline(always)]
    fn write(self, ctx: &SockAddrContext, family: Family) {
        let [first, second, third, fourth] = self.address.words();
        // SAFETY: the context is valid while the program runs, and these fields may be written. They
        // are written through pointers, since the kernel must see each store.
        unsafe {
            match family {
                Family::V4 => (&raw mut (*ctx.sock_addr).user_ip4).write_volatile(fourth),
                Family::V6 => {
                    let words = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
                    words.write_volatile(first);
                    words.add(1).write_volatile(second);
                    words.add(2).write_volatile(third);
                    words.add(3).write_volatile(fourth);
                }
            }
            (&raw mut (*ctx.sock_addr).user_port).write_volatile(self.port.to_be16() as u32);
        }
    }
}

/// connect(2): the socket gets a backend for its whole life.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let (allow, reason) = translate(ctx, family, true);
    count_call(Hook::Connect, reason);
    allow
}

/// sendmsg(2): each datagram is looked at, so it never goes to a backend that is gone.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let (allow, reason) = translate(ctx, family, false);
    count_call(Hook::Sendmsg, reason);
    allow
}

#[inline(always)]
fn translate(ctx: &SockAddrContext, family: Family, connects: bool) -> (i32, Reason) {
    let peer = Peer::read(ctx, family);
    match (family, peer.address.unmapped()) {
        (Family::V4, _) | (_, Some(_)) => choose::<Ipv4>(ctx, family, peer, connects),
        (Family::V6, None) => choose::<Ipv6>(ctx, family, peer, connects),
    }
}

#[inline(always)]
fn choose<A: KernelFamily>(
    ctx: &SockAddrContext,
    family: Family,
    peer: Peer,
    connects: bool,
) -> (i32, Reason) {
    // SAFETY: the context is valid while the program runs.
    let proto = Proto(unsafe { (*ctx.sock_addr).protocol } as u8);
    if !matches!(proto, Proto::TCP | Proto::UDP | Proto::SCTP) {
        return (ALLOW, Reason::OtherProtocol);
    }
    let Some(tables) = Maps::<A>::new() else {
        return (ALLOW, Reason::NoService);
    };
    let call = Call {
        address: A::from_mapped(peer.address),
        port: peer.port,
        proto,
        source: A::UNSPECIFIED,
        // SAFETY: the helper takes the context of this program.
        cookie: unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) },
        // SAFETY: the helper takes the context of this program.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) },
        connects,
    };
    match resolve(&call, &tables) {
        Answer::Pass(reason) => {
            // Whom it speaks to now, it has asked for by that name.
            peers::forget(&SocketPeer::new(call.cookie, peer.address, peer.port, proto));
            (ALLOW, reason)
        }
        Answer::Refuse(reason) => (fail(ECONNREFUSED), reason),
        Answer::Drop(reason) => (fail(EHOSTUNREACH), reason),
        Answer::To { backend, id, service, may_leave } => {
            let address = backend.address.to_mapped();
            let frontend = SocketFrontend::new(peer.address, peer.port, id, backend.generation);
            let socket = SocketPeer::new(call.cookie, address, backend.port, proto);
            if may_leave && peers::asked_another(&socket, &frontend) {
                // Answers to either would look alike here.
                return (ALLOW, Reason::LeftToStack);
            }
            peers::remember(&socket, &frontend);
            count_service_call(service, id);
            Peer { address, port: backend.port }.write(ctx, family);
            (ALLOW, Reason::NewFlow)
        }
    }
}

/// recvmsg(2) and getpeername(2): the process sees the address it asked for.
#[inline(always)]
pub fn show_frontend(ctx: &SockAddrContext, family: Family, hook: Hook) -> i32 {
    let reason = restore(ctx, family);
    count_call(hook, reason);
    ALLOW
}

#[inline(always)]
fn restore(ctx: &SockAddrContext, family: Family) -> Reason {
    let peer = Peer::read(ctx, family);
    // SAFETY: the context is valid while the program runs.
    let proto = Proto(unsafe { (*ctx.sock_addr).protocol } as u8);
    // SAFETY: the helper takes the context of this program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    let key = SocketPeer::new(cookie, peer.address, peer.port, proto);
    match peers::frontend(&key) {
        Some((address, port)) => {
            Peer { address, port }.write(ctx, family);
            Reason::Reply
        }
        None => Reason::NoService,
    }
}

/// The call's result: `-error`.
#[inline(always)]
fn fail(error: i32) -> i32 {
    // SAFETY: the helper takes a number.
    unsafe { bpf_set_retval(-error) };
    DENY
}
