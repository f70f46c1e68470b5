//! The backends of one Service port in force.

use super::{BackendState, Place};

/// By address and port, end to end: there may be a quarter of a million in all.
#[derive(Debug, Default)]
pub(super) struct Backends(Vec<(Place, BackendState)>);

impl Backends {
    fn find(&self, place: &Place) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(place))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains(&self, place: &Place) -> bool {
        self.find(place).is_ok()
    }

    pub(super) fn get_mut(&mut self, place: &Place) -> Option<&mut BackendState> {
        let at = self.find(place).ok()?;
        Some(&mut self.0[at].1)
    }

    /// Room for so many in all, not more.
    pub(super) fn reserve(&mut self, count: usize) {
        self.0.reserve_exact(count.saturating_sub(self.0.len()));
    }

    pub(super) fn insert(&mut self, place: Place, state: BackendState) {
        match self.find(&place) {
            Ok(at) => self.0[at].1 = state,
            Err(at) => self.0.insert(at, (place, state)),
        }
    }

    /// Keeps those for which `keep` says so.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Place, &BackendState) -> bool) {
        self.0.retain(|(place, state)| keep(place, state));
        // Half of it empty is a Service that has become much smaller.
        if self.0.capacity() > 2 * self.0.len() {
            self.0.shrink_to_fit();
        }
    }
}

impl IntoIterator for Backends {
    type Item = (Place, BackendState);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
