//! Where the repository and its build results are.

use std::env;
use std::path::{Path, PathBuf};

use miette::{Result, miette};

/// The root folder of this repository.
pub fn root() -> PathBuf {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    lab.ancestors().nth(2).unwrap_or(lab).to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, or `target` in the repository.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Where things that take long to get are kept for all clones on this machine: `$XDG_CACHE_HOME/shunt`.
pub fn cache() -> Result<PathBuf> {
    let cache = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => return Err(miette!("set HOME or XDG_CACHE_HOME: kube-apiserver and kernels are kept there")),
    };
    Ok(cache.join("shunt"))
}
