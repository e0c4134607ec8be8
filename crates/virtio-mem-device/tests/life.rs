//! A device's life: what a VMM calls, in orders that fit and in those that do not.

mod common;

use common::*;
use pagefold_virtio_mem_device::{
    Backing, Device, FeaturesError, Memfd, Notify, Pages, ResizeError, Settings, SettingsError, Step,
    SystemReset, VERSION_1,
};
use pagefold_virtio_mem_spec::PlugState;
use pagefold_virtio_mem_spec::RequestType::{Plug, State, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy, Error};
use vm_memory::{Bytes, MemoryRegionAddress};

#[test]
fn without_a_driver_no_request_is_one_and_no_size_is_followed() {
    let (mut device, host) = device(Settings { requested_size: 64 * MIB, ..settings() });
    let unserved = |device: &mut TestDevice| {
        for kind in [Plug, Unplug, UnplugAll, State] {
            assert_eq!(ask(device, kind, 0..1), says(Error));
        }
        assert!(matches!(device.set_requested_size(0), Err(ResizeError::NoDriver)));
        assert_eq!((device.negotiated_features(), host.steps()), (None, vec![]));
    };
    unserved(&mut device);
    // FEATURES_OK makes no driver of it.
    device.check_features(VERSION_1 | 2).unwrap();
    unserved(&mut device);
    device.activate(VERSION_1 | 2).unwrap();
    assert_eq!(ask(&mut device, Plug, 0..1), says(Ack));
    host.steps();
    device.device_reset();
    unserved(&mut device);
    device.device_reset();
    unserved(&mut device);
    assert_eq!(plugged(&device), BLOCK);
}

#[test]
fn a_second_driver_is_refused_and_changes_nothing() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    let features = device.negotiated_features();
    for accepted in [VERSION_1 | 2, VERSION_1 | 2 | 1 << 29, 0] {
        assert_eq!(device.activate(accepted), Err(FeaturesError::Active));
    }
    assert_eq!(device.negotiated_features(), features);
    assert_eq!(ask(&mut device, Plug, 0..1), says(Ack));
    // The next one may negotiate something else.
    device.device_reset();
    device.activate(VERSION_1 | 2 | 1 << 29).unwrap();
    assert_eq!(device.negotiated_features(), Some(VERSION_1 | 2 | 1 << 29));
}

/// Three blocks plugged, one written, the device frozen, and the machine reset.
fn reset_while_frozen() -> (TestDevice, Host) {
    let (mut device, host) = driven(settings(), 512 * MIB);
    ask(&mut device, Plug, 3..6);
    resize(&mut device, 64 * MIB);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    region.write_obj(7u64, MemoryRegionAddress(4 * BLOCK)).unwrap();
    device.freeze();
    host.steps();
    device.system_reset(SystemReset::Reboot).unwrap();
    assert_eq!((host.steps(), plugged(&device), device.negotiated_features()), (vec![], 3 * BLOCK, None));
    (device, host)
}

#[test]
fn a_machine_that_is_reset_while_the_device_is_frozen_finds_nothing_plugged_after_the_thaw() {
    let (mut device, host) = reset_while_frozen();
    // What firmware does, and what a VMM may call meanwhile, changes nothing about it.
    device.device_reset();
    device.system_reset(SystemReset::Wakeup).unwrap();
    device.freeze();
    device.settle().unwrap();
    assert_eq!((host.steps(), plugged(&device)), (vec![], 3 * BLOCK));
    let generation = device.config_generation();
    device.thaw().unwrap();
    assert_eq!((plugged(&device), usable(&device)), (0, 64 * MIB + 2 * GUEST_BLOCK));
    assert_ne!(device.config_generation(), generation);
    assert_eq!((host.shown(), host.mapped()), (vec![], vec![]));
    assert_eq!(device.backing().memfd.resident().unwrap(), 0);
    // Once.
    drive(&mut device);
    assert_eq!(ask(&mut device, Plug, 0..1), says(Ack));
    device.freeze();
    device.thaw().unwrap();
    device.settle().unwrap();
    assert_eq!(plugged(&device), BLOCK);
}

#[test]
fn a_driver_that_comes_before_the_thaw_keeps_what_it_found_plugged() {
    let (mut device, _) = reset_while_frozen();
    drive(&mut device);
    assert_eq!(ask(&mut device, State, 3..6), is(PlugState::Plugged));
    assert_eq!(ask(&mut device, UnplugAll, 0..0), says(Busy));
    device.thaw().unwrap();
    assert_eq!(ask(&mut device, State, 3..6), is(PlugState::Plugged));
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(4 * BLOCK)).unwrap(), 7);
    // Also when it has gone again: another may follow it.
    device.device_reset();
    device.freeze();
    device.thaw().unwrap();
    assert_eq!(plugged(&device), 3 * BLOCK);
}

#[test]
fn a_reset_that_the_host_refuses_is_made_up_for_before_a_driver_comes() {
    for step in [Step::UnmapDma, Step::Hide, Step::Discard] {
        let (mut device, host) = driven(settings(), 64 * MIB);
        ask(&mut device, Plug, 3..6);
        host.fail_once(step);
        assert_eq!(device.system_reset(SystemReset::Reboot).unwrap_err().step, step);
        assert_eq!((plugged(&device), device.is_settled()), (3 * BLOCK, true));
        assert_eq!((host.shown().len(), host.mapped().len()), (3, 3));
        device.settle().unwrap();
        assert_eq!((plugged(&device), host.shown(), host.mapped()), (0, vec![], vec![]));
        // And a thaw whose host refuses is a thaw all the same.
        let (mut device, host) = reset_while_frozen();
        host.fail_once(step);
        assert_eq!(device.thaw().unwrap_err().step, step);
        device.thaw().unwrap();
        assert_eq!(plugged(&device), 0);
    }
}

#[test]
fn one_thaw_ends_any_number_of_freezes() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    device.freeze();
    device.freeze();
    let saved = device.snapshot();
    assert_eq!(device.snapshot(), saved);
    device.thaw().unwrap();
    device.thaw().unwrap();
    assert_eq!(ask(&mut device, Plug, 0..1), says(Ack));
}

#[test]
fn a_device_that_is_frozen_takes_no_size_and_says_so() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    device.freeze();
    let before = (device.config(), device.config_generation());
    assert!(matches!(device.set_requested_size(128 * MIB), Err(ResizeError::Frozen)));
    assert_eq!((device.config(), device.config_generation()), before);
    device.thaw().unwrap();
    assert_eq!(device.set_requested_size(128 * MIB).unwrap(), Notify::ConfigChanged);
}

/// Memory of a guest that was saved, or of another guest.
#[test]
fn memory_that_holds_something_makes_no_new_device_and_is_not_emptied() {
    let memfd = Memfd::new(REGION, Pages::Normal).unwrap();
    let region = memfd.guest_region(ADDR).unwrap();
    region.write_obj(7u64, MemoryRegionAddress(BLOCK)).unwrap();
    let refused = Device::new(settings(), memfd, ());
    assert!(matches!(refused, Err(SettingsError::Filled(4096))));
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(BLOCK)).unwrap(), 7);
}

#[test]
fn a_page_that_no_block_is_made_of_is_refused() {
    #[derive(Debug)]
    struct Odd(Memfd, u64);
    impl Backing for Odd {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn page_size(&self) -> u64 {
            self.1
        }
        fn default_block_size(&self) -> u64 {
            4 * MIB
        }
        fn resident(&self) -> std::io::Result<u64> {
            self.0.resident()
        }
        fn populate(&mut self, _: u64, _: u64) -> std::io::Result<()> {
            Ok(())
        }
        fn discard(&mut self, _: u64, _: u64) -> std::io::Result<()> {
            Ok(())
        }
    }
    for page_size in [0, 3 * MIB, 8 * MIB] {
        let memory = Odd(Memfd::new(REGION, Pages::Normal).unwrap(), page_size);
        let refused = Device::new(Settings::new(ADDR, REGION), memory, ());
        assert!(matches!(refused, Err(SettingsError::BlockSize { .. })), "{page_size}");
    }
}

#[test]
fn a_device_can_be_sent_to_a_thread_and_locked() {
    fn shared<T: Send + Sync>() {}
    shared::<std::sync::Mutex<Device<Memfd>>>();
    shared::<Device<Memfd>>();
}
