//! The namespaces of a lab and the links between them.
//!
//! ```text
//!   client ──┐              client   192.168.240.1, fd00:f0::1, default gateway of the nodes
//!            wire (bridge)  node-a   192.168.240.11, fd00:f0::11, pods 10.244.1.0/24, fd00:244:1::/64
//!   node-a ──┤              node-b   192.168.240.12, fd00:f0::12, pods 10.244.2.0/24, fd00:244:2::/64
//!   node-b ──┘              pods     one namespace each, behind a veth of their node
//! ```
//!
//! The links that play the wire hand over finished packets with finished checksums, as network cards do: transmit
//! offloads are off at both ends. Receive offload (GRO) is on at the switch's ends, because a veth takes frames from
//! XDP_TX only if its peer polls, and hands them over at once only if its peer has an XDP program ([`PASS`]). Everything
//! stays on between nodes and pods, where a packet may be 64 KiB long with an unfinished checksum.
//!
//! Nodes forward. Reverse path filtering stays as the kernel gives it to a new namespace: off, unless the machine sets
//! another default. Nobody looks for duplicate addresses, which would hold up each IPv6 address for a second or two.
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use super::assembled::{Assembled, PASS};
use super::error::{Doing, LabError, Result};
use super::netns::{Netns, ip_batch};
use super::plan::{AddressPlan, Family, NodeId};

/// How pods hang on their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// A veth each, a route to its address, and a link-local gateway: 169.254.1.1, answered by proxy ARP, and fe80::1
    /// (as Calico does).
    PointToPoint,
    /// The host ends are ports of the bridge `cni0`, which holds the gateway's address (as flannel does).
    Bridge,
}

/// What joins the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wire {
    /// Links that behave like network cards and a switch.
    Cards,
    /// Plain veths, as nodes in containers have them (kind, k3d, LXC): checksums are left to be finished, packets may be long, and
    /// nobody polls at the far end, unless it merges packets (GRO).
    Veths {
        /// The far end merges packets.
        gro: bool,
    },
}

/// The gateway of pods in the point-to-point layout.
const LINK_LOCAL_GATEWAY: &str = "169.254.1.1";
/// The same for IPv6: an address of the host end.
const LINK_LOCAL_GATEWAY6: &str = "fe80::1";
/// The pods' bridge in the bridge layout.
const BRIDGE: &str = "cni0";
/// The uplink's name in the nodes and in the client.
pub const UPLINK: &str = "eth0";

/// The places of a lab that are not pods.
#[derive(Debug)]
pub(super) struct Namespaces {
    pub wire: Netns,
    pub client: Netns,
    pub nodes: [Netns; 2],
}

impl Namespaces {
    pub fn node(&self, node: NodeId) -> &Netns {
        match node {
            NodeId::A => &self.nodes[0],
            NodeId::B => &self.nodes[1],
        }
    }
}

/// Makes the namespaces and joins them. `folder` is the lab's.
pub(super) fn build(
    namespaces: &Namespaces,
    plan: &AddressPlan,
    (layout, wire_kind): (Layout, Wire),
    folder: &Path,
) -> Result<()> {
    let Namespaces { wire, client, nodes } = namespaces;
    let all = [wire, client, &nodes[0], &nodes[1]];
    ip_batch(None, &all.iter().map(|netns| format!("netns add {}\n", netns.ip_name())).collect::<String>())?;
    all.into_iter().try_for_each(awaken)?;
    let ends = [client, &nodes[0], &nodes[1]];
    let mut switch = format!("{}link set br0 up\n", bridge("br0", ""));
    for (port, end) in ends.iter().enumerate() {
        switch += &cable(&format!("port{port}"), end);
    }
    wire.ip(&switch)?;
    for (port, end) in ends.iter().enumerate() {
        prepare_cable(wire, &format!("port{port}"), end, wire_kind, folder)?;
    }
    configure_client(client, plan)?;
    for node in NodeId::ALL {
        configure_node(namespaces.node(node), node, plan, layout)?;
    }
    Ok(())
}

/// A cable from a port of the switch to an uplink, as lines for `ip`.
fn cable(port: &str, end: &Netns) -> String {
    let end = end.ip_name();
    format!("link add {port} type veth peer name {UPLINK} netns {end}\nlink set {port} master br0 up\n")
}

fn prepare_cable(wire: &Netns, port: &str, end: &Netns, kind: Wire, folder: &Path) -> Result<()> {
    match kind {
        Wire::Cards => {
            attach_xdp(wire, port, &PASS, &folder.join("pass.o"))?;
            play_the_wire(wire, port)?;
            play_the_wire(end, UPLINK)
        }
        Wire::Veths { gro } => offload(wire, port, &["gro", if gro { "on" } else { "off" }]),
    }
}

/// Takes a node's uplink away and makes it anew: another card, with the addresses and routes of the old one.
pub(super) fn remake_uplink(
    namespaces: &Namespaces,
    node: NodeId,
    plan: &AddressPlan,
    kind: Wire,
    folder: &Path,
) -> Result<()> {
    let (netns, port) = (namespaces.node(node), switch_port(node));
    netns.ip(&format!("link del {UPLINK}"))?;
    namespaces.wire.ip(&cable(port, netns))?;
    prepare_cable(&namespaces.wire, port, netns, kind, folder)?;
    netns.ip(&uplink(node, plan))
}

/// The switch's end of a node's uplink.
pub(super) const fn switch_port(node: NodeId) -> &'static str {
    match node {
        NodeId::A => "port1",
        NodeId::B => "port2",
    }
}

/// Puts an XDP program on a device, in place of the one that is there. `file`: where its object goes.
pub(super) fn attach_xdp(netns: &Netns, device: &str, program: &Assembled<'_>, file: &Path) -> Result<()> {
    let object = program.object_file().map_err(|error| std::io::Error::other(error.to_string()));
    fs::write(file, object.doing(|| "assemble an XDP program".into())?)
        .doing(|| format!("write {}", file.display()))?;
    let file = file.display().to_string();
    let words = ["ip", "-force", "link", "set", device, "xdp", "object", &file, "section", program.section];
    netns.run_loader(&words).map(|_| ())
}

/// What every namespace needs before it gets links: they take over the defaults.
pub(super) fn awaken(netns: &Netns) -> Result<()> {
    for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
        for devices in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{devices}/{key}"), value)?;
        }
    }
    netns.ip("link set lo up")
}

/// Makes a namespace a router.
pub(super) fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl("net.ipv4.ip_forward", "1")?;
    netns.sysctl("net.ipv6.conf.all.forwarding", "1")
}

/// A bridge that floods multicast, neighbour discovery with it, rather than learn who listens.
fn bridge(name: &str, options: &str) -> String {
    format!("link add {name} {options} type bridge mcast_snooping 0\n")
}

pub(super) fn play_the_wire(netns: &Netns, device: &str) -> Result<()> {
    offload(netns, device, &["tx", "off", "tso", "off", "gso", "off", "gro", "on"])
}

/// Turns offloads of a device on and off.
fn offload(netns: &Netns, device: &str, what: &[&str]) -> Result<()> {
    let words = [&["-K", device], what].concat();
    let output = netns
        .within(|| Command::new("ethtool").args(&words).output())?
        .doing(|| "start `ethtool` (package ethtool)".into())?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Command {
        command: format!("ethtool {} (in {})", words.join(" "), netns.name()),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn configure_client(client: &Netns, plan: &AddressPlan) -> Result<()> {
    let mut lines = format!("link set {UPLINK} up\n");
    for family in Family::ALL {
        let ranges = plan.of(family);
        let prefix = ranges.wire.prefix;
        lines += &format!("addr add {}/{prefix} dev {UPLINK}\n", plan.client_ip(family));
        for node in NodeId::ALL {
            lines +=
                &format!("route add {} via {}\n", plan.pods_of(node, family), plan.node_ip(node, family));
        }
        for range in [ranges.services, ranges.external] {
            lines += &format!("route add {range} via {}\n", plan.node_ip(NodeId::A, family));
        }
    }
    client.ip(&lines)
}

fn configure_node(netns: &Netns, node: NodeId, plan: &AddressPlan, layout: Layout) -> Result<()> {
    forward(netns)?;
    let mut lines = String::new();
    if layout == Layout::Bridge {
        // As the bridge plugin does; otherwise the address changes as ports come and go.
        let [a, b, c, d] = plan.pods(node).host(1).octets();
        lines += &bridge(BRIDGE, &format!("address 0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}"));
        lines += &format!("link set {BRIDGE} up\n");
        for family in Family::ALL {
            let gateway = plan.pods_of(node, family).host_with_prefix(1);
            lines += &format!("addr add {gateway} dev {BRIDGE}\n");
        }
    }
    netns.ip(&(uplink(node, plan) + &lines))
}

/// What a node's uplink gets, as lines for `ip`.
fn uplink(node: NodeId, plan: &AddressPlan) -> String {
    let mut lines = format!("link set {UPLINK} up\n");
    for family in Family::ALL {
        let prefix = plan.of(family).wire.prefix;
        lines += &format!("addr add {}/{prefix} dev {UPLINK}\n", plan.node_ip(node, family));
        lines += &format!("route add default via {}\n", plan.client_ip(family));
        for other in NodeId::ALL.into_iter().filter(|other| *other != node) {
            lines +=
                &format!("route add {} via {}\n", plan.pods_of(other, family), plan.node_ip(other, family));
        }
    }
    lines
}

/// Makes a pod's namespace and hangs it on its node. `device` is the name of the end on the node; the pod has one
/// address of each family.
pub(super) fn attach_pod(
    (id, node): (NodeId, &Netns),
    pod: &Netns,
    device: &str,
    addresses: [IpAddr; 2],
    plan: &AddressPlan,
    layout: Layout,
) -> Result<()> {
    ip_batch(None, &format!("netns add {}\n", pod.ip_name()))?;
    awaken(pod)?;
    let add = format!("link add {device} type veth peer name eth0 netns {}\n", pod.ip_name());
    let mut of_pod = String::from("link set eth0 up\n");
    match layout {
        Layout::PointToPoint => {
            node.ip(&add)?;
            // Without this the answer is delayed by up to 0.8 s.
            node.sysctl(&format!("net/ipv4/neigh/{device}/proxy_delay"), "0")?;
            node.sysctl(&format!("net/ipv4/conf/{device}/proxy_arp"), "1")?;
            let mut of_node =
                format!("link set {device} up\naddr add {LINK_LOCAL_GATEWAY6}/64 dev {device}\n");
            of_pod += &format!("route add {LINK_LOCAL_GATEWAY} dev eth0 scope link\n");
            for address in addresses {
                let bits = Family::of(address).bits();
                of_node += &format!("route add {address}/{bits} dev {device}\n");
                of_pod += &format!("addr add {address}/{bits} dev eth0\n");
            }
            for gateway in [LINK_LOCAL_GATEWAY, LINK_LOCAL_GATEWAY6] {
                of_pod += &format!("route add default via {gateway} dev eth0\n");
            }
            node.ip(&of_node)?;
        }
        Layout::Bridge => {
            node.ip(&format!("{add}link set {device} master {BRIDGE} up"))?;
            for address in addresses {
                let range = plan.pods_of(id, Family::of(address));
                of_pod += &format!("addr add {address}/{} dev eth0\n", range.prefix);
                of_pod += &format!("route add default via {}\n", range.host(1));
            }
        }
    }
    pod.ip(&of_pod)
}
