//! Saving and restoring: what was saved comes back, and nothing else does.

mod common;
#[path = "common/damage.rs"]
mod damage;

use std::fs::File;

use common::*;
use pagefold_virtio_mem_device::{
    Device, FeaturesError, GuestAccess, Memfd, RestoreError, SNAPSHOT_VERSION, Settings, Snapshot, Step,
    SystemReset, Unplugged,
};
use pagefold_virtio_mem_spec::RequestType::{Plug, Unplug};
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy};
use proptest::prelude::*;
use serde_json::{Value, json};
use vm_memory::{Bytes, MemoryRegionAddress};

/// The same memory, for another device.
fn memory_of(device: &TestDevice, host: &Host) -> Memory {
    let file: File = device.backing().memfd.file().try_clone().unwrap();
    Memory { memfd: Memfd::from_file(file, REGION).unwrap(), host: host.clone() }
}

fn restored(device: &TestDevice, saved: &Snapshot) -> Result<(TestDevice, Host), RestoreError> {
    let host = Host::default();
    let restored = Device::restore(settings(), memory_of(device, &host), host.clone(), saved)?;
    Ok((restored, host))
}

#[test]
fn ch_fbe3e4d64_a_restored_device_has_the_memory_it_was_saved_with() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 2..4);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    region.write_obj(42u64, MemoryRegionAddress(3 * BLOCK)).unwrap();
    let saved = device.snapshot();
    // Something else was there before, as in a file that is used again.
    region.write_obj(1u64, MemoryRegionAddress(9 * BLOCK)).unwrap();
    let (mut restored, host) = restored(&device, &saved).unwrap();
    let region = restored.backing().memfd.guest_region(ADDR).unwrap();
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(3 * BLOCK)).unwrap(), 42);
    assert_eq!(data(&restored.backing().memfd), [(3 * BLOCK, 3 * BLOCK + 4096)]);
    assert_eq!((host.shown(), host.mapped()), (vec![2, 3], vec![2, 3]));
    // The driver goes on where it was, and so does the generation of the config space it may be reading.
    assert_eq!(restored.config(), device.config());
    assert_eq!(restored.config_generation(), device.config_generation());
    assert_eq!(restored.negotiated_features(), device.negotiated_features());
    assert_eq!(ask(&mut restored, Unplug, 2..3), says(Ack));
    // Memory that arrives later may have touched more.
    region.write_obj(1u64, MemoryRegionAddress(9 * BLOCK)).unwrap();
    restored.discard_unplugged().unwrap();
    assert_eq!(data(&restored.backing().memfd), [(3 * BLOCK, 3 * BLOCK + 4096)]);
}

#[test]
fn a_snapshot_stays_true_until_the_device_is_thawed() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 2..4);
    let saved = device.snapshot();
    assert_eq!(ask(&mut device, Unplug, 2..3), says(Busy));
    assert_eq!(ask(&mut device, Plug, 5..6), says(Busy));
    assert!(device.set_requested_size(0).is_err());
    assert_eq!(device.snapshot(), saved);
    device.thaw().unwrap();
    assert_eq!(ask(&mut device, Unplug, 2..3), says(Ack));
    assert_ne!(device.snapshot(), saved);
}

#[test]
fn rd12_a_snapshot_is_restored_into_the_same_device_only() {
    let (mut device, _) = driven(Settings { node: Some(1), ..settings() }, 64 * MIB);
    ask(&mut device, Plug, 2..5);
    let saved = device.snapshot();
    for (other, what) in [
        (Settings { addr: ADDR + GIB, ..settings() }, "address"),
        (Settings { region_size: 2 * REGION, ..settings() }, "region size"),
        (Settings { block_size: Some(4 * MIB), ..settings() }, "block size"),
        (Settings { guest_block_size: 512 * MIB, ..settings() }, "guest memory block"),
    ] {
        let other = Settings { node: Some(1), ..other };
        let memfd = Memfd::new(other.region_size, Default::default()).unwrap();
        let error = Device::restore(other, memfd, (), &saved).unwrap_err();
        assert!(matches!(error, RestoreError::Different { what: found, .. } if found == what), "{error}");
    }
    let error = restored(&device, &saved).unwrap_err();
    assert!(matches!(error, RestoreError::Node { saved: Some(1), here: None }), "{error}");
    // A driver's features are asked of the new device too.
    let (mut device, _) = driven(Settings { persistent_suspend: true, ..settings() }, 64 * MIB);
    let saved = device.snapshot();
    let error = restored(&device, &saved).unwrap_err();
    assert!(matches!(error, RestoreError::Features(FeaturesError::NotOffered(4))), "{error}");
    let (mut device, _) = device_of_a_driver_that_may_read();
    let saved = device.snapshot();
    let error = restored(&device, &saved).unwrap_err();
    assert!(matches!(error, RestoreError::Features(FeaturesError::WouldTouchUnplugged)), "{error}");
    let impossible = Settings { region_size: 3, ..settings() };
    let error = Device::restore(impossible, memory_of(&device, &Host::default()), (), &saved).unwrap_err();
    assert!(matches!(error, RestoreError::Settings(_)), "{error}");
}

fn device_of_a_driver_that_may_read() -> (TestDevice, Host) {
    driven(Settings { unplugged: Unplugged::Readable, ..settings() }, 64 * MIB)
}

/// Fields that were there, and are not, or are something else, must not hide which version it is.
#[test]
fn the_version_of_a_snapshot_can_be_named_whatever_else_is_in_it() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    let good = serde_json::to_value(device.snapshot()).unwrap();
    assert_eq!(good["version"], SNAPSHOT_VERSION);
    let others: [fn(&mut Value); 4] = [
        |value| value["version"] = 3.into(),
        |value| *value = json!({ "version": 3 }),
        |value| *value = json!({ "new": { "field": [] }, "state": [1], "version": 3 }),
        // The first version, whose fields stood beside the number.
        |value| *value = json!({ "addr": 1, "plugged": [[0, 1]], "features": 0, "node": null, "version": 1 }),
    ];
    for other in others {
        let mut value = good.clone();
        other(&mut value);
        let saved: Snapshot = serde_json::from_value(value.clone()).unwrap();
        let version = value["version"].as_u64().unwrap() as u32;
        assert_eq!(saved.version(), version);
        let error = restored(&device, &saved).unwrap_err();
        assert!(matches!(error, RestoreError::Version(found) if found == version), "{error}");
        assert_eq!(
            error.to_string(),
            format!("device snapshot version {version}; this device reads version 2")
        );
    }
    let nothing: Snapshot = serde_json::from_value(json!({ "version": 2 })).unwrap();
    assert!(matches!(restored(&device, &nothing), Err(RestoreError::Damaged(_))));
}

#[test]
fn a_snapshot_that_was_damaged_is_refused() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 2..4);
    let saved = device.snapshot();
    let text = serde_json::to_string(&saved).unwrap();
    for cut in 0..text.len() {
        assert!(serde_json::from_str::<Snapshot>(&text[..cut]).is_err());
    }
    let mut parsed = 0;
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            let Ok(damaged) = serde_json::from_slice::<Snapshot>(&bytes) else { continue };
            parsed += 1;
            let error = restored(&device, &damaged).unwrap_err();
            assert!(matches!(error, RestoreError::Damaged(_) | RestoreError::Version(_)), "{error}");
        }
    }
    assert!(parsed > 50, "{parsed} of {} parse", text.len() * 8);
}

/// With a checksum that fits, one by one.
#[test]
fn a_snapshot_that_was_made_up_is_refused() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 2..4);
    let words = damage::words(&device.snapshot());
    const USABLE: usize = 5;
    const REQUESTED: usize = 6;
    const GENERATION: usize = 7;
    const DRIVER: usize = 8;
    const FEATURES: usize = 9;
    const FIRST: usize = 10;
    let change = |changes: &[(usize, u64)]| {
        let mut words = words.clone();
        for &(at, value) in changes {
            words[at] = value;
        }
        words
    };
    let runs = |runs: &[u64]| [&words[..FIRST], runs].concat();
    let usable = words[USABLE] / BLOCK;
    let made_up = [
        // A driver that negotiated nothing; features of no driver; a driver like none.
        change(&[(FEATURES, 0)]),
        change(&[(DRIVER, 0)]),
        change(&[(DRIVER, 2), (FEATURES, 0)]),
        change(&[(DRIVER, 3)]),
        change(&[(FEATURES, u64::MAX)]),
        change(&[(FEATURES, words[FEATURES] & !2)]),
        // Usable regions that come of no requested size.
        change(&[(USABLE, words[REQUESTED] - BLOCK)]),
        change(&[(USABLE, words[REQUESTED])]),
        change(&[(USABLE, words[USABLE] - BLOCK)]),
        change(&[(USABLE, 2 * REGION)]),
        change(&[(USABLE, words[USABLE] + 1)]),
        change(&[(REQUESTED, 0), (USABLE, 4 * BLOCK)]),
        change(&[(REQUESTED, 0), (USABLE, 0)]),
        change(&[(REQUESTED, 1)]),
        change(&[(REQUESTED, !(BLOCK - 1))]),
        change(&[(REQUESTED, 2 * REGION), (USABLE, REGION)]),
        change(&[(GENERATION, 1 << 32)]),
        // Runs that are none.
        runs(&[0, 0]),
        runs(&[4, 2, 2, 1]),
        runs(&[2, 3, 4, 1]),
        runs(&[2, 2, 4, 1]),
        runs(&[u64::MAX, 1]),
        runs(&[1, u64::MAX]),
        runs(&[0, usable + 1]),
        runs(&[usable, 1]),
        runs(&[2]),
        runs(&[2, 2, 7]),
        words[..9].to_vec(),
        vec![],
    ];
    for (number, made_up) in made_up.iter().enumerate() {
        let error = restored(&device, &damage::made_up(2, made_up)).unwrap_err();
        let refused = matches!(error, RestoreError::Damaged(_) | RestoreError::Features(_));
        assert!(refused, "{number}: {error}");
    }
    // What differs from that is restored.
    for fine in [
        words.clone(),
        change(&[(DRIVER, 0), (FEATURES, 0)]),
        change(&[(DRIVER, 2)]),
        change(&[(USABLE, words[USABLE] + BLOCK)]),
        change(&[(USABLE, REGION), (REQUESTED, 0)]),
        change(&[(GENERATION, u64::from(u32::MAX))]),
        runs(&[]),
        runs(&[0, usable]),
        runs(&[0, 1, 2, 1, usable - 1, 1]),
    ] {
        let saved = damage::made_up(2, &fine);
        let (mut restored, _) = restored(&device, &saved).unwrap();
        assert_eq!(restored.snapshot(), saved);
    }
}

#[test]
fn a_host_that_refuses_to_restore_loses_nothing() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    ask(&mut device, Plug, 2..4);
    ask(&mut device, Plug, 7..9);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    for block in [2, 3, 7, 8] {
        region.write_obj(block, MemoryRegionAddress(block * BLOCK)).unwrap();
    }
    let saved = device.snapshot();
    for step in [Step::Adopt, Step::Show, Step::MapDma, Step::Discard] {
        for call in 0..3 {
            let host = Host::default();
            let mut calls = 0;
            host.fail(move |asked| {
                calls += u32::from(asked == step);
                asked == step && calls == call + 1
            });
            let restored = Device::restore(settings(), memory_of(&device, &host), host.clone(), &saved);
            if call < 2 || step == Step::Discard {
                assert!(matches!(restored, Err(RestoreError::Host(error)) if error.step == step));
                assert_eq!((host.shown(), host.mapped()), (vec![], vec![]), "{step:?}");
            }
            for block in [2, 3, 7, 8] {
                assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(block * BLOCK)).unwrap(), block);
            }
        }
    }
    assert_eq!(restored(&device, &saved).unwrap().1.shown(), [2, 3, 7, 8]);
}

#[test]
fn a_device_that_needs_a_reset_is_restored_as_one() {
    let (mut device, _) = driven(settings(), 64 * MIB);
    let mut words = damage::words(&device.snapshot());
    words[8] = 2;
    let (mut restored, _) = restored(&device, &damage::made_up(2, &words)).unwrap();
    assert_eq!(ask(&mut restored, Plug, 0..1).kind.get(), 3);
    assert!(restored.set_requested_size(0).is_err());
    restored.device_reset();
    drive(&mut restored);
    assert_eq!(ask(&mut restored, Plug, 0..1), says(Ack));
}

#[test]
fn a_machine_that_was_reset_while_it_was_saved_comes_back_with_nothing_plugged() {
    let (mut device, _) = driven(settings(), 512 * MIB);
    ask(&mut device, Plug, 2..4);
    resize(&mut device, 64 * MIB);
    let region = device.backing().memfd.guest_region(ADDR).unwrap();
    region.write_obj(42u64, MemoryRegionAddress(3 * BLOCK)).unwrap();
    let early = device.snapshot();
    device.system_reset(SystemReset::Reboot).unwrap();
    let late = device.snapshot();
    assert_ne!(early, late);
    let (there, host) = restored(&device, &late).unwrap();
    assert_eq!((plugged(&there), usable(&there), host.shown()), (0, 64 * MIB + 2 * GUEST_BLOCK, vec![]));
    assert_eq!(there.backing().memfd.resident().unwrap(), 0);
    assert_ne!(there.config_generation(), device.config_generation());
    // And here, if it stays.
    device.thaw().unwrap();
    assert_eq!(device.config(), there.config());
}

/// `serde` of formats that name fields and of those that do not.
#[test]
fn a_snapshot_is_a_number_and_words_in_any_format() {
    let saved = damage::honest(Unplugged::Readable);
    let value = serde_json::to_value(&saved).unwrap();
    assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["state", "version"]);
    // A sequence is how formats without names see a struct.
    let bare = json!([value["version"], value["state"]]);
    assert_eq!(serde_json::from_value::<Snapshot>(bare).unwrap(), saved);
    // Numbers that other readers of JSON can hold.
    assert!(value["state"].as_array().unwrap().iter().all(|word| word.as_u64().unwrap() < 1 << 53));
}

#[test]
fn an_access_that_served_another_device_is_not_restored_into() {
    struct Used;
    impl GuestAccess for Used {
        fn attach(&mut self, _: &pagefold_virtio_mem_device::RegionRange) -> std::io::Result<()> {
            Err(std::io::Error::other("used"))
        }
    }
    let (mut device, _) = driven(settings(), 64 * MIB);
    let saved = device.snapshot();
    let memory = memory_of(&device, &Host::default());
    assert!(matches!(Device::restore(settings(), memory, Used, &saved), Err(RestoreError::Settings(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// Few changes to an honest snapshot, so that some are accepted.
    #[test]
    fn what_is_restored_is_sound_and_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..14)) {
        damage::run(&bytes);
    }

    #[test]
    fn any_words_are_restored_soundly_or_refused(
        version in prop_oneof![4 => Just(2u32), 1 => any::<u32>()],
        words in prop::collection::vec(any::<u64>(), 0..24),
    ) {
        damage::restore(&damage::made_up(version, &words), Unplugged::Inaccessible);
    }
}

/// The damage that is done leaves some that can be restored, and some that cannot.
#[test]
fn changes_to_a_snapshot_are_accepted_and_refused() {
    for kind in 0..3 {
        assert!(damage::run(&[kind]), "an honest one");
        assert!(!damage::run(&[kind, 0, 3, 7]), "another address");
        // The last run is one block shorter.
        assert!(damage::run(&[kind, 15, 3, 11]));
        assert!(!damage::run(&[kind, 15, 3, 0]));
    }
}
