//! Builds lb-ebpf and puts the object at `$OUT_DIR/shunt-ebpf`; with the feature `bench` also
//! `$OUT_DIR/shunt-floors`, what benchmarks compare with.
//!
//! - `LB_EBPF_OBJ=path`: take a prebuilt object (image and distribution builds).
//! - `LB_EBPF_RUSTC=/usr/bin/rustc` with `LB_EBPF_CARGO=/usr/bin/cargo`: a stable compiler that comes
//!   with its library sources, such as Debian's rustc-web.
//! - neither: `rustup run ${LB_EBPF_TOOLCHAIN:-nightly}`, with the component rust-src.
//!
//! `LB_EBPF_FEATURES=log` builds programs that log what the agent then shows.
//!
//! bpf-linker must be in PATH, or its folder named by `LB_EBPF_LINKER_DIR`. `cargo xtask` sets all of this.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn main() {
    for name in [
        "LB_EBPF_OBJ",
        "LB_EBPF_RUSTC",
        "LB_EBPF_CARGO",
        "LB_EBPF_TOOLCHAIN",
        "LB_EBPF_LINKER_DIR",
        "LB_EBPF_FEATURES",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../..");
    for path in ["lb-ebpf", "lb-common/src", "lb-common/Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    match env::var_os("LB_EBPF_OBJ") {
        Some(prebuilt) => keep(Path::new(&prebuilt), "shunt-ebpf"),
        None => keep(&compile(&root, "shunt-ebpf"), "shunt-ebpf"),
    }
    if env::var_os("CARGO_FEATURE_BENCH").is_some() {
        keep(&compile(&root, "shunt-floors"), "shunt-floors");
    }
}

fn keep(built: &Path, name: &str) {
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join(name);
    if let Err(error) = std::fs::copy(built, &object) {
        fail(&format!("cannot copy {} to {}: {error}", built.display(), object.display()));
    }
}

/// Runs cargo for the BPF target in a target folder of its own: no lock shared with the outer cargo,
/// and one build of `core` for every profile. The programs differ by the machine they are for (`cfg(bpf_target_arch)`).
fn compile(root: &Path, bin: &str) -> PathBuf {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let target =
        root.join("target").join(if arch == "x86_64" { "ebpf".into() } else { format!("ebpf-{arch}") });
    let mut cargo = toolchain();
    for name in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "RUSTDOC",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "CARGO_ENCODED_RUSTDOCFLAGS",
    ] {
        cargo.env_remove(name);
    }
    if let Some(folder) = env::var_os("LB_EBPF_LINKER_DIR") {
        let mut path = vec![PathBuf::from(folder)];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        cargo.env("PATH", env::join_paths(path).expect("folders of PATH"));
    }
    // v3 of the instruction set has the atomic fetch and compare-and-swap instructions (Linux 5.12).
    let flags = [
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Ctarget-cpu=v3",
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
    ]
    .map(str::to_owned);
    cargo
        .current_dir(root.join("lb-ebpf"))
        .args(["build", "--release", "--locked", "--bin", bin, "--target", "bpfel-unknown-none"])
        .args(["--features", &env::var("LB_EBPF_FEATURES").unwrap_or_default()])
        .args(["-Zbuild-std=core", "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .stdout(Stdio::null());
    match cargo.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!(
            "{}\nthe eBPF build failed. `cargo xtask setup` installs what it needs; by hand: rustup toolchain \
             install nightly -c rust-src, cargo install bpf-linker",
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => fail(&format!("cannot start {cargo:?}: {error}")),
    }
    target.join("bpfel-unknown-none/release").join(bin)
}

fn toolchain() -> Command {
    if let Some(rustc) = env::var_os("LB_EBPF_RUSTC") {
        let mut cargo = Command::new(env::var_os("LB_EBPF_CARGO").unwrap_or_else(|| "cargo".into()));
        // -Zbuild-std is an unstable flag; the compiler itself is a release.
        cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        return cargo;
    }
    let toolchain = env::var("LB_EBPF_TOOLCHAIN").unwrap_or_else(|_| "nightly".into());
    let mut rustup = Command::new("rustup");
    rustup.args(["run", &toolchain, "cargo"]).env_remove("RUSTC");
    rustup
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1)
}
