//! Whether Shunt's outcome is right beside kube-proxy's, and the written list of what differs.

use super::outcome::Outcome;
use super::report::Row;

/// What may be wrong with an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// There is a flow, of a packet that kube-proxy's node drops.
    Flow,
    /// It comes to a pod that it does not come to with kube-proxy.
    Reaches,
    /// It does not come to the pod that it comes to with kube-proxy.
    Misses,
    /// It leaves the node, and does not with kube-proxy.
    Forwarded,
    /// It comes to the node again and again.
    Circles,
    /// It leaves with the TTL that it came with.
    KeepsTtl,
    /// It comes to a pod more than once.
    Twice,
    /// Its sender gets another error, or none, or one where none is due.
    Answers,
    /// An honest sender gets no answer of the pod, or one that is not due.
    Reply,
}

/// What is wrong with an outcome of Shunt's beside kube-proxy's; nothing if it is right.
pub fn wrong(row: &Row, ours: &Outcome) -> Vec<Wrong> {
    let theirs = &row.kube_proxy;
    // (What answers a source that is another's is not for its sender.)
    let replies = |outcome: &Outcome| row.is_honest && outcome.answers.contains("answered");
    [
        (Wrong::Flow, ours.flow && theirs.pods.is_empty() && !theirs.is_forwarded()),
        (Wrong::Reaches, !ours.reached().is_subset(&theirs.reached())),
        (Wrong::Misses, !theirs.reached().is_subset(&ours.reached())),
        (Wrong::Forwarded, ours.is_forwarded() && !theirs.is_forwarded()),
        (Wrong::Circles, ours.circles()),
        (Wrong::KeepsTtl, ours.kept_ttl),
        (Wrong::Twice, ours.pods.values().any(|count| *count > ours.sent)),
        (Wrong::Answers, ours.errors() != theirs.errors()),
        (Wrong::Reply, replies(ours) != replies(theirs)),
    ]
    .into_iter()
    .filter_map(|(what, holds)| holds.then_some(what))
    .collect()
}

/// A difference that is known.
#[derive(Debug)]
pub struct Listed {
    /// A short name.
    pub id: &'static str,
    /// When it shows.
    pub when: &'static str,
    /// What kube-proxy's node does.
    pub kube_proxy: &'static str,
    /// What Shunt's does.
    pub shunt: &'static str,
    /// Why.
    pub reason: &'static str,
    /// What may be wrong then.
    allows: &'static [Wrong],
    /// Whether a row, and Shunt's outcome in it, is of this kind.
    is_of: fn(&Row, &Outcome) -> bool,
}

/// The list, in the order in which a row is looked for.
pub const LIST: &[Listed] = &[
    Listed {
        id: "unknown-ports-do-not-circle",
        when: "a port that no Service has, at a ClusterIP or at an external address that is led to the node and not its own",
        kube_proxy: "Forwarded by the default route. A router that leads it back has it circle until its TTL is at an end.",
        shunt: "Refused: at a ClusterIP always, at an external address where the kernel would send the packet back by the \
                interface that it has come by.",
        reason: "It would come back. Where the address is another machine's behind the node, other ports go there.",
        allows: &[Wrong::Answers],
        is_of: |row, ours| {
            let unknown =
                row.name.contains("a port of no Service") || row.at.contains("a port of no Service");
            (unknown || row.name == "port 0")
                && row.kube_proxy.left > 0
                && ours.is_refused()
                && !ours.circles()
        },
    },
    Listed {
        id: "addresses-of-no-service",
        when: "an address that no Service has, in a range that a router leads to the node",
        kube_proxy: "Forwarded by the default route, in a circle until its TTL is at an end.",
        shunt: "The same; with --service-cidr or ServiceCIDR objects, those of ClusterIPs are dropped (conformance 5.12).",
        reason: "Nothing says that they are Services'.",
        allows: &[Wrong::Circles],
        is_of: |row, ours| row.at.starts_with("the range of") && row.kube_proxy.circles() && !ours.flow,
    },
    Listed {
        id: "sources-of-nobody",
        when: "a source that no network has: 127/8, the node's own address, IPv6's :: and IPv4-mapped addresses; or a nodePort of \
               127.0.0.1 asked from outside",
        kube_proxy: "route_localnet lets 127/8 in, but for 127.0.0.1 itself, and a nodePort of 127.0.0.1; the kernel takes the others in IPv6.",
        shunt: "Dropped, as the kernel does in IPv4 (`martian`); 127/8 is left to the kernel, which drops it.",
        reason: "No answer could arrive, or it is an attack (CVE-2020-8558).",
        allows: &[Wrong::Misses, Wrong::Answers, Wrong::Reply],
        is_of: |row, ours| {
            (!row.is_honest || row.name == "nodePort of loopback")
                && ours.pods.is_empty()
                && ours.left == 0
                && ours.answers.is_empty()
                && !ours.flow
        },
    },
    Listed {
        id: "refusals-go-back",
        when: "nobody serves, and the source is another's",
        kube_proxy: "The refusal goes where the source's address leads to, or nowhere.",
        shunt: "It goes back where the packet came from.",
        reason: "It is made without a look for routes. Who spoofs gets to know what his own address would have told him.",
        allows: &[Wrong::Answers],
        is_of: |row, ours| !row.is_honest && row.kube_proxy.pods.is_empty() && ours.is_refused(),
    },
    Listed {
        id: "another-nodes-address-out-of-a-pod",
        when: "a pod sends from the address of another node, to an endpoint on that node",
        kube_proxy: "Masqueraded, since the address is no pod's, and so it arrives.",
        shunt: "Its source is kept, as that of all pods of this node: the other node drops what comes from its own address.",
        reason: "What comes out of a pod is a pod's.",
        allows: &[Wrong::Misses, Wrong::Forwarded, Wrong::Flow],
        is_of: |row, ours| row.name == "from a pod: source the other node's" && ours.pods.is_empty(),
    },
    Listed {
        id: "strict-rp-filter",
        when: "rp_filter is strict, and a source is not behind the interface that it comes by",
        kube_proxy: "The kernel drops it.",
        shunt: "The kernel drops it, but the flow is made; and what XDP sends on by itself to another node does not meet the kernel.",
        reason: "Not done: a program sees a card below bridges, VLANs and macvlans, and could not tell which interface's rp_filter \
                 counts. --xdp-mode off has every packet pass the kernel.",
        allows: &[Wrong::Flow, Wrong::Reaches, Wrong::Misses, Wrong::Forwarded],
        is_of: |row, _| row.strict && !row.is_honest,
    },
    Listed {
        id: "ttl-at-the-nodes-own-address",
        when: "TTL 1 at a nodePort, or at an external address that is the node's own",
        kube_proxy: "Time exceeded, and nothing remains.",
        shunt: "Time exceeded; its flow remains until it expires, as one of a first packet does.",
        reason: "The kernel's ICMP error quotes the packet as it was forwarded; the flow gives its sender the addresses that he knows.",
        allows: &[Wrong::Flow],
        is_of: |row, ours| {
            ours.errors().contains("time exceeded")
                && ours.pods.is_empty()
                && !ours.is_forwarded()
                && !row.at.contains("no Service")
        },
    },
    Listed {
        id: "options-that-the-kernel-drops-for",
        when: "IPv4 options of source routing or too long, an IPv6 option that is to be refused",
        kube_proxy: "The kernel drops it, or answers a parameter problem.",
        shunt: "The same, from tc on (XDP sends nothing on that has options or extension headers); its flow remains until it expires. \
                Where nobody serves, refused.",
        reason: "The kernel looks at options after tc. Not looked at twice.",
        allows: &[Wrong::Flow, Wrong::Answers],
        is_of: |row, ours| {
            let names = ["source route", "an option that is too long", "an option to be refused"];
            names.iter().any(|name| row.name.contains(name)) && ours.pods.is_empty() && !ours.is_forwarded()
        },
    },
    Listed {
        id: "refusals-of-odd-datagrams",
        when: "nobody serves, and a UDP datagram has options, extension headers, or comes in fragments",
        kube_proxy: "ICMP port unreachable.",
        shunt: "Silent (`no_endpoint_silent`), or refused before all fragments are there.",
        reason: "An error that quotes it would have to be of another length than those that are made.",
        allows: &[Wrong::Answers],
        is_of: |row, ours| row.at.contains("nobody, UDP") && ours.pods.is_empty() && ours.left == 0,
    },
    Listed {
        id: "routing-headers",
        when: "an IPv6 routing header with segments left",
        kube_proxy: "Translated all the same: the pod answers a parameter problem.",
        shunt: "Left to the kernel (`other_protocol`): it answers at an address of the node's own, and forwards what is for another, in a \
                circle where a router leads it back.",
        reason: "It is on its way to somewhere else first, and its checksum is that of its last station.",
        allows: &[Wrong::Misses, Wrong::Forwarded, Wrong::Circles, Wrong::Answers, Wrong::Reply],
        is_of: |row, ours| row.name.starts_with("routing header") && ours.pods.is_empty() && !ours.flow,
    },
    Listed {
        id: "lengths-that-lie",
        when: "lengths of headers that do not fit the frame or each other",
        kube_proxy: "Conntrack calls it invalid, and it is dropped.",
        shunt: "Left to the kernel (`malformed`): forwarded as without anybody, in a circle where a router leads it back.",
        reason: "What cannot be read is nobody's; the receiver drops it.",
        allows: &[Wrong::Forwarded, Wrong::Circles],
        is_of: |row, ours| row.name.contains("length") && ours.pods.is_empty() && !ours.flow,
    },
    Listed {
        id: "checksums-are-the-receivers",
        when: "a checksum of TCP or UDP that is wrong, or a UDP length that ends before the packet",
        kube_proxy: "Conntrack looks at it, calls the packet invalid, and it is dropped.",
        shunt: "Translated, and as wrong as before: the pod drops it.",
        reason: "To add up each first packet would cost more than all else that is done with it.",
        allows: &[Wrong::Flow, Wrong::Reaches, Wrong::Answers],
        is_of: |row, ours| {
            (row.name == "a wrong checksum" || row.name == "a UDP length before its end")
                && !ours.answers.contains("answered")
        },
    },
    Listed {
        id: "fragments-are-put-together-by-the-receiver",
        when: "fragments that overlap, or that are not all there",
        kube_proxy: "Conntrack puts them together first: they stay at the node, and are dropped there.",
        shunt: "Translated one by one: the pod drops them. A later one alone that is for no address of the node's own goes its way.",
        reason: "See the odd packets of packet-path.md.",
        allows: &[Wrong::Flow, Wrong::Reaches, Wrong::Forwarded, Wrong::Circles, Wrong::Answers],
        is_of: |row, ours| row.name.contains("piece") && !ours.answers.contains("answered"),
    },
    Listed {
        id: "source-port-0",
        when: "UDP from port 0, which nobody can answer to",
        kube_proxy: "Masqueraded to another port, so that the pod's answer leaves.",
        shunt: "The pod sees port 0, and cannot answer, where its address is kept.",
        reason: "See client-address-kept.",
        allows: &[Wrong::Reply],
        is_of: |row, _| row.name == "source port 0",
    },
];

/// The difference that explains all that is wrong with an outcome, if one does.
pub fn explanation(row: &Row, ours: &Outcome) -> Option<&'static Listed> {
    let wrong = wrong(row, ours);
    let explains =
        |listed: &&Listed| wrong.iter().all(|what| listed.allows.contains(what)) && (listed.is_of)(row, ours);
    LIST.iter().find(explains)
}

/// The list as a part of the documentation.
pub fn section() -> String {
    let mut text = String::from(INTRODUCTION);
    for Listed { id, when, kube_proxy, shunt, reason, .. } in LIST {
        text += &format!("| <a id=\"{id}\"></a>{id}: {when} | {kube_proxy} | {shunt} | {reason} |\n");
    }
    text
}

const INTRODUCTION: &str = "
## odd-packets

`cargo xtask test --only api_odd` puts some 2700 frames on the wires of both labs: sources that are another's or nobody's, destinations
that are nobody's, TTLs at their end, options and extension headers, TCP flags, lengths and checksums that lie, fragments that overlap; from
outside and from a pod, at every kind of address; with native XDP and without, with `rp_filter` off and strict. Which pods they come to, what
leaves the node and how often, what comes back, and which flows remain must be as with kube-proxy, but for this list
(`xtask/src/twin/odd/judge.rs`). `target/twin/odd.txt` has what became of each.

| when | kube-proxy | Shunt | why |
|---|---|---|---|
";
