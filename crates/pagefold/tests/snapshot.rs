//! This machine, recorded and replayed. Reading it needs root, as `/proc/kpageflags` does; without, the tests check what
//! must happen then.

mod common;

use std::fs;

use common::{json, pagefold};
use predicates::prelude::*;

#[test]
fn this_machine_is_recorded_and_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("here.pgf");
    if !rustix::process::geteuid().is_root() {
        // Then this is what must happen instead.
        let refused = pagefold().arg("snapshot").arg(&file).assert().code(1);
        refused.stderr(predicate::str::contains("run as root"));
        return;
    }
    pagefold()
        .arg("snapshot")
        .arg(&file)
        .args(["--note", "a test"])
        .assert()
        .success()
        .stdout(predicate::str::contains("pages in"));
    let size = fs::metadata(&file).unwrap().len();
    assert!(size > 1000 && size < 64 << 20, "{size}");
    let mut command = pagefold();
    command.args(["replay", "--seconds", "0.3", "--json", "--snapshot"]).arg(&file);
    let report = json(command.assert().success());
    assert_eq!(report["note"], "a test");
    let total = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = total.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    let pages = report["pages"].as_u64().unwrap();
    assert!(pages * 4 >= total, "{pages} pages, MemTotal {total} kB");
    // A second one does not destroy the first.
    pagefold().arg("snapshot").arg(&file).assert().code(1).stderr(predicate::str::contains("--force"));
    assert_eq!(fs::metadata(&file).unwrap().len(), size);
    pagefold()
        .arg("snapshot")
        .arg(&file)
        .args(["--force", "--note", "a \x1b[31mred\nnote"])
        .assert()
        .success();
    // What steers terminals is not printed.
    let replay = pagefold().args(["replay", "--seconds", "0.1", "--snapshot"]).arg(&file).assert().success();
    replay.stdout(predicate::str::contains("a \u{fffd}[31mred\u{fffd}note\n"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half-written is left behind");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let refused = pagefold().args(["snapshot", "/does/not/exist/here.pgf"]).assert().code(1);
    if rustix::process::geteuid().is_root() {
        refused.stderr(predicate::str::contains("/does/not/exist/here.pgf"));
    }
}

#[test]
fn this_host_is_replayed_by_default() {
    let report = json(pagefold().args(["replay", "--seconds", "0.3", "--json"]).assert().success());
    let is_root = rustix::process::geteuid().is_root();
    assert_eq!(report["origin"], if is_root { "this host" } else { "the built-in sample" });
    assert_eq!(report["violations"]["total"], 0);
}
