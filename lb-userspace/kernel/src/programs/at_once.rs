//! Loads programs several at a time.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::Ebpf;
use aya::programs::{Program as AyaProgram, ProgramError};

use super::load::{LoadError, programs};

/// Hands every program to the verifier, which takes one processor a program: that is most of the agent's start, so
/// there is a thread for each processor.
pub(super) fn load_all(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let names: BTreeSet<&'static str> = programs().map(|program| program.name).collect();
    let found = ebpf.programs_mut().filter_map(|(name, program)| Some((*names.get(name)?, program)));
    let waiting = Mutex::new(found.collect::<Vec<_>>());
    // Whoever held the lock did nothing that can be left half done.
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let load_some = || {
        while let Some((name, program)) = next() {
            match program {
                AyaProgram::Xdp(program) => program.load(),
                AyaProgram::SchedClassifier(program) => program.load(),
                AyaProgram::CgroupSockAddr(program) => program.load(),
                _ => return Err(LoadError::MissingProgram(name)),
            }
            .map_err(|error| refused(name, error))?;
        }
        Ok(())
    };
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        // Where a thread cannot be had, this one does its part.
        let others: Vec<_> = (1..processors)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, load_some).ok())
            .collect();
        let own = load_some();
        let all = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        std::iter::once(own).chain(all).collect()
    })
}

fn refused(name: &'static str, error: ProgramError) -> LoadError {
    const LINES: usize = 20;
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
            let log = if end.is_empty() { String::new() } else { format!("\n  {end}") };
            LoadError::Program { name, source: io_error, log }
        }
        other => LoadError::ProgramOther { name, source: Box::new(other) },
    }
}
