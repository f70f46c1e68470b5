//! What the verifier makes of each program, for those who watch that it does not grow.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya_obj::generated::{bpf_attach_type, bpf_prog_type};

use super::image::{self, Image};
use super::load::{self, AttachPoint, LoadError, OBJECT, ProgramFacts, ProgramSpec};

/// Loads every program with small maps of its own, attaches none, and says what the kernel thinks.
pub fn report() -> Result<Vec<ProgramFacts>, LoadError> {
    let programs = load::try_load()?;
    let stacks = stacks(&programs)?;
    let with_stack = |facts: &ProgramFacts| ProgramFacts {
        stack_bytes: stacks.get(facts.program).cloned(),
        ..facts.clone()
    };
    Ok(programs.facts().iter().map(with_stack).collect())
}

/// Loads every program once more by hand: aya drops the verifier's log when all went well.
fn stacks(programs: &load::Programs) -> Result<BTreeMap<&'static str, String>, LoadError> {
    let parse = |error: String| LoadError::Parse(error);
    let mut object = aya_obj::Object::parse(OBJECT).map_err(|error| parse(error.to_string()))?;
    let btf = match aya::features().btf() {
        Some(features) => object
            .fixup_and_sanitize_btf(features)
            .map_err(|error| parse(error.to_string()))?
            .map(|btf| image::load_btf(&btf.to_bytes()))
            .transpose()
            .map_err(|error| parse(error.to_string()))?,
        None => None,
    };
    let maps = object.maps.clone();
    let fds: Vec<_> = maps
        .iter()
        .filter_map(|(name, map)| Some((name.as_str(), programs.map_fd(name)?.as_raw_fd(), map)))
        .collect();
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(fds.into_iter(), &sections).map_err(|error| parse(error.to_string()))?;
    object.relocate_calls(&sections).map_err(|error| parse(error.to_string()))?;
    object.sanitize_functions(aya::features());

    let mut stacks = BTreeMap::new();
    for spec in load::programs() {
        let ProgramSpec { name, point } = spec;
        let program = object.programs.get(name).ok_or(LoadError::MissingProgram(name))?;
        let function =
            object.functions.get(&program.function_key()).ok_or(LoadError::MissingProgram(name))?;
        let (kind, attach_type) = kinds(point);
        let image = Image {
            kind,
            attach_type,
            instructions: &function.instructions,
            license: &program.license,
            btf: btf.as_ref().map(AsFd::as_fd),
            functions: &function.func_info.func_info_bytes(),
            function_size: function.func_info_rec_size,
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

/// The verifier's own words: `stack depth 96+16`.
fn stack_depth(log: &str) -> Option<&str> {
    log.lines().find_map(|line| line.trim().strip_prefix("stack depth ")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_depth_is_read_from_the_log() {
        let log = "verification time 1234 usec\nstack depth 96+16\nprocessed 55426 insns (limit 1000000)\n";
        assert_eq!(stack_depth(log), Some("96+16"));
        assert_eq!(stack_depth("processed 1 insns"), None);
    }
}
