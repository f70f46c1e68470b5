//! What interfaces and processors count, from the kernel's texts.

use std::collections::BTreeMap;

/// Counters by name.
pub type Counters = BTreeMap<String, u64>;

/// What has been added to counters, those that have grown.
pub fn grown(before: &Counters, after: Counters) -> Counters {
    let more = |(name, value): (String, u64)| {
        let grown = value.saturating_sub(before.get(&name).copied().unwrap_or_default());
        (grown > 0).then_some((name, grown))
    };
    after.into_iter().filter_map(more).collect()
}

/// What an interface has dropped, of all its queues, from `ethtool -S`. (What it could not send is in `ip -s` too.)
pub fn of_interface(text: &str) -> Counters {
    let mut counters = Counters::new();
    for (name, value) in text.lines().filter_map(|line| line.trim().split_once(": ")) {
        let Ok(value) = value.parse::<u64>() else { continue };
        // rx_queue_0_drops, rx_queue_0_xdp_drops, …
        let Some((way, rest)) = name.split_once("_queue_") else { continue };
        let Some((_, what)) = rest.split_once('_') else { continue };
        if what.ends_with("drops") {
            *counters.entry(format!("{way} {what}")).or_default() += value;
        }
    }
    counters
}

/// Packets dropped since a processor's backlog was full, from /proc/net/softnet_stat: the second number of each line.
pub fn backlog_drops(text: &str) -> u64 {
    let number = |line: &str| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(number).sum()
}

/// Time of all processors so far, in ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processors {
    idle: u64,
    all: u64,
}

impl Processors {
    /// From /proc/stat.
    pub fn of(text: &str) -> Self {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        // user nice system idle iowait irq softirq steal; what follows is in `user` already.
        let ticks: Vec<u64> =
            line.split_ascii_whitespace().map_while(|tick| tick.parse().ok()).take(8).collect();
        Self { idle: ticks.iter().skip(3).take(2).sum(), all: ticks.iter().sum() }
    }
}

/// The part of the time between two looks in which processors were not idle, from 0 to 1.
pub fn busy(before: Processors, after: Processors) -> f64 {
    let (idle, all) = (after.idle - before.idle, after.all - before.all);
    1.0 - idle as f64 / all.max(1) as f64
}

/// RetransSegs, from /proc/net/snmp.
pub fn segments_sent_again(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut columns = names.split(' ').zip(values.split(' '));
    columns.find_map(|(name, value)| (name == "RetransSegs").then(|| value.parse().ok()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_dropped_what_all_its_queues_have() {
        let text = "NIC statistics:\n     peer_ifindex: 4\n     rx_queue_0_xdp_packets: 9\n     rx_queue_0_drops: 1\n     \
                    rx_queue_1_drops: 2\n     rx_queue_0_xdp_drops: 5\n     tx_queue_0_xdp_xmit_errors: 3\n";
        let expected = [("rx drops", 3), ("rx xdp_drops", 5)];
        assert_eq!(of_interface(text), expected.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn only_what_has_grown_is_told() {
        let of =
            |values: [u64; 2]| Counters::from([("a".to_owned(), values[0]), ("b".to_owned(), values[1])]);
        assert_eq!(grown(&of([1, 2]), of([1, 5])), Counters::from([("b".to_owned(), 3)]));
        assert_eq!(grown(&Counters::new(), of([0, 5])), Counters::from([("b".to_owned(), 5)]));
    }

    #[test]
    fn drops_of_all_processors_are_summed() {
        let text = "0000a 00000001 00000000\n0000b 00000010 00000000\n";
        assert_eq!(backlog_drops(text), 17);
    }

    #[test]
    fn waiting_for_disks_is_idleness() {
        let of = |line| Processors::of(line);
        let (before, after) = (of("cpu  1 0 1 4 1 0 0 0 9\ncpu0 1 1 1 1\n"), of("cpu  3 0 1 5 2 0 3 1 9\n"));
        assert_eq!(before, Processors { idle: 5, all: 7 });
        assert_eq!(busy(before, after), 0.75);
    }

    #[test]
    fn segments_sent_again_are_found_by_their_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm RetransSegs InErrs\nTcp: 1 42 0\n";
        assert_eq!(segments_sent_again(text), Some(42));
        assert_eq!(segments_sent_again("Tcp: A\nTcp: 1\n"), None);
    }
}
