//! Maps of our own: programs loaded, none attached, pinned where no other process looks.

use std::sync::Arc;

use lb_kernel::maps::config::ConfigMap;
use lb_kernel::maps::{Access, Maps};
use lb_kernel::pin::PinDir;
use lb_kernel::programs::load::{self, Programs};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Gone with the process.
pub struct PinnedMaps {
    pub pins: PinDir,
    pub maps: Arc<Maps>,
    pub config: Arc<ConfigMap>,
    _programs: Programs,
}

/// Where bpffs is mounted for this process alone.
const BPFFS: &str = "/sys/fs/bpf";

impl PinnedMaps {
    /// To be called before there are threads.
    pub fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|error| format!("cannot unshare mounts: {error}; be root"))?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)?;
        let pins = PinDir::new(BPFFS);
        let programs = load::load(&load::Settings { pins: pins.clone(), flow_sets: None })?;
        let maps = Arc::new(Maps::open(&pins, Access::Write)?);
        let config = ConfigMap::open(maps.clone())?;
        Ok(Self { pins, maps, config, _programs: programs })
    }
}
