//! Which external addresses are served.

use std::net::Ipv4Addr;
use std::str::FromStr;

/// Which `spec.externalIPs` are served (`--external-ips`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ExternalIps {
    /// All, but for addresses of this node and of ClusterIPs (CVE-2020-8554).
    #[default]
    All,
    /// None.
    None,
    /// Those inside one of these networks.
    Networks(Vec<Network>),
}

/// An IPv4 network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

impl Network {
    /// Whether `address` lies inside.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        (u32::from(address) ^ u32::from(self.address)) & mask == 0
    }
}

/// Why a network is not one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not an IPv4 network; write it like 192.0.2.0/24")]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let parse = || {
            let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
            let (address, prefix) = (address.parse().ok()?, prefix.parse().ok()?);
            (prefix <= 32).then_some(Self { address, prefix })
        };
        parse().ok_or_else(|| NetworkError(text.to_owned()))
    }
}

impl FromStr for ExternalIps {
    type Err = NetworkError;

    /// Reads `all`, `none` or a comma-separated list of networks.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        match text.trim() {
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            list => list
                .split(',')
                .map(|network| network.trim().parse())
                .collect::<Result<_, _>>()
                .map(Self::Networks),
        }
    }
}

impl ExternalIps {
    /// Why `address` is not served, if it is not.
    pub(super) fn refusal(&self, address: Ipv4Addr, node_addresses: &[Ipv4Addr]) -> Option<String> {
        match self {
            Self::All => node_addresses.contains(&address).then(|| {
                format!(
                    "{address} is an address of this node and is not served; use a nodePort, \
                     or allow it with --external-ips {address}/32"
                )
            }),
            Self::None => Some(format!("{address} is not served: --external-ips is none")),
            Self::Networks(networks) => (!networks.iter().any(|network| network.contains(address)))
                .then(|| format!("{address} is not served: it is outside of what --external-ips allows")),
        }
    }
}
