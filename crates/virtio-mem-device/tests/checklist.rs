//! The specification's requirements on a memory device (virtio 1.4, "Memory Device"), one test each. The numbers are those of
//! docs/virtio-mem-device.md.

mod common;

use common::*;
use pagefold_virtio_mem_device::{
    FeaturesError, Notify, RequestedSizeError, ResizeError, Settings, Step, SystemReset, Unplugged, VERSION_1,
};
use pagefold_virtio_mem_spec::RequestType::{Plug, State, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy, Error, Nack};
use pagefold_virtio_mem_spec::{Features, PlugState, Request};
use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use zerocopy::FromBytes;

#[test]
fn d1_what_is_fixed_stays_between_system_resets() {
    let (mut device, _) = driven(Settings { node: Some(3), ..settings() }, 64 * MIB);
    let fixed = |device: &TestDevice| {
        let config = device.config();
        (config.block_size, config.node_id, config.addr, config.region_size)
    };
    let before = fixed(&device);
    ask(&mut device, Plug, 0..3);
    ask(&mut device, UnplugAll, 0..0);
    resize(&mut device, REGION);
    device.device_reset();
    assert_eq!(fixed(&device), before);
    assert!(before.0.get().is_power_of_two());
}

#[test]
fn d2_sizes_are_multiples_of_the_block() {
    // A guest memory block below the device block does not make the usable region uneven.
    let odd = Settings { block_size: Some(8 * MIB), guest_block_size: MIB, ..settings() };
    let (mut device, _) = driven(odd, 8 * MIB);
    assert_eq!(usable(&device), 16 * MIB);
    assert!(matches!(
        device.set_requested_size(9 * MIB),
        Err(ResizeError::Size(RequestedSizeError::Unaligned { .. }))
    ));
    assert_eq!(ask(&mut device, Plug, 0..1), says(Ack));
    assert_eq!(plugged(&device), 8 * MIB);
}

#[test]
fn d3_the_usable_region_holds_what_is_requested() {
    let (mut device, _) = driven(settings(), 0);
    for requested in [0, BLOCK, REGION - BLOCK, REGION, 64 * MIB] {
        resize(&mut device, requested);
        assert!(usable(&device) >= requested);
        ask(&mut device, UnplugAll, 0..0);
        assert!(usable(&device) >= requested);
    }
}

#[test]
fn d4_the_usable_region_shrinks_in_unplug_all_and_system_reset_only() {
    let (mut device, _) = driven(settings(), 512 * MIB);
    let large = usable(&device);
    resize(&mut device, BLOCK);
    device.device_reset();
    drive(&mut device);
    assert_eq!(usable(&device), large);
    ask(&mut device, UnplugAll, 0..0);
    assert_eq!(usable(&device), BLOCK + 2 * GUEST_BLOCK);
    resize(&mut device, 0);
    assert_eq!(usable(&device), BLOCK + 2 * GUEST_BLOCK);
    device.system_reset(SystemReset::Reboot).unwrap();
    assert_eq!(usable(&device), 0);
}

#[test]
fn d5_a_new_size_interrupts_and_unplug_all_does_not() {
    let (mut device, _) = driven(settings(), 0);
    assert_eq!(device.set_requested_size(64 * MIB).unwrap(), Notify::ConfigChanged);
    assert_eq!(device.set_requested_size(64 * MIB).unwrap(), Notify::Nothing);
    assert_eq!(device.set_requested_size(32 * MIB).unwrap(), Notify::ConfigChanged);
    // A request has no way to ask for a configuration interrupt, whatever it does to the usable region.
    let generation = device.config_generation();
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert_ne!(device.config_generation(), generation);
}

#[test]
fn d6_a_new_plugged_size_does_not_interrupt_but_is_a_new_generation() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    let generation = device.config_generation();
    assert_eq!(ask(&mut device, Plug, 0..1), says(Ack));
    assert_ne!(device.config_generation(), generation);
}

#[test]
fn d7_the_plugged_size_is_the_sum_of_plugged_blocks() {
    let (mut device, _) = driven(settings(), REGION);
    for (kind, blocks, sum) in
        [(Plug, 0..5, 5), (Plug, 60..70, 15), (Unplug, 2..3, 14), (Unplug, 60..70, 4), (UnplugAll, 0..0, 0)]
    {
        assert_eq!(ask(&mut device, kind, blocks), says(Ack));
        assert_eq!(plugged(&device), sum * BLOCK);
        assert_eq!(device.plugged_ranges().map(|range| range.len).sum::<u64>(), sum * BLOCK);
    }
}

#[test]
fn d8_a_device_reset_changes_no_block_and_no_byte() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 3..6);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    region.write_obj(0x5eed_u64, MemoryRegionAddress(4 * BLOCK)).unwrap();
    host.steps();
    device.device_reset();
    assert_eq!(host.steps(), []);
    drive(&mut device);
    assert_eq!(plugged(&device), 3 * BLOCK);
    assert_eq!(ask(&mut device, State, 3..6), is(PlugState::Plugged));
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(4 * BLOCK)).unwrap(), 0x5eed);
}

#[test]
fn d9_a_system_reset_unplugs_everything() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 3..6);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    region.write_obj(1u64, MemoryRegionAddress(4 * BLOCK)).unwrap();
    device.system_reset(SystemReset::Reboot).unwrap();
    assert_eq!((plugged(&device), device.negotiated_features()), (0, None));
    assert_eq!(device.backing().memfd.resident().unwrap(), 0);
    assert_eq!(usable(&device), 64 * MIB + 2 * GUEST_BLOCK);
    // Where the host refuses, the next driver copes with leftovers.
    drive(&mut device);
    ask(&mut device, Plug, 0..1);
    host.fail_once(Step::Discard);
    assert!(device.system_reset(SystemReset::Reboot).is_err());
    assert_eq!(plugged(&device), BLOCK);
}

#[test]
fn d10_a_driver_that_would_touch_unplugged_memory_is_refused() {
    let (mut device, _) = device(settings());
    for (accepted, error) in [
        (VERSION_1, FeaturesError::WouldTouchUnplugged),
        (2, FeaturesError::Legacy),
        (0, FeaturesError::Legacy),
        (VERSION_1 | 3, FeaturesError::NotOffered(1)),
    ] {
        assert_eq!(device.check_features(accepted), Err(error));
        // Whether the transport has asked or not.
        assert_eq!(device.activate(accepted), Err(error));
        assert!(matches!(device.set_requested_size(64 * MIB), Err(ResizeError::NoDriver)));
    }
    assert_eq!(activate(&mut device, VERSION_1 | 2), Ok(()));
    // Offered only: it may decline.
    let (mut lenient, _) = common::device(Settings { unplugged: Unplugged::Offered, ..settings() });
    assert_eq!(activate(&mut lenient, VERSION_1), Ok(()));
}

#[test]
fn d11_suspend_and_wake_change_no_block() {
    let (mut device, host) = driven(Settings { persistent_suspend: true, ..settings() }, 64 * MIB);
    assert!(device.negotiated_features().unwrap() & Features::PERSISTENT_SUSPEND.bits() != 0);
    ask(&mut device, Plug, 0..3);
    host.steps();
    device.device_reset();
    device.system_reset(SystemReset::Wakeup).unwrap();
    assert_eq!((host.steps(), plugged(&device)), (vec![], 3 * BLOCK));
    // Not offered where the platform cannot.
    assert!(common::device(settings()).0.features() & Features::PERSISTENT_SUSPEND.bits() == 0);
}

#[test]
fn d12_plugged_blocks_are_memory_and_stay_as_they_are() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 0..4);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    for block in 0..4 {
        region.write_obj(block + 1, MemoryRegionAddress(block * BLOCK)).unwrap();
        region.write_obj(block + 1, MemoryRegionAddress((block + 1) * BLOCK - 8)).unwrap();
    }
    // All around it comes and goes, and is refused.
    ask(&mut device, Plug, 4..9);
    ask(&mut device, Unplug, 4..9);
    ask(&mut device, Unplug, 3..5);
    ask(&mut device, Plug, 3..5);
    ask(&mut device, Unplug, 1..2);
    ask(&mut device, Plug, 1..2);
    for block in [0, 2, 3] {
        for at in [block * BLOCK, (block + 1) * BLOCK - 8] {
            assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(at)).unwrap(), block + 1);
        }
    }
}

#[test]
fn d13_unplugged_blocks_go_back_to_the_host() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 0..4);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    for page in 0..4 * BLOCK / 4096 {
        region.write_obj(page, MemoryRegionAddress(page * 4096)).unwrap();
    }
    assert_eq!(device.backing().memfd.resident().unwrap(), 4 * BLOCK);
    ask(&mut device, Unplug, 1..3);
    assert_eq!(data(&device.backing().memfd), [(0, BLOCK), (3 * BLOCK, 4 * BLOCK)]);
    ask(&mut device, UnplugAll, 0..0);
    assert_eq!(data(&device.backing().memfd), []);
}

#[test]
fn d14_unplugged_blocks_of_the_usable_region_are_readable_unless_negotiated() {
    for unplugged in [Unplugged::Readable, Unplugged::Offered] {
        let (mut device, host) = driven(Settings { unplugged, ..settings() }, 64 * MIB);
        let shown = |host: &Host| host.shown().len() as u64 * BLOCK;
        assert_eq!(shown(&host), usable(&device));
        assert_eq!(ask(&mut device, Plug, 0..3), says(Ack));
        assert_eq!(ask(&mut device, Unplug, 0..2), says(Ack));
        assert_eq!(shown(&host), usable(&device));
        resize(&mut device, 512 * MIB);
        assert_eq!(shown(&host), usable(&device));
        resize(&mut device, 0);
        assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
        assert_eq!((shown(&host), usable(&device)), (0, 0));
        // A host that will not show more does not get a larger target.
        host.fail_once(Step::Show);
        assert!(matches!(device.set_requested_size(512 * MIB), Err(ResizeError::Host(_))));
        assert_eq!((usable(&device), device.config().requested_size.get()), (0, 0));
    }
    assert_eq!(device(Settings { unplugged: Unplugged::Readable, ..settings() }).0.features() & 2, 0);
}

#[test]
fn d15_padding_and_what_a_type_does_not_use_are_ignored() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    let mut bytes = [0xa5u8; 24];
    bytes[..2].copy_from_slice(&0u16.to_le_bytes());
    bytes[8..16].copy_from_slice(&ADDR.to_le_bytes());
    bytes[16..18].copy_from_slice(&2u16.to_le_bytes());
    assert_eq!(device.handle(&Request::read_from_bytes(&bytes).unwrap()), says(Ack));
    assert_eq!(plugged(&device), 2 * BLOCK);
    bytes = [0xa5; 24];
    bytes[..2].copy_from_slice(&2u16.to_le_bytes());
    assert_eq!(device.handle(&Request::read_from_bytes(&bytes).unwrap()), says(Ack));
    assert_eq!(plugged(&device), 0);
}

#[test]
fn d16_a_bad_range_is_an_error() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    let end = ADDR + usable(&device);
    assert!(end < ADDR + REGION);
    for kind in [Plug, Unplug, State] {
        for (addr, blocks) in [
            (ADDR, 0),
            (ADDR + 1, 1),
            (ADDR + MIB, 1),
            (ADDR - BLOCK, 1),
            (ADDR - BLOCK, 2),
            (0, 1),
            (end, 1),
            (end - BLOCK, 2),
            (ADDR + REGION, 1),
            (ADDR + REGION - BLOCK, 1),
            (ADDR, u16::MAX),
            (u64::MAX - BLOCK + 1, 1),
            (!(BLOCK - 1), u16::MAX),
            (u64::MAX, u16::MAX),
        ] {
            assert_eq!(
                device.handle(&Request::new(kind, addr, blocks)),
                says(Error),
                "{kind:?} {addr:#x} {blocks}"
            );
        }
    }
    assert_eq!((plugged(&device), host.steps()), (0, vec![]));
}

#[test]
fn d17_plug_of_a_plugged_block_and_unplug_of_an_unplugged_one_are_errors_and_do_nothing() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 4..8);
    host.steps();
    for (kind, blocks) in [
        (Plug, 7..8),
        (Plug, 0..5),
        (Plug, 7..12),
        (Plug, 0..12),
        (Unplug, 0..1),
        (Unplug, 3..5),
        (Unplug, 7..9),
        (Unplug, 0..12),
    ] {
        assert_eq!(ask(&mut device, kind, blocks.clone()), says(Error), "{kind:?} {blocks:?}");
    }
    assert_eq!((plugged(&device), host.steps()), (4 * BLOCK, vec![]));
    assert_eq!(ask(&mut device, State, 4..8), is(PlugState::Plugged));
    assert_eq!(ask(&mut device, State, 0..4), is(PlugState::Unplugged));
}

#[test]
fn d18_plug_beyond_the_target_is_a_nack_but_a_bad_range_is_an_error_first() {
    let (mut device, host) = driven(settings(), 8 * MIB);
    assert_eq!(ask(&mut device, Plug, 0..5), says(Nack));
    assert_eq!(ask(&mut device, Plug, 0..3), says(Ack));
    host.steps();
    assert_eq!(ask(&mut device, Plug, 3..5), says(Nack));
    // Over the target and plugged already: the target is looked at first, as in the reference device.
    assert_eq!(ask(&mut device, Plug, 0..3), says(Nack));
    // Over the target and out of range: the range is.
    assert_eq!(ask(&mut device, Plug, BLOCKS - 1..BLOCKS + 9), says(Error));
    // A target below what is plugged takes nothing away by itself.
    resize(&mut device, 0);
    assert_eq!(ask(&mut device, Plug, 3..4), says(Nack));
    assert_eq!((plugged(&device), host.steps()), (3 * BLOCK, vec![]));
}

#[test]
fn d19_busy_for_what_changes_blocks_never_for_state() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 0..4);
    host.steps();
    device.freeze();
    assert_eq!(ask(&mut device, Plug, 4..5), says(Busy));
    assert_eq!(ask(&mut device, Unplug, 0..1), says(Busy));
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Busy));
    // What is wrong stays wrong.
    assert_eq!(ask(&mut device, Plug, 0..1), says(Error));
    assert_eq!(ask(&mut device, State, 0..5), is(PlugState::Mixed));
    assert_eq!((plugged(&device), host.steps()), (4 * BLOCK, vec![]));
    device.thaw().unwrap();
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
}

#[test]
fn d20_an_ack_comes_when_all_is_done_and_counted() {
    let (mut device, host) = driven(settings(), 64 * MIB);
    // While the host works, nothing is plugged yet: had it failed at the last step, there would be nothing to take back.
    assert_eq!(ask(&mut device, Plug, 0..7), says(Ack));
    assert_eq!(host.steps(), [Step::Populate, Step::Show, Step::MapDma]);
    assert_eq!(plugged(&device), 7 * BLOCK);
    assert_eq!(ask(&mut device, State, 0..7), is(PlugState::Plugged));
    host.fail_once(Step::MapDma);
    assert_eq!(ask(&mut device, Plug, 7..8), says(Busy));
    assert_eq!(plugged(&device), 7 * BLOCK);
    assert_eq!(ask(&mut device, State, 7..8), is(PlugState::Unplugged));
}

#[test]
fn d21_unplug_all_leaves_nothing_plugged_and_fits_the_usable_region() {
    let (mut device, host) = driven(settings(), 512 * MIB);
    for run in [0..3, 10..11, 64..200] {
        assert_eq!(ask(&mut device, Plug, run), says(Ack));
    }
    resize(&mut device, 64 * MIB);
    host.steps();
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert_eq!((plugged(&device), usable(&device)), (0, 64 * MIB + 2 * GUEST_BLOCK));
    let (unmap, hide) = (vec![Step::UnmapDma; 3], vec![Step::Hide; 3]);
    assert_eq!(host.steps(), [unmap, hide, vec![Step::Discard]].concat());
    // With nothing plugged it is an ACK too.
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Ack));
    assert_eq!(host.steps(), []);
}

#[test]
fn d22_state_is_plugged_iff_all_are_unplugged_iff_all_are_and_mixed_otherwise() {
    let (mut device, _) = driven(settings(), 512 * MIB);
    ask(&mut device, Plug, 62..66);
    for (blocks, state) in [
        (62..66, PlugState::Plugged),
        (63..64, PlugState::Plugged),
        (0..62, PlugState::Unplugged),
        (66..128, PlugState::Unplugged),
        (61..63, PlugState::Mixed),
        (65..67, PlugState::Mixed),
        (0..200, PlugState::Mixed),
    ] {
        assert_eq!(ask(&mut device, State, blocks.clone()), is(state), "{blocks:?}");
    }
}

#[test]
fn plugged_memory_is_at_the_regions_guest_address() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 0..1);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    let memory = vm_memory::GuestMemoryMmap::from_regions(vec![region]).unwrap();
    memory.write_obj(1u8, GuestAddress(ADDR)).unwrap();
    assert_eq!(data(&device.backing().memfd), [(0, 4096)]);
}
