//! The run itself: two acts of probing, and what is found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::cases::{self, Case};
use super::differences::{self, Seen};
use super::kube_proxy::Mode;
use super::probes::{self, Bond, Probe};
use super::report::{Difference, Report};
use super::shape::Shape;
use super::stage::Stage;
use super::verdict::Verdict;
use crate::kube::Assets;
use crate::repository;
use lb_lab::Family;

/// The seed unless another is asked for.
pub const DEFAULT_SEED: u64 = 20;
/// Tries of a probe. That one of three pods gets none has a chance of 1 in 40; then the probe is repeated.
const TRIES: usize = 12;
/// Rounds of as many tries for a probe whose verdicts differ. The same chance is 1 in a million.
const MORE_ROUNDS: usize = 3;
/// How often such a probe is repeated at most.
const ATTEMPTS: usize = 2;

/// Arguments of `cargo xtask twin`.
#[derive(Debug, clap::Args)]
pub struct TwinArgs {
    /// Where the Services are drawn from
    #[arg(long, default_value_t = DEFAULT_SEED)]
    seed: u64,

    /// Only this family, 4 or 6 (default: both)
    #[arg(long)]
    family: Option<u8>,

    /// What the nodes are like
    #[arg(long, value_enum, default_value_t)]
    shape: Shape,

    /// What kube-proxy translates with
    #[arg(long, value_enum, default_value_t)]
    proxy: Mode,
}

/// Compares and prints what is found.
pub fn twin(args: &TwinArgs) -> Result<ExitCode> {
    let helper = std::env::current_exe().into_diagnostic()?;
    let families = match args.family {
        None => &Family::ALL[..],
        Some(4) => &[Family::V4],
        Some(6) => &[Family::V6],
        Some(other) => return Err(miette!("--family {other}: there are 4 and 6")),
    };
    let report = compare(args.seed, families, (args.shape, args.proxy), &helper)?;
    print!("{report}");
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs kube-proxy and Shunt side by side and compares them. `helper` is the xtask program. Leaves
/// `target/twin/report.json`, and beside it what the proxies have set up and said.
pub fn compare(
    seed: u64,
    families: &[Family],
    (shape, mode): (Shape, Mode),
    helper: &Path,
) -> Result<Report> {
    println!("seed {seed}, shape {shape:?}, kube-proxy by {}", mode.name());
    let mut run = Run {
        report: Report { seed, ..Report::default() },
        families: families.to_vec(),
        began: Instant::now(),
    };
    let (assets, kube_proxy) = Assets::with_kube_proxy()?;
    let first = cases::draw(seed);
    let mut stage = Stage::build(&assets, families, (shape, mode), helper)?;
    run.part("labs and API server");
    stage.create(&first)?;
    run.part("objects");
    stage.start_proxies(&kube_proxy)?;
    stage.settle()?;
    run.part("proxies");
    run.report.services = first.len();
    run.act(&stage, "start", &first)?;
    run.part("probes");
    let second = cases::shift(&first);
    stage.change(&second)?;
    stage.settle()?;
    run.part("change");
    run.act(&stage, "after a change of endpoints", &second)?;
    run.part("probes after the change");
    let third = cases::delete(&first);
    stage.delete(&third)?;
    stage.settle()?;
    run.act(&stage, "after their deletion", &third)?;
    run.part("deletion");

    let folder = repository::target().join("twin");
    fs::create_dir_all(&folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
    run.report.write(&folder)?;
    stage.save(&folder)?;
    Ok(run.report)
}

struct Run {
    report: Report,
    families: Vec<Family>,
    began: Instant,
}

impl Run {
    /// Takes the time of what was done since the last call.
    fn part(&mut self, name: &'static str) {
        self.report.seconds.push((name, self.began.elapsed().as_secs_f64()));
        self.began = Instant::now();
    }

    /// Probes everything about these Services and notes what differs.
    fn act(&mut self, stage: &Stage, act: &'static str, cases: &[Case]) -> Result<()> {
        let mut probes = probes::of(cases);
        probes.retain(|probe| self.families.contains(&probe.family()));
        // Clients that stick do so before many of their questions are under way at once; a second time because a frontend
        // of local endpoints alone may have moved them.
        let is_sticky = |probe: &&Probe| cases[probe.case].affinity && probe.bond().is_some();
        let sticky: Vec<Probe> = probes.iter().filter(is_sticky).cloned().collect();
        for _ in 0..2 {
            stage.ask(&sticky, 1, 1)?;
        }
        let mut verdicts = stage.ask(&probes, 1, TRIES)?;
        for _ in 0..ATTEMPTS {
            let odd: Vec<usize> =
                (0..probes.len()).filter(|&at| self.is_odd(cases, &probes[at], &verdicts[at])).collect();
            // So many are no accident, and to ask them all again takes long.
            if odd.len() * 20 > probes.len() {
                break;
            }
            let again: Vec<Probe> = odd.iter().map(|&at| probes[at].clone()).collect();
            for (at, verdict) in odd.into_iter().zip(stage.ask(&again, MORE_ROUNDS, TRIES)?) {
                let [before_theirs, before] = std::mem::replace(&mut verdicts[at], verdict);
                let probe = &probes[at];
                let case = &cases[probe.case];
                if !self.is_odd(cases, probe, &verdicts[at])
                    && !before.failures.is_subset(&before_theirs.failures)
                {
                    let seen = Seen { case, probe, kube_proxy: &before_theirs, shunt: &before };
                    self.report.unsteady.push(Difference::new(act, &seen));
                }
            }
        }
        for (probe, [kube_proxy, shunt]) in probes.iter().zip(&verdicts) {
            self.report.count(kube_proxy);
            let case = &cases[probe.case];
            if !kube_proxy.equals(shunt, case.affinity) {
                let seen = Seen { case, probe, kube_proxy, shunt };
                self.report.differences.push(Difference::new(act, &seen));
            }
        }
        self.check_bonds(act, cases, &probes, &verdicts);
        Ok(())
    }

    /// With session affinity all frontends of a Service port lead a client to one pod.
    fn check_bonds(
        &mut self,
        act: &'static str,
        cases: &[Case],
        probes: &[Probe],
        verdicts: &[[Verdict; 2]],
    ) {
        let mut bonds: BTreeMap<Bond, Vec<usize>> = BTreeMap::new();
        for (at, probe) in probes.iter().enumerate() {
            // A list of local endpoints does not hold every pod that the list of all may have led to.
            let case = &cases[probe.case];
            if let Some(bond) = probe.bond().filter(|_| case.affinity && !case.external_local) {
                bonds.entry(bond).or_default().push(at);
            }
        }
        for members in bonds.values() {
            let together = |side: usize| {
                members.iter().fold(Verdict::default(), |mut all, &at| {
                    all.add(Verdict { failures: BTreeSet::new(), ..verdicts[at][side].clone() });
                    all
                })
            };
            let (kube_proxy, shunt) = (together(0), together(1));
            let probe = &probes[members[0]];
            if shunt.pods.len() > 1 && kube_proxy.pods.len() == 1 {
                let seen = Seen { case: &cases[probe.case], probe, kube_proxy: &kube_proxy, shunt: &shunt };
                let frontend = "all frontends of the port together".into();
                self.report.differences.push(Difference {
                    listed: None,
                    frontend,
                    ..Difference::new(act, &seen)
                });
            }
        }
    }

    /// Whether the verdicts differ and nothing explains it.
    fn is_odd(&self, cases: &[Case], probe: &Probe, [kube_proxy, shunt]: &[Verdict; 2]) -> bool {
        let case = &cases[probe.case];
        let seen = Seen { case, probe, kube_proxy, shunt };
        !kube_proxy.equals(shunt, case.affinity) && differences::explanation(&seen).is_none()
    }
}
