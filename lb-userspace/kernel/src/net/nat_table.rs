//! Our own table of nf_tables, `inet shunt`: chains of NAT without a verdict. Netfilter looks for translations only where there is one,
//! and follows connections only where a rule asks about them.

use std::io;

use lb_control::network::host_rules::OWN;

use super::netfilter::{
    ACKNOWLEDGE, APPEND, CREATE, DUMP, EXCLUSIVE, REQUEST, answers, attribute, find, nested, open, request,
    text,
};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NF_TABLES: u16 = 10;
/// Its family, both, and its name.
const INET: u8 = OWN.0;
const NAME: &str = OWN.1;

/// Name, hook and priority: where the kernel's own NAT has its places. (With one of them it has all.)
const CHAINS: [(&str, u32, i32); 2] = [("prerouting", 0, -100), ("postrouting", 4, 100)];

/// Makes the table, unless it is there.
pub fn create() -> io::Result<()> {
    let mut messages = request(NEW_TABLE, REQUEST | CREATE | EXCLUSIVE, INET, 0, &string(1, NAME));
    for (name, hook, priority) in CHAINS {
        const TABLE: u16 = 1;
        const CHAIN: u16 = 3;
        const HOOK: u16 = 4;
        const TYPE: u16 = 7;
        let place = nested(HOOK, &[word(1, hook), word(2, priority.cast_unsigned())]);
        let body = [string(TABLE, NAME), string(CHAIN, name), place, string(TYPE, "nat")].concat();
        messages.extend(request(NEW_CHAIN, REQUEST | CREATE, INET, 0, &body));
    }
    messages.extend(request(
        NEW_RULE,
        REQUEST | CREATE | APPEND | ACKNOWLEDGE,
        INET,
        0,
        &look_at_connection(),
    ));
    match batch(&messages) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// A rule that reads the state of a connection (`ct state`) and does nothing with it.
fn look_at_connection() -> Vec<u8> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    const ELEMENT: u16 = 1;
    const REGISTER: u32 = 1;
    const STATE: u32 = 0;
    let [(chain, ..), ..] = CHAINS;
    let state = nested(2, &[word(1, REGISTER), word(2, STATE)]);
    let expression = nested(ELEMENT, &[string(1, "ct"), state]);
    [string(TABLE, NAME), string(CHAIN, chain), nested(EXPRESSIONS, &[expression])].concat()
}

/// Takes the table away. Whether it was there.
pub fn remove() -> io::Result<bool> {
    if !exists()? {
        return Ok(false);
    }
    let message = request(DELETE_TABLE, REQUEST | ACKNOWLEDGE, INET, 0, &string(1, NAME));
    match batch(&message) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the table is there. A kernel without nf_tables has none.
pub fn exists() -> io::Result<bool> {
    let socket = open()?;
    socket.send(&request(GET_TABLE, REQUEST | DUMP, INET, 0, &[]), 0)?;
    let mut found = false;
    let listed = answers(&socket, &mut |_, family, body| {
        found |= family == INET && find(body, 1).map(text).as_deref() == Some(NAME);
    });
    match listed {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) =>
        {
            Ok(false)
        }
        other => other.map(|()| found),
    }
}

/// Does all of it, or nothing. The last message asks for an answer; what is wrong with another is told anyway.
fn batch(messages: &[u8]) -> io::Result<()> {
    let socket = open()?;
    let mark = |kind| request(kind, REQUEST, 0, NF_TABLES, &[]);
    socket.send(&[&mark(BATCH_BEGIN), messages, &mark(BATCH_END)].concat(), 0)?;
    answers(&socket, &mut |_, _, _| {})
}

fn string(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn word(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}
