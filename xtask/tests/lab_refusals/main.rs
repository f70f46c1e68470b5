//! What an agent says to input that is wrong, and that all else stays served: each test reads the words and then asks
//! a good Service.
mod bench;
#[path = "../lab_support/mod.rs"]
mod lab_support;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use bench::{Bench, GOOD, START, WORDS, good, single_stack};
use lab_support::eventually;
use lb_lab::pod::HTTP_PORT;
use lb_lab::{Endpoint, Family, NodeId, Output, Service, UPLINK, poll};
use serde_json::Value;
use xtask::kube::{ApiServer, Assets, Identity, Options};

/// Exit codes of the agent, after sysexits(3).
const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;
const NO_PERMISSION: i32 = 77;
const BAD_CONFIG: i32 = 78;

/// Ended with this code, and one line of what it said has all the words.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = format!("{}{}", output.stderr, output.stdout);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let found = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(found, "no line has {words:?}:\n{text}");
}

/// A Service with one port; `more` is put below the port. Its port stands in line 9.
fn service(name: &str, address: &str, port: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  {address}\n  ports:\n  - name: web\n    \
         port: {port}\n{more}"
    )
}

/// Its endpoints, at the pods' HTTP port.
fn slice(name: &str, addresses: &[&str]) -> String {
    let endpoints: String = addresses.iter().map(|text| format!("- addresses: [\"{text}\"]\n")).collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  labels:\n    \
         kubernetes.io/service-name: {name}\naddressType: IPv4\nports:\n- name: web\n  port: {HTTP_PORT}\nendpoints:\n\
         {endpoints}"
    )
}

#[test]
fn values_that_are_wrong_are_named_with_file_object_and_field() {
    let mut bench = Bench::running();
    let pod = bench.lab.pod("a1").address().to_string();
    let apply = |bench: &Bench, name: &str, text: &str| bench.lab.apply_text(name, text).expect("a manifest");

    apply(&bench, "typed", &service("typed", "clusterIP: 10.96.1.1", "eighty", ""));
    let netns = format!("{}:9: Service default/typed: spec.ports[0].port: ", bench.manifest("typed"));
    bench.says(&[&netns, "eighty", "correct it"]);
    for (name, port) in [("zero", "0"), ("large", "65536")] {
        apply(&bench, name, &service(name, "clusterIP: 10.96.1.2", port, ""));
        let netns = format!("{}:1: Service default/{name}: spec.ports[0].port: ", bench.manifest(name));
        bench.says(&[&netns, &format!("{port} is not a port; use a number from 1 to 65535")]);
    }
    for (name, address) in [("short", "10.1.1"), ("octal", "010.1.1.1")] {
        let wrong = format!("\"{address}\" is not an IP address; write four numbers from 0 to 255");
        let spec = format!("clusterIP: \"{address}\"");
        apply(&bench, name, &service(name, &spec, "80", ""));
        let netns = format!("{}:1: Service default/{name}: spec.clusterIP: ", bench.manifest(name));
        bench.says(&[&netns, &wrong]);
    }
    // The endpoints that are right are served beside the one that is not.
    for (name, address, cluster_ip) in
        [("short-end", "10.1.1", "10.96.1.3"), ("octal-end", "010.1.1.1", "10.96.1.4")]
    {
        let spec = format!("clusterIP: {cluster_ip}");
        let text = service(name, &spec, "80", "") + &slice(name, &[address, &pod]);
        apply(&bench, name, &text);
        let netns = format!("EndpointSlice default/{name}-1: endpoints[0].addresses[0]: ");
        bench.says(&[&bench.manifest(name), &netns, &format!("\"{address}\" is not an IP address")]);
        bench.answers_at(cluster_ip.parse().expect("an address"), "a1");
    }
    apply(&bench, "bare", &service("bare", "type: ClusterIP", "80", ""));
    bench.says(&["Service default/bare: spec.clusterIP: it is missing", "write the address to serve"]);
    bench.serves();

    // What is put right is told, and served.
    apply(&bench, "typed", &(service("typed", "clusterIP: 10.96.1.1", "80", "") + &slice("typed", &[&pod])));
    bench.solves(&["Service default/typed: spec.ports[0].port"]);
    bench.answers_at(Ipv4Addr::new(10, 96, 1, 1), "a1");
    bench.lab.withdraw("bare").expect("a manifest");
    bench.solves(&["Service default/bare: spec.clusterIP"]);
    bench.serves();
}

#[test]
fn a_node_port_of_two_services_goes_to_the_first_and_then_to_the_next() {
    let mut bench = Bench::running();
    const PORT: u16 = 30090;
    let put = |bench: &Bench, name: &str, address: &str, pod: &str| {
        let pod = bench.lab.pod(pod).address().to_string();
        let spec = format!("type: NodePort\n  clusterIP: {address}");
        let text = service(name, &spec, "80", &format!("    nodePort: {PORT}\n")) + &slice(name, &[&pod]);
        bench.lab.apply_text(name, &text).expect("a manifest");
    };
    // The later name comes first, so that it is not a matter of who was there first.
    put(&bench, "two", "10.96.2.2", "a2");
    bench.answers(PORT, "a2");
    put(&bench, "one", "10.96.2.1", "a1");
    let lost = format!(
        "nodePort {PORT}/TCP belongs to Service default/one, which goes first by name; choose another"
    );
    bench.says(&["Service default/two: spec.ports: ", &lost]);
    bench.answers(PORT, "a1");
    bench.answers_at(Ipv4Addr::new(10, 96, 2, 2), "a2");
    bench.serves();
    bench.lab.withdraw("one").expect("a manifest");
    bench.answers(PORT, "a2");
    bench.solves(&["Service default/two: spec.ports: ", &lost]);

    // Age goes before the name.
    let text =
        service("zwei", "type: NodePort\n  clusterIP: 10.96.2.3", "80", &format!("    nodePort: {PORT}\n"));
    let text =
        text.replace("  name: zwei\nspec", "  name: zwei\n  creationTimestamp: 2020-01-01T00:00:00Z\nspec");
    let pod = bench.lab.pod("a1").address().to_string();
    bench.lab.apply_text("zwei", &(text + &slice("zwei", &[&pod]))).expect("a manifest");
    bench.says(&["Service default/two: spec.ports: ", "belongs to Service default/zwei, which is older"]);
    bench.answers(PORT, "a1");
    bench.serves();
}

#[test]
fn a_file_that_is_broken_keeps_its_last_good_content() {
    let mut bench = Bench::new();
    const BROKEN: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: [broken\nspec: {}\n";
    bench.lab.apply_text("at-start", BROKEN).expect("a manifest");
    bench.start();
    bench.says(&[&format!("{}:", bench.manifest("at-start")), "this is not YAML", "correct it"]);

    bench.lab.apply_text("later", BROKEN).expect("a manifest");
    let nothing = "nothing of it is in force, correct it";
    bench.says(&[&format!("{}:", bench.manifest("later")), "this is not YAML", nothing]);
    bench.serves();

    // The good one itself is broken, so that its second document stays in force as well as its first.
    let text = good().manifest(&[bench.lab.pod("a1").into()]);
    let line = text.lines().position(|line| line.contains("\"clusterIP\"")).expect("a line") + 1;
    bench
        .lab
        .apply_text("good", &text.replacen("\"clusterIP\":", "\"clusterIP\": @", 1))
        .expect("a manifest");
    let netns = format!("{}:{line}: ", bench.manifest("good"));
    bench.says(&[&netns, "this is not YAML", "its last good content stays in force"]);
    bench.serves();
    let pod: Endpoint = bench.lab.pod("a2").into();
    bench.lab.apply(&good(), &[pod]).expect("a manifest");
    bench.solves(&[&netns]);
    bench.answers(GOOD, "a2");
    bench.lives();
}

#[test]
fn an_uplink_that_is_not_there_ends_the_agent() {
    let mut bench = Bench::running();
    bench.stop();
    let device = bench.lab.pod("a1").device().to_owned();
    let output = bench.agent_with(&[("--uplink", "nope0")]);
    refused(&output, BAD_CONFIG, &["--uplink nope0: no such interface; there are ", UPLINK, &device]);
    // What the agent before had attached serves on.
    bench.serves();
}

/// The node's addresses move to a bridge with the uplink as its port: bridges do not take XDP.
fn bench_with_a_bridge() -> Bench {
    let mut bench = Bench::new();
    let mut lines = format!(
        "link add trunk0 type bridge mcast_snooping 0
         addr flush dev {UPLINK}
         link set {UPLINK} master trunk0
         link set trunk0 up\n"
    );
    let plan = *bench.lab.plan();
    for family in Family::ALL {
        let (address, prefix) = (plan.node_ip(NodeId::A, family), plan.of(family).wire.prefix);
        lines += &format!("addr add {address}/{prefix} dev trunk0\n");
        lines += &format!("route replace default via {}\n", plan.client_ip(family));
    }
    bench.lab.node(NodeId::A).ip(&lines).expect("a bridge");
    bench.set("--uplink", "trunk0");
    bench.set("--pod-interface", "veth*");
    bench
}

#[test]
fn a_driver_without_xdp_is_named_and_served_by_tc() {
    let mut bench = bench_with_a_bridge();
    let has_xdp = |bench: &Bench| {
        let link = bench.lab.node(NodeId::A).run(&["ip", "-details", "link", "show", "trunk0"]).expect("ip");
        link.contains("xdp")
    };
    bench.set("--xdp-mode", "generic");
    bench.start();
    bench.says(&["attached", "trunk0", "xdp=\"generic\""]);
    assert!(has_xdp(&bench));
    bench.stop();

    let refused = "trunk0: the driver (bridge) does not take XDP";
    for (mode, expected) in
        [("auto", &["so tc does its work"][..]), ("native", &["--xdp-mode auto", "tc serves this interface"])]
    {
        bench.set("--xdp-mode", mode);
        bench.start();
        bench.says(&[&["WARN", refused], expected].concat());
        bench.says(&["attached", "trunk0", "xdp=\"off\""]);
        assert!(!has_xdp(&bench), "what the first agent attached is still there with --xdp-mode {mode}");
        bench.serves();
        bench.stop();
    }
}

#[test]
fn each_missing_capability_is_named() {
    let mut bench = Bench::running();
    bench.stop();
    for (dropped, name) in [("bpf", "CAP_BPF"), ("net_admin", "CAP_NET_ADMIN"), ("perfmon", "CAP_PERFMON")] {
        // CAP_SYS_ADMIN stands for the two younger ones.
        let set = format!("-{dropped},-sys_admin");
        bench.wrapper = ["setpriv", "--bounding-set", &set, "--inh-caps", &set].map(str::to_owned).to_vec();
        let output = bench.agent_with(&[]);
        refused(&output, NO_PERMISSION, &[&format!("missing {name}: run as root, or grant what is missing")]);
    }
    bench.serves();
    // These three are enough.
    let set = "-all,+bpf,+net_admin,+perfmon";
    bench.wrapper = ["setpriv", "--bounding-set", set, "--inh-caps", set].map(str::to_owned).to_vec();
    bench.start();
    assert_eq!(bench.exec(&["get", "services", "--bpffs", &bench.bpffs()]).status.code(), Some(0));
}

#[test]
fn an_api_server_that_refuses_is_explained_and_what_was_served_stays_served() {
    let assets = Assets::find_or_build().expect("programs of an API server");
    let server = ApiServer::start(&assets, Options::default()).expect("an API server");
    let port: u16 = server.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let mut bench = Bench::new();
    bench.families = vec![Family::V4];
    server.apply(&single_stack().manifest(&[bench.lab.pod("a1").into()])).expect("a Service");
    bench.flags.remove("--manifests");
    bench.set("--source", "kubernetes");
    bench.set("--kubeconfig", server.kubeconfig(Identity::Agent).display());
    let alive = |bench: &mut Bench| {
        eventually("an agent that is alive", || bench.status("/livez") == "200");
        bench.lives();
    };

    // The port is closed in the node's namespace until the relay listens there.
    bench.launch();
    bench.says(&["WARN", &server.url(), "cannot be reached", "refused", "trying again"]);
    alive(&mut bench);
    let many = || bench.metric("shunt_api_connection_errors_total").is_some_and(|errors| errors > 8.0);
    eventually("more tries", many);
    let log = bench.log();
    let about_it = log.lines().filter(|line| line.contains("refused")).count();
    assert_eq!(about_it, 1, "told once:\n{log}");
    assert_eq!(bench.status("/healthz"), "503", "no traffic for a node that knows no Service yet");
    let _relay = bench.lab.relay(NodeId::A, port).expect("a way to the API server");
    bench.await_ready();
    bench.serves();
    bench.solves(&["cannot be reached"]);
    assert_eq!((bench.status("/livez"), bench.status("/healthz")), ("200".into(), "200".into()));

    // Whoever wants another's address is told in the log, and by a Kubernetes Event.
    let thief = Service::new("thief", Ipv4Addr::new(10, 96, 0, 81)).tcp_node_port(80, HTTP_PORT, 30081);
    let thief = thief.external_ip(Ipv4Addr::new(10, 96, 0, 80));
    server.apply(&thief.object().to_string()).expect("a Service");
    // (In a range of ClusterIPs, where the API says which there are: from 1.33 on.)
    let note = "10.96.0.80 is inside the range of the ClusterIPs and is not served; take it out";
    bench.says(&["Service default/thief: spec.externalIPs: ", note]);
    let found = poll("an Event", WORDS, || {
        let events = server.get_raw("/apis/events.k8s.io/v1/namespaces/default/events").ok()?;
        (events.contains("ShuntPartlyServed") && events.contains(note)).then_some(())
    });
    assert!(found.is_ok(), "{found:?}:\n{}", bench.log());
    bench.answers_at(Ipv4Addr::new(10, 96, 0, 80), "a1");
    bench.serves();
    bench.stop();

    let text = fs::read_to_string(server.kubeconfig(Identity::Agent)).expect("a kubeconfig");
    let stranger = bench.lab.folder().join("stranger.kubeconfig");
    fs::write(&stranger, text.replace("token-of-agent", "token-of-stranger")).expect("a kubeconfig");
    bench.set("--kubeconfig", stranger.display());
    bench.launch();
    bench.says(&[&server.url(), "does not know us (401 Unauthorized)", "renew the token", "trying again"]);
    alive(&mut bench);
    bench.serves();
    assert!(!bench.log().contains("token-of-stranger"), "a secret in the log:\n{}", bench.log());
    bench.stop();

    bench.set("--kubeconfig", server.kubeconfig(Identity::Nobody).display());
    bench.launch();
    for (group, resource) in [("", "services"), ("discovery.k8s.io", "endpointslices")] {
        let grant = format!("apiGroups [{group:?}], resources [{resource:?}], verbs [\"list\", \"watch\"]");
        bench.says(&[&server.url(), "403 Forbidden", "add to our ClusterRole", &grant, "trying again"]);
    }
    alive(&mut bench);
    bench.serves();
}

#[test]
fn a_directory_that_is_no_bpffs_or_taken_is_refused() {
    let mut bench = Bench::running();
    let plain = bench.lab.folder().join("plain").display().to_string();
    let output = bench.agent_with(&[("--bpffs", &plain)]);
    refused(&output, UNAVAILABLE, &[&format!("--bpffs {plain}: "), &format!("mount -t bpf bpf {plain}")]);
    assert!(!fs::exists(&plain).expect("a look"), "{plain} was made");
    let second = bench.agent_with(&[]);
    let pid = format!("(pid {})", bench.pid());
    refused(&second, UNAVAILABLE, &[&format!("--bpffs {}: in use by ", bench.bpffs()), &pid]);
    bench.serves();
}

#[test]
fn a_port_of_its_own_that_is_taken_does_not_stop_the_agent() {
    let mut bench = Bench::new();
    let taken = bench.lab.node(NodeId::A).within(|| TcpListener::bind("0.0.0.0:10256"));
    let taken = taken.expect("a namespace").expect("a free port");
    bench.start();
    bench.says(&["--healthz-bind-address 0.0.0.0:10256: cannot listen", "in use", "Choose another address"]);
    bench.serves();
    drop(taken);
    let answers = poll("/healthz", START, || (bench.status("/healthz") == "200").then_some(()));
    assert!(answers.is_ok(), "{}", bench.log());
}

#[test]
fn the_flow_table_takes_the_memory_it_is_given() {
    let mut bench = Bench::new();
    bench.set("--flow-table-size", "40MiB");
    bench.start();
    let output = bench.exec(&["get", "maps", "flows4", "-o", "json", "--bpffs", &bench.bpffs()]);
    let maps: Vec<Value> = serde_json::from_str(&output.stdout).expect("JSON");
    let [map] = &maps[..] else { panic!("one map: {maps:?}") };
    let bytes = map["bytes"].as_u64().expect("bytes");
    assert!(bytes > 20 << 20 && bytes <= 40 << 20, "half of it at least, and no more: {map}");
    assert_eq!(map["maxEntries"], 65_536, "sets of eight flows");
    bench.serves();
}

#[test]
fn without_pins_there_is_nothing_to_show() {
    let mut bench = Bench::running();
    let empty = format!("{}-empty", bench.bpffs());
    for what in ["services", "backends", "flows", "interfaces", "maps"] {
        let output = bench.exec(&["get", what, "--bpffs", &empty]);
        refused(
            &output,
            UNAVAILABLE,
            &[&format!("--bpffs {empty}: nothing of ours is pinned there"), "no agent"],
        );
        assert_eq!(output.stdout, "");
    }
    let output = bench.exec(&["cleanup", "--bpffs", &empty]);
    refused(&output, 0, &["nothing to remove"]);
    bench.serves();
}

#[test]
fn clean_up_waits_for_the_agent_and_leaves_what_is_not_ours() {
    clean_up_beside_others(Bench::new(), "tc=Tcx");
}

#[test]
fn clean_up_leaves_what_is_not_ours_among_clsact_filters() {
    let mut bench = Bench::new();
    bench.wrapper = ["env", "SHUNT_FORCE_CLSACT=1"].map(str::to_owned).to_vec();
    clean_up_beside_others(bench, "tc=Clsact");
}

/// `tc` is how the log calls the way the agent's tc programs are attached.
fn clean_up_beside_others(mut bench: Bench, tc: &str) {
    // Another program at each hook: XDP, and a classifier of tc.
    let object = bench.lab.folder().join("pass.o").display().to_string();
    let node = bench.lab.node(NodeId::A).clone();
    for words in [
        format!("ip link set {UPLINK} xdp object {object} section xdp"),
        format!("tc qdisc add dev {UPLINK} clsact"),
        format!("tc filter add dev {UPLINK} ingress bpf object-file {object} section xdp"),
    ] {
        node.run_loader(&words.split(' ').collect::<Vec<_>>()).expect("a program");
    }
    let foreign = || {
        let link = node.run(&["ip", "-details", "-json", "link", "show", UPLINK]).expect("ip");
        let link: serde_json::Value = serde_json::from_str(&link).expect("JSON");
        let filters = node.run(&["tc", "filter", "show", "dev", UPLINK, "ingress"]).expect("tc");
        (link[0]["xdp"]["prog"]["id"].as_u64(), filters)
    };
    let before = foreign();
    assert!(before.0.is_some() && before.1.contains("pass.o"), "{before:?}");

    bench.set("--xdp-mode", "native");
    bench.start();
    bench.says(&["attached", UPLINK, tc]);
    bench.says(&["WARN", UPLINK, "XDP is taken by another program", "left alone", "--xdp-mode off"]);
    let bpffs = bench.bpffs();
    let clean = ["cleanup", "--bpffs", &bpffs];
    let pid = format!("(pid {})", bench.pid());
    refused(&bench.exec(&clean), UNAVAILABLE, &[&format!("--bpffs {bpffs}: in use by "), &pid]);
    bench.serves();

    assert_eq!(bench.stop().code(), Some(0));
    bench.serves();
    refused(&bench.exec(&clean), 0, &["took off uplink_ingress of ", UPLINK]);
    assert!(!fs::exists(&bpffs).expect("a look"), "{bpffs} is still there");
    assert_eq!(foreign(), before, "what is not ours has changed");
    let left = node.run(&["bpftool", "net", "show"]).expect("bpftool");
    assert!(!left.contains("uplink_") && !left.contains("pod_"), "{left}");
    assert_eq!(bench.curl(GOOD), "", "nobody serves the Service any more");
}

#[test]
fn flags_and_keys_that_are_wrong_are_named() {
    let mut bench = Bench::running();
    for (words, expected) in [
        (&["agent", "--nonsense"][..], &["--nonsense"][..]),
        (&["agent", "--xdp-mode", "fast"], &["'fast'", "--xdp-mode"]),
        (&["agent", "--node-ip", "10.1.1"], &["'10.1.1'", "--node-ip"]),
        (&["agent", "--cluster-cidr", "10.0.0.0/40"], &["'10.0.0.0/40'", "--cluster-cidr"]),
        (&["agent", "--flow-table-size", "much"], &["'much'", "--flow-table-size"]),
        (&["agent", "--uplink"], &["--uplink"]),
        (&["get", "pods"], &["'pods'"]),
        (&["frobnicate"], &["'frobnicate'"]),
    ] {
        refused(&bench.exec(words), USAGE, expected);
    }
    for (flag, value, expected) in [
        ("--healthz-bind-address", "nowhere", "write ADDRESS:PORT"),
        ("--metrics-bind-address", "10249", "write ADDRESS:PORT"),
        ("--flow-table-size", "1.0 KiB", "give a size from"),
        ("--bpffs", "here", "absolute"),
        ("--external-ips", "some", "all or none"),
        ("--manifests", "/nowhere/at/all", "give a file or folder that exists"),
        ("--cgroup", "/proc", "not on a cgroup2"),
        ("--config", "/nowhere.yaml", "No such file"),
    ] {
        // Those with a lock to take get a directory of their own.
        let own = format!("{}-own", bench.bpffs());
        let changes = [("--bpffs", own.as_str()), (flag, value)];
        refused(&bench.agent_with(&changes), BAD_CONFIG, &[&format!("{flag} {value}: "), expected]);
    }
    bench.flags.remove("--manifests");
    let own = format!("{}-own", bench.bpffs());
    let changes = [("--bpffs", own.as_str()), ("--source", "kubernetes"), ("--kubeconfig", "/nowhere")];
    refused(
        &bench.agent_with(&changes),
        BAD_CONFIG,
        &["kubeconfig /nowhere: ", "correct the file or --kubeconfig"],
    );
    let file = bench.lab.folder().join("shunt.yaml").display().to_string();
    fs::write(&file, "node-name: node-a\nuplnk: eth0\n").expect("a file");
    let output = bench.agent_with(&[("--config", &file)]);
    refused(&output, BAD_CONFIG, &[&format!("--config {file}: "), "`uplnk`"]);
    bench.serves();
}
