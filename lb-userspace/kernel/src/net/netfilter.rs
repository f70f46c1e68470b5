//! What messages to and from netfilter have in common (NETLINK_NETFILTER). `include/uapi/linux/netfilter/nfnetlink.h` has the numbers.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// Flags of a request.
pub(super) const REQUEST: u16 = 1;
pub(super) const ACKNOWLEDGE: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Of a message's header, and of netfilter's behind it.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// Bit of an attribute's type: it holds others.
pub(super) const NESTED: u16 = 0x8000;

/// A connection to the netfilter of the network namespace that the thread is in.
pub(super) fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// A message.
pub(super) fn request(kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + FAMILY_HEADER + body.len());
    message.extend(((HEADER + FAMILY_HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(body);
    message
}

/// Takes in messages (type, family, attributes) until the kernel says that these were all.
///
/// # Errors
/// The kernel's own included.
pub(super) fn answers(socket: &Socket, take: &mut dyn FnMut(u16, u8, &[u8])) -> io::Result<()> {
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    return match body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                kind => {
                    if let (Some(family), Some(body)) = (body.first(), body.get(FAMILY_HEADER..)) {
                        take(kind, *family, body);
                    }
                }
            }
            rest = after;
        }
    }
}

/// The first message: its type, its body, what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attributes of a message, or of another attribute.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & TYPE;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a type.
pub(super) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that holds others.
pub(super) fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_far_as_they_are_whole() {
        let whole =
            request(7, REQUEST, 2, 10, &nested(1, &[attribute(2, b"ab\0"), attribute(3, &[0, 0, 0, 9])]));
        let (kind, body, rest) = message(&whole).expect("whole");
        assert_eq!((kind, body[0], &body[2..4], rest.len()), (7, 2, &[0, 10][..], 0));
        let inner = find(&body[FAMILY_HEADER..], 1).expect("nested");
        assert_eq!(find(inner, 2).map(text).as_deref(), Some("ab"));
        assert_eq!(find(inner, 3).and_then(number), Some(9));
        assert_eq!(find(inner, 4), None);
        assert!(message(&whole[..whole.len() - 1]).is_none(), "cut short");
        assert!(message(&[40, 0, 0, 0, 3, 0, 0, 0, 1]).is_none(), "longer than what came");
    }
}
