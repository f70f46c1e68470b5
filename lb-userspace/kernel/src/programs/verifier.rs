//! What the verifier makes of each program, for those who watch that it does not grow.

use std::collections::BTreeMap;
use std::io;

use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use tracing::warn;

use super::conntrack::{self, ConntrackError};
use super::image::{self, Image};
use super::load::{self, AttachPoint, LoadError, ProgramFacts, ProgramSpec};
use super::object::Linked;

/// Loads every program with small maps of its own, attaches none, and says what the kernel thinks.
pub fn report() -> Result<Vec<ProgramFacts>, LoadError> {
    let programs = load::try_load()?;
    let stacks = stacks(&programs)?;
    let with_stack = |facts: &ProgramFacts| ProgramFacts {
        stack_bytes: stacks.get(facts.program).cloned(),
        ..facts.clone()
    };
    let mut all: Vec<_> = programs.facts().iter().map(with_stack).collect();
    match conntrack::facts(&programs) {
        Ok(facts) => all.extend(facts),
        Err(ConntrackError::Load(error)) => return Err(error),
        Err(error) => warn!(%error, "the programs that ask netfilter are left out"),
    }
    Ok(all)
}

/// Loads every program once more by hand: aya drops the verifier's log when all went well.
fn stacks(programs: &load::Programs) -> Result<BTreeMap<&'static str, String>, LoadError> {
    let linked = Linked::new(programs)?;
    let mut stacks = BTreeMap::new();
    for spec in load::programs() {
        let ProgramSpec { name, point } = spec;
        let (program, function) = linked.function(name)?;
        let (kind, attach_type) = kinds(point);
        let image = Image {
            kind,
            attach_type,
            instructions: &function.instructions,
            license: &program.license,
            btf: linked.btf(),
            functions: &function.func_info.func_info_bytes(),
            function_size: function.func_info_rec_size,
            owners: &[],
        };
        let failed = |source: io::Error| LoadError::Program { name, source, log: String::new() };
        let (_, log) = image::load(image).map_err(failed)?;
        stacks.extend(stack_depth(&log).map(|depth| (name, depth.to_owned())));
    }
    Ok(stacks)
}

const fn kinds(point: AttachPoint) -> (u32, u32) {
    match point {
        AttachPoint::Xdp => (bpf_prog_type::BPF_PROG_TYPE_XDP as u32, bpf_attach_type::BPF_XDP as u32),
        AttachPoint::Ingress | AttachPoint::Egress => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32, 0),
        AttachPoint::Socket(attach_type) => {
            (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR as u32, attach_type)
        }
    }
}

/// The verifier's own words: `processed 55426 insns`.
pub(super) fn instructions(log: &str) -> Option<u32> {
    log.lines().find_map(|line| line.trim().strip_prefix("processed ")?.split(' ').next()?.parse().ok())
}

/// The verifier's own words: `stack depth 96+16`.
pub(super) fn stack_depth(log: &str) -> Option<&str> {
    log.lines().find_map(|line| line.trim().strip_prefix("stack depth ")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_depth_is_read_from_the_log() {
        let log = "verification time 1234 usec\nstack depth 96+16\nprocessed 55426 insns (limit 1000000)\n";
        assert_eq!(stack_depth(log), Some("96+16"));
        assert_eq!(instructions(log), Some(55_426));
        assert_eq!(stack_depth("processed 1 insns"), None);
    }
}
