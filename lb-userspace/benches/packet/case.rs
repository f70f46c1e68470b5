//! What is measured.

use lb_common::abi::{Hook, Reason};
use lb_common::addr::Proto;

use crate::bed::{Bed, Peer, frame};
use crate::kernel::{PROGRAMS, Which};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// How one packet differs from the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variety {
    /// Not at all: the program leaves the packet as it came, so it can be run again as it is.
    Same,
    /// The packet is restored each time; it belongs to one of so many flows.
    Flows(u32),
    /// The packet is restored each time, and belongs to a flow that was never seen.
    Fresh,
}

/// Which part of the packet names the flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FlowField {
    /// The source is the client.
    Source,
    /// The destination is the client.
    Destination,
    /// The destination's port is the masquerading one.
    NatPort,
}

/// One row.
#[derive(Clone, Debug)]
pub struct Case {
    /// What people read.
    pub name: String,
    /// The program.
    pub which: Which,
    /// The tables it finds.
    pub bed: Bed,
    /// The packet.
    pub frame: Vec<u8>,
    /// IPv6, not IPv4.
    pub ipv6: bool,
    /// How packets differ.
    pub variety: Variety,
    /// Where they differ.
    pub field: FlowField,
    /// Number of its first flow.
    pub first_flow: u64,
    /// Flows that must be established before: protocol, behind another node, how many.
    pub needs: Option<(Proto, bool, u32)>,
    /// The counter that must move.
    pub expect: Option<(Hook, Reason)>,
    /// At most so many times the floor.
    pub target: Option<f64>,
}

impl Case {
    /// Whether it is XDP.
    pub fn is_xdp(&self) -> bool {
        match self.which {
            Which::Ours(name) => name == "uplink_xdp",
            Which::Floor(name) => name != "floor_next",
        }
    }

    /// The program that restores its packet.
    pub fn restorer(&self) -> Option<&'static str> {
        restorer(self.is_xdp(), self.ipv6, self.field).filter(|_| self.variety != Variety::Same)
    }
}

/// The program that restores packets so.
fn restorer(xdp: bool, ipv6: bool, field: FlowField) -> Option<&'static str> {
    Some(match (xdp, ipv6, field) {
        (true, false, FlowField::Source) => "xdp4_source",
        (true, false, FlowField::Destination) => "xdp4_dest",
        (true, false, FlowField::NatPort) => "xdp4_nat",
        (true, true, FlowField::Source) => "xdp6_source",
        (true, true, FlowField::Destination) => "xdp6_dest",
        (true, true, FlowField::NatPort) => "xdp6_nat",
        (false, false, FlowField::Source) => "tc4_source",
        (false, false, FlowField::Destination) => "tc4_dest",
        (false, false, FlowField::NatPort) => "tc4_nat",
        (false, true, FlowField::Source) => "tc6_source",
        (false, true, FlowField::Destination) => "tc6_dest",
        (false, true, FlowField::NatPort) => "tc6_nat",
    })
}

/// What is done to a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Established,
    New,
    NoService,
    Reply,
    SnatOut,
    SnatBack,
    SnatNew,
    Refused,
}

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::New => "new flow",
            Self::NoService => "no Service",
            Self::Reply => "reply",
            Self::SnatOut => "SNAT out",
            Self::SnatBack => "SNAT back",
            Self::SnatNew => "SNAT new flow",
            Self::Refused => "refused",
        }
    }
}

/// A row of one of our programs.
struct Row {
    hook: Hook,
    outcome: Outcome,
    ipv6: bool,
    proto: Proto,
    size: usize,
    variety: Variety,
    bed: Bed,
    target: Option<f64>,
}

impl Row {
    fn case(&self) -> Case {
        let Self { hook, outcome, ipv6, proto, size, variety, bed, target } = *self;
        let egress = matches!(hook, Hook::UplinkEgress | Hook::PodEgress);
        let same = variety == Variety::Same;
        let near = if same { Peer::Itself } else { Peer::Near };
        let from_client = |to: Peer, flags| (FlowField::Source, (Peer::Client, to), to, flags);
        let to_client = |from: Peer, flags| (FlowField::Destination, (from, Peer::Client), from, flags);
        let (field, (from, to), other, flags) = match outcome {
            Outcome::Established => from_client(near, ACK),
            Outcome::New => from_client(Peer::Shared, SYN),
            Outcome::NoService if egress => to_client(Peer::Stranger, ACK),
            Outcome::NoService => from_client(Peer::Stranger, ACK),
            Outcome::Reply => to_client(Peer::Pod, ACK),
            // Egress sees what ingress has translated.
            Outcome::SnatOut if egress => from_client(Peer::FarPod, ACK),
            Outcome::SnatOut => from_client(Peer::Far, ACK),
            Outcome::SnatNew => from_client(Peer::FarShared, SYN),
            Outcome::SnatBack if egress => to_client(Peer::FarPod, ACK),
            Outcome::SnatBack => (FlowField::NatPort, (Peer::FarPod, Peer::Node), Peer::FarPod, ACK),
            Outcome::Refused => from_client(Peer::Nobody, SYN),
        };
        let count = if let Variety::Flows(count) = variety { count } else { 1 };
        let (reason, needs) = match outcome {
            Outcome::Established => (Reason::Forward, Some(false)),
            Outcome::New | Outcome::SnatNew => (Reason::NewFlow, None),
            Outcome::NoService => (Reason::NoService, None),
            Outcome::Reply => (Reason::Reply, Some(false)),
            Outcome::SnatOut if egress => (Reason::Masquerade, Some(true)),
            Outcome::SnatOut => (Reason::Forward, Some(true)),
            Outcome::SnatBack if egress => (Reason::Reply, Some(true)),
            Outcome::SnatBack => (Reason::MasqueradeReply, Some(true)),
            Outcome::Refused => (Reason::RefusedReset, None),
        };
        let program = PROGRAMS[hook as usize];
        let flows = match variety {
            Variety::Same => "1 flow, as is".into(),
            Variety::Fresh => "never seen".into(),
            Variety::Flows(1) => "1 flow".into(),
            Variety::Flows(count) => format!("{} flows", short(count)),
        };
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        let name = format!(
            "{program}: {}, {family} {proto}, {size} B, {flows}, {} table",
            outcome.label(),
            bed.label()
        );
        Case {
            name,
            which: Which::Ours(program),
            bed,
            frame: frame(ipv6, proto, size, from, to, flags),
            ipv6,
            variety,
            field,
            first_flow: other.first_flow(),
            needs: needs.map(|far| (proto, far, count)),
            expect: Some((hook, reason)),
            target,
        }
    }
}

fn short(count: u32) -> String {
    if count >= 1024 { format!("{} k", count / 1024) } else { count.to_string() }
}

/// The name of the row that others are compared with.
pub const FLOOR: &str = "floor: one look-up + DNAT + XDP_TX, 64 B";
/// The rows of the programs that do nothing: what a test run itself costs.
pub const NOTHING_XDP: &str = "floor: XDP_PASS at once";
/// The same for tc.
pub const NOTHING_TC: &str = "floor: tc, next at once";

fn floors() -> Vec<Case> {
    let floor = |name: &str, program, size| Case {
        name: name.into(),
        which: Which::Floor(program),
        bed: Bed::Few,
        frame: frame(false, Proto::TCP, size, Peer::Client, Peer::Itself, ACK),
        ipv6: false,
        variety: Variety::Same,
        field: FlowField::Source,
        first_flow: 0,
        needs: None,
        expect: None,
        target: None,
    };
    vec![
        floor(NOTHING_XDP, "floor_pass", 64),
        floor(NOTHING_TC, "floor_next", 64),
        floor("floor: swap MACs + XDP_TX, 64 B", "floor_swap", 64),
        floor(FLOOR, "floor_dnat", 64),
        floor("floor: one look-up + DNAT + XDP_TX, 1400 B", "floor_dnat", 1400),
    ]
}

/// The floors behind every restoring program that these cases use: what restoring costs.
pub fn restoring(cases: &[Case]) -> Vec<Case> {
    let mut found = Vec::<Case>::new();
    for case in cases {
        let Some(restorer) = case.restorer() else { continue };
        if found.iter().any(|other| other.restorer() == Some(restorer)) {
            continue;
        }
        let program = if case.is_xdp() { "floor_pass" } else { "floor_next" };
        found.push(Case {
            name: format!("floor: {restorer} + nothing"),
            which: Which::Floor(program),
            variety: Variety::Flows(1),
            needs: None,
            expect: None,
            target: None,
            ..case.clone()
        });
    }
    found
}

/// The usual rows, or all of them. The floors come first.
pub fn list(all: bool) -> Vec<Case> {
    const ONE: Variety = Variety::Flows(1);
    const K: u32 = 1024;
    let (tcp, udp) = (Proto::TCP, Proto::UDP);
    let xdp = Hook::UplinkXdp;
    let row = |hook, outcome, ipv6, proto, size, variety, bed| Row {
        hook,
        outcome,
        ipv6,
        proto,
        size,
        variety,
        bed,
        target: None,
    };
    let aim = |row: Row, target| Row { target: Some(target), ..row };
    let mut rows = vec![
        aim(row(xdp, Outcome::Established, false, tcp, 64, Variety::Same, Bed::Few), 1.5),
        aim(row(xdp, Outcome::Established, false, tcp, 64, ONE, Bed::Few), 1.5),
        row(xdp, Outcome::Established, false, tcp, 1400, ONE, Bed::Few),
        row(xdp, Outcome::Established, false, udp, 64, Variety::Same, Bed::Few),
        row(xdp, Outcome::Established, true, tcp, 80, Variety::Same, Bed::Few),
        row(xdp, Outcome::Established, true, tcp, 80, ONE, Bed::Few),
        row(xdp, Outcome::Established, true, udp, 80, ONE, Bed::Few),
        row(xdp, Outcome::Established, false, tcp, 64, Variety::Flows(K), Bed::Few),
        row(xdp, Outcome::Established, false, tcp, 64, Variety::Flows(64 * K), Bed::Fresh),
        aim(row(xdp, Outcome::Established, false, tcp, 64, Variety::Flows(64 * K), Bed::Aged), 6.5),
        row(xdp, Outcome::Established, false, udp, 64, Variety::Flows(8 * K), Bed::Aged),
        row(xdp, Outcome::Established, false, tcp, 64, Variety::Flows(512 * K), Bed::Huge),
        row(xdp, Outcome::Established, true, tcp, 80, Variety::Flows(16 * K), Bed::Aged),
        aim(row(xdp, Outcome::New, false, tcp, 64, Variety::Fresh, Bed::New), 11.0),
        aim(row(xdp, Outcome::New, false, udp, 64, Variety::Fresh, Bed::New), 11.0),
        row(xdp, Outcome::New, true, tcp, 80, Variety::Fresh, Bed::New),
        row(xdp, Outcome::New, true, udp, 80, Variety::Fresh, Bed::New),
        row(xdp, Outcome::SnatNew, false, tcp, 64, Variety::Fresh, Bed::New),
        aim(row(xdp, Outcome::NoService, false, tcp, 64, Variety::Same, Bed::Few), 1.2),
        aim(row(xdp, Outcome::NoService, false, udp, 64, Variety::Same, Bed::Few), 1.2),
        row(xdp, Outcome::NoService, false, tcp, 1400, Variety::Same, Bed::Few),
        row(xdp, Outcome::NoService, true, tcp, 80, Variety::Same, Bed::Few),
        row(xdp, Outcome::NoService, false, tcp, 64, Variety::Flows(64 * K), Bed::Aged),
        row(xdp, Outcome::SnatOut, false, tcp, 64, ONE, Bed::Few),
        row(xdp, Outcome::SnatOut, false, tcp, 64, Variety::Flows(K), Bed::Few),
        row(xdp, Outcome::SnatBack, false, tcp, 64, ONE, Bed::Few),
        row(xdp, Outcome::SnatBack, false, tcp, 64, Variety::Flows(K), Bed::Few),
        row(xdp, Outcome::SnatOut, true, tcp, 80, ONE, Bed::Few),
        row(xdp, Outcome::SnatBack, true, tcp, 80, ONE, Bed::Few),
        row(xdp, Outcome::Refused, false, tcp, 64, ONE, Bed::Few),
    ];
    let (uplink_in, uplink_out) = (Hook::UplinkIngress, Hook::UplinkEgress);
    let (pod_in, pod_out) = (Hook::PodIngress, Hook::PodEgress);
    for (hook, outcome) in [
        (uplink_in, Outcome::NoService),
        (uplink_in, Outcome::Established),
        (uplink_in, Outcome::SnatBack),
        (uplink_out, Outcome::Reply),
        (uplink_out, Outcome::SnatOut),
        (uplink_out, Outcome::NoService),
        (pod_in, Outcome::Established),
        (pod_in, Outcome::NoService),
        (pod_out, Outcome::Reply),
        (pod_out, Outcome::NoService),
    ] {
        rows.push(row(hook, outcome, false, tcp, 64, ONE, Bed::Few));
        rows.push(row(hook, outcome, true, tcp, 80, ONE, Bed::Few));
    }
    rows.push(row(pod_in, Outcome::Established, false, udp, 64, ONE, Bed::Few));
    rows.push(row(pod_in, Outcome::Established, false, tcp, 1400, ONE, Bed::Few));
    rows.push(row(pod_in, Outcome::Established, false, tcp, 64, Variety::Flows(64 * K), Bed::Aged));
    rows.push(row(pod_out, Outcome::Reply, false, tcp, 64, Variety::Flows(64 * K), Bed::Aged));
    rows.push(row(uplink_in, Outcome::New, false, tcp, 64, Variety::Fresh, Bed::New));
    rows.push(row(pod_in, Outcome::New, false, tcp, 64, Variety::Fresh, Bed::New));
    rows.push(row(pod_in, Outcome::New, true, tcp, 80, Variety::Fresh, Bed::New));
    rows.push(row(pod_in, Outcome::New, false, udp, 64, Variety::Fresh, Bed::New));
    if all {
        rows.extend(the_rest());
    }
    floors().into_iter().chain(rows.iter().map(Row::case)).collect()
}

/// What the usual rows leave out of the product of all properties.
fn the_rest() -> Vec<Row> {
    let mut rows = Vec::new();
    for hook in [Hook::UplinkIngress, Hook::PodIngress, Hook::UplinkXdp] {
        for (ipv6, proto) in
            [(false, Proto::TCP), (false, Proto::UDP), (true, Proto::TCP), (true, Proto::UDP)]
        {
            for size in [if ipv6 { 80 } else { 64 }, 1400] {
                for (flows, bed) in
                    [(1, Bed::Few), (1024, Bed::Few), (16_384, Bed::Fresh), (16_384, Bed::Aged)]
                {
                    let (outcome, variety) = (Outcome::Established, Variety::Flows(flows));
                    rows.push(Row { hook, outcome, ipv6, proto, size, variety, bed, target: None });
                    let outcome = Outcome::NoService;
                    rows.push(Row { hook, outcome, ipv6, proto, size, variety, bed, target: None });
                }
                let (outcome, variety, bed) = (Outcome::New, Variety::Fresh, Bed::New);
                rows.push(Row { hook, outcome, ipv6, proto, size, variety, bed, target: None });
            }
        }
    }
    for hook in [Hook::UplinkEgress, Hook::PodEgress] {
        for (ipv6, proto) in
            [(false, Proto::TCP), (false, Proto::UDP), (true, Proto::TCP), (true, Proto::UDP)]
        {
            for (flows, bed) in [(1, Bed::Few), (1024, Bed::Few), (16_384, Bed::Fresh), (16_384, Bed::Aged)] {
                let (outcome, variety) = (Outcome::Reply, Variety::Flows(flows));
                let size = if ipv6 { 80 } else { 64 };
                rows.push(Row { hook, outcome, ipv6, proto, size, variety, bed, target: None });
            }
        }
    }
    rows
}
