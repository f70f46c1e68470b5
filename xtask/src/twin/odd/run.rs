//! The run: every kind of packet to both labs, with Shunt in each mode, and with a strict and an absent `rp_filter`.

use std::fs;
use std::mem;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::super::cases::OUTSIDER;
use super::super::kube_proxy::Mode;
use super::super::shape::Shape;
use super::super::stage::{Side, Stage};
use super::capture::Device;
use super::kinds::{self, Kind, Scene, Sender};
use super::outcome::{Outcome, Sight, mark, read};
use super::report::{OddReport, Row};
use crate::kube::Assets;
use crate::repository;
use lb_lab::{Family, Lab, NodeId, UPLINK, XdpMode, at, poll_every};

/// The first client port of the first round, and how many a round may have.
const PORTS: (u16, u16) = (33000, 2500);
/// How long all of a round may take to go its way.
const SETTLED: Duration = Duration::from_secs(20);
/// Between two looks.
const PACE: Duration = Duration::from_millis(20);
/// Rows of which one may be unsteady.
pub(super) const OF_ROWS: usize = 200;
/// Packets that are sent together.
const TOGETHER: usize = 16;
/// Pods that may be reached.
const PODS: [&str; 4] = ["a1", "a2", "b1", "visitor"];

/// Compares. `helper` is the xtask program. Leaves `odd.json` and `odd.txt` in `target/twin`.
pub fn compare(helper: &Path) -> Result<OddReport> {
    let (assets, kube_proxy) = Assets::with_kube_proxy()?;
    let mut stage = Stage::build(&assets, &Family::ALL, (Shape::Plain, Mode::default()), helper)?;
    stage.create(&kinds::services())?;
    for side in [Side::KubeProxy, Side::Shunt] {
        // A router leads what is for Services back to the node.
        let client = stage.lab(side).client();
        client.sysctl("net.ipv4.ip_forward", "1").into_diagnostic()?;
        client.sysctl("net.ipv6.conf.all.forwarding", "1").into_diagnostic()?;
        // Its own questions come from other ports than the packets.
        client.sysctl("net.ipv4.ip_local_port_range", "20000 29999").into_diagnostic()?;
    }
    stage.start_proxies(&kube_proxy)?;
    let mut report = OddReport::default();
    let mut ports = (PORTS.0..).step_by(usize::from(PORTS.1));
    for strict in [false, true] {
        for side in [Side::KubeProxy, Side::Shunt] {
            filter_sources(stage.lab(side), strict)?;
        }
        let mut rows = turn(&mut stage, strict, &mut ports, |_| true)?;
        let odd: Vec<usize> = (0..rows.len()).filter(|&number| !rows[number].is_in_order()).collect();
        // (A machine with much else to do drops a frame now and then, of either. So many would be no accident.)
        let again = match odd.len() * OF_ROWS <= rows.len() {
            true if !odd.is_empty() => turn(&mut stage, strict, &mut ports, |number| odd.contains(&number))?,
            _ => Vec::new(),
        };
        for (number, row) in odd.into_iter().zip(again) {
            if row.is_in_order() {
                report.unsteady.push(mem::replace(&mut rows[number], row));
            }
        }
        report.rows.extend(rows);
    }
    let folder = repository::target().join("twin");
    fs::create_dir_all(&folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
    report.write(&folder)?;
    Ok(report)
}

/// Sends what is chosen of the kinds, by number, to both, to Shunt in each mode.
fn turn(
    stage: &mut Stage,
    strict: bool,
    ports: &mut impl Iterator<Item = u16>,
    is_chosen: impl Fn(usize) -> bool,
) -> Result<Vec<Row>> {
    let mut next = || ports.next().ok_or_else(|| miette!("no port is left"));
    let theirs = round(stage, Side::KubeProxy, next()?, &is_chosen)?;
    stage.restart_shunt(XdpMode::Native)?;
    let native = round(stage, Side::Shunt, next()?, &is_chosen)?;
    stage.restart_shunt(XdpMode::Off)?;
    let off = round(stage, Side::Shunt, next()?, &is_chosen)?;
    let rows = theirs.into_iter().zip(native).zip(off);
    let row = |(((family, kind, kube_proxy), (.., native)), (.., off)): ((Sent, Sent), Sent)| {
        let Kind { name, at, sender, packets } = kind;
        let asker = if sender == Sender::Pod { "visitor" } else { OUTSIDER };
        let is_honest = packets.iter().all(|packet| packet.source == stage.pod_address(asker, family));
        Row { family: family.name(), strict, name, at, is_honest, kube_proxy, native, off }
    };
    Ok(rows.map(row).collect())
}

fn filter_sources(lab: &Lab, strict: bool) -> Result<()> {
    for node in NodeId::ALL {
        let value = if strict { "1" } else { "0" };
        lab.node(node).sysctl("net.ipv4.conf.all.rp_filter", value).into_diagnostic()?;
    }
    Ok(())
}

/// A kind that was sent, and what came of it.
type Sent = (Family, Kind, Outcome);

/// Sends what is chosen of the kinds and sees what becomes of it.
fn round(
    stage: &mut Stage,
    side: Side,
    first_port: u16,
    is_chosen: &impl Fn(usize) -> bool,
) -> Result<Vec<Sent>> {
    stage.settle()?;
    let mut sent: Vec<Sent> = Vec::new();
    for family in Family::ALL {
        let pod = |name: &str| stage.pod_address(name, family);
        let kinds = Scene { family, pod: &pod }.kinds(first_port);
        if kinds.len() > usize::from(PORTS.1) {
            return Err(miette!("{} kinds, and {} ports", kinds.len(), PORTS.1));
        }
        let outcome = |kind: &Kind| Outcome { sent: kind.packets.len(), ..Outcome::default() };
        sent.extend(kinds.into_iter().map(|kind| (family, kind.clone(), outcome(&kind))));
    }
    let mut number = 0..;
    sent.retain(|_| number.next().is_some_and(is_chosen));
    let lab = stage.lab(side);
    let mut eyes = Eyes::open(lab)?;
    let ask = |family| [1, 2].into_iter().try_for_each(|service| answered(lab, family, service));
    // Whoever has to be looked for on the wire is found before.
    Family::ALL.into_iter().try_for_each(ask)?;
    eyes.look(&mut sent)?;
    for number in 0..sent.len() {
        eyes.send(number, &sent[number].1)?;
        if number % TOGETHER == 0 {
            // Queues are short.
            answered(lab, sent[number].0, 2).wrap_err_with(|| stage.state())?;
            eyes.look(&mut sent)?;
        }
    }
    let mut failed = Ok(());
    let what = format!("what was sent to go its way ({side:?})");
    let quiet = poll_every(PACE, &what, SETTLED, || {
        // Whatever was sent before has gone its way when questions are answered; unless somebody had to be looked for.
        failed = Family::ALL.into_iter().try_for_each(ask);
        if failed.is_err() {
            return Some(());
        }
        match eyes.look(&mut sent) {
            Ok(changed) => (!changed).then_some(()),
            Err(error) => {
                failed = Err(error);
                Some(())
            }
        }
    });
    failed.wrap_err_with(|| stage.state())?;
    quiet.into_diagnostic()?;
    if side == Side::Shunt {
        let flows = stage.flow_clients(NodeId::A)?;
        for (_, kind, outcome) in &mut sent {
            let Some(packet) = kind.packets.first() else { continue };
            let is_its =
                |client: &SocketAddr| client.ip() == packet.source && client.port() == packet.ports.0;
            outcome.flow = flows.iter().any(is_its);
        }
    }
    Ok(sent)
}

/// Waits until a Service answers, by its nodePort: what was sent before has gone its way then.
fn answered(lab: &Lab, family: Family, service: u16) -> Result<()> {
    let to: SocketAddr = at(lab.node_ip(NodeId::A, family), 30000 + service * 2 + 1);
    let report = lab.client().udp(to, 1).into_diagnostic()?;
    if report.failures.is_empty() { Ok(()) } else { Err(miette!("{to} does not serve: {report:?}")) }
}

/// Where frames are seen, and sent.
struct Eyes {
    outside: Device,
    visitor: Device,
    uplink: Device,
    pods: Vec<(&'static str, Device)>,
    node: [u8; 6],
    gateway: [u8; 6],
}

impl Eyes {
    fn open(lab: &Lab) -> Result<Self> {
        let node = lab.node(NodeId::A);
        let pods = PODS.map(|name| Ok((name, Device::open(lab.pod(name).netns(), "eth0")?)));
        Ok(Eyes {
            outside: Device::open(lab.client(), UPLINK)?,
            visitor: Device::open(lab.pod("visitor").netns(), "eth0")?,
            uplink: Device::open(lab.wire(), lab.switch_port(NodeId::A))?,
            pods: pods.into_iter().collect::<Result<_>>()?,
            node: Device::open(node, UPLINK)?.address()?,
            gateway: Device::open(node, lab.pod("visitor").device())?.address()?,
        })
    }

    fn send(&self, number: usize, kind: &Kind) -> Result<()> {
        let (device, to) = match kind.sender {
            Sender::Outside => (&self.outside, self.node),
            Sender::Pod => (&self.visitor, self.gateway),
        };
        let stations = (to, device.address()?);
        kind.packets.iter().try_for_each(|packet| device.send(&packet.frame(mark(number as u16), stations)))
    }

    /// Takes in what has been seen since the last call, and says whether that was anything new.
    fn look(&mut self, sent: &mut [Sent]) -> Result<bool> {
        // (What they send themselves is not looked at.)
        self.outside.frames()?;
        let mut changed = false;
        for frame in self.uplink.frames()? {
            let leaves = frame.get(6..12) == Some(&self.node[..]);
            changed |= note(&frame, sent, |sight, kind, outcome| match sight {
                Sight::Packet(ttl) if leaves => {
                    outcome.left += 1;
                    outcome.kept_ttl |= kind.packets.iter().all(|packet| ttl >= packet.ttl);
                    true
                }
                Sight::Packet(_) => {
                    outcome.entered += 1;
                    true
                }
                Sight::Answer(word) => leaves && outcome.answers.insert(word),
            });
        }
        for frame in self.visitor.frames()? {
            changed |= note(&frame, sent, |sight, _, outcome| match sight {
                Sight::Answer(word) => outcome.answers.insert(word),
                Sight::Packet(_) => false,
            });
        }
        for (name, device) in &self.pods {
            for frame in device.frames()? {
                changed |= note(&frame, sent, |sight, kind, outcome| {
                    let is_senders = kind.sender == Sender::Pod && *name == "visitor";
                    let came = matches!(sight, Sight::Packet(_)) && !is_senders;
                    if came {
                        *outcome.pods.entry((*name).to_owned()).or_default() += 1;
                    }
                    came
                });
            }
        }
        Ok(changed)
    }
}

fn note(frame: &[u8], sent: &mut [Sent], take: impl FnOnce(Sight, &Kind, &mut Outcome) -> bool) -> bool {
    let port_of = |number: u16| Some(sent.get(usize::from(number))?.1.packets.first()?.ports.0);
    let number_of = |is_v6: bool, port: u16| {
        let is_its = |(family, kind, _): &Sent| {
            (*family == Family::V6) == is_v6
                && kind.packets.first().is_some_and(|packet| packet.ports.0 == port)
        };
        sent.iter().position(is_its).map(|number| number as u16)
    };
    let Some((number, sight)) = read(frame, port_of, number_of) else { return false };
    let Some((_, kind, outcome)) = sent.get_mut(usize::from(number)) else { return false };
    take(sight, kind, outcome)
}
