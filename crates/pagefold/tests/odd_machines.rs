//! Machines of which some file misleads, or is not there: what the report and the plan make of them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::assert::Assert;
use common::machines::{Runs, header};
use common::{json, pagefold};
use pagefold_machine::host::Pool;
use pagefold_machine::{Machine, flags, snapshot};
use serde_json::Value;
use tempfile::TempDir;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A root with these files.
fn root(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// A zone as `/proc/zoneinfo` shows it, in pages; all of it managed.
fn zone(name: &str, start: u64, spanned: u64, present: u64, free: u64) -> String {
    format!(
        "Node 0, zone {name:>8}\n  pages free     {free}\n        min      10\n        spanned  {spanned}\n        \
         present  {present}\n        managed  {present}\n      nr_free_pages {free}\n  start_pfn:           {start}\n"
    )
}

fn meminfo(total: u64, free: u64) -> String {
    format!("MemTotal: {} kB\nMemFree: {} kB\n", total / 1024, free / 1024)
}

fn run(command: &str, root: &Path) -> Assert {
    pagefold().args(command.split(' ')).arg("--root").arg(root).assert().success()
}

fn text(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

/// The paragraph on top, in a line.
fn answer(command: &str, root: &Path) -> String {
    let text = text(&run(command, root));
    text.split("\n\n").next().unwrap().replace('\n', " ")
}

fn report(root: &Path) -> Value {
    json(run("report --json", root))
}

fn interval(interval: &Value) -> (u64, u64) {
    (interval["min"].as_u64().unwrap(), interval["max"].as_u64().unwrap())
}

fn of<'a>(rows: &'a Value, key: &str, value: impl Into<Value>) -> &'a Value {
    let value = value.into();
    let found = rows.as_array().unwrap().iter().find(|row| row[key] == value);
    found.unwrap_or_else(|| panic!("no {value}: {rows}"))
}

fn scenario<'a>(plan: &'a Value, name: &str) -> &'a Value {
    let all = plan["scenarios"].as_array().unwrap();
    all.iter().find(|scenario| scenario["name"].as_str().unwrap().starts_with(name)).unwrap()
}

/// A machine of 4 GiB with a page of 1 GiB and pages of 2 MiB, 5 of 7 of them optimised, as Linux 6.18 shows it.
fn with_fake_heads(dir: &TempDir, has_pools: bool) -> PathBuf {
    let mut runs = Runs(Vec::new(), 0);
    runs.add(512, flags::BUDDY, 0);
    for optimised in [true, true, false, true, true, true, false] {
        match optimised {
            true => runs.folios(8, 6, flags::HUGE),
            false => runs.folios(1, 9, flags::HUGE),
        };
    }
    let gib = 1 << 18;
    let gap = gib - runs.1;
    runs.add(gap, flags::BUDDY, 0).folios(4096, 6, flags::HUGE).add(2 * gib, flags::BUDDY, 0);
    let mut header = header(&[(0, 4 * gib)]);
    header.kernel = "6.18.3".into();
    header.arch = "x86_64".into();
    header.memmap_pages = Some(4 * 4096 - 5 * 7 - 4095);
    if has_pools {
        let pool = |size, pages| Pool { size, pages, free: 0, surplus: 0 };
        header.pools = vec![pool(2 * MIB, 7), pool(GIB, 1)];
    }
    let path = dir.path().join("machine.pgf");
    snapshot::write(&Machine { header, runs: runs.0 }, fs::File::create(&path).unwrap()).unwrap();
    path
}

#[test]
fn heads_inside_of_optimised_huge_pages_are_no_folios() {
    let dir = tempfile::tempdir().unwrap();
    for has_pools in [false, true] {
        let file = with_fake_heads(&dir, has_pools);
        let report = json(pagefold().args(["report", "--json"]).arg(&file).assert().success());
        let sizes: Vec<u64> = report["huge_pages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["size"].as_u64().unwrap())
            .collect();
        assert_eq!(sizes, [2 * MIB, GIB], "{has_pools}");
        let large = of(&report["huge_pages"], "size", 2 * MIB);
        assert_eq!((&large["pages"], &large["optimised"]), (&7.into(), &5.into()), "{has_pools}");
        let gigantic = of(&report["huge_pages"], "size", GIB);
        assert_eq!((&gigantic["pages"], &gigantic["optimised"]), (&1.into(), &1.into()));
        let saved = (5 * 7 + 4095) * PAGE;
        assert_eq!(interval(&report["hvo"]["saved"]), (saved, saved));
        assert_eq!(interval(&report["hvo"]["left"]), (2 * 7 * PAGE, 2 * 7 * PAGE));
        assert_eq!(report["descriptors"]["bytes"], 64 * MIB - saved);
        assert_eq!(of(&report["checks"], "name", "descriptors")["agrees"], true);
        // A plan counts no saving again.
        let plan = json(pagefold().args(["plan", "--json"]).arg(&file).assert().success());
        assert_eq!(scenario(&plan, "HVO")["saved_max"], 2 * 7 * PAGE);
        assert_eq!(scenario(&plan, "as Linux")["saved_max"], -((saved) as i64));
        // So do a replay, and a map.
        let replayed = json(
            pagefold()
                .args(["replay", "--seconds", "0", "--json", "--snapshot"])
                .arg(&file)
                .assert()
                .success(),
        );
        let states = &replayed["states"];
        assert_eq!(of(states, "state", "hugetlb")["pages"], 7 * 512 + (1 << 18));
        assert_eq!(of(states, "state", "hugetlb")["hvo_bytes"], 8 * PAGE);
    }
}

#[test]
fn page_extensions_are_told_apart_from_descriptors() {
    // 3 GiB and 21 GiB around a hole; an entry of 24 bytes for every page besides its descriptor.
    let zones = [zone("DMA32", 0, 1 << 20, 3 << 18, 1000), zone("Normal", 1 << 20, 21 << 18, 21 << 18, 5000)];
    let pages = (24u64 << 18) * (64 + 24) / PAGE;
    let root = root(&[
        ("proc/zoneinfo", &zones.concat()),
        ("proc/meminfo", &meminfo(24 * GIB, 6000 * PAGE)),
        ("proc/vmstat", &format!("nr_free_pages 6000\nnr_memmap_pages 0\nnr_memmap_boot_pages {pages}\n")),
        ("proc/cmdline", "root=/dev/sda1 page_owner=on quiet\n"),
        ("proc/sys/kernel/osrelease", "6.12.9\n"),
        ("proc/sys/kernel/arch", "x86_64\n"),
    ]);
    let report = report(root.path());
    assert_eq!(report["descriptors"]["bytes"], pages * PAGE);
    assert_eq!(report["descriptors"]["how"], "counted");
    assert_eq!(interval(&report["descriptors_computed"]), (384 * MIB, 384 * MIB));
    assert_eq!(interval(&report["descriptors_excess"]["page_ext"]), (144 * MIB, 144 * MIB));
    assert_eq!(interval(&of(&report["other_costs"], "name", "page_ext")["cost"]), (144 * MIB, 144 * MIB));
    let said = answer("report", root.path());
    assert!(said.contains("costs 528 MiB of 24.0 GiB"), "{said}");
    assert!(said.contains("144 MiB of it are page extensions"), "{said}");
    let prometheus = text(&run("export --format prometheus", root.path()));
    let all = (pages * PAGE).to_string();
    assert!(
        prometheus.lines().any(|line| line.starts_with("pagemeta_bytes{") && line.ends_with(&all)),
        "{prometheus}"
    );
}

#[test]
fn device_memory_is_a_row_and_no_riddle() {
    let normal = zone("Normal", 1 << 20, 8 << 18, 8 << 18, 5000);
    let device = "Node 0, zone   Device\n  pages free     0\n        spanned  1048576\n        present  0\n        \
                  managed  0\n  start_pfn:           8388608\n";
    let with = |pages: u64| {
        root(&[
            ("proc/zoneinfo", &(normal.clone() + device)),
            ("proc/meminfo", &meminfo(8 * GIB, 5000 * PAGE)),
            (
                "proc/vmstat",
                &format!("nr_free_pages 5000\nnr_memmap_pages {pages}\nnr_memmap_boot_pages 32768\n"),
            ),
            ("proc/cmdline", "quiet\n"),
            ("proc/sys/kernel/arch", "x86_64\n"),
        ])
    };
    // 4 GiB of device memory with its descriptors in memory: 64 MiB.
    let root = with(16_384);
    let report = self::report(root.path());
    assert_eq!(
        (&report["descriptors"]["bytes"], &report["memory"]["bytes"]),
        (&(192 * MIB).into(), &(8 * GIB).into())
    );
    assert_eq!(interval(&report["descriptors_excess"]["device"]), (64 * MIB, 64 * MIB));
    assert_eq!(interval(&report["descriptors_excess"]["unexplained"]), (0, 0));
    let row = of(&report["other_costs"], "name", "device_memory");
    assert_eq!(interval(&row["cost"]), (64 * MIB, 64 * MIB));
    assert!(row["note"].as_str().unwrap().contains("4.00 GiB on node 0"), "{row}");
    assert!(answer("report", root.path()).contains("64.0 MiB of it are descriptors of device memory."));
    // The kernel counts none: they lie on the device.
    let report = self::report(with(0).path());
    assert_eq!(report["descriptors"]["bytes"], 128 * MIB);
    let row = of(&report["other_costs"], "name", "device_memory");
    assert_eq!(interval(&row["cost"]), (0, 0));
    assert!(row["note"].as_str().unwrap().contains("on the device itself"), "{row}");
    // More than both explain is said to be unexplained, on top.
    let said = answer("report", with(16_384 + 4096).path());
    assert!(said.contains("16.0 MiB of it are unexplained"), "{said}");
}

#[test]
fn hvo_is_offered_where_it_is() {
    let zones = zone("Normal", 1 << 20, 32 << 18, 32 << 18, 5000);
    let machine = |arch: &str, release: &str| {
        root(&[
            ("proc/zoneinfo", &zones),
            (
                "proc/meminfo",
                &(meminfo(32 * GIB, 5000 * PAGE) + "HugePages_Total: 4000\nHugepagesize: 2048 kB\n"),
            ),
            ("proc/vmstat", "nr_free_pages 5000\n"),
            ("proc/cmdline", "quiet\n"),
            ("proc/sys/kernel/arch", arch),
            ("proc/sys/kernel/osrelease", release),
        ])
    };
    let saving = 4000 * 7 * PAGE;
    for (arch, release) in [("aarch64", "6.8.0"), ("x86_64", "4.18.0-553.el8"), ("ppc64le", "6.12.1")] {
        let root = machine(arch, release);
        assert!(answer("report", root.path()).contains("This kernel has no HVO."));
        let report = report(root.path());
        assert_eq!((interval(&report["hvo"]["saved"]), interval(&report["hvo"]["left"])), ((0, 0), (0, 0)));
        assert_eq!(report["descriptors_computed"]["min"], 512 * MIB);
        let said = answer("plan", root.path());
        assert!(said.contains("This kernel has no HVO.") && !said.contains("HVO on all"), "{said}");
        let plan = json(run("plan --json", root.path()));
        assert_eq!(
            (&scenario(&plan, "HVO")["saved_max"], &scenario(&plan, "HVO")["in_linux"]),
            (&0.into(), &"not_here".into())
        );
    }
    // The pool stands in meminfo alone.
    let root = machine("x86_64", "6.1.0");
    let said = answer("report", root.path());
    assert!(said.contains("HVO can save 109 MiB"), "{said}");
    let report = report(root.path());
    assert_eq!(interval(&report["hvo"]["left"]), (0, saving));
    assert!(report["checks"].as_array().unwrap().iter().all(|check| check["name"] != "hugetlb"));
    assert_eq!(scenario(&json(run("plan --json", root.path())), "HVO")["saved_max"], saving);
}

#[test]
fn files_of_different_times_are_not_taken_for_memory_without_descriptors() {
    let zones = zone("Normal", 1 << 20, 8 << 18, 8 << 18, 100_000);
    let root = root(&[
        ("proc/zoneinfo", &zones),
        ("proc/meminfo", &meminfo(8 * GIB, 170_000 * PAGE)),
        ("proc/vmstat", "nr_free_pages 100000\n"),
    ]);
    let report = report(root.path());
    assert_eq!(report["partial"], false);
    let free = of(&report["checks"], "name", "free");
    assert_eq!(free["note"], "the files are not read at the same moment");
    let text = text(&run("report", root.path()));
    assert!(!text.contains("not initialised"), "{text}");
    // What was not collected is not said to be missing in the kernel.
    let gaps = report["gaps"].as_array().unwrap();
    assert!(gaps.iter().any(|gap| gap["path"] == "/sys/devices/system/memory"));
    for gap in gaps.iter().filter(|gap| gap["path"] != "/proc/kpageflags") {
        assert_eq!(gap["kind"], "not_collected", "{gap}");
    }
}

#[test]
fn a_zone_that_spans_more_than_there_can_be_spans_what_it_has() {
    let zones = [
        zone("Normal", 1 << 20, 2 << 18, 2 << 18, 100),
        zone("Movable", 3 << 20, u64::MAX - 70_000, 1 << 16, 100),
    ];
    let root = root(&[
        ("proc/zoneinfo", &zones.concat()),
        ("proc/meminfo", &meminfo(2 * GIB + 256 * MIB, 200 * PAGE)),
        ("proc/vmstat", "nr_free_pages 200\n"),
    ]);
    assert_eq!(interval(&report(root.path())["descriptors_computed"]), (36 * MIB, 36 * MIB));
}

#[test]
fn zones_alone_are_enough() {
    // As people paste it: without the counters further down.
    let zones = "Node 0, zone   Normal\n  pages free     300000\n        min      100\n        low      120\n        high     \
                 140\n        spanned  2097152\n        present  2097152\n        managed  2050000\n";
    let root = root(&[("proc/zoneinfo", zones)]);
    let report = json(pagefold().args(["report", "--json", "--root"]).arg(root.path()).assert());
    assert_eq!(report["zones"][0]["free"], 300_000 * PAGE);
    assert_eq!(report["machine"]["page_size_from"], "assumed");
    let said = pagefold().args(["report", "--root"]).arg(root.path()).assert();
    let said = text(&said).split("\n\n").next().unwrap().replace('\n', " ");
    assert!(
        said.contains("rests on pages of 4 KiB and descriptors of 64 bytes, which nothing here tells"),
        "{said}"
    );
    let plan = pagefold().args(["plan", "--hotplug", "10G", "--root"]).arg(root.path()).assert();
    assert!(text(&plan).starts_with("Yes"), "{}", text(&plan));
}

#[test]
fn words_of_32_bits_have_smaller_descriptors() {
    let zones = [zone("DMA", 0, 4096, 4096, 100), zone("Normal", 4096, 220_000, 220_000, 2000)];
    let root = root(&[
        ("proc/zoneinfo", &zones.concat()),
        ("proc/meminfo", &meminfo(224_096 * PAGE, 2100 * PAGE)),
        ("proc/vmstat", "nr_free_pages 2100\n"),
        ("proc/sys/kernel/arch", "i686\n"),
        ("proc/sys/kernel/osrelease", "6.1.0\n"),
    ]);
    let report = report(root.path());
    assert_eq!(report["machine"]["descriptor_size"], 32);
    assert_eq!(report["descriptors"]["bytes"], 224_096 * 32);
    let said = answer("report", root.path());
    assert!(said.contains("descriptors of 32 bytes, which nothing here tells"), "{said}");
}

#[test]
fn a_threshold_is_passed_when_the_least_is_over_it() {
    // Without blocks, holes leave open how many descriptors there are: 1.56 % at least, 3.1 % at most.
    let zones = zone("Normal", 1 << 20, 8 << 18, 4 << 18, 5000);
    let root = root(&[
        ("proc/zoneinfo", &zones),
        ("proc/meminfo", &meminfo(4 * GIB, 5000 * PAGE)),
        ("proc/vmstat", "nr_free_pages 5000\n"),
    ]);
    for (limit, code) in [("1.6%", 0), ("1.5%", 10)] {
        let mut command = pagefold();
        command.args(["report", "--fail-over", limit, "--root"]).arg(root.path());
        command.assert().code(code);
    }
}
