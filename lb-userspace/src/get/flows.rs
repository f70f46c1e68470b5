//! `shunt get flows`: connections that are translated now.

use std::io;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{BackendId, ConfigFlags, FlowSet, Moment, maps as map_names};
use lb_common::addr::{Address, Port, Proto};
use lb_kernel::maps::Maps;
use lb_kernel::maps::flows::{LiveFlow, now};
use lb_kernel::maps::mmap::FlowMemory;
use serde::Serialize;
use zerocopy::FromBytes;

use super::names::{self, Names};
use super::table::{bytes, duration, or_dash};
use super::{Filter, Hint, Row};
use crate::exit::Error;

pub(super) const HINT: Hint = Hint {
    none: "no flows: nothing has been sent to a Service through this node lately. Processes of the node that the \
           socket hooks serve have no flow: their connections go to the endpoint directly",
    filtered: "no flow matches; try without --client, --service and --namespace",
};

/// A live flow.
#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowRow {
    proto: String,
    client: String,
    frontend: String,
    backend: String,
    /// The address the backend sees instead of the client's; empty: the client's own.
    nat: String,
    state: String,
    idle_milliseconds: u64,
    /// Milliseconds until it is forgotten, if no packet comes.
    expires_in_milliseconds: u64,
    namespace: String,
    service: String,
    port_name: String,
    pod: String,
    backend_id: BackendId,
    #[serde(skip)]
    service_path: String,
}

impl Row for FlowRow {
    const TITLES: &'static [&'static str] =
        &["PROTO", "CLIENT", "FRONTEND", "BACKEND", "VIA", "STATE", "IDLE", "SERVICE", "POD", "EXPIRES"];
    const NARROW: usize = 9;

    fn cells(&self) -> Vec<String> {
        vec![
            self.proto.clone(),
            self.client.clone(),
            self.frontend.clone(),
            self.backend.clone(),
            or_dash(&self.nat),
            self.state.clone(),
            duration(self.idle_milliseconds),
            self.service_path.clone(),
            or_dash(&self.pod),
            duration(self.expires_in_milliseconds),
        ]
    }
}

/// Live flows that `filter` lets through, sorted by client.
pub(super) fn rows(maps: &Maps, names: &Names, filter: &Filter) -> Result<Vec<FlowRow>, Error> {
    let moment = now();
    let mut rows = of_family(&maps.flows4, moment, names, filter).map_err(failed(map_names::FLOWS4))?;
    rows.extend(of_family(&maps.flows6, moment, names, filter).map_err(failed(map_names::FLOWS6))?);
    rows.sort_by_key(|(order, _)| *order);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// What is to be said where netfilter translates.
pub(super) fn elsewhere(maps: &Maps) -> Option<&'static str> {
    let config = maps.config.get(&0).ok().flatten()?;
    config.flags.has(ConfigFlags::ASK_CONNTRACK).then_some(
        "note: netfilter translates connections to Services here, for the host has or had rules of its own; `conntrack -L` shows those",
    )
}

fn failed(map: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Map { map, source }
}

/// How full the tables are, for people.
pub(super) fn room(maps: &Maps) -> Result<String, Error> {
    fn line<A: FromBytes>(family: &str, flows: &FlowMemory<A>) -> io::Result<String> {
        let taken: u64 = flows.count_by_state(now())?.values().sum();
        let (room, set) = (flows.capacity() as u64, size_of::<FlowSet<A>>());
        let size = bytes((flows.sets() * set) as u64);
        Ok(format!("{family}: {taken} of {room} places are taken, in {size} (--flow-table-size)"))
    }
    let v4 = line("IPv4", &maps.flows4).map_err(failed(map_names::FLOWS4))?;
    Ok(format!("{v4}\n{}", line("IPv6", &maps.flows6).map_err(failed(map_names::FLOWS6))?))
}

/// Client, protocol, frontend.
type Order = (SocketAddr, Proto, SocketAddr);

fn of_family<A: FromBytes + Address + Into<IpAddr>>(
    flows: &FlowMemory<A>,
    moment: Moment,
    names: &Names,
    filter: &Filter,
) -> io::Result<Vec<(Order, FlowRow)>> {
    let flows = flows.mapped()?;
    Ok(flows.live(moment).filter_map(|live| row(&live, moment, names, filter)).collect())
}

fn row<A: Address + Into<IpAddr>>(
    live: &LiveFlow<A>,
    moment: Moment,
    names: &Names,
    filter: &Filter,
) -> Option<(Order, FlowRow)> {
    let flow = &live.flow;
    let at = |address: A, port: Port| SocketAddr::new(address.into(), port.get());
    let (client, frontend) = (at(flow.client, flow.client_port), at(flow.frontend, flow.frontend_port));
    if filter.client.is_some_and(|wanted| wanted != client.ip()) {
        return None;
    }
    let service = names.service(flow.service);
    if !filter.takes(&service.namespace, &service.name) {
        return None;
    }
    let nat = (flow.nat != A::UNSPECIFIED).then(|| at(flow.nat, flow.nat_port).to_string());
    let row = FlowRow {
        proto: names::proto(flow.proto),
        client: client.to_string(),
        frontend: frontend.to_string(),
        backend: at(flow.backend, flow.backend_port).to_string(),
        nat: nat.unwrap_or_default(),
        state: live.word.state().to_string(),
        idle_milliseconds: moment.millis_since(live.word.seen()),
        expires_in_milliseconds: live.word.expires().millis_since(moment),
        service_path: if flow.is_own() { "the node's own".to_owned() } else { service.path() },
        namespace: service.namespace,
        service: service.name,
        port_name: service.port,
        pod: names.pod(flow.backend_id),
        backend_id: flow.backend_id,
    };
    Some(((client, flow.proto, frontend), row))
}
