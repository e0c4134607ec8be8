//! Memory that comes from the kernel and goes back to it, and a kernel that says no.

mod common;

use std::fs::{self, File};

use common::*;
use pagefold_virtio_mem_device::{Backing, Device, Memfd, MemfdError, Pages, Settings, SettingsError};
use pagefold_virtio_mem_spec::RequestType::{Plug, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{Bytes, GuestMemoryRegion, MemoryRegionAddress};

fn sealable(size: u64) -> File {
    let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, size).unwrap();
    file.into()
}

fn on(memfd: Memfd) -> Device<Memfd> {
    let mut device = Device::new(settings(), memfd, ()).unwrap();
    drive(&mut device);
    resize(&mut device, REGION);
    device
}

#[test]
fn a_terabyte_costs_nothing_until_it_is_used() {
    let memfd = Memfd::new(1 << 40, Pages::Normal).unwrap();
    let region = memfd.guest_region(ADDR).unwrap();
    let mut device =
        Device::new(Settings { block_size: Some(BLOCK), ..Settings::new(ADDR, 1 << 40) }, memfd, ()).unwrap();
    drive(&mut device);
    resize(&mut device, 1 << 40);
    for first in (0..(1 << 40) / BLOCK).step_by(4096) {
        assert_eq!(ask(&mut device, Plug, first..first + 4096), says(Ack));
    }
    assert_eq!((plugged(&device), device.backing().resident().unwrap()), (1 << 40, 0));
    assert_eq!(region.len(), 1 << 40);
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
}

#[test]
fn rd11_blocks_are_filled_as_they_are_plugged() {
    let mut device = on(Memfd::new(REGION, Pages::Normal).unwrap().with_prealloc(true));
    assert_eq!(device.backing().resident().unwrap(), 0);
    assert_eq!(ask(&mut device, Plug, 1..3), says(Ack));
    assert_eq!(device.backing().resident().unwrap(), 2 * BLOCK);
    assert_eq!(ask(&mut device, Unplug, 1..2), says(Ack));
    assert_eq!(device.backing().resident().unwrap(), BLOCK);
}

#[test]
fn rd11_a_host_without_memory_says_busy() {
    // The kernel will not fill what lies beyond a file that may not grow.
    let file = sealable(REGION);
    let memfd = Memfd::from_file(file.try_clone().unwrap(), REGION).unwrap().with_prealloc(true);
    let mut device = on(memfd);
    ftruncate(&file, 8 * BLOCK).unwrap();
    fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    assert_eq!(ask(&mut device, Plug, 0..4), says(Ack));
    assert_eq!(ask(&mut device, Plug, 6..10), says(Busy));
    let error = device.host_failures().1.unwrap().to_string();
    assert!(error.starts_with("populating memory of 8388608 bytes at 0x100c00000: "), "{error}");
    assert_eq!(device.backing().resident().unwrap(), 4 * BLOCK);
    assert_eq!((plugged(&device), device.is_settled()), (4 * BLOCK, true));
}

#[test]
fn rd11_a_pool_that_runs_dry_says_busy_and_keeps_nothing() {
    let free: u64 = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .map_or(0, |text| text.trim().parse().unwrap());
    let mut device = on(Memfd::new(REGION, Pages::Huge2MiB).unwrap().with_prealloc(true));
    // More than the pool has, or more than a request can ask for.
    let blocks = BLOCKS.min(free + 1);
    if blocks > free {
        assert_eq!(ask(&mut device, Plug, 0..blocks), says(Busy));
        assert_eq!((plugged(&device), device.backing().resident().unwrap()), (0, 0));
    } else {
        assert_eq!(ask(&mut device, Plug, 0..blocks), says(Ack));
    }
}

#[test]
fn a_kernel_that_takes_nothing_back_says_busy() {
    let file = sealable(REGION);
    let memfd = Memfd::from_file(file.try_clone().unwrap(), REGION).unwrap();
    let mut device = on(memfd);
    assert_eq!(ask(&mut device, Plug, 0..4), says(Ack));
    {
        let region = device.backing().guest_region(ADDR).unwrap();
        region.write_obj(9u64, MemoryRegionAddress(0)).unwrap();
    }
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    assert_eq!(ask(&mut device, Unplug, 0..1), says(Busy));
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Busy));
    assert_eq!((plugged(&device), device.is_settled()), (4 * BLOCK, true));
    assert_eq!(data(device.backing()), [(0, 4096)]);
}

#[test]
fn a_file_that_is_short_or_filled_is_refused() {
    let file = sealable(REGION / 2);
    let memfd = Memfd::from_file(file.try_clone().unwrap(), REGION).unwrap();
    assert_eq!(memfd.size(), REGION / 2);
    assert!(Device::new(settings(), memfd, ()).is_err());
    let file = sealable(REGION);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, MIB).unwrap();
    let error = Device::new(settings(), Memfd::from_file(file.try_clone().unwrap(), REGION).unwrap(), ());
    assert!(matches!(error, Err(SettingsError::Filled(MIB))), "{error:?}");
    // It was not emptied: it may be what somebody has saved.
    assert_eq!(Memfd::from_file(file, REGION).unwrap().resident().unwrap(), MIB);
    assert!(matches!(Memfd::new(u64::MAX, Pages::Normal), Err(MemfdError::Create { .. })));
}

#[test]
fn a_file_that_is_shared_cannot_be_truncated() {
    for pages in [Pages::Normal, Pages::Huge2MiB] {
        let memfd = Memfd::new(REGION, pages).unwrap();
        let other = memfd.file().try_clone().unwrap();
        assert!(ftruncate(&other, 0).is_err() && ftruncate(&other, 2 * REGION).is_err());
        assert!(fcntl_add_seals(&other, SealFlags::WRITE).is_err());
    }
}
