//! `shunt cleanup`: takes out what is ours and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_kernel::links::{interface_name, remove_filter, remove_link};
use lb_kernel::net::{nat_table, qdisc};
use lb_kernel::pin::{self, Lock, PinDir, Post};
use lb_kernel::programs::load::MAPS;

use crate::args::CleanupArgs;
use crate::exit::Error;

/// How long a keeper may take to end.
const KEEPER_END: Duration = Duration::from_secs(5);

/// Removes everything below `--bpffs`, of any layout version, and says so on standard output.
pub fn run(args: &CleanupArgs) -> Result<(), Error> {
    let root = &args.pins.bpffs;
    if !root.exists() {
        // (It stays when somebody has taken away the pins by hand.)
        let table = remove_table()?.into_iter().next();
        println!(
            "{}",
            table.unwrap_or_else(|| format!("nothing to remove: {} does not exist", root.display()))
        );
        return Ok(());
    }
    pin::check_bpffs(root)?;
    let lock = Lock::take(root)?;
    // Nothing is to be attached behind our back.
    Post::clear(root, KEEPER_END)?;
    let versions = PinDir::versions(root).map_err(system(root))?;
    let mut removed = Removed::default();
    for dir in &versions {
        removed.add(remove_version(dir)?);
    }
    removed.programs.extend(remove_qdiscs(&removed.qdiscs)?);
    // After the programs: who asks netfilter must find it at work.
    removed.tables = remove_table()?.into_iter().collect();
    remove_dir(root)?;
    drop(lock);
    println!("{}", removed.summary(root));
    Ok(())
}

/// What was taken out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Programs taken off, by place.
    pub programs: Vec<String>,
    /// Names of maps.
    pub maps: Vec<String>,
    /// Interfaces with a clsact qdisc that we added.
    pub qdiscs: Vec<u32>,
    /// What was said of our table of nf_tables, if there was one.
    pub tables: Vec<String>,
}

impl Removed {
    fn add(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.qdiscs.extend(other.qdiscs);
    }

    fn summary(&self, root: &Path) -> String {
        if self.programs.is_empty() && self.maps.is_empty() && self.tables.is_empty() {
            return format!("nothing to remove below {}", root.display());
        }
        let mut lines: Vec<String> = self.programs.iter().map(|place| format!("took off {place}")).collect();
        if !self.maps.is_empty() {
            lines.push(format!("removed {} maps below {}", self.maps.len(), root.display()));
        }
        lines.extend(self.tables.iter().cloned());
        lines.join("\n")
    }
}

/// Removes the links, filters and maps of one layout version, and its directories when they are empty
/// then. Files with names that are not ours stay.
pub fn remove_version(dir: &PinDir) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    for name in pin::entries(&dir.links()).map_err(system(&dir.links()))? {
        if remove_link(&dir.links().join(&name))? {
            removed.programs.push(place(&name));
        }
    }
    for name in pin::entries(&dir.filters()).map_err(system(&dir.filters()))? {
        if let (program, Some(index)) = pin::parse_link(&name)
            && remove_filter(dir, program, index)?
        {
            removed.programs.push(place(&name));
        }
    }
    match fs::remove_file(dir.new_filter()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(system(&dir.new_filter())(error));
        }
        _ => {}
    }
    for name in pin::entries(&dir.maps()).map_err(system(&dir.maps()))? {
        // A map of another layout version may have a name this release does not know.
        if dir.version() != lb_common::abi::ABI_VERSION || MAPS.contains(&name.as_str()) {
            let path = dir.map(&name);
            fs::remove_file(&path).map_err(system(&path))?;
            removed.maps.push(name);
        }
    }
    for name in pin::entries(&dir.qdiscs()).map_err(system(&dir.qdiscs()))? {
        removed.qdiscs.extend(name.parse::<u32>());
        remove_dir(&dir.qdiscs().join(&name))?;
    }
    for path in [dir.links(), dir.filters(), dir.maps(), dir.qdiscs(), dir.base()] {
        remove_dir(&path)?;
    }
    Ok(removed)
}

/// Takes away our table of nf_tables, and says so.
fn remove_table() -> Result<Option<String>, Error> {
    let failed =
        |source| Error::System { what: "cannot remove the table inet shunt of nf_tables".into(), source };
    let was_there = nat_table::remove().map_err(failed)?;
    Ok(was_there.then(|| "removed the table inet shunt of nf_tables".to_owned()))
}

/// Takes away clsact qdiscs nobody uses any more, and names them.
fn remove_qdiscs(interfaces: &[u32]) -> Result<Vec<String>, Error> {
    if interfaces.is_empty() {
        return Ok(Vec::new());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start the runtime".into(), source })?;
    let mut removed = Vec::new();
    for index in interfaces {
        if let Some(name) = interface_name(*index)
            && runtime.block_on(qdisc::remove_empty_clsact(*index))?
        {
            removed.push(format!("the clsact qdisc of {name}"));
        }
    }
    Ok(removed)
}

/// `pod_ingress of veth12`, or `connect4` for a socket program.
fn place(name: &str) -> String {
    match pin::parse_link(name) {
        (program, Some(index)) => match interface_name(index) {
            Some(interface) => format!("{program} of {interface}"),
            None => format!("{program} of interface {index}, which is gone"),
        },
        (program, None) => program.to_owned(),
    }
}

/// Removes a directory that is empty; one that is not, or not there, stays as it is.
fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY | libc::EBUSY)) => {
            Ok(())
        }
        Err(error) => Err(system(path)(error)),
    }
}

fn system(path: &Path) -> impl Fn(io::Error) -> Error {
    let path: PathBuf = path.to_owned();
    move |source| Error::System { what: format!("cannot remove {}", path.display()), source }
}
