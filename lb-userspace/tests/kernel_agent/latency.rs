//! How long a new interface waits for its programs. Only told: what a machine has to do besides is no fault of the agent's. (With tcx most of
//! it is the kernel's: each program waits for a grace period of RCU before the next may be attached.)

use std::fs::File;
use std::time::{Duration, Instant};

use lb_kernel::net::watch;
use lb_kernel::pin::PinDir;
use nix::sched::{CloneFlags, setns};

use crate::testbed::Testbed;

const INTERFACES: usize = 200;
/// Between two looks, which the time told is too long by at most.
const PACE: Duration = Duration::from_micros(100);

/// Each is waited for from the moment when the kernel tells of it, which it does the agent at the same time.
fn wait_for_each(testbed: &Testbed) -> Vec<Duration> {
    let namespace = File::open(format!("/run/netns/{}", testbed.node())).expect("a namespace");
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("entered");
    let links = PinDir::new(testbed.bpffs());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut network = watch::spawn().await.expect("netlink");
        let mut waits = Vec::with_capacity(INTERFACES);
        for number in 0..INTERFACES {
            let name = format!("many{number}");
            let making = {
                let (node, other, name) = (testbed.node(), testbed.other(), name.clone());
                tokio::task::spawn_blocking(move || crate::testbed::make_veth(&node, &other, &name))
            };
            let is_there = |network: &std::sync::Arc<lb_control::network::Network>| {
                network.links.values().find(|link| link.name == name).map(|link| link.index)
            };
            let index = is_there(&network.wait_for(|now| is_there(now).is_some()).await.expect("told"));
            let told = Instant::now();
            let pin = links.link("pod_egress", index.expect("there"));
            while !pin.exists() {
                assert!(told.elapsed() < Duration::from_secs(20), "{name} has no program");
                // (Nothing of this runtime has anything to do meanwhile, and the agent needs the processor.)
                std::thread::sleep(PACE);
            }
            waits.push(told.elapsed());
            making.await.expect("made");
        }
        waits
    })
}

#[test]
fn new_interfaces_do_not_wait_long() {
    let testbed = Testbed::new();
    let _agent = testbed.agent(&[]);
    let mut waits =
        std::thread::scope(|scope| scope.spawn(|| wait_for_each(&testbed)).join().expect("waits"));
    waits.sort();
    let at = |share: f64| waits[(share * (INTERFACES - 1) as f64) as usize];
    println!(
        "{INTERFACES} interfaces, from netlink to the last program: p50 {:?}, p99 {:?}, most {:?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
