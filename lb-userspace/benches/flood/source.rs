//! Who makes the frames.

use std::net::SocketAddrV4;

use aya::maps::{Array, MapData};
use aya::programs::{Program, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_kernel::programs::FLOORS;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use nix::net::if_::if_nametoindex;

use crate::layout;
use crate::syn;

/// The program that makes frames.
const PROGRAM: &str = "flood_source";
/// Frames under way at a time. The kernel makes as many in each call before the first is sent, and uses them again.
const BATCH: u32 = 32;

/// The program, its frame, and where frames leave.
pub struct Source {
    floors: Ebpf,
    frame: Vec<u8>,
    context: Vec<u8>,
}

impl Source {
    /// Loads the program.
    pub fn new(interface: &str, mac: [u8; 6], to: SocketAddrV4) -> Result<Self> {
        let index = if_nametoindex(interface).into_diagnostic().wrap_err_with(|| interface.to_owned())?;
        let mut floors =
            EbpfLoader::new().load(FLOORS).into_diagnostic().wrap_err("the floors do not load")?;
        let source = program(&mut floors)?;
        source.load().into_diagnostic().wrap_err(PROGRAM)?;
        // A program that runs on live frames is entered into the kernel's dispatcher of XDP programs before, and taken out
        // after, each a matter of milliseconds; unless it is in there anyway, being attached where no packet comes by.
        source.attach("lo", XdpMode::Skb).into_diagnostic().wrap_err_with(|| format!("{PROGRAM} on lo"))?;
        let frame = syn::frame(mac, to);
        let mut control = [0; layout::CONTROL_WORDS];
        let (words, _) = frame.as_chunks::<8>();
        for (index, word) in words.iter().take(layout::words(false)).enumerate() {
            control[layout::TEMPLATE + index] = u64::from_ne_bytes(*word);
        }
        self::control(&mut floors)?.set(0, control, 0).into_diagnostic()?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, index, 0, 0];
        let context = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(Self { floors, frame, context })
    }

    /// Makes and sends so many.
    pub fn send(&mut self, count: u32) -> Result<()> {
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&self.context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        let ran = Xdp::test_run(program(&mut self.floors)?, options);
        ran.map(|_| ()).into_diagnostic().wrap_err("no live frames from BPF_PROG_TEST_RUN")
    }

    /// How many it has made so far.
    pub fn made(&mut self) -> Result<u64> {
        Ok(control(&mut self.floors)?.get(&0, 0).into_diagnostic()?[layout::COUNTER])
    }
}

fn program(floors: &mut Ebpf) -> Result<&mut Xdp> {
    match floors.program_mut(PROGRAM) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(miette!("the object has no program {PROGRAM}")),
    }
}

fn control(floors: &mut Ebpf) -> Result<Array<&mut MapData, [u64; layout::CONTROL_WORDS]>> {
    let map = floors.map_mut("CONTROL").ok_or_else(|| miette!("no map CONTROL"))?;
    Array::try_from(map).into_diagnostic()
}
