//! The written list of what differs on purpose. `docs/differences.md` is this list.

use std::collections::BTreeSet;

use super::cases::{Case, State};
use super::probes::{Frontend, Probe};
use super::verdict::{Source, Verdict};
use lb_lab::NodeId;

/// A probe and what came of it on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The Service.
    pub case: &'a Case,
    /// The question.
    pub probe: &'a Probe,
    /// kube-proxy's answer.
    pub kube_proxy: &'a Verdict,
    /// Shunt's answer.
    pub shunt: &'a Verdict,
}

impl Seen<'_> {
    /// As whom a pod may come that asks another node, where the CNI masquerades what leaves its own.
    fn masqueraded_before(&self) -> Option<Source> {
        let Probe { asker, frontend: Frontend::NodePort(node), .. } = self.probe else { return None };
        let from = asker.node().filter(|from| from != node && !asker.is_host())?;
        Some(if from == NodeId::A { Source::NodeA } else { Source::NodeB })
    }

    /// Whether Shunt leads to these pods, or to one of them where clients stick; and if there are none, refuses.
    fn shunt_serves(&self, pods: &BTreeSet<&str>) -> bool {
        let reached: BTreeSet<&str> = self.shunt.pods.keys().map(String::as_str).collect();
        match pods.is_empty() {
            true => self.shunt.is_refused(),
            false if self.case.affinity => {
                self.shunt.is_reached() && reached.len() == 1 && reached.is_subset(pods)
            }
            false => self.shunt.is_reached() && reached == *pods,
        }
    }
}

/// A difference that is meant.
#[derive(Debug)]
pub struct Listed {
    /// A short name.
    pub id: &'static str,
    /// When it shows.
    pub when: &'static str,
    /// What kube-proxy does, in either mode if none is named.
    pub kube_proxy: &'static str,
    /// What Shunt does.
    pub shunt: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Whether an observation is explained by it.
    explains: fn(&Seen) -> bool,
}

/// The list.
pub const LIST: &[Listed] = &[
    Listed {
        id: "client-address-kept",
        when: "nodePort, external IP or load balancer's address with externalTrafficPolicy Cluster; a client outside at a \
               ClusterIP",
        kube_proxy: "The pod always sees a node's address.",
        shunt: "The pod sees the client's own address wherever the answer passes this node anyway: a client outside \
                and a pod on this node, or a client in a pod of the node that is asked.",
        reason: "Masquerading is there to bring answers back to the node that translates. Where they come back by \
                 themselves it only hides the client. Where they do not, because a pod's default route leads elsewhere \
                 (a VPN, a second interface), --masquerade-external masquerades as kube-proxy does, and the annotation \
                 shunt.dev/masquerade-external: \"true\" does so for one Service.",
        explains: |seen| {
            let is_masqueraded = match seen.probe.frontend {
                Frontend::ClusterIp => seen.probe.asker.node().is_none(),
                frontend => frontend.is_external() && !seen.case.external_local,
            };
            is_masqueraded
                && seen.kube_proxy.leads_where(seen.shunt)
                && seen.kube_proxy.pods.iter().zip(&seen.shunt.pods).all(|((_, theirs), (_, ours))| {
                    let masqueraded = theirs.iter().all(|source| source.is_masqueraded());
                    let keeps = |client: Source| ours.iter().eq([&client]);
                    let of_node = seen.masqueraded_before().is_some_and(keeps);
                    theirs == ours || (masqueraded && (keeps(Source::Kept) || of_node))
                })
        },
    },
    Listed {
        id: "unknown-port-refused",
        when: "a port that the Service does not have, at the ClusterIP of a Service",
        kube_proxy: "iptables: the packet is not touched; it leaves by the default route, and the client waits in vain. \
                     nftables: refused.",
        shunt: "Refused: TCP reset, ICMP port unreachable.",
        reason: "A mistyped port shows at once instead of after a time-out.",
        explains: |seen| {
            seen.probe.frontend == Frontend::UnknownPort
                && seen.case.is_ours()
                && seen.kube_proxy.is_dropped()
                && seen.shunt.is_refused()
        },
    },
    Listed {
        id: "refused-on-the-node-itself",
        when: "a process of a node asks at a load balancer's address or external IP without any endpoint",
        kube_proxy: "iptables: its rules that refuse stand where packets arrive and are forwarded, not where they leave; \
                     the packet leaves by the default route. nftables: refused.",
        shunt: "Refused, as for everybody else.",
        reason: "A refusal at once instead of a time-out.",
        explains: |seen| {
            matches!(
                seen.probe.frontend,
                Frontend::Balancer | Frontend::ExternalIp | Frontend::HeldExternalIp
            ) && seen.probe.asker.is_host()
                && !seen.case.has(State::Ready)
                && seen.kube_proxy.is_dropped()
                && seen.shunt.is_refused()
        },
    },
    Listed {
        id: "dropped-calls-fail-at-once",
        when: "a process of a node asks where the answer is to drop",
        kube_proxy: "The packet is dropped: connect() waits until it gives up.",
        shunt: "connect() and sendto() fail at once, with EHOSTUNREACH.",
        reason: "The socket hooks decide before there is a packet that could be dropped.",
        explains: |seen| {
            // (Another's Service is nobody's at an address of the ClusterIPs' range.)
            seen.probe.asker.is_host() && seen.kube_proxy.is_dropped() && seen.shunt.is_unreachable()
        },
    },
    Listed {
        id: "local-policy-and-pods-of-other-nodes",
        when: "a pod asks at the nodePort of another node with externalTrafficPolicy Local",
        kube_proxy: "Every pod counts as local, so all endpoints are used, and the pod's address is kept: an endpoint \
                     elsewhere answers it directly, from an address it has not asked, and the connection fails.",
        shunt: "It comes from outside, as everybody does: endpoints of the node that is asked serve, and see the pod; where \
                there are none, it is dropped.",
        reason: "All connections that have an endpoint to go to work. Kubernetes' own tests want an error of a node without \
                 one.",
        explains: |seen| {
            let Frontend::NodePort(asked) = seen.probe.frontend else { return false };
            let here = seen.case.serving(Some(asked));
            let keeps = seen.shunt.pods.values().all(|sources| sources.iter().eq([&Source::Kept]));
            let is_right = match here.is_empty() {
                true => seen.shunt.is_dropped(),
                false => keeps && seen.shunt_serves(&here),
            };
            let asker = seen.probe.asker;
            seen.case.external_local && asker.is_pod() && asker.node() != Some(asked) && is_right
        },
    },
    Listed {
        id: "node-port-of-loopback",
        when: "a process of a node asks at the nodePort of 127.0.0.1 or ::1",
        kube_proxy: "nftables: nothing is served there. iptables: 127.0.0.1 alone, by a sysctl that IPv6 does not have.",
        shunt: "Served by the socket hooks, both.",
        reason: "`localhost` leads to either address, and people have come to rely on it.",
        explains: |seen| {
            seen.probe.frontend == Frontend::LoopbackNodePort
                && seen.case.is_ours()
                && (seen.kube_proxy.is_dropped() || seen.kube_proxy.is_refused())
                && seen.shunt_serves(&seen.case.serving(None))
        },
    },
    Listed {
        id: "denied-before-refused",
        when: "a load balancer's address without any endpoint; a client whom its source ranges do not hold",
        kube_proxy: "iptables: refused, as everybody is. nftables: dropped.",
        shunt: "Dropped.",
        reason: "Whom the ranges keep out learns nothing of the Service.",
        explains: |seen| {
            seen.probe.frontend == Frontend::Balancer
                && !seen.probe.asker.may_ask_balancer(seen.case)
                && seen.kube_proxy.is_refused()
                && (seen.shunt.is_dropped() || seen.shunt.is_unreachable())
        },
    },
];

/// The difference that explains an observation, if one does.
pub fn explanation(seen: &Seen) -> Option<&'static Listed> {
    LIST.iter().find(|listed| (listed.explains)(seen))
}

/// The page of documentation.
pub fn page() -> String {
    let mut page = String::from(INTRODUCTION);
    for listed in LIST {
        let Listed { id, when, kube_proxy, shunt, reason, .. } = listed;
        page += &format!(
            "\n## {id}\n\n| | |\n|---|---|\n| when | {when} |\n| kube-proxy | {kube_proxy} |\n| Shunt | {shunt} |\n| why | {reason} |\n"
        );
    }
    page + &super::odd::judge::section() + NOT_COMPARED
}

const INTRODUCTION: &str = "\
# Differences from kube-proxy

`cargo xtask test --only api_twin` runs two labs of the same addresses side by side, one with the real kube-proxy (v1.37.2,
nftables mode, dual-stack; nodePorts at every address, as iptables mode has it), one with Shunt, both fed by one real API server.
`cargo xtask twin --proxy iptables` does so with the other mode; where the two differ, the table says which does what. Services of
every type and policy over every placement of endpoints are drawn from a seed; clients outside, pods and the nodes
themselves ask at every address of every Service, IPv4 and IPv6: at the start, after the endpoints have changed, and after
Services have been deleted. Reached, refused or dropped, the set of pods reached, whom each pod takes for the client, and
what health checks answer must be the same on both sides.

`cargo xtask twin --shape NAME` asks the same where both labs have nodes of another shape: an address that is only a `local` route or on a
macvlan, cards that are plain veths, a default route with two next hops, another address before the node's own, policy routing, a CNI
that masquerades, a firewall of the host's. (Two to three minutes each, so they are no part of `cargo xtask test`.) None shows anything that
is not listed here. Where a card has several addresses both masquerade with one of the next hop's network; among several in it kube-proxy
takes the first, Shunt the one given with `--node-ip`. With a CNI that masquerades its pods, the address that a client outside keeps is
the pod's node's. Two cards and connections that are marked by the card they come by (CONNMARK) are a test of their own, `lab_sources`.

What differs on purpose is listed here; the list is `xtask/src/twin/differences.rs`, from which this page is written. A
difference that is not listed fails the test. One that no longer shows is told.
";

const NOT_COMPARED: &str = "
## programs-at-clusterips

Where a program of the node listens at a ClusterIP that the node holds itself (NodeLocal DNSCache does), what comes there on this node is the
program's, for pods and processes alike, while it listens at that very address; ports of the Service at which nobody listens are served
on. The log tells, as a notice of the Service, and so does `shunt_problems`. With kube-proxy such a program has to add rules that
keep packets from being translated, and who holds the address but has stopped leaves clients without an answer; here the Service is
served again within a second.

## host-rules

The host's own packet filter, which the twin's nodes have none of. kube-proxy translates in netfilter, by conntrack; Shunt's programs
translate before it. So while the host has chains that may drop packets of Services before the kernel's DNAT or on their way through the
node (or tables of the older iptables, which are not read), new connections that come by an uplink or from a pod are left to netfilter
(`--host-rules auto`): Shunt chooses the endpoint as ever, writes the connection into conntrack (DNAT, and SNAT where it masquerades), and
passes its packets untouched. Rules before DNAT see the nodePort, those behind it the pod's address, `ct status dnat` and `ct original`.
The agent names the chains in its log, says who translates, and counts what is still passed by (`shunt_host_rules`).

- `conntrack -L` shows these connections; `shunt get flows` does not. Of each the first packet counts for its Service, the others as
  `conntrack` at the hook.
- Netfilter looks for translations only where a chain of NAT is: the agent makes the table `inet shunt`, with two such chains that
  decide nothing, and takes it away when the rules and the last such connection are gone; `shunt cleanup` does at once. `nft flush ruleset`
  takes it too: it is there again within a second, and connections that send in between are reset, as with kube-proxy.
- Connections that were begun before the rules came stay in Shunt's own table. Those that netfilter has begun stay with it.
- UDP connections whose endpoint goes are taken out of conntrack, as by kube-proxy.
- It takes `bpf_ct_set_nat_info` and its like (Linux 6.1), the kernel's types in `/sys/kernel/btf`, and CAP_SYS_ADMIN where nf_conntrack
  is a module. Where modules do not agree about the type they hand on (Debian's 6.18 and newer, with nf_conntrack and nf_nat as
  modules) the kernel takes no such program; [kernels.md](kernels.md) shows which do. There, and with `--host-rules ignore`, rules are
  passed by as the table says; the log tells why.
- Not left to netfilter: SCTP; pods that a bridge switches to each other while `bridge-nf-call-iptables` and `-ip6tables` are off (the
  answer would keep the endpoint's address, as with kube-proxy); and a pod's connection to an endpoint outside the pods' range, since
  the CNI's masquerading does not look at what conntrack holds already.

| rules | with kube-proxy | with Shunt's own translation | cure |
|---|---|---|---|
| that drop before the kernel's DNAT (prerouting, priority below -100: `raw`, `mangle`), by port or by a Service's address | see the nodePort and the Service's address | see the endpoint's; by source they hold, but not for what XDP sends on by itself | the annotation `shunt.dev/source-ranges` on a Service (networks with commas between them; `shunt.dev/source-ranges-at: everywhere` for its ClusterIP, too); rules by source; `--xdp-forward auto` (the default), with which XDP sends nothing past them |
| that drop what is forwarded, by `ct original proto-dst` or `ct status dnat` | know the original port, and that it was translated | conntrack sees the endpoint's port from the start, and no translation | rules by the endpoint's address and port; accept what goes to the pods' range |
| a policy of drop for what is forwarded | `ct status dnat accept` lets Services through | it does not | accept what goes to and comes from the pods' range |
| `ct state invalid drop` | holds | holds: what passes the stack is consistent for conntrack. What XDP sends by itself does not pass it, so with `--xdp-forward auto` none is sent where such rules are | |
| output rules on a Service's address (priority below -100) | see it | see ClusterIPs: while there are such rules, sockets of the node are left alone and their packets translated where they leave. Not where ClusterIPs are not routed over a gateway behind an uplink (the log tells), with `--host-rules ignore`, nor other addresses of Services | rules by the endpoint's address; policies of the CNI |
| that drop a client who asks a Service without endpoints | drop | the client is refused: RST and ICMP errors come before any rule | |

## Not compared

| what | why |
|---|---|
| internalTrafficPolicy, topology hints, ipMode | the Services that are drawn have none; [conformance.md](conformance.md) holds them |
| balance over the pods | only the set of pods is compared; kube-proxy draws at random, Shunt hashes |
";

#[cfg(test)]
mod tests {
    use super::super::cases::draw;
    use super::super::probes::{Asker, of};
    use super::*;

    #[test]
    fn the_page_is_the_list() {
        let root = crate::repository::root();
        let file = root.join("docs/differences.md");
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        let draft = crate::repository::target().join("differences.md");
        if written != page() {
            std::fs::write(&draft, page()).unwrap();
            panic!("{} is not what the list says; cp {} {}", file.display(), draft.display(), file.display());
        }
    }

    fn verdict(pods: &[(&str, Source)], failures: &[&str]) -> Verdict {
        let seen = |(pod, source): &(&str, Source)| ((*pod).to_owned(), BTreeSet::from([*source]));
        let failures = failures.iter().map(|failure| (*failure).to_owned()).collect();
        Verdict { pods: pods.iter().map(seen).collect(), failures }
    }

    fn explained(
        service: &str,
        frontend: Frontend,
        asker: Asker,
        [theirs, ours]: [&Verdict; 2],
    ) -> Option<&'static str> {
        let cases = draw(1);
        let at = cases.iter().position(|case| case.name == service).unwrap();
        // Of every second Service an unknown port is asked.
        let case =
            &Case { affinity: false, sources: &[], external_ip: Some(1), cluster_ip: 4, ..cases[at].clone() };
        let probes = of(std::slice::from_ref(case));
        let asked = |probe: &&Probe| probe.frontend == frontend && probe.asker == asker;
        let probe = probes
            .iter()
            .find(asked)
            .unwrap_or_else(|| panic!("nobody asks {frontend:?} of {service} as {asker:?}"));
        explanation(&Seen { case, probe, kube_proxy: theirs, shunt: ours }).map(|listed| listed.id)
    }

    #[test]
    fn only_what_is_listed_is_explained() {
        let failed = ["dropped", "refused"].map(|failure| verdict(&[], &[failure]));
        let reached = [Source::NodeA, Source::Kept].map(|source| verdict(&[("a1", source)], &[]));
        let ([dropped, refused], [masked, kept]) = (&failed, &reached);
        let partly = &verdict(&[("a1", Source::Kept)], &["dropped"]);
        let elsewhere = &verdict(&[("b1", Source::Kept)], &[]);
        let at = Frontend::NodePort(NodeId::A);
        let client = |pair| explained("node-here", at, Asker::Client, pair);
        assert_eq!(client([masked, kept]), Some("client-address-kept"));
        assert_eq!(client([kept, masked]), None);
        assert_eq!(client([masked, dropped]), None);
        assert_eq!(client([masked, partly]), None);
        assert_eq!(explained("node-local-here", at, Asker::Client, [kept, masked]), None);

        let unknown = |pair| explained("node-here", Frontend::UnknownPort, Asker::Client, pair);
        assert_eq!(unknown([dropped, refused]), Some("unknown-port-refused"));
        assert_eq!(unknown([dropped, kept]), None);

        let host = |pair| explained("node-here", Frontend::LoopbackNodePort, Asker::Host(NodeId::A), pair);
        assert_eq!(host([refused, kept]), Some("node-port-of-loopback"));
        assert_eq!(host([dropped, kept]), Some("node-port-of-loopback"));
        assert_eq!(host([refused, elsewhere]), None);
        assert_eq!(host([kept, refused]), None);

        let far = |pair| explained("node-local-here", at, Asker::Pod("b1", NodeId::B), pair);
        assert_eq!(far([masked, kept]), Some("local-policy-and-pods-of-other-nodes"));
        assert_eq!(far([masked, dropped]), None);
    }

    #[test]
    fn a_name_stands_in_the_list_once() {
        for (at, listed) in LIST.iter().enumerate() {
            assert!(LIST[at + 1..].iter().all(|other| other.id != listed.id), "{}", listed.id);
        }
    }
}
