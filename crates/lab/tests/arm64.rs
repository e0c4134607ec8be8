//! What Pagefold says of a machine on arm64: the program in the guest, and on the host by the guest's files. What cannot run is
//! told in the last line.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use pagefold_lab::newer::{arm64_machine, qemu_for};
use pagefold_lab::{GIB, Kernel, Vm, static_pagefold, static_pagefold_arm64};
use serde_json::Value;

/// Huge pages of 2 MiB that the guest makes.
const HUGE_PAGES: u64 = 16;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let kernels = Kernel::newer().unwrap();
    let kernel = kernels.into_iter().rfind(|kernel| kernel.is_arm64() && qemu_for(kernel).is_some());
    let pagefold = if arguments.list { None } else { static_pagefold_arm64().unwrap() };
    let mut left_out = Vec::new();
    let mut trials = Vec::new();
    match &kernel {
        None => left_out.push("Linux on arm64: there is no QEMU or no kernel for it (crates/lab/setup-qemu)"),
        Some(kernel) => {
            if pagefold.is_none() {
                left_out.push("pagefold in a guest on arm64: it cannot be built (crates/lab/setup-arm64)");
            }
            let (kernel, name) = (kernel.clone(), format!("linux_{}", kernel.release()));
            trials.push(Trial::test(format!("{name}::a_report_of_arm64"), move || {
                report(&kernel, pagefold.as_deref());
                Ok(())
            }));
        }
    }
    let is_list = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !is_list {
        left_out.iter().for_each(|what| println!("left out: {what}"));
    }
    conclusion.exit_code()
}

fn report(kernel: &Kernel, pagefold: Option<&Path>) {
    let mut builder = arm64_machine(kernel, GIB).unwrap();
    if let Some(pagefold) = pagefold {
        builder = builder.file("/bin/pagefold", pagefold);
    }
    let mut guest = builder.boot().unwrap();
    let pool = "/proc/sys/vm/nr_hugepages";
    guest.run(&format!("echo {HUGE_PAGES} > {pool}; [ $(cat {pool}) = {HUGE_PAGES} ]")).unwrap();
    let counter = |guest: &mut Vm, key: &str| guest.number("/proc/vmstat", key).unwrap();
    let counted = counter(&mut guest, "nr_memmap_boot_pages") + counter(&mut guest, "nr_memmap_pages");

    let by_files = of_files(&mut guest);
    says_arm64(&by_files, counted);
    if pagefold.is_none() {
        return;
    }
    let inside: Value = serde_json::from_str(&guest.run("pagefold report --json").unwrap()).unwrap();
    says_arm64(&inside, counted);
    assert_eq!(
        (&inside["partial"], &inside["machine"]["scanned"]),
        (&false.into(), &true.into()),
        "{inside:#}"
    );
    // Every page has a state, and those of huge pages are where they should be.
    let states = inside["states"].as_array().unwrap();
    let pages = |name: &str| {
        states.iter().find(|row| row["state"] == name).map_or(0, |row| row["pages"].as_u64().unwrap())
    };
    assert_eq!(pages("hugetlb"), HUGE_PAGES * 512, "{states:#?}");
    assert!(pages("free") > 0 && pages("slab") > 0, "{states:#?}");
    for what in ["zones", "blocks", "huge_pages"] {
        assert!(!inside[what].is_null() && !by_files[what].is_null(), "{what}");
    }
    // A plan there offers no HVO, and knows the pages that its kernels can have.
    let plan: Value = serde_json::from_str(&guest.run("pagefold plan --json").unwrap()).unwrap();
    let in_linux = |name: &str| {
        let scenarios = plan["scenarios"].as_array().unwrap();
        let found = scenarios.iter().find(|scenario| scenario["name"].as_str().unwrap().starts_with(name));
        found.unwrap()["in_linux"].as_str().unwrap().to_owned()
    };
    assert_eq!((in_linux("HVO"), in_linux("pages of 64")), ("not_here".into(), "yes".into()));
    let block: Value = serde_json::from_str(
        &guest.run("b=$(ls /sys/devices/system/memory | sed -n 's/^memory//p' | head -n 1); pagefold report --json --block $b")
            .unwrap(),
    )
    .unwrap();
    let pages: u64 =
        block["states"].as_array().unwrap().iter().map(|row| row["pages"].as_u64().unwrap()).sum();
    assert_eq!(pages * 4096, block["size"].as_u64().unwrap(), "{block:#}");
}

/// What is true of the guest, however it is looked at.
fn says_arm64(report: &Value, counted: u64) {
    let machine = &report["machine"];
    assert_eq!(
        (&machine["arch"], &machine["page_size"], &machine["descriptor_size"]),
        (&"aarch64".into(), &4096.into(), &64.into()),
        "{report:#}"
    );
    assert_eq!(report["descriptors"]["bytes"], counted * 4096, "{report:#}");
    assert_eq!(report["descriptors"]["how"], "counted");
    assert_eq!((&report["hvo"]["state"], &report["hvo"]["left"]["max"]), (&"unsupported".into(), &0.into()));
    let rows = report["huge_pages"].as_array().unwrap();
    let large = rows.iter().find(|row| row["size"] == 2 << 20).unwrap();
    assert_eq!(large["pages"], HUGE_PAGES);
    let of_memory = report["memory"]["bytes"].as_u64().unwrap();
    assert!((GIB - (64 << 20)..=GIB).contains(&of_memory), "{of_memory}");
}

/// What `pagefold report DIR` says on the host of the guest's files.
fn of_files(guest: &mut Vm) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let list = "find /proc/meminfo /proc/vmstat /proc/zoneinfo /proc/buddyinfo /proc/cmdline /proc/iomem /proc/version \
                /proc/sys/kernel/osrelease /proc/sys/kernel/arch /proc/sys/vm/min_free_kbytes \
                /sys/kernel/mm/hugepages /sys/devices/system/memory /sys/devices/system/node \
                -type f ! -name uevent ! -name '*probe*' ! -name compact ! -name demote 2>/dev/null";
    let files = guest
        .run(&format!("for f in $({list}); do [ -r $f ] && echo \"$f $(xxd -p $f | tr -d '\\n')\"; done"))
        .unwrap();
    for line in files.lines() {
        let (path, hex) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> = (0..hex.len() / 2)
            .filter_map(|at| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok())
            .collect();
        let path = dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let host = static_pagefold().unwrap();
    let output = Command::new(host).args(["report", "--json"]).arg(dir.path()).output().unwrap();
    assert!(matches!(output.status.code(), Some(0)), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
