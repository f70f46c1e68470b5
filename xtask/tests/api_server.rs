//! The API server that other tests rely on is a real one, and leaves nothing behind.

use std::path::Path;
use std::process::Command;

use xtask::kube::{ApiServer, Assets, Identity, Options};

fn start() -> ApiServer {
    let assets = Assets::find_or_build().expect("programs of an API server");
    ApiServer::start(&assets, Options::default()).expect("an API server")
}

/// Standard output of a command that must succeed.
fn output(command: &mut Command) -> String {
    xtask::command::stdout(command).expect("a command that succeeds")
}

/// What a command that must fail says.
fn refusal(command: &mut Command) -> String {
    let output = command.output().expect("kubectl starts");
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: web, namespace: default }
spec:
  type: NodePort
  ports: [{ name: http, port: 80, targetPort: 8080 }]
"#;

const SLICE: &str = r#"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: default
  labels: { kubernetes.io/service-name: web }
addressType: IPv4
ports: [{ name: http, port: 8080, protocol: TCP }]
endpoints:
  - addresses: [10.1.0.5]
    conditions: { ready: false, serving: true, terminating: true }
    nodeName: node-a
    hints: { forZones: [{ name: zone-a }] }
"#;

#[test]
fn objects_survive_an_outage_and_nothing_survives_the_server() {
    let mut server = start();
    assert_eq!(server.get_raw("/readyz").unwrap(), "ok");

    server.apply(SERVICE).unwrap();
    let field = |server: &ApiServer, path: &str| {
        let path = format!("-o=jsonpath={path}");
        output(server.kubectl(Identity::Admin).args(["get", "service", "web", &path]))
    };
    let address = field(&server, "{.spec.clusterIP}");
    assert!(address.starts_with("10.96."), "ClusterIP {address}");
    let node_port: u16 = field(&server, "{.spec.ports[0].nodePort}").parse().unwrap();
    assert!((30_000..=32_767).contains(&node_port), "nodePort {node_port}");

    server.apply(SLICE).unwrap();
    let slice = server.get_raw("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-1").unwrap();
    for part in [r#""serving":true"#, r#""forZones":[{"name":"zone-a"}]"#, r#""nodeName":"node-a""#] {
        assert!(slice.contains(part), "{part} is not in {slice}");
    }

    server.stop();
    let said = refusal(server.kubectl(Identity::Admin).args(["get", "services"]));
    assert!(said.contains("refused"), "{said}");
    server.start_again().unwrap();
    assert_eq!(field(&server, "{.spec.clusterIP}"), address);

    server.pause().unwrap();
    let said = refusal(server.kubectl(Identity::Admin).args(["get", "services", "--request-timeout=1s"]));
    assert!(said.contains("timeout") || said.contains("deadline") || said.contains("Timeout"), "{said}");
    server.resume().unwrap();
    assert_eq!(field(&server, "{.spec.clusterIP}"), address);

    let processes = server.process_ids();
    let folder = server.kubeconfig(Identity::Admin).parent().unwrap().to_owned();
    assert_eq!(processes.len(), 2);
    assert!(processes.iter().all(|id| Path::new(&format!("/proc/{id}")).exists()));
    server.pause().unwrap();
    drop(server);
    for id in processes {
        assert!(!Path::new(&format!("/proc/{id}")).exists(), "process {id} is still there");
    }
    assert!(!folder.exists(), "{} is still there", folder.display());
}

#[test]
fn the_manifests_of_the_agent_are_accepted() {
    let server = start();
    let base = xtask::repository::root().join("deploy/base");
    let manifests = output(server.kubectl(Identity::Admin).arg("kustomize").arg(base));
    // This API server is older than the list of a node's addresses.
    assert!(manifests.contains("fieldPath: status.hostIPs"), "{manifests}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("base.yaml");
    std::fs::write(&file, manifests.replace("status.hostIPs", "status.hostIP")).expect("written");
    let mut kubectl = server.kubectl(Identity::Admin);
    let applied = output(kubectl.args(["apply", "--validate=true", "-f"]).arg(&file));
    assert!(applied.contains("daemonset.apps/shunt created"), "{applied}");
}

#[test]
fn the_agent_may_read_what_it_needs_and_nothing_else() {
    let server = start();
    let may = |identity, verb: &str, resource: &str| {
        let mut kubectl = server.kubectl(identity);
        kubectl.args(["auth", "can-i", verb, resource, "--all-namespaces"]);
        let answer = kubectl.output().expect("kubectl starts");
        String::from_utf8_lossy(&answer.stdout).trim() == "yes"
    };
    for (verb, resource) in [
        ("list", "services"),
        ("watch", "services"),
        ("list", "endpointslices.discovery.k8s.io"),
        ("watch", "endpointslices.discovery.k8s.io"),
        ("get", "nodes"),
        ("watch", "nodes"),
        ("get", "namespaces/kube-system"),
        ("create", "events.events.k8s.io"),
        ("patch", "events.events.k8s.io"),
    ] {
        assert!(may(Identity::Agent, verb, resource), "the agent may not {verb} {resource}");
        assert!(!may(Identity::Nobody, verb, resource), "nobody may {verb} {resource}");
        assert!(may(Identity::Admin, verb, resource), "the administrator may not {verb} {resource}");
    }
    for (verb, resource) in [
        ("list", "secrets"),
        ("get", "namespaces/default"),
        ("list", "namespaces"),
        ("update", "services"),
        ("delete", "endpointslices.discovery.k8s.io"),
        ("patch", "nodes"),
    ] {
        assert!(!may(Identity::Agent, verb, resource), "the agent may {verb} {resource}");
    }
    let said = refusal(server.kubectl(Identity::Nobody).args(["get", "services"]));
    assert!(said.contains("Forbidden") && said.contains("nobody"), "{said}");
}
