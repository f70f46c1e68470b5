//! What is said and typed for a machine that lacks something.

use super::*;

fn bare_machine() -> Missing {
    Missing {
        programs: need::missing(&[Purpose::Lab], |program| program != "ncat"),
        mounts: vec![Mount::Bpffs],
        toolchain: Found::Debian { compiler: true, linker: true },
        cross: None,
    }
}

#[test]
fn debian_gets_its_own_compiler() {
    let typed = bare_machine().typed(true);
    assert_eq!(typed[0], "  sudo apt-get update");
    assert!(typed[1].contains(" ncat rustc-web cargo-web rust-web-src llvm-22-dev "), "{typed:?}");
    assert!(typed[2].contains("cargo install bpf-linker --version 0.13.0"), "{typed:?}");
    assert_eq!(typed[3], "  sudo sh -c 'mount -t bpf bpf /sys/fs/bpf'");
}

#[test]
fn other_distributions_get_rustups_nightly() {
    let typed = bare_machine().typed(false);
    assert!(typed[1].ends_with("--no-install-recommends ncat"), "{typed:?}");
    assert_eq!(
        typed[2..4],
        ["  rustup toolchain install nightly --component rust-src", "  cargo install bpf-linker"]
    );
}

#[test]
fn a_machine_that_lacks_nothing_needs_no_root() {
    let toolchain = Toolchain::default();
    let found = Found::Ready(toolchain.clone());
    let ready = Missing { programs: vec![], mounts: vec![], toolchain: found, cross: None };
    assert!(!ready.needs_root());
    assert_eq!(ready.into_toolchain().ok(), Some(toolchain));
}

#[test]
fn the_distribution_is_read_from_os_release() {
    assert!(is_debian_12("NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n"));
    assert!(!is_debian_12("ID=debian\nVERSION_ID=\"13\"\n"));
    assert!(!is_debian_12("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"12\"\n"));
}

#[test]
fn a_program_is_an_executable_file() {
    assert!(find_program("sh").is_some());
    assert!(find_program("no-such-program-anywhere").is_none());
}
