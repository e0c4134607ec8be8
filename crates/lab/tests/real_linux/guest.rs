//! What all tests do with a guest.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use pagefold_lab::{GIB, Kernel, Vm, VmBuilder, static_pagefold};
use pagefold_machine::{PageState, snapshot};
use serde_json::Value;

/// Pages in a memory block of these guests: 128 MiB.
pub const BLOCK: u64 = 1 << 15;

/// The `pagefold` that runs in guests, and on the host beside them.
pub fn pagefold() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| static_pagefold().unwrap())
}

/// A guest of 1 GiB with a virtio-mem device of 4 GiB.
pub fn builder(kernel: &Kernel) -> VmBuilder {
    builder_with(kernel, GIB, 4 * GIB)
}

/// A guest with so much memory and a virtio-mem device of such a size, which puts what it plugs into the movable zone, and
/// `pagefold`.
pub fn builder_with(kernel: &Kernel, memory: u64, device: u64) -> VmBuilder {
    Vm::builder()
        .kernel(kernel)
        .memory(memory)
        .virtio_mem(device)
        .command_line("memhp_default_state=online_movable")
        .file("/bin/pagefold", pagefold())
}

/// Records the guest's pages inside, and brings the file out.
pub fn record(guest: &mut Vm) -> Vec<u8> {
    guest.run("pagefold snapshot --force /tmp/guest.pgf").unwrap();
    guest.run_bytes("cat /tmp/guest.pgf").unwrap()
}

/// What `pagefold report` says in the guest; every part of it could be read.
pub fn report(guest: &mut Vm) -> Value {
    let report: Value = serde_json::from_str(&guest.run("pagefold report --json").unwrap()).unwrap();
    assert_eq!(report["partial"], false, "{:#}", report["gaps"]);
    report
}

/// What `pagefold` says on the host, with these arguments, of a recorded machine; as JSON.
pub fn on_host(arguments: &[&str], file: &[u8]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.pgf");
    std::fs::write(&path, file).unwrap();
    let output = Command::new(pagefold()).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Pages of the memory map, where the kernel counts them (6.10).
pub fn memmap(guest: &mut Vm) -> Option<u64> {
    let mut counter = |key: &str| guest.number("/proc/vmstat", key).ok();
    counter("nr_memmap_boot_pages").map(|boot| boot + counter("nr_memmap_pages").unwrap())
}

/// A recorded machine.
pub fn parse(file: &[u8]) -> pagefold_machine::Machine {
    snapshot::read(file).unwrap()
}

/// Pages in a state, among those from `pages`.
pub fn count(machine: &pagefold_machine::Machine, state: PageState, pages: std::ops::Range<u64>) -> u64 {
    let overlap = |start: u64, end: u64| end.min(pages.end).saturating_sub(start.max(pages.start));
    let extents = machine.extents().filter(|extent| extent.state == state);
    extents.map(|extent| overlap(extent.start, extent.start + extent.pages)).sum()
}

/// A zone's present and managed pages.
pub fn movable(machine: &pagefold_machine::Machine) -> (u64, u64) {
    let zones = machine.header.zones.iter().filter(|zone| zone.name == "Movable");
    zones.fold((0, 0), |(present, managed), zone| (present + zone.present, managed + zone.managed))
}

/// Plugs or unplugs, and waits until the guest has as many memory blocks online as it then has to.
pub fn resize(guest: &mut Vm, bytes: u64) {
    guest.qmp().resize(0, bytes).unwrap();
    wait_for_blocks(guest, bytes.div_ceil(BLOCK * 4096));
    // Parts of a block that is online already come without a sign in the guest.
    guest.qmp().wait_for_plugged(0, bytes, Duration::from_secs(60)).unwrap();
}

/// Waits until this many memory blocks are online, besides those that the guest booted with.
pub fn wait_for_blocks(guest: &mut Vm, blocks: u64) {
    let online = "cat /sys/devices/system/memory/memory*/state | grep -c ^online";
    guest.wait_for(&format!("[ $({online}) = {} ]", BOOT_BLOCKS + blocks)).unwrap();
}

/// Blocks of 1 GiB.
const BOOT_BLOCKS: u64 = 8;
