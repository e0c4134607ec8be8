//! Memory that arrives while the guest runs, by a real `userfaultfd`: what the device takes away does not arrive any more.

mod common;
#[path = "common/uffd.rs"]
mod uffd;

use common::*;
use pagefold_virtio_mem_device::{Backing, Device, Lazy, Memfd, Pages, Private, Snapshot, Step};
use pagefold_virtio_mem_spec::RequestType::{Plug, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy};
use uffd::{Filler, PAGE};
use vm_memory::{Bytes, GuestRegionMmap, MemoryRegionAddress};

/// A guest that was saved with blocks 2 to 6 plugged, and the region's first bytes: in each page its number, also where nothing
/// was plugged.
fn saved() -> (Snapshot, Vec<u8>) {
    let (mut device, _) = driven(settings(), REGION);
    assert_eq!(ask(&mut device, Plug, 2..6), says(Ack));
    let mut bytes = vec![0; (8 * BLOCK) as usize];
    for page in 0..8 * BLOCK / PAGE {
        bytes[(page * PAGE) as usize..][..8].copy_from_slice(&(1000 + page).to_ne_bytes());
    }
    (device.snapshot(), bytes)
}

fn word(region: &GuestRegionMmap, at: u64) -> u64 {
    region.read_obj(MemoryRegionAddress(at)).unwrap()
}

fn was(at: u64) -> u64 {
    1000 + at / PAGE
}

/// The memory, filled lazily; `None` where the kernel does not let this process.
fn filler(region: &GuestRegionMmap, bytes: Vec<u8>) -> Option<Filler> {
    Filler::new(region, bytes).inspect_err(|error| println!("left out: userfaultfd: {error}")).ok()
}

fn arrives(memory: impl Backing, region: &GuestRegionMmap) {
    let (snapshot, bytes) = saved();
    let Some(filler) = filler(region, bytes) else { return };
    let memory = Lazy::new(memory, filler.pages.clone());
    let mut device = Device::restore(settings(), memory, (), &snapshot).unwrap();
    assert_eq!((filler.arrived(), device.backing().resident().unwrap()), (0, 0), "nothing is there yet");
    // The guest touches two pages of block 2.
    assert_eq!(word(region, 2 * BLOCK), was(2 * BLOCK));
    assert_eq!(word(region, 2 * BLOCK + PAGE), was(2 * BLOCK + PAGE));
    assert_eq!((filler.arrived(), device.backing().resident().unwrap()), (2, 2 * PAGE));
    // It gives back what has arrived in part, and what has not arrived at all, and takes it again.
    assert_eq!(ask(&mut device, Unplug, 2..4), says(Ack));
    assert_eq!(device.backing().resident().unwrap(), 0);
    assert_eq!(ask(&mut device, Plug, 2..4), says(Ack));
    for at in [2 * BLOCK, 2 * BLOCK + PAGE, 2 * BLOCK + 2 * PAGE, 3 * BLOCK, 4 * BLOCK - PAGE] {
        assert_eq!(word(region, at), 0, "at {at:#x}");
    }
    // What was never plugged does not arrive either.
    assert_eq!(ask(&mut device, Plug, 0..1), says(Ack));
    assert_eq!((word(region, 0), filler.arrived()), (0, 2));
    region.write_obj(7u64, MemoryRegionAddress(3 * BLOCK)).unwrap();
    // The rest does, and what the guest has written stays.
    for page in 0..2 * BLOCK / PAGE {
        assert_eq!(word(region, 4 * BLOCK + page * PAGE), was(4 * BLOCK + page * PAGE));
    }
    assert_eq!((word(region, 3 * BLOCK), filler.arrived()), (7, 2 + 2 * BLOCK / PAGE));
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert_eq!(device.backing().resident().unwrap(), 0);
}

#[test]
fn a_memory_file_arrives_but_not_what_the_guest_has_given_back() {
    let memfd = Memfd::new(REGION, Pages::Normal).unwrap();
    let region = memfd.guest_region(ADDR).unwrap();
    arrives(memfd, &region);
}

#[test]
fn private_memory_arrives_but_not_what_the_guest_has_given_back() {
    let memory = Private::anonymous(REGION).unwrap();
    let region = memory.guest_region(ADDR).unwrap();
    arrives(memory, &region);
}

#[test]
fn memory_that_is_filled_when_it_is_plugged_is_not_before_it_arrives() {
    let (snapshot, bytes) = saved();
    let memfd = Memfd::new(REGION, Pages::Normal).unwrap().with_prealloc(true);
    let region = memfd.guest_region(ADDR).unwrap();
    let Some(filler) = filler(&region, bytes) else { return };
    let mut device =
        Device::restore(settings(), Lazy::new(memfd, filler.pages.clone()), (), &snapshot).unwrap();
    assert_eq!(word(&region, 5 * BLOCK), was(5 * BLOCK));
    assert_eq!(ask(&mut device, Plug, 6..7), says(Ack));
    assert_eq!(device.backing().resident().unwrap(), PAGE + BLOCK);
}

#[test]
fn what_the_host_will_not_take_arrives_after_all() {
    let (snapshot, bytes) = saved();
    let host = Host::default();
    let memory = Memory { memfd: Memfd::new(REGION, Pages::Normal).unwrap(), host: host.clone() };
    let region = memory.memfd.guest_region(ADDR).unwrap();
    let Some(filler) = filler(&region, bytes) else { return };
    let memory = Lazy::new(memory, filler.pages.clone());
    let mut device = Device::restore(settings(), memory, host.clone(), &snapshot).unwrap();
    // A page that was given back, and came again as zeros, is not among what is remembered.
    assert_eq!(ask(&mut device, Unplug, 2..3), says(Ack));
    assert_eq!(ask(&mut device, Plug, 2..3), says(Ack));
    host.fail_once(Step::Discard);
    assert_eq!(ask(&mut device, Unplug, 2..4), says(Busy));
    assert_eq!((word(&region, 2 * BLOCK), word(&region, 3 * BLOCK)), (0, was(3 * BLOCK)));
    host.work();
    assert_eq!(ask(&mut device, Unplug, 2..4), says(Ack));
    assert_eq!(ask(&mut device, Plug, 2..4), says(Ack));
    assert_eq!((word(&region, 3 * BLOCK), word(&region, 3 * BLOCK + PAGE)), (0, 0));
}
