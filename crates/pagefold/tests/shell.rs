//! What is said around the commands: topics, completions, man pages, help.

mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use common::pagefold;
use predicates::prelude::*;

/// All subcommands, as the help lists them.
fn subcommands() -> Vec<String> {
    let help = String::from_utf8(pagefold().arg("--help").output().unwrap().stdout).unwrap();
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect()
}

#[test]
fn every_subcommand_has_help_with_examples_and_a_man_page() {
    let dir = tempfile::tempdir().unwrap();
    pagefold().args(["man", "--output"]).arg(dir.path().join("man1")).assert().success().stdout("");
    let page = |name: String| fs::read_to_string(dir.path().join("man1").join(name)).unwrap();
    assert!(page("pagefold.1".into()).contains("pagefold\\-report(1)"));
    let subcommands = subcommands();
    assert!(subcommands.len() >= 8, "{subcommands:?}");
    for name in subcommands {
        let help = pagefold().args([&name, "--help"]).assert().success();
        help.stdout(predicate::str::contains("Examples:\n  pagefold "));
        assert!(page(format!("pagefold-{name}.1")).contains(".SH SYNOPSIS"), "{name}");
    }
    let one = pagefold().arg("man").output().unwrap().stdout;
    assert_eq!(one, fs::read(dir.path().join("man1/pagefold.1")).unwrap());
}

#[test]
fn exit_codes_are_documented() {
    for command in [&["--help"][..], &["report", "--help"], &["plan", "--help"], &["export", "--help"]] {
        let help = pagefold().args(command).assert().success();
        help.stdout(predicate::str::contains("Exit codes: 0 fine"));
    }
}

#[test]
fn completions_are_scripts_of_their_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = pagefold().args(["completions", shell]).assert().success();
        script.stdout(predicate::str::contains("fail-over"));
    }
    let script = pagefold().args(["completions", "bash"]).output().unwrap().stdout;
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&script).unwrap();
    assert!(bash.wait().unwrap().success());
    pagefold().args(["completions", "cmd"]).assert().code(2);
}

#[test]
fn topics() {
    let list = String::from_utf8(pagefold().arg("explain").output().unwrap().stdout).unwrap();
    for wanted in ["hvo", "fake-offline", "memmap_on_memory", "folding", "struct-page", "hotplug"] {
        assert!(
            list.lines().any(|line| line.split_whitespace().next() == Some(wanted)),
            "no {wanted} in\n{list}"
        );
    }
    for name in list.lines().map(|line| line.split_whitespace().next().unwrap()) {
        pagefold().args(["explain", name]).assert().success().stdout(predicate::str::contains("\n"));
    }
    let unknown = pagefold().args(["explain", "\x1b[31m"]).assert().code(2).stdout("");
    unknown.stderr(predicate::str::contains("there are").and(predicate::str::contains("\x1b").not()));
}

#[test]
fn results_have_no_colours() {
    let output = pagefold().args(["report", "--sample"]).env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(!output.stdout.contains(&0x1b));
    let help = pagefold().arg("--help").env("NO_COLOR", "1").output().unwrap();
    assert!(!help.stdout.contains(&0x1b));
}

#[test]
fn a_man_page_is_written_whole_or_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = pagefold().args(["man", "--output"]).arg(&file).assert().code(1);
    refused.stderr(predicate::str::contains("file is not a directory: name one"));
    // A page that cannot be written: the file system takes no file of its size.
    let pages = dir.path().join("pages");
    fs::create_dir(&pages).unwrap();
    let old = pages.join("pagefold-plan.1");
    fs::write(&old, "old").unwrap();
    let limited = format!(
        "ulimit -f 1; trap '' XFSZ; exec {} man --output {}",
        env!("CARGO_BIN_EXE_pagefold"),
        pages.display()
    );
    let done = Command::new("bash").args(["-c", &limited]).output().unwrap();
    assert!(!done.status.success(), "{done:?}");
    assert_eq!(fs::read(&old).unwrap(), b"old");
    assert!(fs::read_dir(&pages).unwrap().all(|page| page.unwrap().metadata().unwrap().len() > 0));
}
