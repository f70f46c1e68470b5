//! A lab, a good Service, and an agent whose flags and surroundings the test chooses.
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use lb_lab::pod::HTTP_PORT;
use lb_lab::{
    AddressPlan, Family, Lab, Layout, NodeId, Output, PodKind, Process, Service, UPLINK, at, poll,
    shunt_program,
};

use crate::lab_support::{FAMILIES, bare, eventually};

/// How long an agent may take to be ready, or to find a server that is back.
pub const START: Duration = Duration::from_secs(40);
/// How long it may take to say something.
pub const WORDS: Duration = Duration::from_secs(10);
/// nodePort of the good Service.
pub const GOOD: u16 = 30080;

/// A lab with two web pods on node A, a good Service in front of `a1`, and an agent whose flags the test chooses.
pub struct Bench {
    // Dropped first.
    agent: Option<Process>,
    pub lab: Lab,
    pub flags: BTreeMap<&'static str, String>,
    /// What stands before the program on the command line.
    pub wrapper: Vec<String>,
    /// In which the good Service must answer.
    pub families: Vec<Family>,
    starts: u32,
}

impl Bench {
    pub fn new() -> Self {
        let mut lab = bare(Layout::PointToPoint);
        for name in ["a1", "a2"] {
            lab.add_pod(NodeId::A, name, PodKind::Web).expect("a pod");
        }
        lab.apply(&good(), &[lab.pod("a1").into()]).expect("a manifest");
        let show = |path: PathBuf| path.display().to_string();
        let flags = [
            ("--source", "manifests".into()),
            ("--manifests", show(lab.manifests())),
            ("--node-name", NodeId::A.name().into()),
            ("--node-ip", of_each(&|family| lab.node_ip(NodeId::A, family).to_string())),
            ("--cluster-cidr", of_each(&|family| lab.plan().of(family).cluster.to_string())),
            ("--uplink", UPLINK.into()),
            ("--bpffs", show(lab.bpffs(NodeId::A))),
            ("--cgroup", show(lab.node_cgroup(NodeId::A).expect("a control group"))),
        ];
        Bench {
            agent: None,
            flags: flags.into_iter().collect(),
            lab,
            wrapper: Vec::new(),
            families: FAMILIES.to_vec(),
            starts: 0,
        }
    }

    /// The same with an agent that is ready.
    pub fn running() -> Self {
        let mut bench = Bench::new();
        bench.start();
        bench
    }

    pub fn set(&mut self, flag: &'static str, value: impl ToString) {
        self.flags.insert(flag, value.to_string());
    }

    fn agent_words(&self) -> Vec<String> {
        let mut words = self.wrapper.clone();
        words.extend([shunt(), "agent".into()]);
        words.extend(self.flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]));
        words
    }

    pub fn launch(&mut self) {
        self.starts += 1;
        let log = self.lab.folder().join(format!("refusals-{}.log", self.starts));
        let agent = self.lab.node(NodeId::A).spawn(&self.agent_words(), &log).expect("an agent");
        self.agent = Some(agent);
    }

    pub fn start(&mut self) {
        self.launch();
        self.await_ready();
        self.serves();
    }

    pub fn await_ready(&mut self) {
        let agent = self.agent.as_mut().expect("an agent");
        let ready = |line: &str| line.split_ascii_whitespace().any(|word| word == "ready");
        let mut ended = None;
        let found = poll("an agent that is ready", START, || {
            ended = agent.ended();
            (ended.is_some() || agent.log().lines().any(ready)).then_some(())
        });
        assert!(found.is_ok() && ended.is_none(), "{ended:?}:\n{}", agent.log());
    }

    pub fn stop(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().expect("an agent");
        agent.stop(Duration::from_secs(10)).expect("the agent to end")
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().expect("an agent").pid()
    }

    pub fn log(&self) -> String {
        self.agent.as_ref().expect("an agent").log()
    }

    /// Waits for a line of the log with all these words; those that say that something is over do not count.
    pub fn says(&self, words: &[&str]) {
        self.has_line(words, |line| !line.contains("solved: "));
    }

    /// Waits for the line that says that this is over.
    pub fn solves(&self, words: &[&str]) {
        self.has_line(words, |line| line.contains("solved: "));
    }

    fn has_line(&self, words: &[&str], counts: impl Fn(&str) -> bool) {
        let found = poll("a line of the log", WORDS, || {
            let log = self.log();
            log.lines().any(|line| counts(line) && words.iter().all(|word| line.contains(word))).then_some(())
        });
        assert!(found.is_ok(), "no line has {words:?}:\n{}", self.log());
    }

    /// The good Service answers in its families, and the agent lives.
    pub fn serves(&mut self) {
        for family in &self.families {
            let to = at(self.lab.node_ip(NodeId::A, *family), GOOD);
            eventually(&format!("a1 to answer at {to}"), || {
                let text = self.lab.client().http_get(&format!("http://{to}/"));
                text.is_ok_and(|text| text.starts_with("a1 "))
            });
        }
        self.lives();
    }

    pub fn lives(&mut self) {
        if let Some(agent) = &mut self.agent {
            assert_eq!(agent.ended(), None, "the agent has ended:\n{}", agent.log());
        }
    }

    /// What curl gets at a nodePort; empty when nothing.
    pub fn curl(&self, node_port: u16) -> String {
        let url = format!("http://{}:{node_port}/", self.lab.node_address(NodeId::A));
        self.lab.client().http_get(&url).unwrap_or_default()
    }

    pub fn answers(&self, node_port: u16, pod: &str) {
        eventually(&format!("{pod} to answer at nodePort {node_port}"), || {
            self.curl(node_port).starts_with(&format!("{pod} "))
        });
    }

    /// Asks at a ClusterIP, from outside.
    pub fn answers_at(&self, address: Ipv4Addr, pod: &str) {
        let url = format!("http://{address}/");
        eventually(&format!("{pod} to answer at {address}"), || {
            self.lab.client().http_get(&url).is_ok_and(|text| text.starts_with(&format!("{pod} ")))
        });
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let page = self.lab.node(NodeId::A).http_get("http://127.0.0.1:10249/metrics").ok()?;
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// The status code of a page of the agent's own.
    pub fn status(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:10256{path}");
        let words =
            ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--noproxy", "*"];
        let words = [&words[..], &["--max-time", "5", &url]].concat();
        self.lab.node(NodeId::A).exec(&words).expect("curl").stdout
    }

    /// Runs `shunt` on the node to its end.
    pub fn exec(&self, words: &[&str]) -> Output {
        let mut line = self.wrapper.clone();
        line.push(shunt());
        line.extend(words.iter().map(|word| (*word).to_owned()));
        self.lab.node(NodeId::A).exec(&line).expect("an end")
    }

    /// Runs `shunt agent` with some flags set to something else; it must end by itself.
    pub fn agent_with(&mut self, changes: &[(&'static str, &str)]) -> Output {
        let kept = self.flags.clone();
        changes.iter().for_each(|(flag, value)| self.set(flag, value));
        let words = self.agent_words();
        self.flags = kept;
        self.lab.node(NodeId::A).exec(&words).expect("an end")
    }

    pub fn bpffs(&self) -> String {
        self.flags["--bpffs"].clone()
    }

    pub fn manifest(&self, name: &str) -> String {
        self.lab.manifests().join(format!("{name}.yaml")).display().to_string()
    }
}

/// A flag's value for both families.
fn of_each(value: &dyn Fn(Family) -> String) -> String {
    Family::ALL.map(value).join(",")
}

fn shunt() -> String {
    shunt_program().expect("the program").display().to_string()
}

pub fn good() -> Service {
    single_stack().cluster_ip(AddressPlan::default().v6.services.host(80))
}

/// The good Service as older API servers take it.
pub fn single_stack() -> Service {
    Service::new("good", Ipv4Addr::new(10, 96, 0, 80)).tcp_node_port(80, HTTP_PORT, GOOD)
}
