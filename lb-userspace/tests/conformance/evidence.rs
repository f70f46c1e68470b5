//! The tests that rules name: `file::function`, where the file is a test of its own or a module.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every test function of the repository that a rule may name, with its file.
pub struct Tests(BTreeMap<String, Vec<String>>);

/// Where tests are, from the root of the repository, and the module that a folder is.
const FOLDERS: [(&str, &str); 9] = [
    ("lb-common/tests", ""),
    ("lb-userspace/control/src", ""),
    ("lb-userspace/health/src", "health"),
    ("lb-userspace/kernel/src", ""),
    ("lb-userspace/kernel/tests", ""),
    ("lb-userspace/src", ""),
    ("lb-userspace/telemetry/src", "telemetry"),
    ("lb-userspace/tests", ""),
    ("xtask/tests", ""),
];

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("..")).to_owned()
}

impl Tests {
    /// Reads the sources.
    pub fn read() -> Self {
        let mut tests = Self(BTreeMap::new());
        for (folder, module) in FOLDERS {
            tests.read_folder(&root().join(folder), folder, module);
        }
        tests
    }

    /// The file a test is in, from the root of the repository.
    pub fn file(&self, name: &str) -> Result<&str, String> {
        match self.0.get(name).map(Vec::as_slice) {
            Some([file]) => Ok(file),
            Some(files) => Err(format!("{name} may be in {}", files.join(" or in "))),
            None => Err(format!("there is no test {name}")),
        }
    }

    fn read_folder(&mut self, path: &Path, shown: &str, module: &str) {
        let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for entry in entries {
            let path = entry.unwrap_or_else(|error| panic!("{}: {error}", path.display())).path();
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            // A module's tests stand in a file of their own when they are long.
            let inner = match (module, name) {
                (module, "tests" | "main" | "mod" | "lib") => module.to_owned(),
                ("", name) => name.to_owned(),
                (module, name) => format!("{module}::{name}"),
            };
            if path.is_dir() {
                self.read_folder(&path, &format!("{shown}/{name}"), &inner);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                // What a test of several files is called counts, not which of them a function is in.
                let of_test = shown.split_once("/tests/").filter(|(package, _)| !package.contains("/src"));
                let test = of_test.and_then(|(_, folders)| folders.split('/').next());
                let inner = test.map_or(inner, str::to_owned);
                let text =
                    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                for function in functions(&text) {
                    let file = format!("{shown}/{name}.rs");
                    self.0.entry(format!("{inner}::{function}")).or_default().push(file);
                }
            }
        }
    }
}

/// Names of the test functions of a source.
fn functions(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = declared {
            if is_test {
                found.extend(rest.split('(').next());
            }
            is_test = false;
        }
    }
    found
}
