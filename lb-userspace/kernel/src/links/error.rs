//! Why a program is not where it should be.

use std::io;
use std::path::PathBuf;

use aya::programs::ProgramError;

/// Why a program is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface is gone.
    #[error("{interface}: the interface is gone")]
    Gone {
        /// Its name.
        interface: String,
    },
    /// The kernel refused.
    #[error("{interface}: cannot attach {program}: {source}")]
    Interface {
        /// Where.
        interface: String,
        /// What.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// aya refused, for a clsact filter.
    #[error("{interface}: cannot attach {program} as a clsact filter: {source}")]
    Filter {
        /// Where.
        interface: String,
        /// What.
        program: &'static str,
        /// What it said.
        #[source]
        source: Box<ProgramError>,
    },
    /// Another program has the XDP hook.
    #[error(
        "{interface}: XDP is taken by another program{}, which is left alone. Take the other one off, or \
         set --xdp-mode off to stop trying",
        id.map(|id| format!(" (id {id})")).unwrap_or_default()
    )]
    XdpTaken {
        /// Where.
        interface: String,
        /// The other program's id.
        id: Option<u32>,
    },
    /// The driver has no XDP.
    #[error(
        "{interface}: the driver ({driver}) does not take XDP: {source}. --xdp-mode auto leaves such interfaces to tc"
    )]
    XdpUnsupported {
        /// Where.
        interface: String,
        /// Its driver or kind.
        driver: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a socket hook.
    #[error("{}: cannot attach {program}: {source}", cgroup.display())]
    Socket {
        /// Where.
        cgroup: PathBuf,
        /// What.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The pin could not be written or removed.
    #[error("{}: {source}", path.display())]
    Pin {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
