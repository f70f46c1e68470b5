//! `shunt get`: what the kernel holds now, read from the pinned maps. Needs no agent and no program.

use std::io::{IsTerminal, Write};

use lb_kernel::maps::{Access, Maps};
use lb_kernel::pin::{self, PinDir};
use lb_kernel::sys;
use serde::Serialize;

use crate::args::{GetArgs, Output, What};
use crate::exit::Error;

mod addresses;
mod backends;
pub mod debug;
mod flows;
mod interfaces;
mod maps;
mod names;
mod services;
mod table;

/// Writes the table asked for to standard output.
pub fn run(args: &GetArgs) -> Result<(), Error> {
    let maps = open(args)?;
    if let Some(note) = elsewhere(&maps) {
        eprintln!("{note}");
    }
    let names = names::Names::read(&maps)?;
    let filter = Filter::new(args);
    match args.what {
        What::Services => show(args, &services::rows(&maps, &names, &filter)?, &services::HINT),
        What::Backends => show(args, &backends::rows(&maps, &names, &filter)?, &backends::HINT),
        What::Flows => {
            if let Some(note) = flows::elsewhere(&maps) {
                eprintln!("{note}");
            }
            show(args, &flows::rows(&maps, &names, &filter)?, &flows::HINT);
            if args.output != Output::Json && std::io::stderr().is_terminal() {
                eprintln!("\n{}", flows::room(&maps)?);
            }
        }
        What::Maps => show(args, &maps::rows(&PinDir::new(&args.pins.bpffs), &filter)?, &maps::HINT),
        What::Addresses => show(args, &addresses::rows(&maps, &filter)?, &addresses::HINT),
        What::Interfaces => {
            let pins = PinDir::new(&args.pins.bpffs);
            show(args, &interfaces::rows(&maps, &pins, &filter)?, &interfaces::HINT)
        }
    }
    Ok(())
}

fn open(args: &GetArgs) -> Result<Maps, Error> {
    let root = &args.pins.bpffs;
    Maps::open(&PinDir::new(root), Access::Read).map_err(|error| {
        if !error.is_missing() {
            return error.into();
        }
        match pin::check_bpffs(root) {
            Err(error) => error.into(),
            Ok(()) => Error::NothingThere(format!(
                "--bpffs {}: nothing of ours is pinned there: no agent has run on this node, or it was given \
                 another --bpffs",
                root.display()
            )),
        }
    })
}

/// What is to be said where this is not the agent's own network namespace: what is shown is its node all the same.
fn elsewhere(maps: &Maps) -> Option<&'static str> {
    const UNWRITTEN: u64 = 0;
    let agents = maps.config.get(&0).ok()??.host_netns_cookie;
    let ours = sys::netns_cookie().ok()?;
    (agents != UNWRITTEN && agents != ours).then_some(
        "note: the agent's network namespace is another than this one. What is shown is what its node serves, and not this \
         namespace; names of interfaces may be missing or wrong.",
    )
}

/// What the rows are picked by.
#[derive(Clone, Debug, Default)]
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    client: Option<std::net::IpAddr>,
}

impl Filter {
    fn new(args: &GetArgs) -> Self {
        let named = if args.what == What::Flows {
            args.service.as_ref().or(args.name.as_ref())
        } else {
            args.name.as_ref()
        };
        let (namespace, name) = match named
            .map(|name| name.split_once('/').map_or((None, name.as_str()), |(n, s)| (Some(n), s)))
        {
            Some((namespace, name)) => (namespace.map(str::to_owned), Some(name.to_owned())),
            None => (None, None),
        };
        Self { namespace: args.namespace.clone().or(namespace), name, client: args.client }
    }

    fn takes(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.name.as_deref().is_none_or(|wanted| wanted == name)
    }

    fn is_any(&self) -> bool {
        self.namespace.is_none() && self.name.is_none() && self.client.is_none()
    }
}

/// A line of a table, and an object of the JSON array.
trait Row: Serialize {
    /// Column titles; the first `NARROW` make up the narrow table.
    const TITLES: &'static [&'static str];
    /// Number of columns without `-o wide`.
    const NARROW: usize;

    /// One cell for each title.
    fn cells(&self) -> Vec<String>;
}

/// What to say when there is nothing to show.
struct Hint {
    /// Nothing at all.
    none: &'static str,
    /// Nothing that the filters let through.
    filtered: &'static str,
}

fn show<R: Row>(args: &GetArgs, rows: &[R], hint: &Hint) {
    if args.output == Output::Json {
        // Strings, numbers and booleans always make JSON.
        write(&serde_json::to_string_pretty(rows).unwrap_or_default());
        return;
    }
    if rows.is_empty() {
        eprintln!("{}", if Filter::new(args).is_any() { hint.none } else { hint.filtered });
        return;
    }
    let wide = args.output == Output::Wide;
    write(&table::render(rows, wide, std::io::stdout().is_terminal()));
}

/// Writes to standard output. A reader that has gone, as `head` does, wants no more.
fn write(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn filter(flags: &[&str]) -> Filter {
        let cli = Cli::try_parse_from(["shunt", "get"].iter().chain(flags)).expect("valid");
        let Command::Get(args) = cli.command else { panic!("get") };
        Filter::new(&args)
    }

    #[test]
    fn names_and_namespaces_pick_rows() {
        assert!(filter(&["services"]).is_any());
        let web = filter(&["services", "web", "-n", "shop"]);
        assert!(web.takes("shop", "web") && !web.takes("shop", "db") && !web.takes("other", "web"));
        let path = filter(&["backends", "shop/web"]);
        assert!(path.takes("shop", "web") && !path.takes("other", "web"));
        let flows = filter(&["flows", "--service", "shop/web", "--client", "192.0.2.1"]);
        assert!(flows.takes("shop", "web") && !flows.takes("shop", "db"));
        assert_eq!(flows.client, Some("192.0.2.1".parse().expect("address")));
    }
}
