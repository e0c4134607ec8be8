//! What practice requires of a memory device beside the specification (RD), one test each; the numbers are those of
//! docs/virtio-mem-device.md. RD1 to RD3 are in `queue.rs` and `regressions.rs`, RD11 is in `memfd.rs` and `locked.rs`, RD12 in
//! `snapshot.rs`.

mod common;

use common::*;
use pagefold_virtio_mem_device::{
    Backing, Device, Memfd, Notify, Pages, ResizeError, Settings, SettingsError, Step, SystemReset, thp_size,
};
use pagefold_virtio_mem_spec::PlugState;
use pagefold_virtio_mem_spec::RequestType::{Plug, State, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy};
use vm_memory::{Bytes, MemoryRegionAddress};

#[test]
fn rd4_every_host_failure_is_undone_and_answered_busy() {
    for step in [Step::Populate, Step::Show, Step::MapDma, Step::UnmapDma, Step::Hide, Step::Discard] {
        for kind in [Plug, Unplug, UnplugAll] {
            let (mut device, host) = driven(settings(), 64 * MIB);
            ask(&mut device, Plug, 0..3);
            ask(&mut device, Plug, 5..8);
            let region = device.backing().memfd.guest_region(ADDR).unwrap();
            region.write_obj(7u64, MemoryRegionAddress(BLOCK)).unwrap();
            let before = device.config();
            let blocks = if kind == Plug { 10..14 } else { 0..3 };
            host.steps();
            host.fail_once(step);
            let answer = ask(&mut device, kind, blocks.clone());
            let plugs = [Step::Populate, Step::Show, Step::MapDma].contains(&step);
            if plugs != (kind == Plug) {
                assert_eq!(answer, says(Ack), "{kind:?} does not come to {step:?}");
                continue;
            }
            assert_eq!(answer, says(Busy), "{kind:?} {step:?}");
            assert_eq!(device.config(), before);
            let reached = vec![0, 1, 2, 5, 6, 7];
            assert_eq!((host.shown(), host.mapped()), (reached.clone(), reached), "{kind:?} {step:?}");
            assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(BLOCK)).unwrap(), 7);
            assert!(device.is_settled());
            let (failures, last) = device.host_failures();
            assert_eq!((failures, last.unwrap().step), (1, step));
            // And it works the next time.
            assert_eq!(ask(&mut device, kind, blocks), says(Ack));
        }
    }
}

#[test]
fn rd4_what_cannot_be_undone_is_undone_before_the_next_change() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    host.fail(|step| [Step::MapDma, Step::Hide].contains(&step));
    assert_eq!(ask(&mut device, Plug, 0..2), says(Busy));
    assert!(!device.is_settled());
    let error = device.host_failures().1.unwrap();
    let text = error.to_string();
    assert!(text.contains("mapping for devices of 4194304 bytes at 0x100000000"), "{text}");
    assert_eq!(error.undo.as_ref().unwrap().step, Step::Hide);
    // The guest reaches memory that is not its own. Nothing is discarded while it does, and nothing else is changed.
    assert_eq!(host.steps(), [Step::Populate, Step::Show, Step::MapDma, Step::Hide]);
    for (kind, blocks) in [(Plug, 4..5), (UnplugAll, 0..0)] {
        assert_eq!(ask(&mut device, kind, blocks), says(Busy));
        assert_eq!(host.steps(), [Step::Hide]);
    }
    assert_eq!(ask(&mut device, State, 0..2), is(PlugState::Unplugged));
    assert!(device.settle().is_err() && device.system_reset(SystemReset::Reboot).is_err());
    drive(&mut device);
    // It touches the memory; once it cannot any more, that goes back.
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    region.write_obj(1u64, MemoryRegionAddress(BLOCK)).unwrap();
    host.work();
    host.steps();
    assert_eq!(ask(&mut device, Plug, 0..2), says(Ack));
    let undo = [Step::Hide, Step::Discard];
    assert_eq!(host.steps(), [&undo[..], &[Step::Populate, Step::Show, Step::MapDma]].concat());
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(BLOCK)).unwrap(), 0);
    assert!(device.is_settled());
}

#[test]
fn rd4_a_vmm_whose_host_has_recovered_need_not_wait_for_a_driver() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 0..4);
    // The guest keeps the blocks, but its devices cannot reach them.
    host.fail(|step| [Step::Hide, Step::MapDma].contains(&step));
    assert_eq!(ask(&mut device, Unplug, 0..4), says(Busy));
    assert_eq!((host.shown().len(), host.mapped().len(), plugged(&device)), (4, 0, 4 * BLOCK));
    host.work();
    device.settle().unwrap();
    assert_eq!((host.mapped().len(), device.is_settled()), (4, true));
    host.steps();
    device.settle().unwrap();
    assert_eq!(host.steps(), []);
}

#[test]
fn rd4_memory_that_was_populated_in_part_goes_back() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    host.fail_once(Step::Populate);
    assert_eq!(ask(&mut device, Plug, 0..4), says(Busy));
    assert_eq!(host.steps(), [Step::Populate, Step::Discard]);
    assert!(device.is_settled());
}

#[test]
fn rd5_access_goes_before_memory_and_memory_comes_before_access() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 0..2);
    assert_eq!(host.steps(), [Step::Populate, Step::Show, Step::MapDma]);
    ask(&mut device, Unplug, 0..2);
    assert_eq!(host.steps(), [Step::UnmapDma, Step::Hide, Step::Discard]);
}

#[test]
fn rd6_no_resize_while_no_driver_is_ready() {
    let (mut device, _) = device(settings());
    assert!(matches!(device.set_requested_size(64 * MIB), Err(ResizeError::NoDriver)));
    drive(&mut device);
    assert!(device.set_requested_size(64 * MIB).is_ok());
    device.device_reset();
    assert!(matches!(device.set_requested_size(0), Err(ResizeError::NoDriver)));
    let (mut eager, _) = common::device(Settings { resize_without_driver: true, ..settings() });
    assert_eq!(eager.set_requested_size(64 * MIB).unwrap(), Notify::ConfigChanged);
}

#[test]
fn rd7_sizes_from_the_host_are_checked() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    for size in [1, BLOCK - 1, REGION + BLOCK, u64::MAX, !(BLOCK - 1), 1 << 63] {
        assert!(matches!(device.set_requested_size(size), Err(ResizeError::Size(_))), "{size:#x}");
    }
    device.freeze();
    assert!(matches!(device.set_requested_size(0), Err(ResizeError::Frozen)));
    assert_eq!(device.config().requested_size.get(), 64 * MIB);
}

#[test]
fn rd8_the_usable_region_leaves_room_for_the_guests_memory_blocks() {
    for guest_block_size in [128 * MIB, 512 * MIB, 2 * GIB] {
        let settings = Settings { guest_block_size, ..Settings::new(4 * GIB, 64 * GIB) };
        let (mut device, _) = driven(settings, 0);
        assert_eq!(usable(&device), 0);
        resize(&mut device, GIB);
        assert_eq!(usable(&device), GIB + 2 * guest_block_size);
        resize(&mut device, 64 * GIB - BLOCK);
        assert_eq!(usable(&device), 64 * GIB);
    }
}

#[test]
fn rd9_a_region_that_does_not_fit_the_guests_memory_blocks_is_refused() {
    let memory = || Memfd::new(8 * GIB, Pages::Normal).unwrap();
    let refused = |settings: Settings| Device::new(settings, memory(), ()).unwrap_err();
    assert!(matches!(
        refused(Settings::new(ADDR + BLOCK, REGION)),
        SettingsError::Unaligned { what: "address", .. }
    ));
    assert!(matches!(
        refused(Settings::new(ADDR, REGION + BLOCK)),
        SettingsError::Unaligned { what: "size", .. }
    ));
    let large = Settings { guest_block_size: 2 * GIB, ..Settings::new(ADDR, GIB) };
    assert!(matches!(refused(large), SettingsError::Unaligned { .. }));
    let blocks = Settings { block_size: Some(4 * GIB), ..Settings::new(ADDR, 2 * GIB) };
    assert!(matches!(refused(blocks), SettingsError::Unaligned { .. }));
    for block_size in [0, 3 * MIB, MIB / 2, 1, u64::MAX] {
        let settings = Settings { block_size: Some(block_size), ..settings() };
        assert!(matches!(refused(settings), SettingsError::BlockSize { .. }));
    }
    for guest_block_size in [0, 3, 1 << 52, 1 << 63] {
        let settings = Settings { guest_block_size, ..settings() };
        assert!(matches!(refused(settings), SettingsError::GuestBlockSize(_)));
    }
    assert!(matches!(refused(Settings::new(ADDR, 16 * GIB)), SettingsError::BackingTooSmall { .. }));
    assert!(matches!(refused(Settings::new(1 << 52, GIB)), SettingsError::BeyondAddressSpace { .. }));
    assert!(matches!(refused(Settings::new(0, !0 << 27)), SettingsError::BeyondAddressSpace { .. }));
    let over = Settings { requested_size: 2 * REGION, ..settings() };
    assert!(matches!(refused(over), SettingsError::Requested(_)));
    // Each says what it is about.
    assert_eq!(
        refused(Settings::new(ADDR + BLOCK, REGION)).to_string(),
        "the region's address 0x100200000 is not a multiple of 0x8000000, the larger of device and guest memory block"
    );
}

#[test]
fn rd10_the_default_block_is_the_hosts_huge_page() {
    let memory = Memfd::new(REGION, Pages::Normal).unwrap();
    let device = Device::new(Settings::new(ADDR, REGION), memory, ()).unwrap();
    assert_eq!(device.config().block_size.get(), thp_size().max(MIB));
    let huge = Memfd::new(REGION, Pages::Huge2MiB).unwrap();
    assert_eq!((huge.page_size(), huge.default_block_size()), (2 * MIB, 2 * MIB));
    // No block below the page: it could not be discarded.
    let small = Settings { block_size: Some(MIB), ..settings() };
    assert!(matches!(Device::new(small, huge, ()), Err(SettingsError::BlockSize { .. })));
}
