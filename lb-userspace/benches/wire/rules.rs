//! Services, and kube-proxy's rules for them: the layouts of its iptables mode (since 1.23) and of its nftables mode.
//!
//! No range of pods is told, so what aims at a ClusterIP keeps its address; what aims at an external address is masqueraded.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::case::Aim;

/// Backends of the Service that packets aim at.
pub const BACKENDS: u8 = 100;
/// The port of all backends.
pub const BACKEND_PORT: u16 = 8080;
/// The node's own address.
pub const NODE: &str = "192.0.2.1";
/// kube-proxy's default: bit 14.
const MARK: &str = "0x4000";

/// A Service that kube-proxy has rules for.
pub struct Service {
    /// Its name.
    pub name: String,
    /// `udp` or `tcp`.
    pub proto: &'static str,
    /// Its ClusterIP, port 80.
    pub address: Ipv4Addr,
    /// An address that clients outside use.
    pub external: Option<Ipv4Addr>,
    /// Its pods.
    pub backends: Vec<Ipv4Addr>,
}

/// So many Services, those that packets aim at last: one, when there is but one.
pub fn services(count: u32) -> Vec<Service> {
    let mut measured = vec![measured(Aim::Here, "tcp"), measured(Aim::Here, "udp")];
    if count == 1 {
        measured.remove(0);
    }
    (measured.len() as u32..count).map(filler).chain(measured).collect()
}

/// The Service with a hundred pods behind an external address.
pub fn measured(aim: Aim, proto: &'static str) -> Service {
    let number = aim.destination().0.octets()[3];
    let address = match (aim, proto) {
        (Aim::Here, "udp") => Aim::Inside.destination().0,
        (_, "udp") => Ipv4Addr::new(10, 96, 0, number),
        _ => Ipv4Addr::new(10, 96, 0, 100 + number),
    };
    Service {
        name: format!("measured-{number}-{proto}"),
        proto,
        address,
        external: Some(aim.destination().0),
        backends: backends(aim),
    }
}

/// The pods behind it.
pub fn backends(aim: Aim) -> Vec<Ipv4Addr> {
    let [a, b, c, _] = aim.backends().octets();
    (0..BACKENDS).map(|n| Ipv4Addr::new(a, b, c, 101 + n)).collect()
}

/// One of those that no packet aims at: TCP, with one pod.
pub fn filler(number: u32) -> Service {
    let [high, low] = [(number / 250) as u8, (number % 250) as u8];
    Service {
        name: format!("filler-{number}"),
        proto: "tcp",
        address: Ipv4Addr::new(10, 96, 1 + high, 1 + low),
        external: None,
        backends: vec![Ipv4Addr::new(10, 245, high, 1 + low)],
    }
}

/// Sixteen letters, as kube-proxy's hashes have.
fn hash(text: &str) -> String {
    // FNV-1a: any would do.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (0..16).map(|index| char::from(b'A' + ((hash >> (4 * index)) & 15) as u8)).collect()
}

/// For `iptables-restore`.
pub fn iptables(services: &[Service]) -> String {
    let mut chains = String::new();
    let (mut fronts, mut rules) = (String::new(), String::new());
    for service in services {
        let Service { name, proto, address, external, backends } = service;
        let id = hash(name);
        let comment = |what: &str| format!("-m comment --comment \"default/{name} {what}\"");
        // (Writing to a string cannot fail.)
        let _ = writeln!(chains, ":KUBE-SVC-{id} - [0:0]");
        let aim = |address| format!("-d {address}/32 -p {proto} -m {proto} --dport 80");
        let _ =
            writeln!(fronts, "-A KUBE-SERVICES {} {} -j KUBE-SVC-{id}", aim(*address), comment("cluster IP"));
        if let Some(external) = external {
            let _ = writeln!(chains, ":KUBE-EXT-{id} - [0:0]");
            let _ = writeln!(
                fronts,
                "-A KUBE-SERVICES {} {} -j KUBE-EXT-{id}",
                aim(*external),
                comment("external IP")
            );
            let _ = writeln!(rules, "-A KUBE-EXT-{id} {} -j KUBE-MARK-MASQ", comment("external"));
            let _ = writeln!(rules, "-A KUBE-EXT-{id} -j KUBE-SVC-{id}");
        }
        for (index, backend) in backends.iter().enumerate() {
            let endpoint = hash(&format!("{name} {backend}"));
            let left = backends.len() - index;
            let chance = match left {
                1 => String::new(),
                left => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
            };
            let to = comment(&format!("-> {backend}:{BACKEND_PORT}"));
            let _ = writeln!(chains, ":KUBE-SEP-{endpoint} - [0:0]");
            let _ = writeln!(rules, "-A KUBE-SVC-{id} {to}{chance} -j KUBE-SEP-{endpoint}");
            let _ = writeln!(
                rules,
                "-A KUBE-SEP-{endpoint} -s {backend}/32 {} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{endpoint} -p {proto} {} -m {proto} -j DNAT --to-destination {backend}:{BACKEND_PORT}",
                comment(""),
                comment("")
            );
        }
    }
    format!(
        "*filter\n\
         :KUBE-FORWARD - [0:0]\n\
         :KUBE-PROXY-FIREWALL - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n\
         :KUBE-EXTERNAL-SERVICES - [0:0]\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
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
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {rules}{fronts}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         COMMIT\n"
    )
}

/// Services that go to nft(8) in one transaction: the kernel's work for one grows with its square.
const PORTION: usize = 250;

/// For `nft -f`, one text after the other.
pub fn nftables(services: &[Service]) -> Vec<String> {
    let mut texts = vec![nftables_base()];
    for portion in services.chunks(PORTION) {
        let (mut chains, mut elements, mut cluster_ips) = (String::new(), Vec::new(), Vec::new());
        for service in portion {
            cluster_ips.push(service.address.to_string());
            nftables_service(service, &mut chains, &mut elements);
        }
        let (elements, cluster_ips) = (elements.join(", "), cluster_ips.join(", "));
        texts.push(format!(
            "table ip kube-proxy {{\n{chains}}}\n\
             add element ip kube-proxy service-ips {{ {elements} }}\n\
             add element ip kube-proxy cluster-ips {{ {cluster_ips} }}\n"
        ));
    }
    texts
}

/// The chains of a Service, and its elements of the map that leads to them.
fn nftables_service(service: &Service, chains: &mut String, elements: &mut Vec<String>) {
    let Service { name, proto, address, external, backends } = service;
    let chain = format!("service-{}-default/{name}/{proto}/p80", &hash(name)[..8]);
    elements.push(format!("{address} . {proto} . 80 : goto {chain}"));
    let mut verdicts = Vec::new();
    for (index, backend) in backends.iter().enumerate() {
        let endpoint = format!(
            "endpoint-{}-default/{name}/{proto}/p80__{backend}/{BACKEND_PORT}",
            &hash(&format!("{name} {backend}"))[..8]
        );
        let _ = write!(
            chains,
            "chain {endpoint} {{\n\
             ip saddr {backend} jump mark-for-masquerade\n\
             meta l4proto {proto} dnat to {backend}:{BACKEND_PORT}\n\
             }}\n"
        );
        verdicts.push(format!("{index} : goto {endpoint}"));
    }
    let (count, verdicts) = (backends.len(), verdicts.join(", "));
    let _ = writeln!(chains, "chain {chain} {{\nnumgen random mod {count} vmap {{ {verdicts} }}\n}}");
    if let Some(external) = external {
        let outer = format!("external-{}-default/{name}/{proto}/p80", &hash(name)[..8]);
        let _ = writeln!(chains, "chain {outer} {{\njump mark-for-masquerade\ngoto {chain}\n}}");
        elements.push(format!("{external} . {proto} . 80 : goto {outer}"));
    }
}

/// What is there without any Service.
fn nftables_base() -> String {
    let verdicts = "type ipv4_addr . inet_proto . inet_service : verdict";
    format!(
        "table ip kube-proxy {{\n\
         set cluster-ips {{ type ipv4_addr; }}\n\
         set nodeport-ips {{ type ipv4_addr; elements = {{ {NODE} }}; }}\n\
         map no-endpoint-services {{ {verdicts}; }}\n\
         map firewall-ips {{ {verdicts}; }}\n\
         map service-ips {{ {verdicts}; }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
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
         chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}\n\
         chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}\n\
         chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}\n\
         chain filter-forward {{\n\
         type filter hook forward priority -110;\n\
         ct state new jump service-endpoints-check\n\
         ct state new jump cluster-ips-check\n\
         }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}\n\
         }}\n"
    )
}
