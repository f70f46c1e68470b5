//! Whether netfilter translates in place of Shunt's own programs (`--host-rules`). Pure.
//!
//! Rules of the host's own that packets of Services have to meet see the same as with kube-proxy only if conntrack knows of the
//! translation. Connections that netfilter has begun to translate stay with it, also when the rules are gone.

use lb_common::abi::ConfigFlags;

use super::host_rules::HostRules;

/// What the user said (`--host-rules`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HostRulesMode {
    /// Netfilter translates while the host has rules that packets of Services have to meet.
    #[default]
    Auto,
    /// It does always.
    Conntrack,
    /// It never does: rules are passed by.
    Ignore,
}

/// Who translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stage {
    /// Our own programs.
    #[default]
    Own,
    /// Netfilter.
    Netfilter,
    /// Our own programs, but for the connections that netfilter has begun with.
    Ending,
}

impl Stage {
    /// Who should translate. `left`: whether there are connections that netfilter translates for us; unknown: there may be.
    pub fn wanted(mode: HostRulesMode, rules: &HostRules, left: Option<bool>) -> Self {
        let by_netfilter = match mode {
            HostRulesMode::Auto => !rules.let_xdp_send(),
            HostRulesMode::Conntrack => true,
            HostRulesMode::Ignore => false,
        };
        match by_netfilter {
            true => Self::Netfilter,
            // Without the table it translates nothing.
            false if rules.own_table && left != Some(false) => Self::Ending,
            false => Self::Own,
        }
    }

    /// Whether our table has to be there, and the programs that ask netfilter.
    pub const fn asks(self) -> bool {
        matches!(self, Self::Netfilter | Self::Ending)
    }

    /// What the programs are told.
    pub const fn flags(self) -> ConfigFlags {
        match self {
            Self::Own => ConfigFlags(0),
            Self::Netfilter => ConfigFlags::BY_CONNTRACK.with(ConfigFlags::ASK_CONNTRACK),
            Self::Ending => ConfigFlags::ASK_CONNTRACK,
        }
    }
}

/// Whether a translated connection is ours to look after: a Service has this frontend now, or its address was one and is not the node's
/// (whose other ports may be somebody else's to translate).
pub const fn is_ours(is_frontend: bool, was_frontend: bool, is_node: bool) -> bool {
    is_frontend || was_frontend && !is_node
}

/// Whether a UDP connection must not go on: the Service it goes to has no such endpoint any more.
///
/// `serves`: whether the endpoint is one of the Service's now; none: there is no such Service. `has_gone`: whether the endpoint has just
/// been taken from some Service.
pub const fn is_stale(serves: Option<bool>, has_gone: bool) -> bool {
    match serves {
        Some(serves) => !serves,
        None => has_gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netfilter_translates_while_there_are_rules_and_ends_what_it_began() {
        let rules = |forwarded: bool, own_table| HostRules {
            forwarded: if forwarded { vec!["ip/fw/forward".to_owned()] } else { vec![] },
            own_table,
            ..HostRules::default()
        };
        let cases = [
            (HostRulesMode::Auto, rules(false, false), None, Stage::Own),
            (HostRulesMode::Auto, rules(true, false), None, Stage::Netfilter),
            (HostRulesMode::Auto, rules(true, true), Some(false), Stage::Netfilter),
            (HostRulesMode::Auto, rules(false, true), None, Stage::Ending),
            (HostRulesMode::Auto, rules(false, true), Some(true), Stage::Ending),
            (HostRulesMode::Auto, rules(false, true), Some(false), Stage::Own),
            (HostRulesMode::Conntrack, rules(false, false), None, Stage::Netfilter),
            (HostRulesMode::Ignore, rules(true, false), None, Stage::Own),
            (HostRulesMode::Ignore, rules(true, true), Some(true), Stage::Ending),
        ];
        for (mode, rules, left, expected) in cases {
            assert_eq!(Stage::wanted(mode, &rules, left), expected, "{mode:?} {rules:?} {left:?}");
        }
        assert!(!Stage::Own.asks() && Stage::Own.flags() == ConfigFlags(0));
        assert!(!Stage::Ending.flags().has(ConfigFlags::BY_CONNTRACK));
        let output = HostRules { output: vec!["ip/fw/output".to_owned()], ..HostRules::default() };
        assert_eq!(
            Stage::wanted(HostRulesMode::Auto, &output, None),
            Stage::Own,
            "no packet that is forwarded meets it"
        );
    }

    #[test]
    fn foreign_translations_are_left_alone() {
        assert!(is_ours(true, true, true), "a nodePort");
        assert!(!is_ours(false, true, true), "a port of the node that somebody else translates");
        assert!(is_ours(false, true, false), "a Service that is gone");
        assert!(!is_ours(false, false, false));
    }

    #[test]
    fn a_udp_connection_is_stale_when_its_endpoint_is_gone() {
        assert!(!is_stale(Some(true), true), "it came back");
        assert!(is_stale(Some(false), false), "it went while nobody looked");
        assert!(is_stale(None, true), "with its Service");
        assert!(!is_stale(None, false));
    }
}
