//! Packets that leave, towards a pod or the wire.

use super::Family;
use super::clients::may_have_flows;
use super::desk::Desk;
use super::outcome::{Leg, Outcome};
use super::parse::Parsed;
use super::tables::PacketTables;
use super::{flow, flow_table, own};
use crate::abi::Reason;

/// Decides for tc: replies get the frontend's address back, masqueraded flows their new source.
#[inline(always)]
pub fn egress<A: Family, T: PacketTables<A>>(parsed: &Parsed<A>, tables: &T, desk: &mut Desk<A>) -> Outcome {
    let tuple = &parsed.tuple;
    // Whichever flow it belongs to, one of the two is its client.
    let to_client = may_have_flows(tuple.destination, tables);
    let from_client = may_have_flows(tuple.source, tables);
    if !to_client && !from_client {
        return own::leaves(parsed, tables, desk);
    }
    if to_client && let Some(found) = flow_table::by_reply(tuple, tables, desk) {
        let of_packet = (tuple.proto, parsed.flags, &parsed.segment);
        flow_table::advance(&found.position, flow::Side::Backend, of_packet, tables);
        return Outcome::translate(Leg::REPLY, Reason::Reply);
    }
    // From here on ingress has aged the flow already.
    if from_client && flow_table::by_translated(tuple, tables, desk).is_some() {
        return Outcome::translate(Leg::MASQUERADE, Reason::Masquerade);
    }
    let outcome = shared_port(parsed, tables, desk);
    if outcome.is_for(Reason::NoService) { own::leaves(parsed, tables, desk) } else { outcome }
}

/// Flows that carry their own port through the kernel: see [`crate::abi::Flow::SHARED_PORT`].
#[inline(always)]
fn shared_port<A: Family, T: PacketTables<A>>(parsed: &Parsed<A>, tables: &T, desk: &mut Desk<A>) -> Outcome {
    let tuple = &parsed.tuple;
    let (from, to) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    if let Some(found) = flow_table::by_nat_port(from, to.1, tuple.proto, tables, desk)
        && found.flow.shares_port()
        && found.flow.client == to.0
    {
        let of_packet = (tuple.proto, parsed.flags, &parsed.segment);
        flow_table::advance(&found.position, flow::Side::Backend, of_packet, tables);
        return Outcome::translate(Leg::SHARED_REPLY, Reason::Reply);
    }
    let is_masqueraded =
        flow_table::by_nat_port(to, from.1, tuple.proto, tables, desk).is_some_and(|found| {
            let flow = found.flow;
            flow.shares_port() && !flow.is_of_node() && flow.client == from.0 && flow.nat != from.0
        });
    if is_masqueraded {
        Outcome::translate(Leg::MASQUERADE, Reason::Masquerade)
    } else {
        Outcome::pass(Reason::NoService)
    }
}
