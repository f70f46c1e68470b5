use clap::Parser;

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
    assert!(config.flow_sets.is_none() && config.cluster_cidr.is_none());
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
        "--pod-cidr",
        "10.1.2.0/24",
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
    assert_eq!(config.selection.node_ips, [Ipv4Addr::new(192, 0, 2, 10)]);
    assert_eq!(config.selection.uplinks, ["eth0", "eth1"]);
    assert!(config.selection.pod_interface.expect("pattern").matches("cali123"));
    assert_eq!((config.xdp_mode, config.socket_lb), (XdpMode::Generic, SocketLb::All));
    assert_eq!(config.cgroup.as_deref(), Some(Path::new("/sys/fs/cgroup/x")));
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/other"));
    assert_eq!((config.hash_seed, config.healthz), (7, None));
    assert_eq!(config.metrics, Some("127.0.0.1:1".parse().expect("address")));
    assert_eq!(config.cluster_cidr, Some("10.1.0.0/16".parse().expect("network")));
    assert_eq!(config.external_ips, ExternalIps::None);
    assert_eq!((config.log_format, config.log_level.as_str()), (LogFormat::Json, "debug"));
    // 64 MiB / 576 = 116508 sets, rounded down to a power of two.
    assert_eq!(config.flow_sets.map(NonZeroU32::get), Some(65_536));
}

#[test]
fn the_pod_range_stands_in_for_the_cluster_range() {
    let config = config(&["--pod-cidr", "10.1.2.0/24"]).expect("valid");
    assert_eq!(config.cluster_cidr, Some("10.1.2.0/24".parse().expect("network")));
}

#[test]
fn what_is_wrong_is_named_by_flag() {
    let cases: [(&[&str], &str); 9] = [
        (&["--node-ip", "127.0.0.1"], "--node-ip 127.0.0.1: "),
        (&["--node-ip", "192.0.2.1,192.0.2.2"], "--node-ip: give one"),
        (&["--flow-table-size", "1KiB"], "--flow-table-size 1.0 KiB: give a size from"),
        (&["--external-ips", "10.0.0.0/99"], "--external-ips 10.0.0.0/99: "),
        (&["--healthz-bind-address", "10256"], "--healthz-bind-address 10256: write ADDRESS:PORT"),
        (&["--bpffs", "shunt"], "--bpffs shunt: give an absolute path"),
        (&["--log-level", "a=b=c"], "--log-level a=b=c: "),
        (&["--uplink", "a-name-that-is-too-long"], "--uplink \"a-name-that-is-too-long\": "),
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
    let merged = args(&["--config", path, "--node-name", "from-flag"]).with_file().expect("readable");
    let config = merged.validate(&surroundings()).expect("valid");
    assert_eq!(config.node_name, "from-flag");
    assert_eq!(config.selection.node_ips, [Ipv4Addr::new(192, 0, 2, 9)]);
    assert_eq!((config.hash_seed, config.xdp_mode), (3, XdpMode::Off));
    assert_eq!(config.flow_sets.map(NonZeroU32::get), Some(32_768));
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("shunt.yaml");
    std::fs::write(&path, "node-nmae: n1\n").expect("written");
    let result = args(&["--config", path.to_str().expect("UTF-8")]).with_file();
    let message = result.expect_err("refused").to_string();
    assert!(message.contains("node-nmae") && message.contains("shunt.yaml"), "{message}");
}
