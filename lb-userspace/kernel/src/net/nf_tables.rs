//! Reads the host's packet filter, and follows it: chains and rules of nf_tables over netlink, as far as they matter
//! ([`lb_control::network::host_rules`]). `include/uapi/linux/netfilter/nf_tables.h` has the numbers.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lb_control::network::host_rules::{Chain, HostRules, Point, Rule, Ruleset, Table, judge};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::sync::watch;
use tracing::warn;

use super::netfilter::{DUMP, REQUEST, answers, attribute, attributes, number, open, request, text};

const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NEW_RULE: u16 = SUBSYSTEM | 6;
/// The multicast group that tells of changes.
const CHANGES: u32 = 7;

/// Tables of the older iptables in this network namespace.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
/// Those of them that may drop.
const LEGACY_FILTERS: [&str; 4] = ["filter", "mangle", "raw", "security"];

/// Everything there is now. A kernel without nf_tables has nothing.
fn ruleset() -> io::Result<Ruleset> {
    let socket = open()?;
    let mut found = Ruleset { legacy: legacy(), ..Ruleset::default() };
    dump(&socket, GET_CHAIN, None, &mut |kind, family, body| {
        if kind == NEW_CHAIN {
            found.chains.extend(chain(family, body));
        }
    })?;
    // (Of these tables alone: others may have a rule for each Service.)
    let tables: BTreeSet<Table> =
        found.chains.iter().filter(|chain| chain.matters()).map(|chain| chain.table.clone()).collect();
    for table in tables {
        dump(&socket, GET_RULE, Some(&table), &mut |kind, family, body| {
            if kind == NEW_RULE {
                found.rules.extend(rule(family, body));
            }
        })?;
    }
    Ok(found)
}

/// Rules change in bursts; this long after the first change they are read again.
const BURST: Duration = Duration::from_millis(500);

/// What there is that matters, followed for as long as the receiver lives. What cannot be read is told once, and counts as nothing.
pub fn follow() -> watch::Receiver<Arc<HostRules>> {
    let changes = listen();
    let read = move || {
        ruleset().map(|ruleset| judge(&ruleset)).unwrap_or_else(|error| {
            warn!(%error, "cannot read the host's packet filter, so nothing is said of its rules");
            HostRules::default()
        })
    };
    // (As its first value: a change after that is news, this is none.)
    let (sender, receiver) = watch::channel(Arc::new(read()));
    let follow = move || {
        let Ok(changes) = changes else { return };
        while wait(&changes).is_ok() && !sender.is_closed() {
            std::thread::sleep(BURST);
            let rules = Arc::new(read());
            sender.send_if_modified(|known| {
                let changed = *known != rules;
                *known = rules;
                changed
            });
        }
    };
    // (Netlink's own crates for tokio know no nf_tables.)
    if let Err(error) = std::thread::Builder::new().name("host-rules".to_owned()).spawn(follow) {
        warn!(%error, "cannot follow the host's packet filter");
    }
    receiver
}

fn listen() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.add_membership(CHANGES)?;
    Ok(socket)
}

/// Returns when something has changed, or messages were lost.
fn wait(changes: &Socket) -> io::Result<()> {
    match changes.recv_from_full() {
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
        other => other.map(drop),
    }
}

fn legacy() -> Vec<String> {
    let names = LEGACY.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let mut names: Vec<String> = names
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|name| LEGACY_FILTERS.contains(&name.as_str()))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Asks for everything of a kind, or what of it one table has.
fn dump(
    socket: &Socket,
    kind: u16,
    table: Option<&Table>,
    take: &mut dyn FnMut(u16, u8, &[u8]),
) -> io::Result<()> {
    let name: Vec<u8> =
        table.iter().flat_map(|(_, name)| attribute(1, &[name.as_bytes(), &[0]].concat())).collect();
    let family = table.map_or(0, |(family, _)| *family);
    socket.send(&request(kind, REQUEST | DUMP, family, 0, &name), 0)?;
    match answers(socket, take) {
        // A kernel without nf_tables does not know the question.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The hook of a base chain as its family numbers it.
const fn point(family: u8, hook: u32) -> Point {
    const NETDEV: u8 = 5;
    const BRIDGE: u8 = 7;
    match (family, hook) {
        (NETDEV | BRIDGE, _) => Point::Other,
        (_, 0) => Point::Prerouting,
        (_, 2) => Point::Forward,
        (_, 3) => Point::Output,
        _ => Point::Other,
    }
}

fn chain(family: u8, body: &[u8]) -> Option<Chain> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const DROP: u32 = 0;
    let (mut table, mut name, mut base, mut policy) = (None, None, None, None);
    for (kind, value) in attributes(body) {
        match kind {
            TABLE => table = Some(text(value)),
            NAME => name = Some(text(value)),
            POLICY => policy = number(value),
            HOOK => {
                let find = |wanted| attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, it)| it);
                let (hook, priority) = (number(find(1)?)?, number(find(2)?)?);
                base = Some((point(family, hook), priority.cast_signed()));
            }
            _ => {}
        }
    }
    let drops = base.is_some() && policy == Some(DROP);
    Some(Chain { table: (family, table?), name: name?, base, drops })
}

fn rule(family: u8, body: &[u8]) -> Option<Rule> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let (mut table, mut rule): (Option<String>, Rule) = (None, Rule::default());
    for (kind, value) in attributes(body) {
        match kind {
            TABLE => table = Some(text(value)),
            CHAIN => rule.chain = text(value),
            EXPRESSIONS => attributes(value).for_each(|(_, expression)| read(expression, &mut rule)),
            _ => {}
        }
    }
    rule.table = Table::from((family, table?));
    Some(rule)
}

/// What one expression of a rule may do.
fn read(expression: &[u8], rule: &mut Rule) {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, it)| it);
    let (Some(name), data) = (find(expression, NAME), find(expression, DATA).unwrap_or_default()) else {
        return;
    };
    match text(name).as_str() {
        "immediate" => {
            const VALUE: u16 = 2;
            const VERDICT: u16 = 2;
            const CODE: u16 = 1;
            const CHAIN: u16 = 2;
            const DROP: u32 = 0;
            let Some(verdict) = find(data, VALUE).and_then(|value| find(value, VERDICT)) else { return };
            rule.drops |= find(verdict, CODE).and_then(number) == Some(DROP);
            rule.jumps.extend(find(verdict, CHAIN).map(text));
        }
        "reject" | "queue" | "synproxy" => rule.drops = true,
        // A target of iptables': REJECT, NFQUEUE and the like.
        "target" => {
            const HARMLESS: [&str; 8] =
                ["LOG", "NFLOG", "MARK", "CONNMARK", "MASQUERADE", "DNAT", "SNAT", "TCPMSS"];
            let name = find(data, 1).map(text).unwrap_or_default();
            rule.drops |= !HARMLESS.contains(&name.as_str());
        }
        // With the verdict's register as its destination.
        "lookup" => rule.by_map |= find(data, 3).and_then(number) == Some(0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_no_chain() {
        let whole = [
            attribute(1, b"fw\0"),
            attribute(3, b"forward\0"),
            attribute(
                4,
                &[attribute(1, &2_u32.to_be_bytes()), attribute(2, &(-5_i32).to_be_bytes())].concat(),
            ),
            attribute(5, &0_u32.to_be_bytes()),
        ]
        .concat();
        let expected = Chain {
            table: (1, "fw".to_owned()),
            name: "forward".to_owned(),
            base: Some((Point::Forward, -5)),
            drops: true,
        };
        assert_eq!(chain(1, &whole), Some(expected));
        for length in 0..whole.len() {
            let _ = chain(1, &whole[..length]);
        }
        assert_eq!(chain(1, &whole[..8]), None);
    }
}
