//! Slots that are used in part: only plugged blocks are open, whatever the host refuses.

mod common;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use common::{BLOCK, REGION, ask, drive, says, settings};
use pagefold_virtio_mem_device::{Device, Memfd, MemorySlots, Pages, RegionRange, Settings, SlotAccess};
use pagefold_virtio_mem_spec::RequestType;
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy};

const SLOT: u64 = 4 * BLOCK;

/// What a hypervisor has, and the calls that it refuses: counted from 1, of each kind.
#[derive(Default)]
struct State {
    slots: BTreeSet<u64>,
    open: BTreeSet<u64>,
    refuse: Vec<&'static str>,
}

#[derive(Clone, Default)]
struct Kvm(Arc<Mutex<State>>);

impl Kvm {
    fn call(&self, what: &'static str, done: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        match state.refuse.iter().position(|refused| *refused == what) {
            Some(at) => {
                state.refuse.remove(at);
                Err(io::Error::other(what))
            }
            None => {
                done(&mut state);
                Ok(())
            }
        }
    }

    fn now(&self) -> (Vec<u64>, Vec<u64>) {
        let state = self.0.lock().unwrap();
        (state.slots.iter().copied().collect(), state.open.iter().copied().collect())
    }
}

fn blocks(range: &RegionRange) -> std::ops::Range<u64> {
    range.offset / BLOCK..(range.offset + range.len) / BLOCK
}

impl MemorySlots for Kvm {
    fn add(&mut self, part: &RegionRange) -> io::Result<()> {
        self.call("add", |state| assert!(state.slots.insert(part.offset / SLOT), "added twice"))
    }
    fn remove(&mut self, part: &RegionRange) -> io::Result<()> {
        self.call("remove", |state| {
            assert!(blocks(part).all(|block| !state.open.contains(&block)), "removed while open");
            assert!(state.slots.remove(&(part.offset / SLOT)), "not there");
        })
    }
    fn open(&mut self, range: &RegionRange) -> io::Result<()> {
        self.call("open", |state| {
            for block in blocks(range) {
                assert!(state.slots.contains(&(block * BLOCK / SLOT)), "no slot for it");
                assert!(state.open.insert(block), "open already");
            }
        })
    }
    fn close(&mut self, range: &RegionRange) -> io::Result<()> {
        self.call("close", |state| {
            for block in blocks(range) {
                assert!(state.open.remove(&block), "closed already");
            }
        })
    }
}

type Driven = Device<Memfd, SlotAccess<Kvm>>;

fn driven() -> (Driven, Kvm) {
    let kvm = Kvm::default();
    let settings = Settings { requested_size: REGION, ..settings() };
    let access = SlotAccess::new(kvm.clone(), SLOT).unwrap();
    let mut device = Device::new(settings, Memfd::new(REGION, Pages::Normal).unwrap(), access).unwrap();
    drive(&mut device);
    (device, kvm)
}

/// Blocks that the device says are plugged.
fn plugged(device: &Driven) -> Vec<u64> {
    device.plugged_ranges().flat_map(|range| blocks(&range)).collect()
}

#[test]
fn only_plugged_blocks_of_a_slot_are_open() {
    let (mut device, kvm) = driven();
    assert_eq!(ask(&mut device, RequestType::Plug, 2..6), says(Ack));
    assert_eq!(kvm.now(), (vec![0, 1], vec![2, 3, 4, 5]));
    assert_eq!(ask(&mut device, RequestType::Unplug, 3..5), says(Ack));
    assert_eq!(kvm.now(), (vec![0, 1], vec![2, 5]));
    assert_eq!(ask(&mut device, RequestType::Unplug, 2..3), says(Ack));
    assert_eq!(kvm.now(), (vec![1], vec![5]));
    assert_eq!(ask(&mut device, RequestType::UnplugAll, 0..0), says(Ack));
    assert_eq!(kvm.now(), (vec![], vec![]));
}

#[test]
fn whatever_the_host_refuses_what_is_open_is_what_is_plugged() {
    let refusals: [&[&'static str]; 9] = [
        &["add"],
        &["open"],
        &["open", "remove"],
        &["remove"],
        &["close"],
        &["remove", "open"],
        &["remove", "remove"],
        &["close", "open"],
        &["open", "open"],
    ];
    for refuse in refusals {
        for (kind, first, count) in [
            (RequestType::Plug, 6, 4),
            (RequestType::Plug, 8, 4),
            (RequestType::Unplug, 2, 3),
            (RequestType::Unplug, 2, 2),
            (RequestType::UnplugAll, 0, 0),
        ] {
            let (mut device, kvm) = driven();
            assert_eq!(ask(&mut device, RequestType::Plug, 2..6), says(Ack));
            kvm.0.lock().unwrap().refuse = refuse.to_vec();
            let answer = ask(&mut device, kind, first..first + count);
            assert!([says(Ack), says(Busy)].contains(&answer));
            kvm.0.lock().unwrap().refuse.clear();
            device.settle().unwrap();
            assert_eq!(kvm.now().1, plugged(&device), "{refuse:?} {kind:?} {first}+{count}");
            // And everything works afterwards.
            assert_eq!(ask(&mut device, RequestType::UnplugAll, 0..0), says(Ack));
            assert_eq!(ask(&mut device, RequestType::Plug, 0..12), says(Ack));
            assert_eq!(kvm.now(), (vec![0, 1, 2], (0..12).collect()));
        }
    }
}
