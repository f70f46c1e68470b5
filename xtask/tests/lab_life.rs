//! The lab itself, without an agent: pods answer directly, and nothing stays behind.
use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use lb_lab::pod::{DNS_PORT, HTTP_PORT, TCP_PORT, UDP_PORT};
use lb_lab::{Family, Lab, Layout, NodeId, PodKind, at, poll};

const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

fn lab(layout: Layout) -> Lab {
    Lab::builder().layout(layout).helper(XTASK).build().expect("a lab")
}

/// Everything of a lab that the rest of the machine could see, of the labs of one owner.
fn traces(owner: u32) -> BTreeSet<String> {
    let name = format!("lab{owner}");
    let list = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect()
    };
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        // One that has ended is the first process's to take away, which in a container may never do so.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
            continue;
        }
        let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        processes.push(format!("{} {line} {group}", entry.path().display()));
    }
    let groups = list("/sys/fs/cgroup/unified").into_iter().chain(list("/sys/fs/cgroup"));
    let all = list("/run/netns").into_iter().chain(list("/run/shunt-lab")).chain(groups).chain(processes);
    all.chain(mounts.lines().map(str::to_owned)).filter(|line| line.contains(&name)).collect()
}

fn pods_answer_directly(layout: Layout) {
    let mut lab = lab(layout);
    for (node, name) in [(NodeId::A, "a1"), (NodeId::A, "a2"), (NodeId::B, "b1")] {
        lab.add_pod(node, name, PodKind::Web).expect("a pod");
    }
    lab.add_pod(NodeId::A, "dns", PodKind::Dns).expect("a DNS pod");
    lab.add_pod(NodeId::B, "iperf", PodKind::Iperf).expect("an iperf3 pod");
    for family in Family::ALL {
        let client = lab.plan().client_ip(family);
        let askers = [
            (lab.client(), Some(client)),
            (lab.pod("a1").netns(), Some(lab.pod("a1").ip(family))),
            // A host process has the address of whichever device leads to the pod.
            (lab.node(NodeId::A), None),
            (lab.node(NodeId::B), None),
        ];
        for (netns, address) in askers {
            for name in ["a2", "b1"] {
                let pod = lab.pod(name).ip(family);
                let reports = [
                    netns.http(at(pod, HTTP_PORT), 3),
                    netns.udp(at(pod, UDP_PORT), 3),
                    netns.udp_unconnected(at(pod, UDP_PORT), 3, 10000),
                    netns.tcp(at(pod, TCP_PORT), 3),
                ];
                for report in reports {
                    let report = report.expect("a report");
                    let from = netns.name();
                    assert_eq!(report.answers.get(name), Some(&3), "{name} at {pod} from {from}: {report:?}");
                    if let Some(address) = address {
                        assert_eq!(report.clients.get(&address), Some(&3), "{name} at {pod} from {from}");
                    }
                }
            }
        }
        let server = at(lab.pod("dns").ip(family), DNS_PORT);
        assert_eq!(lab.client().dig(server).expect("an answer"), "dns");
        assert_eq!(lab.node(NodeId::B).dns(server, 2).expect("a report").answers.get("dns"), Some(&2));
        let web = at(lab.pod("b1").ip(family), HTTP_PORT);
        let body = lab.client().http_get(&format!("http://{web}/")).expect("an answer");
        assert!(body.starts_with(format!("b1 client={}", at(client, 0)).trim_end_matches('0')), "{body}");
        let closed = lab.client().http(at(web.ip(), 81), 1).expect("a report");
        assert_eq!(closed.failures.get("refused"), Some(&1), "{closed:?}");
        let closed = lab.client().udp(at(web.ip(), 81), 1).expect("a report");
        assert_eq!(closed.failures.get("refused"), Some(&1), "{closed:?}");
    }

    let held = lab.client().hold(at(lab.pod("b1").address(), TCP_PORT), 20).expect("held connections");
    lab.add_pod(NodeId::B, "b2", PodKind::Web).expect("a pod");
    lab.remove_pod("b2").expect("the pod to go");
    let report = held.finish().expect("a report");
    assert!(report.broken.is_empty() && report.echoed >= 20 && report.opened > 0, "{report:?}");
}

#[test]
fn pods_answer_directly_in_the_point_to_point_layout() {
    pods_answer_directly(Layout::PointToPoint);
}

#[test]
fn pods_answer_directly_in_the_bridge_layout() {
    pods_answer_directly(Layout::Bridge);
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let mut lab = lab(Layout::PointToPoint);
    lab.add_pod(NodeId::A, "web", PodKind::Web).expect("a pod");
    let owner = std::process::id();
    assert!(traces(owner).len() > 8, "{:#?}", traces(owner));
    drop(lab);
    assert_eq!(traces(owner), BTreeSet::new());
}

#[test]
fn removing_a_pod_removes_its_interface_and_processes() {
    let mut lab = lab(Layout::Bridge);
    let device = lab.add_pod(NodeId::A, "web", PodKind::Web).expect("a pod").device().to_owned();
    let show = ["ip", "link", "show", &device];
    assert!(lab.node(NodeId::A).exec(&show).expect("ip").status.success());
    lab.remove_pod("web").expect("the pod to go");
    assert!(!lab.node(NodeId::A).exec(&show).expect("ip").status.success());
    lab.add_pod(NodeId::A, "web", PodKind::Web).expect("a pod of the same name");
}

/// The owner of the lab of the next test: a child of it, told apart by this variable.
const OWNER: &str = "LAB_LIFE_OWNER";

#[test]
fn a_lab_whose_owner_is_killed_goes_away() {
    if std::env::var_os(OWNER).is_some() {
        let mut lab = lab(Layout::PointToPoint);
        lab.add_pod(NodeId::A, "web", PodKind::Web).expect("a pod");
        fs::write(lab.folder().join("built"), "").expect("a note");
        loop {
            std::thread::park();
        }
    }
    let this = std::env::current_exe().expect("this program");
    let mut owner = Command::new(this)
        .args(["--exact", "a_lab_whose_owner_is_killed_goes_away"])
        .env(OWNER, "1")
        .stdout(Stdio::null())
        .spawn()
        .expect("an owner");
    let built = format!("/run/shunt-lab/lab{}/built", owner.id());
    poll("the lab", Duration::from_secs(20), || fs::exists(&built).unwrap_or(false).then_some(()))
        .expect("a lab");
    owner.kill().expect("kill");
    owner.wait().expect("wait");
    let gone = poll("nothing", Duration::from_secs(10), || traces(owner.id()).is_empty().then_some(()));
    assert!(gone.is_ok(), "left behind: {:#?}", traces(owner.id()));
}

#[test]
fn two_labs_at_once_do_not_meet() {
    let (mut one, mut two) = (lab(Layout::PointToPoint), lab(Layout::Bridge));
    one.add_pod(NodeId::A, "web-one", PodKind::Web).expect("a pod");
    two.add_pod(NodeId::A, "web-two", PodKind::Web).expect("a pod");
    let address: Ipv4Addr = one.pod("web-one").address();
    assert_eq!(address, two.pod("web-two").address());
    drop(one);
    let report = two.client().http(at(address, HTTP_PORT), 1).expect("a report");
    assert_eq!(report.answers.get("web-two"), Some(&1), "{report:?}");
}
