//! A network namespace, a bpffs and a cgroup of its own for one test, and agents that run there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use lb_kernel::links::link;
use lb_kernel::programs::checks;
use lb_kernel::{pin, sys};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for something that should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn in_namespace(namespace: &str, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(env!("CARGO_BIN_EXE_shunt")).args(args);
    command
}

/// A veth from one namespace to another, up.
pub fn make_veth(node: &str, other: &str, name: &str) {
    let lines = format!("link add {name} type veth peer name {name} netns {other}\nlink set {name} up\n");
    let mut command = Command::new("ip");
    let mut ip =
        command.args(["-n", node, "-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip is there");
    std::io::Write::write_all(&mut ip.stdin.take().expect("it is piped"), lines.as_bytes()).expect("told");
    assert!(ip.wait().expect("it ends").success(), "{name}");
}

/// Gone, with all that is in it, when dropped.
pub struct Testbed {
    name: String,
    folder: tempfile::TempDir,
    cgroup: PathBuf,
}

impl Testbed {
    /// `eth0` (192.0.2.10, the default route) leads to the namespace of the outside, `pod0` to the pod's.
    pub fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("shunt-test-{}-{number}", std::process::id());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cgroup = checks::cgroup(None).expect("a cgroup2 mount").join(&name);
        fs::create_dir(&cgroup).expect("a cgroup; are you root?");
        let testbed = Self { name, folder, cgroup };
        fs::create_dir(testbed.mount_point()).expect("made");
        fs::create_dir(testbed.manifests()).expect("made");
        mount(Some("bpf"), &testbed.mount_point(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("a bpffs of its own");
        for namespace in [testbed.node(), testbed.other()] {
            run(Command::new("ip").args(["netns", "add", &namespace]));
            run(Command::new("ip").args(["-n", &namespace, "link", "set", "lo", "up"]));
        }
        testbed.add_veth("eth0", "outside");
        testbed.add_veth("pod0", "pod");
        testbed.ip(&["address", "add", "192.0.2.10/24", "dev", "eth0"]);
        testbed.ip(&["route", "add", "default", "via", "192.0.2.1"]);
        testbed
    }

    /// The node's network namespace.
    pub fn node(&self) -> String {
        format!("{}-node", self.name)
    }

    /// The other network namespace, of pods and of the outside.
    pub fn other(&self) -> String {
        format!("{}-other", self.name)
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    /// The folder of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// The value of `--bpffs`.
    pub fn bpffs(&self) -> PathBuf {
        self.mount_point().join("shunt")
    }

    /// Another value of `--bpffs`, as another agent has it.
    pub fn other_bpffs(&self) -> PathBuf {
        self.mount_point().join("other")
    }

    /// The cgroup of the socket hooks.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Runs `ip` in the node's namespace.
    pub fn ip(&self, args: &[&str]) -> String {
        let output = run(Command::new("ip").arg("-n").arg(self.node()).args(args));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `ip` in the other namespace.
    pub fn in_other(&self, args: &[&str]) {
        run(Command::new("ip").arg("-n").arg(self.other()).args(args));
    }

    /// Runs `tc` in the node's namespace.
    pub fn tc(&self, args: &[&str]) -> String {
        let output = run(Command::new("tc").arg("-n").arg(self.node()).args(args));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A veth whose other end is elsewhere.
    pub fn add_veth(&self, name: &str, peer: &str) {
        self.ip(&["link", "add", name, "type", "veth", "peer", "name", peer, "netns", &self.other()]);
        self.ip(&["link", "set", name, "up"]);
    }

    /// The index of an interface.
    pub fn index(&self, interface: &str) -> u32 {
        let text = self.ip(&["-o", "link", "show", "dev", interface]);
        text.split(':').next().and_then(|index| index.parse().ok()).expect("`ip -o` starts with the index")
    }

    /// `shunt` in the node's namespace. `nsenter` keeps the mounts, which `ip netns exec` does not.
    pub fn shunt(&self, args: &[&str]) -> Command {
        in_namespace(&self.node(), args)
    }

    /// Runs `shunt` in another network namespace than the node's.
    pub fn run_elsewhere(&self, args: &[&str]) -> Output {
        in_namespace(&self.other(), args).output().expect("nsenter is there")
    }

    /// Runs `shunt` to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.shunt(args).output().expect("nsenter is there")
    }

    /// Starts an agent and waits until it is ready.
    pub fn agent(&self, flags: &[&str]) -> Agent {
        let mut agent = self.start(&self.bpffs(), flags);
        agent.wait_for("ready");
        agent
    }

    /// Starts an agent with a pin directory of its own. No server, unless `flags` ask for it: ports are not what is
    /// tested here.
    pub fn start(&self, bpffs: &Path, flags: &[&str]) -> Agent {
        Agent::spawn(&mut self.agent_command(bpffs, flags))
    }

    /// What [`Self::start`] starts.
    pub fn agent_command(&self, bpffs: &Path, flags: &[&str]) -> Command {
        let mut command = self.shunt(&["agent", "--node-name", "n1", "--manifests"]);
        command.arg(self.manifests()).arg("--bpffs").arg(bpffs);
        command.args(["--log-format", "json"]);
        // (By itself an agent does without XDP on a veth. Flags win.)
        command.envs([("SHUNT_XDP_MODE", "native"), ("SHUNT_XDP_FORWARD", "on")]);
        for server in ["--healthz-bind-address", "--metrics-bind-address"] {
            if !flags.contains(&server) {
                command.args([server, ""]);
            }
        }
        if !flags.contains(&"--cgroup") {
            command.arg("--cgroup").arg(&self.cgroup);
        }
        command.args(flags);
        command
    }

    /// Whether a keeper is at work at the pins.
    pub fn has_keeper(&self) -> bool {
        let words = format!("\0keeper\0--bpffs\0{}\0", self.bpffs().display());
        fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
            fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.contains(&words))
        })
    }

    /// Link id and program id of every pinned link, by name.
    pub fn links(&self) -> Vec<(String, u32, u32)> {
        let dir = pin::PinDir::new(self.bpffs()).links();
        let names = pin::entries(&dir).expect("a pin directory");
        let facts = names.into_iter().map(|name| {
            let link = sys::obj_get(&dir.join(&name), false).expect("a pinned link");
            let info = link::info(link.as_fd()).expect("a link");
            (name, info.id, info.prog_id)
        });
        facts.collect()
    }

    /// Names of the pinned links.
    pub fn link_names(&self) -> Vec<String> {
        self.links().into_iter().map(|(name, ..)| name).collect()
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        // Agents that were killed have left their keepers.
        for root in [self.bpffs(), self.other_bpffs()] {
            let _ = pin::Post::clear(&root, PATIENCE);
        }
        for namespace in [self.node(), self.other()] {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
        let _ = umount2(&self.mount_point(), MntFlags::MNT_DETACH);
        for entry in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    lines: Receiver<String>,
    log: Vec<String>,
}

impl Agent {
    /// Starts an agent.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("nsenter is there");
        let stderr = child.stderr.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, log: Vec::new() }
    }

    /// Waits for a log message that contains `text`, and gives the line.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.log.push(line.clone());
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"].as_str().is_some_and(|message| message.contains(text))
                || event.is_null() && line.contains(text)
            {
                return line;
            }
        }
        panic!("no {text:?} in the agent's log:\n{}", self.log.join("\n"));
    }

    /// Ends it with a signal.
    pub fn stop(mut self, signal: Signal) {
        self.end(signal);
    }

    /// The same, for who wants to know what became of its output.
    pub fn end(&mut self, signal: Signal) {
        self.signal(signal);
        self.child.wait().expect("it ends");
    }

    /// Waits until nobody has its standard error open any more.
    pub fn wait_for_the_end_of_its_output(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("somebody holds the agent's output open"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // It may have ended already.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a file of the test.
pub fn write(path: &Path, text: &str) {
    use std::io::Write as _;
    let mut file = File::create(path).expect("created");
    file.write_all(text.as_bytes()).expect("written");
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the tool is there");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
