//! Memory blocks that are taken offline and brought back by hand.

use pagefold_lab::{GIB, Kernel, MIB};
use pagefold_machine::PageState;

use crate::guest::{self, BLOCK};

pub fn show(kernel: &Kernel) {
    let mut guest = guest::builder(kernel).boot().unwrap();
    guest::resize(&mut guest, 256 * MIB);
    // The device's memory begins at 4 GiB; its second block.
    let block = 4 * GIB / 4096 / BLOCK + 1;
    let pages = block * BLOCK..(block + 1) * BLOCK;
    let free = |file: &[u8]| guest::count(&guest::parse(file), PageState::Free, pages.clone());
    let present = |file: &[u8]| guest::movable(&guest::parse(file)).0;

    let file = guest::record(&mut guest);
    // Not all of it: per-CPU lists, and whatever moved there.
    assert!(free(&file) > BLOCK / 2, "{} free", free(&file));
    assert_eq!(present(&file), 2 * BLOCK);

    guest.run(&format!("echo offline > /sys/devices/system/memory/memory{block}/state")).unwrap();
    let file = guest::record(&mut guest);
    assert_eq!((free(&file), present(&file)), (0, BLOCK));
    let machine = guest::parse(&file);
    // It has memory still, but no page of it is in use.
    assert!(machine.header.memory.iter().any(|range| range.start <= pages.start && pages.end <= range.end));
    // Whatever the kernel's flags of them say, which differs.
    assert_eq!(guest::count(&machine, PageState::NoPage, pages.clone()), BLOCK);
    let report = guest::report(&mut guest);
    let blocks = report["blocks"]["list"].as_array().unwrap();
    let states: Vec<_> =
        blocks.iter().filter(|row| row["state"] == "offline").map(|row| &row["block"]).collect();
    assert_eq!(states, [block]);
    // The memory that is left, as the kernel's zones have it; descriptors are there for all of it.
    let zones = report["zones"].as_array().unwrap();
    let in_zones: u64 = zones.iter().map(|zone| zone["present"].as_u64().unwrap()).sum();
    assert_eq!(report["memory"]["bytes"], in_zones, "{:#} {zones:#?}", report["memory"]);
    if let Some(pages) = guest::memmap(&mut guest) {
        assert_eq!(report["descriptors"]["bytes"], pages * 4096);
    }

    guest.run(&format!("echo online_movable > /sys/devices/system/memory/memory{block}/state")).unwrap();
    let file = guest::record(&mut guest);
    assert!(free(&file) > BLOCK / 2, "{} free", free(&file));
    assert_eq!(present(&file), 2 * BLOCK);
}
