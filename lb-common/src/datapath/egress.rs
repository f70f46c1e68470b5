//! Packets that leave, towards a pod or the wire.

use super::clients::may_have_flows;
use super::parse::Parsed;
use super::rewrite::Translation;
use super::tables::Tables;
use super::{Family, Tally, Verdict, flow, flow_table};
use crate::abi::Reason;

/// Decides for tc: replies get the frontend's address back, masqueraded flows their new source.
#[inline(always)]
pub fn egress<A: Family, T: Tables<A>>(parsed: &Parsed<A>, tables: &T) -> Verdict<A> {
    let tuple = &parsed.tuple;
    // Whichever flow it belongs to, one of the two is its client.
    let to_client = may_have_flows(tuple.destination, tables);
    let from_client = may_have_flows(tuple.source, tables);
    if !to_client && !from_client {
        return Verdict::Pass(Reason::NoService);
    }
    if to_client && let Some(found) = flow_table::by_reply(tuple, tables) {
        flow_table::advance(&found, flow::Side::Backend, parsed.flags, tables);
        return Verdict::Translate(
            Translation::source(found.flow.frontend, found.flow.frontend_port),
            Tally::new(&found.flow, Reason::Reply),
        );
    }
    // From here on ingress has aged the flow already.
    if from_client && let Some(found) = flow_table::by_translated(tuple, tables) {
        let flow = &found.flow;
        return Verdict::Translate(
            Translation::source(flow.nat, flow.nat_port),
            Tally::new(flow, Reason::Masquerade),
        );
    }
    shared_port(parsed, tables).unwrap_or(Verdict::Pass(Reason::NoService))
}

/// Flows that carry their own port through the kernel: see [`crate::abi::Flow::SHARED_PORT`].
#[inline(always)]
fn shared_port<A: Family, T: Tables<A>>(parsed: &Parsed<A>, tables: &T) -> Option<Verdict<A>> {
    let tuple = &parsed.tuple;
    let (from, from_port, to, to_port) =
        (tuple.source, tuple.source_port, tuple.destination, tuple.destination_port);
    if let Some(found) = flow_table::by_nat_port(from, from_port, to_port, tuple.proto, tables)
        && found.flow.shares_port()
        && found.flow.client == to
    {
        flow_table::advance(&found, flow::Side::Backend, parsed.flags, tables);
        let flow = &found.flow;
        let translation = Translation::source(flow.frontend, flow.frontend_port)
            .with_destination(flow.client, flow.client_port);
        return Some(Verdict::Translate(translation, Tally::new(flow, Reason::Reply)));
    }
    let found = flow_table::by_nat_port(to, to_port, from_port, tuple.proto, tables)?;
    let flow = &found.flow;
    (flow.shares_port() && flow.client == from && flow.nat != from).then(|| {
        let translation = Translation::source(flow.nat, flow.nat_port);
        Verdict::Translate(translation, Tally::new(flow, Reason::Masquerade))
    })
}
