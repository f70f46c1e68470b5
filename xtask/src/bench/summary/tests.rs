use super::super::machine::Machine;
use super::super::record::Head;
use super::super::row::{Row, Target};
use super::*;

fn record(rows: Vec<Judged>) -> Record {
    let machine = Machine {
        when: "2026-11-21T23:12Z".into(),
        kernel: "6.18.44".into(),
        cpus: 2,
        processor: "AMD EPYC".into(),
        load: 1.25,
        commit: Some("f0fd66f".into()),
    };
    Record { head: Head { command: "cargo xtask bench flood".into(), machine, note: None }, rows }
}

fn judged(case: &str, what: &str, target: Option<Target>, met: Option<bool>) -> Judged {
    let row = Row {
        case: case.into(),
        what: what.into(),
        value: 180.0,
        low: Some(170.0),
        high: Some(190.0),
        unit: "µs".into(),
        floor: Some("outside: direct".into()),
        ratio: Some(1.035),
        target,
        problem: None,
    };
    Judged { row, met }
}

#[test]
fn a_summary_has_the_headlines_and_all_that_is_missed() {
    let (most, small) = (Some(Target::AtMost(1.03)), Some(Target::ValueAtMost(200.0)));
    let mut doubtful = judged("inside: doubtful", "time", None, None);
    doubtful.row.problem = Some("nobody answered".into());
    let record = record(vec![
        judged("outside: shown", "time", most, Some(true)),
        judged("outside: not shown", "time", most, Some(true)),
        judged("inside: shown", "size", small, Some(true)),
        judged("inside: missed", "time", most, Some(false)),
        doubtful,
        judged("inside: nothing is asked", "time", None, None),
    ]);
    let headlines: Vec<&Judged> = [0, 2].map(|index| &record.rows[index]).into();
    insta::assert_snapshot!(of_one(Bench::Flood, &record, &headlines), @r"
    **flood** ([all rows](performance/flood.json)): 3 of 4 targets met. `cargo xtask bench flood`, Linux 6.18.44, 2 CPUs (AMD EPYC), load 1.25, 2026-11-21T23:12Z, commit f0fd66f.

    | CASE             | WHAT | MEDIAN | RATIO | TO              | WANTED         |               |
    |------------------|------|--------|-------|-----------------|----------------|---------------|
    | outside: shown   | time | 180 µs |  1.03 | direct          | at most 1.03   | met           |
    | inside: shown    | size | 180 µs |  1.03 | outside: direct | at most 200 µs | met           |
    | inside: missed   | time | 180 µs |  1.03 | outside: direct | at most 1.03   | NOT MET       |
    | inside: doubtful | time | 180 µs |  1.03 | outside: direct |                | MEANS NOTHING |
    ");
}

#[test]
fn a_run_without_targets_says_so() {
    assert_eq!(verdict(&record(vec![judged("a", "time", None, None)])), "no targets");
}

#[test]
fn a_headline_that_is_not_there_is_named_with_its_file() {
    let error = summary(&[(Bench::Maglev, record(Vec::new()))]).unwrap_err().to_string();
    let wanted =
        "docs/performance/maglev.json: `10 endpoints, 809 slots`, `time to build`, against `anything`";
    assert!(error.contains(wanted), "{error}");
    assert!(error.contains("1310 endpoints"), "all are named: {error}");
}

#[test]
fn every_sub_bench_has_headlines() {
    let missing = |bench| summary(&[(bench, record(Vec::new()))]).is_err();
    assert!(Bench::ALL.into_iter().all(missing));
}
