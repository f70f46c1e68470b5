//! What the maps say of an interface.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lb_common::abi::{Interface, Role, SourceToward};
use lb_common::addr::{Ipv4, Ipv6};
use lb_control::network::masquerade::Masquerade;
use tracing::debug;

use super::{Interfaces, Served, xdp_flags};

impl Interfaces {
    /// Writes the entry with these flags. A failure shows again when the final ones are written.
    pub(super) fn put(&self, index: u32, served: &Served, flags: u32) {
        if let Err(error) = self.write_flags(index, served, flags) {
            debug!(interface = served.name(), %error, "cannot write the interface map");
        }
    }

    pub(super) fn write(&self, index: u32, served: &Served) -> io::Result<()> {
        let flags = match served.role {
            Role::Uplink => xdp_flags(served.xdp, served.forward),
            // (Of bridges, bonds and the like only the first are pods'.)
            Role::Pod if served.link.controller.is_some() && !bridges_are_filtered() => Interface::SWITCHED,
            Role::Pod => 0,
        };
        self.write_flags(index, served, flags)
    }

    fn write_flags(&self, index: u32, served: &Served, flags: u32) -> io::Result<()> {
        // Answers to what is masqueraded go there.
        let Masquerade { v4, v6 } = served.masquerade;
        let (masquerade4, masquerade6) = Self::sources(served.masquerade);
        v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).for_each(|it| self.maps.addresses.note(it));
        let flags = if served.sources.is_empty() { flags } else { flags | Interface::MANY_SOURCES };
        let entry = Interface {
            role: served.role as u32,
            masquerade4,
            flags: flags | self.mark,
            forward: served.forward as u32,
            masquerade6,
        };
        self.maps.interfaces.put(&index, &entry)
    }

    /// Writes which address an interface speaks from toward which network, where it has several.
    pub(super) fn write_sources(&self, index: u32, sources: &[(IpNet, IpAddr)]) -> io::Result<()> {
        let key = |network: &IpNet| {
            let bits = u32::from(network.prefix_len()) + if network.addr().is_ipv4() { 96 } else { 0 };
            SourceToward::new(index, network.addr().into(), bits)
        };
        let wanted: HashMap<SourceToward, Ipv6> =
            sources.iter().map(|(network, source)| (key(network), (*source).into())).collect();
        // (Answers to what is masqueraded go there.)
        sources.iter().for_each(|(_, source)| self.maps.addresses.note(*source));
        self.maps.sources.put_all(&wanted.iter().map(|(key, source)| (*key, *source)).collect::<Vec<_>>())?;
        self.remove_sources(|key| key.interface() == index && !wanted.contains_key(key))
    }

    pub(super) fn remove_sources(&self, is_stale: impl Fn(&SourceToward) -> bool) -> io::Result<()> {
        let known = self.maps.sources.entries()?;
        let stale: Vec<SourceToward> = known.into_iter().map(|(key, _)| key).filter(is_stale).collect();
        self.maps.sources.remove_all(&stale)
    }

    /// As the map has them.
    pub(super) fn sources(Masquerade { v4, v6 }: Masquerade) -> (Ipv4, Ipv6) {
        (v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(), v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into())
    }
}

/// Whether netfilter sees what bridges switch, of both families (`br_netfilter`).
fn bridges_are_filtered() -> bool {
    let is_on = |name| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{name}"));
        text.is_ok_and(|text| text.trim() == "1")
    };
    is_on("iptables") && is_on("ip6tables")
}
