//! Sub-block mode, end to end: engine, driver, virtqueue, device, memory of the system.

mod common;

use common::*;
use pagefold_engine::hotplug::{BlockId, FakeOffline, OnlineTo};
use pagefold_engine::{Class, Pfn, Zone};
use pagefold_virtio_mem::{
    Driver, DriverSettings, Inherited, Mode, Next, ProbeError, Removed, Shortfall, Sleep, SuspendError,
};
use pagefold_virtio_mem_device::Settings;

const BOTH: [FakeOffline; 2] = [FakeOffline::Folded, FakeOffline::Classic { rcu: true }];

#[test]
fn grows_and_shrinks_to_the_sub_block() {
    for policy in BOTH {
        let (engine, device) = (engine(8 * GIB), device(2 * GIB));
        let hotplug = &mut hotplug(&engine, policy);
        let driver = &mut probe(&device, hotplug);
        let cache = &mut Cache::default();
        assert_eq!(driver.geometry().mode, Mode::SubBlock { size: 2 * MIB });
        let boot = engine.free_pages();
        for size in [0, 2, 130, 130, 300, 1024, 1022, 6, 200, 128, 0, 64] {
            let (step, status) = resize(&device, driver, hotplug, cache, size * MIB);
            assert_eq!((step, status.plugged), (Next::Reached, size * MIB), "{policy:?}: {status}");
            assert_eq!(engine.free_pages() - boot, size * PAGES, "{policy:?}");
            let blocks = hotplug.blocks().count() as u64;
            assert_eq!(blocks, size.div_ceil(128), "whole blocks come and go");
        }
    }
}

#[test]
fn what_was_used_goes_back_to_the_system() {
    let (engine, device) = (engine(8 * GIB), device(GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut probe(&device, hotplug);
    let cache = &mut Cache::default();
    resize(&device, driver, hotplug, cache, 256 * MIB);
    // The guest touches its memory: that of the device.
    device.with(|device, _| {
        use std::os::unix::fs::FileExt;
        let page = [7; 4096];
        (0..256).for_each(|mib| device.backing().file().write_all_at(&page, mib * MIB).unwrap());
        assert_eq!(device.backing().resident().unwrap(), 256 * 4096);
    });
    resize(&device, driver, hotplug, cache, 100 * MIB);
    device.with(|device, _| assert_eq!(device.backing().resident().unwrap(), 100 * 4096));
    resize(&device, driver, hotplug, cache, 0);
    device.with(|device, _| assert_eq!(device.backing().resident().unwrap(), 0));
    // Nothing is left of the descriptors either.
    assert_eq!(engine.materialised_map_pages(), 0);
    assert_eq!(engine.class(Pfn(ADDR >> 12)), (Class::Absent, false));
}

#[test]
fn partial_blocks_are_filled_first_and_emptied_first() {
    let (engine, device) = (engine(8 * GIB), device(2 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut probe(&device, hotplug);
    let cache = &mut Cache::default();
    resize(&device, driver, hotplug, cache, 384 * MIB);
    // One page stays in each of three blocks, at its end.
    let first = ADDR / (128 * MIB);
    for block in first..first + 3 {
        let pages = hotplug.pages(BlockId(block));
        let pin =
            engine.alloc_at(Pfn(pages.end - 1), pagefold_engine::Order::ZERO, pagefold_engine::Kind::Anon);
        cache.folios.push(pin.unwrap().share());
        cache.pinned.push(Pfn(pages.end - 1));
    }
    let (step, status) = resize(&device, driver, hotplug, cache, 0);
    assert_eq!(status.plugged, 6 * MIB, "{status}");
    let Next::Later(_, why @ Shortfall::InUse { movable, .. }) = step else { panic!("{step:?}") };
    assert_eq!(movable.pinned, 3, "{why}");
    assert_eq!(status.to_string(), "still 6 MiB to unplug: 3 pinned sub-blocks in zone Movable");
    assert_eq!(hotplug.blocks().count(), 3);
    // Growing a little takes no new block.
    let (_, status) = resize(&device, driver, hotplug, cache, 100 * MIB);
    assert_eq!((status.plugged, hotplug.blocks().count()), (100 * MIB, 3));
    // Let go, and everything goes.
    cache.pinned.clear();
    cache.folios.clear();
    let (step, _) = resize(&device, driver, hotplug, cache, 0);
    assert_eq!((step, hotplug.blocks().count()), (Next::Reached, 0));
}

#[test]
fn the_host_changes_its_mind_half_way() {
    let (engine, device) = (engine(8 * GIB), device(2 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut probe(&device, hotplug);
    let cache = &mut Cache::default();
    device.set_requested_size(2 * GIB).unwrap();
    let mut steps = 0;
    let step = driver.work(hotplug, cache, |status| {
        steps += 1;
        if status.plugged == 512 * MIB {
            device.set_requested_size(128 * MIB).unwrap();
        }
        steps < 1000
    });
    assert_eq!((step, driver.status().plugged), (Next::Reached, 128 * MIB));
    check(&device, driver, hotplug);
}

#[test]
fn the_usable_region_grows_with_the_wish() {
    let (engine, device) = (engine(8 * GIB), device(2 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut probe(&device, hotplug);
    let cache = &mut Cache::default();
    let mut usable = 0;
    for size in [128, 512, 1536, 2048] {
        let (step, status) = resize(&device, driver, hotplug, cache, size * MIB);
        assert_eq!(step, Next::Reached);
        assert!(status.usable >= usable && status.usable >= size * MIB);
        usable = status.usable;
    }
}

#[test]
fn memory_stays_offline_up_to_a_limit_where_nobody_brings_it_online() {
    let (engine, device) = (engine(8 * GIB), device(2 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let settings = DriverSettings { online: None, ..settings() };
    let driver = &mut Driver::probe(channel(&device), hotplug, settings).unwrap();
    let cache = &mut Cache::default();
    let (step, status) = resize(&device, driver, hotplug, cache, 2 * GIB);
    assert_eq!(step, Next::Asleep(Shortfall::OfflineLimit), "{status}");
    assert_eq!(status.plugged, GIB);
    // Somebody does, and the driver goes on.
    let block = hotplug.blocks().next().unwrap().id;
    assert!(!driver.is_woken());
    hotplug.online(block, OnlineTo::Zone(Zone::Normal)).unwrap();
    assert!(driver.is_woken());
    let (step, status) = resize(&device, driver, hotplug, cache, 2 * GIB);
    assert_eq!((step, status.plugged), (Next::Asleep(Shortfall::OfflineLimit), GIB + 128 * MIB));
    // Offline memory goes first, and the kernel's last.
    let (_, _) = resize(&device, driver, hotplug, cache, 128 * MIB);
    assert_eq!(
        hotplug.blocks().map(|block| (block.id, block.zone)).collect::<Vec<_>>(),
        [(block, Zone::Normal)]
    );
    let (step, _) = resize(&device, driver, hotplug, cache, 0);
    assert_eq!(step, Next::Reached);
}

#[test]
fn unplug_online_off_leaves_online_memory_alone() {
    let (engine, device) = (engine(8 * GIB), device(GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let settings = DriverSettings { unplug_online: false, ..settings() };
    let driver = &mut Driver::probe(channel(&device), hotplug, settings).unwrap();
    let cache = &mut Cache::default();
    resize(&device, driver, hotplug, cache, 256 * MIB);
    let (step, status) = resize(&device, driver, hotplug, cache, 0);
    assert!(matches!(step, Next::Later(..)), "{step:?}");
    assert_eq!(status.plugged, 256 * MIB);
    let block = hotplug.blocks().next().unwrap().id;
    hotplug.offline(block, cache).unwrap();
    let (_, status) = resize(&device, driver, hotplug, cache, 0);
    assert_eq!(status.plugged, 128 * MIB);
}

#[test]
fn a_new_driver_adopts_what_is_in_use_and_unplugs_what_is_not() {
    for policy in BOTH {
        let (engine, device) = (engine(8 * GIB), device(GIB));
        let hotplug = &mut hotplug(&engine, policy);
        let cache = &mut Cache::default();
        let mut driver = probe(&device, hotplug);
        resize(&device, &mut driver, hotplug, cache, 300 * MIB);
        cache.fill(&engine, 100, 0);
        let plugged = driver.status().plugged;
        let Removed::InUse(remains) = driver.remove_driver(hotplug) else { panic!("it is in use") };
        remains.hand_over(hotplug);
        let driver = &mut probe(&device, hotplug);
        let step = driver.work(hotplug, cache, |_| true);
        assert_eq!((step, driver.status().plugged), (Next::Reached, plugged));
        check(&device, driver, hotplug);
        let (step, _) = resize(&device, driver, hotplug, cache, 0);
        assert_eq!(step, Next::Reached, "owners move to boot memory");
        assert_eq!(hotplug.blocks().count(), 0);
    }
}

#[test]
fn leftovers_of_an_earlier_kernel_are_unplugged() {
    for inherited in [Inherited::UnplugAll, Inherited::Adopt] {
        let device = device(GIB);
        {
            let engine = engine(8 * GIB);
            let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
            let driver = &mut probe(&device, hotplug);
            resize(&device, driver, hotplug, &mut Cache::default(), 300 * MIB);
        }
        // The kernel is gone; the device has kept its blocks.
        let engine = engine(8 * GIB);
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let settings = DriverSettings { inherited, ..settings() };
        let driver = &mut Driver::probe(channel(&device), hotplug, settings).unwrap();
        let cache = &mut Cache::default();
        let (step, status) = resize(&device, driver, hotplug, cache, 130 * MIB);
        assert_eq!((step, status.plugged), (Next::Reached, 130 * MIB), "{inherited:?}");
        assert_eq!(hotplug.blocks().count(), 2);
    }
}

#[test]
fn odd_regions_lose_their_ends_and_nothing_else() {
    // The region begins and ends in the middle of memory blocks.
    let settings = Settings { guest_block_size: 2 * MIB, ..device_settings(512 * MIB) };
    let odd = Settings { addr: ADDR + 6 * MIB, ..settings };
    let (engine, device) = (engine(8 * GIB), device_of(odd));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut probe(&device, hotplug);
    let cache = &mut Cache::default();
    let (step, status) = resize(&device, driver, hotplug, cache, 512 * MIB);
    assert_eq!((step, status.plugged), (Next::Asleep(Shortfall::NoSpace), 384 * MIB));
    let (step, _) = resize(&device, driver, hotplug, cache, 0);
    assert_eq!(step, Next::Reached);
}

#[test]
fn several_devices_live_side_by_side_on_their_nodes() {
    let engine = engine(16 * GIB);
    let devices: Vec<_> = (0..3u16)
        .map(|node| {
            let addr = ADDR + u64::from(node) * GIB;
            device_of(Settings { node: Some(node), addr, ..device_settings(GIB) })
        })
        .collect();
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let mut drivers: Vec<_> = devices.iter().map(|device| probe(device, hotplug)).collect();
    for (device, size) in devices.iter().zip([100, 300, 1024]) {
        device.set_requested_size(size * MIB).unwrap();
    }
    let cache = &mut Cache::default();
    for driver in &mut drivers {
        assert_eq!(driver.work(hotplug, cache, |_| true), Next::Reached);
    }
    engine.audit().unwrap();
    for (node, blocks) in [(0, 1), (1, 3), (2, 8)] {
        assert_eq!(hotplug.blocks().filter(|block| block.node == node).count(), blocks);
    }
    let groups: std::collections::HashSet<_> = drivers.iter().map(Driver::group).collect();
    assert_eq!(groups.len(), 3);
}

#[test]
fn sleep_is_refused_where_memory_would_be_lost() {
    for keeps in [true, false] {
        let settings = Settings { persistent_suspend: keeps, ..device_settings(GIB) };
        let (engine, device) = (engine(8 * GIB), device_of(settings));
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let driver = &mut probe(&device, hotplug);
        assert_eq!(driver.may_sleep(Sleep::Ram), Ok(()));
        resize(&device, driver, hotplug, &mut Cache::default(), 2 * MIB);
        let expected = if keeps { Ok(()) } else { Err(SuspendError::Plugged) };
        assert_eq!(driver.may_sleep(Sleep::Ram), expected);
        assert_eq!(driver.may_sleep(Sleep::Idle), Ok(()));
        assert_eq!(driver.may_sleep(Sleep::Disk), Err(SuspendError::Hibernation));
    }
}

#[test]
fn a_driver_that_goes_leaves_nothing_or_something_that_cannot_hurt() {
    let (engine, device) = (engine(8 * GIB), device(GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let cache = &mut Cache::default();
    let mut driver = probe(&device, hotplug);
    resize(&device, &mut driver, hotplug, cache, 2 * MIB);
    resize(&device, &mut driver, hotplug, cache, 0);
    assert!(matches!(driver.remove_driver(hotplug), Removed::Clean));
    let mut driver = probe(&device, hotplug);
    resize(&device, &mut driver, hotplug, cache, 130 * MIB);
    assert!(matches!(driver.remove_driver(hotplug), Removed::InUse(_)));
    let partial = hotplug.blocks().last().unwrap().id;
    assert!(hotplug.offline(partial, cache).is_err(), "its holes would come online with it");
    engine.audit().unwrap();
}

#[test]
fn a_device_without_a_whole_memory_block_is_refused() {
    let (engine, device) = (engine(4 * GIB), device(GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let error = Driver::probe(channel(&device), hotplug, settings()).unwrap_err();
    assert!(matches!(error, ProbeError::Config(_)), "{error}");
}
