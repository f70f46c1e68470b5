//! Programs that another process has loaded, and hands over as descriptors.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, IntoBytes};

use super::load::{
    POD_EGRESS, POD_INGRESS, ProgramSpec, Programs, UPLINK_EGRESS, UPLINK_INGRESS, UPLINK_XDP,
};
use crate::sys;

/// Those that hang on interfaces, in the order in which they are handed over.
const ON_INTERFACES: [ProgramSpec; 5] = [UPLINK_XDP, UPLINK_INGRESS, UPLINK_EGRESS, POD_INGRESS, POD_EGRESS];

/// The beginning of `struct bpf_prog_info`.
#[derive(Default, FromBytes, IntoBytes)]
#[repr(C)]
struct ProgramInfo {
    kind: u32,
    id: u32,
}

impl Programs {
    /// What another process needs to attach programs to interfaces; see [`Self::handed_over`].
    pub fn on_interfaces(&self) -> io::Result<Vec<BorrowedFd<'_>>> {
        ON_INTERFACES.into_iter().map(|program| self.fd(program)).collect()
    }

    /// Those of [`Self::on_interfaces`], in another process.
    ///
    /// # Errors
    /// There are more or fewer than there should be, or the kernel does not say their ids.
    pub fn handed_over(fds: Vec<OwnedFd>) -> io::Result<Self> {
        if fds.len() != ON_INTERFACES.len() {
            let message = format!("{} programs, {} are needed", fds.len(), ON_INTERFACES.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut named = BTreeMap::new();
        for (program, fd) in ON_INTERFACES.into_iter().zip(fds) {
            let ProgramInfo { id, .. } = sys::info(fd.as_fd())?;
            named.insert(program.name, (fd, id));
        }
        Ok(Self { ebpf: None, fds: named, facts: Vec::new() })
    }
}
