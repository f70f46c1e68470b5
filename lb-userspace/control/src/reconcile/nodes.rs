//! The Nodes that the source tells of. Whether ours is among them: an agent with another name than its node's serves, but takes no endpoint for its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Problem, Severity};

/// Other Nodes that are named, where ours is not among them.
const NAMED: usize = 3;

/// The Nodes there are.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// All have been listed.
    listed: bool,
    /// Ours is there, whether or not it can be read.
    ours: bool,
    /// The others, and the addresses of each.
    others: BTreeMap<Arc<str>, Vec<IpAddr>>,
    problem: Option<Problem>,
}

impl Nodes {
    pub(super) const fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    /// A Node that is not ours is there, with these addresses, or no longer.
    pub(super) fn other(&mut self, name: &Arc<str>, addresses: Option<Vec<IpAddr>>) {
        match addresses {
            Some(addresses) => self.others.insert(name.clone(), addresses),
            None => self.others.remove(name),
        };
    }

    pub(super) fn others(&self) -> impl Iterator<Item = &Arc<str>> {
        self.others.keys()
    }

    pub(super) fn addresses_of_others(&self) -> BTreeSet<IpAddr> {
        self.others.values().flatten().copied().collect()
    }

    /// Our Node is there, or not.
    pub(super) const fn ours(&mut self, is_there: bool) {
        self.ours = is_there;
    }

    /// All have been listed.
    pub(super) const fn listed(&mut self) {
        self.listed = true;
    }

    /// Whether something else is wrong than before. `expected`: our Node must be there even if no other is.
    pub(super) fn judge(&mut self, name: &str, expected: bool) -> bool {
        let is_wrong = self.listed && !self.ours && (expected || !self.others.is_empty());
        let news = is_wrong != self.problem.is_some();
        if news {
            self.problem = is_wrong.then(|| self.missing(name));
        }
        news
    }

    fn missing(&self, name: &str) -> Problem {
        let mut there = self.others.keys().take(NAMED).map(|name| &**name).collect::<Vec<_>>().join(", ");
        if self.others.len() > NAMED {
            there.push_str(", …");
        }
        let there = if there.is_empty() { there } else { format!(" (there are {there})") };
        Problem::of_source(
            Severity::Warning,
            format!(
                "no Node is called {name}{there}: no endpoint is taken for one of this node, so a policy Local finds none, \
                 and the Node's zone and ranges are not known; give this node's name with --node-name"
            ),
        )
    }
}
