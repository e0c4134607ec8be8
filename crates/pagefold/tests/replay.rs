//! `pagefold replay`, the real binary, on the built-in sample.

mod common;

use common::{json, pagefold, replay, wait_for_threads};
use predicates::prelude::*;
use serde_json::Value;

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number at {path}"))
}

#[test]
fn the_main_job_runs_on_the_sample() {
    let report = json(replay().arg("--json").args(["--seconds", "1"]).assert().success());
    assert_eq!(report["schema"], 3);
    assert_eq!(report["protocol"], "fold");
    assert_eq!(number(&report, "/violations/total"), 0);
    assert_eq!(report["agree"], true);
    // Every page of the machine is in exactly one row.
    let states = report["states"].as_array().unwrap();
    let pages: u64 = states.iter().map(|row| row["pages"].as_u64().unwrap()).sum();
    assert_eq!(pages, number(&report, "/described_pages"));
    // All descriptors were there, as the system sees it; then most of them were not.
    let flat = number(&report, "/flat/map/pagemap");
    let folded = number(&report, "/folded/map/pagemap");
    assert!(flat >= number(&report, "/pages") * 64, "{flat}");
    assert!(folded * 2 < flat, "{folded} of {flat}");
    // Folding shared its grace periods.
    assert!(report["folding"]["map_pages_per_grace_period"].as_f64().unwrap() > 100.0);
    for kind in ["gup", "page cache", "compaction", "kpageflags"] {
        let row = report["walkers"].as_array().unwrap().iter().find(|row| row["kind"] == kind).unwrap();
        assert!(row["looks_per_second"].as_f64().unwrap() > 0.0, "{kind}");
    }
    for what in ["allocated", "freed", "split", "collapsed", "unfolded", "folded"] {
        assert!(report["owners"][what].as_u64().unwrap() > 0, "{what}");
    }
    // The owners left the machine about as full as they found it.
    let (before, after) = (number(&report, "/folded_pages_in_use"), number(&report, "/last_pages_in_use"));
    assert!(before.abs_diff(after) < before / 20, "{before} {after}");
}

/// The recorded machine with a word a page and an object a folio: nothing is broken, and it costs two thirds of what 64 bytes a
/// page cost when both are folded.
#[test]
fn the_sample_lives_with_objects_too() {
    let arguments = ["--json", "--descriptors", "memdesc", "--seconds", "0.5"];
    let report = json(replay().args(arguments).assert().success());
    assert_eq!(report["descriptors"], "memdesc");
    assert_eq!((number(&report, "/violations/total"), &report["agree"]), (0, &Value::Bool(true)));
    assert_eq!(number(&report, "/objects"), number(&report, "/folios"), "an object a folio");
    let all = |moment: &str| -> u64 {
        ["map", "objects", "page_tables", "classes", "allocator"]
            .map(|part| number(&report, &format!("/{moment}/{part}/smaps")))
            .iter()
            .sum()
    };
    assert!(all("folded") < 105 << 20, "{}", all("folded"));
    assert!(all("folded") < all("flat"), "{} {}", all("folded"), all("flat"));
    for part in ["map", "objects", "classes", "allocator"] {
        let part = &report["folded"][part];
        assert_eq!(part["counted"], part["pagemap"], "{part}");
    }
    // The states' bytes are those of words and objects, but for objects that nobody uses.
    let rows = report["states"].as_array().unwrap();
    let sum: u64 = rows.iter().map(|row| row["pagefold_bytes"].as_u64().unwrap()).sum();
    let counted = number(&report, "/folded/map/counted") + number(&report, "/folded/objects/counted");
    assert!(sum <= counted && counted - sum < counted / 20, "{sum} {counted}");
}

#[test]
fn counted_and_measured_agree_to_the_page() {
    let report = json(replay().arg("--json").args(["--seconds", "0.3"]).assert().success());
    for moment in ["flat", "folded", "last"] {
        for part in ["map", "classes", "allocator"] {
            let part = &report[moment][part];
            assert_eq!(part["counted"], part["pagemap"], "{moment} {part}");
            assert_eq!(part["counted"], part["smaps"], "{moment} {part}");
        }
    }
}

#[test]
fn the_state_rows_add_up_to_the_map() {
    let report = json(replay().arg("--json").args(["--seconds", "0"]).assert().success());
    let rows = report["states"].as_array().unwrap();
    let sum: u64 = rows.iter().map(|row| row["pagefold_bytes"].as_u64().unwrap()).sum();
    let map = number(&report, "/folded/map/counted");
    // Each row is rounded to a byte.
    assert!(sum.abs_diff(map) <= rows.len() as u64, "{sum} {map}");
    let hugetlb = rows.iter().find(|row| row["state"] == "hugetlb").unwrap();
    assert_eq!(hugetlb["hvo_bytes"].as_u64().unwrap() * 8, hugetlb["linux_bytes"].as_u64().unwrap());
    assert_eq!(hugetlb["hvo_bytes"], hugetlb["pagefold_bytes"], "folded as HVO folds it");
    assert!(
        rows.iter()
            .filter(|row| row["state"].as_str().unwrap().contains("free"))
            .all(|row| row["pagefold_bytes"] == 0)
    );
}

#[test]
fn text_is_for_people() {
    replay()
        .args(["--seconds", "0.3"])
        .assert()
        .success()
        .stdout(predicate::str::contains("descriptors by page state"))
        .stdout(predicate::str::contains("violations 0"))
        .stdout(predicate::str::contains("\u{1b}").not());
}

#[test]
fn the_fallback_for_grace_periods_works() {
    let report =
        json(replay().arg("--json").args(["--seconds", "0.5", "--rcu", "fences"]).assert().success());
    assert_eq!(report["rcu"], "fences");
    assert_eq!(number(&report, "/violations/total"), 0);
}

#[test]
fn refcount_first_is_safe_and_misses_folded_tails() {
    let report = json(
        replay().arg("--json").args(["--seconds", "1", "--protocol", "refcount-first"]).assert().success(),
    );
    assert_eq!(number(&report, "/violations/total"), 0);
}

/// A race may not happen in one short run on some machine; it must within a few.
fn until_stray_writes(args: &[&str]) -> Value {
    for seed in 1..=10 {
        let seed = seed.to_string();
        let output =
            replay().args(args).args(["--seconds", "2", "--json", "--seed", &seed]).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let is_wrong = number(&report, "/violations/total") > 0;
        assert!(!is_wrong || output.status.code() == Some(1), "{:?}", output.status);
        if number(&report, "/violations/stray_writes") > 0
            && number(&report, "/violations/rematerialised") > 0
        {
            return report;
        }
    }
    panic!("no stray write in ten runs of {args:?}");
}

#[test]
fn without_a_grace_period_folded_pages_come_back() {
    let report = until_stray_writes(&["--protocol", "no-grace-period"]);
    assert!(number(&report, "/violations/total") > 0);
    let list = report["violations"]["list"].as_array().unwrap();
    let confirmed = list.iter().find(|row| row["confirmed"] == true).unwrap();
    assert!(confirmed["pfn"].as_u64().is_some());
    assert!(list.iter().any(|row| row["walker"].as_str().unwrap().ends_with("walker")));
}

#[test]
fn writable_tails_bring_folded_pages_back_and_are_no_success() {
    let report = until_stray_writes(&["--protocol", "writable-tails"]);
    assert!(number(&report, "/violations/total") > 0);
    assert_eq!(report["violations"]["wrong_protocol"], true);
    // Whether or not a walker was unlucky in this run.
    replay()
        .args(["--protocol", "writable-tails", "--seconds", "0"])
        .assert()
        .code(1)
        .stdout(predicates::str::contains("wrong     protocol writable-tails lets stray writes be"));
}

#[test]
fn strict_mode_names_the_walker() {
    let report = until_stray_writes(&["--protocol", "no-grace-period", "--strict"]);
    assert!(number(&report, "/violations/trapped") > 0);
    let list = report["violations"]["list"].as_array().unwrap();
    let trapped = list.iter().find(|row| row["what"] == "stray write trapped").unwrap();
    assert!(trapped["walker"].as_str().unwrap().ends_with("walker"), "{trapped}");
    // And with the right protocol it has nothing to say.
    let report = json(replay().arg("--json").args(["--seconds", "1", "--strict"]).assert().success());
    assert_eq!(number(&report, "/violations/trapped"), 0);
}

#[test]
fn layouts_are_repeated_to_the_size_asked_for() {
    let report =
        json(replay().arg("--json").args(["--memory", "60G", "--seconds", "0.3"]).assert().success());
    assert_eq!(number(&report, "/pages"), 60 << 18);
    assert_eq!(number(&report, "/tiles"), 3);
    assert_eq!(number(&report, "/violations/total"), 0);
    let report =
        json(replay().arg("--json").args(["--memory", "100M", "--seconds", "0.1"]).assert().success());
    assert_eq!(number(&report, "/pages"), 100 << 8);
}

#[test]
fn a_petabyte_of_free_memory_is_cheap() {
    let mut command = pagefold();
    command.args(["replay", "--memory", "1P", "--all-free", "--seconds", "0.2", "--json"]);
    let report = json(command.assert().success());
    assert_eq!(number(&report, "/pages"), 1 << 38);
    let total = |kind: &str| -> u64 {
        ["map", "page_tables", "classes", "allocator"]
            .iter()
            .map(|part| number(&report, &format!("/folded/{part}/{kind}")))
            .sum()
    };
    assert!(total("smaps") < 64 << 20 && total("pagemap") < 64 << 20, "{report:#}");
}

#[test]
fn ctrl_c_ends_it_with_the_result_so_far() {
    use std::io::Read;
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("pagefold"))
        .args(["replay", "--sample", "--seconds", "1000", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The handler is installed before the walkers start: wait for their threads.
    wait_for_threads(&mut child, 5);
    // SAFETY: a signal to our own child.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert!(child.wait().unwrap().success());
    let report: Value = serde_json::from_slice(&output).unwrap();
    assert!(report["lived_seconds"].as_f64().unwrap() < 999.0);
}
