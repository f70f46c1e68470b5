//! Which slices have endpoints at an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Slice, SliceKey};

/// Every address of an endpoint. Slices go by numbers here, since there are many addresses to each.
#[derive(Debug, Default)]
pub(super) struct AddressIndex {
    at: BTreeSet<(IpAddr, u32)>,
    numbers: BTreeMap<SliceKey, u32>,
    keys: Vec<Option<SliceKey>>,
    free: Vec<u32>,
}

impl AddressIndex {
    /// Takes in that a slice holds `new` instead of `old`.
    pub(super) fn replace(&mut self, key: &SliceKey, old: Option<&Slice>, new: Option<&Slice>) {
        if new.is_none() && old.is_none() {
            return;
        }
        let number = self.number(key);
        let (before, after) = (addresses(old), addresses(new));
        for address in before.iter().filter(|address| after.binary_search(address).is_err()) {
            self.at.remove(&(*address, number));
        }
        for address in after.iter().filter(|address| before.binary_search(address).is_err()) {
            self.at.insert((*address, number));
        }
        if new.is_none() {
            self.numbers.remove(key);
            self.keys[number as usize] = None;
            self.free.push(number);
        }
    }

    /// The slices with an endpoint at `address`.
    pub(super) fn slices_at(&self, address: IpAddr) -> impl Iterator<Item = &SliceKey> {
        let at = self.at.range((address, 0)..=(address, u32::MAX));
        at.filter_map(|(_, number)| self.keys.get(*number as usize)?.as_ref())
    }

    fn number(&mut self, key: &SliceKey) -> u32 {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.keys.push(None);
            // There is no room for four billion slices.
            (self.keys.len() - 1) as u32
        });
        self.keys[number as usize] = Some(key.clone());
        self.numbers.insert(key.clone(), number);
        number
    }
}

/// The addresses of a slice, sorted, each once.
fn addresses(slice: Option<&Slice>) -> Vec<IpAddr> {
    let mut addresses: Vec<_> =
        slice.iter().flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
