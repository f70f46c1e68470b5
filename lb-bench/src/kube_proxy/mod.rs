//! kube-proxy's rules for Services as text, to measure netfilter with: the layouts of its iptables mode (since 1.23) and
//! of its nftables mode.

mod iptables;
mod nftables;

pub use iptables::iptables;
pub use nftables::nftables;

use std::net::Ipv4Addr;

/// kube-proxy's default, bit 14: what has it is masqueraded.
const MARK: &str = "0x4000";

/// A port of a Service, with one address of each kind at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The Service's name.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Its ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// The port at ClusterIP and external address.
    pub port: u16,
    /// An address that clients outside use.
    pub external_ip: Option<Ipv4Addr>,
    /// Its nodePort.
    pub node_port: Option<u16>,
    /// Its pods.
    pub endpoints: Vec<Ipv4Addr>,
    /// The port of the pods.
    pub target_port: u16,
}

/// What kube-proxy knows of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The range of all pods, as `10.244.0.0/16`: what comes to a ClusterIP from elsewhere is masqueraded. If it was not
    /// told, all keep their address there.
    pub cluster_cidr: Option<String>,
    /// The addresses that have the nodePorts.
    pub addresses: Vec<Ipv4Addr>,
}

impl ServicePort {
    /// Whether clients outside have a way to it.
    fn is_external(&self) -> bool {
        self.external_ip.is_some() || self.node_port.is_some()
    }

    /// Sixteen letters, as kube-proxy's hashes have, for the Service's own chains.
    fn hash(&self) -> String {
        hash(&format!("{} {}", self.name, self.protocol))
    }

    /// The same for an endpoint's chain.
    fn endpoint_hash(&self, endpoint: Ipv4Addr) -> String {
        hash(&format!("{} {} {endpoint}", self.name, self.protocol))
    }
}

fn hash(text: &str) -> String {
    // FNV-1a: any would do.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (0..16).map(|index| char::from(b'A' + ((hash >> (4 * index)) & 15) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(number: u8, endpoints: u8) -> ServicePort {
        ServicePort {
            name: format!("service-{number}"),
            protocol: "tcp",
            cluster_ip: Ipv4Addr::new(10, 96, 1, number),
            port: 80,
            external_ip: None,
            node_port: None,
            endpoints: (0..endpoints).map(|n| Ipv4Addr::new(10, 244, number, n)).collect(),
            target_port: 8080,
        }
    }

    fn services() -> Vec<ServicePort> {
        let outside = Ipv4Addr::new(198, 51, 100, 1);
        let external = ServicePort { external_ip: Some(outside), ..service(201, 100) };
        let both = ServicePort { protocol: "udp", node_port: Some(30_080), ..external.clone() };
        (1..=200).map(|number| service(number, 1)).chain([external, both]).collect()
    }

    fn count(text: &str, part: &str) -> usize {
        text.matches(part).count()
    }

    #[test]
    fn iptables_has_every_way_to_every_endpoint() {
        let text = iptables(&services(), &Node::default());
        // Each from its ClusterIP, two from their external chains as well.
        assert_eq!(count(&text, "-j KUBE-SVC-"), 202 + 2);
        // Two external addresses and a nodePort.
        assert_eq!(count(&text, "-j KUBE-EXT-"), 2 + 1);
        assert_eq!(count(&text, "-j DNAT"), 200 + 200);
        assert_eq!(count(&text, "--mode random"), 2 * 99);
        assert_eq!(count(&text, " ! -s "), 0);
        let fronts: Vec<_> = text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES")).collect();
        assert_eq!(fronts.len(), 202 + 2 + 1);
        assert!(fronts[202].contains("-d 10.96.1.201/32 -p udp"), "in the order they were given");
        assert!(fronts[204].ends_with("-j KUBE-NODEPORTS"), "nodePorts come last");
        assert!(text.lines().filter(|line| line.starts_with(":KUBE-")).all(|line| line.len() < 29 + 9));
    }

    #[test]
    fn nftables_has_every_way_to_every_endpoint() {
        let node = Node { addresses: vec![Ipv4Addr::new(192, 0, 2, 1)], ..Node::default() };
        let texts = nftables(&services(), &node);
        assert_eq!(texts.len(), 1 + 1, "in portions");
        let text = texts.concat();
        assert_eq!(count(&text, "dnat to"), 200 + 200);
        assert_eq!(count(&text, "numgen random mod 100 vmap"), 2);
        assert_eq!(count(&text, " . 80 : goto service-"), 202);
        assert_eq!(count(&text, " . 80 : goto external-"), 2);
        assert_eq!(count(&text, "udp . 30080 : goto external-"), 1);
        assert_eq!(count(&text, "elements = { 192.0.2.1 }"), 1);
        assert_eq!(count(&text, "ip saddr != "), 0);
    }

    #[test]
    fn who_comes_from_outside_the_range_of_pods_is_masqueraded_at_a_cluster_ip() {
        let node = Node { cluster_cidr: Some("10.244.0.0/16".into()), addresses: Vec::new() };
        let text = iptables(&services(), &node);
        assert_eq!(count(&text, " ! -s 10.244.0.0/16 "), 202);
        let text = nftables(&services(), &node).concat();
        assert_eq!(count(&text, "ip saddr != 10.244.0.0/16 jump mark-for-masquerade"), 202);
        assert_eq!(count(&text, "elements = "), 0);
    }
}
