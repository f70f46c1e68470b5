//! What the service maps hold, entry by entry.

use lb_common::abi::{Service, ServiceFlags};

use super::node::Kind;
use super::{Draft, Planner};
use crate::model::{Family, Frontend, ServiceKey};

impl Planner {
    /// Asserts what a frontend holds.
    pub(super) fn publish(
        &mut self,
        frontend: Frontend,
        value: Service,
        key: Option<&ServiceKey>,
        draft: &mut Draft,
    ) {
        draft.kept.insert(frontend);
        if frontend.is_node() {
            self.node.addresses.insert(frontend.address, Kind::of(value.flags));
        }
        match self.published.insert(frontend, value) {
            Some(old) if old == value => {}
            Some(_) => draft.update.push((frontend, value)),
            None => {
                self.entries[Family::of(frontend.address) as usize] += 1;
                if frontend.is_whole() {
                    self.cluster_ips.insert(frontend.address);
                } else if frontend.is_external_address() {
                    self.external_addresses += 1;
                } else if is_external(&frontend, &value) {
                    self.external.insert(frontend);
                }
                draft.insert.push((frontend, value, key.cloned()));
            }
        }
    }

    /// False when it was not published.
    pub(super) fn unpublish(&mut self, frontend: &Frontend) -> bool {
        let found = self.published.remove(frontend).is_some();
        self.entries[Family::of(frontend.address) as usize] -= usize::from(found);
        if frontend.is_whole() {
            self.cluster_ips.remove(&frontend.address);
        } else if frontend.is_external_address() {
            self.external_addresses -= usize::from(found);
        } else if frontend.is_node() {
            self.node.addresses.remove(&frontend.address);
        } else {
            self.external.remove(frontend);
        }
        found
    }
}

/// Whether a frontend is at an external address, which may be the node's own, and is no nodePort.
pub(super) fn is_external(frontend: &Frontend, service: &Service) -> bool {
    service.flags.has(ServiceFlags::EXTERNAL) && !frontend.is_node_port()
}
