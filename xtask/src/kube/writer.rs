//! One request at a time, and when it was sent and answered: through `kubectl proxy`, which holds a connection to the
//! API server open. A client that is started for the request would take longer than what is measured.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::program::Program;
use super::requests::Request;

/// How long `kubectl proxy` may take to listen.
const START: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// A running `kubectl proxy`; killed when dropped.
#[derive(Debug)]
pub struct Writer {
    _proxy: Program,
    address: SocketAddr,
}

/// When a request was under way.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Right before it was sent.
    pub sent: Instant,
    /// When the answer began to arrive.
    pub answered: Instant,
}

impl Writer {
    pub(super) fn start(mut kubectl: Command, log: &Path) -> Result<Self> {
        kubectl.args(["proxy", "--port=0"]);
        let mut proxy = Program::start("kubectl proxy", &kubectl, log)?;
        let deadline = Instant::now() + START;
        loop {
            if let Some(address) = listens_at(&fs::read_to_string(log).unwrap_or_default()) {
                return Ok(Self { _proxy: proxy, address });
            }
            proxy.check()?;
            if Instant::now() > deadline {
                return Err(miette!("kubectl proxy does not say where it listens. {}", proxy.log_end()));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends one request and waits for the answer. A refusal is an error.
    pub fn write(&self, request: &Request) -> Result<Written> {
        let mut stream = TcpStream::connect(self.address).into_diagnostic().wrap_err("kubectl proxy")?;
        stream.set_nodelay(true).into_diagnostic()?;
        stream.set_read_timeout(Some(ANSWER)).into_diagnostic()?;
        let message = message(request, self.address);
        let sent = Instant::now();
        stream.write_all(message.as_bytes()).into_diagnostic()?;
        let (mut answer, mut first) = (Vec::new(), [0; 4096]);
        let length = stream.read(&mut first).into_diagnostic().wrap_err("the answer of the API server")?;
        let answered = Instant::now();
        answer.extend_from_slice(&first[..length]);
        stream.read_to_end(&mut answer).into_diagnostic()?;
        let answer = String::from_utf8_lossy(&answer);
        match status(&answer) {
            Some(200..=299) => Ok(Written { sent, answered }),
            _ => Err(miette!("the API server refused {}: {answer}", request.path)),
        }
    }
}

/// The request as HTTP has it.
fn message(request: &Request, host: SocketAddr) -> String {
    let (method, content) = request.method_and_type();
    let body = if request.body.is_null() { String::new() } else { request.body.to_string() };
    format!(
        "{method} {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {content}\r\n\
         Accept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        request.path,
        body.len()
    )
}

/// `Starting to serve on 127.0.0.1:41235`
fn listens_at(log: &str) -> Option<SocketAddr> {
    // A line that is complete.
    let (line, _) = log.split_once("Starting to serve on ")?.1.split_once('\n')?;
    line.trim().parse().ok()
}

/// The number in the first line of an HTTP answer.
fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_one_message() {
        let host = SocketAddr::from(([127, 0, 0, 1], 8001));
        let text = message(&Request::create("/api/x", json!({ "a": 1 })), host);
        assert!(
            text.starts_with("POST /api/x HTTP/1.1\r\n") && text.ends_with("\r\n\r\n{\"a\":1}"),
            "{text}"
        );
        assert!(text.contains("Content-Length: 7\r\n"));
        assert!(message(&Request::delete("/api/x/y"), host).contains("Content-Length: 0\r\n"));
    }

    #[test]
    fn what_is_answered_is_read() {
        assert_eq!(status("HTTP/1.1 201 Created\r\n"), Some(201));
        assert_eq!(status("nonsense"), None);
        let address = listens_at("Starting to serve on 127.0.0.1:41235\n");
        assert_eq!(address, Some(SocketAddr::from(([127, 0, 0, 1], 41235))));
        assert_eq!(listens_at("Starting to serve on 127.0.0.1:412"), None);
    }
}
