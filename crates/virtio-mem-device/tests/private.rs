//! Memory of the VMM alone: what is unplugged goes back, and what was saved elsewhere stays as it is.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::*;
use pagefold_virtio_mem_device::{Backing, Device, MemfdError, Private, RestoreError, Snapshot};
use pagefold_virtio_mem_spec::RequestType::{Plug, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::ResponseType::Ack;
use vm_memory::{Bytes, FileOffset, GuestRegionMmap, MemoryRegionAddress};

fn word(region: &GuestRegionMmap, at: u64) -> u64 {
    region.read_obj(MemoryRegionAddress(at)).unwrap()
}

#[test]
fn anonymous_memory_goes_back_when_it_is_unplugged_and_comes_again_empty() {
    let mut device = Device::new(settings(), Private::anonymous(REGION).unwrap(), ()).unwrap();
    let region = device.guest_region().unwrap();
    drive(&mut device);
    resize(&mut device, REGION);
    assert_eq!(ask(&mut device, Plug, 0..4), says(Ack));
    for block in 0..4 {
        region.write_slice(&vec![7; BLOCK as usize], MemoryRegionAddress(block * BLOCK)).unwrap();
    }
    assert_eq!(device.backing().resident().unwrap(), 4 * BLOCK);
    assert_eq!(ask(&mut device, Unplug, 1..3), says(Ack));
    assert_eq!(device.backing().resident().unwrap(), 2 * BLOCK);
    assert_eq!(ask(&mut device, Plug, 1..2), says(Ack));
    assert_eq!(word(&region, BLOCK), 0);
    assert_eq!(
        (word(&region, BLOCK - 8), word(&region, 3 * BLOCK)),
        (0x0707_0707_0707_0707, 0x0707_0707_0707_0707)
    );
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert_eq!(device.backing().resident().unwrap(), 0);
    // The mapping is the same one, and outlives the device.
    drop(device);
    region.write_obj(1u64, MemoryRegionAddress(0)).unwrap();
}

#[test]
fn anonymous_memory_is_filled_when_it_is_plugged_if_that_is_wanted() {
    let memory = Private::anonymous(REGION).unwrap().with_prealloc(true);
    let mut device = Device::new(settings(), memory, ()).unwrap();
    drive(&mut device);
    resize(&mut device, REGION);
    assert_eq!(ask(&mut device, Plug, 3..5), says(Ack));
    assert_eq!(device.backing().resident().unwrap(), 2 * BLOCK);
}

/// A guest that was saved: blocks 2 to 6 plugged, each with its number in it; the file's memory begins at its second MiB.
fn saved() -> (Snapshot, File) {
    let (mut device, _) = driven(settings(), REGION);
    assert_eq!(ask(&mut device, Plug, 2..6), says(Ack));
    let file = tempfile();
    file.set_len(MIB + REGION).unwrap();
    for block in 0..8u64 {
        // What the guest did not have plugged is in the file too: a saver that knows nothing of blocks.
        file.write_all_at(&(100 + block).to_ne_bytes(), MIB + block * BLOCK).unwrap();
    }
    (device.snapshot(), file)
}

fn tempfile() -> File {
    rustix::fs::memfd_create("saved", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
}

#[test]
fn a_saved_file_is_the_guests_where_it_was_plugged_and_stays_as_it_is() {
    let (snapshot, file) = saved();
    let view = || Private::of_file(FileOffset::new(file.try_clone().unwrap(), MIB), REGION).unwrap();
    let mut device = Device::restore(settings(), view(), (), &snapshot).unwrap();
    // A second guest from the same file.
    let other = Device::restore(settings(), view(), (), &snapshot).unwrap();
    let (region, beside) = (device.guest_region().unwrap(), other.guest_region().unwrap());
    let words =
        |region: &GuestRegionMmap| (0..8).map(|block| word(region, block * BLOCK)).collect::<Vec<_>>();
    assert_eq!(words(&region), [0, 0, 102, 103, 104, 105, 0, 0]);
    region.write_obj(1u64, MemoryRegionAddress(2 * BLOCK)).unwrap();
    assert_eq!(ask(&mut device, Unplug, 3..5), says(Ack));
    assert_eq!(ask(&mut device, Plug, 4..5), says(Ack));
    assert_eq!(words(&region), [0, 0, 1, 0, 0, 105, 0, 0]);
    region.write_obj(9u64, MemoryRegionAddress(4 * BLOCK)).unwrap();
    assert_eq!(word(&region, 4 * BLOCK), 9);
    assert_eq!(words(&beside), [0, 0, 102, 103, 104, 105, 0, 0]);
    let mut bytes = [0; 8];
    for block in 0..8u64 {
        file.read_exact_at(&mut bytes, MIB + block * BLOCK).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 100 + block);
    }
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert_eq!(words(&region), [0; 8]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (snapshot, file) = saved();
    let view = |from, size| Private::of_file(FileOffset::new(file.try_clone().unwrap(), from), size);
    for (from, size) in [(2 * MIB, REGION), (u64::MAX, REGION), (MIB, u64::MAX)] {
        assert!(matches!(view(from, size), Err(MemfdError::Map(why)) if why.contains("of a file that has")));
    }
    // A new device would show the guest what was another's.
    assert!(Device::new(settings(), view(MIB, REGION).unwrap(), ()).is_err());
    let small = Device::restore(settings(), view(MIB, REGION / 2).unwrap(), (), &snapshot);
    assert!(matches!(small, Err(RestoreError::Settings(_))));
    // No other memory of this process is ever touched.
    let mut memory = Private::anonymous(REGION).unwrap();
    for (offset, len) in
        [(REGION, 4096), (REGION - 4096, 8192), (1, 4096), (4096, 1), (u64::MAX - 4095, 4096)]
    {
        assert!(memory.discard(offset, len).is_err() && memory.populate(offset, len).is_err());
    }
}
