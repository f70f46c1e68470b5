//! What a connection costs, from the client's socket to the server's: pods, clients outside and the node itself, through
//! Shunt, through netfilter in kube-proxy's layouts, and straight to the pod.

mod iptables;
mod nftables;
mod program;
mod rounds;
mod samples;
mod scene;
mod services;
mod talk;

use std::path::PathBuf;

use miette::{Result, miette};
use nix::unistd::geteuid;

use super::{Context, Row};
use crate::build;
use crate::command::typed;
use crate::progress::Step;

pub use program::Program;
use scene::{Balancer, Scene, Setup, Way};

/// How many Services, when many.
const MANY: usize = 10_000;

/// Builds what runs, makes all set-ups side by side, and measures them in turns.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench sockets` needs root: it makes network namespaces"));
    }
    step.detail("building");
    let shunt = build::shunt(&context.toolchain, &["--release"])?;
    let helper = helper(context)?;
    let mut scenes = Vec::new();
    for setup in setups().into_iter().filter(|setup| wanted(context, *setup)) {
        step.detail(&format!("making {:?} with {} Services", setup.balancer, setup.services));
        scenes.push(Scene::build(setup, &helper, &shunt)?);
    }
    for scene in &mut scenes {
        scene.settle()?;
    }
    let wants = |setup: Setup, way: Way| setup.balancer.is_direct() || context.wants(&setup.case(way));
    let plan = rounds::Plan::new(context.args.quick, context.args.all);
    Ok(rounds::measure(&mut scenes, &plan, wants, step)?.rows())
}

/// What both programs are: this one, compiled for release as the other side is.
fn helper(context: &Context<'_>) -> Result<PathBuf> {
    let mut cargo = context.toolchain.cargo();
    cargo.args(["build", "--workspace", "--exclude", "lb-ebpf", "--bin", "xtask", "--release"]);
    build::messages(&mut cargo)?
        .iter()
        .find_map(|message| build::executable(message, "xtask", "bin"))
        .ok_or_else(|| miette!("cargo named no executable: {}", typed(&cargo)))
}

fn setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for balancer in Balancer::ALL {
        setups.push(Setup { balancer, services: 1 });
        if !balancer.is_direct() {
            setups.push(Setup { balancer, services: MANY });
        }
    }
    setups.retain(|setup| setup.balancer != Balancer::KubeProxy);
    setups
}

fn wanted(context: &Context<'_>, setup: Setup) -> bool {
    setup.balancer.is_direct() || setup.ways().iter().any(|way| context.wants(&setup.case(*way)))
}
