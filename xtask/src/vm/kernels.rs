//! Kernels of Debian's packages: downloaded and unpacked once, never installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::kernel::{self, Choice, Wanted};
use super::modules::{Modules, NEEDED};
use crate::architecture::Architecture;
use crate::debian::index::{self, Package};
use crate::debian::{self, PrivateApt, Suite, make_folder};
use crate::setup::Unavailable;
use crate::{command, progress, repository};

/// Where kernels are looked for. 5.10 to the newest, each also for real time.
const SUITES: &[Suite] = &[
    Suite::Binary("bullseye-security"),
    Suite::Binary("bookworm"),
    Suite::Binary("bookworm-updates"),
    Suite::Binary("bookworm-security"),
    Suite::Binary("trixie"),
    Suite::Binary("trixie-updates"),
    Suite::Binary("trixie-security"),
    Suite::Binary("trixie-backports"),
    Suite::Binary("sid"),
];
/// For so long the lists of packages are taken as they are.
const FRESH: Duration = Duration::from_secs(12 * 3600);

/// A kernel that can be booted.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Debian's version.
    pub version: String,
    /// The compressed kernel.
    pub image: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

/// The kernels of this machine's cache, and where new ones come from.
pub struct Store {
    folder: PathBuf,
    architecture: Architecture,
    apt: PrivateApt,
    packages: Vec<Package>,
    /// One run at a time downloads.
    _lock: File,
}

impl Store {
    /// Opens the cache and looks which kernels there are in Debian.
    pub fn open(architecture: Architecture) -> Result<Self> {
        if !debian::is_here() {
            return Err(Unavailable::new(
                "kernels come from Debian's packages, and apt or Debian's keys are missing here. On a system with \
                 apt: sudo apt-get install --no-install-recommends debian-archive-keyring",
            )
            .into());
        }
        let folder = repository::cache()?.join("kernels").join(architecture.of_debian());
        make_folder(&folder)?;
        let lock = File::create(folder.join("lock")).into_diagnostic()?;
        if lock.try_lock().is_err() {
            eprintln!("  waiting for another run that downloads kernels …");
            lock.lock().into_diagnostic()?;
        }
        let apt = PrivateApt::new(&folder.join("apt"), architecture.of_debian(), SUITES)?;
        let mut store = Self { folder, architecture, apt, packages: Vec::new(), _lock: lock };
        if store.is_stale() {
            store.update()?;
        }
        store.read()?;
        Ok(store)
    }

    /// Finds the newest version and unpacks it, if that has not been done before.
    pub fn kernel(&mut self, wanted: Wanted) -> Result<Kernel> {
        match self.find(wanted) {
            // What the lists name may have made room for something newer since.
            Err(_) if !self.is_as_new_as_this_process() => {
                self.update()?;
                self.read()?;
                self.find(wanted)
            }
            result => result,
        }
        .wrap_err_with(|| format!("the kernel {wanted} cannot be had from Debian's packages"))
    }

    fn find(&self, wanted: Wanted) -> Result<Kernel> {
        let mut reasons = Vec::new();
        for flavour in wanted.flavours(self.architecture) {
            let choice = match kernel::choose(&self.packages, wanted, &flavour) {
                Ok(choice) => choice,
                Err(reason) => {
                    reasons.push(reason);
                    continue;
                }
            };
            let kernel = self.unpacked(wanted, &choice)?;
            match Modules::find(&kernel.modules)?.missing(NEEDED).as_slice() {
                [] => return Ok(kernel),
                missing => reasons.push(format!("{flavour} lacks the modules {}", missing.join(", "))),
            }
        }
        Err(miette!("{}", reasons.join("; ")))
    }

    fn unpacked(&self, wanted: Wanted, choice: &Choice) -> Result<Kernel> {
        let shelf = self.folder.join(format!("{wanted}-{}", choice.flavour));
        let folder = shelf.join(&choice.version);
        if !folder.exists() {
            // One version is kept.
            if shelf.exists() {
                fs::remove_dir_all(&shelf).into_diagnostic().wrap_err_with(|| shelf.display().to_string())?;
            }
            let draft = shelf.join("draft");
            make_folder(&draft)?;
            self.unpack(choice, &draft)?;
            fs::rename(&draft, &folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
        }
        let (image, modules) =
            parts(&folder).ok_or_else(|| miette!("no vmlinuz and modules below {}", folder.display()))?;
        Ok(Kernel { version: choice.version.clone(), image, modules })
    }

    fn unpack(&self, choice: &Choice, folder: &Path) -> Result<()> {
        let downloads = self.folder.join("downloads");
        if downloads.exists() {
            fs::remove_dir_all(&downloads).into_diagnostic()?;
        }
        make_folder(&downloads)?;
        let packages: Vec<_> =
            choice.packages.iter().map(|name| format!("{name}={}", choice.version)).collect();
        let mut words = vec!["download"];
        words.extend(packages.iter().map(String::as_str));
        progress::run(&format!("download {}", packages.join(" ")), &mut self.apt.get(&downloads, &words))?;
        for entry in fs::read_dir(&downloads).into_diagnostic()? {
            let package = entry.into_diagnostic()?.path();
            command::output(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder))?;
        }
        fs::remove_dir_all(&downloads).into_diagnostic()
    }

    fn update(&self) -> Result<()> {
        progress::run(
            "package lists of Debian",
            &mut self.apt.get(&self.folder, &["update", "--error-on=any"]),
        )?;
        let stamp = self.stamp();
        fs::write(&stamp, "").into_diagnostic().wrap_err_with(|| stamp.display().to_string())
    }

    fn read(&mut self) -> Result<()> {
        let indexes = self.apt.indexes()?;
        self.packages =
            indexes.iter().flat_map(|index| index::packages(index, kernel::is_of_a_kernel)).collect();
        if self.packages.is_empty() { Err(miette!("Debian's package lists name no kernel")) } else { Ok(()) }
    }

    /// A file as old as the lists.
    fn stamp(&self) -> PathBuf {
        self.folder.join("lists-updated")
    }

    fn age(&self) -> Option<Duration> {
        SystemTime::now().duration_since(self.stamp().metadata().ok()?.modified().ok()?).ok()
    }

    fn is_stale(&self) -> bool {
        self.age().is_none_or(|age| age > FRESH)
    }

    fn is_as_new_as_this_process(&self) -> bool {
        self.age().is_some_and(|age| age < Duration::from_secs(60))
    }
}

/// vmlinuz and the folder of modules, wherever this version of the package has them.
fn parts(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let first = |folder: PathBuf, wanted: fn(&Path) -> bool| {
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).find(|path| wanted(path))
    };
    let modules = ["lib/modules", "usr/lib/modules"]
        .into_iter()
        .find_map(|place| first(folder.join(place), |path| path.join("modules.builtin").exists()))?;
    let is_image =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinu"));
    let image = first(folder.join("boot"), is_image).or_else(|| first(modules.clone(), is_image))?;
    Some((image, modules))
}
