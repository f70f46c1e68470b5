//! The same choice for connect(2) and sendmsg(2): no packet is touched, so it costs nothing per packet.

use super::opening::{List, choose};
use super::select::{finish, mix};
use super::tables::{Backend, Tables};
use super::{Family, Step, frontends, ingress};
use crate::abi::{BackendId, Config, ConfigFlags, Reason, ServiceFlags, ServiceId, SourceRange};
use crate::addr::{Port, Proto};

/// What a process asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call<A> {
    /// Address it wants to reach.
    pub address: A,
    /// Port it wants to reach.
    pub port: Port,
    /// TCP, UDP or SCTP.
    pub proto: Proto,
    /// Address the socket is bound to; unspecified: the node's own counts.
    pub source: A,
    /// The socket's cookie: one backend per socket and frontend, without a record of it.
    pub cookie: u64,
    /// Network namespace of the socket.
    pub netns_cookie: u64,
    /// It is to hold for all that the socket sends: connect(2).
    pub connects: bool,
}

/// What becomes of the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<A> {
    /// Goes on as it is.
    Pass(Reason),
    /// Goes to a backend instead.
    To {
        /// Whose address and port to use.
        backend: Backend<A>,
        /// Which endpoint.
        id: BackendId,
        /// Which Service port.
        service: ServiceId,
        /// Programs on the packets' way could serve it in our place.
        may_leave: bool,
    },
    /// Fails with `ECONNREFUSED`.
    Refuse(Reason),
    /// Fails as if unreachable.
    Drop(Reason),
}

/// Whether the sockets of this network namespace are ours to serve.
#[inline(always)]
pub fn serves<A: Family, T: Tables<A>>(netns_cookie: u64, tables: &T) -> bool {
    let config = tables.config();
    config.flags.has(ConfigFlags::SOCKETS_EVERYWHERE) || netns_cookie == config.host_netns_cookie
}

/// Decides for a connect, or for the destination of a single datagram.
#[inline(always)]
pub fn resolve<A: Family, T: Tables<A>>(call: &Call<A>, tables: &T) -> Answer<A> {
    if !serves(call.netns_cookie, tables) {
        return Answer::Pass(Reason::NoService);
    }
    let mut memory = SourceRange::of(0, call.address);
    let found = frontends::find(call.address, call.port, call.proto, tables, &mut memory);
    let Some((service, address)) = found else {
        return match ingress::unknown(call.address, tables, &mut memory).step() {
            Step::REFUSE => Answer::Refuse(Reason::UnknownPort),
            Step::DROP => Answer::Drop(Reason::UnknownAddress),
            _ => Answer::Pass(Reason::NoService),
        };
    };
    let Some(service) = tables.service_copy(service, address, call.port, call.proto) else {
        return Answer::Drop(Reason::FlowTableContended);
    };
    let may_leave = may_leave(call, service.flags, tables.config());
    if may_leave && is_left(call, tables.config()) {
        return Answer::Pass(Reason::LeftToStack);
    }
    let config = tables.config();
    let asks_who = service.affinity_seconds != 0 || service.flags.has(ServiceFlags::CHECK_SOURCES);
    let client = if call.source != A::UNSPECIFIED {
        call.source
    } else if asks_who && call.netns_cookie != config.host_netns_cookie {
        // A pod's socket has no address yet. Its packets will, and the hooks they pass know what to do.
        return Answer::Pass(Reason::NoService);
    } else {
        A::config(config).node_address
    };
    if service.flags.has(ServiceFlags::CHECK_SOURCES)
        && !tables.in_source_range(&SourceRange::of(service.id, client))
    {
        return Answer::Drop(Reason::SourceDenied);
    }
    let list = List::inside(&service);
    if list.ring.length == 0 {
        return if list.drop_when_empty {
            Answer::Drop(Reason::NoLocalEndpoint)
        } else {
            Answer::Refuse(Reason::RefusedCall)
        };
    }
    // No source port is known yet: the cookie stands for it.
    let port = (call.port.to_be16() as u64) << 8 | call.proto.0 as u64;
    let hash = mix(mix(call.cookie ^ tables.config().hash_seed, call.address.fold()), port);
    match choose(finish(hash), client, service.id, &list, service.affinity_seconds, tables) {
        Some((id, backend)) => Answer::To { backend, id, service: service.id, may_leave },
        None => Answer::Refuse(Reason::RefusedCall),
    }
}

/// Whether the packets of this call would meet a program of ours where they leave ([`super::of_node`]): the node's own, to a ClusterIP
/// that is routed there.
#[inline(always)]
fn may_leave<A: Family>(call: &Call<A>, service: ServiceFlags, config: &Config) -> bool {
    config.flags.has(A::NODE_PACKETS)
        && call.netns_cookie == config.host_netns_cookie
        && !service.has(ServiceFlags::EXTERNAL)
        && call.proto != Proto::SCTP
}

/// Whether a call is left to them: where the host's rules for output are to see ClusterIPs, and for connect(2) of UDP, as nothing
/// could give a connected socket another backend when its own has gone.
#[inline(always)]
fn is_left<A>(call: &Call<A>, config: &Config) -> bool {
    config.flags.has(ConfigFlags::OUTPUT_RULES) || call.proto == Proto::UDP && call.connects
}
