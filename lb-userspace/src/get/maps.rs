//! `shunt get maps`: the memory of every map, and how many entries it has room for.

use lb_kernel::maps::size;
use lb_kernel::pin::PinDir;
use serde::Serialize;

use super::table::bytes;
use super::{Filter, Hint, Row};
use crate::exit::Error;

pub(super) const HINT: Hint = Hint {
    none: "no maps: nothing of ours is pinned there",
    filtered: "no map of this name; try without one",
};

/// A map.
#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct MapRow {
    name: String,
    /// Entries it has room for.
    max_entries: u64,
    /// Bytes of the kernel's memory.
    bytes: u64,
}

impl Row for MapRow {
    const TITLES: &'static [&'static str] = &["NAME", "MEMORY", "ROOM FOR", "BYTES"];
    const NARROW: usize = 3;

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), bytes(self.bytes), self.max_entries.to_string(), self.bytes.to_string()]
    }
}

/// The maps that `filter` lets through, the largest first.
pub(super) fn rows(pins: &PinDir, filter: &Filter) -> Result<Vec<MapRow>, Error> {
    let failed = |source| Error::System { what: format!("cannot read {}", pins.maps().display()), source };
    let maps = size::maps(pins).map_err(failed)?;
    let mut rows: Vec<MapRow> = maps
        .into_iter()
        .filter(|map| filter.name.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(&map.name)))
        .map(|map| MapRow { name: map.name, max_entries: map.max_entries, bytes: map.bytes })
        .collect();
    rows.sort_by(|a, b| (b.bytes, &a.name).cmp(&(a.bytes, &b.name)));
    Ok(rows)
}
