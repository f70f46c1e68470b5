//! The log: text for people or JSON for machines, on standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// The crates that are the agent.
const CRATES: [&str; 5] = ["shunt", "lb_control", "lb_health", "lb_kernel", "lb_telemetry"];

/// How a line of the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// A JSON object each.
    Json,
}

/// Starts the log. `level` has been checked with the configuration.
pub fn init(format: Format, level: &str) {
    let filter = EnvFilter::try_new(directives(level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match format {
        Format::Text => builder.with_target(false).with_ansi(io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    // A second start, as in tests of one process, keeps the first.
    drop(result);
}

/// What the agent tells once, these say with every try.
const SAID_BY_US: &str = "kube_client=error,kube_runtime=error";

/// A bare level is meant for the agent: its libraries stay at info, or a debug log drowns in theirs.
fn directives(level: &str) -> String {
    if level.contains(['=', ',']) {
        return level.to_owned();
    }
    match level.to_ascii_lowercase().as_str() {
        "debug" | "trace" => {
            let of_crates = CRATES.map(|name| format!("{name}={level}"));
            format!("info,{SAID_BY_US},{}", of_crates.join(","))
        }
        "info" | "warn" => format!("{level},{SAID_BY_US}"),
        _ => level.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_meant_for_the_agent() {
        assert_eq!(
            directives("debug"),
            "info,kube_client=error,kube_runtime=error,shunt=debug,lb_control=debug,lb_health=debug,lb_kernel=debug,lb_telemetry=debug"
        );
        assert_eq!(directives("warn"), "warn,kube_client=error,kube_runtime=error");
        assert_eq!(directives("error"), "error");
        assert_eq!(directives("aya=trace"), "aya=trace");
    }
}
