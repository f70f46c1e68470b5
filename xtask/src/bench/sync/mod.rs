//! From an object's write to the first packet that obeys it, and what that costs: the agent's library in a process of
//! its own, then the agent and the real kube-proxy, each in its own lab, before one API server.

mod figures;
mod measure;
mod objects;
mod prober;
mod site;

use std::path::Path;

use miette::{IntoDiagnostic, Result, miette};
use nix::unistd::geteuid;

use self::measure::{Cluster, Effort};
use self::objects::Size;
use self::site::{Programs, Side};
use super::{Context, Row, packet};
use crate::build;
use crate::kube::{ApiServer, Assets, Options};
use crate::progress::Step;
use crate::twin::{self, kube_proxy::legacy_tools};
use lb_lab::{AddressPlan, Family};

/// Services to create between two words of progress.
const CHUNK: u32 = 250;

/// Measures the library, then the agent and kube-proxy.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench sync` needs root: it loads BPF programs and makes network namespaces"));
    }
    let mut rows = Vec::new();
    if LIBRARY.iter().any(|size| context.wants(&format!("library: {size}"))) {
        rows = packet::run_program(context, step, "sync", &["--changes", "300", "--rounds", "1"])?;
    }
    let (groups, effort) = plan(context.args.quick, context.args.all);
    let is_chosen = |side, size| context.wants(&figures::case(side, size));
    let chosen = |size: &Size| SIDES.iter().any(|side| is_chosen(*side, *size));
    let folder = tempfile::Builder::new().prefix("shunt-bench-").tempdir().into_diagnostic()?;
    let mut tools = None;
    for group in groups {
        if !group.iter().any(chosen) {
            continue;
        }
        let (assets, programs) = match &tools {
            Some(tools) => tools,
            None => tools.insert(find(context, folder.path(), step)?),
        };
        rows.extend(run_group(&group, effort, (assets, programs), &is_chosen, step)?);
    }
    Ok(rows)
}

/// Cases of the measuring program of the library.
const LIBRARY: [Size; 6] = [
    Size { services: 1, endpoints: 10 },
    Size { services: 100, endpoints: 10 },
    Size { services: 1_000, endpoints: 10 },
    Size { services: 10_000, endpoints: 10 },
    Size { services: 10_000, endpoints: 25 },
    Size { services: 1, endpoints: 10_000 },
];
const SIDES: [Side; 2] = [Side::Shunt, Side::KubeProxy];

/// Sizes that one API server goes through, each larger than the one before.
type Group = Vec<Size>;

fn plan(quick: bool, all: bool) -> (Vec<Group>, Effort) {
    let wide = |services: &[u32]| {
        services.iter().map(|services| Size { services: *services, endpoints: 10 }).collect()
    };
    let long = vec![Size { services: 1, endpoints: 10_000 }];
    if all {
        let effort = Effort { starts: 3, changes: 110, slow_changes: 3 };
        (vec![wide(&[1, 100, 1_000, 10_000]), long], effort)
    } else if quick {
        (vec![wide(&[100])], Effort { starts: 1, changes: 5, slow_changes: 1 })
    } else {
        (vec![wide(&[1, 1_000]), long], Effort { starts: 3, changes: 20, slow_changes: 2 })
    }
}

fn find(context: &Context<'_>, folder: &Path, step: &Step) -> Result<(Assets, Programs)> {
    step.detail("building shunt");
    let shunt = build::shunt(&context.toolchain, &["--release"])?;
    let (assets, kube_proxy) = Assets::with_kube_proxy()?;
    Ok((assets, Programs { shunt, kube_proxy, tools: legacy_tools(folder)? }))
}

fn run_group(
    group: &[Size],
    effort: Effort,
    (assets, programs): (&Assets, &Programs),
    is_chosen: &dyn Fn(Side, Size) -> bool,
    step: &Step,
) -> Result<Vec<Row>> {
    step.detail("starting an API server");
    let api = ApiServer::start(assets, Options::default())?;
    let (nodes, status) = twin::objects::nodes(&AddressPlan::default(), &[Family::V4]);
    api.send(&nodes)?;
    api.send(&status)?;
    let writer = api.writer()?;
    let (mut there, mut passing, mut measured) = (0, 0, Vec::new());
    for &size in group {
        while there < size.services {
            let next = size.services.min(there + CHUNK);
            step.detail(&format!("{size}: {there} Services created"));
            api.send(&size.create(there..next))?;
            there = next;
        }
        for side in SIDES.into_iter().filter(|side| is_chosen(*side, size)) {
            let cluster = Cluster { api: &api, writer: &writer, size };
            let say = |text: &str| step.detail(&format!("{}, {text}", figures::case(side, size)));
            let figures = measure::measure(side, &cluster, programs, effort, &mut passing, &say)?;
            measured.push((size, side, figures));
        }
    }
    Ok(figures::rows(&measured))
}
