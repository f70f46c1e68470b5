//! Loads the object: adopts the maps that are pinned, makes the others, verifies every program.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use lb_common::abi::{capacity, maps, tail};
use tracing::{debug, warn};

use super::checks;
use crate::maps::{Map, MapInfo};
use crate::pin::{PinDir, PinError};
use crate::sys;

/// The object that lb-ebpf was built to.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-ebpf"));

/// Every map that is pinned.
pub const MAPS: [&str; 30] = [
    maps::SERVICES4,
    maps::SERVICES6,
    maps::BACKENDS,
    maps::BACKEND_FLOWS,
    maps::RINGS,
    maps::FLOWS4,
    maps::FLOWS6,
    maps::ADDRESSES,
    maps::CLIENTS,
    maps::ENDPOINTS,
    maps::NODE_PORTS,
    maps::NAT4,
    maps::NAT6,
    maps::AFFINITY,
    maps::SOURCE_RANGES,
    maps::FRAGMENTS,
    maps::SOCKET_PEERS,
    maps::TCP_PEERS,
    maps::INTERFACES,
    maps::SOURCES,
    maps::STATIONS,
    maps::CONFIG,
    maps::TAILS_XDP,
    maps::TAILS_INGRESS,
    maps::TAILS_EGRESS,
    maps::TAILS_CONNTRACK,
    maps::COUNTERS,
    maps::SERVICE_TRAFFIC,
    maps::SERVICE_NAMES,
    maps::BACKEND_NAMES,
];

/// IPv4 flow sets to one of IPv6.
const SETS_PER_SET6: u32 = capacity::FLOW_SETS / capacity::FLOW_SETS6;

/// What may be set at load time.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the maps are pinned.
    pub pins: PinDir,
    /// Sets of the IPv4 flow table, a power of two, and twice those of the IPv6 one; the object's own numbers when
    /// none is given.
    pub flow_sets: Option<u32>,
}

/// Why the object cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pin directory.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The object as a whole.
    #[error("the eBPF object cannot be loaded: {0}")]
    Object(#[source] Box<EbpfError>),
    /// The object is not one.
    #[error("the eBPF object inside this binary cannot be read: {0}")]
    Parse(String),
    /// The object has no such map.
    #[error("the eBPF object inside this binary has no map {0}; rebuild it (cargo xtask build)")]
    MissingMap(&'static str),
    /// The object has no such program.
    #[error("the eBPF object inside this binary has no program {0}; rebuild it (cargo xtask build)")]
    MissingProgram(&'static str),
    /// The verifier refused a program.
    #[error("program {name}: the kernel refused it: {source}{log}")]
    Program {
        /// Which.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
        /// The end of the verifier's log, on lines of its own.
        log: String,
    },
    /// Something else about a program.
    #[error("program {name}: {source}")]
    ProgramOther {
        /// Which.
        name: &'static str,
        /// What went wrong.
        #[source]
        source: Box<ProgramError>,
    },
    /// A pinned map has another layout.
    #[error(
        "the pinned map {} has another layout ({found}) than this release wants ({wanted}). It was made by a \
         different build: run `shunt cleanup` (flows in progress are forgotten) and start again",
        path.display()
    )]
    OtherLayout {
        /// Where it is pinned.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// A map cannot be opened.
    #[error("map {}: {source}", path.display())]
    Map {
        /// Where it is pinned.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Where a program hangs, and with what attach type it goes there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachPoint {
    /// XDP of an interface.
    Xdp,
    /// tc ingress of an interface.
    Ingress,
    /// tc egress of an interface.
    Egress,
    /// A cgroup, with this `enum bpf_attach_type`.
    Socket(u32),
}

/// One program of the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProgramSpec {
    /// Its name, in the object and in the pin directory.
    pub name: &'static str,
    /// Where it goes.
    pub point: AttachPoint,
}

const fn spec(name: &'static str, point: AttachPoint) -> ProgramSpec {
    ProgramSpec { name, point }
}

/// XDP on uplinks.
pub const UPLINK_XDP: ProgramSpec = spec("uplink_xdp", AttachPoint::Xdp);
/// tc ingress of uplinks.
pub const UPLINK_INGRESS: ProgramSpec = spec("uplink_ingress", AttachPoint::Ingress);
/// tc egress of uplinks.
pub const UPLINK_EGRESS: ProgramSpec = spec("uplink_egress", AttachPoint::Egress);
/// tc ingress of pods' interfaces.
pub const POD_INGRESS: ProgramSpec = spec("pod_ingress", AttachPoint::Ingress);
/// tc egress of pods' interfaces.
pub const POD_EGRESS: ProgramSpec = spec("pod_egress", AttachPoint::Egress);

mod attach {
    use aya_obj::generated::bpf_attach_type as kind;
    pub const CONNECT4: u32 = kind::BPF_CGROUP_INET4_CONNECT as u32;
    pub const CONNECT6: u32 = kind::BPF_CGROUP_INET6_CONNECT as u32;
    pub const SENDMSG4: u32 = kind::BPF_CGROUP_UDP4_SENDMSG as u32;
    pub const SENDMSG6: u32 = kind::BPF_CGROUP_UDP6_SENDMSG as u32;
    pub const RECVMSG4: u32 = kind::BPF_CGROUP_UDP4_RECVMSG as u32;
    pub const RECVMSG6: u32 = kind::BPF_CGROUP_UDP6_RECVMSG as u32;
    pub const GETPEERNAME4: u32 = kind::BPF_CGROUP_INET4_GETPEERNAME as u32;
    pub const GETPEERNAME6: u32 = kind::BPF_CGROUP_INET6_GETPEERNAME as u32;
}

/// The socket hooks. The answering ones come first: a process never sees a translated address that
/// nothing translates back.
pub const SOCKET_PROGRAMS: [ProgramSpec; 8] = [
    spec("getpeername4", AttachPoint::Socket(attach::GETPEERNAME4)),
    spec("getpeername6", AttachPoint::Socket(attach::GETPEERNAME6)),
    spec("recvmsg4", AttachPoint::Socket(attach::RECVMSG4)),
    spec("recvmsg6", AttachPoint::Socket(attach::RECVMSG6)),
    spec("sendmsg4", AttachPoint::Socket(attach::SENDMSG4)),
    spec("sendmsg6", AttachPoint::Socket(attach::SENDMSG6)),
    spec("connect4", AttachPoint::Socket(attach::CONNECT4)),
    spec("connect6", AttachPoint::Socket(attach::CONNECT6)),
];

/// The programs that others hand packets on to; they hang in arrays, not on interfaces.
fn tail_programs() -> impl Iterator<Item = ProgramSpec> {
    tail::PROGRAMS.into_iter().map(|(array, _, name)| {
        let point = match array {
            maps::TAILS_XDP => AttachPoint::Xdp,
            maps::TAILS_INGRESS => AttachPoint::Ingress,
            _ => AttachPoint::Egress,
        };
        spec(name, point)
    })
}

/// Every program of the object.
pub fn programs() -> impl Iterator<Item = ProgramSpec> {
    let attached = [UPLINK_XDP, UPLINK_INGRESS, UPLINK_EGRESS, POD_INGRESS, POD_EGRESS];
    attached.into_iter().chain(tail_programs()).chain(SOCKET_PROGRAMS)
}

/// What the kernel says of a loaded program.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramFacts {
    /// Its name.
    pub program: &'static str,
    /// Instructions the verifier walked through.
    pub verified_instructions: Option<u32>,
    /// Stack of the program and of each function it calls, in bytes, as the verifier writes it: `96+16`.
    pub stack_bytes: Option<String>,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Bytes of eBPF code after the kernel's own rewriting.
    pub translated_bytes: Option<u32>,
}

/// The verified programs, by name.
#[derive(Debug)]
pub struct Programs {
    /// None where another process has loaded them.
    pub(super) ebpf: Option<Ebpf>,
    pub(super) fds: BTreeMap<&'static str, (OwnedFd, u32)>,
    pub(super) facts: Vec<ProgramFacts>,
}

impl Programs {
    /// Descriptor of a program. Every [`ProgramSpec`] of this module is there, where this process has loaded them.
    pub fn fd(&self, program: ProgramSpec) -> io::Result<BorrowedFd<'_>> {
        self.fds.get(program.name).map(|(fd, _)| fd.as_fd()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Id of a program.
    pub fn id(&self, program: ProgramSpec) -> Option<u32> {
        self.fds.get(program.name).map(|(_, id)| *id)
    }

    /// Descriptor of a map by its name in the object.
    pub fn map_fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        use aya::maps::Map as AyaMap;
        match self.ebpf.as_ref()?.map(name)? {
            AyaMap::Array(map)
            | AyaMap::PerCpuArray(map)
            | AyaMap::HashMap(map)
            | AyaMap::LpmTrie(map)
            | AyaMap::LruHashMap(map)
            | AyaMap::ProgramArray(map)
            | AyaMap::PerfEventArray(map)
            | AyaMap::RingBuf(map) => Some(map.fd().as_fd()),
            _ => None,
        }
    }

    /// The object, for its log map.
    pub(super) const fn object(&mut self) -> Option<&mut Ebpf> {
        self.ebpf.as_mut()
    }

    /// What the kernel said of each program.
    pub fn facts(&self) -> &[ProgramFacts] {
        &self.facts
    }
}

/// Loads the object with its maps pinned as `settings` say.
///
/// Attaches nothing. Maps that are pinned already are adopted, after their layout was compared.
pub fn load(settings: &Settings) -> Result<Programs, LoadError> {
    settings.pins.create()?;
    let wanted = wanted_maps(settings.flow_sets)?;
    for (name, wanted) in &wanted {
        adopt_or_refuse(&settings.pins, name, wanted)?;
    }
    let mut loader = EbpfLoader::new();
    fit_kernel(&mut loader);
    // The log is asked for anyway when a program is refused.
    loader.verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS);
    for (name, wanted) in &wanted {
        loader.map_pin_path(name, settings.pins.map(name));
        loader.map_max_entries(name, wanted.max_entries);
    }
    verify(loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?)
}

/// Loads every program with maps of its own, small and unpinned, and attaches nothing.
pub fn try_load() -> Result<Programs, LoadError> {
    const SMALL: u32 = 16;
    let mut loader = EbpfLoader::new();
    fit_kernel(&mut loader);
    for name in MAPS.into_iter().filter(|name| *name != maps::COUNTERS && *name != maps::CONFIG) {
        loader.map_max_entries(name, SMALL);
    }
    verify(loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?)
}

/// Tells the programs what kernel this is, before they are loaded: whether programs of one CPU can interrupt each other, for then
/// each needs a desk of its own.
pub fn fit_kernel(loader: &mut EbpfLoader<'_>) {
    if checks::is_realtime() {
        loader.override_global("PREEMPTIBLE", &1_u8, true);
        for desks in [maps::DESK4, maps::DESK6] {
            loader.map_max_entries(desks, capacity::DESKS);
        }
    }
}

fn verify(mut ebpf: Ebpf) -> Result<Programs, LoadError> {
    super::at_once::load_all(&mut ebpf)?;
    let mut fds = BTreeMap::new();
    let mut facts = Vec::new();
    for ProgramSpec { name, .. } in programs() {
        let program = ebpf.program_mut(name).ok_or(LoadError::MissingProgram(name))?;
        let other = |error| LoadError::ProgramOther { name, source: Box::new(error) };
        let info = program.info().map_err(other)?;
        let fd = program.fd().map_err(other)?.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| LoadError::Program { name, source, log: String::new() })?;
        let verified = info.verified_instruction_count();
        debug!(
            program = name,
            verified_instructions = verified,
            jited_bytes = info.size_jitted(),
            "verified"
        );
        facts.push(ProgramFacts {
            program: name,
            verified_instructions: verified,
            stack_bytes: None,
            jited_bytes: info.size_jitted(),
            translated_bytes: info.size_translated(),
        });
        fds.insert(name, (fd, info.id()));
    }
    let programs = Programs { ebpf: Some(ebpf), fds, facts };
    hang_tails(&programs)?;
    Ok(programs)
}

/// Puts the programs that others hand packets on to where those look for them. What an earlier agent hung there is
/// replaced: the layouts are the same.
fn hang_tails(programs: &Programs) -> Result<(), LoadError> {
    for (array, index, name) in tail::PROGRAMS {
        let (fd, _) = programs.fds.get(name).ok_or(LoadError::MissingProgram(name))?;
        let map = programs.map_fd(array).ok_or(LoadError::MissingMap(array))?;
        let hang = || {
            let map = Map::new(map.try_clone_to_owned()?)?;
            map.update(&index.to_ne_bytes(), &fd.as_raw_fd().to_ne_bytes())
        };
        hang().map_err(|source| LoadError::Program { name, source, log: format!("\n  in {array}") })?;
    }
    Ok(())
}

/// The layouts the object asks for, sizes set by flags included.
fn wanted_maps(flow_sets: Option<u32>) -> Result<Vec<(&'static str, MapInfo)>, LoadError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|error| LoadError::Parse(error.to_string()))?;
    let layout = |name: &'static str| {
        let map = object.maps.get(name).ok_or(LoadError::MissingMap(name))?;
        let max_entries = match (name, flow_sets) {
            (maps::FLOWS4 | maps::NAT4, Some(sets)) => sets,
            (maps::FLOWS6 | maps::NAT6, Some(sets)) => (sets / SETS_PER_SET6).max(1),
            _ => map.max_entries(),
        };
        let info = MapInfo {
            kind: map.map_type(),
            id: 0,
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries,
            flags: map.map_flags(),
        };
        Ok((name, info))
    };
    MAPS.into_iter().map(layout).collect()
}

/// aya takes any pinned map as it is, so its layout is compared first.
fn adopt_or_refuse(pins: &PinDir, name: &str, wanted: &MapInfo) -> Result<(), LoadError> {
    let path = pins.map(name);
    let found = match sys::obj_get(&path, false).and_then(Map::new) {
        Ok(map) => *map.info(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(LoadError::Map { path, source }),
    };
    match compare(wanted, &found) {
        Adoption::Same => Ok(()),
        // Another size means other counters: what the old ones said cannot be told apart any more. The
        // programs in place count on in the old map until they are replaced.
        Adoption::OtherSize if name == maps::COUNTERS => {
            warn!(map = name, "another release counts otherwise; the counters start anew");
            std::fs::remove_file(&path).map_err(|source| LoadError::Map { path, source })
        }
        Adoption::OtherSize => {
            warn!(
                map = name,
                entries = found.max_entries,
                wanted = wanted.max_entries,
                "the pinned map keeps its size, and its contents; to change the size, run `shunt cleanup` while \
                 no agent runs (flows in progress are forgotten)"
            );
            Ok(())
        }
        Adoption::OtherLayout => {
            Err(LoadError::OtherLayout { path, found: describe(&found), wanted: describe(wanted) })
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Adoption {
    Same,
    OtherSize,
    OtherLayout,
}

fn compare(wanted: &MapInfo, found: &MapInfo) -> Adoption {
    let layout = |info: &MapInfo| (info.kind, info.key_size, info.value_size, info.flags);
    if layout(wanted) != layout(found) {
        Adoption::OtherLayout
    } else if wanted.max_entries != found.max_entries {
        Adoption::OtherSize
    } else {
        Adoption::Same
    }
}

fn describe(info: &MapInfo) -> String {
    format!(
        "type {}, key {} bytes, value {} bytes, flags {:#x}",
        info.kind, info.key_size, info.value_size, info.flags
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_map_is_adopted_unless_its_layout_differs() {
        let wanted = MapInfo { kind: 2, id: 0, key_size: 4, value_size: 24, max_entries: 64, flags: 0 };
        assert_eq!(compare(&wanted, &MapInfo { id: 9, ..wanted }), Adoption::Same);
        assert_eq!(compare(&wanted, &MapInfo { max_entries: 32, ..wanted }), Adoption::OtherSize);
        for other in [
            MapInfo { kind: 1, ..wanted },
            MapInfo { key_size: 8, ..wanted },
            MapInfo { value_size: 32, ..wanted },
            MapInfo { flags: 1 << 10, ..wanted },
        ] {
            assert_eq!(compare(&wanted, &other), Adoption::OtherLayout, "{other:?}");
        }
    }

    #[test]
    fn program_names_fit_the_kernel() {
        // BPF_OBJ_NAME_LEN is 16, the last byte a zero.
        for program in programs() {
            assert!(program.name.len() < 16, "{}", program.name);
        }
    }
}
