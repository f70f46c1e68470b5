//! kube-proxy's nftables layout as text for `nft -f`.

use std::fmt::Write;

use super::services::Entry;

/// How many Services are loaded at a time: `nft` and the kernel take time by the square of it.
const AT_A_TIME: usize = 1000;

/// The table of kube-proxy's nftables mode: maps of verdicts, a chain a Service, a chain an endpoint. To be loaded part by
/// part.
pub fn parts(entries: &[Entry], cluster_cidr: &str) -> Vec<String> {
    let mut parts = vec![format!("table ip kube-proxy {{\n{EMPTY}}}\n")];
    let (mut ips, mut node_ports) = (Vec::new(), Vec::new());
    for (at, some) in entries.chunks(AT_A_TIME).enumerate() {
        let mut chains = String::new();
        for (number, entry) in some.iter().enumerate() {
            let number = at * AT_A_TIME + number;
            for protocol in entry.protocols() {
                let (ip, port) = (entry.cluster_ip, entry.port);
                let service = format!("{number:08X}-default/{}/{protocol}/", entry.name);
                chains += &chains_of(entry, protocol, &service, cluster_cidr);
                ips.push(format!("{ip} . {protocol} . {port} : goto service-{service}"));
                if let Some(node_port) = entry.node_port {
                    node_ports.push(format!("{protocol} . {node_port} : goto external-{service}"));
                }
            }
        }
        parts.push(format!("table ip kube-proxy {{\n{chains}}}\n"));
    }
    let mut last = String::new();
    for (map, elements) in [("service-ips", ips), ("service-nodeports", node_ports)] {
        if !elements.is_empty() {
            let _ = writeln!(last, "add element ip kube-proxy {map} {{ {} }}", elements.join(", "));
        }
    }
    parts.push(format!("{last}table ip kube-proxy {{\n{RULES}}}\n"));
    parts
}

fn chains_of(entry: &Entry, protocol: &str, service: &str, cluster_cidr: &str) -> String {
    let (ip, port, to) = (entry.cluster_ip, entry.port, entry.endpoint);
    let endpoint = format!("endpoint-{service}_{to}/{port}");
    let mut text = format!(
        "  chain {endpoint} {{\n    ip saddr {to} jump mark-for-masquerade\n    \
         meta l4proto {protocol} dnat to {to}:{port}\n  }}\n  \
         chain service-{service} {{\n    \
         ip daddr {ip} {protocol} dport {port} ip saddr != {cluster_cidr} jump mark-for-masquerade\n    \
         numgen random mod 1 vmap {{ 0 : goto {endpoint} }}\n  }}\n"
    );
    if entry.node_port.is_some() {
        let _ = writeln!(text, "  chain external-{service} {{");
        let _ = writeln!(text, "    jump mark-for-masquerade\n    goto service-{service}\n  }}");
    }
    text
}

const EMPTY: &str = "\
  map service-ips {
    type ipv4_addr . inet_proto . inet_service : verdict
  }
  map service-nodeports {
    type inet_proto . inet_service : verdict
  }
  map firewall-ips {
    type ipv4_addr . inet_proto . inet_service : verdict
  }
  map no-endpoint-services {
    type ipv4_addr . inet_proto . inet_service : verdict
  }
  map no-endpoint-nodeports {
    type inet_proto . inet_service : verdict
  }
  set nodeport-ips {
    type ipv4_addr
    elements = { 192.168.240.11, 192.168.240.12 }
  }
  set cluster-ips {
    type ipv4_addr
  }
  chain mark-for-masquerade {
    mark set mark or 0x4000
  }
";

const RULES: &str = "\
  chain masquerading {
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
  chain firewall-check {
    ip daddr . meta l4proto . th dport vmap @firewall-ips
  }
  chain service-endpoints-check {
    ip daddr . meta l4proto . th dport vmap @no-endpoint-services
  }
  chain nodeport-endpoints-check {
    ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
  }
  chain cluster-ips-check {
    ip daddr @cluster-ips reject
  }
  chain filter-prerouting-pre-dnat {
    type filter hook prerouting priority -110; policy accept;
    ct state new jump firewall-check
  }
  chain filter-input {
    type filter hook input priority 0; policy accept;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-forward {
    type filter hook forward priority 0; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-output-pre-dnat {
    type filter hook output priority -110; policy accept;
    ct state new jump firewall-check
  }
  chain filter-output {
    type filter hook output priority 0; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain nat-prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }
  chain nat-output {
    type nat hook output priority -100; policy accept;
    jump services
  }
  chain nat-postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    jump masquerading
  }
";

#[cfg(test)]
mod tests {
    use super::super::services;
    use super::*;
    use crate::lab::NodeId;
    use std::net::Ipv4Addr;

    #[test]
    fn each_service_port_is_an_element_that_leads_to_its_chain() {
        let asked = [services::Entry::asked("near", NodeId::A, Ipv4Addr::new(10, 244, 1, 3))];
        let text = parts(&services::all(&asked, 3), "10.244.0.0/16").concat();
        assert_eq!(text.matches(" : goto service-").count(), 2 + 2);
        assert_eq!(text.matches(" : goto external-").count(), 2);
        assert!(text.contains("10.96.255.10 . udp . 7100 : goto service-00000002-default/near/udp/"));
    }
}
