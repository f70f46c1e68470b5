//! What each purpose needs, as a table, and what of it is missing. No IO.

use super::{Purpose, cross};
use crate::architecture::Architecture;
use Purpose::{Build, Cross, Lab, Test, Vm};

/// A program that must be in PATH, and the Debian package that has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Need {
    /// File name of the program.
    pub program: &'static str,
    /// Package of Debian 12.
    pub package: &'static str,
    /// What it is used for.
    pub why: &'static str,
    purposes: &'static [Purpose],
}

/// Every program that the build, the lab and the tests start.
pub const NEEDS: &[Need] = &[
    need("cc", "gcc", "links programs, and compiles the C parts of ring", &[Build]),
    need(
        Architecture::OTHER.c_compiler(),
        cross::C_COMPILER_PACKAGE,
        "links programs for the other architecture, and compiles the C parts of ring",
        &[Cross],
    ),
    need("ip", "iproute2", "network namespaces", &[Lab, Test, Vm]),
    need("nft", "nftables", "masquerading of the lab's pod networks", &[Lab, Test]),
    need(
        "ethtool",
        "ethtool",
        "turns checksum offload off on the links that play the wire",
        &[Lab, Test, Vm],
    ),
    need("nginx", "nginx-light", "HTTP servers in the pods", &[Lab, Test, Vm]),
    need("curl", "curl", "HTTP clients", &[Lab, Test, Vm]),
    need("ncat", "ncat", "TCP and UDP connections that stay open", &[Lab, Test]),
    need("dnsmasq", "dnsmasq-base", "DNS servers in the pods", &[Lab, Test]),
    need("dig", "bind9-dnsutils", "DNS clients", &[Lab, Test]),
    need("iperf3", "iperf3", "bulk transfers", &[Lab, Test]),
    need("iptables", "iptables", "rules of the real kube-proxy, which tests compare with", &[Test]),
    need("bpftool", "bpftool", "shows what hangs on interfaces and control groups", &[Test, Vm]),
    need("sysctl", "procps", "shows that the node's settings are as they were", &[Test]),
    need(
        "conntrack",
        "conntrack",
        "shows what the kernel's own NAT did, and lets kube-proxy forget",
        &[Test],
    ),
    need("qemu-system-x86_64", "qemu-system-x86", "virtual machines with other kernels", &[Vm]),
    need("qemu-system-aarch64", "qemu-system-arm", "virtual machines of the other architecture", &[Vm]),
    need("xz", "xz-utils", "unpacks kernel modules", &[Vm]),
    need("strip", "binutils", "makes programs small for virtual machines", &[Vm]),
];

const fn need(
    program: &'static str,
    package: &'static str,
    why: &'static str,
    purposes: &'static [Purpose],
) -> Need {
    Need { program, package, why, purposes }
}

/// The needs of these purposes that `found` does not know.
pub fn missing(purposes: &[Purpose], found: impl Fn(&str) -> bool) -> Vec<&'static Need> {
    NEEDS
        .iter()
        .filter(|need| need.purposes.iter().any(|purpose| purposes.contains(purpose)))
        .filter(|need| !found(need.program))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_needs_no_servers() {
        let programs: Vec<_> = missing(&[Build], |_| false).iter().map(|need| need.program).collect();
        assert_eq!(programs, ["cc"]);
    }

    #[test]
    fn what_is_there_is_not_missing() {
        assert!(missing(&[Build, Lab, Test], |_| true).is_empty());
        let packages: Vec<_> =
            missing(&[Lab], |program| program != "dig").iter().map(|need| need.package).collect();
        assert_eq!(packages, ["bind9-dnsutils"]);
    }

    #[test]
    fn a_program_stands_in_the_table_once() {
        for (at, need) in NEEDS.iter().enumerate() {
            assert!(NEEDS[at + 1..].iter().all(|other| other.program != need.program), "{}", need.program);
        }
    }
}
