//! What sockets asked for, and what they got.

use core::intrinsics::AtomicOrdering::SeqCst;
use core::intrinsics::{atomic_cxchg, atomic_xchg};

use lb_common::abi::{SocketFrontend, SocketPeer, TcpPeer};
use lb_common::addr::{Ipv6, Port, Proto};

use crate::maps::{SOCKET_PEERS, TCP_PEERS};
use crate::order::{all_of, pointer_after};
use crate::tables::barrier;

/// Remembers what a socket asked for. A failure costs the name that getpeername shows, not the connection.
#[inline(always)]
pub fn remember(socket: &SocketPeer, frontend: &SocketFrontend) {
    if socket.proto == Proto::TCP {
        remember_tcp(socket, frontend);
        return;
    }
    // Only what is new: an update in a full LRU map evicts others, even of a key that is there.
    // SAFETY: the value is compared at once.
    if unsafe { SOCKET_PEERS.get(socket) } != Some(frontend) {
        let _ = SOCKET_PEERS.insert(socket, frontend, 0);
    }
    if !is_known(socket.cookie) {
        remember_tcp(socket, frontend);
    }
}

/// Whether a UDP socket has asked for this peer by another name.
#[inline(always)]
pub fn asked_another(socket: &SocketPeer, frontend: &SocketFrontend) -> bool {
    if socket.proto != Proto::UDP {
        return false;
    }
    // SAFETY: the value is compared at once.
    unsafe { SOCKET_PEERS.get(socket) }
        .is_some_and(|known| known.address != frontend.address || known.port != frontend.port)
}

/// Forgets that a socket has asked for this peer by another name. Most sockets have asked for nobody, which one load tells.
#[inline(always)]
pub fn forget(socket: &SocketPeer) {
    if !is_known(socket.cookie) {
        return;
    }
    if socket.proto == Proto::TCP {
        if let Some(place) = TCP_PEERS.get_ptr_mut(TcpPeer::place(socket.cookie)) {
            // SAFETY: a live array element, aligned to eight bytes. If it is another's by now, that one keeps it.
            unsafe {
                atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(&raw mut (*place).cookie, socket.cookie, 0)
            };
        }
    } else {
        let _ = SOCKET_PEERS.remove(socket);
    }
}

/// Whether the place of a socket is its own: it has asked for a Service, and no later socket has taken the place.
#[inline(always)]
fn is_known(cookie: u64) -> bool {
    let Some(place) = TCP_PEERS.get_ptr_mut(TcpPeer::place(cookie)) else { return false };
    // SAFETY: a live array element; volatile, since other CPUs write it.
    unsafe { (&raw const (*place).cookie).read_volatile() == cookie }
}

/// Address and port that a socket asked for when it got this peer.
#[inline(always)]
pub fn frontend(socket: &SocketPeer) -> Option<(Ipv6, Port)> {
    if socket.proto == Proto::TCP {
        return frontend_tcp(socket);
    }
    // SAFETY: the value is copied at once.
    unsafe { SOCKET_PEERS.get(socket) }.map(|frontend| (frontend.address, frontend.port))
}

#[inline(always)]
fn remember_tcp(socket: &SocketPeer, frontend: &SocketFrontend) {
    let Some(place) = TCP_PEERS.get_ptr_mut(TcpPeer::place(socket.cookie)) else { return };
    // SAFETY: a live array element, aligned to eight bytes. Whoever has made it busy alone writes the rest; readers
    // look at the number before and after.
    unsafe {
        let owner = &raw mut (*place).cookie;
        let before = owner.read_volatile();
        if before == TcpPeer::BUSY
            || !atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(owner, before, TcpPeer::BUSY).1
        {
            return;
        }
        (*place).backend = socket.address;
        (*place).frontend = frontend.address;
        (*place).backend_port = socket.port;
        (*place).frontend_port = frontend.port;
        atomic_xchg::<u64, { SeqCst }>(owner, socket.cookie);
    }
}

#[inline(always)]
fn frontend_tcp(socket: &SocketPeer) -> Option<(Ipv6, Port)> {
    let place = TCP_PEERS.get_ptr_mut(TcpPeer::place(socket.cookie))?;
    // SAFETY: a live array element; volatile, since other CPUs write it.
    let owner = |place: *mut TcpPeer| unsafe { (&raw const (*place).cookie).read_volatile() };
    let before = owner(place);
    let then = pointer_after(before, place);
    if before != socket.cookie {
        return None;
    }
    barrier();
    // SAFETY: as above. Every bit pattern is a valid one, and a torn copy is thrown away.
    let copy = unsafe { *then };
    barrier();
    // SAFETY: plain words, without padding.
    let words = unsafe { core::mem::transmute::<TcpPeer, [u64; 6]>(copy) };
    let is_its_own = owner(pointer_after(all_of(words), place)) == socket.cookie
        && copy.backend == socket.address
        && copy.backend_port == socket.port;
    is_its_own.then_some((copy.frontend, copy.frontend_port))
}
