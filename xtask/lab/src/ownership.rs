//! Who owns which lab, and taking labs down, whatever became of their owners.
//!
//! A lab is named after the process that made it. Everything it consists of can be found from that name: a folder under
//! [`STATE`], namespaces and a control group with the name as prefix. A lab goes away
//! * when [`super::Lab`] is dropped,
//! * when its owner ends in any other way (Ctrl-C, panic, kill -9): a keeper process holds the end of a pipe to the
//!   owner and takes the lab down when the pipe closes,
//! * at the next start of a lab, should the keeper have been killed too.
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use super::error::{Doing, LabError, Result};
use super::netns::{ip_batch, netns_path};
use super::plan::NodeId;
use super::wait::poll;

/// Folder that holds one folder per lab.
const STATE: &str = "/run/shunt-lab";
const OWNER: &str = "owner";
/// How long the processes of a lab may take to be gone after SIGKILL.
const DEATH: Duration = Duration::from_secs(10);

/// The name of a lab: unique among the labs of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabId(String);

impl LabId {
    /// The next name for this process.
    fn next() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        match COUNT.fetch_add(1, Ordering::Relaxed) {
            0 => LabId(format!("lab{pid}")),
            count => LabId(format!("lab{pid}n{count}")),
        }
    }

    /// A lab by its name.
    pub fn named(name: &str) -> Self {
        LabId(name.to_owned())
    }

    /// The lab that runs on this machine, if there is exactly one.
    pub fn only() -> Result<Self> {
        let entries = fs::read_dir(STATE).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| !name.starts_with('.'));
        match names.as_slice() {
            [name] => Ok(LabId(name.clone())),
            [] => Err(LabError::Missing {
                problem: "no lab runs on this machine".into(),
                remedy: "start one in another terminal: cargo xtask run".into(),
            }),
            several => Err(LabError::Missing {
                problem: format!("several labs run on this machine: {}", several.join(", ")),
                remedy: "name one with --lab".into(),
            }),
        }
    }

    /// The namespace file and the control group of one of the lab's places.
    pub fn find_netns(&self, place: &str) -> Result<(PathBuf, PathBuf)> {
        let group = self.cgroup()?;
        let candidates = match place.strip_prefix("pod-") {
            None if place.starts_with("node-") => vec![group.join(place).join("host")],
            None => vec![group.join(place)],
            Some(pod) => {
                NodeId::ALL.iter().map(|node| group.join(node.name()).join("pods").join(pod)).collect()
            }
        };
        let netns = netns_path(&self.ip_name(place));
        match candidates.into_iter().find(|group| group.is_dir()) {
            Some(group) if netns.exists() => Ok((netns, group)),
            _ => Err(LabError::Missing {
                problem: format!("the lab {} has no place {place}", self.0),
                remedy: "there are client, wire, node-a, node-b and pod-NAME; see `ip netns list`".into(),
            }),
        }
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The lab's folder.
    pub fn folder(&self) -> PathBuf {
        Path::new(STATE).join(&self.0)
    }

    /// The lab's control group.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup2_mount()?.join(format!("shunt-{}", self.0)))
    }

    /// The full name of one of the lab's namespaces.
    pub fn ip_name(&self, place: &str) -> String {
        format!("{}-{place}", self.0)
    }
}

/// A claimed lab name; taking the claim down takes the lab down.
#[derive(Debug)]
pub struct Claim {
    id: LabId,
    keeper: Option<Child>,
}

impl Claim {
    /// Sweeps labs without an owner, claims a name, and starts the keeper. `helper` is the xtask program.
    pub fn new(helper: &Path) -> Result<Claim> {
        sweep()?;
        let id = LabId::next();
        let folder = id.folder();
        // The owner's name is in the folder when the folder appears, so that nobody takes it for a leftover.
        let draft = Path::new(STATE).join(format!(".{}", id.as_str()));
        fs::create_dir_all(&draft)
            .doing(|| format!("make the folder {} (labs need root)", draft.display()))?;
        let pid = std::process::id();
        let owner = format!("{pid} {}", start_time(pid).unwrap_or_default());
        fs::write(draft.join(OWNER), owner).doing(|| format!("write {}", draft.join(OWNER).display()))?;
        fs::rename(&draft, &folder).doing(|| format!("make the folder {}", folder.display()))?;
        let keeper = Command::new(helper)
            .args(["lab-keeper", id.as_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C is for the owner, not for the keeper.
            .process_group(0)
            .spawn();
        match keeper {
            Ok(keeper) => Ok(Claim { id, keeper: Some(keeper) }),
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                Err(error).doing(|| format!("start {} as the lab's keeper", helper.display()))
            }
        }
    }

    /// The claimed name.
    pub fn id(&self) -> &LabId {
        &self.id
    }

    /// Takes the lab down.
    pub fn release(&mut self) -> Result<()> {
        let Some(mut keeper) = self.keeper.take() else { return Ok(()) };
        let result = take_down(&self.id);
        drop(keeper.stdin.take());
        let _ = keeper.wait();
        result
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            eprintln!("the lab {} is not completely gone: {error}", self.id.as_str());
        }
    }
}

/// The keeper's work: waits until the owner has let go of the pipe on standard input, then takes the lab down.
pub fn keep(id: &str) -> Result<()> {
    let mut nothing = Vec::new();
    let _ = io::stdin().read_to_end(&mut nothing);
    let id = LabId(id.to_owned());
    if id.folder().exists() { take_down(&id) } else { Ok(()) }
}

/// Takes down the labs whose owners are gone.
pub fn sweep() -> Result<()> {
    let entries = match fs::read_dir(STATE) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).doing(|| format!("list {STATE}")),
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !owner_lives(&entry.path()) {
            take_down(&LabId(name))?;
        }
    }
    Ok(())
}

fn owner_lives(folder: &Path) -> bool {
    let Ok(owner) = fs::read_to_string(folder.join(OWNER)) else { return false };
    let Some((pid, started)) = owner.split_once(' ') else { return false };
    pid.parse().ok().and_then(start_time).is_some_and(|actual| actual == started)
}

/// When a process started, in ticks since boot; a pid and this name a process for good.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, field 2, is in parentheses and may hold anything; the start time is field 22.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(19).map(str::to_owned)
}

/// Where the cgroup2 file system is mounted.
pub(super) fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").doing(|| "read /proc/mounts".into())?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .ok_or_else(|| LabError::Missing {
            problem: "no cgroup2 file system is mounted".into(),
            remedy:
                "mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
                    .into(),
        })
}

/// Ends the lab's processes and removes all it consists of. Goes on after an error and returns the first.
fn take_down(id: &LabId) -> Result<()> {
    let steps =
        [end_processes(id), remove_cgroups(id), unmount_all(id), remove_namespaces(id), remove_folder(id)];
    steps.into_iter().collect()
}

fn end_processes(id: &LabId) -> Result<()> {
    kill_group(&id.cgroup()?)
}

/// Kills every process of a control group and its children, and waits until they are gone.
pub(super) fn kill_group(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    fs::write(group.join("cgroup.kill"), "1")
        .doing(|| format!("kill the processes of {}", group.display()))?;
    poll(&format!("the processes of {} to end", group.display()), DEATH, || {
        let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
        (!events.contains("populated 1")).then_some(())
    })
}

fn remove_cgroups(id: &LabId) -> Result<()> {
    remove_group(&id.cgroup()?)
}

/// Removes a control group and its children.
pub(super) fn remove_group(group: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(group) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path())?;
        }
    }
    // Zombies that wait for their parent keep a group busy for a moment.
    let mut last = Ok(());
    let _ = poll("", Duration::from_secs(5), || {
        last = fs::remove_dir(group);
        last.is_ok().then_some(())
    });
    last.doing(|| format!("remove the control group {}", group.display()))
}

fn unmount_all(id: &LabId) -> Result<()> {
    let folder = format!("{}/", id.folder().display());
    let mounts = fs::read_to_string("/proc/mounts").doing(|| "read /proc/mounts".into())?;
    let mine = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with(&folder));
    for path in mine {
        umount2(path, MntFlags::MNT_DETACH).doing(|| format!("unmount {path}"))?;
    }
    Ok(())
}

fn remove_namespaces(id: &LabId) -> Result<()> {
    let prefix = id.ip_name("");
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let lines: String =
        names.filter(|name| name.starts_with(&prefix)).map(|name| format!("netns del {name}\n")).collect();
    if lines.is_empty() { Ok(()) } else { ip_batch(None, &lines) }
}

fn remove_folder(id: &LabId) -> Result<()> {
    match fs::remove_dir_all(id.folder()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("remove {}", id.folder().display()))
        }
        _ => {
            // Gone with the last lab; kept while there are others.
            let _ = fs::remove_dir(STATE);
            Ok(())
        }
    }
}
