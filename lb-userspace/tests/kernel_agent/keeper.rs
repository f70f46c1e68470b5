//! The keeper that an agent leaves which is killed.

use nix::sys::signal::Signal;

use crate::testbed::{self, Testbed, eventually};

#[test]
fn the_keeper_holds_nothing_of_the_agents_open() {
    let testbed = Testbed::new();
    let mut agent = testbed.agent(&[]);
    agent.end(Signal::SIGKILL);
    testbed.add_veth("pod1", "more");
    eventually("the keeper to serve a new interface", || serves(&testbed, "pod1"));
    agent.wait_for_the_end_of_its_output();
}

#[test]
fn it_hangs_filters_where_the_agent_does() {
    let testbed = Testbed::new();
    let filters = |interface| testbed.tc(&["filter", "show", "dev", interface, "ingress"]);
    let mut command = testbed.agent_command(&testbed.bpffs(), &[]);
    let mut agent = testbed::Agent::spawn(command.env("SHUNT_FORCE_CLSACT", "1"));
    agent.wait_for("ready");
    agent.stop(Signal::SIGKILL);
    testbed.add_veth("pod1", "more");
    eventually("a filter", || filters("pod1").contains("pod_ingress"));
    // The next agent finds it, and cleans up behind it.
    let mut agent = testbed::Agent::spawn(command.env("SHUNT_FORCE_CLSACT", "1"));
    agent.wait_for("the keeper had attached");
    agent.wait_for("ready");
    agent.stop(Signal::SIGTERM);
    assert_eq!(filters("pod1").matches("handle 0x5348").count(), 1, "{}", filters("pod1"));
    let bpffs = testbed.bpffs();
    assert!(testbed.run(&["cleanup", "--bpffs", bpffs.to_str().expect("UTF-8")]).status.success());
    assert!(!testbed.tc(&["qdisc", "show"]).contains("clsact"));
}

#[test]
fn it_ends_when_the_pins_are_gone() {
    let testbed = Testbed::new();
    testbed.agent(&[]).stop(Signal::SIGKILL);
    testbed.add_veth("pod1", "more");
    eventually("the keeper to serve a new interface", || serves(&testbed, "pod1"));
    std::fs::remove_dir_all(testbed.bpffs()).expect("removed");
    eventually("the keeper to end", || !testbed.has_keeper());
}

fn serves(testbed: &Testbed, interface: &str) -> bool {
    let index = testbed.index(interface);
    let names = testbed.link_names();
    ["pod_ingress", "pod_egress"].iter().all(|program| names.contains(&format!("{program}-{index}")))
}
