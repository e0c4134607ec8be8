//! Roots that hold anything but what they should: a partial answer or one clear line, never a panic.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{pagefold, roots};

/// What no file should hold.
const RUBBISH: [&[u8]; 7] = [
    b"",
    b"\0\xff\xfe\x80 \n\n",
    b"Node 99999999999, zone Normal\n  spanned 18446744073709551615\n  present 18446744073709551615\n  start_pfn: 1\n",
    b"18446744073709551615",
    b"-1",
    b"MemTotal: 18446744073709551615 kB\nMemFree: 1 kB\nnr_memmap_boot_pages 18446744073709551615\nnr_free_pages 9\n",
    b"\x9f\xeb\x01\x00\x18\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\x7f",
];

fn report(root: &Path) -> Output {
    pagefold().args(["report", "--root"]).arg(root).output().unwrap()
}

fn is_civil(output: &Output, what: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0 | 3) => assert!(!output.stdout.is_empty() && stderr.is_empty(), "{what}: {stderr}"),
        Some(1) => {
            assert!(stderr.lines().count() == 1 && stderr.starts_with("pagefold: "), "{what}: {stderr}")
        }
        code => panic!("{what}: {code:?}, {stderr}"),
    }
}

/// One of each kind of file: there are many alike blocks.
fn kinds(name: &str) -> Vec<std::path::PathBuf> {
    let block = |path: &Path| path.to_string_lossy().contains("/memory/memory");
    let link = |path: &Path| path.to_string_lossy().contains("/node/node") && !path.ends_with("meminfo");
    let mut files = roots::files(name);
    let mut blocks = 0;
    files.retain(|path| {
        blocks += u32::from(block(path));
        !(block(path) && blocks > 2) && (!link(path) || path.to_string_lossy().contains("hugepages"))
    });
    files
}

#[test]
fn rubbish_in_any_file() {
    let root = roots::copy("guest-virtio-mem");
    for file in kinds("guest-virtio-mem") {
        let path = root.path().join(&file);
        let before = fs::read(&path).unwrap();
        for rubbish in RUBBISH {
            fs::write(&path, rubbish).unwrap();
            is_civil(&report(root.path()), &format!("{} = {}", file.display(), rubbish.escape_ascii()));
        }
        fs::write(&path, before).unwrap();
    }
}

#[test]
fn rubbish_in_all_files() {
    for rubbish in RUBBISH {
        let root = roots::copy("numa");
        roots::files("numa").iter().for_each(|file| fs::write(root.path().join(file), rubbish).unwrap());
        is_civil(&report(root.path()), &rubbish.escape_ascii().to_string());
    }
}

#[test]
fn any_file_missing_or_a_directory() {
    for name in ["host-hvo", "arm64-64k"] {
        let root = roots::copy(name);
        for file in kinds(name) {
            let path = root.path().join(&file);
            let before = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            is_civil(&report(root.path()), &format!("no {}", file.display()));
            fs::create_dir(&path).unwrap();
            is_civil(&report(root.path()), &format!("{} is a directory", file.display()));
            fs::remove_dir(&path).unwrap();
            fs::write(&path, before).unwrap();
        }
    }
}

#[test]
fn what_is_wrong_is_named_and_the_rest_is_told() {
    let root = roots::copy("host-hvo");
    let garble = |file: &str| fs::write(root.path().join(file), "rubbish\n").unwrap();
    garble("proc/vmstat");
    garble("sys/kernel/btf/vmlinux");
    garble("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    // Of a block only the directory is there.
    fs::remove_file(root.path().join("sys/devices/system/memory/memory5/state")).unwrap();
    let output = report(root.path());
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "! /proc/vmstat (the kernel's count of descriptors): it begins with \"rubbish\"",
        "! /sys/kernel/btf/vmlinux (the size of a descriptor): it is not BTF",
        "hugepages-2048kB/nr_hugepages",
        "memory5/state (memory blocks): not among these files",
        "descriptors of 64 bytes (assumed: as is usual there)",
    ] {
        assert!(text.contains(line), "no '{line}' in\n{text}");
    }
    assert!(text.starts_with("Page metadata costs "), "{text}");
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let root = roots::copy("host-hvo");
    for file in
        ["proc/sys/kernel/osrelease", "proc/sys/kernel/arch", "sys/devices/system/memory/auto_online_blocks"]
    {
        fs::write(root.path().join(file), "\x1b[31mred\x07\n").unwrap();
    }
    let zones = fs::read_to_string(root.path().join("proc/zoneinfo")).unwrap();
    fs::write(root.path().join("proc/zoneinfo"), zones.replace("Normal", "\x1b[31m")).unwrap();
    let output = report(root.path());
    assert!(!output.stdout.contains(&0x1b) && !output.stdout.contains(&7));
}

#[test]
fn page_files_that_end_too_early_or_are_no_files() {
    let root = roots::copy("guest-virtio-mem");
    roots::write_pages(root.path(), 100, &[]);
    is_civil(&report(root.path()), "100 pages");
    fs::write(root.path().join("proc/kpageflags"), "odd").unwrap();
    is_civil(&report(root.path()), "3 bytes");
    fs::remove_file(root.path().join("proc/kpageflags")).unwrap();
    fs::create_dir(root.path().join("proc/kpageflags")).unwrap();
    let output = report(root.path());
    is_civil(&output, "a directory");
    assert_eq!(output.status.code(), Some(3));
}
