//! The log: text for people or JSON for machines, on standard error.

use std::io::{self, IsTerminal};
use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::Log;
use tracing::{debug, warn};
use tracing_subscriber::EnvFilter;

use crate::args::agent::LogFormat;

/// How often the programs' log is emptied; only objects for development have one.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Starts the log. `level` has been checked with the configuration.
pub fn init(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_new(directives(level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match format {
        LogFormat::Text => builder.with_target(false).with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // A second start, as in tests of one process, keeps the first.
    drop(result);
}

/// A bare level is meant for the agent: its libraries stay at info, or a debug log drowns in theirs.
fn directives(level: &str) -> String {
    let bare = !level.contains(['=', ',']);
    if bare && matches!(level.to_ascii_lowercase().as_str(), "debug" | "trace") {
        format!("info,shunt={level}")
    } else {
        level.to_owned()
    }
}

/// Passes on what the programs log. Nothing to do for an object built without its `log` feature.
pub fn forward_programs(ebpf: &mut Ebpf) {
    if ebpf.map("AYA_LOGS").is_none() {
        return;
    }
    let logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => return warn!(%error, "the programs' log cannot be read"),
    };
    tokio::spawn(follow(logger));
}

async fn follow<T: Log + 'static>(mut logger: EbpfLogger<T>) {
    debug!("passing on the programs' log");
    let mut tick = tokio::time::interval(FLUSH_EVERY);
    loop {
        tick.tick().await;
        logger.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_meant_for_the_agent() {
        assert_eq!(directives("debug"), "info,shunt=debug");
        assert_eq!(directives("warn"), "warn");
        assert_eq!(directives("aya=trace"), "aya=trace");
    }
}
