//! The layout of nftables mode: maps of verdicts, a chain a Service, a chain an endpoint.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::{MARK, Node, ServicePort};

/// Services that go to nft(8) in one transaction: the kernel's work for one grows with its square, and with what is there.
const PORTION: usize = 1000;

/// For `nft -f`, one text after the other.
pub fn nftables(services: &[ServicePort], node: &Node) -> Vec<String> {
    let mut texts = vec![base(node)];
    texts.extend(services.chunks(PORTION).map(|portion| {
        let mut text = Portion::default();
        for service in portion {
            // (Writing to a string cannot fail.)
            let _ = text.add(service, node);
        }
        text.finish()
    }));
    texts
}

/// Chains, and the elements of maps and sets that lead to them.
#[derive(Default)]
struct Portion {
    chains: String,
    services: Vec<String>,
    node_ports: Vec<String>,
    cluster_ips: Vec<Ipv4Addr>,
}

impl Portion {
    fn add(&mut self, service: &ServicePort, node: &Node) -> std::fmt::Result {
        let ServicePort { name, protocol, cluster_ip, port, target_port, endpoints, .. } = service;
        let chain = format!("{}-default/{name}/{protocol}/p{port}", &service.hash()[..8]);
        let chains = &mut self.chains;
        let mut verdicts = Vec::new();
        for (index, address) in endpoints.iter().enumerate() {
            let id = &service.endpoint_hash(*address)[..8];
            let endpoint =
                format!("endpoint-{id}-default/{name}/{protocol}/p{port}__{address}/{target_port}");
            write!(
                chains,
                "chain {endpoint} {{\n\
                 ip saddr {address} jump mark-for-masquerade\n\
                 meta l4proto {protocol} dnat to {address}:{target_port}\n\
                 }}\n"
            )?;
            verdicts.push(format!("{index} : goto {endpoint}"));
        }
        writeln!(chains, "chain service-{chain} {{")?;
        if let Some(pods) = &node.cluster_cidr {
            let aim = format!("ip daddr {cluster_ip} {protocol} dport {port}");
            writeln!(chains, "{aim} ip saddr != {pods} jump mark-for-masquerade")?;
        }
        let (count, verdicts) = (endpoints.len(), verdicts.join(", "));
        writeln!(chains, "numgen random mod {count} vmap {{ {verdicts} }}\n}}")?;
        if service.is_external() {
            writeln!(
                chains,
                "chain external-{chain} {{\njump mark-for-masquerade\ngoto service-{chain}\n}}"
            )?;
        }
        self.services.push(format!("{cluster_ip} . {protocol} . {port} : goto service-{chain}"));
        if let Some(address) = service.external_ip {
            self.services.push(format!("{address} . {protocol} . {port} : goto external-{chain}"));
        }
        if let Some(port) = service.node_port {
            self.node_ports.push(format!("{protocol} . {port} : goto external-{chain}"));
        }
        self.cluster_ips.push(*cluster_ip);
        Ok(())
    }

    fn finish(self) -> String {
        let cluster_ips = self.cluster_ips.iter().map(ToString::to_string).collect();
        let elements = [
            ("service-ips", self.services),
            ("service-nodeports", self.node_ports),
            ("cluster-ips", cluster_ips),
        ];
        let mut text = format!("table ip kube-proxy {{\n{}}}\n", self.chains);
        for (name, elements) in elements.iter().filter(|(_, elements)| !elements.is_empty()) {
            text += &format!("add element ip kube-proxy {name} {{ {} }}\n", elements.join(", "));
        }
        text
    }
}

/// What is there without any Service.
fn base(node: &Node) -> String {
    let of_address = "type ipv4_addr . inet_proto . inet_service : verdict";
    let of_port = "type inet_proto . inet_service : verdict";
    let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
    let addresses = match addresses.as_slice() {
        [] => String::new(),
        some => format!("elements = {{ {} }};", some.join(", ")),
    };
    format!(
        "table ip kube-proxy {{\n\
         set cluster-ips {{ type ipv4_addr; }}\n\
         set nodeport-ips {{ type ipv4_addr; {addresses} }}\n\
         map no-endpoint-services {{ {of_address}; }}\n\
         map no-endpoint-nodeports {{ {of_port}; }}\n\
         map firewall-ips {{ {of_address}; }}\n\
         map service-ips {{ {of_address}; }}\n\
         map service-nodeports {{ {of_port}; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark or {MARK}; }}\n\
         chain services {{\n\
         ip daddr . meta l4proto . th dport vmap @service-ips\n\
         ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n\
         }}\n\
         chain masquerading {{\n\
         meta mark & {MARK} == 0 return\n\
         meta mark set meta mark ^ {MARK}\n\
         masquerade fully-random\n\
         }}\n\
         chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}\n\
         chain nodeport-endpoints-check {{ ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}\n\
         chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}\n\
         chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}\n\
         chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}\n\
         chain filter-output-pre-dnat {{ type filter hook output priority -110; ct state new jump firewall-check; }}\n\
         chain filter-input {{\n\
         type filter hook input priority 0;\n\
         ct state new jump nodeport-endpoints-check\n\
         ct state new jump service-endpoints-check\n\
         }}\n\
         chain filter-forward {{\n\
         type filter hook forward priority 0;\n\
         ct state new jump service-endpoints-check\n\
         ct state new jump cluster-ips-check\n\
         }}\n\
         chain filter-output {{\n\
         type filter hook output priority 0;\n\
         ct state new jump service-endpoints-check\n\
         ct state new jump cluster-ips-check\n\
         }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}\n\
         }}\n"
    )
}
