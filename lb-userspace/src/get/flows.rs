//! `shunt get flows`: connections that are translated now.

use lb_common::abi::{BackendId, Moment};
use lb_common::addr::{Address, Ipv4};
use serde::Serialize;

use super::names::{self, Names};
use super::table::{duration, or_dash};
use super::{Filter, Hint, Row};
use crate::dataplane::flows::{LiveFlow, now};
use crate::dataplane::maps::Maps;

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
pub(super) fn rows(maps: &Maps, names: &Names, filter: &Filter) -> Vec<FlowRow> {
    let moment = now();
    let wanted = |live: &LiveFlow| filter.client.is_none_or(|client| live.flow.client == Ipv4::from(client));
    let mut flows: Vec<LiveFlow> = maps.flows.live(moment).filter(wanted).collect();
    flows.sort_by_key(|live| {
        let flow = &live.flow;
        (
            flow.client.octets(),
            flow.proto,
            flow.client_port.get(),
            flow.frontend.octets(),
            flow.frontend_port.get(),
        )
    });
    flows.into_iter().filter_map(|live| row(&live, moment, names, filter)).collect()
}

fn row(live: &LiveFlow, moment: Moment, names: &Names, filter: &Filter) -> Option<FlowRow> {
    let flow = &live.flow;
    let service = names.service(flow.service);
    if !filter.takes(&service.namespace, &service.name) {
        return None;
    }
    let nat = flow.nat != Ipv4::UNSPECIFIED;
    Some(FlowRow {
        proto: names::proto(flow.proto),
        client: format!("{}:{}", flow.client, flow.client_port),
        frontend: format!("{}:{}", flow.frontend, flow.frontend_port),
        backend: format!("{}:{}", flow.backend, flow.backend_port),
        nat: if nat { format!("{}:{}", flow.nat, flow.nat_port) } else { String::new() },
        state: live.word.state().to_string(),
        idle_milliseconds: moment.millis_since(live.word.seen()),
        expires_in_milliseconds: live.word.expires().millis_since(moment),
        service_path: service.path(),
        namespace: service.namespace,
        service: service.name,
        port_name: service.port,
        pod: names.pod(flow.backend_id),
        backend_id: flow.backend_id,
    })
}
