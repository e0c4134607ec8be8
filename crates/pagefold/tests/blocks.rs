//! `pagefold report --block`, and blocks in columns.

mod common;

use std::fs;
use std::path::Path;

use common::{json, pagefold, roots};
use pagefold_machine::flags::{ANON, BUDDY, HUGE, LRU, NOPAGE, OFFLINE, RESERVED, SLAB};
use predicates::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

/// Pages in a block.
const BLOCK: u64 = 1 << 15;

/// Four blocks of 128 MiB, all online in one zone, with these pages.
fn machine(runs: &[(std::ops::Range<u64>, u64)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| write(root.path(), path, text.as_bytes());
    write("proc/meminfo", "MemTotal: 524288 kB\nMemFree: 1024 kB\nActive(file): 400 kB\n");
    write("proc/vmstat", "nr_free_pages 256\nnr_active_file 100\n");
    write("proc/iomem", "00000000-1fffffff : System RAM\n");
    write("sys/devices/system/memory/block_size_bytes", "8000000\n");
    for block in 0..4 {
        write(&format!("sys/devices/system/memory/memory{block}/state"), "online\n");
        write(&format!("sys/devices/system/memory/memory{block}/valid_zones"), "Normal\n");
    }
    roots::write_pages(root.path(), 4 * BLOCK, runs);
    root
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn ask(root: &TempDir, block: &str) -> Value {
    let mut command = pagefold();
    command.args(["report", "--json", "--block", block, "--root"]).arg(root.path());
    json(command.assert().success())
}

fn pages(answer: &Value, state: &str) -> u64 {
    let rows = answer["states"].as_array().unwrap();
    rows.iter().find(|row| row["state"] == state).map_or(0, |row| row["pages"].as_u64().unwrap())
}

fn says(answer: &Value, words: &str) -> bool {
    answer["reasons"].as_array().unwrap().iter().any(|reason| reason.as_str().unwrap().contains(words))
}

#[test]
fn what_cannot_move_is_named_with_where_it_lies() {
    let first = BLOCK;
    let root = machine(&[
        (0..4 * BLOCK, BUDDY),
        (first..first + 100, LRU | ANON),
        (first + 200..first + 207, SLAB),
        (first + 300..first + 303, RESERVED),
    ]);
    let answer = ask(&root, "memory1");
    assert_eq!(answer["can"], "no");
    let sums = ["free", "anonymous", "slab", "reserved"].map(|state| pages(&answer, state));
    assert_eq!(sums, [BLOCK - 110, 100, 7, 3]);
    assert!(says(&answer, "7 pages are slab") && says(&answer, "3 pages were reserved"));
    assert_eq!(answer["stuck"][0]["pfn"], first + 200);
    assert_eq!((&answer["stuck_ranges"], &answer["address"]), (&2.into(), &(128 << 20).into()));
    // The block beside it has nothing of that.
    let free = ask(&root, "2");
    assert_eq!((&free["can"], free["stuck"].as_array().unwrap().len()), (&"yes".into(), 0));
    let text = pagefold().args(["report", "--block", "1", "--root"]).arg(root.path()).assert().success();
    text.stdout(predicate::str::contains("Memory block 1 cannot be taken offline as it is."));
}

#[test]
fn holes_huge_pages_and_offline_pages_have_their_own_reasons() {
    let root = machine(&[
        (0..4 * BLOCK, BUDDY),
        (5..9, NOPAGE),
        (BLOCK..BLOCK + 512, HUGE),
        (2 * BLOCK..2 * BLOCK + 64, OFFLINE),
    ]);
    let hole = ask(&root, "0");
    assert!(says(&hole, "a hole of 4 pages") && hole["can"] == "no");
    let offline = ask(&root, "2");
    assert!(says(&offline, "64 pages are offline already") && offline["can"] == "unknown");
    assert_eq!(ask(&root, "1")["can"], "yes");
}

#[test]
fn owners_are_found_where_files_tell() {
    let root = machine(&[
        (0..4 * BLOCK, BUDDY),
        (BLOCK + 10..BLOCK + 13, LRU | ANON),
        (BLOCK + 20..BLOCK + 22, SLAB),
    ]);
    write(root.path(), "proc/77/comm", b"database\n");
    write(root.path(), "proc/77/maps", b"00010000-00014000 rw-p 00000000 fe:00 5   /srv/data\n");
    // Three words: two of its pages lie in the block, one elsewhere.
    let mut pagemap = vec![0u8; 0x14 * 8];
    for (page, pfn) in [(0x10, BLOCK + 10), (0x11, BLOCK + 11), (0x12, 7)] {
        pagemap[page * 8..][..8].copy_from_slice(&(1u64 << 63 | pfn).to_ne_bytes());
    }
    write(root.path(), "proc/77/pagemap", &pagemap);
    let owner = format!(
        "Page allocated via order 1, mask 0x0, pid 1, tgid 1 (init), ts 5 ns\nPFN 0x{:x} type Unmovable\n \
         __alloc_pages+0x1/0x2\n __d_alloc+0x2c/0x1e0\n\n",
        BLOCK + 20
    );
    let without = ask(&root, "1");
    let text = |answer: &Value| answer["not_found"].to_string();
    assert!(text(&without).contains("page_owner=on at boot"));
    write(root.path(), "sys/kernel/debug/page_owner", owner.as_bytes());
    let answer = ask(&root, "1");
    let mapped = &answer["mapped"][0];
    assert_eq!(
        (&mapped["owner"], &mapped["what"], &mapped["pages"]),
        (&"database (77)".into(), &"/srv/data".into(), &2.into())
    );
    assert_eq!(answer["unmapped"], 1);
    assert_eq!(
        (&answer["allocated"][0]["owner"], &answer["allocated"][0]["what"]),
        (&"init (1)".into(), &"__d_alloc".into())
    );
    assert!(!text(&answer).contains("page_owner=on") && text(&answer).contains("pinned"));
}

#[test]
fn blocks_that_are_not_there_or_not_in_use_are_told() {
    let root = machine(&[(0..4 * BLOCK, BUDDY)]);
    let mut command = pagefold();
    let no = command.args(["report", "--block", "9", "--root"]).arg(root.path()).assert().code(2);
    no.stderr(predicate::str::contains("no memory block 9 (--block): it has 4 from 0 to 3"));
    write(root.path(), "sys/devices/system/memory/memory3/state", b"offline\n");
    assert!(says(&ask(&root, "3"), "offline already"));
    fs::remove_file(root.path().join("sys/devices/system/memory/memory2/valid_zones")).unwrap();
    write(root.path(), "sys/devices/system/memory/memory2/valid_zones", b"none\n");
    let several = ask(&root, "2");
    assert!(says(&several, "several zones") && several["can"] == "no");
    // That nothing tells its zone says nothing against a block.
    fs::remove_file(root.path().join("sys/devices/system/memory/memory1/valid_zones")).unwrap();
    let untold = ask(&root, "1");
    assert!(!says(&untold, "several zones") && untold["can"] == "yes", "{untold:#}");
    let mut command = pagefold();
    let report = command.args(["report", "--blocks", "--no-scan", "--root"]).arg(root.path()).assert();
    report.stdout(
        predicate::str::contains("2 (online, several zones").and(predicate::str::contains("1 (online)")),
    );
    // A snapshot has pages, and no owners.
    let sample = json(pagefold().args(["report", "--sample", "--json", "--block", "12"]).assert().success());
    assert_eq!(sample["size_known"], false);
    let beyond = pagefold().args(["report", "--sample", "--block", "65535"]).assert().code(2);
    beyond.stderr(predicate::str::contains("no zone of the machine has block 65535"));
    assert!(sample["not_found"].to_string().contains("only a live machine tells"));
}

#[test]
fn this_machines_blocks_are_looked_at() {
    let first = Path::new("/sys/devices/system/memory/memory0");
    if !first.exists() || !rustix::process::geteuid().is_root() {
        println!("left out: a block of this machine: it takes root, and memory hotplug");
        return;
    }
    let answer = json(pagefold().args(["report", "--json", "--block", "0"]).assert().success());
    let pages: u64 =
        answer["states"].as_array().unwrap().iter().map(|row| row["pages"].as_u64().unwrap()).sum();
    assert_eq!(pages * 4096, answer["size"].as_u64().unwrap());
    // The first megabyte of every PC is reserved, and has holes.
    assert_eq!(answer["can"], "no");
}

#[test]
fn blocks_are_listed_in_columns() {
    let list = |args: &[&str]| {
        let mut command = pagefold();
        command.args(["report", "--root"]).arg(roots::root("guest-virtio-mem")).args(args);
        String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
    };
    let ranges = list(&["-o", "RANGE,SIZE,STATE,BLOCK"]);
    assert!(ranges.starts_with("RANGE"), "{ranges}");
    let all = list(&["--blocks", "--output", "block,zones,descriptors"]);
    let blocks = json(
        pagefold()
            .args(["report", "--json", "--root"])
            .arg(roots::root("guest-virtio-mem"))
            .assert()
            .success(),
    );
    assert_eq!(all.lines().count(), 1 + blocks["blocks"]["list"].as_array().unwrap().len());
    assert!(ranges.lines().count() < all.lines().count());
    pagefold().args(["report", "-o", "COLOUR"]).assert().code(2);
    let none = pagefold().args(["report", "--sample", "-o", "BLOCK"]).assert().code(1);
    none.stderr(predicate::str::contains("no memory blocks to list"));
}
