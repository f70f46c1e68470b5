//! Passes on what the programs log; only objects for development say anything.

use std::time::Duration;

use aya_log::EbpfLogger;
use log::Log;
use tracing::{debug, warn};

use super::load::Programs;

/// How often the log is emptied.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Follows the log of these programs, from within a tokio runtime. Nothing to do for an object built without its `log` feature.
pub fn forward(programs: &mut Programs) {
    let Some(ebpf) = programs.object() else { return };
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
