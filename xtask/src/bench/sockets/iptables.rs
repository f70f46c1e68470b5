//! kube-proxy's iptables layout as text for `iptables-restore`.

use std::fmt::Write;

use super::services::Entry;

/// The chains of the `nat` and `filter` tables as kube-proxy 1.20 writes them, with the Services in the given order.
pub fn rules(entries: &[Entry], cluster_cidr: &str) -> String {
    let (mut chains, mut services, mut node_ports, mut endpoints) =
        (String::new(), String::new(), String::new(), String::new());
    for (number, entry) in entries.iter().enumerate() {
        for protocol in entry.protocols() {
            let id = format!("{}{number:012}", &protocol[..1].to_uppercase());
            let (service, endpoint) = (format!("KUBE-SVC-{id}"), format!("KUBE-SEP-{id}"));
            let comment = format!("-m comment --comment \"default/{}:{protocol}\"", entry.name);
            let (ip, port, to) = (entry.cluster_ip, entry.port, entry.endpoint);
            let _ = write!(chains, ":{service} - [0:0]\n:{endpoint} - [0:0]\n");
            let _ = write!(
                services,
                "-A KUBE-SERVICES ! -s {cluster_cidr} -d {ip}/32 -p {protocol} {comment} -m {protocol} --dport {port} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SERVICES -d {ip}/32 -p {protocol} {comment} -m {protocol} --dport {port} -j {service}\n"
            );
            if let Some(node_port) = entry.node_port {
                let _ = write!(
                    node_ports,
                    "-A KUBE-NODEPORTS -p {protocol} {comment} -m {protocol} --dport {node_port} -j KUBE-MARK-MASQ\n\
                     -A KUBE-NODEPORTS -p {protocol} {comment} -m {protocol} --dport {node_port} -j {service}\n"
                );
            }
            let _ = write!(
                endpoints,
                "-A {service} {comment} -j {endpoint}\n\
                 -A {endpoint} -s {to}/32 {comment} -j KUBE-MARK-MASQ\n\
                 -A {endpoint} -p {protocol} {comment} -m {protocol} -j DNAT --to-destination {to}:{port}\n"
            );
        }
    }
    format!("{FILTER}{NAT_CHAINS}{chains}{NAT_RULES}{services}{LAST_SERVICE}{node_ports}{endpoints}COMMIT\n")
}

const FILTER: &str = r#"*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack pod source rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

const NAT_CHAINS: &str = "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
";

const NAT_RULES: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
"#;

const LAST_SERVICE: &str = r#"-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
"#;

#[cfg(test)]
mod tests {
    use super::super::services;
    use super::*;
    use crate::lab::NodeId;
    use std::net::Ipv4Addr;

    #[test]
    fn the_service_that_is_asked_is_the_last_before_the_node_ports() {
        let asked = [services::Entry::asked("near", NodeId::A, Ipv4Addr::new(10, 244, 1, 3))];
        let text = rules(&services::all(&asked, 3), "10.244.0.0/16");
        let of_services: Vec<_> = text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES")).collect();
        // Two for TCP alone, two for both protocols of the last one, and the nodePorts.
        assert_eq!(of_services.len(), 2 * 2 + 2 * 2 + 1);
        assert!(of_services[7].contains("-d 10.96.255.10/32") && of_services[8].ends_with("KUBE-NODEPORTS"));
        assert!(text.lines().all(|line| !line.contains("KUBE-SVC-") || line.len() < 250));
    }
}
