//! The cluster that is measured: addresses and API objects.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};

use crate::kube::Request;
use lb_lab::NodeId;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// Port of every Service.
const PORT: u16 = 80;
/// Port of every endpoint.
pub const TARGET_PORT: u16 = 8080;
/// Endpoints to a slice, as the controller of kube-controller-manager makes them.
const PER_SLICE: u32 = 100;
/// Addresses of all endpoints, as `ip route` takes it.
pub const ENDPOINTS: &str = "10.128.0.0/12";
/// Addresses of all Services, likewise.
pub const CLUSTER_IPS: &str = "10.96.0.0/16";

const FIRST_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const FIRST_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 0);
/// Endpoints that come later begin here.
const LATER: u32 = 1 << 19;
/// Endpoints of Services that come and go begin here, and their ClusterIPs.
const PASSING: u32 = 3 << 18;
const FIRST_PASSING_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 200, 0);

/// How large the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
}

impl Size {
    /// Whether one Service has very many endpoints.
    pub const fn is_long(self) -> bool {
        self.endpoints > PER_SLICE
    }

    /// The frontends of all Services.
    pub fn frontends(self) -> Vec<SocketAddrV4> {
        (0..self.services).map(|number| SocketAddrV4::new(after(FIRST_CLUSTER_IP, number), PORT)).collect()
    }

    /// The requests that create Services, and those that create their slices.
    pub fn create(self, numbers: std::ops::Range<u32>) -> Vec<Request> {
        let of_one = |number| {
            let service = service(&name(number), after(FIRST_CLUSTER_IP, number));
            let slices = (0..self.endpoints.div_ceil(PER_SLICE)).map(move |index| {
                let name = name(number);
                let slice = slice(&name, &slice_name(&name, index), self.members(number, index, 0));
                Request::create(SLICES, slice)
            });
            std::iter::once(Request::create(SERVICES, service)).chain(slices)
        };
        numbers.flat_map(of_one).collect()
    }

    /// Endpoints of a slice; `turn`: how often all of them were replaced.
    pub fn members(self, number: u32, index: u32, turn: u32) -> Vec<Ipv4Addr> {
        let first = number * self.endpoints + index * PER_SLICE;
        let count = PER_SLICE.min(self.endpoints - index * PER_SLICE);
        let shift = if turn == 0 { 0 } else { LATER + (turn - 1) * PER_SLICE };
        let first = if turn == 0 { first } else { 0 };
        (0..count).map(|member| after(FIRST_ENDPOINT, shift + first + member)).collect()
    }

    /// The request that replaces all endpoints of a slice of the first Service.
    pub fn replace(self, index: u32, turn: u32) -> Request {
        let endpoints = endpoints(&self.members(0, index, turn));
        let path = format!("{SLICES}/{}", slice_name(&name(0), index));
        Request::patch(&path, json!({ "endpoints": endpoints }))
    }

    /// Slices of a Service.
    pub const fn slices(self) -> u32 {
        self.endpoints.div_ceil(PER_SLICE)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = if self.services == 1 { "Service" } else { "Services" };
        write!(f, "{} {services} x {} endpoints", grouped(self.services), grouped(self.endpoints))
    }
}

/// A Service that comes, changes and goes.
#[derive(Clone, Copy, Debug)]
pub struct Passing(pub u32);

impl Passing {
    /// Where it is asked.
    pub fn frontend(self) -> SocketAddrV4 {
        SocketAddrV4::new(after(FIRST_PASSING_IP, self.0), PORT)
    }

    /// Its first endpoint, or the one that takes its place.
    pub fn endpoint(self, turn: u32) -> Ipv4Addr {
        after(FIRST_ENDPOINT, PASSING + 2 * self.0 + turn)
    }

    /// The request that creates the Service.
    pub fn create(self) -> Request {
        Request::create(SERVICES, service(&self.name(), *self.frontend().ip()))
    }

    /// The request that creates its slice with the first endpoint.
    pub fn create_slice(self) -> Request {
        let name = self.name();
        Request::create(SLICES, slice(&name, &slice_name(&name, 0), vec![self.endpoint(0)]))
    }

    /// The request that makes these its endpoints.
    pub fn change(self, members: &[Ipv4Addr]) -> Request {
        let path = format!("{SLICES}/{}", slice_name(&self.name(), 0));
        Request::patch(&path, json!({ "endpoints": endpoints(members) }))
    }

    /// The requests that delete both.
    pub fn delete(self) -> [Request; 2] {
        let name = self.name();
        [format!("{SERVICES}/{name}"), format!("{SLICES}/{}", slice_name(&name, 0))]
            .map(|path| Request::delete(&path))
    }

    fn name(self) -> String {
        format!("passing-{:05}", self.0)
    }
}

/// With a space before the thousands.
fn grouped(number: u32) -> String {
    if number < 1000 { number.to_string() } else { format!("{} {:03}", number / 1000, number % 1000) }
}

fn after(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + number)
}

fn name(number: u32) -> String {
    format!("service-{number:05}")
}

fn slice_name(service: &str, index: u32) -> String {
    format!("{service}-{index:03}")
}

fn service(name: &str, cluster_ip: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "ports": [{ "name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT }],
        },
    })
}

fn slice(service: &str, name: &str, members: Vec<Ipv4Addr>) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "protocol": "TCP", "port": TARGET_PORT }],
        "endpoints": endpoints(&members),
    })
}

fn endpoints(members: &[Ipv4Addr]) -> Vec<Value> {
    let node = NodeId::A.name();
    let endpoint = |address: &Ipv4Addr| {
        json!({
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": node,
            // Where clients of v1beta1 look for the node.
            "topology": { "kubernetes.io/hostname": node },
            "targetRef": { "kind": "Pod", "namespace": "default", "name": format!("pod-{:08x}", u32::from(*address)) },
        })
    };
    members.iter().map(endpoint).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_endpoints_share_an_address() {
        let (wide, long) =
            (Size { services: 10_000, endpoints: 10 }, Size { services: 1, endpoints: 10_000 });
        let mut seen: BTreeSet<_> =
            (0..wide.services).flat_map(|number| wide.members(number, 0, 0)).collect();
        assert_eq!(seen.len(), 100_000);
        seen.extend((1..1000).flat_map(|turn| long.members(0, turn % long.slices(), turn)));
        assert_eq!(seen.len(), 199_900);
        seen.extend((0..5000).flat_map(|number| [0, 1].map(|turn| Passing(number).endpoint(turn))));
        assert_eq!(seen.len(), 209_900);
        // Of ENDPOINTS.
        assert!(seen.iter().all(|address| u32::from(*address) >> 20 == u32::from(FIRST_ENDPOINT) >> 20));
    }

    #[test]
    fn every_service_has_its_slices() {
        let long = Size { services: 1, endpoints: 10_000 };
        assert_eq!((long.create(0..1).len(), long.slices()), (101, 100));
        let wide = Size { services: 3, endpoints: 10 };
        assert_eq!(wide.create(1..3).len(), 4);
        assert_eq!(wide.frontends().last().unwrap().to_string(), "10.96.1.2:80");
        assert_eq!(long.to_string(), "1 Service x 10 000 endpoints");
    }
}
