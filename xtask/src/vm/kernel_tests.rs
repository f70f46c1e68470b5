//! Names and versions as the mirrors have them.

use super::*;
use crate::debian::index::packages;

/// Name, version, what it depends on.
fn index(entries: &[(&str, &str, &str)]) -> Vec<Package> {
    let text: Vec<_> = entries
        .iter()
        .map(|(name, version, depends)| {
            format!("Package: {name}\nVersion: {version}\nDepends: kmod, {depends}\n")
        })
        .collect();
    packages(&text.join("\n"), is_of_a_kernel)
}

fn wanted(text: &str) -> Wanted {
    text.parse().unwrap()
}

#[test]
fn a_series_reads_as_it_is_written() {
    for text in ["6.1", "6.12", "6.12-rt", "newest", "newest-rt"] {
        assert_eq!(wanted(text).to_string(), text);
    }
    for text in ["", "6", "rt", "6.x", "6.12-cloud"] {
        let error = text.parse::<Wanted>().unwrap_err();
        assert!(error.contains("6.12 or newest"), "{error}");
    }
}

#[test]
fn the_newest_version_is_taken_and_not_the_one_whose_name_sorts_last() {
    let index = index(&[
        ("linux-image-6.1.0-9-cloud-amd64", "6.1.9-1", "linux-base"),
        ("linux-image-6.1.0-57-cloud-amd64", "6.1.192-3", "linux-base"),
        ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2", "linux-base"),
        ("linux-image-6.1.0-0.deb11.52-cloud-amd64", "6.1.180-1~deb11u1", "linux-base"),
        ("linux-image-6.12.118+deb13-cloud-amd64", "6.12.118-1", "linux-base"),
    ]);
    let choice = choose(&index, wanted("6.1"), "cloud-amd64").unwrap();
    assert_eq!(choice.version, "6.1.192-3");
    assert_eq!(choice.packages, ["linux-image-6.1.0-57-cloud-amd64"]);
    let newest = choose(&index, wanted("newest"), "cloud-amd64").unwrap();
    assert_eq!(newest.version, "6.12.118-1");
}

#[test]
fn a_version_before_its_release_is_older() {
    let index = index(&[
        ("linux-image-6.12.9+deb13-rt-amd64", "6.12.9-1", "linux-base"),
        ("linux-image-6.12.9+deb12-rt-amd64", "6.12.9-1~bpo12+1", "linux-base"),
    ]);
    assert_eq!(choose(&index, wanted("6.12-rt"), "rt-amd64").unwrap().version, "6.12.9-1");
}

#[test]
fn what_only_names_the_newest_is_not_a_kernel() {
    let index = index(&[
        (
            "linux-image-6.12-cloud-amd64",
            "6.12.117-2",
            "linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1)",
        ),
        ("linux-image-6.12.117+deb12-cloud-amd64", "6.12.117-1", "linux-base"),
        ("linux-image-6.12.117+deb12-cloud-amd64-dbg", "6.12.117-9", "linux-base"),
    ]);
    let choice = choose(&index, wanted("6.12"), "cloud-amd64").unwrap();
    assert_eq!(choice.packages, ["linux-image-6.12.117+deb12-cloud-amd64"]);
}

#[test]
fn signed_kernels_are_preferred_and_unsigned_ones_do() {
    let unsigned = ("linux-image-6.1.0-57-cloud-amd64-unsigned", "6.1.192-3", "linux-base");
    let signed = ("linux-image-6.1.0-57-cloud-amd64", "6.1.192-3", "linux-base");
    let choice = choose(&index(&[unsigned, signed]), wanted("6.1"), "cloud-amd64").unwrap();
    assert_eq!(choice.packages, [signed.0]);
    let choice = choose(&index(&[unsigned]), wanted("6.1"), "cloud-amd64").unwrap();
    assert_eq!(choice.packages, [unsigned.0]);
}

#[test]
fn a_split_kernel_is_its_parts_and_an_incomplete_one_is_passed_over() {
    let of = |version: &str| format!("linux-binary-{version}, linux-modules-{version}");
    let (newer, older) = (of("7.3.5-amd64 (= 7.3.5-1)"), of("7.3.4-amd64 (= 7.3.4-1)"));
    let index = index(&[
        ("linux-image-7.3.5-amd64", "7.3.5-1", &newer),
        ("linux-binary-7.3.5-amd64", "7.3.5-1", "linux-base"),
        ("linux-image-7.3.4-amd64", "7.3.4-1", &older),
        ("linux-binary-7.3.4-amd64", "7.3.4-1", "linux-base"),
        ("linux-modules-7.3.4-amd64", "7.3.4-1", "linux-base"),
    ]);
    let choice = choose(&index, wanted("newest"), "amd64").unwrap();
    assert_eq!(
        choice.packages,
        ["linux-image-7.3.4-amd64", "linux-binary-7.3.4-amd64", "linux-modules-7.3.4-amd64"]
    );
}

#[test]
fn a_kernel_in_one_package_does_without_what_has_left_the_suites() {
    let image = ("linux-image-6.18.15-amd64", "6.18.15-1", "linux-base-6.18.15-amd64 (= 6.18.15-1)");
    let choice = choose(&index(&[image]), wanted("6.18"), "amd64").unwrap();
    assert_eq!(choice.packages, [image.0]);
    let base = ("linux-base-6.18.15-amd64", "6.18.15-1", "libc6");
    let choice = choose(&index(&[image, base]), wanted("6.18"), "amd64").unwrap();
    assert_eq!(choice.packages, [image.0, base.0]);
}

#[test]
fn a_plain_kernel_is_neither_a_cloud_nor_a_real_time_kernel() {
    let index = index(&[
        ("linux-image-6.1.0-57-cloud-amd64", "6.1.192-3", "linux-base"),
        ("linux-image-6.1.0-57-rt-amd64", "6.1.192-3", "linux-base"),
        ("linux-image-6.1.0-50-amd64", "6.1.176-1", "linux-base"),
    ]);
    assert_eq!(choose(&index, wanted("6.1"), "amd64").unwrap().version, "6.1.176-1");
}

#[test]
fn what_cannot_be_had_is_told_with_the_reason() {
    let of = "linux-binary-7.0.1-amd64 (= 7.0.1-1), linux-modules-7.0.1-amd64 (= 7.0.1-1)";
    let index = index(&[
        ("linux-image-7.0.1-amd64", "7.0.1-1", of),
        ("linux-binary-7.0.1-amd64", "7.0.1-1", "linux-base"),
    ]);
    let error = choose(&index, wanted("7.0"), "amd64").unwrap_err();
    assert!(error.ends_with("there is no linux-modules-7.0.1-amd64 7.0.1-1"), "{error}");
    let error = choose(&index, wanted("5.15"), "amd64").unwrap_err();
    assert!(error.contains("no suite") && error.contains("5.15"), "{error}");
}
