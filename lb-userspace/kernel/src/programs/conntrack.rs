//! The programs that ask netfilter. They call functions of the kernel (kfuncs), of which aya knows nothing: their numbers are looked up
//! in the kernel's types and put in, and the programs are loaded by hand, with the maps of the others.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::{bpf_insn, bpf_prog_type};
use lb_common::abi::{kfunc, maps, tail};
use tracing::debug;

use super::image::{self, Image};
use super::kernel_types::Types;
use super::load::{LoadError, ProgramFacts, Programs};
use super::object::Linked;
use super::verifier;
use crate::maps::Map;

/// Where the kernel shows its types.
const TYPES: &str = "/sys/kernel/btf";
/// Who may have the functions, in this order.
const OWNERS: [&str; 3] = ["vmlinux", "nf_conntrack", "nf_nat"];

/// What the verifier says where the types of one module are not those of the other (Debian's 6.18 and newer).
const DISAGREEMENT: &str =
    "expected pointer to STRUCT nf_conn___init but R1 has a pointer to STRUCT nf_conn___init";

/// Why netfilter cannot be asked here.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel does not show its types.
    #[error("{TYPES}/{0}: {1}")]
    Types(&'static str, io::Error),
    /// The kernel has no such function.
    #[error(
        "this kernel has no {0} for programs (CONFIG_NF_CONNTRACK, CONFIG_NF_NAT, CONFIG_DEBUG_INFO_BTF_MODULES)"
    )]
    Missing(&'static str),
    /// The types of a module cannot be had.
    #[error("the types of module {0}: {1} (it takes CAP_SYS_ADMIN)")]
    Module(&'static str, io::Error),
    /// Each module has a type of its own for what one hands to the other.
    #[error(
        "this kernel's modules nf_conntrack and nf_nat do not agree about a type (nf_conn___init), so no program may have both at work"
    )]
    Disagreement,
    /// The verifier refused a program.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl ConntrackError {
    /// Whether another try would end the same way: the kernel is as it is, and so are the agent's rights.
    pub fn is_final(&self) -> bool {
        let is_one_of =
            |error: &io::Error, codes: &[i32]| error.raw_os_error().is_some_and(|it| codes.contains(&it));
        match self {
            Self::Missing(_) | Self::Disagreement => true,
            Self::Module(_, error) => is_one_of(error, &[libc::EPERM]),
            Self::Load(LoadError::Program { source, .. }) => is_one_of(source, &[libc::EACCES, libc::EINVAL]),
            Self::Types(..) | Self::Load(_) => false,
        }
    }
}

/// Loads the programs, with the maps of `programs`, and hangs them where those look for them.
///
/// # Errors
/// What is missing. What an earlier agent hung there stays.
pub fn hang(programs: &Programs) -> Result<(), ConntrackError> {
    let loaded = load_all(programs)?;
    for (index, name) in tail::CONNTRACK {
        let Some(program) = loaded.iter().find(|program| program.name == name) else { continue };
        let map =
            programs.map_fd(maps::TAILS_CONNTRACK).ok_or(LoadError::MissingMap(maps::TAILS_CONNTRACK))?;
        let put = || {
            let map = Map::new(map.try_clone_to_owned()?)?;
            map.update(&index.to_ne_bytes(), &program.fd.as_raw_fd().to_ne_bytes())
        };
        let log = format!("\n  in {}", maps::TAILS_CONNTRACK);
        put().map_err(|source| LoadError::Program { name, source, log })?;
    }
    Ok(())
}

/// A program that asks netfilter, loaded.
struct Loaded {
    name: &'static str,
    fd: OwnedFd,
    /// The verifier's closing words.
    log: String,
}

fn load_all(programs: &Programs) -> Result<Vec<Loaded>, ConntrackError> {
    let functions = Functions::find()?;
    let linked = Linked::new(programs)?;
    tail::CONNTRACK.into_iter().map(|(_, name)| load(name, &linked, &functions)).collect()
}

/// What the verifier makes of them.
pub(super) fn facts(programs: &Programs) -> Result<Vec<ProgramFacts>, ConntrackError> {
    let facts = |loaded: &Loaded| ProgramFacts {
        program: loaded.name,
        verified_instructions: verifier::instructions(&loaded.log),
        stack_bytes: verifier::stack_depth(&loaded.log).map(str::to_owned),
        jited_bytes: image::jited_bytes(loaded.fd.as_fd()).unwrap_or_default(),
        translated_bytes: None,
    };
    Ok(load_all(programs)?.iter().map(facts).collect())
}

/// What is put into the programs.
struct Functions {
    /// Placeholder, number, and in whose types: an index of `modules` and one, 0 for the kernel's own.
    calls: Vec<(i32, u32, i16)>,
    /// Of each module that has some.
    modules: Vec<OwnedFd>,
    tcp_state: i16,
}

impl Functions {
    fn find() -> Result<Self, ConntrackError> {
        let read =
            |name| fs::read(Path::new(TYPES).join(name)).map_err(|error| ConntrackError::Types(name, error));
        let unreadable = |name| ConntrackError::Types(name, io::ErrorKind::InvalidData.into());
        let [kernel, ..] = OWNERS;
        let kernel_types = Types::parse(read(kernel)?, None).ok_or_else(|| unreadable(kernel))?;
        let mut owners = Vec::new();
        for name in OWNERS.into_iter().skip(1) {
            match read(name) {
                Ok(data) => {
                    let types = Types::parse(data, Some(&kernel_types)).ok_or_else(|| unreadable(name))?;
                    owners.push((name, types));
                }
                // It is in the kernel itself, or not there.
                Err(ConntrackError::Types(_, error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let mut found = Self { calls: Vec::new(), modules: Vec::new(), tcp_state: 0 };
        let mut opened: Vec<&str> = Vec::new();
        for (placeholder, function) in kfunc::FUNCTIONS {
            if let Some(number) = kernel_types.function(function) {
                found.calls.push((placeholder, number, 0));
                continue;
            }
            let of_module = owners.iter().find_map(|(name, types)| Some((*name, types.function(function)?)));
            let (name, number) = of_module.ok_or(ConntrackError::Missing(function))?;
            let index = match opened.iter().position(|other| *other == name) {
                Some(index) => index,
                None => {
                    let types = image::types_of(name).map_err(|error| ConntrackError::Module(name, error))?;
                    found.modules.push(types);
                    opened.push(name);
                    opened.len() - 1
                }
            };
            found.calls.push((placeholder, number, index as i16 + 1));
        }
        let state = |types: &Types<'_>| types.offset("nf_conn", &["proto", "tcp", "state"]);
        let state = owners.iter().find_map(|(_, types)| state(types)).or_else(|| state(&kernel_types));
        found.tcp_state = state
            .and_then(|offset| i16::try_from(offset).ok())
            .ok_or(ConntrackError::Missing("nf_conn.proto.tcp.state"))?;
        debug!(modules = opened.join(","), tcp_state = found.tcp_state, "netfilter's functions");
        Ok(found)
    }

    /// Puts numbers in the placeholders' place.
    fn put_into(&self, code: &mut [bpf_insn]) {
        const CALL: u8 = 0x85;
        const LOAD_BYTE: u8 = 0x71;
        const BPF_PSEUDO_KFUNC_CALL: u8 = 2;
        for instruction in code {
            if instruction.code == LOAD_BYTE && instruction.off == kfunc::TCP_STATE {
                instruction.off = self.tcp_state;
            } else if instruction.code == CALL
                && instruction.src_reg() == 0
                && let Some((_, number, owner)) = self.calls.iter().find(|call| call.0 == instruction.imm)
            {
                instruction.set_src_reg(BPF_PSEUDO_KFUNC_CALL);
                instruction.imm = number.cast_signed();
                instruction.off = *owner;
            }
        }
    }
}

fn load(name: &'static str, linked: &Linked, functions: &Functions) -> Result<Loaded, ConntrackError> {
    let (program, function) = linked.function(name)?;
    let mut code = function.instructions.clone();
    functions.put_into(&mut code);
    // (The first is asked for by nobody: 0 is the kernel itself.)
    let owners: Vec<i32> =
        std::iter::once(-1).chain(functions.modules.iter().map(AsRawFd::as_raw_fd)).collect();
    let image = Image {
        kind: bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32,
        attach_type: 0,
        instructions: &code,
        license: &program.license,
        btf: linked.btf(),
        functions: &function.func_info.func_info_bytes(),
        function_size: function.func_info_rec_size,
        owners: &owners,
    };
    let refused = |source| {
        let log = image::refusal(image);
        if log.contains(DISAGREEMENT) {
            return ConntrackError::Disagreement;
        }
        LoadError::Program { name, source, log }.into()
    };
    let (fd, log) = image::load(image).map_err(refused)?;
    debug!(program = name, verified_instructions = verifier::instructions(&log), "verified");
    Ok(Loaded { name, fd, log })
}
