//! What an agent's programs take of the processors, as the kernel counts it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use lb_common::abi::maps;
use lb_kernel::pin::PinDir;
use miette::{IntoDiagnostic as _, Result, WrapErr as _};
use serde::Serialize;

/// Of one program.
#[derive(Clone, Copy, Default, Serialize)]
pub struct RunTime {
    runs: u64,
    nanos: u64,
}

/// Counts from its beginning on.
pub struct Spent {
    /// One of the maps that only this agent's programs have.
    map: u32,
    before: BTreeMap<u32, (String, RunTime)>,
    _counting: OwnedFd,
}

impl Spent {
    /// Makes the kernel count.
    pub fn begin(bpffs: &Path) -> Result<Self> {
        let path = PinDir::new(bpffs).map(maps::CONFIG);
        let info = MapInfo::from_pin(&path).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
        let counting = enable_stats(Stats::RunTime).into_diagnostic()?;
        Ok(Self { map: info.id(), before: counts(info.id())?, _counting: counting })
    }

    /// Runs and time since then, by the programs' names; several may share one.
    pub fn programs(&self) -> Result<BTreeMap<String, RunTime>> {
        let mut programs = BTreeMap::<_, RunTime>::new();
        for (id, (name, now)) in counts(self.map)? {
            let before = self.before.get(&id).map(|(_, before)| *before).unwrap_or_default();
            let sum = programs.entry(name).or_default();
            sum.runs += now.runs - before.runs;
            sum.nanos += now.nanos - before.nanos;
        }
        programs.retain(|_, spent| spent.runs > 0);
        Ok(programs)
    }
}

fn counts(map: u32) -> Result<BTreeMap<u32, (String, RunTime)>> {
    let mut counts = BTreeMap::new();
    // (Programs come and go meanwhile, other people's with them.)
    for program in loaded_programs().filter_map(Result::ok) {
        if !program.map_ids().ok().flatten().unwrap_or_default().contains(&map) {
            continue;
        }
        let name = program.name_as_str().unwrap_or_default().to_owned();
        let time = RunTime { runs: program.run_count(), nanos: program.run_time().as_nanos() as u64 };
        counts.insert(program.id(), (name, time));
    }
    Ok(counts)
}
