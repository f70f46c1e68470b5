//! A client behind a narrow link: what it and the pods send each other must fit through a hop in the middle.
//!
//! ```text
//!   distant ──1500── hop ──NARROW── client ── the wire
//! ```
//!
//! The hop drops what is too long from the distant client, the client (here a router) what is too long from the nodes;
//! each says so with an ICMP error.
use super::error::Result;
use super::netns::{Netns, ip_batch};
use super::plan::{AddressPlan, DISTANT, Family};
use super::topology::{self, UPLINK};

/// MTU of the narrow link, the least that IPv6 allows.
pub const NARROW: u32 = 1280;

/// Makes the two namespaces and the links.
pub(super) fn build(client: &Netns, hop: &Netns, distant: &Netns, plan: &AddressPlan) -> Result<()> {
    ip_batch(None, &format!("netns add {}\nnetns add {}\n", hop.ip_name(), distant.ip_name()))?;
    for netns in [hop, distant] {
        topology::awaken(netns)?;
    }
    client.ip(&format!(
        "link add narrow mtu {NARROW} type veth peer name narrow mtu {NARROW} netns {}\n",
        hop.ip_name()
    ))?;
    hop.ip(&format!("link add far type veth peer name {UPLINK} netns {}\n", distant.ip_name()))?;
    topology::forward(client)?;
    topology::forward(hop)?;
    let mut of_client = String::from("link set narrow up\n");
    let mut of_hop = String::from("link set narrow up\nlink set far up\n");
    let mut of_distant = format!("link set {UPLINK} up\n");
    for family in Family::ALL {
        let [near, far] = plan.of(family).beyond;
        of_client += &format!("addr add {} dev narrow\n", near.host_with_prefix(1));
        of_client += &format!("route add {far} via {}\n", near.host(2));
        of_hop += &format!("addr add {} dev narrow\n", near.host_with_prefix(2));
        of_hop += &format!("addr add {} dev far\n", far.host_with_prefix(1));
        of_hop += &format!("route add default via {}\n", near.host(1));
        of_distant += &format!("addr add {} dev {UPLINK}\n", far.host_with_prefix(DISTANT));
        of_distant += &format!("route add default via {}\n", far.host(1));
    }
    client.ip(&of_client)?;
    hop.ip(&of_hop)?;
    distant.ip(&of_distant)
}
