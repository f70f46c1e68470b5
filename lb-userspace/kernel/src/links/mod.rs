//! Attaches programs to interfaces and cgroups, through links that outlive the agent.
//!
//! The pinned links are the record of what is attached: an agent that starts finds them and puts its
//! programs in, so that no packet sees a moment without one.

mod error;
pub mod interfaces;
pub mod link;
mod state;
mod xdp;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use aya_obj::generated as kernel;
use lb_control::network::XdpAttached;
use tracing::{debug, info};

use crate::pin::{self, PinDir};
use crate::programs::load::{AttachPoint, POD_INGRESS, ProgramSpec, Programs, SOCKET_PROGRAMS};
use crate::sys;

pub use error::AttachError;
pub use state::{State, Trouble};

use link::LinkTarget;

/// Preference of our clsact filters: early, and room before them.
const FILTER_PRIORITY: u16 = 2;
/// Handle of our clsact filters: "SH".
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 0x5348);

/// How XDP is attached (`--xdp-mode`).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// In the driver of cards that can; where not, and on veths and taps, tc does its work.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the network stack: for trying things out, where no card merges packets.
    Generic,
    /// Not at all: tc alone.
    Off,
}

/// Which kernel facility the tc programs hang on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcKind {
    /// Links in a chain, Linux 6.6 and newer.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// The programs and the places they are attached to.
#[derive(Debug)]
pub struct Hooks {
    pins: PinDir,
    programs: Programs,
    tc: TcKind,
    /// Programs of earlier agents make room for these.
    replaces: bool,
}

/// An interface to attach to.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: &'a str,
    /// Its driver or kind, for messages.
    pub driver: &'a str,
    /// The XDP program that hangs there now, and how.
    pub xdp: Option<(XdpAttached, u32)>,
}

impl At<'_> {
    fn refused(&self, program: ProgramSpec, source: io::Error) -> AttachError {
        if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) {
            return AttachError::Gone { interface: self.name.to_owned() };
        }
        AttachError::Interface { interface: self.name.to_owned(), program: program.name, source }
    }
}

impl Hooks {
    /// Attaches `programs`, with links pinned in `pins`.
    pub fn new(pins: PinDir, programs: Programs) -> Self {
        // A hidden switch, so that the older way can be tried on a newer kernel.
        let forced = std::env::var_os("SHUNT_FORCE_CLSACT").is_some_and(|value| value == "1");
        let tc = if !forced && has_tcx(&programs) { TcKind::Tcx } else { TcKind::Clsact };
        if forced {
            info!("SHUNT_FORCE_CLSACT: clsact filters are used");
        }
        Self { pins, programs, tc, replaces: true }
    }

    /// The same, but whatever program hangs where one of ours should hang stays.
    #[must_use]
    pub fn that_replace_nothing(self) -> Self {
        Self { replaces: false, ..self }
    }

    /// Whether a tc program of ours, this agent's or another's, hangs on the interface.
    pub fn hangs(&self, program: ProgramSpec, index: u32) -> bool {
        let is_filter = || self.versions().iter().any(|dir| dir.filter(program.name, index).exists());
        let is_link = || {
            candidates(&self.pins, &self.pins.link(program.name, index)).iter().any(|path| {
                let link = open_link(path).ok().flatten();
                let info = link.and_then(|link| link::info(link.as_fd()).ok());
                info.is_some_and(|info| info.interface() == index)
            })
        };
        is_link() || self.tc == TcKind::Clsact && is_filter()
    }

    /// Which kernel facility the tc programs hang on.
    pub const fn tc_kind(&self) -> TcKind {
        self.tc
    }

    /// The verified programs.
    pub const fn programs(&mut self) -> &mut Programs {
        &mut self.programs
    }

    /// Attaches a tc program, or puts it in where an earlier agent's hangs.
    pub fn attach_tc(&mut self, program: ProgramSpec, at: At<'_>) -> Result<(), AttachError> {
        match self.tc {
            TcKind::Tcx => {
                self.attach_tcx(program, at)?;
                // Filters of an agent that ran on an older kernel's terms would count packets twice.
                self.remove_filter(program.name, at.index)
            }
            TcKind::Clsact => {
                self.attach_filter(program, at)?;
                self.remove_link(&self.pins.link(program.name, at.index))
            }
        }
    }

    fn attach_tcx(&mut self, program: ProgramSpec, at: At<'_>) -> Result<(), AttachError> {
        let path = self.pins.link(program.name, at.index);
        if self.adopt(program, at, &path)? {
            return Ok(());
        }
        let (kind, flags) = match program.point {
            // First in, last out: what others see is the packet as it is on the wire inside the node.
            AttachPoint::Egress => (kernel::bpf_attach_type::BPF_TCX_EGRESS, kernel::BPF_F_AFTER),
            _ => (kernel::bpf_attach_type::BPF_TCX_INGRESS, kernel::BPF_F_BEFORE),
        };
        let fd = self.programs.fd(program).map_err(|error| at.refused(program, error))?;
        let link = link::create(fd, LinkTarget::Interface(at.index), kind as u32, flags)
            .map_err(|error| at.refused(program, error))?;
        match pin(&path, &link) {
            // The keeper was there first, or the agent: one of them is enough.
            Err(AttachError::Pin { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                detach(&link).map_err(|error| at.refused(program, error))?;
                self.adopt(program, at, &path).map(drop)
            }
            other => other,
        }
    }

    fn attach_filter(&mut self, program: ProgramSpec, at: At<'_>) -> Result<(), AttachError> {
        let path = self.pins.filter(program.name, at.index);
        let failed = |source| AttachError::Filter {
            interface: at.name.to_owned(),
            program: program.name,
            source: Box::new(source),
        };
        let kind = tc_attach_type(program);
        // An error means that the qdisc is there already, or shows again when the filter is attached.
        let added = qdisc_add_clsact(at.name).is_ok();
        if added || self.versions().iter().any(|dir| dir.qdisc(at.index).exists()) {
            let path = self.pins.qdisc(at.index);
            fs::create_dir_all(&path).map_err(|source| AttachError::Pin { path, source })?;
        }
        // The program's own pin is the record that the filter is ours: it stands before the filter does, so that the next
        // agent knows it whenever this one ends.
        let records = self.versions().into_iter().map(|dir| dir.filter(program.name, at.index));
        let earlier: Vec<PathBuf> = records.filter(|path| path.exists()).collect();
        self.record_filter(program, &path)?;
        let mut classifier = SchedClassifier::from_pin(&path).map_err(failed)?;
        let options = NlOptions { priority: FILTER_PRIORITY, handle: FILTER_HANDLE, classid: None };
        let attached = classifier.attach_with_options(at.name, kind, TcAttachOptions::Netlink(options));
        let id = match attached {
            Ok(id) => id,
            Err(_) if !earlier.is_empty() => {
                let link = filter_link(at.name, kind).map_err(|error| at.refused(program, error))?;
                classifier.attach_to_link(link).map_err(failed)?
            }
            Err(error) => {
                remove_file(&path)?;
                return Err(failed(error));
            }
        };
        keep_filter(classifier.take_link(id).map_err(failed)?);
        earlier.iter().filter(|record| **record != path).try_for_each(|record| remove_file(record))
    }

    /// Our pins, then those of other layout versions.
    fn versions(&self) -> Vec<PinDir> {
        let others = PinDir::versions(self.pins.root()).unwrap_or_default().into_iter();
        let others = others.filter(|dir| dir.version() != self.pins.version());
        std::iter::once(self.pins.clone()).chain(others).collect()
    }

    /// Pins the program as the record of a filter, in place of an earlier one's: there is no moment without.
    fn record_filter(&self, program: ProgramSpec, path: &Path) -> Result<(), AttachError> {
        let failed = |source| AttachError::Pin { path: path.to_owned(), source };
        let new = self.pins.new_filter();
        remove_file(&new)?;
        sys::obj_pin(&new, self.programs.fd(program).map_err(failed)?).map_err(failed)?;
        fs::rename(&new, path).map_err(failed)
    }

    /// Puts the program in the link pinned at `path`, or in one of an older layout version, which then
    /// moves here. False when there is none, or none that still hangs on this interface.
    fn adopt(&mut self, program: ProgramSpec, at: At<'_>, path: &Path) -> Result<bool, AttachError> {
        let fd = self.programs.fd(program).map_err(|error| at.refused(program, error))?;
        for candidate in candidates(&self.pins, path) {
            let Some(link) = open_link(&candidate)? else { continue };
            let info = link::info(link.as_fd())
                .map_err(|source| AttachError::Pin { path: candidate.clone(), source })?;
            if info.interface() != at.index {
                // The interface it hung on is gone and its index has been given out again.
                remove_file(&candidate)?;
                continue;
            }
            if self.replaces && Some(info.prog_id) != self.programs.id(program) {
                link::update(link.as_fd(), fd).map_err(|error| at.refused(program, error))?;
            }
            move_pin(&candidate, path).map_err(|source| AttachError::Pin { path: candidate, source })?;
            debug!(interface = at.name, program = program.name, "adopted");
            return Ok(true);
        }
        Ok(false)
    }

    /// Attaches every socket program to `cgroup`, or puts it in where an earlier agent's hangs.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), AttachError> {
        for program in SOCKET_PROGRAMS {
            let failed =
                |source| AttachError::Socket { cgroup: cgroup.to_owned(), program: program.name, source };
            self.attach_socket(program, cgroup).map_err(failed)?;
        }
        info!(cgroup = %cgroup.display(), "socket hooks attached");
        Ok(())
    }

    fn attach_socket(&mut self, program: ProgramSpec, cgroup: &Path) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let AttachPoint::Socket(kind) = program.point else { return Err(io::ErrorKind::InvalidInput.into()) };
        let path = self.pins.socket_link(program.name);
        let folder = fs::File::open(cgroup)?;
        let inode = folder.metadata()?.ino();
        let fd = self.programs.fd(program)?;
        let mut elsewhere = None;
        for candidate in candidates(&self.pins, &path) {
            let link = match sys::obj_get(&candidate, false) {
                Ok(link) => link,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if link::info(link.as_fd())?.cgroup() != inode {
                elsewhere = Some((candidate, link));
                continue;
            }
            link::update(link.as_fd(), fd)?;
            return move_pin(&candidate, &path);
        }
        let link = link::create(fd, LinkTarget::Cgroup(folder.as_fd()), kind, 0)?;
        let Some((old_path, old)) = elsewhere else { return sys::obj_pin(&path, link.as_fd()) };
        // The new place is served before the old one is left.
        fs::remove_file(old_path)?;
        sys::obj_pin(&path, link.as_fd())?;
        detach(&old)
    }

    /// Takes the socket programs off.
    pub fn detach_sockets(&self) -> Result<(), AttachError> {
        // In the opposite order: what is translated is translated back to the end.
        SOCKET_PROGRAMS
            .iter()
            .rev()
            .try_for_each(|program| self.remove_link(&self.pins.socket_link(program.name)))
    }

    /// Takes off everything on interfaces that `keep` does not want, by program and interface index.
    pub fn sweep(&self, keep: impl Fn(&str, u32) -> bool) -> Result<(), AttachError> {
        let list = |dir: PathBuf| {
            pin::entries(&dir).map_err(|source| AttachError::Pin { path: dir.clone(), source })
        };
        let wanted = |name: &str| match pin::parse_link(name) {
            (program, Some(index)) => keep(program, index),
            // A socket hook's.
            _ => true,
        };
        let (kept, gone): (Vec<_>, Vec<_>) =
            list(self.pins.links())?.into_iter().partition(|name| wanted(name));
        let id = |name: &String| self.link_id(name);
        let kept: BTreeSet<u32> = kept.iter().filter_map(id).collect();
        for name in gone {
            let path = self.pins.links().join(&name);
            // A second name for a link that is in use: whoever gave it, the link stays.
            if id(&name).is_some_and(|id| kept.contains(&id)) {
                remove_file(&path)?;
            } else {
                self.remove_link(&path)?;
            }
        }
        for name in list(self.pins.filters())? {
            if let (program, Some(index)) = pin::parse_link(&name)
                && !keep(program, index)
            {
                self.remove_filter(program, index)?;
            }
        }
        Ok(())
    }

    /// Takes off one program from one interface, however it hangs there.
    pub fn detach(&self, program: &str, index: u32) -> Result<(), AttachError> {
        self.remove_link(&self.pins.link(program, index))?;
        self.remove_filter(program, index)
    }

    /// Id of the link that is pinned under a name, if it is one.
    fn link_id(&self, name: &str) -> Option<u32> {
        let link = open_link(&self.pins.links().join(name)).ok()??;
        link::info(link.as_fd()).ok().map(|info| info.id)
    }

    fn remove_link(&self, path: &Path) -> Result<(), AttachError> {
        remove_link(path).map(drop)
    }

    fn remove_filter(&self, program: &str, index: u32) -> Result<(), AttachError> {
        remove_filter(&self.pins, program, index).map(drop)
    }
}

/// Whether the kernel has tcx (since 6.6), which it is asked: one that has it looks for the interface, and there is none with this
/// number; another one does not know the attach type. Told once.
fn has_tcx(programs: &Programs) -> bool {
    const NONE: LinkTarget<'static> = LinkTarget::Interface(0);
    let kind = kernel::bpf_attach_type::BPF_TCX_INGRESS as u32;
    let answer = programs.fd(POD_INGRESS).and_then(|program| link::create(program, NONE, kind, 0));
    let has = answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV));
    if !has {
        info!("this kernel has no tcx, so clsact filters are used");
    }
    has
}

/// The filter stays when the agent ends; dropping aya's link would take it off.
#[expect(clippy::disallowed_methods, reason = "a filter has no descriptor to pin; it must outlive the agent")]
fn keep_filter(link: SchedClassifierLink) {
    std::mem::forget(link);
}

const fn tc_attach_type(program: ProgramSpec) -> TcAttachType {
    match program.point {
        AttachPoint::Egress => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    }
}

fn filter_link(interface: &str, kind: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, kind, FILTER_PRIORITY, FILTER_HANDLE, None)
}

/// The pin itself, then the same name in other layout versions.
fn candidates(pins: &PinDir, path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let others = PinDir::versions(pins.root()).unwrap_or_default().into_iter();
    if let Some(name) = path.file_name() {
        found.extend(others.filter(|dir| dir.version() != pins.version()).map(|dir| dir.links().join(name)));
    }
    found
}

fn open_link(path: &Path) -> Result<Option<OwnedFd>, AttachError> {
    match sys::obj_get(path, false) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AttachError::Pin { path: path.to_owned(), source }),
    }
}

fn pin(path: &Path, link: &OwnedFd) -> Result<(), AttachError> {
    sys::obj_pin(path, link.as_fd()).map_err(|source| AttachError::Pin { path: path.to_owned(), source })
}

/// In one step: with two pins, what cleans up behind the other layout version would take the link off.
fn move_pin(from: &Path, to: &Path) -> io::Result<()> {
    if from == to { Ok(()) } else { fs::rename(from, to) }
}

fn remove_file(path: &Path) -> Result<(), AttachError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Pin { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Detaches a link now, not when its last reference goes: the kernel drops those in its own time.
fn detach(link: &OwnedFd) -> io::Result<()> {
    match link::detach(link.as_fd()) {
        // What it hung on is gone already.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

/// Detaches the link pinned at `path` and removes the pin; false when there is none.
pub fn remove_link(path: &Path) -> Result<bool, AttachError> {
    let Some(link) = open_link(path)? else { return Ok(false) };
    detach(&link).map_err(|source| AttachError::Pin { path: path.to_owned(), source })?;
    remove_file(path)?;
    Ok(true)
}

/// Takes off our clsact filter of an interface and removes its record; false when there is none.
pub fn remove_filter(pins: &PinDir, program: &str, index: u32) -> Result<bool, AttachError> {
    let path = pins.filter(program, index);
    if !path.exists() {
        return Ok(false);
    }
    if let Some(interface) = interface_name(index) {
        let kind = if program.ends_with("egress") { TcAttachType::Egress } else { TcAttachType::Ingress };
        // Dropping aya's link takes the filter off; an interface that is gone has none.
        drop(filter_link(&interface, kind));
    } else {
        // The other filter of the interface may have removed it already.
        let _ = fs::remove_dir(pins.qdisc(index));
    }
    remove_file(&path)?;
    Ok(true)
}

/// The name of an interface of this namespace.
pub fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}
