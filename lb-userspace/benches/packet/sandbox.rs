//! A network namespace of this process's own, with a device that XDP may send from and a neighbour behind it.

use std::process::Command;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use nix::sched::{CloneFlags, unshare};

/// The uplink's name.
pub const UPLINK: &str = "uplink0";

/// Goes into a new namespace, which ends with this process.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).into_diagnostic().wrap_err("no network namespace; are you root?")?;
    for line in [
        "link set lo up",
        "link add uplink0 address 02:00:00:00:00:01 type veth peer name wire0 address 02:00:00:00:00:02",
        "link set uplink0 up",
        "link set wire0 up",
        "address add 192.0.2.1/24 dev uplink0",
        "route add default via 192.0.2.254",
        "neighbour add 192.0.2.254 lladdr 02:00:00:00:00:fe dev uplink0 nud permanent",
        "-6 address add 2001:db8:2::1/64 dev uplink0 nodad",
        "-6 route add default via 2001:db8:2::fe dev uplink0",
        "-6 neighbour add 2001:db8:2::fe lladdr 02:00:00:00:00:fe dev uplink0 nud permanent",
    ] {
        run(Command::new("ip").args(line.split(' ')))?;
    }
    for name in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(&path, "1").into_diagnostic().wrap_err(path)?;
    }
    Ok(())
}

/// The uplink's number.
pub fn uplink() -> Result<u32> {
    nix::net::if_::if_nametoindex(UPLINK).into_diagnostic()
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().into_diagnostic().wrap_err_with(|| format!("{command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(miette!("{} from {command:?}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}
