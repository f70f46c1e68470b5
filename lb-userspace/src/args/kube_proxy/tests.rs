use super::*;

/// What kubeadm 1.33 writes for a cluster with two families.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

fn mapped(fields: &str) -> Mapped {
    map(&format!("apiVersion: {GROUP}\nkind: {KIND}\n{fields}")).expect("valid")
}

fn refused(fields: &str) -> String {
    map(&format!("apiVersion: {GROUP}\nkind: {KIND}\n{fields}")).expect_err("refused")
}

#[test]
fn what_kubeadm_writes_is_taken_whole() {
    let mapped = map(KUBEADM).expect("valid");
    assert_eq!(mapped.notes, [], "nothing that kubeadm leaves empty is worth a word");
    let args = mapped.args;
    let networks: Vec<String> = args.cluster_cidr.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.244.0.0/16", "fd00:10:244::/56"]);
    assert_eq!(args.kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
    assert_eq!((args.node_name, args.node_ip.len(), args.masquerade_all), (None, 0, Some(false)));
    assert_eq!((args.healthz_bind_address, args.metrics_bind_address), (None, None));
    assert_eq!((args.detect_local_mode, args.log_format, args.log_level), (None, None, None));
}

#[test]
fn every_field_that_means_something_reaches_its_flag() {
    let Mapped { args, notes } = mapped(
        "hostnameOverride: n1\nbindAddress: 2001:db8::10\nclientConnection: {kubeconfig: /k}\n\
         detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali, bridgeInterface: cbr0}\n\
         iptables: {masqueradeAll: true, localhostNodePorts: false}\nnodePortAddresses: [192.0.2.0/24]\n\
         healthzBindAddress: 127.0.0.1:1\nmetricsBindAddress: '::'\nlogging: {format: json, verbosity: 4}\n",
    );
    assert_eq!(args.node_name.as_deref(), Some("n1"));
    assert_eq!(args.node_ip, ["2001:db8::10".parse::<IpAddr>().expect("address")]);
    assert_eq!(args.kubeconfig, Some("/k".into()));
    assert_eq!(args.detect_local_mode, Some(DetectLocalMode::InterfaceNamePrefix));
    assert_eq!(args.pod_interface_name_prefix.as_deref(), Some("cali"));
    assert_eq!(args.pod_bridge_interface.as_deref(), Some("cbr0"));
    assert_eq!((args.masquerade_all, args.localhost_nodeports), (Some(true), Some(false)));
    assert_eq!(args.nodeport_addresses, ["192.0.2.0/24"]);
    assert_eq!(args.healthz_bind_address.as_deref(), Some("127.0.0.1:1"));
    assert_eq!(args.metrics_bind_address.as_deref(), Some("[::]:10249"));
    assert_eq!((args.log_format, args.log_level.as_deref()), (Some(LogFormat::Json), Some("debug")));
    assert_eq!(notes, []);
}

#[test]
fn the_nftables_mode_has_its_own_words() {
    let nftables =
        mapped("mode: nftables\niptables: {masqueradeAll: false}\nnftables: {masqueradeAll: true}\n");
    assert_eq!(nftables.args.masquerade_all, Some(true));
    assert_eq!(nftables.args.nodeport_addresses, ["primary"], "as kube-proxy does by default in this mode");
    let iptables =
        mapped("mode: iptables\niptables: {masqueradeAll: true}\nnftables: {masqueradeAll: false}\n");
    assert_eq!((iptables.args.masquerade_all, iptables.args.nodeport_addresses.len()), (Some(true), 0));
}

#[test]
fn a_config_map_is_opened() {
    let indented = KUBEADM.trim().replace('\n', "\n    ");
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-proxy, namespace: kube-system}}\ndata:\n  \
         config.conf: |-\n    {indented}\n  kubeconfig.conf: x\n"
    );
    assert_eq!(map(&text).expect("valid").args.cluster_cidr.len(), 2);
    let json = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"config.conf": KUBEADM}});
    assert_eq!(map(&json.to_string()).expect("valid").args.cluster_cidr.len(), 2);
    let without = map("apiVersion: v1\nkind: ConfigMap\ndata: {}\n").expect_err("refused");
    assert!(without.contains("data.config.conf"), "{without}");
}

#[test]
fn what_has_no_meaning_is_listed_and_what_is_unknown_is_named() {
    let notes = mapped(
        "mode: ipvs\nipvs: {strictARP: true, sheduler: rr}\nconntrack: {min: 131072}\nclusterCDIR: 10.0.0.0/8\n\
         featureGates: {A: true}\niptables: {syncPeriod: 30s}\n",
    )
    .notes;
    let reported: Vec<_> = notes.iter().map(|note| (note.text.as_str(), note.doubtful)).collect();
    assert_eq!(
        reported,
        [
            (
                "without meaning here: conntrack.min, featureGates, iptables.syncPeriod, ipvs.strictARP, mode",
                false
            ),
            (
                "unknown to kube-proxy's kubeproxy.config.k8s.io/v1alpha1 and left out; misspelt? clusterCDIR, \
             ipvs.sheduler",
                true
            ),
        ]
    );
}

#[test]
fn what_is_wrong_is_named_by_field() {
    let cases = [
        ("clusterCIDR: 10.244.0.0\n", "clusterCIDR \"10.244.0.0\": expected networks"),
        ("bindAddress: eth0\n", "bindAddress \"eth0\": expected an address"),
        ("detectLocalMode: Magic\n", "detectLocalMode \"Magic\": expected ClusterCIDR"),
        ("iptables: {masqueradeAll: maybe}\n", "iptables.masqueradeAll: expected true or false"),
        ("hostnameOverride: 5\n", "hostnameOverride: expected text, found 5"),
        ("nodePortAddresses: primary\n", "nodePortAddresses: expected a list"),
    ];
    for (fields, start) in cases {
        let message = refused(fields);
        assert!(message.starts_with(start), "{message}");
    }
    let other = map("apiVersion: v1\nkind: Pod\n").expect_err("refused");
    assert!(
        other.starts_with("apiVersion v1, kind Pod: expected kubeproxy.config.k8s.io/v1alpha1"),
        "{other}"
    );
    assert!(map("a: [").is_err() && map("").is_err() && map("text").is_err());
}
