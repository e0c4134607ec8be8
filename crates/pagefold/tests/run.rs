//! `pagefold run`, the real binary: every shipped scenario, the demonstration, pictures, and mistakes in scenarios.

mod common;

use std::io::Write;

use common::{json, pagefold};
use predicates::prelude::*;
use serde_json::Value;

fn run(scenario: &str) -> Value {
    json(pagefold().args(["run", "--json", scenario]).assert().success())
}

#[test]
fn every_shipped_scenario_keeps_every_promise() {
    for scenario in ["elastic", "fragmented", "numa", "hugetlb", "classic"] {
        let report = run(scenario);
        assert_eq!(report.pointer("/broken/total").and_then(Value::as_u64), Some(0), "{scenario}: {report}");
        assert_eq!(report["agree"], true, "{scenario}");
    }
}

#[test]
fn a_terabyte_grows_out_of_128_mib_and_leaves_next_to_nothing() {
    let report = run("terabyte");
    assert_eq!(report.pointer("/broken/total").and_then(Value::as_u64), Some(0), "{report}");
    assert_eq!(report["agree"], true);
}

#[test]
fn the_picture_is_well_formed() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("run.svg");
    pagefold().args(["run", "numa", "--svg"]).arg(&svg).assert().success();
    let text = std::fs::read_to_string(svg).unwrap();
    assert!(
        roxmltree::Document::parse(&text).unwrap().root_element().has_tag_name("svg")
            || text.contains("<svg")
    );
}

#[test]
fn a_mistake_in_a_scenario_is_named_with_its_place() {
    for (text, place) in [("machine = 3\n", "1:"), ("[machine]\nbost = 1\n", "2:"), ("[machine\n", "1:")] {
        let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        file.write_all(text.as_bytes()).unwrap();
        pagefold().arg("run").arg(file.path()).assert().code(2).stdout("").stderr(
            predicate::str::contains(place).and(predicate::str::is_match("(?s)^[^\n]*\n?$").unwrap()),
        );
    }
    pagefold()
        .args(["run", "no-such-scenario"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("no-such-scenario"));
}
