//! What the nodes of both labs may be like besides: a small change to the one that all else runs in.

use std::net::IpAddr;

use miette::{IntoDiagnostic, Result};

use super::cases::{HELD_ADDRESS, OTHER_CLIENT};
use lb_lab::{AddressPlan, Family, Lab, Netns, NodeId, UPLINK, Wire, XdpForward, XdpMode};

/// A shape of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// One card, one veth a pod, the external address on the card
    #[default]
    Plain,
    /// The external address that a node holds is a `local` route alone
    LocalRoute,
    /// It is on a macvlan of the card
    Macvlan,
    /// The cards are plain veths, as of nodes in containers
    Veths,
    /// The default route has two next hops
    Multipath,
    /// The card has another address before the node's own
    SecondAddress,
    /// Pods' packets have a routing table of their own, by a rule
    PolicyRouting,
    /// The CNI masquerades what pods send out of the cluster
    CniMasquerade,
    /// The host forwards nothing but what is the cluster's or known
    Firewall,
}

/// Every address that a node has in some shape.
pub fn node_addresses(plan: &AddressPlan, id: NodeId, family: Family) -> Vec<IpAddr> {
    let held = (id == NodeId::A).then(|| plan.of(family).external.host(HELD_ADDRESS));
    [plan.node_ip(id, family), first_address(plan, id, family)].into_iter().chain(held).collect()
}

/// The one that stands before the node's own with [`Shape::SecondAddress`].
fn first_address(plan: &AddressPlan, id: NodeId, family: Family) -> IpAddr {
    plan.of(family).wire.host(if id == NodeId::A { 13 } else { 14 })
}

impl Shape {
    /// What joins the nodes.
    pub fn wire(self) -> Wire {
        if self == Shape::Veths { Wire::Veths { gro: false } } else { Wire::Cards }
    }

    /// How Shunt runs there.
    pub fn xdp(self) -> (XdpMode, XdpForward) {
        if self == Shape::Veths {
            (XdpMode::Auto, XdpForward::Auto)
        } else {
            (XdpMode::Native, XdpForward::On)
        }
    }

    /// Changes a lab that is there.
    pub fn change(self, lab: &Lab) -> Result<()> {
        self.hold_address(lab)?;
        for node in NodeId::ALL {
            Family::ALL.into_iter().try_for_each(|family| self.change_node(lab, node, family))?;
        }
        Ok(())
    }

    /// Has the first node hold an address of the external range.
    fn hold_address(self, lab: &Lab) -> Result<()> {
        let node = lab.node(NodeId::A);
        let device = if self == Shape::Macvlan { "mv0" } else { UPLINK };
        if self == Shape::Macvlan {
            node.ip(&format!("link add link {UPLINK} name mv0 type macvlan mode bridge\nlink set mv0 up"))
                .into_diagnostic()?;
        }
        for family in Family::ALL {
            let held = lab.plan().of(family).external.host(HELD_ADDRESS);
            let line = if self == Shape::LocalRoute {
                format!("route add local {held} dev lo")
            } else {
                // IPv6: without duplicate address detection, which takes a second, and never a source by itself.
                let more = if family == Family::V6 { "nodad preferred_lft 0" } else { "" };
                format!("addr add {held}/{} dev {device} {more}", family.bits())
            };
            node.ip(&line).into_diagnostic()?;
        }
        Ok(())
    }

    fn change_node(self, lab: &Lab, id: NodeId, family: Family) -> Result<()> {
        let (node, plan) = (lab.node(id), lab.plan());
        let ranges = plan.of(family);
        let (client, other) =
            (plan.client_ip(family).to_string(), ranges.wire.host(OTHER_CLIENT).to_string());
        let (pods, cluster) = (plan.pods_of(id, family).to_string(), ranges.cluster.to_string());
        let ip = |line: &str| ip(node, family, line);
        let rule = |line: &str| rule(node, family, line);
        match self {
            Shape::Plain | Shape::LocalRoute | Shape::Macvlan | Shape::Veths => Ok(()),
            Shape::Multipath => {
                ip("route del default")?;
                ip(&format!("route add default nexthop via {client} nexthop via {other}"))
            }
            Shape::SecondAddress => {
                let prefix = ranges.wire.prefix;
                let (own, first) = (plan.node_ip(id, family), first_address(plan, id, family));
                ip(&format!("addr del {own}/{prefix} dev {UPLINK}"))?;
                ip(&format!("addr add {first}/{prefix} dev {UPLINK}"))?;
                ip(&format!("addr add {own}/{prefix} dev {UPLINK}"))?;
                ip(&format!("route replace default via {client}"))?;
                NodeId::ALL.into_iter().filter(|other| *other != id).try_for_each(|other| {
                    let (range, node) = (plan.pods_of(other, family), plan.node_ip(other, family));
                    ip(&format!("route replace {range} via {node}"))
                })
            }
            Shape::PolicyRouting => {
                ip(&format!("rule add pref 90 to {cluster} lookup main"))?;
                ip(&format!("rule add pref 100 from {pods} lookup 100"))?;
                ip(&format!("route add {} dev {UPLINK} table 100", ranges.wire))?;
                ip(&format!("route add default via {client} dev {UPLINK} table 100"))
            }
            Shape::CniMasquerade => {
                rule(&format!("-t nat -A POSTROUTING -s {pods} ! -d {cluster} -j MASQUERADE"))
            }
            Shape::Firewall => {
                rule("-P FORWARD DROP")?;
                rule("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")?;
                rule(&format!("-A FORWARD -s {cluster} -j ACCEPT"))?;
                rule("-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT")?;
                rule(&format!("-A FORWARD -d {cluster} -j ACCEPT"))
            }
        }
    }
}

fn ip(node: &Netns, family: Family, line: &str) -> Result<()> {
    let option = if family == Family::V6 { "-6" } else { "-4" };
    let words: Vec<&str> = ["ip", option].into_iter().chain(line.split_ascii_whitespace()).collect();
    node.run(&words).into_diagnostic().map(drop)
}

fn rule(node: &Netns, family: Family, line: &str) -> Result<()> {
    let program = if family == Family::V6 { "ip6tables" } else { "iptables" };
    let words: Vec<&str> = [program].into_iter().chain(line.split_ascii_whitespace()).collect();
    node.run(&words).into_diagnostic().map(drop)
}
