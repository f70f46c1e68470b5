//! What a connection costs, from the client's socket to the server's: pods, clients outside and the node itself, through
//! Shunt, through netfilter in kube-proxy's layouts, and straight to the pod.

mod kube_proxy;
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
use crate::kube::Assets;
use crate::progress::Step;

use kube_proxy::Programs;
pub use program::Program;
use scene::{Balancer, Means, Scene, Setup, TrafficPath};

/// How many Services, when many.
const MANY: usize = 10_000;
/// The same in a short run: to make set-ups takes most of its time.
const SOME: usize = 1000;

/// Builds what runs, makes all set-ups side by side, and measures them in turns.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench sockets` needs root: it makes network namespaces"));
    }
    step.detail("building");
    let shunt = build::shunt(&context.toolchain, &["--release"])?;
    let mut means = Means { helper: helper(context)?, shunt, kube: kube(context, step), cluster: None };
    let mut scenes = Vec::new();
    for setup in
        setups(context.args.quick, context.args.all).into_iter().filter(|setup| wanted(context, *setup))
    {
        if setup.balancer == Balancer::KubeProxy && means.kube.is_none() {
            continue;
        }
        step.detail(&format!("making {:?} with {} Services", setup.balancer, setup.services));
        scenes.push(Scene::build(setup, &mut means)?);
    }
    // Nobody needs the API server any more.
    means.cluster = None;
    for scene in &mut scenes {
        scene.settle()?;
    }
    let wants =
        |setup: Setup, path: TrafficPath| setup.balancer.is_direct() || context.wants(&setup.case(path));
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

/// What kube-proxy needs; says so where this machine has it not.
fn kube(context: &Context<'_>, step: &Step) -> Option<Programs> {
    let is_wanted = |setup: &Setup| setup.balancer == Balancer::KubeProxy && wanted(context, *setup);
    if !setups(context.args.quick, context.args.all).iter().any(is_wanted) {
        return None;
    }
    match Assets::found_with_kube_proxy() {
        Ok(programs) => Some(programs),
        Err(why) => {
            step.say(&format!("no rows of kube-proxy: {why}"));
            None
        }
    }
}

fn setups(quick: bool, all: bool) -> Vec<Setup> {
    let many = if quick { SOME } else { MANY };
    let mut setups = Vec::new();
    for balancer in Balancer::ALL {
        setups.push(Setup { balancer, services: 1 });
        // kube-proxy and its API server take a minute for so many.
        if !balancer.is_direct() && (all || balancer != Balancer::KubeProxy) {
            setups.push(Setup { balancer, services: many });
        }
    }
    setups
}

fn wanted(context: &Context<'_>, setup: Setup) -> bool {
    setup.balancer.is_direct() || setup.paths().iter().any(|path| context.wants(&setup.case(*path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_long_to_set_up_waits_for_those_who_want_all() {
        let of_kube_proxy = |quick, all| -> Vec<_> {
            let setups = setups(quick, all).into_iter();
            setups.filter(|setup| setup.balancer == Balancer::KubeProxy).map(|setup| setup.services).collect()
        };
        assert_eq!(of_kube_proxy(false, false), [1]);
        // In this order: what the API server has, it keeps.
        assert_eq!(of_kube_proxy(false, true), [1, MANY]);
        assert!(setups(true, false).iter().all(|setup| setup.services <= SOME));
        assert_eq!(setups(false, false).iter().filter(|setup| setup.services == MANY).count(), 4);
    }
}
