//! Packets that leave, towards a pod or the wire.

use super::parse::Parsed;
use super::rewrite::Translation;
use super::tables::Tables;
use super::{Tally, Verdict, flow, flow_table};
use crate::abi::Reason;
use crate::addr::Address;

/// Decides for tc: replies get the frontend's address back, masqueraded flows their new source.
#[inline(always)]
pub fn egress<A: Address, T: Tables<A>>(parsed: &Parsed<A>, tables: &T) -> Verdict<A> {
    if let Some(found) = flow_table::by_reply(&parsed.tuple, tables) {
        flow_table::advance(&found, flow::Side::Backend, parsed.flags, tables);
        return Verdict::Translate(
            Translation::source(found.flow.frontend, found.flow.frontend_port),
            Tally::new(&found.flow, Reason::Reply),
        );
    }
    // Ingress has counted and aged the flow already.
    if let Some(found) = flow_table::by_translated(&parsed.tuple, tables) {
        return Verdict::Translate(
            Translation::source(found.flow.nat, found.flow.nat_port),
            Tally::new(&found.flow, Reason::Masquerade),
        );
    }
    Verdict::Pass(Reason::NoService)
}
