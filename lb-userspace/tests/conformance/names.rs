//! The names that rules use for addresses: `vip1`, `here1` (a pod of this node), `there1` (of another) and so on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::addr::{Ipv4, Ipv6};
use lb_control::model::Family;
use lb_testkit::Numbered;

/// What a process of the node asks from, in place of an address.
pub const PROCESS: &str = "process";

/// Every sort of address, with what it is.
const SORTS: [&str; 9] = ["client", "here", "there", "vip", "lb", "ext", "node", "localhost", "stranger"];

/// The address of a name such as `here1`.
///
/// # Panics
/// When there is no such name.
pub fn address(family: Family, name: &str) -> IpAddr {
    match family {
        Family::V4 => {
            Ipv4Addr::from(numbered::<Ipv4>(name, |net, n| Ipv4::from_octets([198, 51, net, n]))).into()
        }
        Family::V6 => Ipv6Addr::from(numbered::<Ipv6>(name, |net, n| {
            Ipv6::from_octets([0x20, 1, 0x0d, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
        }))
        .into(),
    }
}

fn numbered<A: Numbered>(name: &str, other: impl Fn(u8, u8) -> A) -> A {
    let (sort, n) = split(name);
    match sort {
        "client" => A::client(n),
        "here" => A::pod(n),
        "there" => A::remote_pod(n),
        "vip" => A::vip(n),
        "lb" => other(100, 100 + n),
        "ext" => other(100, n),
        // Of no network that anybody has named.
        "stranger" => other(101, n),
        "node" if n == 0 => A::node(),
        "node" => other(102, n),
        "localhost" => A::from_mapped(loopback(A::node().to_mapped().unmapped().is_some())),
        _ => panic!("no address has the name {name:?}"),
    }
}

fn loopback(v4: bool) -> Ipv6 {
    if v4 { Ipv6::mapped(Ipv4::from_octets([127, 0, 0, 1])) } else { Ipv6::from(Ipv6Addr::LOCALHOST) }
}

fn split(name: &str) -> (&str, u8) {
    let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    let (sort, n) = name.split_at(digits);
    (sort, if n.is_empty() { 0 } else { n.parse().unwrap_or_else(|error| panic!("{name:?}: {error}")) })
}

/// The name of an address, or its digits where it has none.
pub fn name(address: IpAddr) -> String {
    let family = Family::of(address);
    let numbers = 0..=40;
    let names = numbers.flat_map(|n| SORTS.map(|sort| format!("{sort}{n}").replace("node0", "node")));
    let mut fits = names.filter(|name| self::address(family, name) == address);
    fits.next().map_or_else(|| address.to_string(), |name| name.replace("localhost0", "localhost"))
}

/// A text with an address for each `$name`, a range of it alone for `$name/host`, and of its network for `$name/net`.
pub fn fill(family: Family, text: &str) -> String {
    let (host, net) = if family == Family::V4 { (32, 24) } else { (128, 48) };
    let mut parts = text.split('$');
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
        let address = address(family, &part[..end]);
        let rest = &part[end..];
        // IPv6 addresses begin with what YAML has other uses for.
        filled.push_str(&match (rest.strip_prefix("/host"), rest.strip_prefix("/net")) {
            (Some(rest), _) => format!("\"{address}/{host}\"{rest}"),
            (_, Some(rest)) => format!("\"{address}/{net}\"{rest}"),
            (None, None) => format!("\"{address}\"{rest}"),
        });
    }
    filled
}
