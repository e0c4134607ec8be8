//! Bugs that other virtio-mem devices have shipped, one test each. CH is cloud-hypervisor, FC Firecracker, DB Dragonball;
//! then the commit or issue. Those of the queue are in `queue.rs`.

mod common;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use common::*;
use pagefold_virtio_mem_device::{
    Device, GuestAccess, Memfd, MemorySlots, Pages, RegionRange, Settings, SettingsError, SlotAccess,
    SystemReset,
};
use pagefold_virtio_mem_spec::RequestType::{Plug, State, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy, Error, Nack};
use pagefold_virtio_mem_spec::{PlugState, Request};

#[test]
fn ch_dfee31a84_unplug_all_clears_more_blocks_than_16_bits_count() {
    let settings = Settings { block_size: Some(BLOCK), ..Settings::new(ADDR, 256 * GIB) };
    let memfd = Memfd::new(256 * GIB, Pages::Normal).unwrap();
    let mut device = Device::new(settings, memfd, ()).unwrap();
    drive(&mut device);
    resize(&mut device, 256 * GIB);
    let blocks = 256 * GIB / BLOCK;
    for (from, to) in [(0, 65_535), (65_535, 131_070), (131_070, blocks)] {
        assert_eq!(ask(&mut device, Plug, from..to), says(Ack));
    }
    assert_eq!(plugged(&device), 256 * GIB);
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert_eq!(plugged(&device), 0);
    assert_eq!(device.plugged_ranges().count(), 0);
    assert_eq!(ask(&mut device, State, blocks - 65_535..blocks), is(PlugState::Unplugged));
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
    assert_eq!(ask(&mut device, State, 0..BLOCKS), is(PlugState::Mixed));
    assert_eq!(ask(&mut device, Plug, BLOCKS - 1..BLOCKS), says(Ack));
    assert_eq!(ask(&mut device, State, BLOCKS - 1..BLOCKS + 1), says(Error));
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
    resize(&mut device, BLOCK);
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
#[derive(Clone, Debug, Default)]
struct Hypervisor(Arc<Mutex<Slots>>);

#[derive(Debug, Default)]
struct Slots {
    there: BTreeSet<u64>,
    /// Bytes of every slot that was added.
    lens: Vec<u64>,
    /// Calls from now on that fail, by number.
    fails: BTreeSet<u64>,
    calls: u64,
}

impl Hypervisor {
    fn slots(&self) -> Vec<u64> {
        self.0.lock().unwrap().there.iter().copied().collect()
    }

    /// The calls with these numbers fail; the next one is 0.
    fn fail_at(&self, calls: impl IntoIterator<Item = u64>) {
        let slots = &mut *self.0.lock().unwrap();
        (slots.fails, slots.calls) = (calls.into_iter().collect(), 0);
    }

    fn call(&self, add: bool, part: &RegionRange) -> io::Result<()> {
        let slots = &mut *self.0.lock().unwrap();
        assert_eq!((part.offset % SLOT, part.addr), (0, ADDR + part.offset));
        slots.calls += 1;
        if slots.fails.contains(&(slots.calls - 1)) {
            return Err(io::Error::other("no slot"));
        }
        let slot = part.offset / SLOT;
        assert!(if add { slots.there.insert(slot) } else { slots.there.remove(&slot) }, "slot {slot} twice");
        if add {
            slots.lens.push(part.len);
        }
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
    let access = SlotAccess::new(hypervisor.clone(), SLOT).unwrap();
    let mut device = Device::new(settings(), Memfd::new(REGION, Pages::Normal).unwrap(), access).unwrap();
    drive(&mut device);
    resize(&mut device, REGION);
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
        hypervisor.fail_at([fails]);
        assert_eq!(ask(&mut device, Plug, per_slot / 2..2 * per_slot + 3), says(Busy));
        assert_eq!((hypervisor.slots(), plugged(&device)), (vec![], 0));
        assert_eq!(ask(&mut device, Plug, per_slot / 2..2 * per_slot + 3), says(Ack));
        hypervisor.fail_at([fails]);
        let before = plugged(&device);
        assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Busy));
        assert_eq!((hypervisor.slots(), plugged(&device)), (vec![0, 1, 2], before));
        assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
        assert!(hypervisor.slots().is_empty());
    }
}

#[test]
fn a_slot_that_is_refused_twice_is_put_right_before_the_next_change() {
    let per_slot = SLOT / BLOCK;
    let (mut device, hypervisor) = slotted();
    // The third slot is refused, and so is the removal of the second.
    hypervisor.fail_at([2, 3]);
    assert_eq!(ask(&mut device, Plug, per_slot / 2..2 * per_slot + 3), says(Busy));
    assert_eq!((hypervisor.slots(), plugged(&device), device.is_settled()), (vec![0, 1], 0, false));
    // Refused again: no change goes before it.
    hypervisor.fail_at([0]);
    assert_eq!(ask(&mut device, Plug, 5 * per_slot..5 * per_slot + 1), says(Busy));
    assert_eq!((hypervisor.slots(), device.is_settled()), (vec![0, 1], false));
    assert_eq!(ask(&mut device, Plug, 5 * per_slot..5 * per_slot + 1), says(Ack));
    assert_eq!((hypervisor.slots(), device.is_settled()), (vec![5], true));
}

#[test]
fn slots_that_are_too_small_and_slots_of_another_device_are_refused() {
    assert!(SlotAccess::new(Hypervisor::default(), 0).is_err());
    assert!(SlotAccess::new(Hypervisor::default(), MIB - 1).is_err());
    let mut used = SlotAccess::new(Hypervisor::default(), SLOT).unwrap();
    used.attach(&RegionRange { addr: ADDR, offset: 0, len: REGION }).unwrap();
    let error = Device::new(settings(), Memfd::new(REGION, Pages::Normal).unwrap(), used).unwrap_err();
    assert!(matches!(&error, SettingsError::Host(why) if why.contains("another device's")), "{error}");
}

#[test]
fn the_last_slot_ends_with_the_region() {
    let hypervisor = Hypervisor::default();
    let access = SlotAccess::new(hypervisor.clone(), SLOT).unwrap();
    let settings = Settings { guest_block_size: 64 * MIB, region_size: 3 * SLOT / 2, ..settings() };
    let memfd = Memfd::new(settings.region_size, Pages::Normal).unwrap();
    let mut device = Device::new(settings, memfd, access).unwrap();
    drive(&mut device);
    resize(&mut device, 3 * SLOT / 2);
    assert_eq!(ask(&mut device, Plug, 0..3 * SLOT / 2 / BLOCK), says(Ack));
    assert_eq!(hypervisor.0.lock().unwrap().lens, [SLOT, SLOT / 2]);
}

#[test]
fn slots_asked_for_what_makes_no_sense_say_so_and_change_nothing() {
    let mut access = SlotAccess::new(Hypervisor::default(), SLOT).unwrap();
    let range = |offset: u64, len| RegionRange { addr: ADDR.wrapping_add(offset), offset, len };
    assert!(access.show(&range(0, BLOCK)).is_err(), "no region yet");
    access.attach(&range(0, REGION)).unwrap();
    for (offset, len) in [
        (0, 0),
        (SLOT - BLOCK, 2 * BLOCK),
        (REGION, BLOCK),
        (u64::MAX - 1, 1),
        (BLOCK, u64::MAX),
        (0, 2 * SLOT),
    ] {
        assert!(access.show(&range(offset, len)).is_err(), "{offset:#x} {len:#x}");
        assert!(access.hide(&range(offset, len)).is_err(), "{offset:#x} {len:#x}");
    }
    assert!(access.hide(&range(0, BLOCK)).is_err());
    access.show(&range(0, SLOT)).unwrap();
    assert!(access.show(&range(0, BLOCK)).is_err());
    access.hide(&range(0, SLOT)).unwrap();
    assert!(access.slots().slots().is_empty());
}
