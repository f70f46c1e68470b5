//! What the API server stores and returns, its own schema or not.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::model::ObjectRef;
use crate::objects::{EndpointSlice, Node, Service, ServiceCidr};
use crate::source::{Config, Event, Source, spawn};

/// A Service with all that one has.
fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 1,
            "creationTimestamp": "2025-11-21T09:00:00Z", "deletionTimestamp": "2025-11-21T09:00:00Z",
            "labels": {"app": "web"}, "annotations": {"note": "a"}, "finalizers": ["f"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u"}],
            "managedFields": [{"manager": "m", "time": "2025-11-21T09:00:00Z", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": 8080,
                       "appProtocol": "http"}],
            "externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster", "selector": {"app": "web"},
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "healthCheckNodePort": 30100, "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "allocateLoadBalancerNodePorts": true, "publishNotReadyAddresses": false,
        },
        "status": {
            "loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP", "hostname": "h",
                                          "ports": [{"port": 80, "protocol": "TCP", "error": "e"}]}]},
            "conditions": [{"type": "Ready", "status": "True", "reason": "r", "message": "m",
                            "lastTransitionTime": "2025-11-21T09:00:00Z", "observedGeneration": 1}],
        },
    })
}

fn slice(name: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": "7",
                     "labels": {"kubernetes.io/service-name": "web"},
                     "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2025-11-21T09:00:00Z"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}],
        "endpoints": [{
            "addresses": ["10.1.0.5"], "conditions": {"ready": true, "serving": true, "terminating": false},
            "hostname": "h", "nodeName": "node-a", "zone": "z", "deprecatedTopology": {"a": "b"},
            "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "node-a"}]},
            "targetRef": {"kind": "Pod", "name": "web-1", "namespace": "shop", "uid": "u", "fieldPath": "f"},
        }],
    })
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-a", "resourceVersion": "7", "labels": {"topology.kubernetes.io/zone": "z"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"],
                 "taints": [{"key": "k", "effect": "NoSchedule", "timeAdded": "2025-11-21T09:00:00Z"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}],
                   "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2025-11-21T09:00:00Z"}],
                   "nodeInfo": {"kernelVersion": "6.1.0"}, "images": [{"names": ["a"], "sizeBytes": 1}]},
    })
}

fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "resourceVersion": "7"}, "spec": {"cidrs": ["10.96.0.0/16"]},
        "status": {"conditions": [{"type": "Ready", "lastTransitionTime": "2025-11-21T09:00:00Z"}]},
    })
}

/// The way to every value below.
fn places(value: &Value, path: &str, found: &mut Vec<String>) {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect(),
        _ => Vec::new(),
    };
    for (name, value) in below {
        let path = format!("{path}/{name}");
        found.push(path.clone());
        places(value, &path, found);
    }
}

/// Reads the object with something else in each of its places in turn. Returns where it cannot be read.
fn refused<T: DeserializeOwned>(object: &Value, with: &Value) -> Vec<String> {
    let mut all = Vec::new();
    places(object, "", &mut all);
    assert!(all.len() > 8);
    all.retain(|place| {
        let mut object = object.clone();
        *object.pointer_mut(place).expect("a place of it") = with.clone();
        let seen: Seen<T> = serde_json::from_value(object).expect("an object in any case");
        seen.content.is_err()
    });
    all
}

#[test]
fn null_may_stand_everywhere() {
    let null = Value::Null;
    assert_eq!(refused::<Service>(&service("web"), &null), [""; 0]);
    assert_eq!(refused::<EndpointSlice>(&slice("web-1"), &null), [""; 0]);
    assert_eq!(refused::<Node>(&node(), &null), [""; 0]);
    assert_eq!(refused::<ServiceCidr>(&service_cidr(), &null), [""; 0]);
}

#[test]
fn only_what_is_read_has_to_be_what_it_should() {
    // Neither a list, nor a text, nor a time, nor a number of the range.
    let odd = json!(-1e300);
    let of_service = refused::<Service>(&service("web"), &odd);
    for unused in ["conditions", "managedFields", "selector", "targetPort", "ownerReferences", "Timestamp"] {
        assert!(!of_service.iter().any(|place| place.contains(unused)), "{unused}: {of_service:?}");
    }
    assert!(of_service.contains(&"/spec/ports/0/port".to_owned()), "{of_service:?}");
    let of_slice = refused::<EndpointSlice>(&slice("web-1"), &odd);
    for unused in ["deprecatedTopology", "zone", "uid", "appProtocol", "hostname", "trigger-time"] {
        assert!(!of_slice.iter().any(|place| place.ends_with(unused)), "{unused}: {of_slice:?}");
    }
    let of_node = refused::<Node>(&node(), &odd);
    assert!(
        !of_node.iter().any(|place| place.contains("conditions") || place.contains("images")),
        "{of_node:?}"
    );
}

fn problem<T: DeserializeOwned>(object: Value, kind: Kind, wrap: fn(T) -> Object) -> String {
    let seen: Seen<T> = serde_json::from_value(object).expect("an object in any case");
    seen.read(kind, wrap).expect_err("it cannot be read").to_string()
}

#[test]
fn what_cannot_be_read_is_named() {
    let mut object = service("web");
    object["spec"]["ports"][0]["port"] = json!("eighty");
    assert_eq!(
        problem(object, Kind::Service, |object| Object::Service(Box::new(object))),
        "Service shop/web: spec.ports[0].port: invalid type: string \"eighty\", expected i32; what is known of this \
         object stays in force, correct it"
    );
    let mut object = node();
    object["status"]["addresses"] = json!("none");
    let said = problem(object, Kind::Node, |object| Object::Node(Box::new(object)));
    assert!(said.starts_with("Node node-a: status.addresses: invalid type"), "{said}");
}

/// What an API server is asked for and says, then on each watch.
#[derive(Clone, Default)]
struct Served {
    services: Vec<Value>,
    /// Lines of the watch of Services.
    changes: Vec<Value>,
}

async fn answer(stream: TcpStream, mut served: watch::Receiver<Served>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(request) = lines.next_line().await? {
        while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
        let path = request.split(' ').nth(1).unwrap_or_default();
        let is_services = path.starts_with("/api/v1/services");
        if path.contains("watch=") {
            writer
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
                .await?;
            let mut sent = 0;
            loop {
                let changes = served.borrow_and_update().changes.clone();
                for change in changes.iter().skip(sent).filter(|_| is_services) {
                    let line = format!("{change}\n");
                    writer.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
                }
                sent = changes.len();
                if served.changed().await.is_err() {
                    return Ok(());
                }
            }
        }
        let items = match path {
            _ if is_services => served.borrow().services.clone(),
            _ if path.starts_with("/api/v1/nodes") => vec![node()],
            _ if path.starts_with("/apis/discovery.k8s.io/v1/endpointslices") => vec![slice("web-1")],
            _ => Vec::new(),
        };
        let kind = if path.starts_with("/apis/networking") { "APIResourceList" } else { "List" };
        let body = json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                          "groupVersion": "networking.k8s.io/v1", "resources": [], "items": items});
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        writer.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    }
    Ok(())
}

/// A source that reads from an API server that says what the sender has it say.
async fn source(folder: &std::path::Path, served: Served) -> (Source, watch::Sender<Served>) {
    let (server, receiver) = watch::channel(served);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, receiver.clone()));
        }
    });
    let path = folder.join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    std::fs::write(&path, text).expect("written");
    let config = Config::Kubernetes {
        kubeconfig: Some(path),
        node_name: "node-a".to_owned(),
        service_cidrs: Vec::new(),
        identify: false,
    };
    (spawn(config).await.expect("a source"), server)
}

async fn next(source: &mut Source) -> Event {
    let event = tokio::time::timeout(Duration::from_secs(10), source.events.recv());
    event.await.expect("in time").expect("not the end")
}

fn named(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::Service, "shop", name)
}

#[tokio::test]
async fn one_object_that_cannot_be_read_hides_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut never = service("never");
    never["status"]["conditions"][0]["lastTransitionTime"] = Value::Null;
    let mut wrong = service("wrong");
    wrong["spec"]["ports"] = json!({"port": 80});
    let services = vec![never.clone(), wrong.clone(), service("right")];
    let (mut source, server) = source(folder.path(), Served { services, changes: Vec::new() }).await;

    let (mut listed, mut problems, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match next(&mut source).await {
            Event::Listed(sourced) => listed.push(sourced.object.reference().to_string()),
            Event::Unreadable(reference) => unreadable.push(reference),
            Event::Problems(now) => problems = now,
            Event::Synced => break,
            _ => {}
        }
    }
    listed.sort();
    let expected = ["EndpointSlice shop/web-1", "Node node-a", "Service shop/never", "Service shop/right"];
    assert_eq!(listed, expected);
    assert_eq!(unreadable, [named("wrong")]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].to_string().starts_with("Service shop/wrong: spec.ports: invalid type"),
        "{}",
        problems[0]
    );

    // On a watch: what cannot be read is told and changes nothing, and its deletion is one.
    let mut right = service("right");
    right["spec"]["clusterIPs"] = json!(7);
    let changes = vec![
        json!({"type": "MODIFIED", "object": right}),
        json!({"type": "MODIFIED", "object": never}),
        json!({"type": "MODIFIED", "object": service("wrong")}),
        // Another order of the fields is the same JSON.
        serde_json::from_str(&format!("{{\"object\": {never}, \"type\": \"DELETED\"}}")).expect("JSON"),
        json!({"type": "DELETED", "object": right}),
    ];
    server.send_modify(|served| served.changes = changes);
    let mut reported = Vec::new();
    while reported.len() < 4 {
        match next(&mut source).await {
            Event::Applied(sourced) => reported.push(format!("applied {}", sourced.object.reference().name)),
            Event::Deleted(reference) => reported.push(format!("deleted {}", reference.name)),
            Event::Problems(now) => problems = now,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(reported, ["applied never", "applied wrong", "deleted never", "deleted right"]);
    assert_eq!(problems, [], "nothing is wrong with what is gone, or right again");
}
