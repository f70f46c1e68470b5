//! Carries out answers in the cgroup socket hooks.

use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{Frontend4, Hook, Reason, SocketPeer4};
use lb_common::addr::{Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::socket::{Answer, Call, resolve};

use crate::counters::{count_call, count_service_call};
use crate::maps::{HAS_SET_RETVAL, SOCKET_PEERS4};
use crate::tables::{Context, KernelTables};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// Which address fields of the context count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `user_ip4`.
    V4,
    /// `user_ip6`, where an IPv4-mapped address is ours.
    V6,
}

/// The address and port a call is about; nothing when it is not IPv4.
#[derive(Clone, Copy)]
struct Peer {
    address: Ipv4,
    port: Port,
}

impl Peer {
    #[inline(always)]
    fn read(ctx: &SockAddrContext, family: Family) -> Option<Self> {
        // SAFETY: the context is valid while the program runs.
        let fields = unsafe { &*ctx.sock_addr };
        let address = match family {
            Family::V4 => Ipv4::from_be32(fields.user_ip4),
            Family::V6 => {
                let [a, b, c, d] = fields.user_ip6;
                Ipv6::from_words([a, b, c, d]).unmapped()?
            }
        };
        Some(Self { address, port: Port::from_be16(fields.user_port as u16) })
    }

    #[inline(always)]
    fn write(self, ctx: &SockAddrContext, family: Family) {
        // SAFETY: the context is valid while the program runs, and these fields may be written. They
        // are written through pointers, since the kernel must see each store.
        unsafe {
            match family {
                Family::V4 => (&raw mut (*ctx.sock_addr).user_ip4).write_volatile(self.address.to_be32()),
                Family::V6 => (&raw mut (*ctx.sock_addr).user_ip6)
                    .cast::<u32>()
                    .add(3)
                    .write_volatile(self.address.to_be32()),
            }
            (&raw mut (*ctx.sock_addr).user_port).write_volatile(self.port.to_be16() as u32);
        }
    }
}

/// connect(2): the socket gets a backend for its whole life.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let (allow, reason) = translate(ctx, family);
    count_call(Hook::Connect, reason);
    allow
}

/// sendmsg(2): each datagram is looked at, so it never goes to a backend that is gone.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let (allow, reason) = translate(ctx, family);
    count_call(Hook::Sendmsg, reason);
    allow
}

#[inline(always)]
fn translate(ctx: &SockAddrContext, family: Family) -> (i32, Reason) {
    let Some(peer) = Peer::read(ctx, family) else { return (ALLOW, Reason::NotIpv4) };
    // SAFETY: the context is valid while the program runs.
    let proto = Proto(unsafe { (*ctx.sock_addr).protocol } as u8);
    if proto != Proto::TCP && proto != Proto::UDP {
        return (ALLOW, Reason::OtherProtocol);
    }
    let Some(tables) = KernelTables::new(Context::Socket(ctx.sock_addr)) else {
        return (ALLOW, Reason::NoService);
    };
    let call = Call {
        address: peer.address,
        port: peer.port,
        proto,
        // SAFETY: the helper takes the context of this program.
        cookie: unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) },
        // SAFETY: the helper takes the context of this program.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) },
    };
    match resolve(&call, &tables) {
        Answer::Pass(reason) => (ALLOW, reason),
        Answer::Refuse(reason) => (fail(ECONNREFUSED), reason),
        Answer::Drop(reason) => (fail(EHOSTUNREACH), reason),
        Answer::To { backend, id, service } => {
            let frontend = Frontend4::new(peer.address, peer.port, proto);
            remember(&SocketPeer4::new(call.cookie, backend.address, backend.port, proto), &frontend);
            count_service_call(service, id);
            Peer { address: backend.address, port: backend.port }.write(ctx, family);
            (ALLOW, Reason::NewFlow)
        }
    }
}

/// Writes only what is new: an update in a full LRU map evicts others, even of a key that is there.
#[inline(always)]
fn remember(key: &SocketPeer4, frontend: &Frontend4) {
    // SAFETY: the value is compared at once.
    if unsafe { SOCKET_PEERS4.get(key) } != Some(frontend) {
        // A failure costs the name that getpeername shows, not the connection.
        let _ = SOCKET_PEERS4.insert(key, frontend, 0);
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
    let Some(peer) = Peer::read(ctx, family) else { return Reason::NotIpv4 };
    // SAFETY: the context is valid while the program runs.
    let proto = Proto(unsafe { (*ctx.sock_addr).protocol } as u8);
    // SAFETY: the helper takes the context of this program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    let key = SocketPeer4::new(cookie, peer.address, peer.port, proto);
    // SAFETY: the value is copied at once.
    match unsafe { SOCKET_PEERS4.get(key) }.copied() {
        Some(frontend) => {
            Peer { address: frontend.address, port: frontend.port }.write(ctx, family);
            Reason::Reply
        }
        None => Reason::NoService,
    }
}

/// The call's result: `-error` where the kernel lets us say so, else EPERM.
#[inline(always)]
fn fail(error: i32) -> i32 {
    if HAS_SET_RETVAL.load() != 0 {
        // SAFETY: the helper takes a number.
        unsafe { bpf_set_retval(-error) };
    }
    DENY
}
