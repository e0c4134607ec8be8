//! Big-block mode: devices whose blocks are as large as memory blocks, or drivers that are told to use it.

mod common;

use common::*;
use pagefold_engine::hotplug::{FakeOffline, HotplugConfig, OnlinePolicy};
use pagefold_engine::{Kind, Order, Pfn, Zone};
use pagefold_virtio_mem::{Driver, DriverSettings, Mode, Next, Shortfall};
use pagefold_virtio_mem_device::Settings;

/// A device of 1 GiB blocks, as one over 1 GiB huge pages has.
fn coarse() -> TestDevice {
    device_of(Settings { block_size: Some(GIB), guest_block_size: GIB, ..device_settings(8 * GIB) })
}

#[test]
fn grows_and_shrinks_in_big_blocks() {
    for forced in [false, true] {
        let engine = engine(16 * GIB);
        let device = if forced { device(8 * GIB) } else { coarse() };
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let settings = DriverSettings { force_big: forced, big_block: forced.then_some(GIB), ..settings() };
        let driver = &mut Driver::probe(channel(&device), hotplug, settings).unwrap();
        assert_eq!(driver.geometry().mode, Mode::BigBlock { size: GIB });
        let cache = &mut Cache::default();
        for size in [0, 3, 8, 1, 0, 2] {
            let (step, status) = resize(&device, driver, hotplug, cache, size * GIB);
            assert_eq!((step, status.plugged), (Next::Reached, size * GIB), "{status}");
            assert_eq!(hotplug.blocks().count() as u64, size * 8);
        }
    }
}

#[test]
fn what_is_less_than_a_big_block_is_not_plugged() {
    let (engine, device) = (engine(16 * GIB), device(8 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let settings = DriverSettings { force_big: true, big_block: Some(GIB), ..settings() };
    let driver = &mut Driver::probe(channel(&device), hotplug, settings).unwrap();
    let (step, status) = resize(&device, driver, hotplug, &mut Cache::default(), 1536 * MIB);
    assert_eq!((step, status.plugged), (Next::Reached, GIB));
    assert_eq!(status.to_string(), "still 512 MiB to plug");
}

#[test]
fn a_pinned_page_keeps_its_big_block_whole_and_online() {
    let (engine, device) = (engine(16 * GIB), coarse());
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(channel(&device), hotplug, settings()).unwrap();
    let cache = &mut Cache::default();
    resize(&device, driver, hotplug, cache, 2 * GIB);
    let free = engine.free_pages();
    // In the middle of the second big block: its first memory blocks go offline, and come back.
    let pin = Pfn((ADDR + GIB + 700 * MIB) >> 12);
    cache.folios.push(engine.alloc_at(pin, Order::ZERO, Kind::Anon).unwrap().share());
    cache.pinned.push(pin);
    let (step, status) = resize(&device, driver, hotplug, cache, 0);
    let Next::Later(_, Shortfall::InUse { movable, .. }) = step else { panic!("{step:?}") };
    assert_eq!((movable.pinned, status.plugged), (1, GIB));
    assert_eq!(engine.free_pages(), free - GIB / 4096 - 1);
    cache.pinned.clear();
    // The mark was the owner's own: nothing that the driver could see has changed.
    driver.ask_again();
    let (step, _) = resize(&device, driver, hotplug, cache, 0);
    assert_eq!(step, Next::Reached);
}

#[test]
fn blocks_out_of_the_normal_zone_go_first() {
    let (engine, device) = (engine(16 * GIB), coarse());
    let policy = OnlinePolicy::AutoMovable { ratio: 301, numa_aware: true };
    let hotplug = &mut hotplug_of(&engine, HotplugConfig { policy, ..HotplugConfig::default() });
    let driver = &mut Driver::probe(channel(&device), hotplug, settings()).unwrap();
    let cache = &mut Cache::default();
    resize(&device, driver, hotplug, cache, 8 * GIB);
    let normal =
        |hotplug: &mut pagefold_engine::Hotplug<'_, TestPlatform>| hotplug.zone(Zone::Normal).present;
    let before = normal(hotplug);
    assert!(before > 512 * PAGES, "some of it serves the kernel");
    resize(&device, driver, hotplug, cache, 7 * GIB);
    assert_eq!(normal(hotplug), before);
}
