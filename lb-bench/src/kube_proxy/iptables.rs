//! The layout of iptables mode.

use std::fmt::Write as _;

use super::{MARK, Node, ServicePort};

/// For `iptables-restore`, with the Services in the given order.
pub fn iptables(services: &[ServicePort], node: &Node) -> String {
    let mut text = Tables::default();
    for service in services {
        // (Writing to a string cannot fail.)
        let _ = text.add(service, node);
    }
    let Tables { chains, services, node_ports, rules } = text;
    format!(
        "*filter\n\
         :KUBE-EXTERNAL-SERVICES - [0:0]\n\
         :KUBE-FIREWALL - [0:0]\n\
         :KUBE-FORWARD - [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n\
         :KUBE-PROXY-FIREWALL - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A INPUT -j KUBE-FIREWALL\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-FIREWALL\n\
         -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark {MARK}/{MARK} -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n\
         *nat\n\
         :KUBE-SERVICES - [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {rules}{node_ports}{services}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         COMMIT\n"
    )
}

/// Lines of the table `nat`.
#[derive(Default)]
struct Tables {
    chains: String,
    services: String,
    node_ports: String,
    rules: String,
}

impl Tables {
    fn add(&mut self, service: &ServicePort, node: &Node) -> std::fmt::Result {
        let ServicePort { name, protocol, cluster_ip, port, target_port, endpoints, .. } = service;
        let id = service.hash();
        let comment = |what: &str| format!("-m comment --comment \"default/{name} {what}\"");
        let aim = |address| format!("-d {address}/32 -p {protocol} -m {protocol} --dport {port}");
        writeln!(self.chains, ":KUBE-SVC-{id} - [0:0]")?;
        let words = comment("cluster IP");
        writeln!(self.services, "-A KUBE-SERVICES {} {words} -j KUBE-SVC-{id}", aim(*cluster_ip))?;
        if let Some(pods) = &node.cluster_cidr {
            let aim = aim(*cluster_ip);
            writeln!(self.rules, "-A KUBE-SVC-{id} ! -s {pods} {aim} {words} -j KUBE-MARK-MASQ")?;
        }
        if service.is_external() {
            writeln!(self.chains, ":KUBE-EXT-{id} - [0:0]")?;
            writeln!(self.rules, "-A KUBE-EXT-{id} {} -j KUBE-MARK-MASQ", comment("external"))?;
            writeln!(self.rules, "-A KUBE-EXT-{id} -j KUBE-SVC-{id}")?;
        }
        if let Some(address) = service.external_ip {
            let words = comment("external IP");
            writeln!(self.services, "-A KUBE-SERVICES {} {words} -j KUBE-EXT-{id}", aim(address))?;
        }
        if let Some(port) = service.node_port {
            let aim = format!("-p {protocol} {} -m {protocol} --dport {port}", comment("node port"));
            writeln!(self.node_ports, "-A KUBE-NODEPORTS {aim} -j KUBE-EXT-{id}")?;
        }
        for (index, address) in endpoints.iter().enumerate() {
            let endpoint = service.endpoint_hash(*address);
            let chance = match endpoints.len() - index {
                1 => String::new(),
                left => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
            };
            let (to, words) = (comment(&format!("-> {address}:{target_port}")), comment(""));
            writeln!(self.chains, ":KUBE-SEP-{endpoint} - [0:0]")?;
            writeln!(self.rules, "-A KUBE-SVC-{id} {to}{chance} -j KUBE-SEP-{endpoint}")?;
            writeln!(
                self.rules,
                "-A KUBE-SEP-{endpoint} -s {address}/32 {words} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{endpoint} -p {protocol} {words} -m {protocol} -j DNAT --to-destination {address}:{target_port}"
            )?;
        }
        Ok(())
    }
}
