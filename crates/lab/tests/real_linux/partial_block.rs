//! A memory block with one sub-block plugged: 63 of 64 are fake-offline, and have descriptors all the same.

use pagefold_lab::{GIB, Kernel, MIB};
use pagefold_machine::PageState;
use serde_json::Value;

use crate::guest;

/// 63 sub-blocks of 2 MiB.
const FAKE_OFFLINE: u64 = 32_256;

pub fn shows_and_replays(kernel: &Kernel) {
    // Two CPUs: pages are read by two threads.
    let mut guest = guest::builder(kernel).cpus(2).boot().unwrap();
    guest::resize(&mut guest, 2 * MIB);
    let file = guest::record(&mut guest);

    let machine = guest::parse(&file);
    assert_eq!(machine.header.kernel, kernel.release());
    assert_eq!(guest::count(&machine, PageState::Offline, 0..u64::MAX), FAKE_OFFLINE);
    // The kernel's own count of the same.
    assert_eq!(guest::movable(&machine), (guest::BLOCK, guest::BLOCK - FAKE_OFFLINE));

    // The report, in the guest.
    let report = guest::report(&mut guest);
    let bytes = |figure: &Value| figure["bytes"].as_u64().unwrap();
    let offline = &report["offline"];
    assert_eq!(
        (bytes(&offline["memory"]), bytes(&offline["descriptors"])),
        (FAKE_OFFLINE * 4096, 2016 * 1024)
    );
    assert_eq!(offline["blocks"], 1);
    let blocks = report["blocks"]["list"].as_array().unwrap();
    let block = blocks.iter().find(|block| block["offline"] != 0).unwrap();
    assert_eq!(
        (&block["block"], &block["offline_descriptors"]),
        (&((4 * GIB) >> 27).into(), &(2016 * 1024).into())
    );
    // Zones, and all descriptors, as the kernel counts them where it does.
    let zones = report["zones"].as_array().unwrap();
    let zone = zones.iter().find(|zone| zone["zone"] == "Movable").unwrap();
    assert_eq!((&zone["present"], &zone["managed"]), (&(guest::BLOCK * 4096).into(), &(2 * MIB).into()));
    match guest::memmap(&mut guest) {
        Some(pages) => assert_eq!(bytes(&report["descriptors"]), pages * 4096),
        None => assert_eq!(report["descriptors"]["how"], "computed"),
    }
    // Arithmetic says the same: sections of System RAM.
    let computed = &report["descriptors_computed"];
    assert_eq!(
        (&computed["min"], &computed["max"]),
        (&report["descriptors"]["bytes"], &report["descriptors"]["bytes"])
    );

    // The same machine lives in the engine, on the host.
    drop(guest);
    let replay = guest::on_host(&["replay", "--json", "--seconds", "1", "--snapshot"], &file);
    assert_eq!(replay["kernel"], kernel.release());
    assert_eq!(replay["violations"]["total"], 0, "{:#}", replay["violations"]);
    let states = replay["states"].as_array().unwrap();
    let offline = states.iter().find(|state| state["state"] == "offline").unwrap();
    assert_eq!(offline["pages"], FAKE_OFFLINE);
    assert_eq!(offline["linux_bytes"], 2016 * 1024);
    assert_eq!(offline["pagefold_bytes"], 0);
}
