//! Names of Service ports and endpoints by their numbers.

use std::collections::BTreeMap;

use lb_common::abi::{BackendId, BackendName, ServiceId, ServiceName, maps};
use lb_common::addr::Proto;
use lb_kernel::maps::Maps;

use crate::exit::Error;

/// Every name the kernel keeps for people.
#[derive(Debug, Default)]
pub(super) struct Names {
    services: BTreeMap<ServiceId, ServiceName>,
    backends: BTreeMap<BackendId, BackendName>,
}

/// A port of a Service, for people.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct ServicePort {
    pub namespace: String,
    pub name: String,
    pub port: String,
}

impl ServicePort {
    /// `shop/web:http`, `shop/web` when the port has no name.
    pub fn path(&self) -> String {
        let port = if self.port.is_empty() { String::new() } else { format!(":{}", self.port) };
        format!("{}/{}{port}", self.namespace, self.name)
    }
}

impl Names {
    pub fn read(maps: &Maps) -> Result<Self, Error> {
        let failed = |map| move |source| Error::Map { map, source };
        let services = maps.service_names.entries().map_err(failed(maps::SERVICE_NAMES))?;
        let backends = maps.backend_names.entries().map_err(failed(maps::BACKEND_NAMES))?;
        Ok(Self { services: services.into_iter().collect(), backends: backends.into_iter().collect() })
    }

    /// Which port of which Service; a number in brackets while the name is not there.
    pub fn service(&self, id: ServiceId) -> ServicePort {
        match self.services.get(&id) {
            Some(name) => ServicePort {
                namespace: name.namespace.as_str().to_owned(),
                name: name.name.as_str().to_owned(),
                port: name.port.as_str().to_owned(),
            },
            None => ServicePort { name: format!("<{id}>"), ..ServicePort::default() },
        }
    }

    /// The pod's name; empty for endpoints written by hand.
    pub fn pod(&self, id: BackendId) -> String {
        self.backends.get(&id).map_or_else(String::new, |name| name.target.as_str().to_owned())
    }

    /// The pod's node; empty when not said.
    pub fn node(&self, id: BackendId) -> String {
        self.backends.get(&id).map_or_else(String::new, |name| name.node.as_str().to_owned())
    }
}

/// `TCP`, `UDP`.
pub(super) fn proto(proto: Proto) -> String {
    proto.to_string()
}
