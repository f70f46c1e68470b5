//! What came of a probe, in words that do not depend on which of the twins was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ask::Answers;
use super::shape;
use lb_lab::{AddressPlan, Family, NodeId};

/// Whom a pod took for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Who asked, by its own address.
    Kept,
    /// The first node.
    NodeA,
    /// The second node.
    NodeB,
    /// Any other address.
    Other(IpAddr),
}

impl Source {
    /// What an address means for an asker.
    pub fn of(seen: IpAddr, asker: IpAddr) -> Self {
        let (plan, family) = (AddressPlan::default(), Family::of(seen));
        let holds = |node, address| shape::node_addresses(&plan, node, family).contains(&address);
        match NodeId::ALL.into_iter().find(|node| holds(*node, seen)) {
            _ if seen == asker => Source::Kept,
            // (A node asks from whichever of its addresses the kernel takes.)
            Some(node) if holds(node, asker) => Source::Kept,
            Some(NodeId::A) => Source::NodeA,
            Some(NodeId::B) => Source::NodeB,
            None => Source::Other(seen),
        }
    }

    /// Whether a node put its own address in place of the asker's.
    pub fn is_masqueraded(self) -> bool {
        matches!(self, Source::NodeA | Source::NodeB)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Kept => f.write_str("asker"),
            Source::NodeA => f.write_str("node-a"),
            Source::NodeB => f.write_str("node-b"),
            Source::Other(address) => address.fmt(f),
        }
    }
}

/// The outcome of all tries of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The pods that answered, and whom each saw.
    pub pods: BTreeMap<String, BTreeSet<Source>>,
    /// How tries failed.
    pub failures: BTreeSet<String>,
}

impl Verdict {
    /// Of these answers to an asker with this address.
    pub fn new(answers: &Answers, asker: IpAddr) -> Self {
        let sources = |seen: &BTreeSet<IpAddr>| seen.iter().map(|seen| Source::of(*seen, asker)).collect();
        Verdict {
            pods: answers.pods.iter().map(|(pod, seen)| (pod.clone(), sources(seen))).collect(),
            failures: answers.failures.clone(),
        }
    }

    /// Adds what came of more tries.
    pub fn add(&mut self, more: Verdict) {
        for (pod, sources) in more.pods {
            self.pods.entry(pod).or_default().extend(sources);
        }
        self.failures.extend(more.failures);
    }

    /// Whether every try was answered.
    pub fn is_reached(&self) -> bool {
        !self.pods.is_empty() && self.failures.is_empty()
    }

    /// Whether every try was refused.
    pub fn is_refused(&self) -> bool {
        self.fails_as("refused")
    }

    /// Whether no try had any answer.
    pub fn is_dropped(&self) -> bool {
        self.fails_as("dropped")
    }

    /// Whether every try was told that there is no way.
    pub fn is_unreachable(&self) -> bool {
        self.fails_as("unreachable")
    }

    fn fails_as(&self, how: &str) -> bool {
        self.pods.is_empty() && self.failures.iter().eq([how])
    }

    /// Whether some tries were answered and others not.
    pub fn is_mixed(&self) -> bool {
        !self.pods.is_empty() && !self.failures.is_empty()
    }

    /// Whether both went to the same pods, and failed alike.
    pub fn leads_where(&self, other: &Verdict) -> bool {
        self.failures == other.failures && self.pods.keys().eq(other.pods.keys())
    }

    /// Whether the two are the same as far as a client can tell. With `sticky` either twin may have chosen its own pod
    /// for the client, so which one says nothing, and whom it saw only if it was the same.
    pub fn equals(&self, other: &Verdict, sticky: bool) -> bool {
        let chose = |verdict: &Verdict| verdict.failures.is_empty() && verdict.pods.len() == 1;
        let chose_apart = sticky && chose(self) && chose(other) && !self.pods.keys().eq(other.pods.keys());
        chose_apart || self == other
    }

    /// In one word, for a count.
    pub fn word(&self) -> &'static str {
        match (self.pods.is_empty(), self.failures.len()) {
            (false, 0) => "reached",
            (false, _) => "reached in part",
            (true, _) if self.is_refused() => "refused",
            (true, _) if self.is_dropped() => "dropped",
            (true, _) => "failed otherwise",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = self.pods.iter().map(|(pod, sources)| {
            let sources: Vec<_> = sources.iter().map(Source::to_string).collect();
            if sources.is_empty() { pod.clone() } else { format!("{pod} sees {}", sources.join("+")) }
        });
        let parts: Vec<_> = pods.chain(self.failures.iter().cloned()).collect();
        f.pad(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(pods: &[(&str, Source)], failures: &[&str]) -> Verdict {
        Verdict {
            pods: pods.iter().map(|(pod, source)| ((*pod).to_owned(), BTreeSet::from([*source]))).collect(),
            failures: failures.iter().map(|failure| (*failure).to_owned()).collect(),
        }
    }

    #[test]
    fn a_client_that_sticks_may_stick_to_another_pod_but_not_to_two() {
        let (one, other) = (verdict(&[("a1", Source::Kept)], &[]), verdict(&[("b1", Source::NodeA)], &[]));
        let two = verdict(&[("a1", Source::Kept), ("b1", Source::NodeA)], &[]);
        assert!(one.equals(&other, true) && !one.equals(&other, false));
        assert!(!one.equals(&two, true));
        assert!(!one.equals(&verdict(&[("a1", Source::NodeA)], &[]), true));
        assert!(!one.equals(&verdict(&[], &["refused"]), true));
    }

    #[test]
    fn addresses_are_told_by_whose_they_are() {
        let client = IpAddr::V4(AddressPlan::default().client());
        let node = IpAddr::V4(AddressPlan::default().node(NodeId::B));
        assert_eq!(Source::of(client, client), Source::Kept);
        assert_eq!(Source::of(node, client), Source::NodeB);
        assert_eq!(Source::of(node, node), Source::Kept);
        assert_eq!(Source::of([10, 9, 9, 9].into(), client), Source::Other([10, 9, 9, 9].into()));
    }

    #[test]
    fn a_verdict_reads_as_a_sentence() {
        assert_eq!(verdict(&[("a1", Source::Kept)], &["dropped"]).to_string(), "a1 sees asker, dropped");
        assert_eq!(verdict(&[("a1", Source::Kept)], &["dropped"]).word(), "reached in part");
    }
}
