//! A DNS query for the TXT record that names the pod.
use std::io;
use std::net::UdpSocket;

use super::requests::{Answer, Request};
use crate::Family;
use crate::pod::DNS_NAME;

const HEADER: usize = 12;
const TXT: u16 = 16;
const IN: u16 = 1;

/// Sends one query.
pub(super) fn ask(request: &Request) -> io::Result<Answer> {
    let socket = UdpSocket::bind((Family::of(request.to.ip()).unspecified(), request.source_port))?;
    socket.set_read_timeout(Some(request.timeout))?;
    socket.connect(request.to)?;
    let id = request.number as u16;
    let query = query(id);
    socket.send(&query)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    match text(&buffer[..length], id, query.len()) {
        Some(pod) => Ok(Answer { pod, client: None }),
        None => Err(io::Error::other(format!("strange answer: {:02x?}", &buffer[..length]))),
    }
}

pub(super) fn query(id: u16) -> Vec<u8> {
    let mut query = Vec::new();
    // Recursion desired, one question.
    for word in [id, 0x0100, 1, 0, 0, 0] {
        query.extend(word.to_be_bytes());
    }
    for label in DNS_NAME.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(TXT.to_be_bytes());
    query.extend(IN.to_be_bytes());
    query
}

/// The first string of the first answer: after the question come a pointer to the name (2 bytes), type, class, time to
/// live and length (10 bytes), then the string with its length before it.
pub(super) fn text(answer: &[u8], id: u16, question_end: usize) -> Option<String> {
    let answers = u16::from_be_bytes(answer.get(6..8)?.try_into().ok()?);
    if answer.get(..2)? != id.to_be_bytes() || answers == 0 || question_end < HEADER {
        return None;
    }
    let string = answer.get(question_end + 12..)?;
    let (length, string) = string.split_first()?;
    String::from_utf8(string.get(..usize::from(*length))?.to_vec()).ok()
}
