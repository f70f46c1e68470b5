//! kube-proxy's nftables layout as text for `nft -f`.

use std::fmt::Write;

use super::services::Entry;

/// The table of kube-proxy's nftables mode: maps of verdicts, a chain a Service, a chain an endpoint.
pub fn rules(entries: &[Entry], cluster_cidr: &str) -> String {
    let (mut chains, mut ips, mut node_ports) = (String::new(), Vec::new(), Vec::new());
    for (number, entry) in entries.iter().enumerate() {
        for protocol in entry.protocols() {
            let (ip, port, to) = (entry.cluster_ip, entry.port, entry.endpoint);
            let name = format!("{number:08X}-default/{}/{protocol}/", entry.name);
            let (service, external, endpoint) = (
                format!("service-{name}"),
                format!("external-{name}"),
                format!("endpoint-{name}_{to}/{port}"),
            );
            let _ = write!(
                chains,
                "  chain {endpoint} {{\n    ip saddr {to} jump mark-for-masquerade\n    \
                 meta l4proto {protocol} dnat to {to}:{port}\n  }}\n  \
                 chain {service} {{\n    ip daddr {ip} {protocol} dport {port} ip saddr != {cluster_cidr} jump mark-for-masquerade\n    \
                 numgen random mod 1 vmap {{ 0 : goto {endpoint} }}\n  }}\n"
            );
            ips.push(format!("{ip} . {protocol} . {port} : goto {service}"));
            if let Some(node_port) = entry.node_port {
                let _ = write!(
                    chains,
                    "  chain {external} {{\n    jump mark-for-masquerade\n    goto {service}\n  }}\n"
                );
                node_ports.push(format!("{protocol} . {node_port} : goto {external}"));
            }
        }
    }
    let elements = |list: &[String]| match list {
        [] => String::new(),
        list => format!("    elements = {{\n      {}\n    }}\n", list.join(",\n      ")),
    };
    format!(
        "table ip kube-proxy {{\n  map service-ips {{\n    type ipv4_addr . inet_proto . inet_service : verdict\n{}  }}\n  \
         map service-nodeports {{\n    type inet_proto . inet_service : verdict\n{}  }}\n\
         {EMPTY}{chains}{RULES}}}\n",
        elements(&ips),
        elements(&node_ports)
    )
}

const EMPTY: &str = "\
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
        let text = rules(&services::all(&asked, 3), "10.244.0.0/16");
        assert_eq!(text.matches(" : goto service-").count(), 2 + 2);
        assert_eq!(text.matches(" : goto external-").count(), 2);
        assert!(text.contains("10.96.255.10 . udp . 7100 : goto service-00000002-default/near/udp/"));
    }
}
