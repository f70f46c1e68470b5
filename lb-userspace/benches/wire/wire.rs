//! Both ends of the wires: the program that makes frames, the one that counts them, and their clocks.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData};
use aya::programs::{Program, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::Frontend4;
use lb_common::addr::{Ipv4, Port, Proto};
use lb_kernel::programs::FLOORS;
use lb_testkit::Frame;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use nix::net::if_::if_nametoindex;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use zerocopy::IntoBytes as _;

use crate::case::{Aim, Case};
use crate::ground::{NODE_MAC, PEER_MAC, UPLINK2};
use crate::layout;
use crate::rules::{self, BACKEND_PORT};
use crate::sent::{Sent, bytes4};

/// Frames under way at a time; a poll takes as many.
const BATCH: u32 = 64;
/// The length of all frames.
const LENGTH: usize = 8 * layout::FRAME_WORDS;
/// As in `packet`: odd, and far from any regular step.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// The flows that never come twice: numbers from here on.
const NEVER_SEEN: u64 = 1 << 38;
/// How long frames may be under way after all are sent.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// A TCP flag.
pub const SYN: u8 = 0x02;
/// A TCP flag.
pub const ACK: u8 = 0x10;

/// The programs, and who counts time.
pub struct Wire {
    floors: Ebpf,
    /// The thread that takes over when there are too many packets.
    ksoftirqd: Option<ClockId>,
    /// Flows that were never seen, so far.
    next: u64,
}

impl Wire {
    /// Loads them. `cpu`: the one frames are sent from.
    pub fn new(cpu: usize) -> Result<Self> {
        let mut floors =
            EbpfLoader::new().load(FLOORS).into_diagnostic().wrap_err("the floors do not load")?;
        for name in ["floor_swap", "floor_dnat", "wire_route", "wire_door", "wire_source", "wire_sink"] {
            xdp(&mut floors, name)?.load().into_diagnostic().wrap_err(name)?;
        }
        feed_floor(&mut floors)?;
        Ok(Self { floors, ksoftirqd: ksoftirqd(cpu), next: 0 })
    }

    /// Attaches a program to an interface of the namespace this thread is in.
    pub fn attach(&mut self, program: &str, interface: &str) -> Result<()> {
        let attached = xdp(&mut self.floors, program)?.attach(interface, XdpMode::Driver);
        attached.map(|_| ()).into_diagnostic().wrap_err_with(|| format!("{program} on {interface}"))
    }

    /// Tells `wire_door` where it leads to, from the node's namespace.
    pub fn open_door(&mut self) -> Result<()> {
        let mut macs = [0; 16];
        macs[..6].copy_from_slice(&PEER_MAC);
        macs[6..12].copy_from_slice(&NODE_MAC);
        let (macs, _) = macs.as_chunks::<8>();
        let interface = if_nametoindex(UPLINK2).into_diagnostic()?;
        let words = [u64::from(interface), u64::from_ne_bytes(macs[0]), u64::from_ne_bytes(macs[1])];
        self.map::<{ layout::DOOR_WORDS }>("DOOR")?.set(0, words, 0).into_diagnostic()
    }

    /// Sends so many frames of a case, with these TCP flags, into the node behind this interface, and counts what comes
    /// out.
    pub fn send(&mut self, case: &Case, flags: u8, interface: &str, count: u32) -> Result<Sent> {
        let frame = frame(case, flags);
        self.aim(case, &frame, count)?;
        let (address, port) = arrives_at(case);
        let mut sink = [0; layout::SINK_WORDS];
        let (net, mask) = address;
        sink[layout::SINK_ADDRESS] = u64::from(u32::from_ne_bytes(net.octets()));
        sink[layout::SINK_MASK] = u64::from(u32::from_ne_bytes(mask.octets()));
        sink[layout::SINK_PORT] = u64::from(port.to_be());
        let mut map = self.map::<{ layout::SINK_WORDS }>("SINK")?;
        map.set(0, sink, 0).into_diagnostic()?;

        let threads = [Some(ClockId::CLOCK_THREAD_CPUTIME_ID), self.ksoftirqd];
        let before = threads.map(cpu_nanos);
        let took = self.run("wire_source", &frame, interface, count)?;
        let mut after = threads.map(cpu_nanos);
        // What the thread of soft interrupts has left to do; there is hardly ever anything.
        let deadline = Instant::now() + STRAGGLERS;
        let map = self.map::<{ layout::SINK_WORDS }>("SINK")?;
        let arrived = loop {
            let sink = map.get(&0, 0).into_diagnostic()?;
            if sink[layout::SINK_SEEN] >= u64::from(count) || Instant::now() > deadline {
                break sink;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        after[1] = cpu_nanos(self.ksoftirqd);
        let nanos = after.iter().sum::<u64>() - before.iter().sum::<u64>();
        let sample = &arrived[layout::SINK_FRAME..];
        Ok(Sent {
            sent: count,
            arrived: arrived[layout::SINK_SEEN],
            right: arrived[layout::SINK_RIGHT],
            sample: sample.iter().flat_map(|word| word.to_ne_bytes()).collect(),
            nanos,
            busy: nanos as f64 / took.as_nanos() as f64,
        })
    }

    /// Sends the answer to a first segment, as it was seen at the other end, from there.
    pub fn answer(&mut self, seen: &[u8], interface: &str) -> Result<()> {
        let place = |address, port| {
            let port = bytes4(seen, port);
            (Ipv4::from(Ipv4Addr::from(bytes4(seen, address))), u16::from_be_bytes([port[0], port[1]]))
        };
        let mut frame = Frame::tcp(place(30, 36), place(26, 34)).flags(SYN | ACK).build();
        frame[..6].copy_from_slice(&PEER_MAC);
        frame[6..12].copy_from_slice(&NODE_MAC);
        self.run("floor_swap", &frame, interface, 1).map(|_| ())
    }

    /// Runs a program on live frames that leave by this interface; gives the time that took, as the kernel has it, without
    /// what others got of it.
    fn run(&mut self, program: &str, frame: &[u8], interface: &str, count: u32) -> Result<Duration> {
        let interface = if_nametoindex(interface).into_diagnostic()?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, interface, 0, 0];
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        let ran = Xdp::test_run(xdp(&mut self.floors, program)?, options);
        let ran = ran.into_diagnostic().wrap_err("no live frames from BPF_PROG_TEST_RUN")?;
        Ok(ran.duration * count)
    }

    /// Makes the source ready.
    fn aim(&mut self, case: &Case, frame: &[u8], count: u32) -> Result<()> {
        let mut control = [0; layout::CONTROL_WORDS];
        control[layout::MULTIPLIER] = MULTIPLIER;
        control[layout::LENGTH] = frame.len() as u64;
        match case.flows.count() {
            Some(flows) => {
                control[layout::MASK] = flows - 1;
                control[layout::BASE] = case.first_flow();
            }
            None => {
                control[layout::MASK] = NEVER_SEEN / 2 - 1;
                control[layout::BASE] = NEVER_SEEN;
                control[layout::COUNTER] = self.next;
                self.next += u64::from(count);
            }
        }
        let (words, _) = frame.as_chunks::<8>();
        for (index, word) in words.iter().take(layout::words(false)).enumerate() {
            control[layout::TEMPLATE + index] = u64::from_ne_bytes(*word);
        }
        self.map::<{ layout::CONTROL_WORDS }>("CONTROL")?.set(0, control, 0).into_diagnostic()
    }

    fn map<const WORDS: usize>(&mut self, name: &str) -> Result<Array<&mut MapData, [u64; WORDS]>> {
        let map = self.floors.map_mut(name).ok_or_else(|| miette!("no map {name}"))?;
        Array::try_from(map).into_diagnostic()
    }
}

/// The one Service that `floor_dnat` knows.
fn feed_floor(floors: &mut Ebpf) -> Result<()> {
    let (address, port) = Aim::Back.destination();
    let key = Frontend4::new(Ipv4::from(address), Port::new(port), Proto::UDP);
    let key: [u8; 8] = key.as_bytes().try_into().into_diagnostic().wrap_err("a map's type has changed")?;
    let backend = rules::backends(Aim::Back).first().copied().map(Ipv4::from).unwrap_or_default();
    let value = [backend.to_be32(), u32::from(BACKEND_PORT.to_be())];
    let map = floors.map_mut("FLOOR_SERVICES").ok_or_else(|| miette!("no map FLOOR_SERVICES"))?;
    HashMap::<_, [u8; 8], [u32; 2]>::try_from(map).into_diagnostic()?.insert(key, value, 0).into_diagnostic()
}

/// The first client's frame.
fn frame(case: &Case, flags: u8) -> Vec<u8> {
    let (address, port) = case.aim.destination();
    let client = (Ipv4::from_be32(layout::CLIENT_NET.to_be()), layout::FIRST_PORT);
    let frontend = (Ipv4::from(address), port);
    let frame = match case.proto {
        Proto::TCP => Frame::tcp(client, frontend).flags(flags).payload(&[0x55; LENGTH - 14 - 20 - 20]),
        _ => Frame::udp(client, frontend).payload(&[0x55; LENGTH - 14 - 20 - 8]),
    };
    let mut frame = frame.build();
    frame[..6].copy_from_slice(&NODE_MAC);
    frame[6..12].copy_from_slice(&PEER_MAC);
    frame
}

/// Network, mask and port that frames have at their end.
const fn arrives_at(case: &Case) -> ((Ipv4Addr, Ipv4Addr), u16) {
    let net = (case.aim.backends(), Ipv4Addr::new(255, 255, 255, 0));
    (net, BACKEND_PORT)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    match ebpf.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(miette!("the object has no program {name}")),
    }
}

/// Time a thread has run, on no matter what.
fn cpu_nanos(clock: Option<ClockId>) -> u64 {
    clock
        .and_then(|clock| clock_gettime(clock).ok())
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// The clock of a CPU's `ksoftirqd`.
fn ksoftirqd(cpu: usize) -> Option<ClockId> {
    let name = format!("ksoftirqd/{cpu}");
    let is_it = |path: &std::path::Path| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let entry = std::fs::read_dir("/proc").ok()?.flatten().find(|entry| is_it(&entry.path()))?;
    let pid = entry.file_name().to_str()?.parse().ok()?;
    clock_getcpuclockid(Pid::from_raw(pid)).ok()
}
