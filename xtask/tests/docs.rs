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
