//! Whose turn it is to attach programs to new interfaces: the agent's, or its keeper's. Pure: who asks brings the time.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::classify::Classified;

/// How long an agent that lives may take to serve what is new.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// How long to wait before something that failed is tried again.
pub const RETRY: Duration = Duration::from_secs(5);

/// How long a keeper goes on without an agent.
pub const WITHOUT_AGENT: Duration = Duration::from_mins(10);

/// Names what interfaces are to be served, and how. Whether XDP hangs there already is no part of it.
pub fn fingerprint(wanted: &BTreeMap<u32, Classified>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (index, classified) in wanted {
        let Classified { link, role, masquerade, sources, stations } = classified;
        (index, &link.name, link.controller, *role as u32).hash(&mut hasher);
        (masquerade.v4, masquerade.v6, sources, stations).hash(&mut hasher);
    }
    hasher.finish()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Agent {
    /// It has said something since it was last found late.
    There,
    /// It has not done its work: stopped, hung or slow.
    Late,
    /// It has ended without a farewell.
    Gone(Instant),
}

/// What the keeper knows of its agent.
#[derive(Clone, Debug)]
pub struct Turn {
    agent: Agent,
    /// The fingerprint of what the agent has served.
    in_line: Option<u64>,
    due: Option<Instant>,
}

impl Turn {
    /// The agent has just started the keeper.
    pub fn new(now: Instant) -> Self {
        Self { agent: Agent::There, in_line: None, due: Some(now + PATIENCE) }
    }

    /// The network is not what it was.
    pub fn network_changed(&mut self, now: Instant) {
        // (The first change of several counts: a storm of them must not put it off.)
        let due = if self.agent == Agent::There { now + PATIENCE } else { now };
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// The agent lives, and has served what bears this fingerprint.
    pub const fn agent_says(&mut self, in_line: u64) {
        (self.agent, self.in_line) = (Agent::There, Some(in_line));
    }

    /// The agent has ended.
    pub const fn agent_is_gone(&mut self, now: Instant) {
        (self.agent, self.due) = (Agent::Gone(now), Some(now));
    }

    /// Not all that is missing could be attached.
    pub fn failed(&mut self, now: Instant) {
        self.due = Some(now + RETRY);
    }

    /// There is nothing to look with yet.
    pub const fn put_off(&mut self) {
        self.due = None;
    }

    /// When to look whether something has been left undone.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// When the keeper ends.
    pub fn end(&self) -> Option<Instant> {
        if let Agent::Gone(since) = self.agent { Some(since + WITHOUT_AGENT) } else { None }
    }

    /// Looks. Whether what is missing is to be attached by the keeper.
    pub fn look(&mut self, fingerprint: u64) -> bool {
        self.due = None;
        let is_ours = self.in_line != Some(fingerprint);
        if is_ours && self.agent == Agent::There {
            self.agent = Agent::Late;
        }
        is_ours
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Role;

    use super::super::XdpAttached;
    use super::super::masquerade::Masquerade;
    use super::super::tests::link;
    use super::*;

    fn wanted(names: &[&str]) -> BTreeMap<u32, Classified> {
        let pod = |(index, name): (u32, &&str)| {
            let link = link(index, name, "veth");
            let (role, masquerade) = (Role::Pod, Masquerade::default());
            (index, Classified { link, role, masquerade, sources: Vec::new(), stations: [].into() })
        };
        (2..).zip(names).map(pod).collect()
    }

    #[test]
    fn a_fingerprint_names_what_is_to_be_served() {
        let one = wanted(&["veth1", "veth2"]);
        assert_eq!(fingerprint(&one), fingerprint(&one.clone()));
        let mut other = one.clone();
        let veth = other.get_mut(&2).expect("there");
        veth.link.xdp = Some((XdpAttached::Native, 7));
        assert_eq!(fingerprint(&one), fingerprint(&other), "that is what attaching changes");
        veth_mut(&mut other).role = Role::Uplink;
        assert_ne!(fingerprint(&one), fingerprint(&other));
        let mut other = one.clone();
        veth_mut(&mut other).masquerade.v4 = Some([192, 0, 2, 1].into());
        assert_ne!(fingerprint(&one), fingerprint(&other));
        assert_ne!(fingerprint(&one), fingerprint(&wanted(&["veth1"])));
    }

    fn veth_mut(all: &mut BTreeMap<u32, Classified>) -> &mut Classified {
        all.get_mut(&2).expect("there")
    }

    #[test]
    fn an_agent_that_does_its_work_is_left_alone() {
        let start = Instant::now();
        let mut turn = Turn::new(start);
        turn.agent_says(1);
        assert_eq!(turn.due(), Some(start + PATIENCE));
        assert!(!turn.look(1));
        assert_eq!((turn.due(), turn.end()), (None, None), "nobody is woken for nothing");
        turn.network_changed(start);
        turn.agent_says(2);
        turn.network_changed(start + PATIENCE / 2);
        assert_eq!(turn.due(), Some(start + PATIENCE), "the first of several changes counts");
        assert!(!turn.look(2));
    }

    #[test]
    fn one_that_is_late_is_waited_for_once() {
        let start = Instant::now();
        let mut turn = Turn::new(start);
        turn.agent_says(1);
        assert!(turn.look(2), "stopped");
        turn.network_changed(start);
        assert_eq!(turn.due(), Some(start), "it has been waited for");
        turn.agent_says(2);
        turn.network_changed(start);
        assert_eq!(turn.due(), Some(start), "what is due stays due");
        assert!(!turn.look(2));
        turn.network_changed(start);
        assert_eq!(turn.due(), Some(start + PATIENCE), "it is back");
    }

    #[test]
    fn one_that_is_gone_is_followed_for_a_while() {
        let start = Instant::now();
        let mut turn = Turn::new(start);
        turn.agent_says(1);
        assert!(!turn.look(1));
        turn.agent_is_gone(start);
        assert_eq!((turn.due(), turn.end()), (Some(start), Some(start + WITHOUT_AGENT)));
        assert!(!turn.look(1), "it has done its work before");
        turn.network_changed(start);
        assert_eq!(turn.due(), Some(start));
        assert!(turn.look(2) && turn.look(2), "nobody else will");
    }
}
