//! Which kernel is meant, and which of Debian's packages hold it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::architecture::Architecture;
use crate::debian::index::Package;

/// A series of kernels, such as 6.12, or the newest that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    /// 6.12.
    Numbered(u32, u32),
    /// The highest of all suites.
    Newest,
}

/// A kernel as it is asked for: `6.12`, `6.12-rt`, `newest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Its series; of it the newest version is taken.
    pub series: Series,
    /// Whether its real-time build is meant.
    pub realtime: bool,
}

impl Wanted {
    /// What `cargo xtask test` runs. Of the two real-time kernels the older one has a lock around softirqs; on the newer one
    /// programs of a CPU interrupt each other.
    pub const MATRIX: [Wanted; 6] = [
        Wanted::of(6, 1),
        Wanted::of(6, 12),
        Wanted { realtime: true, ..Wanted::of(6, 12) },
        Wanted::of(6, 18),
        Wanted { series: Series::Newest, realtime: false },
        Wanted { series: Series::Newest, realtime: true },
    ];

    /// What it runs of another architecture: the oldest kernel, whose verifier sees least.
    pub const OF_ARM: [Wanted; 1] = [Wanted::of(6, 1)];

    /// What a kernel of an architecture is called.
    pub fn label(self, architecture: Architecture) -> String {
        match architecture {
            Architecture::X86_64 => self.to_string(),
            Architecture::Aarch64 => format!("{self} {}", architecture.of_debian()),
        }
    }

    const fn of(major: u32, minor: u32) -> Self {
        Self { series: Series::Numbered(major, minor), realtime: false }
    }

    /// Endings of the names of Debian's packages, the smallest first.
    pub fn flavours(self, architecture: Architecture) -> Vec<String> {
        let architecture = architecture.of_debian();
        let kinds: &[&str] = if self.realtime { &["rt-"] } else { &["cloud-", ""] };
        kinds.iter().map(|kind| format!("{kind}{architecture}")).collect()
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (series, realtime) = match text.strip_suffix("-rt") {
            Some(series) => (series, true),
            None => (text, false),
        };
        let series = match series.split_once('.') {
            None if series == "newest" => Some(Series::Newest),
            None => None,
            Some((major, minor)) => {
                major.parse().and_then(|major| Ok(Series::Numbered(major, minor.parse()?))).ok()
            }
        };
        series.map(|series| Self { series, realtime }).ok_or_else(|| {
            format!(
                "{text:?} is no series of kernels, such as 6.12 or newest, with -rt for its real-time build"
            )
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let series = match self.series {
            Series::Numbered(major, minor) => format!("{major}.{minor}"),
            Series::Newest => "newest".into(),
        };
        f.pad(&format!("{series}{}", if self.realtime { "-rt" } else { "" }))
    }
}

/// A kernel that can be had: all of its packages are in the indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Debian's version.
    pub version: String,
    /// The flavour, such as `cloud-amd64`.
    pub flavour: String,
    /// The packages to unpack, all of this version.
    pub packages: Vec<String>,
}

/// Small files of a kernel, such as the list of what is built in.
const BASE: &str = "linux-base-";

/// Whether this package may hold a part of a kernel.
pub fn is_of_a_kernel(name: &str) -> bool {
    let prefixes = ["linux-image-", "linux-binary-", "linux-modules-", BASE];
    prefixes.into_iter().any(|prefix| name.starts_with(prefix)) && !name.ends_with("-dbg")
}

/// The newest version of the wanted series in this flavour that is complete.
///
/// One package may hold all (`linux-image-6.1.0-57-cloud-amd64`), or need others, which may have left the suites before it
/// did.
pub fn choose(packages: &[Package], wanted: Wanted, flavour: &str) -> Result<Choice, String> {
    let there: BTreeMap<(&str, &str), &Package> =
        packages.iter().map(|package| ((package.name.as_str(), package.version.as_str()), package)).collect();
    let mut images: Vec<_> = packages.iter().filter(|package| is_image(package, wanted, flavour)).collect();
    images.sort_by(|one, other| {
        (series_of(&other.version).cmp(&series_of(&one.version)))
            .then_with(|| compare(&other.version, &one.version))
            // Signed before unsigned: it is what machines boot.
            .then_with(|| one.name.len().cmp(&other.name.len()))
    });
    let mut lacking = Vec::new();
    for image in &images {
        let parts = image.depends().filter(|name| is_of_a_kernel(name));
        let (parts, mut missing): (Vec<_>, Vec<_>) =
            parts.partition(|name| there.contains_key(&(*name, image.version.as_str())));
        // Where all the rest is one package, it holds what this would.
        missing.retain(|name| !name.starts_with(BASE));
        if missing.is_empty() {
            let packages = [image.name.as_str()].into_iter().chain(parts);
            return Ok(Choice {
                version: image.version.clone(),
                flavour: flavour.into(),
                packages: packages.map(str::to_owned).collect(),
            });
        }
        lacking.extend(missing.into_iter().map(|name| format!("{name} {}", image.version)));
    }
    Err(if lacking.is_empty() {
        format!("no suite of Debian has a kernel {wanted} of the flavour {flavour}")
    } else {
        format!(
            "no kernel {wanted} of the flavour {flavour} is complete: there is no {}",
            lacking.join(", no ")
        )
    })
}

/// `linux-image-ABI-FLAVOUR`, signed or not, of the series; not what only names the newest, such as
/// `linux-image-6.12-cloud-amd64`.
fn is_image(package: &Package, wanted: Wanted, flavour: &str) -> bool {
    let name = package.name.strip_suffix("-unsigned").unwrap_or(&package.name);
    let abi =
        name.strip_prefix("linux-image-").and_then(|rest| rest.strip_suffix(flavour)?.strip_suffix('-'));
    // Flavours end alike; what remains of another one has words in it.
    let is_of_flavour = abi.is_some_and(|abi| {
        abi.starts_with(|c: char| c.is_ascii_digit()) && !abi.ends_with("-cloud") && !abi.ends_with("-rt")
    });
    let names_another = package.depends().any(|name| name.starts_with("linux-image-"));
    let is_of_series = match (wanted.series, series_of(&package.version)) {
        (Series::Numbered(major, minor), Some(series)) => series == (major, minor),
        (Series::Newest, Some(_)) => true,
        (_, None) => false,
    };
    is_of_flavour && is_of_series && !names_another
}

/// `6.12.118-1` → (6, 12).
fn series_of(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// In the order of Debian's versions.
fn compare(one: &str, other: &str) -> Ordering {
    deb_version::compare_versions(one, other)
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
