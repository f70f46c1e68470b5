//! Many requests to an API server at once, with `curl`: what kubectl has no subcommand for, and quickly.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use miette::{IntoDiagnostic, Result, miette};
use serde_json::Value;

use super::credentials::Identity;
use crate::command;

/// How many are under way at a time.
const PARALLEL: &str = "8";
const JSON: &str = "application/json";

/// What is done to the object at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Adds an object; the path is that of the collection.
    Create,
    /// Changes fields of an object, by a JSON merge patch.
    Patch,
    /// Removes an object.
    Delete,
}

/// A request to the API server.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// Path of the URL, from `/api` or `/apis` on.
    pub path: String,
    /// The object, or the changes to it.
    pub body: Value,
}

impl Request {
    /// Adds an object to the collection at the path.
    pub fn create(path: &str, body: Value) -> Self {
        Self { verb: Verb::Create, path: path.into(), body }
    }

    /// Changes fields of the object at the path.
    pub fn patch(path: &str, body: Value) -> Self {
        Self { verb: Verb::Patch, path: path.into(), body }
    }

    /// Removes the object at the path.
    pub fn delete(path: &str) -> Self {
        Self { verb: Verb::Delete, path: path.into(), body: Value::Null }
    }

    pub(super) fn method_and_type(&self) -> (&'static str, &'static str) {
        match self.verb {
            Verb::Create => ("POST", JSON),
            Verb::Patch => ("PATCH", "application/merge-patch+json"),
            Verb::Delete => ("DELETE", JSON),
        }
    }
}

/// Sends all, in no particular order, and waits for the answers. The first refusal is the error.
pub(super) fn send(requests: &[Request], url: &str, authority: &Path, folder: &Path) -> Result<()> {
    if requests.is_empty() {
        return Ok(());
    }
    let file = tempfile::NamedTempFile::new_in(folder).into_diagnostic()?;
    fs::write(file.path(), configuration(requests, url, authority)).into_diagnostic()?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--parallel", "--parallel-max", PARALLEL, "--config"])
        .arg(file.path());
    let answers = command::stdout(&mut curl)?;
    refusal(&answers).map_or(Ok(()), |line| Err(miette!("the API server refused a request: {line}")))
}

/// curl's configuration file: one group of options a request.
fn configuration(requests: &[Request], url: &str, authority: &Path) -> String {
    let mut text = String::new();
    for (at, request) in requests.iter().enumerate() {
        let (method, content) = request.method_and_type();
        let mut set = |option: &str, value: &str| {
            let _ = writeln!(text, "{option} = {}", quoted(value));
        };
        set("url", &format!("{url}{}", request.path));
        set("request", method);
        set("cacert", &authority.display().to_string());
        set("noproxy", "*");
        // The server indents what it sends to curl.
        set("user-agent", "xtask");
        set("header", &format!("Authorization: Bearer {}", Identity::Admin.token()));
        set("header", &format!("Content-Type: {content}"));
        set("max-time", "30");
        set("write-out", r"\n%{http_code} %{method} %{url}\n");
        if !request.body.is_null() {
            set("data-binary", &request.body.to_string());
        }
        if at + 1 < requests.len() {
            text.push_str("next\n");
        }
    }
    text
}

/// As curl's configuration files want it. Its own escapes of `write-out` come out of this as they were.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', r"\\").replace('"', "\\\""))
}

/// The first answer with a bad status, with what the server said right before.
fn refusal(answers: &str) -> Option<String> {
    let mut said = "";
    for line in answers.lines().filter(|line| !line.is_empty()) {
        match line.split_once(' ') {
            Some((code, of)) if code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit()) => {
                if !code.starts_with('2') {
                    return Some(format!("{code} to {of}: {said}"));
                }
            }
            _ => said = line,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_group_of_options() {
        let body = serde_json::json!({ "a": "say \"b\\\"" });
        let requests = [Request::create("/api/x", body), Request::delete("/api/x/y")];
        let text = configuration(&requests, "https://h", Path::new("/ca"));
        assert!(text.contains("url = \"https://h/api/x\"\nrequest = \"POST\"\n"), "{text}");
        assert!(text.contains(r#"data-binary = "{\"a\":\"say \\\"b\\\\\\\"\"}""#), "{text}");
        assert_eq!(text.matches("\nnext\n").count(), 1);
        assert_eq!(text.matches("data-binary").count(), 1);
    }

    #[test]
    fn the_first_refusal_is_told_with_its_reason() {
        let answers =
            "{\"kind\":\"Service\"}\n201 POST https://h/a\n\n{\"message\":\"no\"}\n422 POST https://h/b\n";
        assert_eq!(refusal(answers).as_deref(), Some("422 to POST https://h/b: {\"message\":\"no\"}"));
        assert_eq!(refusal("{}\n200 GET https://h/a\n"), None);
    }
}
