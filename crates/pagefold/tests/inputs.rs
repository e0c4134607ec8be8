//! Machines as people have them: pasted, archived, printed by other tools, piped.

mod common;

use std::fs;
use std::path::Path;

use common::{binary, json, pagefold, roots};
use predicates::prelude::*;
use serde_json::Value;

fn report(input: impl Into<Vec<u8>>) -> Value {
    json(pagefold().args(["report", "--json", "-"]).write_stdin(input).assert().success())
}

fn of_root(name: &str) -> Value {
    json(
        pagefold()
            .args(["report", "--json", "--no-scan", "--root"])
            .arg(roots::root(name))
            .assert()
            .success(),
    )
}

#[test]
fn pasted_files_say_what_they_say_in_a_root() {
    let root = roots::root("numa");
    let cat = |path: &str| format!("$ cat /{path}\n{}", fs::read_to_string(root.join(path)).unwrap());
    let files = ["proc/zoneinfo", "proc/meminfo", "proc/vmstat", "proc/buddyinfo"].map(cat);
    let (pasted, whole) = (report(files.concat()), of_root("numa"));
    assert_eq!(pasted["machine"]["origin"], "standard input");
    for part in ["memory", "zones"] {
        assert_eq!(pasted[part], whole[part], "{part}");
    }
    assert_eq!(pasted["machine"]["page_size_from"], "counters");
    // One of them is enough, and a plan takes it too.
    let plan = pagefold().args(["plan", "--hotplug", "1G", "-"]).write_stdin(cat("proc/zoneinfo")).assert();
    plan.stdout(predicate::str::contains("standard input"));
}

#[test]
fn a_collection_is_found_in_its_directory_and_its_archive() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("sosreport-web7-2026");
    copy(&roots::root("host-hvo"), &root);
    let whole = of_root("host-hvo");
    let by = |path: &Path| {
        let report = json(pagefold().args(["report", "--json"]).arg(path).assert().success());
        assert_eq!(
            (&report["descriptors"], &report["hvo"]),
            (&whole["descriptors"], &whole["hvo"]),
            "{path:?}"
        );
        assert_eq!(report["blocks"]["list"], whole["blocks"]["list"]);
    };
    by(dir.path());
    by(&root);
    let archive = dir.path().join("web7.tar.gz");
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(
        fs::File::create(&archive).unwrap(),
        flate2::Compression::fast(),
    ));
    builder.append_dir_all("sosreport-web7-2026", &root).unwrap();
    builder.into_inner().unwrap().finish().unwrap();
    by(&archive);
    // Files side by side, as `cp /proc/*info` leaves them.
    let flat = tempfile::tempdir().unwrap();
    for name in ["zoneinfo", "meminfo", "vmstat"] {
        fs::copy(root.join("proc").join(name), flat.path().join(name)).unwrap();
    }
    let report = json(pagefold().args(["report", "--json"]).arg(flat.path()).assert().success());
    assert_eq!(report["zones"], whole["zones"]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn other_tools_lists_are_read() {
    let lsmem = r#"{"memory": [
        {"range": "0x0000000000000000-0x000000007fffffff", "size": "2G", "state": "online", "block": "0-15", "node": 0,
         "zones": "Normal"},
        {"range": "0x0000000100000000-0x000000011fffffff", "size": "512M", "state": "offline", "block": "32-35", "node": 1,
         "zones": "Normal/Movable"}]}"#;
    let blocks = report(lsmem);
    assert_eq!(blocks["descriptors"]["bytes"], 40 << 20);
    assert_eq!(blocks["blocks"]["list"].as_array().unwrap().len(), 20);
    assert_eq!(blocks["nodes"].as_array().unwrap().len(), 2);

    let flags = |set: &[usize]| -> String {
        (0..44).map(|place| if set.contains(&place) { 'x' } else { '_' }).collect()
    };
    let pages = format!(
        "offset\tlen\tflags\n0\t1000\t{}\n1000\t1\t{}\n1001\t1ff\t{}\n",
        flags(&[10]),
        flags(&[15, 17]),
        flags(&[16, 17])
    );
    let pages = report(pages);
    assert_eq!(pages["machine"]["scanned"], true);
    assert_eq!(pages["huge_pages"][0]["pages"], 1);
    assert_eq!(pages["memory"]["bytes"], (0x1200u64) * 4096);
}

#[test]
fn a_size_that_no_machine_has_is_no_size() {
    for kib in ["18446744073709551615", "99999999999999"] {
        let input = format!("MemTotal: {kib} kB\nMemFree: 100 kB\n");
        let refused = pagefold().args(["report", "-"]).write_stdin(input).assert().code(1).stdout("");
        refused.stderr(predicate::str::contains("how much memory there is"));
    }
    // Its zones tell all the same.
    let zones = "Node 0, zone   Normal\n  pages free     500\n        spanned  4096\n        present  4096\n";
    let input = format!("MemTotal: 18446744073709551615 kB\n{zones}");
    let answer = pagefold().args(["report", "--json", "-"]).write_stdin(input).assert().code(3);
    assert_eq!(json(answer)["memory"]["bytes"], 4096 * 4096);
}

#[test]
fn what_is_nothing_of_it_is_refused_in_a_line() {
    for input in ["", "hello\n", "{\"memory\": [{}]}", "offset\tlen\tflags\nzz\n"] {
        let refused = pagefold().args(["report", "-"]).write_stdin(input).assert().code(1).stdout("");
        refused.stderr(predicate::str::is_match("^pagefold: cannot read standard input: [^\n]+\n$").unwrap());
    }
}

#[test]
fn snapshots_go_through_pipes() {
    let sample = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/sample.pgf")).unwrap();
    let mut whole = json(pagefold().args(["report", "--sample", "--json"]).assert().success());
    let piped = report(&sample[..]);
    whole["machine"]["origin"] = "standard input".into();
    assert_eq!(piped, whole);
    for command in ["map", "replay --seconds 0 --snapshot"] {
        let mut run = pagefold();
        run.args(command.split(' ')).arg("-").write_stdin(&sample[..]).assert().success();
    }
    if rustix::process::geteuid().is_root() {
        let script = format!("{0} snapshot - | {0} report --json -", binary());
        let output =
            std::process::Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["machine"]["scanned"], true);
    }
}

#[test]
fn what_has_states_of_pages_is_mapped_replayed_and_compared() {
    let flags = |set: &[usize]| -> String {
        (0..44).map(|place| if set.contains(&place) { 'x' } else { '_' }).collect()
    };
    let (free, anonymous) = (flags(&[10]), flags(&[5, 12]));
    let listing = |used: u64| {
        format!("offset\tlen\tflags\n0\t{used:x}\t{anonymous}\n{used:x}\t{:x}\t{free}\n", 0x8000 - used)
    };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, used: u64| {
        let path = dir.path().join(name);
        fs::write(&path, listing(used)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (before, after) = (file("before", 0x100), file("after", 0x180));
    let run = |args: &[&str]| json(pagefold().args(args).args(["--json"]).assert().success());
    assert_eq!(run(&["map", &before])["pages"], 0x8000);
    let replay = run(&["replay", "--seconds", "0", "--snapshot", &before]);
    assert_eq!((&replay["pages"], &replay["folios"]), (&0x8000.into(), &0x100.into()));
    assert_eq!(run(&["diff", &before, &after])["changed_pages"], 0x80);
    // A directory with page files; and what says nothing of pages is refused in a line.
    let root = roots::copy("guest-virtio-mem");
    let refused = |args: &[&str]| {
        let refused = pagefold().args(args).assert().code(1).stdout("");
        let line =
            predicate::str::is_match("^pagefold: [^\n]*tells nothing of single pages[^\n]*\n$").unwrap();
        refused.stderr(line);
    };
    let path = root.path().to_str().unwrap();
    let zoneinfo = root.path().join("proc/zoneinfo");
    refused(&["map", path]);
    refused(&["map", zoneinfo.to_str().unwrap()]);
    refused(&["replay", "--snapshot", zoneinfo.to_str().unwrap()]);
    refused(&["diff", &before, zoneinfo.to_str().unwrap()]);
    fs::write(root.path().join("proc/iomem"), "00000000-07ffffff : System RAM\n").unwrap();
    roots::write_pages(root.path(), 0x8000, &[(0..0x8000, 1 << 10)]);
    assert_eq!(run(&["map", path])["pages"], 0x8000);
}
