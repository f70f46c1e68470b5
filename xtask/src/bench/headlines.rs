//! Which rows the summary in docs/performance.md has, beside those that miss their targets.

use super::Bench;
use super::record::{Judged, Record};

/// Rows of one figure.
pub struct Headlines {
    bench: Bench,
    what: &'static str,
    /// What they are held against, as its name ends or goes on; the empty one: whatever the row has.
    against: &'static str,
    cases: &'static [&'static str],
}

/// In the order in which they are shown.
pub const HEADLINES: &[Headlines] = &[
    Headlines {
        bench: Bench::Packet,
        what: "time a packet",
        against: "",
        cases: &[
            "uplink_xdp: established, IPv4 TCP, 64 B, 1 flow, fresh table",
            "uplink_xdp: established, IPv4 TCP, 64 B, 64 k flows, aged table",
            "uplink_xdp: established, IPv4 UDP, 64 B, 1 flow, as is, fresh table",
            "uplink_xdp: established, IPv6 TCP, 80 B, 1 flow, fresh table",
            "uplink_xdp: established, IPv6 UDP, 80 B, 1 flow, fresh table",
            "uplink_xdp: new flow, IPv4 TCP, 64 B, never seen, full table",
            "uplink_xdp: new flow, IPv4 UDP, 64 B, never seen, full table",
            "uplink_xdp: new flow, IPv6 TCP, 80 B, never seen, full table",
            "uplink_xdp: new flow, IPv6 UDP, 80 B, never seen, full table",
            "uplink_xdp: SNAT new flow, IPv4 TCP, 64 B, never seen, full table",
            "uplink_xdp: no Service, IPv4 TCP, 64 B, 1 flow, as is, fresh table",
            "uplink_xdp: no Service, IPv4 UDP, 64 B, 1 flow, as is, fresh table",
            "uplink_xdp: no Service, IPv6 TCP, 80 B, 1 flow, as is, fresh table",
        ],
    },
    Headlines {
        bench: Bench::Wire,
        what: "rate",
        against: "floor: swap MACs + XDP_TX",
        cases: &[
            "Shunt, 10000 Services, sent back by XDP, masqueraded, 1 flow",
            "Shunt, 10000 Services, sent back by XDP, masqueraded, 1024 flows",
            "Shunt, 10000 Services, sent back by XDP, masqueraded, new flows",
        ],
    },
    Headlines {
        bench: Bench::Wire,
        what: "rate, against nftables",
        against: "nftables",
        cases: &[
            "Shunt, 10000 Services, sent back by XDP, masqueraded, 1 flow",
            "Shunt, 10000 Services, sent back by XDP, masqueraded, new flows",
            "Shunt, 1000 Services, to a pod here (the kernel forwards), 1 flow",
            "Shunt, 1000 Services, to a pod here (the kernel forwards), new flows",
        ],
    },
    Headlines {
        bench: Bench::Sockets,
        what: "CPU time a connection",
        against: "direct to the pod",
        cases: &[
            "pod to ClusterIP: Shunt, tc, 10000 Services",
            "pod to ClusterIP: Shunt, socket hook, 10000 Services",
            "node to ClusterIP: Shunt, socket hook, 10000 Services",
            "outside to nodePort, pod here: Shunt, tc, 10000 Services",
            "outside to nodePort, pod here: Shunt, XDP, 10000 Services",
            "outside to nodePort, pod of another node: Shunt, tc, 10000 Services",
            "outside to nodePort, pod of another node: Shunt, XDP, 10000 Services",
        ],
    },
    Headlines {
        bench: Bench::Sockets,
        what: "CPU time a connection",
        against: "nftables, 10000 Services",
        cases: &[
            "pod to ClusterIP: Shunt, socket hook, 10000 Services",
            "node to ClusterIP: Shunt, socket hook, 10000 Services",
            "outside to nodePort, pod here: Shunt, tc, 10000 Services",
            "outside to nodePort, pod of another node: Shunt, XDP, 10000 Services",
        ],
    },
    Headlines {
        bench: Bench::Sockets,
        what: "time a connection, p99",
        against: "direct to the pod",
        cases: &["outside to nodePort, pod of another node: Shunt, tc, 10000 Services"],
    },
    Headlines {
        bench: Bench::Sync,
        what: "cold start, lists to maps",
        against: "",
        cases: &["library: 10 000 Services x 10 endpoints"],
    },
    Headlines {
        bench: Bench::Sync,
        what: "endpoint replaced, event to maps, p99",
        against: "",
        cases: &["library: 10 000 Services x 10 endpoints", "library: 1 Service x 10 000 endpoints"],
    },
    Headlines {
        bench: Bench::Sync,
        what: "endpoint replaced, CPU",
        against: "",
        cases: &["library: 10 000 Services x 10 endpoints", "Shunt: 1 000 Services x 10 endpoints"],
    },
    Headlines {
        bench: Bench::Sync,
        what: "resident, peak",
        against: "",
        cases: &["library: 10 000 Services x 10 endpoints"],
    },
    Headlines {
        bench: Bench::Sync,
        what: "maps",
        against: "",
        cases: &["library: 10 000 Services x 10 endpoints"],
    },
    Headlines {
        bench: Bench::Sync,
        what: "new Service, write to first packet",
        against: "kube-proxy",
        cases: &["Shunt: 1 000 Services x 10 endpoints"],
    },
    Headlines {
        bench: Bench::Sync,
        what: "endpoint replaced, write to first packet",
        against: "kube-proxy",
        cases: &["Shunt: 1 000 Services x 10 endpoints"],
    },
    Headlines {
        bench: Bench::Sync,
        what: "resident memory, peak",
        against: "kube-proxy",
        cases: &["Shunt: 1 000 Services x 10 endpoints"],
    },
    Headlines {
        bench: Bench::Maglev,
        what: "time to build",
        against: "",
        cases: &["10 endpoints, 809 slots", "1310 endpoints, 131071 slots"],
    },
    Headlines { bench: Bench::Flood, what: "SYNs that came out of the node", against: "", cases: FLOODED },
    Headlines { bench: Bench::Flood, what: "open connections that live on", against: "", cases: FLOODED },
    Headlines { bench: Bench::Flood, what: "new connections that succeed", against: "", cases: FLOODED },
    Headlines {
        bench: Bench::Flood,
        what: "time in the node's programs, a SYN",
        against: "",
        cases: FLOODED,
    },
];

const FLOODED: &[&str] = &["nodePort with a pod here", "nodePort with a pod of another node"];

/// The headline rows of a run, and the names of those that it lacks.
pub fn of(bench: Bench, record: &Record) -> (Vec<&Judged>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for headlines in HEADLINES.iter().filter(|headlines| headlines.bench == bench) {
        for case in headlines.cases {
            match record.rows.iter().find(|judged| headlines.are_about(case, judged)) {
                Some(judged) => found.push(judged),
                None => missing.push(headlines.name(case)),
            }
        }
    }
    (found, missing)
}

impl Headlines {
    fn are_about(&self, case: &str, Judged { row, .. }: &Judged) -> bool {
        let floor = row.floor.as_deref().unwrap_or_default();
        row.case == case && row.what == self.what && floor.contains(self.against)
    }

    fn name(&self, case: &str) -> String {
        let against = if self.against.is_empty() { "anything" } else { self.against };
        format!("`{case}`, `{}`, against `{against}`", self.what)
    }
}
