//! Packets a second of one core, from wire to wire: `lb-userspace/benches/wire` measures, this builds and runs it.

use miette::{Result, miette};
use nix::unistd::geteuid;

use super::{Context, Row, packet};
use crate::progress::Step;
use crate::setup::find_program;

/// Programs it starts, and their packages in Debian.
const NEEDS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("iptables-legacy-restore", "iptables"),
    ("conntrack", "conntrack"),
    ("setpriv", "util-linux"),
];

/// Builds the measuring program and runs it.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench wire` needs root: it makes network namespaces and loads BPF programs"));
    }
    if let Some((program, package)) = NEEDS.iter().find(|(program, _)| find_program(program).is_none()) {
        return Err(miette!("`bench wire` needs `{program}` (package {package})"));
    }
    packet::run_program(context, step, "wire", &["--rounds", "3", "--services", "1000"])
}
