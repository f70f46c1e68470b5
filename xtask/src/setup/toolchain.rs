//! The compiler and the linker for the kernel programs.

use std::path::PathBuf;
use std::process::Command;

/// How the kernel programs are compiled on this machine (see lb-userspace/build.rs).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Toolchain {
    /// A release compiler with its library sources; `None`: rustup's nightly.
    pub rustc: Option<PathBuf>,
    /// The cargo that belongs to it.
    pub cargo: Option<PathBuf>,
    /// The folder of bpf-linker; `None`: it is in PATH.
    pub linker_folder: Option<PathBuf>,
}

impl Toolchain {
    /// Tells a cargo command, through its environment, how to compile the kernel programs.
    pub fn apply(&self, command: &mut Command) {
        for (name, value) in [
            ("LB_EBPF_RUSTC", &self.rustc),
            ("LB_EBPF_CARGO", &self.cargo),
            ("LB_EBPF_LINKER_DIR", &self.linker_folder),
        ] {
            if let Some(path) = value {
                command.env(name, path);
            }
        }
    }
}
