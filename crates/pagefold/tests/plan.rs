//! `pagefold plan`: sizes alone, machines, and guests that want to grow.

mod common;

use common::{json, pagefold, roots};
use predicates::prelude::*;
use serde_json::Value;

fn plan(args: &[&str]) -> Value {
    json(pagefold().args(["plan", "--json"]).args(args).assert().success())
}

fn scenario<'a>(plan: &'a Value, name: &str) -> &'a Value {
    let all = plan["scenarios"].as_array().unwrap();
    all.iter()
        .find(|scenario| scenario["name"].as_str().unwrap().starts_with(name))
        .unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn sizes_alone_need_no_machine() {
    let plan = plan(&["--memory", "1T", "--hugetlb", "2M:400000,1G:128"]);
    let cost = |name: &str| scenario(&plan, name)["descriptors"]["max"].as_u64().unwrap();
    assert_eq!(cost("as Linux"), 16 << 30);
    assert_eq!(cost("memmap_on_memory"), 16 << 30);
    assert_eq!(cost("HVO"), (16 << 30) - 400_000 * 7 * 4096 - 128 * 4095 * 4096);
    // What Linux does not offer today says so.
    for (name, in_linux) in [
        ("HVO", "yes"),
        ("folding", "no"),
        ("memdesc of 32", "no"),
        ("memdesc of 8", "no"),
        ("pages of 64", "elsewhere_only"),
    ] {
        assert_eq!(scenario(&plan, name)["in_linux"], in_linux, "{name}");
    }
    assert_eq!(scenario(&plan, "HVO")["time"][0]["how"], "measured");
}

#[test]
fn a_recorded_machine_brings_its_own_folios() {
    let plan = plan(&["--sample"]);
    // Every folio that was counted has a descriptor beside 8-byte words.
    let folios = plan["folios"]["max"].as_u64().unwrap();
    assert_eq!(plan["folios"]["min"], folios);
    let memdesc = &scenario(&plan, "memdesc of 8")["descriptors"];
    assert_eq!(memdesc["min"], memdesc["max"]);
    assert_eq!(memdesc["max"], (48 << 20) + (folios + 384) * 64);
    // 384 huge pages were in it.
    assert_eq!(scenario(&plan, "HVO")["saved_max"], 384 * 7 * 4096);
    let report = json(pagefold().args(["report", "--sample", "--json"]).assert().success());
    let folded = &scenario(&plan, "folding")["descriptors"]["max"];
    assert_eq!(folded, &report["folding"]["total"]["max"]);
    let folios_reported: u64 =
        report["folios"].as_array().unwrap().iter().map(|row| row["folios"].as_u64().unwrap()).sum();
    assert_eq!(folios_reported, folios + 384);
}

#[test]
fn another_pool_takes_the_place_of_the_one_there_is() {
    let plan = plan(&["--sample", "--hugetlb", "1G:4"]);
    assert_eq!(scenario(&plan, "HVO")["saved_max"], 4u64 * 4095 * 4096);
    let too_much = pagefold().args(["plan", "--sample", "--hugetlb", "1G:24"]).assert().code(1);
    too_much.stderr(predicate::str::contains("do not fit").and(predicate::str::is_match("^.*\n$").unwrap()));
}

#[test]
fn block_sizes_and_the_worst_case() {
    let plan = plan(&["--memory", "1T"]);
    let sizes = plan["block_sizes"].as_array().unwrap();
    let large = sizes.iter().find(|row| row["size"] == 2u64 << 30).unwrap();
    assert_eq!(
        (&large["blocks"], &large["stuck"], &large["stuck_linux"]),
        (&512.into(), &(1u64 << 30).into(), &(16u64 << 30).into())
    );
}

#[test]
fn can_this_guest_grow() {
    let ask = |args: &[&str], code: i32| {
        let mut command = pagefold();
        command.args(["plan", "--json", "--hotplug"]).args(args);
        json(command.assert().code(code))
    };
    // Kata's case: 12 GiB need about 188 MiB free, and a guest of 256 MiB does not have that to give.
    let kata = ["12G", "--guest-memory", "256M", "--free", "188M", "--block", "128M"];
    let no = ask(&kata, 10);
    assert_eq!(
        (&no["works"], &no["blocks"], &no["descriptors"]["bytes"]),
        (&false.into(), &96.into(), &(192 << 20).into())
    );
    let missing = no["missing"].as_u64().unwrap();
    assert!((20 << 20..24 << 20).contains(&missing), "{missing}");
    // With what is missing it works; a little less does not.
    let free = |bytes: u64| ["12G".into(), "--guest-memory=256M".into(), format!("--free={bytes}")];
    let ask_free = |bytes: u64, code: i32| {
        let args = free(bytes);
        ask(&args.iter().map(String::as_str).collect::<Vec<_>>(), code)
    };
    ask_free((188 << 20) + missing, 0);
    ask_free((188 << 20) + missing - 1, 10);
    // The largest step works, and one block more does not.
    let step = no["steps"][0].as_u64().unwrap();
    assert_eq!((step % (128 << 20), no["steps_reach"] == true), (0, true));
    let of = |bytes: u64| bytes.to_string();
    ask(&[&of(step), "--guest-memory=256M", "--free=188M"], 0);
    ask(&[&of(step + 1), "--guest-memory=256M", "--free=188M"], 10);
    // Into a kernel zone, block by block, it works; and under folding.
    ask(&[&kata[..], &["--online", "kernel"]].concat(), 0);
    let ways = no["ways"].as_array().unwrap();
    let folding = ways.iter().find(|way| way["name"] == "folding").unwrap();
    assert_eq!((&folding["works"], &folding["in_linux"]), (&true.into(), &false.into()));
}

#[test]
fn a_guest_by_its_files() {
    let mut command = pagefold();
    command.args(["plan", "--json", "--hotplug", "4G", "--root"]).arg(roots::root("guest-virtio-mem"));
    let answer = json(command.assert().success());
    // What is free in ZONE_MOVABLE holds no descriptors.
    assert_eq!(answer["free"]["bytes"], (3840 + 150_000) * 4096);
    assert_eq!(answer["reserve"]["bytes"], (3998 + 258_048) * 4096 / 16);
    assert_eq!(answer["block"], 128 << 20);
    let mut command = pagefold();
    command.args(["plan", "--hotplug", "64G", "--root"]).arg(roots::root("guest-virtio-mem"));
    let no = command.assert().code(10);
    no.stdout(
        predicate::str::starts_with("No: this guest cannot add 64.0 GiB")
            .and(predicate::str::contains("not in Linux today")),
    );
}

#[test]
fn what_is_missing_has_the_reserve_in_it() {
    let ask = |args: &[&str], code: i32| {
        let mut command = pagefold();
        command.args(["plan", "--json", "--hotplug"]).args(args);
        json(command.assert().code(code))
    };
    // 8 blocks of 128 MiB: 16 MiB of descriptors and 160 KiB besides; 64 MiB must stay; 50 MiB are free.
    let no = ask(&["1G", "--memory", "1G", "--free", "50M"], 10);
    assert_eq!(no["missing"], (16 << 20) + (160 << 10) + (64 << 20) - (50 << 20));
    // It fits, and is no plain yes: ZONE_MOVABLE would be 39 times as large as kernel zones.
    let risky = ask(&["39G", "--memory", "1G"], 0);
    assert_eq!((&risky["ratio"], &risky["ratio_limit"]), (&3900.into(), &301.into()));
    assert_eq!(risky["page_tables"]["bytes"], 78 << 20);
    assert_eq!(risky["warnings"], serde_json::json!(["ratio", "page_tables"]));
    let text = pagefold().args(["plan", "--hotplug", "39G", "--memory", "1G"]).assert().success();
    let said = String::from_utf8(text.get_output().stdout.clone()).unwrap().replace('\n', " ");
    assert!(said.starts_with("Yes, but") && said.contains("39 times") && said.contains("78.0 MiB"), "{said}");
}

#[test]
fn a_guest_that_leaves_blocks_offline_is_told() {
    let root = roots::copy("guest-virtio-mem");
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let ask = |args: &[&str]| {
        let mut command = pagefold();
        command.args(["plan", "--hotplug", "1G"]).args(args).arg("--root").arg(root.path());
        command.assert().success()
    };
    write("sys/devices/system/memory/auto_online_blocks", "offline\n");
    let answer = json(ask(&["--json"]));
    assert_eq!((&answer["stays_offline"], &answer["warnings"][0]), (&true.into(), &"stays_offline".into()));
    let said = String::from_utf8(ask(&[]).get_output().stdout.clone()).unwrap().replace('\n', " ");
    assert!(said.contains("blocks would stay offline"), "{said}");
    // A policy is respected, with its ratio; and what was asked for goes before it.
    write("sys/devices/system/memory/auto_online_blocks", "online\n");
    write("sys/module/memory_hotplug/parameters/online_policy", "auto-movable\n");
    write("sys/module/memory_hotplug/parameters/auto_movable_ratio", "401\n");
    let answer = json(ask(&["--json"]));
    assert_eq!(
        (&answer["zone_from"], &answer["ratio_limit"]),
        (&"online_policy is auto-movable".into(), &401.into())
    );
    assert_eq!(json(ask(&["--json", "--online", "kernel"]))["zone"], "a kernel zone");
    write("sys/devices/system/memory/auto_online_blocks", "online_kernel\n");
    assert_eq!(json(ask(&["--json"]))["zone"], "a kernel zone");
}

#[test]
fn questions_that_make_no_sense() {
    let refused = |args: &[&str], code: i32| {
        pagefold().arg("plan").args(args).assert().code(code).stdout("");
    };
    refused(&["--hotplug", "0"], 2);
    refused(&["--hotplug", "lots"], 2);
    refused(&["--hotplug", "1G", "--block", "100M"], 2);
    refused(&["--hotplug", "1G", "--memory", "1G", "--block", "64M"], 2);
    refused(&["--hotplug", "1G", "--memory", "1G", "--page-size", "64K", "--block", "128M"], 2);
    refused(&["--device", "1G", "--memory", "1G", "--block", "64M"], 2);
    refused(&["--memory", "1G", "--kernel", "6.12.0-1.aarch64", "--arch", "x86_64"], 2);
    refused(&["--block", "128M"], 2);
    refused(&["--free", "1G"], 2);
    refused(&["--hugetlb", "3M:1"], 2);
    refused(&["--memory", "1G", "--sample"], 2);
    refused(&["--hotplug", "1G", "--guest-memory", "1G", "--free", "2G"], 2);
    refused(&["--memory", "1G", "--free", "2G"], 2);
    refused(&["--memory", "1G", "--hugetlb", "1G:18446744073709551615"], 2);
}

/// The device that the tests on devices ask of: 128 GiB on a node of its own.
fn with_dax(name: &str, on_memory: &str, kernel: &str) -> tempfile::TempDir {
    let root = roots::copy(name);
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let dax = "sys/bus/dax/devices/dax0.0";
    write(&format!("{dax}/size"), "137438953472\n");
    write(&format!("{dax}/align"), "2097152\n");
    write(&format!("{dax}/target_node"), "7\n");
    write(&format!("{dax}/memmap_on_memory"), on_memory);
    write("sys/module/memory_hotplug/parameters/memmap_on_memory", kernel);
    root
}

#[test]
fn where_descriptors_of_a_device_would_lie() {
    let ask = |root: &tempfile::TempDir, args: &[&str], code: i32| {
        let mut command = pagefold();
        command.args(["plan", "--json", "--device", "dax0.0", "--root"]).arg(root.path()).args(args);
        json(command.assert().code(code))
    };
    let descriptors = 2u64 << 30;
    let on_device = ask(&with_dax("host-hvo", "1\n", "Y\n"), &[], 0);
    assert_eq!((&on_device["lies"], &on_device["node"]), (&"device".into(), &7.into()));
    let usable = on_device["ways"].as_array().unwrap().iter().map(|way| way["usable"].as_u64().unwrap());
    assert!(usable.clone().any(|bytes| bytes == (128 << 30) - descriptors));
    // As the kernel was booted, they would lie in RAM.
    let in_ram = ask(&with_dax("host-hvo", "1\n", "N\n"), &["--reserve", "0"], 0);
    assert_eq!(in_ram["lies"], "ram");
    ask(&with_dax("host-hvo", "0\n", "Y\n"), &["--reserve", "1T"], 10);
    // A device that is not there.
    let size = json(
        pagefold()
            .args(["plan", "--json", "--device", "512G", "--memory", "64G", "--free", "4G"])
            .assert()
            .code(10),
    );
    assert_eq!(size["lies"], "ram");
    let root = roots::root("numa");
    let none = pagefold().args(["plan", "--device", "dax9.9", "--root"]).arg(root).assert().code(2);
    none.stderr(predicate::str::contains("no DAX device dax9.9"));
}

#[test]
fn another_kernel_can_do_other_things() {
    let terabyte = |args: &[&str]| plan(&[&["--memory", "1T", "--hugetlb", "2M:1000"], args].concat());
    let hvo = |plan: &Value| {
        let hvo = scenario(plan, "HVO");
        (hvo["in_linux"].as_str().unwrap().to_owned(), hvo["saved_max"].as_i64().unwrap())
    };
    assert_eq!(hvo(&terabyte(&["--kernel", "6.12"])), ("yes".into(), 1000 * 7 * 4096));
    assert_eq!(hvo(&terabyte(&["--kernel", "5.15"])), ("yes".into(), 1000 * 6 * 4096));
    assert_eq!(hvo(&terabyte(&["--kernel", "5.4"])), ("not_here".into(), 0));
    let arm = terabyte(&["--arch", "arm64", "--page-size", "64K", "--kernel", "6.18"]);
    assert_eq!(hvo(&arm), ("not_here".into(), 0));
    assert_eq!(scenario(&arm, "as Linux")["descriptors"]["max"], 1 << 30);
    assert_eq!(arm["kernel"]["section"], 512 << 20);
    // A machine under another kernel: what it pays now stays what it is.
    let sample = plan(&["--sample", "--page-size", "16K"]);
    assert_eq!(sample["kernel"]["arch"], "aarch64");
    let full = scenario(&sample, "as Linux");
    assert_eq!(
        (&full["descriptors"]["max"], full["saved_max"].as_i64()),
        (&(96 << 20).into(), Some(288 << 20))
    );
    let no = pagefold().args(["plan", "--arch", "x86_64", "--page-size", "64K", "--memory", "1G"]).assert();
    no.code(2).stderr(predicate::str::contains("x86_64 has no pages of 64 KiB"));
    // A block of 512 MiB in pages of 64 KiB has 512 KiB of descriptors.
    let args = ["--hotplug", "1G", "--memory", "4G", "--page-size", "64K"];
    let answer = json(pagefold().args(["plan", "--json"]).args(args).assert().success());
    assert_eq!((&answer["block"], &answer["descriptors"]["bytes"]), (&(512 << 20).into(), &(1 << 20).into()));
}
