//! The backends of one Service port in force.

use super::{AddressPort, BackendState};

/// By address and port, end to end: there may be a quarter of a million in all.
#[derive(Debug, Default)]
pub(super) struct Backends(Vec<(AddressPort, BackendState)>);

impl Backends {
    fn find(&self, at: &AddressPort) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(at))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains(&self, at: &AddressPort) -> bool {
        self.find(at).is_ok()
    }

    pub(super) fn get_mut(&mut self, at: &AddressPort) -> Option<&mut BackendState> {
        let index = self.find(at).ok()?;
        Some(&mut self.0[index].1)
    }

    /// Room for so many in all, not more.
    pub(super) fn reserve(&mut self, count: usize) {
        self.0.reserve_exact(count.saturating_sub(self.0.len()));
    }

    pub(super) fn insert(&mut self, at: AddressPort, state: BackendState) {
        match self.find(&at) {
            Ok(index) => self.0[index].1 = state,
            Err(index) => self.0.insert(index, (at, state)),
        }
    }

    /// Keeps those for which `keep` says so.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&AddressPort, &BackendState) -> bool) {
        self.0.retain(|(at, state)| keep(at, state));
        // Half of it empty is a Service that has become much smaller.
        if self.0.capacity() > 2 * self.0.len() {
            self.0.shrink_to_fit();
        }
    }
}

impl IntoIterator for Backends {
    type Item = (AddressPort, BackendState);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
