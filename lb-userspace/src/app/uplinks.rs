//! Whether the uplinks that the user names are there.

use lb_control::network::Network;
use lb_control::network::classify::Selection;

use crate::args::ConfigError;
use crate::exit::Error;

/// Refuses an `--uplink` that is not there.
pub fn check(network: &Network, selection: &Selection) -> Result<(), Error> {
    let exists = |name: &&String| network.links.values().any(|link| link.name == **name);
    match selection.uplinks.iter().find(|name| !exists(name)) {
        None => Ok(()),
        Some(name) => {
            let names: Vec<&str> =
                network.links.values().filter(|link| !link.loopback).map(|link| link.name.as_str()).collect();
            let there = match names.as_slice() {
                [] => "there is none but loopback".to_owned(),
                names => format!("there are {}", names.join(", ")),
            };
            let message = format!("no such interface; {there}");
            Err(ConfigError::Value { flag: "uplink", value: Some(name.clone()), message }.into())
        }
    }
}
