//! The namespaces of a lab and the links between them.
//!
//! ```text
//!   client ──┐                      client   192.168.240.1, default gateway of the nodes
//!            wire (a bridge)        node-a   192.168.240.11, pods 10.244.1.0/24
//!   node-a ──┤                      node-b   192.168.240.12, pods 10.244.2.0/24
//!   node-b ──┘                      pods     one namespace each, behind a veth of their node
//! ```
//!
//! The links that play the wire hand over finished packets with finished checksums, as network cards do: transmit
//! offloads are off at both ends. Receive offload (GRO) is on at the switch's ends, because a veth takes frames from
//! XDP_TX only if its peer polls, and hands them over at once only if its peer has an XDP program ([`pass`]). Everything stays on between nodes and pods, where a packet may be 64 KiB long with an
//! unfinished checksum.
//!
//! Nodes forward (`ip_forward`). Reverse path filtering stays as the kernel gives it to a new namespace: off, unless the
//! machine sets another default.
use std::fs;
use std::path::Path;
use std::process::Command;

use super::error::{Doing, LabError, Result};
use super::pass;
use super::place::{Place, ip_batch};
use super::plan::{AddressPlan, NodeId};

/// How pods hang on their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// A veth each, a /32 route to it, and 169.254.1.1 as gateway, answered by proxy ARP (as Calico does).
    PointToPoint,
    /// The host ends are ports of the bridge `cni0`, which holds the gateway's address (as flannel does).
    Bridge,
}

/// The gateway of pods in the point-to-point layout.
const LINK_LOCAL_GATEWAY: &str = "169.254.1.1";
/// The pods' bridge in the bridge layout.
const BRIDGE: &str = "cni0";
/// The uplink's name in the nodes and in the client.
pub const UPLINK: &str = "eth0";

/// The places of a lab that are not pods.
#[derive(Debug)]
pub(super) struct Places {
    pub wire: Place,
    pub client: Place,
    pub nodes: [Place; 2],
}

impl Places {
    pub fn node(&self, node: NodeId) -> &Place {
        match node {
            NodeId::A => &self.nodes[0],
            NodeId::B => &self.nodes[1],
        }
    }
}

/// Makes the namespaces and joins them. `folder` is the lab's.
pub(super) fn build(places: &Places, plan: &AddressPlan, layout: Layout, folder: &Path) -> Result<()> {
    let Places { wire, client, nodes } = places;
    let all = [wire, client, &nodes[0], &nodes[1]];
    ip_batch(None, &all.iter().map(|place| format!("netns add {}\n", place.netns())).collect::<String>())?;
    for place in all {
        place.ip("link set lo up")?;
    }
    let ends = [client, &nodes[0], &nodes[1]];
    let mut switch = String::from("link add br0 type bridge\nlink set br0 up\n");
    for (port, end) in ends.iter().enumerate() {
        switch += &format!(
            "link add port{port} type veth peer name {UPLINK} netns {}\nlink set port{port} master br0 up\n",
            end.netns()
        );
    }
    wire.ip(&switch)?;
    let program = folder.join("pass.o");
    let object = pass::object_file().map_err(|error| std::io::Error::other(error.to_string()));
    fs::write(&program, object.doing(|| "assemble an XDP program".into())?)
        .doing(|| format!("write {}", program.display()))?;
    for (port, end) in ends.iter().enumerate() {
        wire.ip(&format!("link set port{port} xdp object {} section {}", program.display(), pass::SECTION))?;
        play_the_wire(wire, &format!("port{port}"))?;
        play_the_wire(end, UPLINK)?;
    }
    configure_client(client, plan)?;
    for node in NodeId::ALL {
        configure_node(places.node(node), node, plan, layout)?;
    }
    Ok(())
}

fn play_the_wire(place: &Place, device: &str) -> Result<()> {
    let words = ["-K", device, "tx", "off", "tso", "off", "gso", "off", "gro", "on"];
    let output = place
        .within(|| Command::new("ethtool").args(words).output())?
        .doing(|| "start `ethtool` (package ethtool)".into())?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Command {
        command: format!("ethtool {} (in {})", words.join(" "), place.name()),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn configure_client(client: &Place, plan: &AddressPlan) -> Result<()> {
    let mut lines =
        format!("addr add {} dev {UPLINK}\nlink set {UPLINK} up\n", plan.v4.wire.host_with_prefix(1));
    for node in NodeId::ALL {
        lines += &format!("route add {} via {}\n", plan.pods(node), plan.node(node));
    }
    for range in [plan.v4.services, plan.v4.external] {
        lines += &format!("route add {range} via {}\n", plan.node(NodeId::A));
    }
    client.ip(&lines)
}

fn configure_node(place: &Place, node: NodeId, plan: &AddressPlan, layout: Layout) -> Result<()> {
    let prefix = plan.v4.wire.prefix;
    let mut lines = format!("addr add {}/{prefix} dev {UPLINK}\nlink set {UPLINK} up\n", plan.node(node));
    lines += &format!("route add default via {}\n", plan.client());
    for other in NodeId::ALL.into_iter().filter(|other| *other != node) {
        lines += &format!("route add {} via {}\n", plan.pods(other), plan.node(other));
    }
    match layout {
        Layout::PointToPoint => {}
        Layout::Bridge => {
            let gateway = plan.pods(node).host_with_prefix(1);
            // As the bridge plugin does; otherwise the address changes as ports come and go.
            let [a, b, c, d] = plan.pods(node).host(1).octets();
            lines += &format!(
                "link add {BRIDGE} address 0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x} type bridge
                 addr add {gateway} dev {BRIDGE}
                 link set {BRIDGE} up\n"
            );
        }
    }
    place.ip(&lines)?;
    place.sysctl("net.ipv4.ip_forward", "1")
}

/// Makes a pod's namespace and hangs it on its node. `device` is the name of the end on the node.
pub(super) fn attach_pod(
    node: &Place,
    pod: &Place,
    device: &str,
    address: std::net::Ipv4Addr,
    gateway: std::net::Ipv4Addr,
    layout: Layout,
) -> Result<()> {
    ip_batch(None, &format!("netns add {}\n", pod.netns()))?;
    let add = format!("link add {device} type veth peer name eth0 netns {}\n", pod.netns());
    match layout {
        Layout::PointToPoint => {
            node.ip(&add)?;
            // Without this the answer is delayed by up to 0.8 s.
            node.sysctl(&format!("net/ipv4/neigh/{device}/proxy_delay"), "0")?;
            node.sysctl(&format!("net/ipv4/conf/{device}/proxy_arp"), "1")?;
            node.ip(&format!("link set {device} up\nroute add {address}/32 dev {device} scope link"))?;
            pod.ip(&format!(
                "link set lo up
                 addr add {address}/32 dev eth0
                 link set eth0 up
                 route add {LINK_LOCAL_GATEWAY} dev eth0 scope link
                 route add default via {LINK_LOCAL_GATEWAY}"
            ))
        }
        Layout::Bridge => {
            node.ip(&format!("{add}link set {device} master {BRIDGE} up"))?;
            pod.ip(&format!(
                "link set lo up
                 addr add {address}/24 dev eth0
                 link set eth0 up
                 route add default via {gateway}"
            ))
        }
    }
}
