//! One Service: what changes for its ports.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use lb_common::abi::{Backend4, BackendName, Service, ServiceFlags, ServiceName, Text};
use lb_common::addr::Port;
use lb_common::maglev::{LENGTHS, ring_length};

use super::rings::Member;
use super::{BackendState, Draft, Members, Planner, PortState, RingPlan, set_generation};
use crate::desired::{Claims, DesiredEndpoint, DesiredPort, DesiredService, List, Owner};
use crate::model::{Problem, ServiceKey, Severity};

impl Planner {
    pub(super) fn plan_service(
        &mut self,
        key: &ServiceKey,
        desired: Option<&DesiredService>,
        claims: &Claims,
        now: Instant,
        draft: &mut Draft,
    ) {
        let mut old = self.services.remove(key).unwrap_or_default();
        let mut new = BTreeMap::new();
        for port in desired.into_iter().flat_map(|desired| &desired.ports) {
            let port_key = (port.name.clone(), port.protocol);
            let known = old.remove(&port_key);
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
            new.insert(port_key, state);
        }
        for (_, port) in old {
            self.remove_port(port, draft);
        }
        if !new.is_empty() {
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
                draft.service_names.push((id, name));
                id
            }
        };
        Some(PortState {
            id,
            backends: BTreeMap::new(),
            cluster: Members::default(),
            local: Members::default(),
            frontends: Vec::new(),
        })
    }

    fn remove_port(&mut self, port: PortState, draft: &mut Draft) {
        self.service_ports -= 1;
        draft.touched.extend(port.frontends);
        self.active_backends -= port.backends.len();
        for (endpoint, backend) in port.backends {
            self.retire(backend.id, port.id, endpoint, draft);
        }
        draft.freed.rings.push(port.cluster.ring);
        if port.local.ring != port.cluster.ring {
            draft.freed.rings.push(port.local.ring);
        }
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
        let (held, lost): (Vec<_>, Vec<_>) =
            port.frontends.iter().partition(|wanted| claims.holder(wanted.frontend) == Some(&owner));
        for problem in lost.into_iter().filter_map(|wanted| claims.problem(&owner, wanted)) {
            add(key, problem, draft);
        }
        // A list that no frontend asks for gets no ring.
        let used = |list: List, indices: &[u32]| {
            let asked = held.iter().any(|frontend| frontend.outside == list || frontend.inside == list);
            if asked { indices.to_vec() } else { Vec::new() }
        };
        let members = self.plan_backends(key, port, state, now, draft);
        let pick = |indices: Vec<u32>| indices.iter().filter_map(|index| members[*index as usize]).collect();
        let cluster = pick(used(List::Cluster, &port.cluster));
        let local = pick(used(List::Local, &port.local));
        self.plan_rings(key, cluster, local, state, now, draft);
        self.retire_unused(port, state, draft);

        state.frontends.clear();
        // Nothing in this list, but something elsewhere: the client shall try again, not give up.
        let elsewhere = !port.cluster.is_empty();
        for wanted in held {
            let ring = |list: List| match list {
                List::Cluster => state.cluster.ring,
                List::Local => state.local.ring,
            };
            let (outside, inside) = (ring(wanted.outside), ring(wanted.inside));
            let mut flags = wanted.flags;
            if elsewhere && outside.length == 0 {
                flags = flags.with(ServiceFlags::DROP_OUTSIDE);
            }
            if elsewhere && inside.length == 0 {
                flags = flags.with(ServiceFlags::DROP_INSIDE);
            }
            let value = Service {
                id: state.id,
                flags,
                outside,
                inside,
                affinity_seconds: port.affinity_seconds,
                reserved: 0,
            };
            state.frontends.push(wanted.frontend);
            self.publish(wanted.frontend, value, key, draft);
        }
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
        let mut left_out = 0;
        for endpoint in &port.endpoints {
            let id = self.plan_backend(endpoint, state, now, draft);
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
        state: &mut PortState,
        now: Instant,
        draft: &mut Draft,
    ) -> Option<u32> {
        let place = (endpoint.address, endpoint.port.get());
        let value = |id: u32, generation: u32| {
            let local = if endpoint.local { Backend4::LOCAL } else { 0 };
            let backend = Backend4 {
                address: endpoint.address.into(),
                port: Port::new(endpoint.port.get()),
                flags: Backend4::ACTIVE | local,
                generation,
                service: state.id,
                flows: 0,
            };
            (id, backend)
        };
        let name = || BackendName { target: Text::new(&endpoint.target), node: Text::new(&endpoint.node) };
        let wanted = |id| BackendState {
            id,
            local: endpoint.local,
            target: endpoint.target.clone(),
            node: endpoint.node.clone(),
        };
        if let Some(known) = state.backends.get_mut(&place) {
            let new = wanted(known.id);
            if known.local != new.local {
                draft.backends.push(value(new.id, self.generations[new.id as usize]));
            }
            if (&known.target, &known.node) != (&new.target, &new.node) {
                draft.backend_names.push((new.id, name()));
            }
            *known = new;
            return Some(known.id);
        }
        let found = self.recovered.as_mut().and_then(|recovered| recovered.take_backend(state.id, place));
        let id = if let Some((id, backend, known_name)) = found {
            if backend.is_local() != endpoint.local {
                draft.backends.push(value(id, backend.generation));
            }
            if known_name != Some(name()) {
                draft.backend_names.push((id, name()));
            }
            id
        } else {
            let id = self.backend_ids.take(now)?;
            let generation = self.generation(id).wrapping_add(1).max(1);
            set_generation(&mut self.generations, id, generation);
            draft.backends.push(value(id, generation));
            draft.backend_names.push((id, name()));
            id
        };
        self.active_backends += 1;
        state.backends.insert(place, wanted(id));
        Some(id)
    }

    fn plan_rings(
        &mut self,
        key: &ServiceKey,
        cluster: Vec<Member>,
        local: Vec<Member>,
        state: &mut PortState,
        now: Instant,
        draft: &mut Draft,
    ) {
        let old = [state.cluster.clone(), state.local.clone()];
        let new_cluster = self.ring(key, state.id, cluster, &old, now, draft);
        if let Some(new) = &new_cluster {
            state.cluster = new.clone();
        }
        let reusable = [state.cluster.clone(), old[0].clone(), old[1].clone()];
        if let Some(new) = self.ring(key, state.id, local, &reusable, now, draft) {
            state.local = new;
        }
        let kept = [state.cluster.ring, state.local.ring];
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
        let shorter = LENGTHS.iter().rev().copied().filter(|length| *length <= ideal);
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
                .all(|endpoint| state.backends.contains_key(&(endpoint.address, endpoint.port.get())))
        {
            return;
        }
        let wanted = |place: &(Ipv4Addr, u16)| {
            let key = |endpoint: &DesiredEndpoint| (endpoint.address, endpoint.port.get());
            port.endpoints.binary_search_by(|endpoint| key(endpoint).cmp(place)).is_ok()
        };
        let in_ring = |id: u32| state.cluster.ids.contains(&id) || state.local.ids.contains(&id);
        let gone: Vec<_> = state
            .backends
            .iter()
            .filter(|(place, backend)| !wanted(place) && !in_ring(backend.id))
            .map(|(place, backend)| (*place, backend.id))
            .collect();
        for (place, id) in gone {
            state.backends.remove(&place);
            self.active_backends -= 1;
            self.retire(id, state.id, place, draft);
        }
    }
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
