//! Bugs that other virtio-mem devices have shipped, one test each. CH is cloud-hypervisor, FC Firecracker, DB Dragonball;
//! then the commit or issue. Those of the queue are in `queue.rs`.

mod common;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use common::*;
use pagefold_virtio_mem_device::{
    Device, Memfd, MemorySlots, Pages, RegionRange, RestoreError, Settings, SettingsError, SlotAccess,
    Snapshot, SystemReset,
};
use pagefold_virtio_mem_spec::RequestType::{Plug, State, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy, Error, Nack};
use pagefold_virtio_mem_spec::{BlockState, Request};
use vm_memory::{Bytes, MemoryRegionAddress};

#[test]
fn ch_dfee31a84_unplug_all_clears_more_blocks_than_16_bits_count() {
    let settings = Settings { block_size: Some(BLOCK), ..Settings::new(ADDR, 256 * GIB) };
    let memfd = Memfd::new(256 * GIB, Pages::Normal).unwrap();
    let mut device = Device::new(settings, memfd, ()).unwrap();
    drive(&mut device);
    let _ = device.set_requested_size(256 * GIB).unwrap();
    let blocks = 256 * GIB / BLOCK;
    for (from, to) in [(0, 65_535), (65_535, 131_070), (131_070, blocks)] {
        assert_eq!(ask(&mut device, Plug, from..to), says(Ack));
    }
    assert_eq!(plugged(&device), 256 * GIB);
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert_eq!(plugged(&device), 0);
    assert_eq!(device.plugged_ranges().count(), 0);
    assert_eq!(ask(&mut device, State, blocks - 65_535..blocks), is(BlockState::Unplugged));
}

#[test]
fn ch_b37e2ed37_ch_1dd588fa6_db_no_address_overflows() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    for kind in [Plug, Unplug, State] {
        for addr in [0, BLOCK, ADDR - BLOCK, !(BLOCK - 1), 1 << 63] {
            for blocks in [1, 2, u16::MAX] {
                assert_eq!(device.handle(&Request::new(kind, addr, blocks)), says(Error));
            }
        }
    }
}

#[test]
fn ch_2ad8fac62_the_last_block_of_the_region_is_one() {
    let (mut device, _) = driven(settings(), REGION);
    assert_eq!(usable(&device), REGION);
    assert_eq!(ask(&mut device, Plug, 0..BLOCKS), says(Ack));
    assert_eq!(plugged(&device), REGION);
    assert_eq!(ask(&mut device, Unplug, BLOCKS - 1..BLOCKS), says(Ack));
    assert_eq!(ask(&mut device, State, 0..BLOCKS), is(BlockState::Mixed));
    assert_eq!(ask(&mut device, Plug, BLOCKS - 1..BLOCKS), says(Ack));
    assert_eq!(ask(&mut device, State, BLOCKS - 1..BLOCKS + 1), says(Error));
}

#[test]
fn ch_fbe3e4d64_a_restored_device_has_the_memory_it_was_saved_with() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 2..4);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    region.write_obj(42u64, MemoryRegionAddress(3 * BLOCK)).unwrap();
    device.freeze();
    let saved = device.snapshot();
    // Something else was there before, as in a file that is used again.
    region.write_obj(1u64, MemoryRegionAddress(9 * BLOCK)).unwrap();
    let file = device.backing().memfd.file().try_clone().unwrap();
    assert!(matches!(
        Memfd::from_file(file.try_clone().unwrap(), REGION),
        Err(pagefold_virtio_mem_device::MemfdError::Filled(8192))
    ));
    let host = Host::default();
    let memory = Memory { memfd: Memfd::with_contents(file, REGION).unwrap(), host: host.clone() };
    let mut restored = Device::new(settings(), memory, host.clone()).unwrap();
    restored.restore(&saved).unwrap();
    let region = restored.backing().memfd.guest_region(ADDR).unwrap();
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(3 * BLOCK)).unwrap(), 42);
    assert_eq!(data(&restored.backing().memfd), [(3 * BLOCK, 3 * BLOCK + 4096)]);
    assert_eq!((host.shown(), host.mapped()), (vec![2, 3], vec![2, 3]));
    // The driver goes on where it was.
    assert_eq!(ask(&mut restored, Unplug, 2..3), says(Ack));
}

#[test]
fn a_snapshot_that_was_damaged_or_made_up_is_refused() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 2..4);
    let good = device.snapshot();
    let damages: [fn(&mut Snapshot); 14] = [
        |saved| saved.version = 2,
        |saved| saved.plugged = vec![(0, 0)],
        |saved| saved.plugged = vec![(4, 2), (2, 1)],
        |saved| saved.plugged = vec![(2, 3), (4, 1)],
        |saved| saved.plugged = vec![(u64::MAX, 1)],
        |saved| saved.plugged = vec![(1, u64::MAX)],
        |saved| saved.plugged = vec![(0, saved.usable_region_size / BLOCK + 1)],
        |saved| saved.usable_region_size = saved.requested_size - BLOCK,
        |saved| saved.usable_region_size = 2 * REGION,
        |saved| saved.usable_region_size += 1,
        |saved| saved.requested_size = 1,
        |saved| saved.requested_size = !(BLOCK - 1),
        |saved| saved.features = u64::MAX,
        |saved| saved.features &= !2,
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let mut saved = good.clone();
        damage(&mut saved);
        let (mut fresh, host) = common::device(settings());
        let error = fresh.restore(&saved).unwrap_err();
        assert!(!matches!(error, RestoreError::Host(_)), "{number}: {error}");
        assert_eq!((plugged(&fresh), usable(&fresh), host.steps()), (0, 0, vec![]), "{number}");
        fresh.restore(&good).unwrap();
    }
    // A host that refuses leaves a device that is as new.
    for step in [
        pagefold_virtio_mem_device::Step::Populate,
        pagefold_virtio_mem_device::Step::Show,
        pagefold_virtio_mem_device::Step::MapDma,
        pagefold_virtio_mem_device::Step::Discard,
    ] {
        let (mut fresh, host) = common::device(settings());
        host.fail_once(step);
        assert!(matches!(fresh.restore(&good), Err(RestoreError::Host(_))));
        assert_eq!((plugged(&fresh), fresh.negotiated_features()), (0, 0));
        assert_eq!((host.shown(), host.mapped()), (vec![], vec![]));
        fresh.restore(&good).unwrap();
        assert_eq!(fresh.snapshot(), good);
    }
}

#[test]
fn ch_1593_no_block_survives_a_reboot() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 0..4);
    device.system_reset(SystemReset::Reboot).unwrap();
    drive(&mut device);
    assert_eq!((host.shown(), host.mapped(), plugged(&device)), (vec![], vec![], 0));
    // The new kernel plugs the same blocks.
    assert_eq!(ask(&mut device, Plug, 0..4), says(Ack));
}

#[test]
fn fc_6076_sizes_that_wrap_and_regions_of_nothing_are_refused() {
    let memory = || Memfd::new(REGION, Pages::Normal).unwrap();
    assert!(matches!(Device::new(Settings::new(ADDR, 0), memory(), ()), Err(SettingsError::Empty)));
    // 2^44 MiB is 0 in 64 bits, and 2^44 + 64 is 64 MiB: a host interface in bytes is not there to wrap.
    let (mut device, _) = driven(settings(), 64 * MIB);
    for mebibytes in [1u64 << 44, (1 << 44) + 64] {
        let size = mebibytes.saturating_mul(MIB);
        assert!(device.set_requested_size(size).is_err());
    }
    assert_eq!(device.config().requested_size.get(), 64 * MIB);
}

#[test]
fn fc_an_over_target_plug_is_no_error_when_the_host_shrinks_meanwhile() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    let _ = device.set_requested_size(BLOCK).unwrap();
    assert_eq!(ask(&mut device, Plug, 0..2), says(Nack));
}

#[test]
fn fc_unplug_all_leaves_a_usable_region_for_what_is_requested() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 0..2);
    ask(&mut device, UnplugAll, 0..0);
    assert_eq!(ask(&mut device, Plug, 0..2), says(Ack));
}

/// A hypervisor with slots of 128 MiB.
#[derive(Clone, Default)]
struct Hypervisor(Arc<Mutex<(BTreeSet<u64>, usize)>>);

impl Hypervisor {
    fn slots(&self) -> Vec<u64> {
        self.0.lock().unwrap().0.iter().copied().collect()
    }

    /// The call after so many others fails.
    fn fail_after(&self, calls: usize) {
        self.0.lock().unwrap().1 = calls + 1;
    }

    fn call(&self, add: bool, part: &RegionRange) -> io::Result<()> {
        let (slots, fails) = &mut *self.0.lock().unwrap();
        assert_eq!((part.offset % SLOT, part.addr), (0, ADDR + part.offset));
        *fails = fails.saturating_sub(1);
        if *fails == 0 {
            *fails = usize::MAX;
            return Err(io::Error::other("no slot"));
        }
        let slot = part.offset / SLOT;
        assert!(if add { slots.insert(slot) } else { slots.remove(&slot) }, "slot {slot} twice");
        Ok(())
    }
}

impl MemorySlots for Hypervisor {
    fn add(&mut self, part: &RegionRange) -> io::Result<()> {
        self.call(true, part)
    }
    fn remove(&mut self, part: &RegionRange) -> io::Result<()> {
        self.call(false, part)
    }
}

const SLOT: u64 = 128 * MIB;

fn slotted() -> (Device<Memfd, SlotAccess<Hypervisor>>, Hypervisor) {
    let hypervisor = Hypervisor::default();
    hypervisor.fail_after(usize::MAX - 1);
    let access = SlotAccess::new(hypervisor.clone(), ADDR, REGION, SLOT).unwrap();
    let mut device = Device::new(settings(), Memfd::new(REGION, Pages::Normal).unwrap(), access).unwrap();
    drive(&mut device);
    let _ = device.set_requested_size(REGION).unwrap();
    (device, hypervisor)
}

#[test]
fn fc_5793_a_slot_is_there_as_long_as_any_of_its_blocks_is_plugged() {
    let (mut device, hypervisor) = slotted();
    let per_slot = SLOT / BLOCK;
    // In the middle of slot 1, then over the edge into slot 2.
    assert_eq!(ask(&mut device, Plug, per_slot + 5..per_slot + 6), says(Ack));
    assert_eq!(hypervisor.slots(), [1]);
    assert_eq!(ask(&mut device, Plug, 2 * per_slot - 1..2 * per_slot + 1), says(Ack));
    assert_eq!(hypervisor.slots(), [1, 2]);
    assert_eq!(ask(&mut device, Unplug, 2 * per_slot - 1..2 * per_slot + 1), says(Ack));
    assert_eq!(hypervisor.slots(), [1]);
    assert_eq!(ask(&mut device, Unplug, per_slot + 5..per_slot + 6), says(Ack));
    assert!(hypervisor.slots().is_empty());
    assert_eq!(ask(&mut device, Plug, 0..BLOCKS), says(Ack));
    assert_eq!(hypervisor.slots().len() as u64, REGION / SLOT);
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert!(hypervisor.slots().is_empty());
}

#[test]
fn fc_6176_a_request_over_several_slots_is_done_whole_or_not_at_all() {
    let per_slot = SLOT / BLOCK;
    for fails in 0..3 {
        let (mut device, hypervisor) = slotted();
        hypervisor.fail_after(fails);
        assert_eq!(ask(&mut device, Plug, per_slot / 2..2 * per_slot + 3), says(Busy));
        assert_eq!((hypervisor.slots(), plugged(&device)), (vec![], 0));
        assert_eq!(ask(&mut device, Plug, per_slot / 2..2 * per_slot + 3), says(Ack));
        hypervisor.fail_after(fails);
        let before = plugged(&device);
        assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Busy));
        assert_eq!((hypervisor.slots(), plugged(&device)), (vec![0, 1, 2], before));
        assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
        assert!(hypervisor.slots().is_empty());
    }
}

#[test]
fn slots_of_nothing_are_refused() {
    assert!(SlotAccess::new(Hypervisor::default(), ADDR, REGION, 0).is_err());
}
