//! What a rule is, and how its check tells what it finds.

use std::fmt::Debug;

use lb_control::model::Family;

use crate::stage::{Cluster, Node};

/// A rule of kube-proxy.
pub struct Rule {
    /// Its number.
    pub id: &'static str,
    /// What it says, of kube-proxy.
    pub text: &'static str,
    /// The file of kubernetes/kubernetes it comes from; with a dagger when an older release was read.
    pub source: &'static str,
    /// Shows that it holds, from objects to what becomes of packets; called once for each family.
    pub check: Option<Check>,
    /// Tests that show it as well, or instead: `file::function`.
    pub tests: &'static [&'static str],
    /// Why it is another here, where no check can show that.
    pub differs: &'static [Difference],
}

/// Shows that a rule holds.
pub struct Check {
    /// Its module and function.
    pub name: &'static str,
    /// Asks, and puts what it finds into the row.
    pub run: fn(&mut Row),
}

/// The check of a function of this name.
macro_rules! check {
    ($function:ident) => {
        Some($crate::rule::Check {
            name: concat!(module_path!(), "::", stringify!($function)),
            run: $function,
        })
    };
}
pub(crate) use check;

/// In what Shunt differs from a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Difference {
    /// A heading of `docs/differences.md`.
    Listed(&'static str),
    /// This.
    Explained(&'static str),
}

/// Rules of one concern.
pub struct Section {
    /// What they are about.
    pub title: &'static str,
    /// The rules.
    pub rules: &'static [Rule],
}

/// What the check of a rule has found in one family.
pub struct Row {
    /// The family asked in.
    pub family: Family,
    /// What is not as it should be.
    pub wrong: Vec<String>,
    /// What is another than kube-proxy's, on purpose.
    pub differs: Vec<Difference>,
    /// Verdicts compared.
    pub verdicts: usize,
}

impl Row {
    /// Nothing asked yet.
    pub const fn new(family: Family) -> Self {
        Self { family, wrong: Vec::new(), differs: Vec::new(), verdicts: 0 }
    }

    /// A node in this family.
    pub fn cluster(&self) -> Cluster {
        Cluster::new(self.family)
    }

    /// Asks, by (client, frontend), and compares with the answer that should come; also of UDP, where the Service has
    /// both.
    pub fn table(&mut self, node: &Node, verdicts: &[(&str, &str, &str)]) {
        for (from, to, expected) in verdicts {
            for to in [Some((*to).to_owned()), node.of_udp(to)].into_iter().flatten() {
                let found = node.ask(from, &to);
                self.equal(&format!("{from} at {to}"), found.as_str(), expected);
            }
        }
    }

    /// Compares.
    pub fn equal<T: PartialEq + Debug + ?Sized>(&mut self, what: &str, found: &T, expected: &T) {
        self.verdicts += 1;
        if found != expected {
            self.wrong.push(format!("{}: {what}: {found:?} and not {expected:?}", self.family.label()));
        }
    }

    /// Asks where Shunt answers otherwise than kube-proxy would, and notes the difference if it is still there.
    pub fn other(
        &mut self,
        why: Difference,
        node: &Node,
        from: &str,
        to: &str,
        kube_proxy: &str,
        shunt: &str,
    ) {
        let found = node.ask(from, to);
        self.equal(&format!("{from} at {to}"), found.as_str(), shunt);
        if found != kube_proxy && !self.differs.contains(&why) {
            self.differs.push(why);
        }
    }
}
