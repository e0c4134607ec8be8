//! `pagefold report`: what other hosts' files say, this host without root, and the engine against what the report computes.

mod common;

use std::fs;

use common::{Nobody, json, pagefold, replay, roots};
use pagefold_machine::{Flags, Header, Machine, MemoryRange, Run, flags, snapshot};
use predicates::prelude::*;
use serde_json::Value;

const PAGE: u64 = 4096;

fn report_root(name: &str) -> Value {
    let mut command = pagefold();
    command.args(["report", "--json", "--root"]).arg(roots::root(name));
    json(command.assert().success())
}

fn bytes(figure: &Value) -> u64 {
    figure["bytes"].as_u64().unwrap_or_else(|| panic!("{figure} is no figure"))
}

fn interval(interval: &Value) -> (u64, u64) {
    (interval["min"].as_u64().unwrap(), interval["max"].as_u64().unwrap())
}

/// The row in which `key` is `value`.
fn row<'a>(rows: &'a Value, key: &str, value: impl Into<Value>) -> &'a Value {
    let value = value.into();
    rows.as_array()
        .unwrap()
        .iter()
        .find(|row| row[key] == value)
        .unwrap_or_else(|| panic!("no {value}: {rows}"))
}

#[test]
fn a_host_whose_kernel_counts_tells_what_hvo_saved() {
    let report = report_root("host-hvo");
    // 20,000 of 20,480 pages of 2 MiB are optimised, and all four of 1 GiB.
    let (saved, all) = (20_000 * 7 + 4 * 4095, 20_480 * 7 + 4 * 4095);
    assert_eq!(bytes(&report["descriptors"]), ((64 << 30) / 64) - saved * PAGE);
    assert_eq!(report["descriptors"]["how"], "counted");
    assert_eq!(interval(&report["hvo"]["saved"]).1, saved * PAGE);
    assert_eq!(interval(&report["hvo"]["left"]).0, (all - saved) * PAGE);
    // Blocks of 2 GiB may have holes: here 98 pages below 1 MiB, which is 2 pages of descriptors at most.
    let (least, most) = interval(&report["hvo"]["saved"]);
    assert!(most - least <= 2 * PAGE, "{least} to {most}");
    assert_eq!(report["hvo"]["state"], "on");
    assert_eq!(report["partial"], false);
    let huge = row(&report["huge_pages"], "size", 2 << 20);
    assert_eq!((bytes(&huge["descriptors"]), bytes(&huge["with_hvo"])), (640 << 20, 80 << 20));
    assert_eq!(bytes(&row(&report["places"], "place", "boot")["descriptors"]), 105_000 * PAGE);
}

#[test]
fn without_a_count_there_is_an_interval_by_node() {
    let report = report_root("numa");
    let most = 1500 * 7 * PAGE;
    assert_eq!(interval(&report["hvo"]["saved"]), (0, most));
    assert_eq!(report["descriptors_counted"], Value::Null);
    assert_eq!(report["descriptors"]["how"], "computed");
    let nodes = &report["nodes"];
    let node = |id: u64| interval(&row(nodes, "node", id)["descriptors"]);
    assert_eq!(node(0), ((128 << 20) - 1000 * 7 * PAGE, 128 << 20));
    assert_eq!(node(1), ((128 << 20) - 500 * 7 * PAGE, 128 << 20));
    let output = pagefold().args(["report", "--root"]).arg(roots::root("numa")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace('\n', " ");
    assert!(text.contains("HVO saves 0 B to 41.0 MiB of it now."), "{text}");
}

#[test]
fn one_plugged_sub_block_has_2016_kib_of_descriptors_behind_fake_offline_pages() {
    let root = roots::copy("guest-virtio-mem");
    let block = 1 << 15;
    let first = 1 << 20;
    roots::write_pages(
        root.path(),
        first + 3 * block,
        &[
            (1..160, flags::RESERVED),
            (256..4096, flags::SLAB),
            (4096..block * 8, flags::BUDDY),
            (first..first + block, flags::BUDDY),
            (first + block..first + block + 512, flags::BUDDY),
            (first + block + 512..first + 2 * block, flags::OFFLINE),
            // The third block is offline, and Linux 6.18 says nothing of its pages.
        ],
    );
    let mut command = pagefold();
    command.args(["report", "--json", "--scan", "--root"]).arg(root.path());
    let report = json(command.assert().success());
    assert_eq!(bytes(&report["offline"]["memory"]), 32_256 * PAGE);
    assert_eq!(bytes(&report["offline"]["descriptors"]), 2016 << 10);
    assert_eq!(report["offline"]["blocks"], 1);
    let blocks = &report["blocks"]["list"];
    assert_eq!(row(blocks, "block", 32)["offline"], 0);
    assert_eq!(row(blocks, "block", 33)["offline"], 32_256 * PAGE);
    assert_eq!(row(blocks, "block", 33)["offline_descriptors"], 2016 << 10);
    assert_eq!(row(blocks, "block", 34)["state"], "offline");
    // Eight blocks at boot, three later: the kernel's count is the sum.
    assert_eq!(bytes(&report["descriptors"]), 11 * (2 << 20));
    assert_eq!(interval(&report["descriptors_computed"]), (11 * (2 << 20), 11 * (2 << 20)));
    // Folding keeps the map pages of 3,840 slab pages, and of what is reserved below.
    let slab = row(&report["states"], "state", "slab");
    assert_eq!(slab["folded"], 60 * PAGE);
    assert!(interval(&report["folding"]["descriptors"]).1 < 70 * PAGE);
    let text = pagefold().args(["report", "--blocks", "--root"]).arg(root.path()).assert().success();
    text.stdout(
        predicate::str::contains("33 (online, Movable, node 0)").and(predicate::str::contains("1.97 MiB")),
    );
}

#[test]
fn pages_of_64_kib() {
    let report = report_root("arm64-64k");
    assert_eq!(report["machine"]["page_size"], 65_536);
    assert_eq!(report["machine"]["page_size_from"], "counters");
    assert_eq!(report["machine"]["descriptor_size_known"], false);
    assert_eq!(bytes(&report["descriptors"]), 7 << 20);
    assert_eq!(report["hvo"]["state"], "unsupported");
    // So nothing is left for it to save; pages of 512 MiB have 8 pages of descriptors, of 64 KiB each.
    assert_eq!(interval(&report["hvo"]["left"]), (0, 0));
    assert_eq!(bytes(&row(&report["huge_pages"], "size", 512 << 20)["with_hvo"]), 2 * 65_536);
    // Page states cannot be read there, which is said, and is an error only if asked for.
    let scan = pagefold().args(["report", "--scan", "--root"]).arg(roots::root("arm64-64k")).assert().code(3);
    scan.stdout(predicate::str::contains("! /proc/kpageflags").and(predicate::str::contains("4 KiB")));
}

#[test]
fn sparse_and_huge_layouts() {
    // A gigabyte at the bottom and one at the very top of what page numbers can name, most of it huge pages.
    let (gigabyte, top) = (1u64 << 18, (1u64 << 40) - (1 << 18));
    let memory = [0, top].map(|start| MemoryRange { start, end: start + gigabyte }).to_vec();
    let run = |start, len, flags| Run { start, len, flags: Flags(flags), count: 0 };
    let runs = vec![
        run(0, gigabyte, flags::BUDDY),
        run(top, 1, flags::HUGE | flags::COMPOUND_HEAD),
        run(top + 1, gigabyte - 1, flags::HUGE | flags::COMPOUND_TAIL),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("machine.pgf");
    let machine = Machine { header: Header { page_size: 4096, memory, ..Header::default() }, runs };
    snapshot::write(&machine, fs::File::create(&file).unwrap()).unwrap();
    let report = json(pagefold().args(["report", "--json"]).arg(&file).assert().success());
    assert_eq!((bytes(&report["descriptors"]), bytes(&report["memory"])), (32 << 20, 2 << 30));
    assert_eq!(interval(&report["folding"]["descriptors"]), (PAGE, PAGE));
    assert_eq!(interval(&report["hvo"]["left"]).1, 4095 * PAGE);

    // 64 TiB in blocks of 2 GiB, a tenth of them there.
    let root = roots::copy("host-hvo");
    let blocks = root.path().join("sys/devices/system/memory");
    for id in (1000..32_768).step_by(50) {
        fs::create_dir(blocks.join(format!("memory{id}"))).unwrap();
        fs::write(blocks.join(format!("memory{id}/state")), "offline\n").unwrap();
    }
    let mut command = pagefold();
    command.args(["report", "--json", "--root"]).arg(root.path());
    let report = json(command.assert().success());
    assert_eq!(report["blocks"]["list"].as_array().unwrap().len(), 33 + 636 - 1);
    // The kernel's count cannot be right now, and is not believed.
    assert_eq!(row(&report["checks"], "name", "descriptors")["agrees"], false);
    assert_eq!(report["descriptors"]["how"], "computed");
}

#[test]
fn what_the_report_computes_of_folding_the_engine_does() {
    let report = json(pagefold().args(["report", "--sample", "--json"]).assert().success());
    let replayed = json(replay().args(["--seconds", "0.1", "--json"]).assert().success());
    let map = replayed["folded"]["map"]["counted"].as_u64().unwrap();
    assert_eq!(interval(&report["folding"]["descriptors"]), (map, map));
    for replayed in replayed["states"].as_array().unwrap() {
        if let Some(name) = replayed["state"].as_str().filter(|name| !name.starts_with("holes")) {
            let reported = row(&report["states"], "state", name);
            for (mine, its) in [("folded", "pagefold_bytes"), ("pages", "pages"), ("with_hvo", "hvo_bytes")] {
                assert_eq!(reported[mine], replayed[its], "{name}: {mine}");
            }
        }
    }
    // What else the engine needs, the report says at least.
    let tables = bytes(&report["folding"]["tables"]);
    let others: u64 = ["classes", "allocator", "page_tables"]
        .iter()
        .map(|part| replayed["folded"][*part]["counted"].as_u64().unwrap())
        .sum();
    assert!(others <= tables, "{others} and {tables}");
}

#[test]
fn nothing_is_called_measured_that_was_not() {
    for name in roots::ALL {
        assert!(!report_root(name).to_string().contains("\"how\":\"measured\""), "{name}");
    }
}

#[test]
fn a_threshold_has_an_exit_code_of_its_own() {
    let fail_over = |limit: &str, code: i32| {
        let mut command = pagefold();
        command.args(["report", "--fail-over", limit, "--root"]).arg(roots::root("numa"));
        command.assert().code(code);
    };
    fail_over("1%", 10);
    fail_over("1.6%", 0);
    fail_over("101%", 2);
    // It outweighs that something is missing.
    let root = roots::copy("numa");
    fs::write(root.path().join("proc/buddyinfo"), "rubbish").unwrap();
    let run = |args: &[&str]| pagefold().args(args).arg("--root").arg(root.path()).assert();
    run(&["report"]).code(3);
    run(&["report", "--fail-over", "1%"]).code(10);
}

#[test]
fn units() {
    let run = |unit: &str| pagefold().args(["report", "--sample", unit]).assert().success();
    run("--si").stdout(predicate::str::starts_with("Page metadata costs 403 MB of 25.8 GB"));
    run("--bytes").stdout(predicate::str::starts_with("Page metadata costs 402653184 bytes of"));
    pagefold().args(["report", "--sample", "--si", "--bytes"]).assert().code(2);
}

#[test]
fn everybody_can_ask_on_this_host() {
    let nobody = Nobody::new();
    let output = nobody.run(&["report", "--json"]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(if report["partial"] == true { 3 } else { 0 }), "{report}");
    assert_eq!(report["machine"]["scanned"], false);
    let (descriptors, memory) = (bytes(&report["descriptors"]), bytes(&report["memory"]));
    assert!(descriptors > memory / 512 && descriptors < memory / 16, "{descriptors} of {memory}");
    // Asked for what only root may read, it says so.
    let output = nobody.run(&["report", "--scan"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stdout).unwrap().contains("! /proc/kpageflags"));
}

#[test]
fn a_root_without_a_host_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = || pagefold().args(["report", "--root"]).arg(dir.path()).assert().code(1).stdout("");
    run().stderr(predicate::str::contains("no directory 'proc'"));
    fs::create_dir(dir.path().join("proc")).unwrap();
    run().stderr(predicate::str::contains("how much memory"));
    pagefold()
        .args(["report", "/does/not/exist.pgf"])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("exist.pgf"));
    pagefold().args(["report", "--sample", "--root", "/"]).assert().code(2);
}
