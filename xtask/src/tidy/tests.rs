//! Every rule finds what it is there for, and leaves the rest alone.

use super::*;

fn messages(path: &str, text: &str) -> Vec<String> {
    of_a_file(&Source::new(path, text)).iter().map(Problem::to_string).collect()
}

#[test]
fn a_file_says_what_it_is_for() {
    assert_eq!(messages("xtask/src/a.rs", "//! A.\n"), [""; 0]);
    assert!(messages("xtask/src/a.rs", "use b;\n")[0].starts_with("xtask/src/a.rs:1: begin the file"));
    assert_eq!(messages("xtask/src/a.rs", "").len(), 1);
}

#[test]
fn a_long_file_is_split_unless_it_holds_tests() {
    let text = format!("//! A.\n{}", "\n".repeat(MOST_LINES));
    assert!(messages("xtask/src/a.rs", &text)[0].contains("501 lines"));
    assert_eq!(messages("xtask/src/a/tests.rs", &text), [""; 0]);
}

#[test]
fn unsafe_code_has_its_files() {
    let text = "//! A.\n\nfn f() { unsafe { g() } }\n";
    assert!(
        messages("lb-userspace/src/get/mod.rs", text)[0].starts_with("lb-userspace/src/get/mod.rs:3: unsafe")
    );
    assert_eq!(messages("lb-userspace/kernel/src/sys.rs", text), [""; 0]);
    assert_eq!(messages("lb-ebpf/src/maps.rs", text), [""; 0]);
}

#[test]
fn the_cluster_and_the_kernel_stay_behind_their_doors() {
    let kube = "//! A.\nuse kube::Client;\n";
    assert!(
        messages("lb-userspace/control/src/convert.rs", kube)[0]
            .contains("`kube::` is for lb-userspace/control/src/source only")
    );
    assert_eq!(messages("lb-userspace/control/src/source/kubernetes.rs", kube), [""; 0]);
    assert_eq!(messages("xtask/src/main.rs", kube), [""; 0]);
    let aya = "//! A.\n    let map: aya::maps::MapData;\n";
    assert_eq!(messages("lb-userspace/src/app.rs", aya).len(), 1);
    assert_eq!(messages("lb-userspace/control/src/reconcile.rs", aya).len(), 1);
    assert_eq!(messages("lb-userspace/kernel/src/programs/load.rs", aya), [""; 0]);
}

#[test]
fn decisions_know_no_clock_and_no_files() {
    let text = "//! A.\nlet now = Instant::now();\nstd::fs::read(path);\n";
    assert_eq!(messages("lb-userspace/control/src/plan/rings.rs", text).len(), 2);
    assert_eq!(messages("lb-userspace/control/src/reconcile.rs", text), [""; 0]);
    let in_tests = "//! A.\n#[cfg(test)]\nmod tests { let now = Instant::now(); }\n";
    assert_eq!(messages("lb-userspace/control/src/allocate.rs", in_tests), [""; 0]);
}

#[test]
fn no_test_is_switched_off() {
    assert_eq!(messages("xtask/tests/lab_a.rs", "//! A.\n#[ignore]\n").len(), 1);
    assert_eq!(messages("xtask/tests/lab_a.rs", "//! A.\n#[ignore = \"later\"]\n").len(), 1);
}

#[test]
fn tests_that_need_root_are_declared() {
    let sources =
        ["lab_a", "host_a", "support/mod"].map(|name| Source::new(&format!("xtask/tests/{name}.rs"), ""));
    let problems = of_root_tests("xtask/Cargo.toml", "[dependencies]", &sources);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].to_string().contains("the test lab_a needs root"));
    let folder = [Source::new("lb-userspace/kernel/tests/kernel/main.rs", "")];
    assert_eq!(of_root_tests("lb-userspace/kernel/Cargo.toml", "", &folder).len(), 1);
    assert!(of_root_tests("lb-userspace/Cargo.toml", "", &folder).is_empty(), "another package's");
    let declared = "[[test]]\nname = \"lab_a\"\nrequired-features = [\"root-tests\"]\n";
    assert!(of_root_tests("xtask/Cargo.toml", declared, &sources).is_empty());
}

fn dependencies(package: &str, names: &str) -> Vec<String> {
    let without = WITHOUT.iter().find(|without| without.package == package).unwrap();
    of_dependencies(without, names).iter().map(Problem::to_string).collect()
}

#[test]
fn the_core_depends_on_nothing_that_does_io() {
    assert_eq!(
        dependencies("lb-common", "lb_common\nzerocopy\nnetwork_types\nzerocopy_derive (*)\n"),
        [""; 0]
    );
    let found = dependencies("lb-common", "lb_common\naya_obj\ntokio\n");
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn the_pipeline_depends_on_no_bpf_not_even_through_others() {
    assert_eq!(dependencies("lb-control", "lb_control\nkube\nkube_core\nlb_common\ntokio\n"), [""; 0]);
    assert_eq!(
        dependencies("lb-control", "lb_control\naya_obj (*)\nlb_kernel\n"),
        ["aya_obj", "lb_kernel"].map(|name| format!(
            "lb-userspace/control/Cargo.toml:1: lb-control must not depend on {name}: it compiles, and its tests run, \
             without a BPF toolchain"
        ))
    );
}

#[test]
fn an_exception_that_is_not_needed_goes() {
    let stale = of_exceptions(&[Source::new("lb-userspace/kernel/src/sys.rs", "fn safe() {}")]);
    assert_eq!(stale.len(), UNSAFE_FILES.len() + LONG_FILES.len());
}
