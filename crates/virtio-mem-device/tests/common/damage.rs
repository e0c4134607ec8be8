//! Snapshots that bytes make up, and what must hold of a device all the same. The fuzz target and a test run this.
#![allow(dead_code, reason = "each user uses a part of it")]

use pagefold_virtio_mem_device::{
    Device, Memfd, Pages, RestoreError, Settings, Snapshot, Unplugged, VERSION_1,
};
use pagefold_virtio_mem_spec::{PlugState, Request, RequestType, Response, ResponseType};
use serde_json::json;

const MIB: u64 = 1 << 20;
const ADDR: u64 = 1 << 32;
const REGION: u64 = 64 * MIB;
const GUEST_BLOCK: u64 = 4 * MIB;

/// The words of a snapshot, without its checksum.
pub fn words(snapshot: &Snapshot) -> Vec<u64> {
    let value = serde_json::to_value(snapshot).unwrap();
    let mut words: Vec<u64> = serde_json::from_value(value["state"].clone()).unwrap();
    words.pop();
    words
}

/// A snapshot of these words, with a checksum that fits.
pub fn made_up(version: u32, words: &[u64]) -> Snapshot {
    let mut sum = !0u32;
    let bytes = version.to_le_bytes().into_iter().chain(words.iter().flat_map(|word| word.to_le_bytes()));
    for byte in bytes {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    let state: Vec<u64> = words.iter().copied().chain([u64::from(!sum)]).collect();
    serde_json::from_value(json!({ "version": version, "state": state })).unwrap()
}

pub fn settings(unplugged: Unplugged) -> Settings {
    Settings {
        block_size: Some(MIB),
        guest_block_size: GUEST_BLOCK,
        unplugged,
        ..Settings::new(ADDR, REGION)
    }
}

/// What an honest device writes: a driver, 24 MiB requested, and three runs of blocks.
pub fn honest(unplugged: Unplugged) -> Snapshot {
    let memfd = Memfd::new(REGION, Pages::Normal).unwrap();
    let mut device = Device::new(settings(unplugged), memfd, ()).unwrap();
    device.activate(VERSION_1 | 2 & device.features()).unwrap();
    assert!(device.set_requested_size(24 * MIB).is_ok());
    for (first, blocks) in [(0, 3), (5, 1), (20, 12)] {
        let answer = device.handle(&Request::new(RequestType::Plug, ADDR + first * MIB, blocks));
        assert_eq!(answer, Response::new(ResponseType::Ack));
    }
    device.snapshot()
}

/// Reads the bytes as the text of a snapshot and as changes to an honest one. Returns whether a device came of any.
pub fn run(bytes: &[u8]) -> bool {
    let text = serde_json::from_slice(bytes)
        .is_ok_and(|snapshot: Snapshot| restore(&snapshot, Unplugged::default()));
    let (kind, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let unplugged = [Unplugged::Inaccessible, Unplugged::Offered, Unplugged::Readable][usize::from(kind % 3)];
    let mut saved = words(&honest(unplugged));
    for change in bytes.chunks(3) {
        let [at, act, by] = std::array::from_fn(|byte| change.get(byte).copied().unwrap_or(0));
        let at = usize::from(at) % (saved.len() + 1);
        let by = u64::from(by);
        match act % 8 {
            0 => saved.insert(at, by),
            1 => drop((at < saved.len()).then(|| saved.remove(at))),
            2 => saved.truncate(at.max(10)),
            act => {
                let Some(word) = saved.get_mut(at) else { continue };
                *word = match act {
                    3 => by,
                    4 => by * MIB,
                    5 => word.wrapping_add(by),
                    6 => *word ^ 1 << (by % 64),
                    _ => u64::MAX - by,
                };
            }
        }
    }
    restore(&made_up(2, &saved), unplugged) || text
}

/// Restores a snapshot that is not trusted; whether it was accepted, and then all must hold.
pub fn restore(snapshot: &Snapshot, unplugged: Unplugged) -> bool {
    let memfd = Memfd::new(REGION, Pages::Normal).unwrap();
    let mut device = match Device::restore(settings(unplugged), memfd, (), snapshot) {
        Ok(device) => device,
        Err(RestoreError::Host(error)) => panic!("the host was asked for nonsense: {error}"),
        Err(_) => return false,
    };
    assert_eq!(device.snapshot(), *snapshot);
    device.thaw().unwrap();
    let config = device.config();
    let (usable, requested) = (config.usable_region_size.get(), config.requested_size.get());
    let fixed = (config.addr.get(), config.region_size.get(), config.block_size.get());
    assert_eq!(fixed, (ADDR, REGION, MIB));
    assert!(requested <= usable && usable <= REGION && (requested | usable) % MIB == 0);
    let mut after = 0;
    for run in device.plugged_ranges() {
        assert!(run.len > 0 && (run.offset > after || after == 0) && run.addr == ADDR + run.offset);
        assert!((run.offset | run.len) % MIB == 0);
        after = run.offset + run.len;
    }
    assert!(after <= usable);
    let sum: u64 = device.plugged_ranges().map(|run| run.len).sum();
    assert_eq!(sum, config.plugged_size.get());

    // It works: what its driver says fits, and every usable block is plugged or can be.
    match device.negotiated_features() {
        Some(features) => device.check_features(features).unwrap(),
        None => device.activate(VERSION_1 | 2 & device.features()).unwrap(),
    }
    let ask = |device: &mut Device<Memfd>, kind, block: u64| {
        device.handle(&Request::new(kind, ADDR + block * MIB, 1))
    };
    if device.set_requested_size(REGION).is_ok() {
        for block in 0..REGION / MIB {
            let state = ask(&mut device, RequestType::State, block);
            if state == Response::state(PlugState::Unplugged) {
                assert_eq!(ask(&mut device, RequestType::Plug, block), Response::new(ResponseType::Ack));
            } else {
                assert_eq!(state, Response::state(PlugState::Plugged));
            }
        }
        assert_eq!(device.config().plugged_size.get(), REGION);
        let all = Request::new(RequestType::UnplugAll, 0, 0);
        assert_eq!(device.handle(&all), Response::new(ResponseType::Ack));
        assert_eq!(device.config().plugged_size.get(), 0);
    } else {
        assert_eq!(words(snapshot)[8], 2, "only a device that needs a reset takes no new size");
    }
    assert_eq!(device.backing().resident().unwrap(), 0);
    true
}
