//! One Service: what changes for its ports.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use lb_common::abi::{Backend, Service, ServiceFlags, ServiceName};
use lb_common::addr::Port;
use lb_common::maglev::{LENGTHS, ring_length};

use super::backends::Backends;
use super::rings::Member;
use super::{
    AddressPort, BackendState, Draft, Members, Planner, PortState, RingPlan, Rings, ServiceState,
    set_generation,
};
use crate::desired::{
    Claims, Class, DesiredEndpoint, DesiredFrontend, DesiredPort, DesiredService, List, Owner,
};
use crate::model::{Family, Frontend, Problem, Protocol, ServiceKey, Severity};
use crate::store::PodName;

impl Planner {
    /// Plans one Service anew. See [`Planner::plan`].
    pub fn plan_service(
        &mut self,
        key: &ServiceKey,
        desired: Option<&DesiredService>,
        claims: &Claims,
        now: Instant,
        draft: &mut Draft,
    ) {
        let mut old = self.services.remove(key).unwrap_or_default();
        let mut new = ServiceState::default();
        for port in desired.into_iter().flat_map(|desired| &desired.ports) {
            let port_key = (port.name.clone(), port.protocol);
            let known = old.ports.iter().position(|(known, _)| *known == port_key);
            let known = known.map(|at| old.ports.remove(at).1);
            if let Some(known) = &known {
                draft.touched.extend(&known.frontends);
            } else {
                self.service_ports += 1;
            }
            let Some(mut state) = known.or_else(|| self.new_port(key, port, now, draft)) else {
                self.service_ports -= 1;
                let message = "no Service id is left for this port, which is not served; delete Services";
                problem(key, Severity::Error, "spec.ports", message.to_owned(), draft);
                continue;
            };
            self.plan_port(key, port, &mut state, claims, now, draft);
            new.ports.push((port_key, state));
        }
        for ((_, protocol), port) in old.ports {
            self.remove_port(port, protocol, draft);
        }
        draft.touched.extend(old.whole);
        for address in desired.into_iter().flat_map(|desired| &desired.cluster_ips) {
            let whole = Frontend::whole(*address);
            if claims.holder(whole).is_some_and(|owner| owner.service == *key) {
                let value = Service { flags: ServiceFlags::WHOLE_ADDRESS, ..Service::default() };
                new.whole.push(whole);
                self.publish(whole, value, Some(key), draft);
            }
        }
        let ports = desired.into_iter().flat_map(|desired| &desired.ports);
        let external = ports
            .flat_map(|port| &port.frontends)
            .filter(|wanted| matches!(wanted.class, Class::LoadBalancer | Class::ExternalIp));
        let external: BTreeSet<_> = external.map(|wanted| wanted.frontend.address).collect();
        for address in external {
            // (Of several Services that share it, one says so.)
            if claims.shared_by(address).is_some_and(|service| service == key) {
                let value = Service { flags: ServiceFlags::EXTERNAL_ADDRESS, ..Service::default() };
                new.whole.push(Frontend::external(address));
                self.publish(Frontend::external(address), value, Some(key), draft);
            }
        }
        new.ports.shrink_to_fit();
        if !new.ports.is_empty() || !new.whole.is_empty() {
            self.services.insert(key.clone(), new);
        }
    }

    /// Finds or gives out the id of a Service port.
    fn new_port(
        &mut self,
        key: &ServiceKey,
        port: &DesiredPort,
        now: Instant,
        draft: &mut Draft,
    ) -> Option<PortState> {
        let name = ServiceName::new(&key.namespace, &key.name, &port.name, port.protocol.proto().0);
        let found = self.recovered.as_mut().and_then(|recovered| recovered.take_id(&name));
        let id = match found {
            Some(id) => id,
            None => {
                let Some(id) = self.service_ids.take(now) else {
                    draft.unfinished.push(key.clone());
                    return None;
                };
                draft.fresh_services.push(id);
                draft.service_names.push((id, name));
                id
            }
        };
        Some(PortState {
            id,
            backends: Backends::default(),
            rings: Default::default(),
            frontends: Vec::new(),
            source_ranges: self.recovered.as_mut().map(|r| r.take_source_ranges(id)).unwrap_or_default(),
        })
    }

    fn remove_port(&mut self, port: PortState, protocol: Protocol, draft: &mut Draft) {
        self.service_ports -= 1;
        draft.touched.extend(port.frontends);
        self.active_backends -= port.backends.len();
        for (endpoint, backend) in port.backends {
            self.retire(backend.id, port.id, endpoint, protocol == Protocol::Udp, draft);
        }
        for Rings { cluster, local } in port.rings {
            draft.freed.rings.push(cluster.ring);
            if local.ring != cluster.ring {
                draft.freed.rings.push(local.ring);
            }
        }
        self.source_ranges -= port.source_ranges.len();
        draft.gone_source_ranges.extend(port.source_ranges.into_iter().map(|range| (port.id, range)));
        draft.gone_service_names.push(port.id);
        draft.freed.services.push(port.id);
    }

    fn plan_port(
        &mut self,
        key: &ServiceKey,
        port: &DesiredPort,
        state: &mut PortState,
        claims: &Claims,
        now: Instant,
        draft: &mut Draft,
    ) {
        let owner = Owner { service: key.clone(), port: port.name.clone(), protocol: port.protocol };
        let (mut held, lost): (Vec<_>, Vec<_>) =
            port.frontends.iter().partition(|wanted| claims.holder(wanted.frontend) == Some(&owner));
        for problem in lost.into_iter().filter_map(|wanted| claims.problem(&owner, wanted)) {
            add(key, problem, draft);
        }
        held.retain(|wanted| !wanted.port_would_change);
        self.plan_source_ranges(key, port, state, &mut held, draft);
        let members = self.plan_backends(key, port, state, now, draft);
        for family in Family::ALL {
            let lists = &port.lists[family as usize];
            // A list that no frontend asks for gets no ring.
            let pick = |list: List, indices: &[u32]| -> Vec<Member> {
                let mut of_family = held.iter().filter(|held| Family::of(held.frontend.address) == family);
                if !of_family.any(|frontend| frontend.outside == list || frontend.inside == list) {
                    return Vec::new();
                }
                indices.iter().filter_map(|index| members[*index as usize]).collect()
            };
            let cluster = pick(List::Cluster, &lists.cluster);
            let local = pick(List::Local, &lists.local);
            self.plan_rings(key, cluster, local, state.id, &mut state.rings[family as usize], now, draft);
        }
        self.retire_unused(port, state, draft);

        state.frontends.clear();
        for wanted in held {
            let family = Family::of(wanted.frontend.address) as usize;
            let value = Service {
                affinity_seconds: port.affinity_seconds,
                ..value_of(wanted, state.id, &state.rings[family], port.lists[family].any)
            };
            state.frontends.push(wanted.frontend);
            self.publish(wanted.frontend, value, Some(key), draft);
        }
        state.frontends.shrink_to_fit();
    }

    /// Lets in who may come. Where there is no room to say so, frontends that need it are taken out of `held`.
    fn plan_source_ranges(
        &mut self,
        key: &ServiceKey,
        port: &DesiredPort,
        state: &mut PortState,
        held: &mut Vec<&DesiredFrontend>,
        draft: &mut Draft,
    ) {
        let checked = |wanted: &DesiredFrontend| wanted.flags.has(ServiceFlags::CHECK_SOURCES);
        let mut wanted = std::borrow::Cow::Borrowed(&port.source_ranges);
        if !held.iter().any(|wanted| checked(wanted)) {
            wanted = Default::default();
        }
        // Both are there for a moment.
        let added = wanted.difference(&state.source_ranges).count();
        if self.source_ranges + added > self.limits.source_ranges {
            let message = "no room is left for its loadBalancerSourceRanges, so its load-balancer addresses are \
                           not served; use fewer ranges";
            problem(key, Severity::Error, "spec.loadBalancerSourceRanges", message.to_owned(), draft);
            draft.unfinished.push(key.clone());
            held.retain(|wanted| !checked(wanted));
            wanted = Default::default();
        }
        let of = |range: &ipnet::IpNet| (state.id, *range);
        draft.source_ranges.extend(wanted.difference(&state.source_ranges).map(of));
        draft.gone_source_ranges.extend(state.source_ranges.difference(&wanted).map(of));
        self.source_ranges = self.source_ranges + wanted.len() - state.source_ranges.len();
        state.source_ranges = wanted.into_owned();
    }

    /// Puts the backends in force. Returns one ring member for each endpoint, none where no id is left.
    fn plan_backends(
        &mut self,
        key: &ServiceKey,
        port: &DesiredPort,
        state: &mut PortState,
        now: Instant,
        draft: &mut Draft,
    ) -> Vec<Option<Member>> {
        let mut members = Vec::with_capacity(port.endpoints.len());
        state.backends.reserve(port.endpoints.len());
        let mut left_out = 0;
        for (endpoint, flags) in port.endpoints.iter().zip(flags(port)) {
            let id = self.plan_backend(endpoint, flags, state, now, draft);
            left_out += usize::from(id.is_none());
            members.push(id.map(|id| Member { id, address: endpoint.address, port: endpoint.port.get() }));
        }
        if left_out > 0 {
            let message = format!(
                "no backend id is left for {left_out} of its endpoints, which get no traffic; delete Services"
            );
            problem(key, Severity::Error, "", message, draft);
            draft.unfinished.push(key.clone());
        }
        members
    }

    fn plan_backend(
        &mut self,
        endpoint: &DesiredEndpoint,
        flags: u16,
        state: &mut PortState,
        now: Instant,
        draft: &mut Draft,
    ) -> Option<u32> {
        let at = (endpoint.address, endpoint.port.get());
        let value = |id: u32, generation: u32| {
            let backend = Backend {
                address: endpoint.address.into(),
                port: Port::new(endpoint.port.get()),
                flags,
                generation,
                service: state.id,
                reserved: 0,
            };
            (id, backend)
        };
        let name = || PodName { target: endpoint.target.clone(), node: endpoint.node.clone() };
        let wanted =
            |id| BackendState { id, flags, target: endpoint.target.clone(), node: endpoint.node.clone() };
        if let Some(known) = state.backends.get_mut(&at) {
            let new = wanted(known.id);
            if known.flags != new.flags {
                draft.backends.push(value(new.id, self.generations[new.id as usize]));
            }
            if (&known.target, &known.node) != (&new.target, &new.node) {
                draft.backend_names.push((new.id, name()));
            }
            *known = new;
            return Some(known.id);
        }
        let found = self.recovered.as_mut().and_then(|recovered| recovered.take_backend(state.id, at));
        let id = if let Some((id, backend, known_name)) = found {
            if backend.flags != flags {
                draft.backends.push(value(id, backend.generation));
            }
            if known_name != Some(name().record()) {
                draft.backend_names.push((id, name()));
            }
            id
        } else {
            let id = self.backend_ids.take(now)?;
            let generation = self.generation(id).wrapping_add(1).max(1);
            set_generation(&mut self.generations, id, generation);
            draft.fresh_backends.push(id);
            draft.backends.push(value(id, generation));
            draft.backend_names.push((id, name()));
            id
        };
        self.active_backends += 1;
        state.backends.insert(at, wanted(id));
        Some(id)
    }

    #[expect(clippy::too_many_arguments, reason = "they are the lists and what they replace")]
    fn plan_rings(
        &mut self,
        key: &ServiceKey,
        cluster: Vec<Member>,
        local: Vec<Member>,
        id: u32,
        rings: &mut Rings,
        now: Instant,
        draft: &mut Draft,
    ) {
        let old = [rings.cluster.clone(), rings.local.clone()];
        if let Some(new) = self.ring(key, id, cluster, &old, now, draft) {
            rings.cluster = new;
        }
        let reusable = [rings.cluster.clone(), old[0].clone(), old[1].clone()];
        if let Some(new) = self.ring(key, id, local, &reusable, now, draft) {
            rings.local = new;
        }
        let kept = [rings.cluster.ring, rings.local.ring];
        for (i, members) in old.iter().enumerate() {
            let twice = i == 1 && members.ring == old[0].ring;
            if members.ring.length > 0 && !kept.contains(&members.ring) && !twice {
                draft.freed.rings.push(members.ring);
            }
        }
    }

    /// The ring for a list of backends: one of `known`, one found in the maps, or a new one. None when
    /// there is no room, and what was in force must stay.
    fn ring(
        &mut self,
        key: &ServiceKey,
        id: u32,
        members: Vec<Member>,
        known: &[Members],
        now: Instant,
        draft: &mut Draft,
    ) -> Option<Members> {
        if members.is_empty() {
            return Some(Members::default());
        }
        let ids: Arc<[u32]> = members.iter().map(|member| member.id).collect();
        if let Some(same) = known.iter().find(|known| known.ring.length > 0 && known.ids == ids) {
            warn_if_short(key, same.ring.length, members.len(), draft);
            return Some(same.clone());
        }
        let ideal = ring_length(members.len());
        // Every backend has a slot at least.
        let least = ideal.min(u32::try_from(members.len()).unwrap_or(u32::MAX));
        let shorter = LENGTHS.iter().rev().copied().filter(|length| (least..=ideal).contains(length));
        for length in shorter {
            let found = self.recovered.as_mut().and_then(|r| r.take_ring(id, &members, length, self.seed));
            let new = found.is_none();
            let Some(ring) = found.or_else(|| self.arena.allocate(length, now)) else { continue };
            if new {
                draft.rings.push(RingPlan { ring, members: members.into(), seed: self.seed });
            }
            warn_if_short(key, length, ids.len(), draft);
            return Some(Members { ring, ids });
        }
        let message = "there is no ring room left, so the former endpoints stay in force; \
                       delete Services or raise the number of ring slots";
        problem(key, Severity::Error, "", message.to_owned(), draft);
        draft.unfinished.push(key.clone());
        None
    }

    /// Retires the backends that are neither wanted nor in a ring that stays.
    fn retire_unused(&mut self, port: &DesiredPort, state: &mut PortState, draft: &mut Draft) {
        if state.backends.len() == port.endpoints.len()
            && port
                .endpoints
                .iter()
                .all(|endpoint| state.backends.contains(&(endpoint.address, endpoint.port.get())))
        {
            return;
        }
        let wanted = |at: &AddressPort| {
            let key = |endpoint: &DesiredEndpoint| (endpoint.address, endpoint.port.get());
            port.endpoints.binary_search_by(|endpoint| key(endpoint).cmp(at)).is_ok()
        };
        let rings = &state.rings;
        let in_ring = |id: u32| {
            rings.iter().any(|rings| rings.cluster.ids.contains(&id) || rings.local.ids.contains(&id))
        };
        let mut gone = Vec::new();
        state.backends.retain(|at, backend| {
            let keep = wanted(at) || in_ring(backend.id);
            if !keep {
                gone.push((*at, backend.id));
            }
            keep
        });
        for (at, id) in gone {
            self.active_backends -= 1;
            self.retire(id, state.id, at, port.protocol == Protocol::Udp, draft);
        }
    }
}

/// What each endpoint of a port is to the programs.
fn flags(port: &DesiredPort) -> Vec<u16> {
    let of = |endpoint: &DesiredEndpoint| Backend::ACTIVE | if endpoint.local { Backend::LOCAL } else { 0 };
    let mut flags: Vec<u16> = port.endpoints.iter().map(of).collect();
    for lists in &port.lists {
        for (list, flag) in [(&lists.cluster, Backend::IN_CLUSTER), (&lists.local, Backend::IN_LOCAL)] {
            list.iter().for_each(|index| flags[*index as usize] |= flag);
        }
    }
    flags
}

/// What a frontend holds, affinity aside. `elsewhere`: some endpoint takes new connections, if not for everybody.
fn value_of(wanted: &DesiredFrontend, id: u32, rings: &Rings, elsewhere: bool) -> Service {
    let ring = |list: List| match list {
        List::Cluster => rings.cluster.ring,
        List::Local => rings.local.ring,
    };
    let (outside, inside) = (ring(wanted.outside), ring(wanted.inside));
    let mut flags = wanted.flags;
    // Nothing in this list, but something elsewhere: the client shall try again, not give up.
    for (list, ring, drop, is_local) in [
        (wanted.outside, outside, ServiceFlags::DROP_OUTSIDE, ServiceFlags::OUTSIDE_IS_LOCAL),
        (wanted.inside, inside, ServiceFlags::DROP_INSIDE, ServiceFlags::INSIDE_IS_LOCAL),
    ] {
        if elsewhere && ring.length == 0 {
            flags = flags.with(drop);
        }
        if list == List::Local {
            flags = flags.with(is_local);
        }
    }
    Service { id, flags, outside, inside, affinity_seconds: 0, reserved: 0 }
}

fn warn_if_short(key: &ServiceKey, length: u32, backends: usize, draft: &mut Draft) {
    let ideal = ring_length(backends);
    if length < ideal {
        let message = format!(
            "ring room is short: {length} slots instead of {ideal}, so shares are less even; \
             delete Services or raise the number of ring slots"
        );
        problem(key, Severity::Warning, "", message, draft);
    }
}

fn problem(key: &ServiceKey, severity: Severity, field: &str, message: String, draft: &mut Draft) {
    add(key, Problem::of(&key.object(), severity, field, message), draft);
}

fn add(key: &ServiceKey, problem: Problem, draft: &mut Draft) {
    let problems = draft.problems.entry(key.clone()).or_default();
    if !problems.contains(&problem) {
        problems.push(problem);
    }
}
