//! `v1 Endpoints` into EndpointSlices, as the mirroring controller of Kubernetes makes them
//! (`pkg/controller/endpointslicemirroring`): where the Service has no selector, and so nobody else makes any.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Family, Kind, ObjectRef, Problem, Severity};
use crate::objects::{
    Endpoint, EndpointAddress, EndpointConditions, EndpointPort, EndpointSlice, Endpoints, LEADER, Metadata,
    SERVICE_NAME, SKIP_MIRROR, Service,
};
use crate::source::{Object, Sourced};

/// Addresses of a subset that are mirrored (`--mirroring-max-endpoints-per-subset`).
const MOST: usize = 1000;

/// Puts EndpointSlices in the place of Endpoints. Returns what is not mirrored, and why.
pub(super) fn mirror(objects: &mut BTreeMap<ObjectRef, Sourced>) -> Vec<Problem> {
    let all: Vec<ObjectRef> = objects.keys().filter(|key| key.kind == Kind::Endpoints).cloned().collect();
    let mut problems = Vec::new();
    for reference in all {
        let Some(Sourced { object: Object::Endpoints(endpoints), origin }) = objects.remove(&reference)
        else {
            continue;
        };
        let service = ObjectRef::new(Kind::Service, reference.namespace.clone(), reference.name.clone());
        let service = match objects.get(&service).map(|sourced| &sourced.object) {
            Some(Object::Service(service)) => Some(&**service),
            _ => None,
        };
        let mut found = Vec::new();
        if let Some(why) = not_mirrored(&endpoints, service) {
            found.push(Problem::of(&reference, Severity::Notice, "", format!("it is not served: {why}")));
        } else {
            for slice in slices(&reference, &endpoints, &mut found) {
                let object = Object::EndpointSlice(Box::new(slice));
                objects.insert(object.reference(), Sourced { object, origin: origin.clone() });
            }
        }
        problems.extend(found.into_iter().map(|problem| problem.at(origin.as_ref())));
    }
    problems
}

fn not_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> Option<&'static str> {
    let Metadata { labels, annotations, .. } = &endpoints.metadata;
    if labels.get(SKIP_MIRROR) == Some("true") {
        return Some("it has the label endpointslice.kubernetes.io/skip-mirror=true");
    }
    if annotations.get(LEADER).is_some() {
        return Some(
            "it is the lock of a leader, by its annotation control-plane.alpha.kubernetes.io/leader",
        );
    }
    match service {
        None => Some("there is no Service of its name"),
        Some(service) if service.spec.as_ref().is_some_and(|spec| spec.has_selector) => Some(
            "its Service has a selector, and then Kubernetes goes by EndpointSlices alone; write those, or take the \
             selector out",
        ),
        Some(_) => None,
    }
}

/// Name, protocol and number.
type Port = (String, String, i32);
/// Whether each is ready.
type Addresses = BTreeMap<String, bool>;

/// The EndpointSlices of Endpoints, one for each set of ports and family.
fn slices(reference: &ObjectRef, endpoints: &Endpoints, problems: &mut Vec<Problem>) -> Vec<EndpointSlice> {
    let mut first: BTreeMap<&str, &EndpointAddress> = BTreeMap::new();
    let mut by_port: BTreeMap<Port, Addresses> = BTreeMap::new();
    let mut invalid = Vec::new();
    for (i, subset) in endpoints.subsets.iter().enumerate() {
        let lists = [
            ("addresses", &subset.addresses, true),
            ("notReadyAddresses", &subset.not_ready_addresses, false),
        ];
        for (field, list, is_ready) in lists {
            for (j, address) in list.iter().enumerate() {
                if family(&address.ip).is_none() {
                    invalid.push((format!("subsets[{i}].{field}[{j}].ip"), &address.ip));
                    continue;
                }
                first.entry(&address.ip).or_insert(address);
                for port in &subset.ports {
                    let ready =
                        by_port.entry(key(port)).or_default().entry(address.ip.clone()).or_insert(true);
                    // What is both is not ready.
                    *ready &= is_ready;
                }
            }
        }
    }
    if let Some((field, text)) = invalid.first() {
        let others = if invalid.len() > 1 {
            format!(", and {} more are none", invalid.len() - 1)
        } else {
            String::new()
        };
        let message = format!("{text:?} is not an IP address{others}; the others are served, correct it");
        problems.push(Problem::of(reference, Severity::Warning, field.as_str(), message));
    }
    // Ports at the same addresses belong together, in whichever subsets they stand.
    let mut subsets: BTreeMap<Addresses, Vec<Port>> = BTreeMap::new();
    for (port, addresses) in by_port {
        subsets.entry(addresses).or_default().push(port);
    }
    let mut slices = Vec::new();
    for (addresses, ports) in &subsets {
        if addresses.len() > MOST {
            let message = format!(
                "{} addresses have the port {}, and Kubernetes mirrors {MOST} of them, ready ones first; the others are not \
                 served, write EndpointSlices",
                addresses.len(),
                name(ports)
            );
            problems.push(Problem::of(reference, Severity::Warning, "subsets", message));
        }
        let of = |wanted: bool| addresses.iter().filter(move |(_, ready)| **ready == wanted);
        let taken: Vec<_> = of(true).chain(of(false)).take(MOST).collect();
        for its in Family::ALL {
            let of_family = taken.iter().filter(|(ip, _)| family(ip) == Some(its));
            let list: Vec<Endpoint> = of_family
                .filter_map(|(ip, ready)| Some(endpoint(first.get(ip.as_str())?, **ready)))
                .collect();
            if !list.is_empty() {
                slices.push(slice(reference, endpoints, its, ports, list));
            }
        }
    }
    slices
}

fn family(ip: &str) -> Option<Family> {
    ip.parse::<IpAddr>().ok().map(Family::of)
}

/// With what the API server fills in.
fn key(port: &EndpointPort) -> Port {
    let protocol = port.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP");
    (port.name.clone().unwrap_or_default(), protocol.to_owned(), port.port.unwrap_or_default())
}

/// `http:8080/TCP,https:8443/TCP`.
fn name(ports: &[Port]) -> String {
    let ports = ports.iter().map(|(name, protocol, number)| match name.as_str() {
        "" => format!("{number}/{protocol}"),
        name => format!("{name}:{number}/{protocol}"),
    });
    ports.collect::<Vec<_>>().join(",")
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: EndpointConditions { ready: Some(ready), ..EndpointConditions::default() },
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        hints: None,
    }
}

fn slice(
    reference: &ObjectRef,
    of: &Endpoints,
    family: Family,
    ports: &[Port],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let metadata = Metadata {
        // The same while its ports are, so that a change of addresses is one change. No object has such a name of its own.
        name: Some(format!("{}/{}/{}", reference.name, family.label(), name(ports))),
        namespace: Some(reference.namespace.to_string()),
        labels: of.metadata.labels.with(SERVICE_NAME, &reference.name),
        annotations: of.metadata.annotations.clone(),
        ..Metadata::default()
    };
    let port = |(name, protocol, number): &Port| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: Some(*number),
    };
    EndpointSlice {
        metadata,
        address_type: family.label().to_owned(),
        ports: ports.iter().map(port).collect(),
        endpoints,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}";

    fn mirrored(service: &str, endpoints: Value) -> (Vec<EndpointSlice>, Vec<String>) {
        let parsed = super::super::parse::parse("f.yaml", &format!("{service}\n---\n{endpoints}\n"));
        assert_eq!(parsed.problems, []);
        let objects = parsed.objects.into_iter().map(|sourced| (sourced.object.reference(), sourced));
        let mut objects: BTreeMap<_, _> = objects.collect();
        let problems = mirror(&mut objects).iter().map(Problem::to_string).collect();
        assert!(objects.keys().all(|reference| reference.kind != Kind::Endpoints));
        let slices = objects.into_values().filter_map(|sourced| match sourced.object {
            Object::EndpointSlice(slice) => {
                assert!(sourced.origin.is_some());
                Some(*slice)
            }
            _ => None,
        });
        (slices.collect(), problems)
    }

    fn endpoints(subsets: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}, "subsets": subsets})
    }

    /// `name ports: address, address!` with a mark where it is not ready.
    fn shown(slices: &[EndpointSlice]) -> Vec<String> {
        let list = |slice: &EndpointSlice| {
            let mark = |endpoint: &Endpoint| if endpoint.conditions.ready == Some(true) { "" } else { "!" };
            let one = |endpoint: &Endpoint| format!("{}{}", endpoint.addresses[0], mark(endpoint));
            slice.endpoints.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        slices
            .iter()
            .map(|slice| format!("{}: {}", slice.metadata.name.as_deref().unwrap_or(""), list(slice)))
            .collect()
    }

    #[test]
    fn a_slice_is_made_for_each_set_of_ports_and_family() {
        let (slices, problems) = mirrored(
            SERVICE,
            endpoints(json!([
                {"addresses": [{"ip": "10.0.0.2", "nodeName": "node-b", "targetRef": {"kind": "Pod", "name": "p"}},
                               {"ip": "2001:db8::2"}, {"ip": "10.0.0.1"}],
                 "notReadyAddresses": [{"ip": "10.0.0.3"}],
                 "ports": [{"name": "http", "port": 8080}]},
                {"addresses": [{"ip": "10.0.0.9"}], "ports": [{"port": 53, "protocol": "UDP"}]},
                {"addresses": [{"ip": "10.0.0.8"}]},
            ])),
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            shown(&slices),
            [
                "web/IPv4/53/UDP: 10.0.0.9",
                "web/IPv4/http:8080/TCP: 10.0.0.1 10.0.0.2 10.0.0.3!",
                "web/IPv6/http:8080/TCP: 2001:db8::2"
            ]
        );
        let slice = &slices[1];
        assert_eq!(slice.metadata.labels.get(SERVICE_NAME), Some("web"));
        assert_eq!(
            (slice.address_type.as_str(), slice.metadata.namespace.as_deref()),
            ("IPv4", Some("default"))
        );
        let of_pod = &slice.endpoints[1];
        assert_eq!(of_pod.node_name.as_deref(), Some("node-b"));
        assert_eq!(of_pod.target_ref.as_ref().map(|target| target.name.as_str()), Some("p"));
    }

    #[test]
    fn subsets_are_put_together_as_the_controller_does() {
        let (slices, _) = mirrored(
            SERVICE,
            endpoints(json!([
                {"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"name": "a", "port": 1}]},
                {"addresses": [{"ip": "10.0.0.2"}], "notReadyAddresses": [{"ip": "10.0.0.1"}],
                 "ports": [{"name": "b", "port": 2}, {"name": "a", "port": 1}]},
                {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "c", "port": 3}]},
            ])),
        );
        // Not ready in one subset is not ready; the same addresses are one slice.
        assert_eq!(
            shown(&slices),
            ["web/IPv4/a:1/TCP,b:2/TCP: 10.0.0.2 10.0.0.1!", "web/IPv4/c:3/TCP: 10.0.0.1"]
        );
    }

    #[test]
    fn a_thousand_addresses_are_mirrored_ready_ones_first() {
        let list = |third: u8| {
            (0..700).map(|i| json!({"ip": format!("10.{third}.{}.{}", i / 256, i % 256)})).collect::<Vec<_>>()
        };
        let subset = json!([{"addresses": list(1), "notReadyAddresses": list(0), "ports": [{"port": 80}]}]);
        let (slices, problems) = mirrored(SERVICE, endpoints(subset));
        let ready =
            slices[0].endpoints.iter().filter(|endpoint| endpoint.conditions.ready == Some(true)).count();
        assert_eq!((slices.len(), slices[0].endpoints.len(), ready), (1, 1000, 700));
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0]
                .starts_with("f.yaml:3: Endpoints default/web: subsets: 1400 addresses have the port 80/TCP"),
            "{problems:?}"
        );
    }

    #[test]
    fn what_the_controller_leaves_alone_is_told() {
        let subsets = json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]);
        let plain = endpoints(subsets);
        let selecting = SERVICE.replace("ports:", "selector: {app: web}, ports:");
        let mut skipped = plain.clone();
        skipped["metadata"]["labels"] = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
        let mut lock = plain.clone();
        lock["metadata"]["annotations"] = json!({"control-plane.alpha.kubernetes.io/leader": "{}"});
        for (service, endpoints, word) in [
            (selecting.as_str(), &plain, "selector"),
            (SERVICE, &skipped, "skip-mirror"),
            (SERVICE, &lock, "leader"),
            ("", &plain, "no Service of its name"),
        ] {
            let (slices, problems) = mirrored(service, endpoints.clone());
            assert_eq!(slices, [], "{word}");
            let [problem] = &problems[..] else { panic!("{word}: {problems:?}") };
            assert!(
                problem.contains("Endpoints default/web: it is not served: ") && problem.contains(word),
                "{problem}"
            );
        }
        // None of these is a reason.
        let empty = SERVICE.replace("ports:", "selector: {}, ports:");
        skipped["metadata"]["labels"] = json!({"endpointslice.kubernetes.io/skip-mirror": "false"});
        assert_eq!(mirrored(&empty, plain).0.len(), 1);
        assert_eq!(mirrored(SERVICE, skipped).0.len(), 1);
    }

    #[test]
    fn an_address_that_is_none_leaves_the_others() {
        let subset =
            json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "web.example"}, {}], "ports": [{"port": 80}]}]);
        let mut object = endpoints(subset);
        object["subsets"][0]["addresses"][2] = json!({"ip": ""});
        let (slices, problems) = mirrored(SERVICE, object);
        assert_eq!(shown(&slices), ["web/IPv4/80/TCP: 10.0.0.1"]);
        let expected = "f.yaml:3: Endpoints default/web: subsets[0].addresses[1].ip: \"web.example\" is not an IP address, and \
                        1 more are none; the others are served, correct it";
        assert_eq!(problems, [expected]);
    }
}
