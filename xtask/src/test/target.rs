//! The test programs that cargo built, and the stage each belongs to.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Folders of packages with tests.
pub const PACKAGES: [&str; 10] = [
    "lb-bench",
    "lb-common",
    "lb-common/testkit",
    "lb-userspace",
    "lb-userspace/control",
    "lb-userspace/health",
    "lb-userspace/kernel",
    "lb-userspace/telemetry",
    "xtask",
    "xtask/lab",
];

/// Arguments that turn on the tests that need root.
pub const fn features() -> [&'static str; 2] {
    ["--features", "lb-kernel/root-tests,lb-userspace/root-tests,xtask/root-tests"]
}

/// A group of checks that run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Formatting, clippy, dependencies, rules of the repository.
    Lint,
    /// Everything that needs no privilege.
    Host,
    /// The programs in this kernel, packet by packet.
    Kernel,
    /// Network namespaces with real clients and servers.
    Lab,
    /// Other kernels, in virtual machines.
    Vm,
    /// A real Kubernetes API server.
    Api,
}

impl Stage {
    /// In the order they run.
    pub const ALL: [Self; 6] = [Self::Lint, Self::Host, Self::Kernel, Self::Vm, Self::Lab, Self::Api];

    /// The name to type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Host => "host",
            Self::Kernel => "kernel",
            Self::Vm => "vm",
            Self::Lab => "lab",
            Self::Api => "api",
        }
    }

    /// The stage of a file of `tests/`: `kernel*`, `vm*`, `lab_api*` and `api*`, `lab*`; every other one is unprivileged.
    pub fn of(file: &str) -> Self {
        if file.starts_with("kernel") {
            Self::Kernel
        } else if file.starts_with("vm") {
            Self::Vm
        } else if file.starts_with("api") || file.starts_with("lab_api") {
            Self::Api
        } else if file.starts_with("lab") {
            Self::Lab
        } else {
            Self::Host
        }
    }

    /// Whether whoever starts it must be root. In a virtual machine the tests are, whoever starts it.
    pub const fn needs_root_here(self) -> bool {
        self.needs_root() && !matches!(self, Self::Vm)
    }

    /// Whether its tests need root, and fail without.
    pub const fn needs_root(self) -> bool {
        matches!(self, Self::Kernel | Self::Vm | Self::Lab | Self::Api)
    }
}

/// A test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its package.
    pub package: String,
    /// Name of the file, or of the library or binary whose unit tests these are.
    pub name: String,
    /// `test` for a file of `tests/`, else `lib` or `bin`.
    pub kind: String,
    /// The program.
    pub executable: PathBuf,
    /// The package's folder; tests run in it.
    pub folder: PathBuf,
}

impl Target {
    /// The test program that a message of cargo tells of.
    pub fn from_message(message: &Value) -> Option<Self> {
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
        Some(Self {
            package: package(message["package_id"].as_str()?)?.to_owned(),
            name: message["target"]["name"].as_str()?.to_owned(),
            kind: message["target"]["kind"][0].as_str()?.to_owned(),
            executable: message["executable"].as_str()?.into(),
            folder: folder.into(),
        })
    }

    /// The stage it belongs to; unit tests are unprivileged.
    pub fn stage(&self) -> Stage {
        if self.kind == "test" { Stage::of(&self.name) } else { Stage::Host }
    }
}

/// The name in `path+file:///r/lb-userspace#0.1.0`, or, where the folder has another, `path+file:///r/lb-common/testkit#lb-testkit@0.1.0`.
fn package(id: &str) -> Option<&str> {
    let (folder, version) = id.rsplit_once('#')?;
    match version.split_once('@') {
        Some((name, _)) => Some(name),
        None => folder.rsplit('/').next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_is_in_the_name() {
        for (file, stage) in [
            ("kernel", Stage::Kernel),
            ("kernel_socket", Stage::Kernel),
            ("vm_lab", Stage::Vm),
            ("lab_paths", Stage::Lab),
            ("lab_api", Stage::Api),
            ("api_server", Stage::Api),
            ("fixtures", Stage::Host),
        ] {
            assert_eq!(Stage::of(file), stage, "{file}");
        }
    }

    #[test]
    fn unit_tests_are_unprivileged_whatever_their_crate_is_called() {
        let message = serde_json::json!({
            "reason": "compiler-artifact",
            "package_id": "path+file:///r/lb-userspace#0.1.0",
            "manifest_path": "/r/lb-userspace/Cargo.toml",
            "target": { "name": "kernel", "kind": ["lib"] },
            "profile": { "test": true },
            "executable": "/r/target/debug/deps/shunt-1"
        });
        let target = Target::from_message(&message).unwrap();
        assert_eq!((target.package.as_str(), target.stage()), ("lb-userspace", Stage::Host));
    }

    #[test]
    fn a_package_may_be_called_otherwise_than_its_folder() {
        assert_eq!(package("path+file:///r/lb-common#0.1.0"), Some("lb-common"));
        assert_eq!(package("path+file:///r/lb-common/testkit#lb-testkit@0.1.0"), Some("lb-testkit"));
        assert_eq!(package("lb-common"), None);
    }

    #[test]
    fn a_binary_that_tests_only_use_is_no_test() {
        let message = serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": "/r/xtask/Cargo.toml",
            "target": { "name": "xtask", "kind": ["bin"] },
            "profile": { "test": false },
            "executable": "/r/target/debug/xtask"
        });
        assert_eq!(Target::from_message(&message), None);
    }
}
