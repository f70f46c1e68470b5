//! Who wants one frontend, best first.

use std::collections::BTreeMap;

use super::{Owner, Rank};

/// Nearly always there is one, for whom a map would be large.
#[derive(Debug)]
pub(super) enum Claimants {
    /// One Service port.
    One(Rank, Owner),
    /// Any number.
    Many(BTreeMap<Rank, Owner>),
}

impl Claimants {
    /// Adds one.
    pub(super) fn insert(&mut self, rank: Rank, owner: Owner) {
        if let Self::One(..) = self {
            let first = std::mem::replace(self, Self::Many(BTreeMap::new()));
            if let (Self::One(rank, owner), Self::Many(all)) = (first, &mut *self) {
                all.insert(rank, owner);
            }
        }
        if let Self::Many(all) = self {
            all.insert(rank, owner);
        }
    }

    /// Takes one out. Whether nobody is left.
    pub(super) fn remove(&mut self, rank: &Rank) -> bool {
        match self {
            Self::One(known, _) => known == rank,
            Self::Many(all) => {
                all.remove(rank);
                all.is_empty()
            }
        }
    }

    /// The one that goes before all others.
    pub(super) fn best(&self) -> Option<(&Rank, &Owner)> {
        match self {
            Self::One(rank, owner) => Some((rank, owner)),
            Self::Many(all) => all.first_key_value(),
        }
    }

    /// All of them.
    pub(super) fn owners(&self) -> impl Iterator<Item = &Owner> {
        let (one, many) = match self {
            Self::One(_, owner) => (Some(owner), None),
            Self::Many(all) => (None, Some(all.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}
