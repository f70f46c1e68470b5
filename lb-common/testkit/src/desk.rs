//! A desk to begin with.

use super::memory::blank_flow;
use lb_common::abi::{
    FlowReference, FlowState, FlowWord, Fragment, FragmentKey, Moment, Ring, ServiceFlags, SourceRange,
};
use lb_common::addr::{Address as _, Ipv6, Port, Proto};
use lb_common::datapath::flow_table::{Home, NewFlow, Query};
use lb_common::datapath::opening::{Chosen, List, Opening, OpeningKind};
use lb_common::datapath::parse::{LaterFragment, Parsed, Quote, Segment, TcpFlags};
use lb_common::datapath::rewrite::{ErrorTranslation, Translation};
use lb_common::datapath::{Backend, Desk, Family, Hop, Origin, Route, Tally};

/// A desk with nothing on it.
pub fn blank_desk<A: Family>() -> Desk<A> {
    let nothing = Parsed::<A>::NOTHING;
    let nobody = Translation::source(A::UNSPECIFIED, Port::default());
    let tally = Tally { service: 0, backend: 0 };
    Desk {
        found: blank_flow(),
        word: FlowWord::default(),
        query: Query::NOTHING,
        opening: Opening {
            ttl: 0,
            kind: OpeningKind::CLIENT,
            tuple: nothing.tuple,
            flags: TcpFlags::default(),
            segment: Segment::default(),
            origin: Origin::Wire,
            service: 0,
            service_flags: ServiceFlags::default(),
            list: List { ring: Ring::default(), member: 0, drop_when_empty: false },
            affinity_seconds: 0,
            replaces: FlowReference::NONE,
        },
        chosen: Chosen {
            hash: 0,
            id: 0,
            backend: Backend {
                address: A::UNSPECIFIED,
                port: Port::default(),
                flags: 0,
                generation: 0,
                service: 0,
            },
        },
        new: NewFlow {
            flow: blank_flow(),
            masquerade: A::UNSPECIFIED,
            state: FlowState::FREE,
            replaces: FlowReference::NONE,
            hash: 0,
            port_holder: FlowReference::NONE,
            made: FlowReference::NONE,
        },
        port_rank: 0,
        home: Home::default(),
        same: FlowReference::NONE,
        ended: FlowReference::NONE,
        journey: (A::UNSPECIFIED, A::UNSPECIFIED, 0),
        route: Route::NOWHERE,
        source_range: SourceRange::of(0, A::UNSPECIFIED),
        hop: Hop::UNKNOWN,
        later: LaterFragment {
            source: A::UNSPECIFIED,
            destination: A::UNSPECIFIED,
            identification: 0,
            proto: Proto(0),
        },
        later_addresses: (A::UNSPECIFIED, A::UNSPECIFIED, tally),
        fragment: (
            FragmentKey::new(Ipv6::UNSPECIFIED, Ipv6::UNSPECIFIED, 0, Proto(0), 0),
            Fragment {
                source: Ipv6::UNSPECIFIED,
                destination: Ipv6::UNSPECIFIED,
                service: 0,
                backend: 0,
                seen: Moment::default(),
                reserved: 0,
            },
        ),
        quote: Quote::NOTHING,
        error: (
            ErrorTranslation { source: A::UNSPECIFIED, destination: A::UNSPECIFIED, quoted: nobody },
            tally,
        ),
    }
}
