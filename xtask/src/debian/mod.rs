//! Packages of Debian, whatever this machine runs: apt with a configuration of its own, which downloads and verifies
//! and installs nothing. No root is needed.

pub mod index;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr};

use crate::command;
use crate::setup::find_program;

const MIRROR: &str = "http://deb.debian.org/debian/";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security/";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Whether this machine has apt and Debian's keys.
pub fn is_here() -> bool {
    find_program("apt-get").is_some() && Path::new(KEYS).exists()
}

/// A suite of Debian: all its binary packages, or its source packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Binary packages, such as those of `bookworm`, `trixie-backports` or `trixie-security`.
    Binary(&'static str),
    /// Source packages.
    Source(&'static str),
}

impl Suite {
    /// Its line of sources.list, for packages of this architecture.
    fn line(self, mirrors: &Mirrors, architecture: &str) -> String {
        let (kind, name) = match self {
            Suite::Binary(name) => ("deb", name),
            Suite::Source(name) => ("deb-src", name),
        };
        let mirror = if name.ends_with("-security") { &mirrors.security } else { &mirrors.archive };
        format!("{kind} [arch={architecture} signed-by={KEYS}] {mirror} {name} main\n")
    }
}

/// An apt that knows some suites and keeps everything in one folder.
#[derive(Debug)]
pub struct PrivateApt {
    configuration: PathBuf,
}

impl PrivateApt {
    /// Writes the configuration into `folder`; what apt has downloaded there before is used again.
    pub fn new(folder: &Path, architecture: &str, suites: &[Suite]) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "parts"] {
            make_folder(&folder.join(part))?;
        }
        let mirrors = Mirrors::of_this_machine();
        let sources: String = suites.iter().map(|suite| suite.line(&mirrors, architecture)).collect();
        let apt = folder.display();
        let configuration = format!(
            "APT::Architecture \"{architecture}\";\n\
             APT::Architectures {{ \"{architecture}\"; }};\n\
             Dir::Etc::sourcelist \"{apt}/sources.list\";\n\
             Dir::Etc::sourceparts \"{apt}/parts\";\n\
             Dir::Etc::preferences \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"{apt}/parts\";\n\
             Dir::State::lists \"{apt}/lists\";\n\
             Dir::State::status \"{apt}/status\";\n\
             Dir::Cache \"{apt}/cache\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Check-Valid-Until \"false\";\n\
             APT::Sandbox::User \"\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled \"false\";\n\
             #clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n"
        );
        write(&folder.join("sources.list"), &sources)?;
        write(&folder.join("status"), "")?;
        let path = folder.join("apt.conf");
        write(&path, &configuration)?;
        Ok(Self { configuration: path })
    }

    /// `apt-get ARGUMENTS`, started in a folder: downloads land there.
    pub fn get(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut apt = Command::new("apt-get");
        apt.arg("--quiet").args(arguments).env("APT_CONFIG", &self.configuration).current_dir(folder);
        apt
    }

    /// The text of every `Packages` file that `apt-get update` has downloaded.
    pub fn indexes(&self) -> Result<Vec<String>> {
        let mut targets = Command::new("apt-get");
        targets.args(["indextargets", "--format", "$(FILENAME)", "Created-By: Packages"]);
        let files = command::stdout(targets.env("APT_CONFIG", &self.configuration))?;
        // They are compressed or not, as this machine likes it.
        let read =
            |file: &str| command::stdout(Command::new("/usr/lib/apt/apt-helper").arg("cat-file").arg(file));
        files.lines().map(read).collect()
    }
}

/// Where Debian is downloaded from.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    archive: String,
    security: String,
}

impl Mirrors {
    /// Those of the machine's own apt.
    fn of_this_machine() -> Self {
        let mut targets = Command::new("apt-get");
        targets.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)"]);
        Self::of(&command::stdout(&mut targets).unwrap_or_default())
    }

    /// The first archive with all of Debian, and the first with its security updates; nobody else's.
    fn of(targets: &str) -> Self {
        let find = |wanted: fn(&str, &str) -> bool| {
            let mut lines = targets.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(uri, suite)| wanted(uri, suite)).map(|(uri, _)| uri.to_owned())
        };
        Self {
            archive: find(|uri, suite| uri.ends_with("/debian/") && !suite.contains('-'))
                .unwrap_or_else(|| MIRROR.into()),
            security: find(|uri, suite| uri.ends_with("/debian-security/") && suite.ends_with("-security"))
                .unwrap_or_else(|| SECURITY_MIRROR.into()),
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).into_diagnostic().wrap_err_with(|| path.display().to_string())
}

/// Makes a folder and those above it.
pub fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirrors_are_those_of_the_machine() {
        let targets = "https://packages.example/apt cloud\n\
                       http://mirror/debian-security/ bookworm-security\n\
                       http://mirror/debian/ bookworm-updates\n\
                       http://other/debian/ bookworm\n";
        let found = Mirrors::of(targets);
        assert_eq!(found.archive, "http://other/debian/");
        assert_eq!(found.security, "http://mirror/debian-security/");
        let none = Mirrors::of("http://mirror/ubuntu/ noble\n");
        assert_eq!((none.archive.as_str(), none.security.as_str()), (MIRROR, SECURITY_MIRROR));
    }

    #[test]
    fn security_updates_come_from_their_own_mirror() {
        let mirrors = Mirrors { archive: "http://a/".into(), security: "http://s/".into() };
        let lines = [Suite::Binary("sid"), Suite::Binary("trixie-security"), Suite::Source("bookworm")]
            .map(|suite| suite.line(&mirrors, "arm64"));
        assert_eq!(
            lines.concat().replace(KEYS, "KEYS"),
            "deb [arch=arm64 signed-by=KEYS] http://a/ sid main\n\
             deb [arch=arm64 signed-by=KEYS] http://s/ trixie-security main\n\
             deb-src [arch=arm64 signed-by=KEYS] http://a/ bookworm main\n"
        );
    }
}
