//! What the agent tells its keeper, as one JSON object: all of it each time, so that nothing is lost with a message.

use std::io;
use std::net::IpAddr;

use lb_control::network::classify::Selection;
use lb_control::network::forward::ForwardMode;
use lb_kernel::links::XdpMode;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

/// What interfaces are to the agent, and what it has done.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Orders {
    uplinks: Vec<String>,
    pod_interface: Option<String>,
    pod_bridge: Option<String>,
    pod_prefix: Option<String>,
    node_ips: Vec<IpAddr>,
    /// `--xdp-mode`.
    pub xdp_mode: XdpMode,
    /// `--xdp-forward`.
    pub xdp_forward: ForwardMode,
    /// The host has rules that what XDP sends would pass by.
    pub host_rules: bool,
    /// The fingerprint of what the agent has served.
    pub in_line: u64,
}

impl Orders {
    /// From what the agent goes by.
    pub fn new(selection: &Selection) -> Self {
        Self {
            uplinks: selection.uplinks.clone(),
            pod_interface: selection.pod_interface.as_ref().map(WildMatch::pattern),
            pod_bridge: selection.pod_bridge.clone(),
            pod_prefix: selection.pod_prefix.clone(),
            node_ips: selection.node_ips.clone(),
            ..Self::default()
        }
    }

    /// What classification needs. (Where nodePorts are served is none of the keeper's business.)
    pub fn selection(&self) -> Selection {
        Selection {
            uplinks: self.uplinks.clone(),
            pod_interface: self.pod_interface.as_deref().map(WildMatch::new),
            pod_bridge: self.pod_bridge.clone(),
            pod_prefix: self.pod_prefix.clone(),
            node_ips: self.node_ips.clone(),
            ..Selection::default()
        }
    }

    /// As it is sent.
    pub fn write(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// As it was sent.
    ///
    /// # Errors
    /// It is of another release.
    pub fn read(bytes: &[u8]) -> io::Result<Self> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_selects_the_same() {
        let selection = Selection {
            uplinks: vec!["eth0".into()],
            pod_interface: Some(WildMatch::new("veth*")),
            pod_bridge: Some("cni0".into()),
            pod_prefix: Some("cali".into()),
            node_ips: vec!["192.0.2.1".parse().expect("address"), "2001:db8::1".parse().expect("address")],
            ..Selection::default()
        };
        let orders = Orders {
            xdp_mode: XdpMode::Off,
            xdp_forward: ForwardMode::On,
            host_rules: true,
            in_line: u64::MAX,
            ..Orders::new(&selection)
        };
        let read = Orders::read(&orders.write().expect("written")).expect("read");
        assert_eq!(read, orders);
        assert_eq!(Orders::new(&read.selection()), Orders::new(&selection));
        assert!(read.selection().pod_interface.is_some_and(|it| it.matches("veth1") && !it.matches("eth0")));
    }
}
