//! `pagefold run`, the real binary: every shipped scenario, the demonstration, pictures, and mistakes in scenarios.

mod common;

use std::io::Write;

use common::{json, pagefold, wait_for_threads};
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
fn blocks_of_four_sections_grow_shrink_and_grow_again() {
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(
        br#"about = "512 MiB blocks: grow, use a little, shrink, grow again, use it all"
[machine]
boot = ["512 MiB"]
memory-block = "512 MiB"
patience = 2.0
[[device]]
size = "2 GiB"
[[workload]]
name = "anonymous"
kind = "anonymous"
orders = [{ order = 0, share = 0.5 }, { order = 9, share = 0.5 }]
[[step]]
name = "grow"
resize = [{ device = 0, to = "2 GiB" }]
must = true
[[step]]
name = "use a little"
change = [{ workload = "anonymous", to = "16 MiB" }]
[[step]]
name = "free"
change = [{ workload = "anonymous", to = "0" }]
[[step]]
name = "shrink"
resize = [{ device = 0, to = "0" }]
must = true
[[step]]
name = "grow again"
resize = [{ device = 0, to = "2 GiB" }]
must = true
[[step]]
name = "use it all"
change = [{ workload = "anonymous", to = "1800 MiB" }]
"#,
    )
    .unwrap();
    let report = run(file.path().to_str().unwrap());
    assert_eq!(report.pointer("/broken/total").and_then(Value::as_u64), Some(0), "{report}");
    assert_eq!(report["agree"], true);
    assert_eq!(report["rows"].as_array().unwrap().last().unwrap()["plugged"], 2u64 << 30);
}

#[test]
fn a_terabyte_grows_out_of_128_mib_and_leaves_next_to_nothing() {
    let report = run("terabyte");
    assert_eq!(report.pointer("/broken/total").and_then(Value::as_u64), Some(0), "{report}");
    assert_eq!(report["agree"], true);
    // Linux: 16 GiB of descriptors to begin with, 2,048 KiB for each block that a page is stuck in.
    let rows = report["rows"].as_array().unwrap();
    let first = measured(&report["first"]);
    assert_eq!(rows[0]["plugged"], 1u64 << 40);
    assert!(measured(&rows[0]["metadata"]) - first < 32 << 20);
    let stuck = rows.iter().find(|row| row["name"] == "shrink: all but the pinned").unwrap();
    let blocks = stuck["blocks"].as_u64().unwrap();
    assert!(blocks > 7000);
    assert!(measured(&stuck["metadata"]) - first <= blocks * (40 << 10));
    assert_eq!(rows.last().unwrap()["plugged"], 0);
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

/// All metadata, as smaps and VmPTE have it.
fn measured(metadata: &Value) -> u64 {
    let parts = ["map", "page_tables", "classes", "allocator"];
    parts.iter().map(|part| metadata[part]["smaps"].as_u64().unwrap()).sum()
}

#[test]
fn what_was_touched_goes_back_to_the_system() {
    let report = run("elastic");
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["resident"].as_u64().unwrap() > 256 << 20));
    assert_eq!(rows.last().unwrap()["resident"], 0);
}

#[test]
fn a_shrink_that_falls_short_says_why() {
    let report = run("fragmented");
    let why = report["rows"][2]["shortfall"].as_str().unwrap();
    assert!(why.contains("pinned sub-block") && why.contains("zone Normal"), "{why}");
}

#[test]
fn sizes_places_and_names_are_judged() {
    let good = "about = \"x\"\n[machine]\nboot = [\"128 MiB\"]\n[[device]]\nsize = \"1 GiB\"\n[[step]]\nname = \"a\"\n\
                resize = [{ device = 0, to = \"256 MiB\" }]\n[walkers]\ncount = 1\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    let file = |text: &str| {
        std::fs::write(&path, text).unwrap();
        pagefold().arg("run").arg(&path).output().unwrap()
    };
    assert_eq!(file(good).status.code(), Some(0));
    for (from, to, place, says) in [
        ("count = 1", "cuont = 1", ":10:1", "unknown field"),
        ("count = 1", "count = \"two\"", ":10:9", "invalid type"),
        ("size = \"1 GiB\"", "size = \"900 PiB\"", ":5:8", "4P"),
        ("size = \"1 GiB\"", "size = \"3 PiB\"", ":5:8", "more than a scenario"),
        ("size = \"1 GiB\"", "size = \"0\"", ":5:8", "not 0"),
        ("size = \"1 GiB\"", "size = \"100 MiB\"", ":5:8", "multiple of 128 MiB"),
        ("size = \"1 GiB\"", "size = -1", ":5:8", "negative"),
        ("size = \"1 GiB\"", "size = \"1 GiB\"\nat = \"1 MiB\"", ":6:6", "multiple of 128 MiB"),
        ("size = \"1 GiB\"", "size = \"1 GiB\"\nat = \"0\"", ":6:6", "overlaps boot memory"),
        ("size = \"1 GiB\"", "size = \"1 GiB\"\nnode = 1", ":6:8", "no node 1"),
        ("[[device]]\nsize = \"1 GiB\"\n", "", ":2:1", "no [[device]]"),
        ("device = 0", "device = 7", ":8:22", "no device 7"),
        ("to = \"256 MiB\"", "to = \"2 GiB\"", ":8:30", "up to 1.00 GiB"),
        ("boot = [\"128 MiB\"]", "boot = []", ":2:1", "boot memory"),
    ] {
        assert!(good.contains(from), "{from}");
        let output = file(&good.replace(from, to));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{to}: {text}");
        assert_eq!(text.lines().count(), 1, "{to}: {text}");
        assert!(text.contains(&format!("mine.toml{place}")) && text.contains(says), "{to}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn an_interrupt_ends_it_with_the_result_so_far() {
    let mut text =
        String::from("about = \"x\"\n[machine]\nboot = [\"128 MiB\"]\n[[device]]\nsize = \"64 GiB\"\n");
    for step in 0..2000 {
        let to = if step % 2 == 0 { "64 GiB" } else { "0" };
        text += &format!("[[step]]\nname = \"{step}\"\nresize = [{{ device = 0, to = \"{to}\" }}]\n");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.toml");
    std::fs::write(&path, text).unwrap();
    let binary = assert_cmd::cargo::cargo_bin!("pagefold");
    let mut command = std::process::Command::new(binary);
    let mut child =
        command.args(["run", "--json"]).arg(path).stdout(std::process::Stdio::piped()).spawn().unwrap();
    // Its walkers are there: from before then on it catches the signal. The steps take it minutes.
    wait_for_threads(&mut child, 5);
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["interrupted"], true);
    assert!((report["rows"].as_array().unwrap().len() as u64) < report["steps"].as_u64().unwrap());
    assert_eq!(report["broken"]["total"], 0);
}
