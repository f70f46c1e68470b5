//! Which of the host's own packet filters meet packets of Services, and what that means. Pure.
//!
//! What stands before the kernel's DNAT (priority -100) sees packets as they came with kube-proxy, and what XDP or tc translates as it
//! goes on; what XDP sends by itself meets no rule at all. So where there are such rules netfilter translates ([`super::netfilter`]).

use std::collections::{BTreeMap, BTreeSet};

/// Priority of the kernel's DNAT.
const DNAT: i32 = -100;
/// Tables of the proxies that Shunt stands in for.
const PROXIES: [&str; 1] = ["kube-proxy"];

/// Our own table.
pub const OWN: (u8, &str) = (1, "shunt");

/// A table of nf_tables: its family, as the kernel numbers them, and its name.
pub type Table = (u8, String);

/// Where a base chain hangs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Point {
    /// Before a packet's way is chosen.
    Prerouting,
    /// Of packets that go on to elsewhere.
    Forward,
    /// Of the node's own packets.
    Output,
    /// Somewhere else.
    Other,
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: String,
    /// Where it hangs and with which priority; none: others jump to it.
    pub base: Option<(Point, i32)>,
    /// What no rule takes is dropped.
    pub drops: bool,
}

impl Chain {
    /// Whether packets of Services meet it, and not as with kube-proxy.
    pub fn matters(&self) -> bool {
        let is_at = match self.base {
            Some((Point::Prerouting | Point::Output, priority)) => priority < DNAT,
            Some((Point::Forward, _)) => true,
            _ => false,
        };
        is_at && !PROXIES.contains(&self.table.1.as_str())
    }
}

/// A rule, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// Its table.
    pub table: Table,
    /// Its chain.
    pub chain: String,
    /// It may drop or reject.
    pub drops: bool,
    /// The chains it jumps to.
    pub jumps: Vec<String>,
    /// It picks a verdict out of a map: it may jump anywhere in its table, or drop.
    pub by_map: bool,
}

/// The rules of a network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ruleset {
    /// Every chain.
    pub chains: Vec<Chain>,
    /// Every rule.
    pub rules: Vec<Rule>,
    /// Tables of the older iptables (`x_tables`), whose rules are not read, by name.
    pub legacy: Vec<String>,
}

/// What is to be told of them: names of chains that may drop, such as `inet/firewall/forward`, by where they hang.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostRules {
    /// Before the kernel's DNAT.
    pub before_dnat: Vec<String>,
    /// On the way on to elsewhere.
    pub forwarded: Vec<String>,
    /// For the node's own packets, before the kernel's DNAT.
    pub output: Vec<String>,
    /// Rules that cannot be read.
    pub legacy: Vec<String>,
    /// Our own table is there, through which netfilter translates ([`super::netfilter`]).
    pub own_table: bool,
}

impl HostRules {
    /// Whether a packet that XDP sends by itself would pass none of them by.
    pub const fn let_xdp_send(&self) -> bool {
        self.before_dnat.is_empty() && self.forwarded.is_empty() && self.legacy.is_empty()
    }

    /// Number of chains and tables that are told of.
    pub const fn count(&self) -> usize {
        self.before_dnat.len() + self.forwarded.len() + self.output.len() + self.legacy.len()
    }
}

/// Looks through the rules.
pub fn judge(ruleset: &Ruleset) -> HostRules {
    let own_table = ruleset.chains.iter().any(|chain| chain.table.0 == OWN.0 && chain.table.1 == OWN.1);
    let mut found = HostRules { legacy: ruleset.legacy.clone(), own_table, ..HostRules::default() };
    let mut rules: BTreeMap<(&Table, &str), Vec<&Rule>> = BTreeMap::new();
    for rule in &ruleset.rules {
        rules.entry((&rule.table, &rule.chain)).or_default().push(rule);
    }
    for chain in ruleset.chains.iter().filter(|chain| chain.matters()) {
        if !(chain.drops || may_drop(chain, &rules)) {
            continue;
        }
        let list = match chain.base {
            Some((Point::Prerouting, _)) => &mut found.before_dnat,
            Some((Point::Forward, _)) => &mut found.forwarded,
            _ => &mut found.output,
        };
        list.push(format!("{}/{}/{}", family(chain.table.0), chain.table.1, chain.name));
    }
    found
}

/// Whether a packet that comes to a chain may meet a rule that drops it.
fn may_drop(chain: &Chain, rules: &BTreeMap<(&Table, &str), Vec<&Rule>>) -> bool {
    let mut seen = BTreeSet::from([chain.name.as_str()]);
    let mut to_do = vec![chain.name.as_str()];
    while let Some(name) = to_do.pop() {
        for rule in rules.get(&(&chain.table, name)).into_iter().flatten() {
            if rule.drops || rule.by_map {
                return true;
            }
            to_do.extend(rule.jumps.iter().map(String::as_str).filter(|name| seen.insert(name)));
        }
    }
    false
}

const fn family(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> Table {
        (2, name.to_owned())
    }

    fn chain(name: &str, base: Option<(Point, i32)>) -> Chain {
        Chain { table: table("fw"), name: name.to_owned(), base, drops: false }
    }

    fn rule(chain: &str) -> Rule {
        Rule { table: table("fw"), chain: chain.to_owned(), ..Rule::default() }
    }

    #[test]
    fn what_may_drop_is_told_by_where_it_hangs() {
        let chains = vec![
            chain("raw", Some((Point::Prerouting, -300))),
            chain("late", Some((Point::Prerouting, 0))),
            chain("forward", Some((Point::Forward, 0))),
            chain("output", Some((Point::Output, -150))),
            chain("input", Some((Point::Other, 0))),
            chain("drops", None),
        ];
        let all: Vec<Rule> = chains.iter().map(|it| Rule { drops: true, ..rule(&it.name) }).collect();
        let ruleset = Ruleset { chains, rules: all, legacy: vec![] };
        let found = judge(&ruleset);
        assert_eq!(found.before_dnat, ["ip/fw/raw"]);
        assert_eq!(found.forwarded, ["ip/fw/forward"]);
        assert_eq!(found.output, ["ip/fw/output"]);
        assert!(!found.let_xdp_send());
        let harmless = Ruleset { rules: vec![], ..ruleset };
        assert!(judge(&harmless) == HostRules::default() && judge(&harmless).let_xdp_send());
    }

    #[test]
    fn rules_are_followed_where_they_jump() {
        let forward = || chain("forward", Some((Point::Forward, 0)));
        let jump = |from: &str, to: &str| Rule { jumps: vec![to.to_owned()], ..rule(from) };
        let drops = |rules: Vec<Rule>| {
            let chains = vec![forward(), chain("a", None), chain("b", None)];
            !judge(&Ruleset { chains, rules, legacy: vec![] }).forwarded.is_empty()
        };
        let end = || Rule { drops: true, ..rule("b") };
        assert!(drops(vec![jump("forward", "a"), jump("a", "b"), end()]));
        assert!(!drops(vec![jump("forward", "a"), end()]), "nobody comes to b");
        assert!(!drops(vec![jump("forward", "a"), jump("a", "a")]), "in circles");
        assert!(drops(vec![Rule { by_map: true, ..rule("forward") }]));
        let policy = Ruleset { chains: vec![Chain { drops: true, ..forward() }], ..Ruleset::default() };
        assert!(!judge(&policy).let_xdp_send());
        let legacy = Ruleset { legacy: vec!["filter".to_owned()], ..Ruleset::default() };
        assert!(!judge(&legacy).let_xdp_send());
    }
}
