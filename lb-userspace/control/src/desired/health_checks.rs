//! What the `healthCheckNodePort` of a Service answers on this node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Service, Slice};

/// The health check of one Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Endpoints of this node that are Ready, in the family that has more of them: a pod with an address
    /// of each counts once.
    pub local_ready: u32,
    /// `metadata.creationTimestamp`, in seconds; decides who keeps a contested port.
    pub created: Option<i64>,
}

/// The health check of `service`, when it has one.
pub fn health_check<'a>(service: &Service, slices: impl Iterator<Item = &'a Slice>) -> Option<HealthCheck> {
    let port = service.health_check_node_port?.get();
    let mut ready: BTreeSet<IpAddr> = BTreeSet::new();
    for slice in slices.filter(|slice| !slice.ports.is_empty()) {
        let local = slice.endpoints.iter().filter(|endpoint| endpoint.local && endpoint.conditions.ready);
        ready.extend(local.map(|endpoint| endpoint.address));
    }
    let v4 = ready.iter().filter(|address| address.is_ipv4()).count();
    let local_ready = u32::try_from(v4.max(ready.len() - v4)).unwrap_or(u32::MAX);
    Some(HealthCheck { port, local_ready, created: service.created })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::convert;
    use crate::source::Object;
    use crate::source::objects::{endpoint, service, slice, stopping};

    fn check(spec: Value, slices: &[Object]) -> Option<HealthCheck> {
        let object = service("web", "10.96.0.10", spec);
        let Object::Service(read) = &object else { panic!("a Service") };
        let read = convert::service(read, &object.reference(), None).0.expect("served");
        let slices: Vec<Slice> = slices
            .iter()
            .filter_map(|object| {
                let Object::EndpointSlice(slice) = object else { panic!("a slice") };
                convert::endpoint_slice(slice, &object.reference(), "node-a", None).0
            })
            .collect();
        health_check(&read, slices.iter())
    }

    #[test]
    fn ready_endpoints_of_this_node_count_once() {
        let spec = json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000
        });
        let count =
            |slices: &[Object]| check(spec.clone(), slices).map(|check| (check.port, check.local_ready));
        let (a, b) = ("node-a", "node-b");
        assert_eq!(count(&[]), Some((32_000, 0)));
        let mixed = [
            endpoint("10.1.0.1", a),
            endpoint("10.1.0.2", a),
            endpoint("10.1.0.3", b),
            stopping("10.1.0.4", a, true),
            json!({"addresses": ["10.1.0.5"], "nodeName": a, "conditions": {"ready": false}}),
        ];
        assert_eq!(count(&[slice("web-1", "web", &mixed)]), Some((32_000, 2)));
        let twice = [slice("web-1", "web", &mixed), slice("web-2", "web", &[endpoint("10.1.0.1", a)])];
        assert_eq!(count(&twice), Some((32_000, 2)), "one address in two slices");
        assert_eq!(check(json!({}), &twice), None, "no load balancer asks");
    }
}
