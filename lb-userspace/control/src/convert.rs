//! Kubernetes objects into the model: total, without IO. What is wrong is said, never guessed.

mod endpoint_slice;
mod node;
mod report;
mod service;
mod service_cidr;
mod sources;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

pub use endpoint_slice::endpoint_slice;
pub use node::node;
pub use service::service;
pub use service_cidr::service_cidr;

/// The longest name of a Service or a namespace.
const NAME_LENGTH: usize = 63;

/// The field that an annotation is.
fn annotation(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

/// A port number, or why it is none.
fn port(number: i32) -> Result<NonZeroU16, String> {
    u16::try_from(number)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or_else(|| format!("{number} is not a port; use a number from 1 to 65535"))
}

/// An address that may stand on a network, or why it is none.
///
/// Leading zeros are refused: some read `010.0.0.1` as octal (CVE-2021-29923).
fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| {
        format!(
            "{text:?} is not an IP address; write four numbers from 0 to 255 without leading zeros, like 10.0.0.1, \
             or an IPv6 address, like 2001:db8::1"
        )
    })?;
    match refusal(address) {
        None => Ok(address),
        Some(what) => Err(format!(
            "{address} is {what}, which nobody outside this host may be sent to; use an address of the network"
        )),
    }
}

/// What makes an address one that no Service may use (CVE-2021-25737).
fn refusal(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) if address.octets()[0] == 0 => Some("unspecified (0.0.0.0/8)"),
        IpAddr::V4(address) if address.is_loopback() => Some("a loopback address (127.0.0.0/8)"),
        IpAddr::V4(address) if address.is_link_local() => Some("a link-local address (169.254.0.0/16)"),
        IpAddr::V4(address) if address.is_multicast() => Some("a multicast address (224.0.0.0/4)"),
        IpAddr::V4(address) if address.is_broadcast() => Some("the broadcast address (255.255.255.255)"),
        IpAddr::V6(address) if address.is_unspecified() => Some("unspecified (::)"),
        IpAddr::V6(address) if address.is_loopback() => Some("the loopback address (::1)"),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("a link-local address (fe80::/10)"),
        IpAddr::V6(address) if address.is_multicast() => Some("a multicast address (ff00::/8)"),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Some("an IPv4 address in an IPv6 one (::ffff:0:0/96)")
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// A network such as `192.0.2.0/24` or `2001:db8::/32`, its host bits cleared. Leading zeros are refused.
pub fn network(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let digits = prefix.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (prefix == "0" || !prefix.starts_with('0'));
    let net = IpNet::new(address.parse().ok()?, prefix.parse().ok().filter(|_| plain)?).ok()?;
    Some(net.trunc())
}
