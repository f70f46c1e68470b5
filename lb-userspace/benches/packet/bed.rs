//! The tables a program finds: its world, and the flows that were there before.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::abi::{Hook, ServiceFlags};
use lb_common::addr::{Address as _, Ipv4, Ipv6, Port, Proto};
use lb_testkit::{Frame, Numbered, World};
use miette::Result;

use crate::case::{Case, FlowField, Variety};
use crate::kernel::{Control, Kernel, PROGRAMS, Which};
use crate::{layout, sandbox};

/// Odd, and far from any regular step: half of 2^64 divided by the golden ratio, made odd.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// The flows that never come twice: numbers from here on.
const NEVER_SEEN: u64 = 1 << 38;
/// Flows that pass through a table before it counts as aged.
const CHURN: u32 = 2_000_000;
/// Flows that are made at a time.
const PORTION: u32 = 64;
/// Services beside those that packets aim at.
const FILLERS: u32 = 1000;

/// Which tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Bed {
    /// The agent's own sizes, with a few flows.
    Few,
    /// The same with many flows, and nothing before.
    Fresh,
    /// The same after two million other flows of each family.
    Aged,
    /// Eight times the size, after two million other flows.
    Huge,
    /// Always full of half-open flows: where new flows are made.
    New,
}

impl Bed {
    /// What people read.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Few | Self::Fresh => "fresh",
            Self::Aged => "aged",
            Self::Huge => "aged (8 x size)",
            Self::New => "full",
        }
    }
}

/// Who sends, or who is aimed at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// The one who opens the flow.
    Client,
    /// A ClusterIP with one pod of this node: [`Peer::Pod`].
    Near,
    /// The pod behind it.
    Pod,
    /// A ClusterIP with a hundred pods of this node.
    Shared,
    /// A nodePort with one pod of another node: [`Peer::FarPod`].
    Far,
    /// The pod behind it.
    FarPod,
    /// A nodePort with a hundred pods of another node.
    FarShared,
    /// This node's own address.
    Node,
    /// A Service whose endpoint has the Service's address and port: packets stay what they are.
    Itself,
    /// A Service without endpoints.
    Nobody,
    /// No Service.
    Stranger,
}

impl Peer {
    fn of<A: Numbered>(self) -> (A, u16) {
        match self {
            Self::Client => (A::client(0), layout::FIRST_PORT),
            Self::Near => (A::vip(1), 80),
            Self::Pod => (A::pod(1), 8080),
            Self::Shared => (A::vip(2), 80),
            Self::Far => (A::node(), 30_081),
            Self::FarPod => (A::remote_pod(1), 8080),
            Self::FarShared => (A::node(), 30_082),
            Self::Node => (A::node(), 10_000),
            Self::Itself => (A::vip(9), 80),
            Self::Nobody => (A::vip(3), 80),
            Self::Stranger => (A::client(77), 443),
        }
    }

    /// Number of the first flow of those who speak to this peer. A client has one flow, as most have: those with
    /// more take a longer way.
    pub const fn first_flow(self) -> u64 {
        match self {
            Self::Client | Self::Itself => 0,
            Self::Near | Self::Pod => 1 << 30,
            Self::Far | Self::FarPod | Self::Node => 2 << 30,
            Self::Stranger => 3 << 30,
            Self::Nobody => 4 << 30,
            Self::Shared | Self::FarShared => NEVER_SEEN,
        }
    }

    /// Its address (IPv4 as an IPv4-mapped one) and port. `other`: whom it speaks to.
    fn address(self, ipv6: bool, other: Self) -> (Ipv6, u16) {
        let (address, port) = if ipv6 {
            self.of::<Ipv6>()
        } else {
            let (address, port) = self.of::<Ipv4>();
            (address.to_mapped(), port)
        };
        if self != Self::Client {
            return (address, port);
        }
        let flow = other.first_flow();
        let host = layout::CLIENT_NET | (flow >> layout::PORT_BITS) as u32;
        let [first, second, third, _] = address.words();
        (Ipv6::from_words([first, second, third, host.to_be()]), port)
    }
}

/// A frame of `size` bytes.
pub fn frame(ipv6: bool, proto: Proto, size: usize, from: Peer, to: Peer, flags: u8) -> Vec<u8> {
    let headers = 14 + if ipv6 { 40 } else { 20 } + if proto == Proto::TCP { 20 } else { 8 };
    let payload = vec![0x55; size - headers];
    let (from, to) = (from.address(ipv6, to), to.address(ipv6, from));
    let frame = if proto == Proto::TCP { Frame::tcp(from, to).flags(flags) } else { Frame::udp(from, to) };
    frame.payload(&payload).build()
}

fn world(bed: Bed) -> World {
    let mut world = World::new();
    (world.config.nat_port_first, world.config.nat_port_count) = (10_000, 20_000);
    let size = if bed == Bed::Huge { 8 } else { 1 };
    world.config.ipv4.flow_set_mask = size * 32_768 - 1;
    world.config.ipv4.nat_line_mask = size * 32_768 - 1;
    world.config.ipv6.flow_set_mask = 16_383;
    world.config.ipv6.nat_line_mask = 16_383;
    add_services::<Ipv4>(&mut world);
    add_services::<Ipv6>(&mut world);
    world
}

fn add_services<A: Numbered>(world: &mut World) {
    let (none, external) = (ServiceFlags::default(), ServiceFlags::EXTERNAL);
    for proto in [Proto::TCP, Proto::UDP] {
        let here = |n| (A::pod(n), 8080, true);
        let elsewhere = |n| (A::remote_pod(n), 8080, false);
        let (itself, port) = Peer::Itself.of::<A>();
        world.add(Peer::Near.of::<A>(), proto, none, &[here(1)]);
        world.add(Peer::Shared.of::<A>(), proto, none, &(101..=200).map(here).collect::<Vec<_>>());
        world.add(Peer::Far.of::<A>(), proto, external, &[elsewhere(1)]);
        let many: Vec<_> = (101..=200).map(elsewhere).collect();
        world.add(Peer::FarShared.of::<A>(), proto, external, &many);
        world.add(Peer::Itself.of::<A>(), proto, none, &[(itself, port, true)]);
        world.add(Peer::Nobody.of::<A>(), proto, none, &[] as &[(A, u16, bool)]);
    }
    let Some((_, service)) = world.services.last().copied() else { return };
    for number in 0..FILLERS {
        let (address, port) = (A::vip((100 + number / 250) as u8), 1000 + (number % 250) as u16);
        world.services.push(((address.to_mapped(), Port::new(port), Proto::TCP), service));
    }
}

/// A kernel whose tables are as they should be.
pub struct Made {
    /// The programs and their maps.
    pub kernel: Kernel,
    uplink: u32,
    /// Packets restored so far.
    next: u64,
    /// Flows of a case that are not to come.
    skipped: u64,
    bed: Bed,
}

impl Made {
    /// Loads the programs.
    pub fn new(object: &[u8], bed: Bed) -> Result<Self> {
        let uplink = sandbox::uplink()?;
        Ok(Self { kernel: Kernel::new(object, &world(bed), uplink)?, uplink, next: 0, skipped: 0, bed })
    }

    /// Makes the flows that the cases need, after those that age the tables.
    pub fn prepare(&mut self, cases: &[&Case]) -> Result<()> {
        for ipv6 in [false, true] {
            let wanted = cases.iter().any(|case| case.ipv6 == ipv6);
            if wanted && matches!(self.bed, Bed::Aged | Bed::Huge | Bed::New) {
                self.send(
                    Hook::UplinkXdp,
                    ipv6,
                    Proto::TCP,
                    Peer::Client,
                    Peer::Shared,
                    SYN,
                    Variety::Fresh,
                    CHURN,
                )?;
                // Half-open flows give way by age.
                std::thread::sleep(Duration::from_millis(1200));
            }
        }
        let mut needs = BTreeMap::new();
        for case in cases {
            let Some((proto, far, flows)) = case.needs else { continue };
            if case.variety == Variety::Same {
                self.establish_one(case.ipv6, proto)?;
                continue;
            }
            let most = needs.entry((case.ipv6, proto.0, far)).or_insert(0);
            *most = flows.max(*most);
        }
        for ((ipv6, proto, far), flows) in needs {
            self.establish(ipv6, Proto(proto), far, flows)?;
        }
        Ok(())
    }

    /// Runs a packet through a hook once or more.
    #[expect(clippy::too_many_arguments, reason = "the properties of a packet, each used in one place")]
    fn send(
        &mut self,
        hook: Hook,
        ipv6: bool,
        proto: Proto,
        from: Peer,
        to: Peer,
        flags: u8,
        variety: Variety,
        count: u32,
    ) -> Result<()> {
        let field = if from == Peer::Client { FlowField::Source } else { FlowField::Destination };
        let case = Case {
            name: format!("{hook:?} from {from:?} to {to:?}"),
            which: Which::Ours(PROGRAMS[hook as usize]),
            bed: self.bed,
            frame: frame(ipv6, proto, 80, from, to, flags),
            ipv6,
            variety,
            field,
            first_flow: if from == Peer::Client { to } else { from }.first_flow(),
            needs: None,
            expect: None,
            target: None,
        };
        // What has not become a flow shows in the rows.
        let (program, interface) = (self.aim(&case, count)?, self.interface(&case));
        if count > PORTION {
            return self.kernel.run(program, &case.frame, count, interface).map(|_| ());
        }
        // (A run of more than one packet waits for all CPUs, as it changes how XDP programs are called.)
        for _ in 0..count {
            self.kernel.run(program, &case.frame, 1, interface)?;
        }
        Ok(())
    }

    /// SYN, answer and ACK (or three datagrams) of so many flows.
    fn establish(&mut self, ipv6: bool, proto: Proto, far: bool, flows: u32) -> Result<()> {
        let (frontend, backend) = if far { (Peer::Far, Peer::FarPod) } else { (Peer::Near, Peer::Pod) };
        // In small portions, so that few are half-open at a time: those give way to each other.
        let portion = flows.min(PORTION);
        for first in (0..flows).step_by(portion as usize) {
            self.skipped = u64::from(first);
            let variety = Variety::Flows(portion);
            self.send(Hook::UplinkXdp, ipv6, proto, Peer::Client, frontend, SYN, variety, portion)?;
            self.send(Hook::UplinkEgress, ipv6, proto, backend, Peer::Client, SYN | ACK, variety, portion)?;
            self.send(Hook::UplinkXdp, ipv6, proto, Peer::Client, frontend, ACK, variety, portion)?;
        }
        self.skipped = 0;
        if far {
            let egress = Which::Ours(PROGRAMS[Hook::UplinkEgress as usize]);
            let packet = frame(ipv6, proto, 80, Peer::Client, backend, ACK);
            for flow in 0..flows {
                self.kernel.aim(egress)?;
                self.control(&packet, ipv6, 0, backend.first_flow() + u64::from(flow), 0)?;
                let restorer = if ipv6 { "tc6_source" } else { "tc4_source" };
                let out = self.kernel.run(Which::Floor(restorer), &packet, 1, 0)?.frame;
                let at = if ipv6 { 54 } else { 34 };
                self.kernel.keep_port(
                    layout::nat_port_index(ipv6, flow),
                    u16::from_be_bytes([out[at], out[at + 1]]),
                )?;
            }
        }
        Ok(())
    }

    /// The same for the flow whose packets stay what they are: each is what it is before and behind.
    fn establish_one(&mut self, ipv6: bool, proto: Proto) -> Result<()> {
        let there = |flags| frame(ipv6, proto, 80, Peer::Client, Peer::Itself, flags);
        let back = frame(ipv6, proto, 80, Peer::Itself, Peer::Client, SYN | ACK);
        let (ingress, egress) = (Which::Ours("uplink_xdp"), Which::Ours("uplink_egress"));
        self.kernel.run(ingress, &there(SYN), 1, 0)?;
        self.kernel.run(egress, &back, 1, 0)?;
        self.kernel.run(ingress, &there(ACK), 1, 0)?;
        Ok(())
    }

    fn control(&mut self, frame: &[u8], ipv6: bool, mask: u64, base: u64, counter: u64) -> Result<()> {
        let mut control: Control = [0; layout::CONTROL_WORDS];
        control[layout::COUNTER] = counter;
        control[layout::MULTIPLIER] = MULTIPLIER;
        control[layout::MASK] = mask;
        control[layout::BASE] = base;
        control[layout::LENGTH] = frame.len() as u64;
        let (words, _) = frame.as_chunks::<8>();
        for (index, word) in words.iter().take(layout::words(ipv6)).enumerate() {
            control[layout::TEMPLATE + index] = u64::from_ne_bytes(*word);
        }
        self.kernel.control(control)
    }

    /// Nanoseconds a packet, and what was not as expected of more than a half of a hundredth: a few
    /// flows find their set full.
    pub fn run(&mut self, case: &Case, count: u32) -> Result<(f64, Option<String>)> {
        let before = case.expect.map(|(hook, _)| self.kernel.counters(hook)).transpose()?;
        let program = self.aim(case, count)?;
        let ran = self.kernel.run(program, &case.frame, count, self.interface(case))?;
        let problem = match (case.expect, before) {
            (Some((hook, reason)), Some(before)) => {
                let moved = self.kernel.moved(hook, &before)?;
                let good = moved.get(&reason).copied().unwrap_or(0);
                let enough = u64::from(count - count / 200);
                (good < enough)
                    .then(|| format!("{}: {count} packets moved {moved:?}, not {reason:?}", case.name))
            }
            _ => None,
        };
        Ok((ran.nanos, problem))
    }

    /// Where the packets of a case come from.
    fn interface(&self, case: &Case) -> u32 {
        if case.is_xdp() { self.uplink } else { 0 }
    }

    /// Makes everything ready for so many packets of a case; gives the program to run.
    fn aim(&mut self, case: &Case, count: u32) -> Result<Which> {
        Ok(match case.restorer() {
            None => case.which,
            Some(restorer) => {
                let (mask, base, counter) = match case.variety {
                    Variety::Fresh => (NEVER_SEEN / 2 - 1, NEVER_SEEN, self.next),
                    Variety::Flows(flows) => (u64::from(flows) - 1, case.first_flow + self.skipped, 0),
                    Variety::Same => (0, 0, 0),
                };
                self.next += u64::from(count);
                self.kernel.aim(case.which)?;
                self.control(&case.frame, case.ipv6, mask, base, counter)?;
                Which::Floor(restorer)
            }
        })
    }

    /// Occupies the uplink, so that the kernel takes it for one that XDP packets come from.
    pub fn occupy_uplink(&mut self) -> Result<()> {
        self.kernel.attach_pass(sandbox::UPLINK)
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
