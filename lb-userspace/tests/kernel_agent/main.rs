//! The agent in this kernel: what it attaches, adopts, leaves alone and takes out again.
//!
//! Root only. Everything happens in network namespaces, bpffs mounts and cgroups made for the test.

mod addresses;
mod clients;
mod place;
mod sockets;
mod store;

use lb_common::abi::Interface;
use lb_kernel::maps::{Access, Maps};
use lb_kernel::pin::PinDir;
use nix::sys::signal::Signal;
use place::{Place, eventually, write};

const SOCKET_HOOKS: [&str; 8] =
    ["connect4", "connect6", "getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6"];

fn names(place: &Place, interfaces: &[(&str, &[&str])], sockets: bool) -> Vec<String> {
    let on_interfaces = interfaces.iter().flat_map(|(interface, programs)| {
        let index = place.index(interface);
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
    let place = Place::new();
    let agent = place.agent(&[]);
    assert_eq!(place.link_names(), names(&place, &[("eth0", UPLINK), ("pod0", POD)], true));
    let before = place.links();
    agent.stop(Signal::SIGKILL);
    assert_eq!(place.links(), before, "programs work on with no agent alive");
    let agent = place.agent(&[]);
    let after = place.links();
    for ((name, link, program), (_, link_after, program_after)) in before.iter().zip(&after) {
        assert_eq!(link, link_after, "{name}: the link is the same");
        assert_ne!(program, program_after, "{name}: the program is the new agent's");
    }
    agent.stop(Signal::SIGTERM);
    assert_eq!(place.links(), after, "an agent that is told to stop leaves everything in place");
}

#[test]
fn links_of_another_layout_version_are_taken_over() {
    let place = Place::new();
    place.agent(&[]).stop(Signal::SIGTERM);
    let before = place.links();
    let (own, other) = (PinDir::new(place.bpffs()).base(), place.bpffs().join("v0"));
    std::fs::rename(&own, &other).expect("renamed");
    place.agent(&[]).stop(Signal::SIGTERM);
    let ids = |links: &[(String, u32, u32)]| {
        links.iter().map(|(name, id, _)| (name.clone(), *id)).collect::<Vec<_>>()
    };
    assert_eq!(ids(&place.links()), ids(&before), "the same links, with the new programs");
    eventually("what the other version had is gone", || !other.exists());
}

/// What the programs are told of XDP on the uplink.
fn told_of_xdp(place: &Place, bpffs: &std::path::Path) -> u32 {
    let maps = Maps::open(&PinDir::new(bpffs), Access::Read).expect("pinned maps");
    let entry = maps.interfaces.get(&place.index("eth0")).expect("readable");
    entry.expect("an entry of the uplink").flags
}

#[test]
fn flags_that_changed_are_reconciled_at_the_next_start() {
    let place = Place::new();
    place.agent(&[]).stop(Signal::SIGTERM);
    let xdp = |place: &Place| place.ip(&["link", "show", "dev", "eth0"]);
    assert!(xdp(&place).contains("prog/xdp"), "native");
    let bpffs = place.bpffs();
    assert_eq!(told_of_xdp(&place, &bpffs), Interface::XDP_SEES | Interface::XDP_SENDS);

    place.agent(&["--xdp-mode", "generic"]).stop(Signal::SIGTERM);
    assert!(xdp(&place).contains("xdpgeneric"), "{}", xdp(&place));
    assert_eq!(told_of_xdp(&place, &bpffs), Interface::XDP_SEES);

    place.agent(&["--xdp-mode", "off", "--socket-lb", "off"]).stop(Signal::SIGTERM);
    assert!(!xdp(&place).contains("xdp"), "{}", xdp(&place));
    assert_eq!(told_of_xdp(&place, &bpffs), 0);
    assert_eq!(place.link_names(), names(&place, &[("eth0", UPLINK_TC), ("pod0", POD)], false));

    // Another uplink, and the old one is none any more: a pod's interface by the default rule.
    place.agent(&["--uplink", "pod0"]).stop(Signal::SIGTERM);
    assert_eq!(place.link_names(), names(&place, &[("eth0", POD), ("pod0", UPLINK)], true));
}

#[test]
fn socket_hooks_move_to_another_cgroup() {
    let place = Place::new();
    place.agent(&[]).stop(Signal::SIGTERM);
    let sub = place.cgroup().join("sub");
    std::fs::create_dir(&sub).expect("a cgroup");
    let before = place.links();
    place.agent(&["--cgroup", sub.to_str().expect("UTF-8"), "--socket-lb", "all"]).stop(Signal::SIGTERM);
    let after = place.links();
    for ((name, link, _), (_, link_after, _)) in before.iter().zip(&after) {
        let moved = SOCKET_HOOKS.contains(&name.as_str());
        assert_eq!(link != link_after, moved, "{name}");
    }
}

#[test]
fn interfaces_that_come_and_go_are_followed() {
    let place = Place::new();
    let _agent = place.agent(&[]);
    place.add_veth("pod1", "pod1");
    let served = names(&place, &[("eth0", UPLINK), ("pod0", POD), ("pod1", POD)], true);
    eventually("the new pod is served", || place.link_names() == served);

    // To leave a bridge is told like a deletion.
    place.ip(&["link", "add", "br0", "type", "bridge"]);
    place.ip(&["link", "set", "pod1", "master", "br0"]);
    place.ip(&["link", "set", "pod1", "nomaster"]);
    place.add_veth("pod2", "pod2");
    let both = names(&place, &[("eth0", UPLINK), ("pod0", POD), ("pod1", POD), ("pod2", POD)], true);
    eventually("both pods are served, the bridge is not", || place.link_names() == both);

    place.ip(&["link", "del", "pod1"]);
    place.ip(&["link", "del", "pod2"]);
    let left = names(&place, &[("eth0", UPLINK), ("pod0", POD)], true);
    eventually("nothing is left of pods that are gone", || place.link_names() == left);
}

#[test]
fn what_went_while_no_agent_ran_is_taken_out() {
    let place = Place::new();
    place.add_veth("pod1", "pod1");
    place.agent(&[]).stop(Signal::SIGKILL);
    place.ip(&["link", "del", "pod1"]);
    place.add_veth("pod2", "pod2");
    let _agent = place.agent(&[]);
    assert_eq!(place.link_names(), names(&place, &[("eth0", UPLINK), ("pod0", POD), ("pod2", POD)], true));
}

#[test]
fn programs_of_others_are_left_alone() {
    let place = Place::new();
    let _first = place.agent(&[]);
    let before = place.links();
    let mut other = place.start(&place.other_bpffs(), &[]);
    let warning = other.wait_for("XDP is taken by another program");
    let id = before.iter().find(|(name, ..)| name.starts_with("uplink_xdp")).map(|(.., program)| *program);
    assert!(warning.contains(&format!("(id {})", id.expect("attached"))), "{warning}");
    other.wait_for("ready");
    other.stop(Signal::SIGTERM);
    let other = place.other_bpffs();
    assert_eq!(told_of_xdp(&place, &other), 0, "another's program does not work for us");
    let output = place.run(&["cleanup", "--bpffs", other.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(place.links(), before);
}

#[test]
fn one_agent_serves_one_directory() {
    let place = Place::new();
    let _agent = place.agent(&[]);
    let bpffs = place.bpffs();
    let bpffs = bpffs.to_str().expect("UTF-8");
    let manifests = place.manifests();
    let manifests = manifests.to_str().expect("UTF-8");
    for args in [&["cleanup", "--bpffs", bpffs][..], &["agent", "--manifests", manifests, "--bpffs", bpffs]] {
        let output = place.run(args);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(69), "{args:?}: {message}");
        assert!(message.contains("in use by another agent (pid "), "{args:?}: {message}");
    }
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let place = Place::new();
    let bpffs = place.bpffs();
    let manifests = place.manifests();
    let here = ["agent", "--bpffs", bpffs.to_str().expect("UTF-8"), "--manifests"];
    let manifests = manifests.to_str().expect("UTF-8");
    for (last, wanted) in
        [(&["/nowhere/to/be/found"][..], "/nowhere/to/be/found"), (&[manifests, "--uplink", "eth9"], "eth9")]
    {
        let args = [&here[..], last].concat();
        let output = place.run(&args);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(wanted), "{args:?}: {message}");
        assert!(!bpffs.exists(), "{args:?}");
    }
}

#[test]
fn cleanup_takes_out_everything_of_ours() {
    let place = Place::new();
    place.agent(&[]).stop(Signal::SIGTERM);
    let bpffs = place.bpffs();
    let maps = std::fs::read_dir(PinDir::new(&bpffs).maps()).expect("pinned maps").count();
    let output = place.run(&["cleanup", "--bpffs", bpffs.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let removed = format!("removed {maps} maps");
    assert!(said.contains("took off uplink_xdp of eth0") && said.contains(&removed), "{said}");
    assert!(!bpffs.exists());
    assert!(!place.ip(&["link", "show", "dev", "eth0"]).contains("xdp"));
}

#[test]
fn older_kernels_are_served_through_clsact() {
    let place = Place::new();
    let filter = |interface| place.tc(&["filter", "show", "dev", interface, "ingress"]);
    let clsact = |flags: &[&str]| {
        let mut command = place.shunt(&[
            "agent",
            "--node-name",
            "n1",
            "--healthz-bind-address",
            "",
            "--metrics-bind-address",
            "",
        ]);
        command.arg("--manifests").arg(place.manifests()).arg("--bpffs").arg(place.bpffs());
        command.arg("--cgroup").arg(place.cgroup()).args(flags).args(["--log-format", "json"]);
        place::Agent::spawn(command.env("SHUNT_FORCE_CLSACT", "1"))
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
    let (own, other) = (PinDir::new(place.bpffs()).base(), place.bpffs().join("v0"));
    std::fs::rename(&own, &other).expect("renamed");
    let mut agent = clsact(&[]);
    agent.wait_for("ready");
    agent.stop(Signal::SIGTERM);
    assert!(filter("pod0").contains("pod_ingress"), "{}", filter("pod0"));
    assert!(!other.exists());
    place.tc(&["filter", "del", "dev", "pod0", "ingress"]);
    let mut agent = clsact(&[]);
    agent.wait_for("ready");
    agent.stop(Signal::SIGTERM);
    assert!(filter("pod0").contains("pod_ingress"), "{}", filter("pod0"));

    // The same node, on a newer kernel.
    place.agent(&[]).stop(Signal::SIGTERM);
    assert!(!filter("pod0").contains("pod_ingress"), "{}", filter("pod0"));
    let bpffs = place.bpffs();
    assert!(place.run(&["cleanup", "--bpffs", bpffs.to_str().expect("UTF-8")]).status.success());
    let qdiscs = place.tc(&["qdisc", "show"]);
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

#[test]
fn get_reads_what_the_kernel_holds() {
    let place = Place::new();
    write(&place.manifests().join("web.yaml"), WEB);
    place.agent(&[]).stop(Signal::SIGTERM);
    let bpffs = place.bpffs();
    let get = |args: &[&str]| {
        let pins = ["--bpffs", bpffs.to_str().expect("UTF-8"), "-o", "json"];
        let output = place.run(&[&["get"][..], args, &pins].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let services = get(&["services"]);
    let addresses: Vec<&str> =
        services.as_array().expect("rows").iter().filter_map(|row| row["address"].as_str()).collect();
    let expected = ["10.96.0.10", "fd00::10", "192.0.2.10", "203.0.113.1", "127.0.0.1", "::1"];
    assert_eq!(addresses, expected, "{services}");
    assert_eq!((&services[0]["name"], &services[0]["endpoints"]), (&"web".into(), &2.into()));
    assert_eq!((&services[1]["endpoints"], &services[1]["affinitySeconds"]), (&1.into(), &600.into()));
    assert_eq!((&services[3]["policy"], &services[3]["sourceRanges"]), (&"local".into(), &2.into()));
    assert_eq!(
        (&services[0]["policy"], &services[0]["sourceRanges"]),
        (&"cluster".into(), &serde_json::Value::Null)
    );
    let table = place.run(&["get", "services", "--bpffs", bpffs.to_str().expect("UTF-8")]);
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
