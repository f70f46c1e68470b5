//! The agent in this kernel: what it attaches, adopts, leaves alone and takes out again.
//!
//! Root only. Everything happens in network namespaces, bpffs mounts and cgroups made for the test.

mod addresses;
mod clients;
mod keeper;
mod latency;
mod routing;
mod sockets;
mod store;
mod testbed;

use std::os::fd::AsFd as _;
use std::process::Output;

use lb_common::abi::Interface;
use lb_kernel::maps::{Access, Maps};
use lb_kernel::pin::PinDir;
use nix::sys::signal::Signal;
use testbed::{Testbed, eventually, write};

const SOCKET_HOOKS: [&str; 8] =
    ["connect4", "connect6", "getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6"];

fn names(testbed: &Testbed, interfaces: &[(&str, &[&str])], sockets: bool) -> Vec<String> {
    let on_interfaces = interfaces.iter().flat_map(|(interface, programs)| {
        let index = testbed.index(interface);
        programs.iter().map(move |program| format!("{program}-{index}"))
    });
    let mut names: Vec<String> = on_interfaces.collect();
    names.extend(SOCKET_HOOKS.iter().filter(|_| sockets).map(|name| (*name).to_owned()));
    names.sort();
    names
}

const UPLINK: &[&str] = &["uplink_egress", "uplink_ingress", "uplink_xdp"];
const UPLINK_TC: &[&str] = &["uplink_egress", "uplink_ingress"];
const POD: &[&str] = &["pod_egress", "pod_ingress"];

#[test]
fn an_agent_that_was_killed_is_succeeded_without_a_gap() {
    let testbed = Testbed::new();
    let agent = testbed.agent(&[]);
    assert_eq!(testbed.link_names(), names(&testbed, &[("eth0", UPLINK), ("pod0", POD)], true));
    let before = testbed.links();
    agent.stop(Signal::SIGKILL);
    assert_eq!(testbed.links(), before, "programs work on with no agent alive");
    let agent = testbed.agent(&[]);
    let after = testbed.links();
    for ((name, link, program), (_, link_after, program_after)) in before.iter().zip(&after) {
        assert_eq!(link, link_after, "{name}: the link is the same");
        assert_ne!(program, program_after, "{name}: the program is the new agent's");
    }
    agent.stop(Signal::SIGTERM);
    assert_eq!(testbed.links(), after, "an agent that is told to stop leaves everything in place");
}

#[test]
fn links_of_another_layout_version_are_taken_over() {
    let testbed = Testbed::new();
    testbed.agent(&[]).stop(Signal::SIGTERM);
    let before = testbed.links();
    let (own, other) = (PinDir::new(testbed.bpffs()).base(), testbed.bpffs().join("v0"));
    std::fs::rename(&own, &other).expect("renamed");
    testbed.agent(&[]).stop(Signal::SIGTERM);
    let ids = |links: &[(String, u32, u32)]| {
        links.iter().map(|(name, id, _)| (name.clone(), *id)).collect::<Vec<_>>()
    };
    assert_eq!(ids(&testbed.links()), ids(&before), "the same links, with the new programs");
    eventually("what the other version had is gone", || !other.exists());
}

/// Somebody has given a link of ours a second name, that of an interface which is none: the sweep at a start takes the name, and leaves
/// the link.
#[test]
fn a_second_name_of_a_link_goes_and_the_link_stays() {
    let testbed = Testbed::new();
    testbed.agent(&[]).stop(Signal::SIGTERM);
    let before = testbed.links();
    let dir = PinDir::new(testbed.bpffs());
    let first = dir.link("uplink_ingress", testbed.index("eth0"));
    let second = dir.link("uplink_ingress", 99_999);
    let link = lb_kernel::sys::obj_get(&first, false).expect("a pinned link");
    lb_kernel::sys::obj_pin(&second, link.as_fd()).expect("a second name");
    testbed.agent(&[]).stop(Signal::SIGTERM);
    assert!(!second.exists());
    let ids = |links: Vec<(String, u32, u32)>| {
        links.into_iter().map(|(name, id, _)| (name, id)).collect::<Vec<_>>()
    };
    assert_eq!(ids(testbed.links()), ids(before));
    let shown = testbed.ip(&["-details", "link", "show", "dev", "eth0"]);
    assert!(shown.contains("xdp"), "{shown}");
}

/// What the programs are told of XDP on the uplink.
fn told_of_xdp(testbed: &Testbed, bpffs: &std::path::Path) -> u32 {
    let maps = Maps::open(&PinDir::new(bpffs), Access::Read).expect("pinned maps");
    let entry = maps.interfaces.get(&testbed.index("eth0")).expect("readable");
    entry.expect("an entry of the uplink").flags
}

#[test]
fn flags_that_changed_are_reconciled_at_the_next_start() {
    let testbed = Testbed::new();
    testbed.agent(&[]).stop(Signal::SIGTERM);
    let xdp = |testbed: &Testbed| testbed.ip(&["link", "show", "dev", "eth0"]);
    assert!(xdp(&testbed).contains("prog/xdp"), "native");
    let bpffs = testbed.bpffs();
    assert_eq!(told_of_xdp(&testbed, &bpffs), Interface::XDP_SEES | Interface::XDP_SENDS);

    testbed.agent(&["--xdp-mode", "generic"]).stop(Signal::SIGTERM);
    assert!(xdp(&testbed).contains("xdpgeneric"), "{}", xdp(&testbed));
    assert_eq!(told_of_xdp(&testbed, &bpffs), Interface::XDP_SEES);

    testbed.agent(&["--xdp-mode", "off", "--socket-lb", "off"]).stop(Signal::SIGTERM);
    assert!(!xdp(&testbed).contains("xdp"), "{}", xdp(&testbed));
    assert_eq!(told_of_xdp(&testbed, &bpffs), 0);
    assert_eq!(testbed.link_names(), names(&testbed, &[("eth0", UPLINK_TC), ("pod0", POD)], false));

    // Another uplink, and the old one is none any more: a pod's interface by the default rule.
    testbed.agent(&["--uplink", "pod0"]).stop(Signal::SIGTERM);
    assert_eq!(testbed.link_names(), names(&testbed, &[("eth0", POD), ("pod0", UPLINK)], true));
}

#[test]
fn socket_hooks_move_to_another_cgroup() {
    let testbed = Testbed::new();
    testbed.agent(&[]).stop(Signal::SIGTERM);
    let sub = testbed.cgroup().join("sub");
    std::fs::create_dir(&sub).expect("a cgroup");
    let before = testbed.links();
    testbed.agent(&["--cgroup", sub.to_str().expect("UTF-8"), "--socket-lb", "all"]).stop(Signal::SIGTERM);
    let after = testbed.links();
    for ((name, link, _), (_, link_after, _)) in before.iter().zip(&after) {
        let moved = SOCKET_HOOKS.contains(&name.as_str());
        assert_eq!(link != link_after, moved, "{name}");
    }
}

#[test]
fn interfaces_that_come_and_go_are_followed() {
    let testbed = Testbed::new();
    let _agent = testbed.agent(&[]);
    testbed.add_veth("pod1", "pod1");
    let served = names(&testbed, &[("eth0", UPLINK), ("pod0", POD), ("pod1", POD)], true);
    eventually("the new pod is served", || testbed.link_names() == served);

    // To leave a bridge is told like a deletion.
    testbed.ip(&["link", "add", "br0", "type", "bridge"]);
    testbed.ip(&["link", "set", "pod1", "master", "br0"]);
    testbed.ip(&["link", "set", "pod1", "nomaster"]);
    testbed.add_veth("pod2", "pod2");
    let both = names(&testbed, &[("eth0", UPLINK), ("pod0", POD), ("pod1", POD), ("pod2", POD)], true);
    eventually("both pods are served, the bridge is not", || testbed.link_names() == both);

    testbed.ip(&["link", "del", "pod1"]);
    testbed.ip(&["link", "del", "pod2"]);
    let left = names(&testbed, &[("eth0", UPLINK), ("pod0", POD)], true);
    eventually("nothing is left of pods that are gone", || testbed.link_names() == left);
}

#[test]
fn what_went_while_no_agent_ran_is_taken_out() {
    let testbed = Testbed::new();
    testbed.add_veth("pod1", "pod1");
    testbed.agent(&[]).stop(Signal::SIGKILL);
    testbed.ip(&["link", "del", "pod1"]);
    testbed.add_veth("pod2", "pod2");
    let _agent = testbed.agent(&[]);
    assert_eq!(
        testbed.link_names(),
        names(&testbed, &[("eth0", UPLINK), ("pod0", POD), ("pod2", POD)], true)
    );
}

#[test]
fn programs_of_others_are_left_alone() {
    let testbed = Testbed::new();
    let _first = testbed.agent(&[]);
    let before = testbed.links();
    let mut other = testbed.start(&testbed.other_bpffs(), &[]);
    let warning = other.wait_for("XDP is taken by another program");
    let id = before.iter().find(|(name, ..)| name.starts_with("uplink_xdp")).map(|(.., program)| *program);
    assert!(warning.contains(&format!("(id {})", id.expect("attached"))), "{warning}");
    other.wait_for("ready");
    other.stop(Signal::SIGTERM);
    let other = testbed.other_bpffs();
    assert_eq!(told_of_xdp(&testbed, &other), 0, "another's program does not work for us");
    let output = testbed.run(&["cleanup", "--bpffs", other.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(testbed.links(), before);
}

#[test]
fn one_agent_serves_one_directory() {
    let testbed = Testbed::new();
    let _agent = testbed.agent(&[]);
    let bpffs = testbed.bpffs();
    let bpffs = bpffs.to_str().expect("UTF-8");
    let manifests = testbed.manifests();
    let manifests = manifests.to_str().expect("UTF-8");
    for args in [&["cleanup", "--bpffs", bpffs][..], &["agent", "--manifests", manifests, "--bpffs", bpffs]] {
        let output = testbed.run(args);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(69), "{args:?}: {message}");
        assert!(message.contains("in use by another agent (pid "), "{args:?}: {message}");
    }
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let testbed = Testbed::new();
    let bpffs = testbed.bpffs();
    let manifests = testbed.manifests();
    let here = ["agent", "--bpffs", bpffs.to_str().expect("UTF-8"), "--manifests"];
    let manifests = manifests.to_str().expect("UTF-8");
    for (last, wanted) in
        [(&["/nowhere/to/be/found"][..], "/nowhere/to/be/found"), (&[manifests, "--uplink", "eth9"], "eth9")]
    {
        let args = [&here[..], last].concat();
        let output = testbed.run(&args);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(wanted), "{args:?}: {message}");
        assert!(!bpffs.exists(), "{args:?}");
    }
}

#[test]
fn cleanup_takes_out_everything_of_ours() {
    let testbed = Testbed::new();
    testbed.agent(&[]).stop(Signal::SIGTERM);
    let bpffs = testbed.bpffs();
    let maps = std::fs::read_dir(PinDir::new(&bpffs).maps()).expect("pinned maps").count();
    let output = testbed.run(&["cleanup", "--bpffs", bpffs.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let removed = format!("removed {maps} maps");
    assert!(said.contains("took off uplink_xdp of eth0") && said.contains(&removed), "{said}");
    assert!(!bpffs.exists());
    assert!(!testbed.ip(&["link", "show", "dev", "eth0"]).contains("xdp"));
}

#[test]
fn older_kernels_are_served_through_clsact() {
    let testbed = Testbed::new();
    let filter = |interface| testbed.tc(&["filter", "show", "dev", interface, "ingress"]);
    let clsact = |flags: &[&str]| {
        let mut command = testbed.shunt(&[
            "agent",
            "--node-name",
            "n1",
            "--healthz-bind-address",
            "",
            "--metrics-bind-address",
            "",
        ]);
        command.arg("--manifests").arg(testbed.manifests()).arg("--bpffs").arg(testbed.bpffs());
        command.arg("--cgroup").arg(testbed.cgroup()).args(flags).args(["--log-format", "json"]);
        testbed::Agent::spawn(command.env("SHUNT_FORCE_CLSACT", "1"))
    };
    let mut agent = clsact(&[]);
    agent.wait_for("clsact filters are used");
    agent.wait_for("ready");
    let before = filter("pod0");
    assert!(before.contains("pod_ingress") && before.contains("0x5348"), "{before}");
    agent.stop(Signal::SIGKILL);
    let mut agent = clsact(&[]);
    agent.wait_for("ready");
    let after = filter("pod0");
    assert_ne!(before, after, "the filter holds the new agent's program");
    assert_eq!(after.matches("handle 0x5348").count(), 1, "{after}");
    agent.stop(Signal::SIGTERM);

    // Of another layout version, and of an agent that ended before it had attached anything.
    let (own, other) = (PinDir::new(testbed.bpffs()).base(), testbed.bpffs().join("v0"));
    std::fs::rename(&own, &other).expect("renamed");
    let mut agent = clsact(&[]);
    agent.wait_for("ready");
    agent.stop(Signal::SIGTERM);
    assert!(filter("pod0").contains("pod_ingress"), "{}", filter("pod0"));
    assert!(!other.exists());
    testbed.tc(&["filter", "del", "dev", "pod0", "ingress"]);
    let mut agent = clsact(&[]);
    agent.wait_for("ready");
    agent.stop(Signal::SIGTERM);
    assert!(filter("pod0").contains("pod_ingress"), "{}", filter("pod0"));

    // The same node, on a newer kernel.
    testbed.agent(&[]).stop(Signal::SIGTERM);
    assert!(!filter("pod0").contains("pod_ingress"), "{}", filter("pod0"));
    let bpffs = testbed.bpffs();
    assert!(testbed.run(&["cleanup", "--bpffs", bpffs.to_str().expect("UTF-8")]).status.success());
    let qdiscs = testbed.tc(&["qdisc", "show"]);
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

#[test]
fn get_reads_what_the_kernel_holds() {
    let testbed = Testbed::new();
    write(&testbed.manifests().join("web.yaml"), WEB);
    testbed.agent(&[]).stop(Signal::SIGTERM);
    let bpffs = testbed.bpffs();
    let get = |args: &[&str]| {
        let pins = ["--bpffs", bpffs.to_str().expect("UTF-8"), "-o", "json"];
        let output = testbed.run(&[&["get"][..], args, &pins].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let services = get(&["services"]);
    let addresses: Vec<&str> =
        services.as_array().expect("rows").iter().filter_map(|row| row["address"].as_str()).collect();
    let expected = ["10.96.0.10", "fd00::10", "203.0.113.1", "0.0.0.0", "::"];
    assert_eq!(addresses, expected, "{services}");
    assert_eq!((&services[0]["name"], &services[0]["endpoints"]), (&"web".into(), &2.into()));
    assert_eq!((&services[1]["endpoints"], &services[1]["affinitySeconds"]), (&1.into(), &600.into()));
    assert_eq!((&services[2]["policy"], &services[2]["sourceRanges"]), (&"local".into(), &2.into()));
    assert_eq!(
        (&services[0]["policy"], &services[0]["sourceRanges"]),
        (&"cluster".into(), &serde_json::Value::Null)
    );
    let table = testbed.run(&["get", "services", "--bpffs", bpffs.to_str().expect("UTF-8")]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("[fd00::10]:80/TCP"), "{table}");
    let backends = get(&["backends", "web", "-n", "shop"]);
    let found: Vec<_> =
        backends.as_array().expect("rows").iter().map(|row| (&row["pod"], &row["address"])).collect();
    let (a, b) = ("web-a".into(), "web-b".into());
    assert_eq!(found, [(&a, &"10.1.0.5".into()), (&a, &"fd00:1::5".into()), (&b, &"10.1.1.5".into())]);
    assert_eq!(get(&["backends", "-n", "other"]), serde_json::json!([]));
    assert_eq!(get(&["flows"]), serde_json::json!([]));
    let interfaces = get(&["interfaces"]);
    assert_eq!((&interfaces[0]["name"], &interfaces[0]["role"]), (&"eth0".into(), &"uplink".into()));
    assert_eq!(PinDir::versions(&bpffs).expect("readable").len(), 1);
    // Asked from another network namespace it answers all the same, and says where it is.
    let note =
        |output: &Output| String::from_utf8_lossy(&output.stderr).contains("network namespace is another");
    let line = ["get", "services", "--bpffs", bpffs.to_str().expect("UTF-8")];
    let (here, there) = (testbed.run(&line), testbed.run_elsewhere(&line));
    assert!(here.status.success() && there.status.success(), "{here:?} {there:?}");
    assert_eq!(here.stdout, there.stdout);
    assert_eq!((note(&here), note(&there)), (false, true), "{here:?} {there:?}");
}

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00::10']
  type: LoadBalancer
  externalTrafficPolicy: Local
  loadBalancerSourceRanges: [192.0.2.0/25, 'fd77::/16']
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  ports: [{name: http, port: 80, nodePort: 30080, protocol: TCP}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.1.0.5], nodeName: n1, targetRef: {kind: Pod, name: web-a, namespace: shop}}
- {addresses: [10.1.1.5], nodeName: n2, targetRef: {kind: Pod, name: web-b, namespace: shop}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: ['fd00:1::5'], nodeName: n1, targetRef: {kind: Pod, name: web-a, namespace: shop}}
";
