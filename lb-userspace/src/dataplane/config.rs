//! The one entry of the configuration map, which has several authors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use lb_common::abi::Config;

use super::maps::Maps;

/// What stands in the map when nobody has written it yet: no ClusterIP is known.
fn fresh() -> Config {
    let mut config = Config::default();
    config.ipv4.service_mask = Ipv4Addr::BROADCAST.into();
    config.ipv6.service_mask = Ipv6Addr::from(u128::MAX).into();
    config
}

/// Answers to what is masqueraded may go to the node's own address.
fn note_node(maps: &Maps, config: &Config) {
    maps.addresses.note(IpAddr::V4(config.ipv4.node_address.into()));
    maps.addresses.note(IpAddr::V6(config.ipv6.node_address.into()));
}

/// What the programs are told of this node. Each author changes what is his.
#[derive(Debug)]
pub struct ConfigMap {
    maps: Arc<Maps>,
    written: Mutex<Config>,
}

impl ConfigMap {
    /// Begins with what an earlier agent wrote, so that a restart changes nothing by itself.
    pub fn open(maps: Arc<Maps>) -> io::Result<Arc<Self>> {
        let found = maps.config.get(&0)?.filter(|config| *config != Config::default());
        let config = found.unwrap_or_else(fresh);
        note_node(&maps, &config);
        Ok(Arc::new(Self { maps, written: Mutex::new(config) }))
    }

    /// What the programs go by.
    pub fn current(&self) -> Config {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the configuration. Whether that made a difference; after an error the map holds what it held.
    pub fn change(&self, change: impl FnOnce(&mut Config)) -> io::Result<bool> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut config = *written;
        change(&mut config);
        if config == *written {
            return Ok(false);
        }
        note_node(&self.maps, &config);
        self.maps.config.put(&0, &config)?;
        *written = config;
        Ok(true)
    }
}
