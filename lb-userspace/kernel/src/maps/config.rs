//! The one entry of the configuration map, which has several authors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::abi::{Config, ConfigFlags};

use super::Maps;
use crate::sys;

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

/// Whether the programs take the same clients for local by both.
fn same_locals(one: &Config, other: &Config) -> bool {
    let scope = |config: &Config| {
        let modes =
            [ConfigFlags::LOCAL_RANGE, ConfigFlags::LOCAL_INTERFACE].map(|mode| config.flags.has(mode));
        let v4 = (config.ipv4.local_network, config.ipv4.local_mask);
        let v6 = (config.ipv6.local_network, config.ipv6.local_mask);
        (modes, v4, v6)
    };
    scope(one) == scope(other)
}

/// Names an idea of who is local.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Locals(u64);

#[derive(Debug)]
struct Written {
    config: Config,
    /// How often it has changed who is local.
    locals: Locals,
}

/// What the programs are told of this node. Each author changes what is his.
#[derive(Debug)]
pub struct ConfigMap {
    maps: Arc<Maps>,
    written: Mutex<Written>,
}

impl ConfigMap {
    /// Begins with what an earlier agent wrote, so that a restart changes nothing by itself.
    pub fn open(maps: Arc<Maps>) -> io::Result<Arc<Self>> {
        let found = maps.config.get(&0)?.filter(|config| *config != Config::default());
        let config = found.unwrap_or_else(fresh);
        note_node(&maps, &config);
        let written = Mutex::new(Written { config, locals: Locals::default() });
        Ok(Arc::new(Self { maps, written }))
    }

    /// What the programs go by.
    pub fn current(&self) -> Config {
        self.written().config
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the configuration. Whether that made a difference; after an error the map holds what it held.
    /// [`ConfigFlags::CLIENTS_NOTED`] is no author's to change: it is taken back when others are local than before.
    pub fn change(&self, change: impl FnOnce(&mut Config)) -> io::Result<bool> {
        let mut written = self.written();
        let mut config = written.config;
        change(&mut config);
        let noted = written.config.flags.has(ConfigFlags::CLIENTS_NOTED);
        let same_locals = same_locals(&config, &written.config);
        config.flags = config.flags.without(ConfigFlags::CLIENTS_NOTED);
        if same_locals && noted {
            config.flags = config.flags.with(ConfigFlags::CLIENTS_NOTED);
        }
        if config == written.config {
            return Ok(false);
        }
        note_node(&self.maps, &config);
        if !same_locals && noted {
            // The entry is not replaced at once: no program may see the old flag beside the new range.
            let flags = written.config.flags.without(ConfigFlags::CLIENTS_NOTED);
            self.maps.config.put(&0, &Config { flags, ..written.config })?;
            written.config.flags = flags;
            sys::wait_for_programs();
        }
        self.maps.config.put(&0, &config)?;
        let locals = if same_locals { written.locals } else { Locals(written.locals.0 + 1) };
        *written = Written { config, locals };
        Ok(true)
    }

    /// Writes the map again as this process knows it. For when another one has written there.
    pub fn restore(&self) -> io::Result<()> {
        let written = self.written();
        self.maps.config.put(&0, &written.config)
    }

    /// What the programs go by, if it says who is local and the filter of clients has yet to be made complete.
    pub fn lacks_clients(&self) -> Option<(Config, Locals)> {
        let written = self.written();
        let flags = written.config.flags;
        let lacks = flags.has(ConfigFlags::LOCAL_RANGE) && !flags.has(ConfigFlags::CLIENTS_NOTED);
        lacks.then_some((written.config, written.locals))
    }

    /// Every client that has a flow and is local by what [`Self::lacks_clients`] said is in the filter. Tells the programs,
    /// unless it has changed since who is local.
    pub fn clients_are_noted(&self, locals: Locals) -> io::Result<()> {
        let mut written = self.written();
        if written.locals != locals {
            return Ok(());
        }
        let config =
            Config { flags: written.config.flags.with(ConfigFlags::CLIENTS_NOTED), ..written.config };
        self.maps.config.put(&0, &config)?;
        written.config = config;
        Ok(())
    }
}
