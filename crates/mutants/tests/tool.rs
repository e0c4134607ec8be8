//! The tool on a small workspace of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const LIBRARY: &str = "\
pub fn double(number: u32) -> u32 {
    number * 2
}

pub const fn limit() -> u32 {
    17
}

pub fn until_done(mut number: u32) -> u32 {
    while number > 0 {
        number -= 1;
    }
    number
}

pub fn greeting() -> &'static str {
    \"hello\"
}
";

const TESTS: &str = "\
#[test]
fn twice() {
    assert_eq!(little::double(2), 4);
}
#[test]
fn seventeen() {
    assert_eq!(little::limit(), 17);
}
#[test]
fn ends() {
    assert_eq!(little::until_done(3), 0);
}
#[test]
fn broken() {
    assert_eq!(little::double(2), 5);
}
#[test]
fn friendly() {
    assert!(little::greeting().len() > 1);
}
";

const GOOD: &str = "
subject = 'numbers'
file = 'crates/little/src/lib.rs'

[[mutant]]
id = 'not-doubled'
old = 'number * 2'
new = 'number * 3'
breaks = 'The result is wrong.'
killed-by = 'little all twice'

[[mutant]]
id = 'another-limit'
old = '17'
new = '18'
breaks = 'The limit, in a constant function, is wrong.'
killed-by = 'little all seventeen'

[[mutant]]
id = 'added'
old = 'number * 2'
new = 'number + number'
breaks = 'Nothing.'
equivalent = 'Twice a number is the number added to itself.'
";

const PLANTED: &str = "
[[mutant]]
id = 'unfriendly'
old = '\"hello\"'
new = '\"go away\"'
breaks = 'The greeting.'
killed-by = 'little all friendly'
";

const ENDLESS: &str = "
[[mutant]]
id = 'endless'
old = 'number -= 1;'
new = 'number -= 0;'
breaks = 'It never ends.'
killed-by = 'little all ends'
hang = true
";

fn workspace(list: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"crates/little\"]\n");
    write("Cargo.lock", "version = 4\n\n[[package]]\nname = \"little\"\nversion = \"0.1.0\"\n");
    write(
        "crates/little/Cargo.toml",
        "[package]\nname = \"little\"\nversion = \"0.1.0\"\nedition = \"2024\"\n",
    );
    write("crates/little/src/lib.rs", LIBRARY);
    write("crates/little/tests/all.rs", TESTS);
    write("crates/model/mutants/little.toml", list);
    folder
}

fn tool(root: &Path, arguments: &[&str]) -> Output {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_pagefold-mutants"));
    tool.arg("--root").arg(root).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn every_mutant_that_is_noticed_is_told_and_the_source_stays_as_it_is() {
    let folder = workspace(GOOD);
    let output = tool(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("3 of 3 mutants"), "{}", said(&output));
    assert!(said(&output).contains("2 killed, 1 argued"), "{}", said(&output));
    assert_eq!(fs::read_to_string(folder.path().join("crates/little/src/lib.rs")).unwrap(), LIBRARY);
}

#[test]
fn a_planted_mutant_that_survives_ends_with_exit_code_1() {
    let folder = workspace(&format!("{GOOD}{PLANTED}"));
    let output = tool(folder.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let reports: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let outcome = |id: &str| reports.iter().find(|report| report["id"] == id).unwrap()["outcome"].clone();
    assert_eq!((outcome("unfriendly"), outcome("not-doubled")), ("survived".into(), "killed".into()));
    // Which test would notice it? None here.
    let search = tool(
        folder.path(),
        &["--only", "unfriendly", "not-doubled", "--against", "little all twice friendly"],
    );
    assert_eq!(search.status.code(), Some(1));
    assert!(said(&search).contains("unfriendly: 0 tests notice"), "{}", said(&search));
    assert!(said(&search).contains("not-doubled: 1 tests notice\n    little all twice"), "{}", said(&search));
}

#[test]
fn a_mutant_that_must_hang_is_ended() {
    let folder = workspace(&format!("subject = 's'\nfile = 'crates/little/src/lib.rs'\n{ENDLESS}"));
    let output = tool(folder.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("killed-by-timeout"), "{}", said(&output));
}

#[test]
fn what_does_not_apply_build_or_name_a_test_is_told_one_by_one() {
    let wrong = "
[[mutant]]
id = 'nowhere'
old = 'number * 4'
new = 'number * 3'
breaks = 'b'
killed-by = 'little all twice'

[[mutant]]
id = 'ambiguous'
old = 'number'
new = 'other'
breaks = 'b'
killed-by = 'little all twice'

[[mutant]]
id = 'no-program'
old = 'number * 2'
new = '\"two\"'
breaks = 'b'
killed-by = 'little all twice'

[[mutant]]
id = 'no-test'
old = 'number * 2'
new = 'number * 5'
breaks = 'b'
killed-by = 'little all thrice'

[[mutant]]
id = 'proves-nothing'
old = 'number * 2'
new = 'number * 6'
breaks = 'b'
killed-by = 'little all broken'
";
    let folder = workspace(&format!("{GOOD}{wrong}"));
    let output = tool(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for (id, outcome) in [
        ("nowhere", "does not apply"),
        ("ambiguous", "does not apply"),
        ("no-program", "does not build"),
        ("no-test", "no such test"),
        ("proves-nothing", "its test fails without a change"),
    ] {
        let line = said(&output).lines().find(|line| line.starts_with(id)).map(str::to_owned);
        assert!(line.as_ref().is_some_and(|line| line.contains(outcome)), "{id}: {}", said(&output));
    }
    assert!(said(&output).contains("2 killed"), "{}", said(&output));
    let check = tool(folder.path(), &["--check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(said(&check).contains("8 mutants, 2 of them without a place"), "{}", said(&check));
}

#[test]
fn a_seed_decides_the_order_and_shares_are_the_whole() {
    let folder = workspace(GOOD);
    for share in ["1/2", "2/2"] {
        let output = tool(folder.path(), &["--share", share, "--json"]);
        let reports: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(reports.len(), if share == "1/2" { 2 } else { 1 }, "{}", said(&output));
    }
    // No time at all: nothing is begun, and that is no failure.
    let output = tool(folder.path(), &["--seed", "7", "--budget", "0s"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("0 of 3 mutants"), "{}", said(&output));
    let output = tool(folder.path(), &["--only", "nobody"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("no mutant and no subject called \"nobody\""), "{}", said(&output));
}
