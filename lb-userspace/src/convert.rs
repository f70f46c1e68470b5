//! Kubernetes objects into the model: total, without IO. What is wrong is said, never guessed.

mod endpoint_slice;
mod node;
mod report;
mod service;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

pub use endpoint_slice::endpoint_slice;
pub use node::node;
pub use service::service;

/// Objects with one of these labels are somebody else's to serve, whatever the value.
const NOT_OURS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// The longest name of a Service or a namespace.
const NAME_LENGTH: usize = 63;

fn is_ours(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> bool {
    !metadata.labels.iter().flatten().any(|(label, _)| NOT_OURS.contains(&label.as_str()))
}

/// A port number, or why it is none.
fn port(number: i32) -> Result<NonZeroU16, String> {
    u16::try_from(number)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or_else(|| format!("{number} is not a port; use a number from 1 to 65535"))
}

/// What a text in the place of an address is.
enum Address {
    /// An IPv4 address that may stand on a network.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6,
    /// Neither, and why.
    Wrong(String),
}

/// Leading zeros are refused: some read `010.0.0.1` as octal (CVE-2021-29923).
fn address(text: &str) -> Address {
    match text.parse() {
        Ok(std::net::IpAddr::V4(address)) => match refusal(address) {
            None => Address::V4(address),
            Some(what) => Address::Wrong(format!(
                "{address} is {what}, which nobody outside this host may be sent to; use an address of the network"
            )),
        },
        Ok(std::net::IpAddr::V6(_)) => Address::V6,
        Err(_) => Address::Wrong(format!(
            "{text:?} is not an IP address; write four numbers from 0 to 255 without leading zeros, like 10.0.0.1"
        )),
    }
}

/// What makes an address one that no Service may use (CVE-2021-25737).
fn refusal(address: Ipv4Addr) -> Option<&'static str> {
    if address.octets()[0] == 0 {
        Some("unspecified (0.0.0.0/8)")
    } else if address.is_loopback() {
        Some("a loopback address (127.0.0.0/8)")
    } else if address.is_link_local() {
        Some("a link-local address (169.254.0.0/16)")
    } else if address.is_multicast() {
        Some("a multicast address (224.0.0.0/4)")
    } else if address.octets()[0] >= 240 {
        Some("reserved or broadcast (240.0.0.0/4)")
    } else {
        None
    }
}
