//! Namespaces that end with this process, and the wires between them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::rc::Rc;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::case::End;
use crate::rules::NODE;

/// Where a bpffs is mounted that only this process and its children see.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where files are written, which end with this process too; `iptables` keeps its lock there.
pub const FILES: &str = "/run";
/// The node's interface towards clients.
pub const UPLINK: &str = "l0";
/// The node's interface towards its pods.
pub const PODS: &str = "l1";
/// The node's other uplink.
pub const UPLINK2: &str = "l2";
/// The node's Ethernet address, on all interfaces.
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
/// Everybody else's.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc0];

/// The namespace outside of all nodes: clients, pods, other nodes. All of them are ends of wires, no more.
pub struct Ground {
    home: Rc<File>,
    nodes: u32,
}

/// A namespace between client and pods.
pub struct Node {
    home: Rc<File>,
    namespace: File,
    number: u32,
}

impl Ground {
    /// Goes there, for good. To be called before there are threads.
    pub fn enter() -> Result<Self> {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .into_diagnostic()
            .wrap_err("no namespaces; are you root?")?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).into_diagnostic()?;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).into_diagnostic().wrap_err(BPFFS)?;
        mount(Some("tmpfs"), FILES, Some("tmpfs"), MsFlags::empty(), none)
            .into_diagnostic()
            .wrap_err(FILES)?;
        no_ipv6()?;
        Ok(Self { home: Rc::new(here()?), nodes: 0 })
    }

    /// A node with three wires, all up.
    pub fn node(&mut self) -> Result<Node> {
        unshare(CloneFlags::CLONE_NEWNET).into_diagnostic()?;
        let made = here();
        setns(&*self.home, CloneFlags::CLONE_NEWNET).into_diagnostic()?;
        let node = Node { home: self.home.clone(), namespace: made?, number: self.nodes };
        self.nodes += 1;
        node.within(no_ipv6)?;
        let place = format!("/proc/{}/fd/{}", std::process::id(), node.namespace.as_raw_fd());
        let (near, far) = (mac(NODE_MAC), mac(PEER_MAC));
        let mut lines = String::new();
        for (name, end) in [(UPLINK, End::Client), (PODS, End::Pods), (UPLINK2, End::Uplink)] {
            let outer = node.end(end);
            lines += &format!(
                "link add {outer} address {far} type veth peer name {name} address {near} netns {place}\n\
                 link set {outer} up\n"
            );
        }
        ip(&lines)?;
        node.within(|| {
            ip(&format!(
                "link set lo up\n\
                 link set {UPLINK} up\n\
                 link set {PODS} up\n\
                 link set {UPLINK2} up\n\
                 address add {NODE}/24 dev {UPLINK}\n\
                 neighbour add 192.0.2.253 lladdr {far} dev {UPLINK} nud permanent\n\
                 neighbour add 192.0.2.254 lladdr {far} dev {UPLINK} nud permanent\n\
                 route add default via 192.0.2.254\n\
                 route add 10.244.2.0/24 via 192.0.2.253\n\
                 address add 10.254.1.1/24 dev {PODS}\n\
                 neighbour add 10.254.1.2 lladdr {far} dev {PODS} nud permanent\n\
                 route add 10.244.1.0/24 via 10.254.1.2\n\
                 address add 203.0.113.1/24 dev {UPLINK2}\n\
                 neighbour add 203.0.113.2 lladdr {far} dev {UPLINK2} nud permanent\n\
                 route add 10.244.3.0/24 via 203.0.113.2\n"
            ))?;
            // A packet that comes as a frame waits for a poll, which a veth does only with XDP or with GRO.
            for name in [UPLINK, PODS, UPLINK2] {
                run(Command::new("ethtool").args(["-K", name, "gro", "on"]))?;
            }
            for (key, value) in [
                ("conf/all/forwarding", "1"),
                ("conf/all/rp_filter", "0"),
                ("conf/all/send_redirects", "0"),
                ("conf/l0/rp_filter", "0"),
                ("conf/l0/send_redirects", "0"),
            ] {
                set(&format!("/proc/sys/net/ipv4/{key}"), value)?;
            }
            Ok(())
        })?;
        Ok(node)
    }
}

impl Node {
    /// The outer end of a wire, in the outer namespace.
    pub fn end(&self, end: End) -> String {
        let letter = match end {
            End::Client => 'c',
            End::Pods => 'p',
            End::Uplink => 'u',
        };
        format!("{letter}{}", self.number)
    }

    /// Does something inside.
    pub fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).into_diagnostic()?;
        let done = work();
        setns(&*self.home, CloneFlags::CLONE_NEWNET).into_diagnostic().wrap_err("no way back")?;
        done
    }
}

fn here() -> Result<File> {
    File::open("/proc/thread-self/ns/net").into_diagnostic()
}

/// Neighbour discovery would send packets that nobody asked for.
fn no_ipv6() -> Result<()> {
    let path = "/proc/sys/net/ipv6/conf";
    if !fs::exists(path).into_diagnostic()? {
        return Ok(());
    }
    ["all", "default"].iter().try_for_each(|name| set(&format!("{path}/{name}/disable_ipv6"), "1"))
}

fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).into_diagnostic().wrap_err_with(|| path.to_owned())
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(lines: &str) -> Result<()> {
    feed(Command::new("ip").args(["-batch", "-"]), lines)
}

/// Runs a command to its end, with this on its standard input.
pub fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot start {command:?}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // Whoever ends early says why.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().into_diagnostic()?;
    if output.status.success() {
        return Ok(());
    }
    Err(miette!("{} from {command:?}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<()> {
    feed(command, "")
}
