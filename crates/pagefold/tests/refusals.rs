//! What the command does where it cannot do what was asked: one clear line, an exit code, nothing half-done.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use common::{Nobody, binary, pagefold, replay};
use predicates::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

const SAMPLE: &[u8] = include_bytes!("../sample.pgf");

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// One line on stderr that says this, and exit code 1.
fn refused(output: &Output, says: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(says), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(output.stdout.is_empty());
}

fn replay_file(bytes: &[u8]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("machine.pgf");
    fs::write(&path, bytes).unwrap();
    pagefold().args(["replay", "--seconds", "0.1", "--snapshot"]).arg(path).output().unwrap()
}

#[test]
fn broken_snapshots() {
    refused(&replay_file(b""), "not a Pagefold snapshot");
    refused(&replay_file(b"#!/bin/sh\necho hello, world\n"), "not a Pagefold snapshot");
    refused(&replay_file(&SAMPLE[..SAMPLE.len() / 2]), "cut off");
    let mut damaged = SAMPLE.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    refused(&replay_file(&damaged), "damaged");
    let mut newer = SAMPLE.to_vec();
    newer[8] = 77;
    refused(&replay_file(&newer), "version 77");
    let missing = pagefold().args(["replay", "--snapshot", "/does/not/exist.pgf"]).output().unwrap();
    refused(&missing, "/does/not/exist.pgf");
    let directory = pagefold().args(["replay", "--snapshot", "/tmp"]).output().unwrap();
    refused(&directory, "/tmp");
}

#[test]
fn absurd_sizes() {
    for size in ["0", "4095", "-1", "5P", "1e99T", "lots", ""] {
        replay()
            .args([format!("--memory={size}")])
            .assert()
            .code(2)
            .stderr(predicate::str::contains("--memory"));
    }
    for seconds in ["-1", "nan", "x"] {
        replay().args([format!("--seconds={seconds}")]).assert().code(2);
    }
    let output = replay().args(["--memory", "4P", "--seconds", "0.1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("pagefold: "), "{}", stderr(&output));
}

#[test]
fn more_than_the_machine_can_hold() {
    let output = replay().args(["--memory", "64T", "--seconds", "0.1"]).output().unwrap();
    refused(&output, "choose at most --memory");
}

#[test]
fn contradictory_arguments() {
    replay().args(["--snapshot", "x.pgf"]).assert().code(2);
    pagefold().args(["replay", "--all-free"]).assert().code(2).stderr(predicate::str::contains("--memory"));
    replay().args(["--all-free", "--memory", "1G"]).assert().code(2);
    pagefold().assert().code(2).stderr(predicate::str::contains("Usage"));
}

#[test]
fn help_has_examples() {
    for command in [&["--help"][..], &["replay", "--help"], &["snapshot", "--help"]] {
        let help = pagefold().args(command).assert().success();
        help.stdout(predicate::str::contains("Examples:"));
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let script = format!("{} replay --sample --seconds 0.1 | head -n 1", binary());
    let output = Command::new("bash").args(["-c", &format!("set -o pipefail; {script}")]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
}

// ---- limits --------------------------------------------------------------------------------------------------------

#[test]
fn too_little_address_space() {
    let script = format!("ulimit -v 300000; exec {} replay --sample --seconds 0.1", binary());
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    refused(&output, "ulimit -v");
}

#[test]
fn without_root_the_sample_stands_in() {
    let nobody = Nobody::new();
    let output = nobody.run(&["replay", "--seconds", "0.1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("built-in sample"), "{}", stderr(&output));
    let output = nobody.run(&["snapshot", "/tmp/never.pgf"]);
    refused(&output, "run as root");
    assert!(!std::path::Path::new("/tmp/never.pgf").exists());
}

// ---- kernels without some system call ------------------------------------------------------------------------------

/// Runs the command as on a kernel where `syscall` (with `argument`, if given) fails with `errno`.
fn without(syscall: i64, argument: Option<(u8, u64)>, errno: i32, args: &[&str]) -> Output {
    let rules = match argument {
        None => vec![],
        Some((index, value)) => {
            let condition =
                SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap();
            vec![SeccompRule::new(vec![condition]).unwrap()]
        }
    };
    let filter = SeccompFilter::new(
        BTreeMap::from([(syscall, rules)]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    let mut command = Command::new(binary());
    command.args(args);
    // SAFETY: between fork and exec only two system calls are made.
    unsafe {
        command.pre_exec(move || seccompiler::apply_filter(&program).map_err(std::io::Error::other));
    }
    command.output().unwrap()
}

const SHORT: [&str; 4] = ["replay", "--sample", "--seconds", "0.2"];

fn degraded(output: &Output, says: &str) {
    let text = stderr(output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(says) && text.lines().count() == 1, "{text}");
}

#[test]
fn without_membarrier_fences_stand_in() {
    degraded(&without(libc::SYS_membarrier, None, libc::ENOSYS, &SHORT), "fences");
    let asked = [&SHORT[..], &["--rcu", "membarrier"]].concat();
    refused(&without(libc::SYS_membarrier, None, libc::ENOSYS, &asked), "--rcu fences");
}

#[test]
fn without_threads_no_workload_begins() {
    refused(&without(libc::SYS_clone3, None, libc::EAGAIN, &SHORT), "no thread for a walker or an owner");
}

#[test]
fn without_process_madvise_folds_go_one_by_one() {
    degraded(&without(libc::SYS_process_madvise, None, libc::ENOSYS, &SHORT), "process_madvise");
    // An older kernel has the call, but not for this advice.
    degraded(&without(libc::SYS_process_madvise, None, libc::EINVAL, &SHORT), "process_madvise");
}

#[test]
fn without_pagemap_scan_the_page_map_is_read() {
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    let output = without(libc::SYS_ioctl, Some((1, PAGEMAP_SCAN)), libc::ENOTTY, &SHORT);
    degraded(&output, "PAGEMAP_SCAN");
}

#[test]
fn without_populate_the_platform_is_refused() {
    let populate = Some((2, libc::MADV_POPULATE_WRITE as u64));
    refused(&without(libc::SYS_madvise, populate, libc::EINVAL, &SHORT), "MADV_POPULATE_WRITE");
}

#[test]
fn without_userfaultfd_there_is_no_strict_mode() {
    let strict = [&SHORT[..], &["--strict"]].concat();
    refused(&without(libc::SYS_userfaultfd, None, libc::EPERM, &strict), "userfaultfd");
}

#[test]
fn some_options_are_about_descriptors_of_64_bytes() {
    for about in [&["--strict"][..], &["--protocol", "refcount-first"], &["--protocol", "writable-tails"]] {
        let output = replay().args(["--descriptors", "memdesc"]).args(about).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{about:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("leave "), "{output:?}");
    }
}

#[test]
fn strict_mode_has_a_largest_machine() {
    let output = replay().args(["--memory", "1T", "--strict", "--seconds", "0.1"]).output().unwrap();
    refused(&output, "smaller machine");
}
