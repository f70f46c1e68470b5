use clap::Parser;
use lb_control::model::Family;

use super::*;
use crate::args::{Cli, Command};

fn surroundings() -> Surroundings {
    Surroundings { host_name: "n1".into(), kubernetes: false }
}

fn args(flags: &[&str]) -> AgentArgs {
    let cli = Cli::try_parse_from(["shunt", "agent"].iter().chain(flags)).expect("valid flags");
    let Command::Agent(args) = cli.command else { panic!("agent") };
    *args
}

fn config(flags: &[&str]) -> Result<Config, ConfigError> {
    let manifests = ["--manifests", "/tmp/services"];
    args(&[&manifests[..], flags].concat()).validate(&surroundings())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn ranges(v4: Option<&str>, v6: Option<&str>) -> DetectLocal {
    let v4 = v4.map(|text| text.parse().expect("network"));
    DetectLocal::Ranges(Ranges { v4, v6: v6.map(|text| text.parse().expect("network")) })
}

fn message(flags: &[&str]) -> String {
    config(flags).expect_err("refused").to_string()
}

#[test]
fn defaults_are_those_of_kube_proxy_where_it_has_them() {
    let config = config(&[]).expect("valid");
    assert_eq!(config.node_name, "n1");
    assert_eq!(config.healthz, Some(HEALTHZ.parse().expect("address")));
    assert_eq!(config.metrics, Some(METRICS.parse().expect("address")));
    assert_eq!(config.bpffs, Path::new(BPFFS));
    assert_eq!((config.xdp_mode, config.socket_lb), (XdpMode::Auto, SocketLb::Host));
    assert_eq!(config.external_ips, ExternalIps::All);
    assert!(config.flow_sets.is_none() && config.service_cidrs.is_empty() && !config.masquerade_all);
    assert_eq!(config.detect_local, DetectLocal::Nobody);
    assert!(Family::ALL.iter().all(|family| config.selection.node_port_addresses.takes_all(*family)));
}

#[test]
fn a_keeper_is_a_word_or_a_place() {
    let keeper = |flags: &[&str]| config(flags).expect("valid").keeper;
    assert_eq!((keeper(&[]), keeper(&["--keeper", "on"])), (Keeper::Own, Keeper::Own));
    assert_eq!(keeper(&["--keeper", "off"]), Keeper::Nobody);
    assert_eq!(keeper(&["--keeper", "/run/shunt/keeper.sock"]), Keeper::At("/run/shunt/keeper.sock".into()));
    assert!(
        message(&["--keeper", "no"]).contains("--keeper no: say on, off"),
        "{}",
        message(&["--keeper", "no"])
    );
}

#[test]
fn every_flag_reaches_the_configuration() {
    let config = config(&[
        "--node-name",
        "n2",
        "--node-ip",
        "192.0.2.10",
        "--node-ip",
        "2001:db8::10",
        "--uplink",
        "eth0",
        "--uplink",
        "eth1",
        "--pod-interface",
        "cali*",
        "--xdp-mode",
        "generic",
        "--socket-lb",
        "all",
        "--cgroup",
        "/sys/fs/cgroup/x",
        "--bpffs",
        "/sys/fs/bpf/other",
        "--hash-seed",
        "7",
        "--healthz-bind-address",
        "",
        "--metrics-bind-address",
        "127.0.0.1:1",
        "--cluster-cidr",
        "10.1.2.3/16",
        "--cluster-cidr",
        "2001:db8:1::5/56",
        "--pod-cidr",
        "10.1.2.0/24",
        "--service-cidr",
        "10.96.0.0/12,fd00::1/108",
        "--nodeport-addresses",
        "primary,192.0.2.0/24",
        "--masquerade-all",
        "--pod-bridge-interface",
        "cbr0",
        "--pod-interface-name-prefix",
        "lxc",
        "--external-ips",
        "none",
        "--log-format",
        "json",
        "--log-level",
        "debug",
        "--flow-table-size",
        "64MiB",
    ])
    .expect("valid");
    assert_eq!(config.node_name, "n2");
    assert_eq!(config.selection.node_ips, [ip("192.0.2.10"), ip("2001:db8::10")]);
    assert_eq!(config.selection.uplinks, ["eth0", "eth1"]);
    assert!(config.selection.pod_interface.expect("pattern").matches("cali123"));
    assert_eq!((config.xdp_mode, config.socket_lb), (XdpMode::Generic, SocketLb::All));
    assert_eq!(config.cgroup.as_deref(), Some(Path::new("/sys/fs/cgroup/x")));
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/other"));
    assert_eq!((config.hash_seed, config.healthz), (Some(7), None));
    assert_eq!(config.metrics, Some("127.0.0.1:1".parse().expect("address")));
    assert_eq!(config.detect_local, ranges(Some("10.1.0.0/16"), Some("2001:db8:1::/56")));
    let pods: Vec<String> = config.pod_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(pods, ["10.1.0.0/16", "2001:db8:1::/56", "10.1.2.0/24"]);
    let services: Vec<String> = config.service_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(services, ["10.96.0.0/12", "fd00::/108"]);
    assert_eq!(config.selection.node_port_addresses.to_string(), "primary,192.0.2.0/24");
    assert!(config.masquerade_all);
    assert_eq!(config.selection.pod_bridge.as_deref(), Some("cbr0"));
    assert_eq!(config.selection.pod_prefix.as_deref(), Some("lxc"));
    assert_eq!(config.external_ips, ExternalIps::None);
    assert_eq!((config.log_format, config.log_level.as_str()), (LogFormat::Json, "debug"));
    // 64 MiB / 576 = 116508 sets, rounded down to a power of two.
    assert_eq!(config.flow_sets.map(NonZeroU32::get), Some(65_536));
}

/// `nodeutil.GetHostname`: without spaces around it, in small letters.
#[test]
fn a_nodes_name_is_written_as_the_kubelet_writes_it() {
    let of_host = |host_name: &str| {
        let surroundings = Surroundings { host_name: host_name.to_owned(), ..surroundings() };
        let config = args(&["--manifests", "/m"]).validate(&surroundings);
        config.map(|config| config.node_name).map_err(|error| error.to_string())
    };
    assert_eq!(of_host("Node-A").as_deref(), Ok("node-a"));
    assert_eq!(of_host(" Node-A.Example.com\n").as_deref(), Ok("node-a.example.com"));
    for none in ["", " \n"] {
        assert!(of_host(none).unwrap_err().starts_with("--node-name: this host has no name"));
    }
    let given = |name| config(&["--node-name", name]).map(|config| config.node_name);
    assert_eq!(given(" N2 ").ok().as_deref(), Some("n2"));
    assert!(given(" ").unwrap_err().to_string().starts_with("--node-name \" \": the name must not be empty"));
    let config = args(&["--kubeconfig", "/k", "--node-name", "N2"]).validate(&surroundings()).expect("valid");
    let source::Config::Kubernetes { node_name, .. } = config.source else { panic!("kubernetes") };
    assert_eq!(node_name, "n2", "the Node that is watched");
}

/// As the downward API writes `status.hostIPs`.
#[test]
fn node_ips_may_be_one_list() {
    let config = config(&["--node-ip", "192.0.2.10,2001:db8::10"]).expect("valid");
    assert_eq!(config.selection.node_ips, [ip("192.0.2.10"), ip("2001:db8::10")]);
}

#[test]
fn who_is_local_is_what_the_mode_says() {
    let detect = |flags: &[&str]| config(flags).expect("valid").detect_local;
    let pods = ["--pod-cidr", "10.1.2.0/24", "--pod-cidr", "fd00:1::/64"];
    let cluster = ["--cluster-cidr", "10.1.0.0/16"];
    let mode = |mode| ["--detect-local-mode", mode];
    assert_eq!(
        detect(&pods),
        ranges(Some("10.1.2.0/24"), Some("fd00:1::/64")),
        "stands in for the cluster's"
    );
    assert_eq!(detect(&[&pods[..], &cluster].concat()), ranges(Some("10.1.0.0/16"), Some("fd00:1::/64")));
    assert_eq!(detect(&mode("cluster-cidr")), DetectLocal::Nobody);
    for node_cidr in [mode("node-cidr"), mode("NodeCIDR")] {
        assert_eq!(detect(&node_cidr), DetectLocal::NodeRanges);
        let with_pods = [&node_cidr[..], &cluster, &pods].concat();
        assert_eq!(detect(&with_pods), ranges(Some("10.1.2.0/24"), Some("fd00:1::/64")));
    }
    let bridge = ["--pod-bridge-interface", "cbr0"];
    let prefix = ["--pod-interface-name-prefix", "cali"];
    assert_eq!(detect(&[mode("BridgeInterface"), bridge].concat()), DetectLocal::Interface);
    assert_eq!(detect(&[mode("interface-name-prefix"), prefix].concat()), DetectLocal::Interface);
}

#[test]
fn node_ports_are_served_where_flags_say() {
    let words = |flags: &[&str]| config(flags).expect("valid").selection.node_port_addresses;
    assert_ne!(words(&["--localhost-nodeports=false"]), words(&[]));
    assert_eq!(words(&["--localhost-nodeports"]), words(&[]));
    assert!(words(&["--nodeport-addresses", "192.0.2.0/24"]).takes_all(Family::V6));
}

#[test]
fn what_is_wrong_is_named_by_flag() {
    let cases: [(&[&str], &str); 15] = [
        (&["--node-ip", "127.0.0.1"], "--node-ip 127.0.0.1: "),
        (&["--node-ip", "fe80::1"], "--node-ip fe80::1: "),
        (&["--node-ip", "192.0.2.1,192.0.2.2"], "--node-ip: give one"),
        (&["--flow-table-size", "1KiB"], "--flow-table-size 1.0 KiB: give a size from"),
        (&["--external-ips", "10.0.0.0/99"], "--external-ips 10.0.0.0/99: "),
        (&["--healthz-bind-address", "10256"], "--healthz-bind-address 10256: write ADDRESS:PORT"),
        (&["--bpffs", "shunt"], "--bpffs shunt: give an absolute path"),
        (&["--log-level", "a=b=c"], "--log-level a=b=c: "),
        (&["--uplink", "a-name-that-is-too-long"], "--uplink \"a-name-that-is-too-long\": "),
        (&["--cluster-cidr", "10.0.0.0/8,11.0.0.0/8"], "--cluster-cidr 11.0.0.0/8: give one network"),
        (&["--nodeport-addresses", "eth0"], "--nodeport-addresses eth0: write networks"),
        (
            &["--detect-local-mode", "bridge-interface"],
            "--detect-local-mode bridge-interface: name the pods' bridge",
        ),
        (
            &["--detect-local-mode", "InterfaceNamePrefix"],
            "--detect-local-mode interface-name-prefix: say how",
        ),
        (&["--pod-interface-name-prefix", ""], "--pod-interface-name-prefix \"\": an interface's name"),
        (&["--source", "kubernetes"], "--manifests: not used with --source kubernetes"),
    ];
    for (flags, start) in cases {
        let message = message(flags);
        assert!(message.starts_with(start), "{message}");
    }
}

#[test]
fn the_source_is_the_one_that_is_there() {
    let kind = |flags: &[&str], kubernetes| {
        let surroundings = Surroundings { kubernetes, ..surroundings() };
        match args(flags).validate(&surroundings).map(|config| config.source) {
            Ok(source::Config::Kubernetes { .. }) => "kubernetes",
            Ok(source::Config::Manifests { .. }) => "manifests",
            Err(_) => "refused",
        }
    };
    assert_eq!(kind(&[], true), "kubernetes");
    assert_eq!(kind(&[], false), "refused");
    assert_eq!(kind(&["--kubeconfig", "/k"], false), "kubernetes");
    assert_eq!(kind(&["--manifests", "/m"], true), "manifests");
    assert_eq!(kind(&["--source", "manifests"], true), "refused");
}

#[test]
fn a_file_fills_in_and_flags_win() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("shunt.yaml");
    let text = "source: manifests\nmanifests: /m\nnode-name: from-file\nnode-ip: [192.0.2.9]\nhash-seed: 3\n\
                xdp-mode: off\nflow-table-size: 32MiB\n";
    std::fs::write(&path, text).expect("written");
    let path = path.to_str().expect("UTF-8");
    let (merged, notes) =
        args(&["--config", path, "--node-name", "from-flag"]).with_files().expect("readable");
    assert!(notes.is_empty());
    let config = merged.validate(&surroundings()).expect("valid");
    assert_eq!(config.node_name, "from-flag");
    assert_eq!(config.selection.node_ips, [ip("192.0.2.9")]);
    assert_eq!((config.hash_seed, config.xdp_mode), (Some(3), XdpMode::Off));
    assert_eq!(config.flow_sets.map(NonZeroU32::get), Some(32_768));
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("shunt.yaml");
    std::fs::write(&path, "node-nmae: n1\n").expect("written");
    let result = args(&["--config", path.to_str().expect("UTF-8")]).with_files();
    let message = result.expect_err("refused").to_string();
    assert!(message.contains("node-nmae") && message.contains("shunt.yaml"), "{message}");
}

#[test]
fn kube_proxys_file_comes_last() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let ours = write("shunt.yaml", "metrics-bind-address: 127.0.0.1:1\n");
    let theirs = write(
        "config.conf",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nhostnameOverride: n7\n\
         metricsBindAddress: 127.0.0.1:2\nhealthzBindAddress: 127.0.0.1:3\nclusterCIDR: 10.1.0.0/16\n\
         clientConnection: {kubeconfig: /nowhere/kubeconfig}\nmode: ipvs\n",
    );
    let flags = ["--config", &ours, "--kube-proxy-config", &theirs, "--node-name", "n1"];
    let (merged, notes) =
        args(&[&flags[..], &["--manifests", "/m"]].concat()).with_files().expect("readable");
    let config = merged.validate(&surroundings()).expect("valid");
    assert_eq!(config.node_name, "n1", "a flag wins");
    assert_eq!(config.metrics, Some("127.0.0.1:1".parse().expect("address")), "our file wins");
    assert_eq!(config.healthz, Some("127.0.0.1:3".parse().expect("address")));
    assert_eq!(config.detect_local, ranges(Some("10.1.0.0/16"), None));
    let [listed, kubeconfig] = &notes[..] else { panic!("{notes:?}") };
    assert!(listed.text.ends_with("config.conf: without meaning here: mode"), "{listed:?}");
    assert!(kubeconfig.text.contains("/nowhere/kubeconfig: not here"), "{kubeconfig:?}");
    let wrong = write("config.conf", "kind: Pod\n");
    let error = args(&["--kube-proxy-config", &wrong]).with_files().expect_err("refused").to_string();
    assert!(
        error.starts_with("--kube-proxy-config ") && error.contains("config.conf: apiVersion"),
        "{error}"
    );
}
