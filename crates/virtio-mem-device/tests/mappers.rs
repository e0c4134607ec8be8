//! Devices that reach memory directly, and come late.

mod common;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use common::{BLOCK, REGION, ask, drive, says, settings};
use pagefold_virtio_mem_device::{Device, DmaMapper, Mappers, Memfd, Pages, RegionRange, Settings};
use pagefold_virtio_mem_spec::RequestType;
use pagefold_virtio_mem_spec::ResponseType::{Ack, Busy};

/// What a container has mapped, and which calls it fails.
#[derive(Default)]
struct State {
    blocks: BTreeSet<u64>,
    calls: u64,
    /// The call that fails, counted from 1, and how many after it; 0 for none.
    fail_at: u64,
    fails: u64,
}

#[derive(Clone, Default)]
struct Container(Arc<Mutex<State>>);

impl Container {
    fn blocks(&self) -> Vec<u64> {
        self.0.lock().unwrap().blocks.iter().copied().collect()
    }

    fn fail(&self, at: u64, times: u64) {
        let mut state = self.0.lock().unwrap();
        (state.calls, state.fail_at, state.fails) = (0, at, times);
    }

    fn call(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        let fails = state.fail_at > 0 && (state.fail_at..state.fail_at + state.fails).contains(&state.calls);
        if fails { Err(io::Error::other("no more mappings")) } else { Ok(state) }
    }
}

impl DmaMapper for Container {
    fn map(&mut self, block: &RegionRange) -> io::Result<()> {
        assert_eq!(block.len, BLOCK);
        assert!(self.call()?.blocks.insert(block.offset / BLOCK), "mapped twice");
        Ok(())
    }

    fn unmap(&mut self, block: &RegionRange) -> io::Result<()> {
        assert!(self.call()?.blocks.remove(&(block.offset / BLOCK)), "not mapped");
        Ok(())
    }
}

type Driven = Device<Memfd, Mappers>;

fn driven() -> Driven {
    let settings = Settings { requested_size: REGION, ..settings() };
    let memory = Memfd::new(REGION, Pages::Normal).unwrap();
    let mut device = Device::new(settings, memory, Mappers::new(())).unwrap();
    drive(&mut device);
    device
}

#[test]
fn a_late_one_gets_what_is_plugged_and_what_will_be_until_it_goes() {
    let mut device = driven();
    ask(&mut device, RequestType::Plug, 3..5);
    let (first, second) = (Container::default(), Container::default());
    let id = device.attach_dma(Box::new(first.clone())).unwrap();
    assert_eq!(first.blocks(), [3, 4]);
    ask(&mut device, RequestType::Plug, 10..13);
    device.attach_dma(Box::new(second.clone())).unwrap();
    ask(&mut device, RequestType::Unplug, 4..5);
    ask(&mut device, RequestType::Unplug, 11..12);
    assert_eq!((first.blocks(), second.blocks()), (vec![3, 10, 12], vec![3, 10, 12]));
    device.detach_dma(id).unwrap();
    device.detach_dma(id).unwrap();
    ask(&mut device, RequestType::Plug, 20..21);
    assert_eq!((first.blocks(), second.blocks()), (vec![], vec![3, 10, 12, 20]));
    ask(&mut device, RequestType::UnplugAll, 0..0);
    assert!(second.blocks().is_empty());
    assert_eq!(device.guest_access().count(), 1);
}

#[test]
fn one_that_cannot_map_what_is_plugged_is_not_attached_and_has_nothing() {
    let mut device = driven();
    ask(&mut device, RequestType::Plug, 0..3);
    ask(&mut device, RequestType::Plug, 8..11);
    for at in 1..=6 {
        let container = Container::default();
        container.fail(at, 1);
        let error = device.attach_dma(Box::new(container.clone())).unwrap_err();
        assert!(error.to_string().contains("mapping for devices"), "{error}");
        assert!(container.blocks().is_empty());
    }
    assert_eq!(device.guest_access().count(), 0);
}

#[test]
fn a_plug_or_an_unplug_that_one_refuses_changes_nothing_for_any() {
    for (which, at) in (0..2).flat_map(|which| (1..=4).map(move |at| (which, at))) {
        let mut device = driven();
        let containers = [Container::default(), Container::default()];
        for container in &containers {
            device.attach_dma(Box::new(container.clone())).unwrap();
        }
        containers[which].fail(at, 1);
        assert_eq!(ask(&mut device, RequestType::Plug, 0..4), says(Busy));
        assert!(containers.iter().all(|container| container.blocks().is_empty()), "{which} {at}");
        assert_eq!((device.config().plugged_size.get(), device.is_settled()), (0, true));
        assert_eq!(ask(&mut device, RequestType::Plug, 0..4), says(Ack));
        containers[which].fail(at, 1);
        assert_eq!(ask(&mut device, RequestType::Unplug, 0..4), says(Busy));
        assert!(containers.iter().all(|container| container.blocks() == [0, 1, 2, 3]), "{which} {at}");
        assert_eq!(ask(&mut device, RequestType::Unplug, 0..4), says(Ack));
        assert!(containers.iter().all(|container| container.blocks().is_empty()));
    }
}

#[test]
fn a_block_that_stays_mapped_without_being_plugged_is_mapped_anew() {
    let mut device = driven();
    let container = Container::default();
    device.attach_dma(Box::new(container.clone())).unwrap();
    // The third block cannot be mapped, and the first two not be unmapped.
    container.fail(3, 3);
    assert_eq!(ask(&mut device, RequestType::Plug, 0..3), says(Busy));
    assert_eq!(container.blocks(), [0, 1], "the host keeps them");
    assert_eq!(ask(&mut device, RequestType::Plug, 0..3), says(Ack));
    assert_eq!(container.blocks(), [0, 1, 2]);
    assert_eq!(ask(&mut device, RequestType::UnplugAll, 0..0), says(Ack));
    assert!(container.blocks().is_empty());
}
