//! Virtual machines: QEMU, with the processor's help where that works.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::plan::Event;
use crate::architecture::Architecture;

/// Lines of the console that a failure shows.
const SHOWN_LINES: usize = 40;
const MEMORY_MEGABYTES: u32 = 1536;

/// What carries out the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// The processor itself.
    Kvm,
    /// QEMU, some twenty times slower.
    Emulation,
}

impl Acceleration {
    /// How much longer everything may take than on the machine itself.
    pub fn patience(self) -> u32 {
        match self {
            Acceleration::Kvm => 2,
            Acceleration::Emulation => 10,
        }
    }
}

/// A kind of virtual machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// What it runs.
    pub architecture: Architecture,
    /// How it runs it.
    pub acceleration: Acceleration,
}

/// A kernel and what it finds at its start.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The kernel.
    pub image: &'a Path,
    /// Its initial file system.
    pub initial: &'a Path,
    /// The program in it that is started first, with `vm-init`.
    pub init: &'a Path,
    /// Where console and events are written.
    pub folder: &'a Path,
    /// After so long the machine is stopped.
    pub within: Duration,
}

impl Machine {
    /// The program.
    pub fn program(self) -> &'static str {
        match self.architecture {
            Architecture::X86_64 => "qemu-system-x86_64",
            Architecture::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// Whether KVM may be there; only a machine that boots with it shows that it works.
    pub fn may_have_kvm(self) -> bool {
        self.architecture == Architecture::OWN
            && File::options().read(true).write(true).open("/dev/kvm").is_ok()
    }

    /// Emulated CPUs of a PC take turns: with a thread for each, kernels stop at random. A second one then makes everything three
    /// times slower. Those of ARM need no turns here.
    fn cpus(self) -> &'static str {
        match (self.architecture, self.acceleration) {
            (Architecture::X86_64, Acceleration::Emulation) => "1",
            _ => "2",
        }
    }

    /// The device that events are written to, inside.
    pub fn events(self) -> &'static Path {
        Path::new(match self.architecture {
            Architecture::X86_64 => "/dev/ttyS1",
            Architecture::Aarch64 => "/dev/ttyS0",
        })
    }

    fn command(self, boot: &Boot<'_>) -> Command {
        // It ends with this program, whatever becomes of that.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", self.program()]);
        let file = |name: &str| format!("file:{}", boot.folder.join(name).display());
        match (self.architecture, self.acceleration) {
            (Architecture::X86_64, Acceleration::Kvm) => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            // A processor without what is slow to emulate.
            (Architecture::X86_64, Acceleration::Emulation) => {
                qemu.args(["-accel", "tcg,thread=single", "-cpu", "Nehalem"])
            }
            (Architecture::Aarch64, Acceleration::Kvm) => {
                qemu.args(["-machine", "virt", "-accel", "kvm", "-cpu", "host"])
            }
            (Architecture::Aarch64, Acceleration::Emulation) => {
                qemu.args(["-machine", "virt", "-accel", "tcg,thread=multi", "-cpu", "cortex-a72"])
            }
        };
        qemu.args(["-smp", self.cpus(), "-m", &MEMORY_MEGABYTES.to_string()]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        qemu.args(["-serial", &file("console")]);
        let console = match self.architecture {
            Architecture::X86_64 => {
                qemu.args(["-serial", &file("events")]);
                "ttyS0"
            }
            Architecture::Aarch64 => {
                qemu.args([
                    "-chardev",
                    &format!("file,id=events,path={}", boot.folder.join("events").display()),
                ]);
                qemu.args(["-device", "pci-serial,chardev=events"]);
                "ttyAMA0"
            }
        };
        qemu.arg("-kernel").arg(boot.image).arg("-initrd").arg(boot.initial);
        // A busy host makes the timer look broken.
        let settings = "quiet panic=-1 no_timer_check mitigations=off nokaslr norandmaps random.trust_cpu=on";
        // On a busy host the measured rate of the emulated TSC is wrong, and time runs several times too fast.
        let clock = match (self.architecture, self.acceleration) {
            (Architecture::X86_64, Acceleration::Emulation) => "clocksource=hpet",
            _ => "",
        };
        let init = boot.init.display();
        qemu.args(["-append", &format!("console={console} {settings} {clock} rdinit={init} -- vm-init")]);
        qemu
    }

    /// Boots and waits for the end; `watch` sees each event when it comes.
    pub fn boot(self, boot: &Boot<'_>, mut watch: impl FnMut(&Event)) -> Result<Outcome> {
        fs::create_dir_all(boot.folder).into_diagnostic()?;
        let mut command = self.command(boot);
        let errors = File::create(boot.folder.join("qemu.log")).into_diagnostic()?;
        for name in ["console", "events"] {
            File::create(boot.folder.join(name)).into_diagnostic()?;
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot start {}", self.program()))?;
        let mut events = Lines::open(&boot.folder.join("events"))?;
        let mut outcome =
            Outcome { folder: boot.folder.into(), events: Vec::new(), end: End::Stopped(boot.within) };
        let deadline = Instant::now() + boot.within;
        loop {
            let ended = child.try_wait().into_diagnostic()?;
            for line in events.read()? {
                // The console's device may put something of its own before the first.
                if let Ok(event) = serde_json::from_str(line.trim()) {
                    watch(&event);
                    outcome.events.push(event);
                }
            }
            if let Some(status) = ended {
                outcome.end = End::Off(status);
                return Ok(outcome);
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                child.wait().into_diagnostic()?;
                return Ok(outcome);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The whole lines of a file that grows.
struct Lines {
    file: BufReader<File>,
    rest: String,
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: BufReader::new(File::open(path).into_diagnostic()?), rest: String::new() })
    }

    fn read(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut bytes = Vec::new();
            self.file.by_ref().read_until(b'\n', &mut bytes).into_diagnostic()?;
            if bytes.is_empty() {
                return Ok(lines);
            }
            self.rest += &String::from_utf8_lossy(&bytes);
            if self.rest.ends_with('\n') {
                lines.push(std::mem::take(&mut self.rest));
            }
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// QEMU ended.
    Off(ExitStatus),
    /// It was stopped after so long.
    Stopped(Duration),
}

/// What came of a boot.
#[derive(Debug)]
pub struct Outcome {
    folder: PathBuf,
    /// What was told, in order.
    pub events: Vec<Event>,
    /// How the machine ended.
    pub end: End,
}

impl Outcome {
    /// An error with the end of the console, unless the machine came to the end of its plan.
    pub fn complete(&self) -> Result<()> {
        if self.events.last() == Some(&Event::Done) {
            return Ok(());
        }
        let how = match self.end {
            End::Stopped(within) => format!("did not come to its end within {} s", within.as_secs()),
            End::Off(status) if status.into_raw() == 0 => "went off before its end".into(),
            End::Off(status) => format!("did not come to its end: QEMU ended ({status})"),
        };
        let read = |name: &str| {
            let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\r', "")
        };
        let console = read("console");
        let lines: Vec<_> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        Err(miette!(
            "the virtual machine {how}. All it said is in {}; the end of its console:\n{tail}\n{}",
            self.folder.join("console").display(),
            read("qemu.log")
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_read_when_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut file = File::create(&path).unwrap();
        let mut lines = Lines::open(&path).unwrap();
        write!(file, "one\ntw").unwrap();
        assert_eq!(lines.read().unwrap(), ["one\n"]);
        writeln!(file, "o").unwrap();
        assert_eq!(lines.read().unwrap(), ["two\n"]);
        assert!(lines.read().unwrap().is_empty());
    }

    #[test]
    fn a_machine_that_does_not_say_done_has_failed_and_its_console_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("console"), "one\r\nKernel panic - not syncing\r\n").unwrap();
        let outcome = |events: Vec<Event>| Outcome {
            folder: folder.path().into(),
            events,
            end: End::Off(ExitStatus::from_raw(0)),
        };
        assert!(outcome(vec![Event::Done]).complete().is_ok());
        let error = outcome(vec![]).complete().unwrap_err().to_string();
        assert!(error.contains("went off before its end") && error.contains("Kernel panic"), "{error}");
    }

    #[test]
    fn the_command_line_starts_the_first_process() {
        let machine = Machine { architecture: Architecture::X86_64, acceleration: Acceleration::Emulation };
        let [image, initial, init, folder] = ["/k/vmlinuz", "/w/initrd", "/t/xtask", "/w"].map(Path::new);
        let boot = Boot { image, initial, init, folder, within: Duration::from_secs(1) };
        let typed = crate::command::typed(&machine.command(&boot));
        assert!(typed.contains("rdinit=/t/xtask -- vm-init"), "{typed}");
        assert!(typed.contains("-serial file:/w/events"), "{typed}");
    }
}
