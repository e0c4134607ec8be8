//! `memory_hotplug.memmap_on_memory=1` puts the descriptors of a DIMM on the DIMM itself, but not those of virtio-mem
//! memory: they come out of memory that the machine has already.

use pagefold_lab::{GIB, Kernel, MIB, Vm};
use pagefold_machine::ZoneRecord;

use crate::guest::{self, BLOCK};

/// Descriptors of a block, in pages.
const MEMMAP: u64 = BLOCK / 64;

pub fn does_nothing(kernel: &Kernel) {
    // `online` is what Firecracker's guide recommends with it (docs/memory-hotplug.md).
    for state in ["online", "online_movable"] {
        let options = format!("memory_hotplug.memmap_on_memory=1 memhp_default_state={state}");
        let builder = guest::builder(kernel).change_qemu(|qemu| qemu.dimms(GIB));
        let mut guest = builder.command_line(&options).boot().unwrap();
        let value = guest.run("cat /sys/module/memory_hotplug/parameters/memmap_on_memory").unwrap();
        assert_eq!(value.trim(), "Y");
        let value = guest.run("cat /sys/devices/system/memory/auto_online_blocks").unwrap();
        assert_eq!(value.trim(), state);

        // Two blocks of virtio-mem: all their pages are there to be used, and the descriptors are elsewhere.
        let boot = pages(&mut guest);
        guest::resize(&mut guest, 256 * MIB);
        let mem = pages(&mut guest);
        assert_eq!(
            (mem.present - boot.present, mem.managed - boot.managed),
            (2 * BLOCK, 2 * BLOCK),
            "{state}"
        );
        // A DIMM of a block: its first pages hold its descriptors. The option is understood, and works.
        guest.qmp().plug_dimm(128 * MIB).unwrap();
        guest::wait_for_blocks(&mut guest, 3);
        let dimm = pages(&mut guest);
        assert_eq!(
            (dimm.present - mem.present, dimm.managed - mem.managed),
            (BLOCK, BLOCK - MEMMAP),
            "{state}"
        );
    }
}

/// Pages of all zones.
fn pages(guest: &mut Vm) -> ZoneRecord {
    let zones = guest::parse(&guest::record(guest)).header.zones;
    zones.into_iter().fold(ZoneRecord::default(), |sum, zone| ZoneRecord {
        present: sum.present + zone.present,
        managed: sum.managed + zone.managed,
        ..sum
    })
}
