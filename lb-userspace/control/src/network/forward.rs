//! Whether XDP sends out of an interface by itself (`--xdp-forward`). Pure.

use lb_common::abi::XdpForward;
use serde::{Deserialize, Serialize};

use super::{Link, XdpAttached};

/// What the user said (`--xdp-forward`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum ForwardMode {
    /// Where it is known to work, and no rule of the host's is passed by.
    #[default]
    Auto,
    /// Wherever a program sits in the driver.
    On,
    /// Nowhere.
    Off,
}

/// What of the host's own would be passed by if XDP sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PassedBy {
    /// Rules of the packet filter that forwarded packets have to meet.
    pub host_rules: bool,
    /// Rules of routing that look at more than addresses and interface ([`super::Network::routes_by_more`]): what they say of a packet
    /// is not what XDP is told when it asks for a route.
    pub routing_rules: bool,
}

/// Kinds of devices whose frames come from this machine, with checksums that are still to be finished: an XDP program cannot tell, and
/// would spoil them. tc can.
const UNFINISHED: [&str; 3] = ["veth", "tun", "netkit"];

/// Whether XDP belongs on an interface when nobody has said so (`--xdp-mode auto`).
pub fn takes_xdp(link: &Link) -> bool {
    !link.is_of(&UNFINISHED)
}

/// Whether XDP, which hangs on `link` as `xdp` says, sends out of it, and why.
///
/// A veth hands on what XDP sends into it only if its other end polls, which takes a program or GRO there; with GRO and
/// no program such frames fill the other end's ring, and then nothing of the node's leaves any more
/// (<https://elixir.bootlin.com/linux/v6.12/source/drivers/net/veth.c#L488>). A tap's frames end up with whoever reads them. Nobody
/// can see from here what the other end is.
pub fn forward(mode: ForwardMode, link: &Link, xdp: Option<XdpAttached>, passed_by: PassedBy) -> XdpForward {
    match (xdp, mode) {
        (None | Some(XdpAttached::Generic), _) => XdpForward::NoXdp,
        (_, ForwardMode::Off) => XdpForward::Forbidden,
        (_, ForwardMode::On) => XdpForward::Told,
        // (A bond has the frames of its cards.)
        (_, ForwardMode::Auto) if link.kind.is_some() && !link.is_of(&["bond"]) => XdpForward::Virtual,
        (_, ForwardMode::Auto) if passed_by.host_rules => XdpForward::HostRules,
        (_, ForwardMode::Auto) if passed_by.routing_rules => XdpForward::RoutingRules,
        (_, ForwardMode::Auto) => XdpForward::Card,
    }
}

/// In words, for the log and for `shunt get interfaces`.
pub const fn in_words(forward: XdpForward) -> &'static str {
    match forward {
        XdpForward::NoXdp => "off",
        XdpForward::Card => "on",
        XdpForward::Told => "on: --xdp-forward",
        XdpForward::Forbidden => "off: --xdp-forward",
        XdpForward::Virtual => "off: no card",
        XdpForward::HostRules => "off: rules of the host's",
        XdpForward::RoutingRules => "off: rules of routing",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::link;
    use super::*;

    #[test]
    fn only_a_card_sends_by_itself() {
        let native = Some(XdpAttached::Native);
        let nothing = PassedBy::default();
        let host_rules = PassedBy { host_rules: true, ..nothing };
        for kind in ["veth", "tun", "bridge", "macvlan"] {
            let link = link(2, "eth0", kind);
            assert_eq!(forward(ForwardMode::Auto, &link, native, nothing), XdpForward::Virtual, "{kind}");
            assert_eq!(forward(ForwardMode::On, &link, native, host_rules), XdpForward::Told, "{kind}");
        }
        for card in [link(2, "eth0", ""), link(2, "bond0", "bond")] {
            assert!(takes_xdp(&card));
            assert_eq!(forward(ForwardMode::Auto, &card, native, nothing), XdpForward::Card);
        }
        assert!(!takes_xdp(&link(2, "eth0", "veth")));
        let card = link(2, "eth0", "");
        assert_eq!(forward(ForwardMode::Auto, &card, native, host_rules), XdpForward::HostRules);
        let routing_rules = PassedBy { routing_rules: true, ..nothing };
        assert_eq!(forward(ForwardMode::Auto, &card, native, routing_rules), XdpForward::RoutingRules);
        assert_eq!(forward(ForwardMode::On, &card, native, routing_rules), XdpForward::Told);
        assert_eq!(forward(ForwardMode::Off, &card, native, nothing), XdpForward::Forbidden);
        for (mode, xdp) in [(ForwardMode::On, None), (ForwardMode::On, Some(XdpAttached::Generic))] {
            assert_eq!(forward(mode, &card, xdp, nothing), XdpForward::NoXdp);
        }
        let sending = XdpForward::ALL.into_iter().filter(|reason| reason.sends()).count();
        assert_eq!(sending, 2);
    }
}
