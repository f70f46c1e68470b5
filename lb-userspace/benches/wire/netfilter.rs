//! The kernel's own NAT in a node.

use std::fs;
use std::process::Command;

use lb_bench::kube_proxy::{iptables, nftables};
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};

use crate::case::Carrier;
use crate::ground::{Node, feed, run};
use crate::rules;

/// Loads the rules, if this carrier has any.
pub fn load(node: &Node, carrier: Carrier) -> Result<()> {
    match carrier {
        Carrier::Iptables(services) => {
            let rules = iptables(&rules::services(services), &rules::node());
            node.within(|| feed(&mut Command::new("iptables-legacy-restore"), &rules))
        }
        Carrier::Nftables(services) => {
            let texts = nftables(&rules::services(services), &rules::node());
            let load = |text: &String| feed(Command::new("nft").args(["-f", "-"]), text);
            node.within(|| texts.iter().try_for_each(load))
        }
        _ => Ok(()),
    }
}

/// Lets segments of an established connection repeat themselves.
pub fn forgive(node: &Node) -> Result<()> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
    node.within(|| fs::write(path, "1").into_diagnostic().wrap_err(path))
}

/// Forgets all connections.
pub fn flush(node: &Node) -> Result<()> {
    node.within(|| run(Command::new("conntrack").arg("--flush")))
}

/// How many connections the kernel keeps track of in a node.
pub fn connections(node: &Node) -> Result<u64> {
    node.within(|| number("/proc/sys/net/netfilter/nf_conntrack_count"))
}

/// How many it can keep track of in any.
pub fn most_connections() -> Result<u64> {
    number("/proc/sys/net/netfilter/nf_conntrack_max")
}

fn number(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).into_diagnostic().wrap_err_with(|| path.to_owned())?;
    text.trim().parse().map_err(|_| miette!("{path} is no number: {text}"))
}
