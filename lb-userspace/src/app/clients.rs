//! Sees to it that the programs know every local client that has flows, whenever it has changed who is local.

use std::sync::Arc;
use std::time::Duration;

use lb_kernel::maps::Maps;
use lb_kernel::maps::clients::complete;
use lb_kernel::maps::config::ConfigMap;
use tracing::warn;

/// How often it is looked after.
const PERIOD: Duration = Duration::from_secs(2);

/// Never ends.
pub async fn follow(maps: Arc<Maps>, config: Arc<ConfigMap>) {
    let mut period = tokio::time::interval(PERIOD);
    let mut failed = false;
    loop {
        period.tick().await;
        if config.lacks_clients().is_none() {
            continue;
        }
        let (maps, config) = (maps.clone(), config.clone());
        // (A task that panics has said so itself.)
        let Ok(done) = tokio::task::spawn_blocking(move || complete(&maps, &config)).await else { continue };
        if let Err(error) = &done
            && !failed
        {
            warn!(%error, "the filter of local clients cannot be completed; every packet is looked at");
        }
        failed = done.is_err();
    }
}
