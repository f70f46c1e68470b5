//! Which external addresses are served.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::convert;

/// Which `spec.externalIPs` are served (`--external-ips`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ExternalIps {
    /// All, but for those that are never served: see [`super::external_addresses`].
    #[default]
    All,
    /// None.
    None,
    /// Those inside one of these networks.
    Networks(Vec<IpNet>),
}

/// Why a network is not one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a network; write it like 192.0.2.0/24 or 2001:db8::/32")]
pub struct NetworkError(String);

impl FromStr for ExternalIps {
    type Err = NetworkError;

    /// Reads `all`, `none` or a comma-separated list of networks and addresses.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let network = |text: &str| {
            let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
            convert::network(text).or_else(single).ok_or_else(|| NetworkError(text.to_owned()))
        };
        match text.trim() {
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            list => {
                list.split(',').map(|text| network(text.trim())).collect::<Result<_, _>>().map(Self::Networks)
            }
        }
    }
}

impl ExternalIps {
    /// Why `address` is not served, if it is not.
    pub(super) fn refusal(&self, address: IpAddr) -> Option<String> {
        match self {
            Self::All => None,
            Self::None => Some(format!("{address} is not served: --external-ips is none")),
            Self::Networks(networks) => (!networks.iter().any(|network| network.contains(&address)))
                .then(|| format!("{address} is not served: it is outside of what --external-ips allows")),
        }
    }
}
