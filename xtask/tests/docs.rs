//! The tables of docs/ name everything that the kernel and the metrics show.

use std::fs;

use lb_common::abi::Reason;
use xtask::repository;

fn page(name: &str) -> String {
    let path = repository::root().join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Those of the names that the page does not have between backquotes.
fn missing<'name>(page: &str, names: impl IntoIterator<Item = &'name str>) -> Vec<&'name str> {
    names.into_iter().filter(|name| !page.contains(&format!("`{name}`"))).collect()
}

/// The strings of `lb_common::abi::maps`.
fn map_names() -> Vec<&'static str> {
    let abi = include_str!("../../lb-common/src/abi/mod.rs");
    let maps = abi
        .split_once("pub mod maps {")
        .expect("the module of map names")
        .1
        .split_once("\n}")
        .expect("its end")
        .0;
    maps.lines().filter_map(|line| line.split_once(": &str = \"")?.1.strip_suffix("\";")).collect()
}

#[test]
fn every_map_is_described() {
    let names = map_names();
    assert!(names.contains(&"SERVICES4") && names.len() > 10, "{names:?}");
    assert_eq!(missing(&page("maps.md"), names), [""; 0]);
}

#[test]
fn every_way_a_packet_can_end_is_described() {
    assert_eq!(missing(&page("packet-path.md"), Reason::ALL.iter().map(|reason| reason.label())), [""; 0]);
}

/// `OLDEST` of `lb-userspace/kernel/src/programs/checks.rs`.
fn oldest_kernel() -> String {
    let checks = include_str!("../../lb-userspace/kernel/src/programs/checks.rs");
    let numbers = checks.split_once("pub const OLDEST: Release = Release {").expect("the oldest kernel").1;
    let numbers = numbers.split_once('}').expect("its end").0;
    let numbers: Vec<&str> =
        numbers.split(',').filter_map(|field| Some(field.split_once(": ")?.1.trim())).collect();
    numbers.join(".")
}

/// The versions that a text calls the oldest: `6.1 or newer`.
fn called_oldest(text: &str) -> Vec<&str> {
    let before = text.split(" or newer").map(|before| before.rsplit([' ', '(']).next().unwrap_or_default());
    let count = text.matches(" or newer").count();
    before.take(count).filter(|word| word.starts_with(|first: char| first.is_ascii_digit())).collect()
}

#[test]
fn the_oldest_kernel_is_the_same_everywhere() {
    let oldest = oldest_kernel();
    let readme = repository::root().join("README.md");
    for (name, text, count) in [
        ("README.md", fs::read_to_string(readme).expect("README.md"), 2),
        ("kernels.md", page("kernels.md"), 1),
    ] {
        assert_eq!(called_oldest(&text), vec![oldest.as_str(); count], "{name}");
    }
}

#[test]
fn the_summary_of_the_benches_is_what_their_data_files_make() {
    let page = page("performance.md");
    let summarized = xtask::bench::docs::summarized(&page).unwrap_or_else(|error| panic!("{error:?}"));
    assert!(page == summarized, "run `cargo xtask bench --summarize`");
}
