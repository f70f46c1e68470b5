//! Installs Debian packages, and leaves no daemon running because of it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr};

use crate::{command, progress};

/// Packages whose installation would start a server that the lab wants to start by itself, as systemd units.
const SERVICES: [&str; 2] = ["nginx", "etcd"];

/// The command that installs these packages, as a person would type it.
pub fn install_command(packages: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    apt
}

/// Installs these packages (root). Refuses to remove any other package for it.
pub fn install(packages: &[&str]) -> Result<()> {
    progress::run("apt-get update", quiet(Command::new("apt-get").arg("update")))?;
    let _switch = ServicesOff::engage()?;
    let mut apt = install_command(packages);
    progress::run("apt-get install", quiet(apt.arg("--no-remove")))?;
    // On a machine with systemd a new service would start with the next boot.
    if Path::new("/run/systemd/system").exists() {
        for service in SERVICES {
            if packages.iter().any(|package| package.starts_with(service)) {
                command::output(Command::new("systemctl").args(["disable", service]))?;
            }
        }
    }
    Ok(())
}

fn quiet(apt: &mut Command) -> &mut Command {
    apt.env("DEBIAN_FRONTEND", "noninteractive")
}

/// Debian's own switch against services that start at installation: `/usr/sbin/policy-rc.d` that says 101.
struct ServicesOff {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_SCRIPT: &str =
    "#!/bin/sh\n# Written by `cargo xtask setup` while it installs packages; may be deleted.\nexit 101\n";

impl ServicesOff {
    fn engage() -> Result<Self> {
        match fs::read_to_string(POLICY) {
            // What an interrupted set-up left behind is taken over, anything else belongs to the machine.
            Ok(script) => return Ok(Self { ours: script == POLICY_SCRIPT }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).into_diagnostic().wrap_err(POLICY),
        }
        fs::write(POLICY, POLICY_SCRIPT).into_diagnostic().wrap_err(POLICY)?;
        let switch = Self { ours: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).into_diagnostic().wrap_err(POLICY)?;
        Ok(switch)
    }
}

impl Drop for ServicesOff {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!(
                "  cannot delete {POLICY}: {error}; delete it, or services will not start at installation"
            );
        }
    }
}
