//! `pagefold diff`: two machines, made up so that everything happens between them.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use common::machines::{Runs, every_state, header};
use common::{json, pagefold};
use pagefold_machine::{Machine, ZoneRecord, flags, snapshot};
use serde_json::Value;

struct Pair {
    _dir: tempfile::TempDir,
    a: PathBuf,
    b: PathBuf,
}

fn recorded(a: &Machine, b: &Machine) -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, machine: &Machine| {
        let path = dir.path().join(name);
        snapshot::write(machine, File::create(&path).unwrap()).unwrap();
        path
    };
    let (a, b) = (write("a.pgf", a), write("b.pgf", b));
    Pair { _dir: dir, a, b }
}

const SECTION: u64 = 1 << 15;

/// Two sections each, one of them in both; a huge page that was split; memory that was taken, freed, unplugged, broken.
fn before_and_after() -> Pair {
    let zones =
        vec![ZoneRecord { name: "Normal".into(), spanned: 4 * SECTION, present: 1, ..ZoneRecord::default() }];
    let mut a = Runs(Vec::new(), 0);
    a.folios(2, 9, flags::ANON).add(1000, flags::LRU, 0).add(2 * SECTION - 2024, flags::BUDDY, 0);
    let mut a = Machine { header: header(&[(0, 2 * SECTION)]), runs: a.0 };
    let mut b = Runs(Vec::new(), SECTION);
    b.add(1000, flags::BUDDY, 0).add(SECTION - 2000, flags::ANON, 1).add(999, flags::OFFLINE, 0);
    b.add(1, flags::HWPOISON, 0).folios(3, 4, flags::SLAB).add(SECTION - 48, flags::BUDDY, 0);
    let mut b = Machine { header: header(&[(SECTION, 3 * SECTION)]), runs: b.0 };
    for (machine, note) in [(&mut a, "first"), (&mut b, "then")] {
        machine.header.zones = zones.clone();
        machine.header.recorded = 1_700_000_000;
        machine.header.note = note.into();
        machine.header.kernel = "6.12.1".into();
    }
    recorded(&a, &b)
}

fn diff(pair: &Pair, args: &[&str]) -> assert_cmd::assert::Assert {
    // Relative names, so that what is printed does not depend on where it runs.
    let dir = pair.a.parent().unwrap();
    pagefold().current_dir(dir).args(["diff", "a.pgf", "b.pgf"]).args(args).assert()
}

fn text(assert: assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.success().get_output().stdout.clone()).unwrap()
}

#[test]
fn the_tables_and_the_map() {
    insta::assert_snapshot!("before_and_after", text(diff(&before_and_after(), &["--map"])));
}

#[test]
fn json_sums_to_both_machines() {
    let report = json(diff(&before_and_after(), &["--json"]).success());
    let sum = |rows: &Value, field: &str| -> u64 {
        rows.as_array().unwrap().iter().map(|row| row[field].as_u64().unwrap()).sum()
    };
    for side in ["a", "b"] {
        assert_eq!(report[side]["pages"], 2 * SECTION);
        let all = sum(&report["states"], &format!("{side}_pages"));
        // "Not there" included, both have all pages that either has.
        assert_eq!(all, 3 * SECTION);
    }
    assert_eq!(report["only_in_a"], SECTION);
    assert_eq!(report["only_in_b"], SECTION);
    let changed = sum(&report["changes"], "pages");
    assert_eq!(report["changed_pages"], changed);
    assert_eq!(sum(&report["states"], "gained_pages"), changed);
    assert_eq!(sum(&report["states"], "lost_pages"), changed);
    let change = |from: &str, to: &str| {
        let mut changes = report["changes"].as_array().unwrap().iter();
        changes
            .find(|change| change["from"] == from && change["to"] == to)
            .map(|change| change["pages"].clone())
    };
    assert_eq!(change("free", "poisoned"), Some(1.into()));
    assert_eq!(change("free", "offline"), Some(999.into()));
    assert_eq!(change("free", "anonymous"), Some((SECTION - 2000).into()));
    assert_eq!(change("not there", "slab"), Some(48.into()));
    assert_eq!(change("anonymous", "not there"), Some(1024.into()));
}

#[test]
fn exit_codes_are_those_of_git_and_on_request_of_diff() {
    let pair = before_and_after();
    diff(&pair, &[]).code(0);
    diff(&pair, &["--exit-code"]).code(1);
    let (machine, _) = every_state();
    let same = recorded(&machine, &machine);
    let unchanged = text(diff(&same, &["--exit-code"]));
    assert!(unchanged.contains(" 0 (0 B, 0 %) are in another state"), "{unchanged}");
    let broken = recorded(&machine, &machine);
    fs::write(&broken.b, "hello").unwrap();
    for (args, code) in [(&["--exit-code"][..], 2), (&[], 1)] {
        let output = diff(&broken, args).code(code).get_output().clone();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("b.pgf") && stderr.lines().count() == 1, "{stderr}");
        assert!(output.stdout.is_empty());
    }
    pagefold().arg("diff").assert().code(2);
}

#[test]
fn pictures_are_written() {
    let pair = before_and_after();
    let dir = pair.a.parent().unwrap();
    for layout in ["linear", "hilbert"] {
        let said = text(diff(&pair, &["--svg", "d.svg", "--png", "d.png", "--layout", layout]));
        assert!(said.contains("d.svg: ") && said.contains("folios of"), "{said}");
        let svg = fs::read_to_string(dir.join("d.svg")).unwrap();
        roxmltree::Document::parse(&svg).unwrap();
        for words in ["taken", "unplugged", "newly poisoned"] {
            assert!(svg.contains(words), "{words}");
        }
        assert!(fs::read(dir.join("d.png")).unwrap().starts_with(b"\x89PNG"));
    }
    let svg = text(diff(&pair, &["--svg", "-"]));
    assert!(roxmltree::Document::parse(&svg).is_ok(), "nothing but the picture");
}

#[test]
fn machines_without_memory_are_alike() {
    let empty = Machine { header: header(&[]), runs: Vec::new() };
    diff(&recorded(&empty, &empty), &["--map", "--exit-code"]).code(0);
}

#[test]
fn the_second_machine_is_this_one() {
    let (machine, _) = every_state();
    let pair = recorded(&machine, &machine);
    let alone = |path: &Path| pagefold().arg("diff").arg(path).arg("--json").assert();
    if rustix::process::geteuid().is_root() {
        assert_eq!(json(alone(&pair.a).success())["b"]["origin"], "this host");
    } else {
        alone(&pair.a).code(1).stderr(predicates::str::contains("run as root"));
    }
}

#[test]
fn amounts_are_in_the_units_asked_for() {
    let pair = before_and_after();
    let first = |args: &[&str]| {
        let output = pagefold().arg("diff").args([&pair.a, &pair.b]).args(args).assert().success();
        let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        text.lines().next().unwrap().to_owned()
    };
    assert!(first(&[]).contains("256 MiB"), "{}", first(&[]));
    assert!(first(&["--si"]).contains("268 MB"), "{}", first(&["--si"]));
    assert!(first(&["--bytes"]).contains("268435456"), "{}", first(&["--bytes"]));
}
