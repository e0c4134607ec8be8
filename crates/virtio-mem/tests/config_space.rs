//! When the driver reads the config space: as often as it must, since over PCI each field is an exit to the hypervisor.

mod common;

use std::cell::Cell;
use std::rc::Rc;

use common::*;
use pagefold_engine::hotplug::{FakeOffline, Unmovable};
use pagefold_engine::{Kind, Order, Pfn};
use pagefold_virtio_mem::{Channel, ChannelError, ConfigInterrupt, Driver, Next};
use pagefold_virtio_mem_spec::{ConfigSpace, Features, Request, Response};

/// Counts reads of the config space, and may be deaf to interrupts.
struct Counted {
    inner: TestChannel,
    reads: Rc<Cell<u32>>,
    is_deaf: bool,
}

impl Channel for Counted {
    fn features(&self) -> Features {
        self.inner.features()
    }
    fn config(&mut self) -> Result<ConfigSpace, ChannelError> {
        self.reads.set(self.reads.get() + 1);
        self.inner.config()
    }
    fn config_changed(&mut self) -> bool {
        self.inner.config_changed() && !self.is_deaf
    }
    fn request(&mut self, request: Request) -> Result<Response, ChannelError> {
        self.inner.request(request)
    }
}

#[test]
fn a_long_way_takes_two_reads() {
    let (engine, device) = (engine(8 * GIB), device(2 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let reads = Rc::new(Cell::new(0));
    let channel = Counted { inner: channel(&device), reads: Rc::clone(&reads), is_deaf: false };
    let driver = &mut Driver::probe(channel, hotplug, settings()).unwrap();
    for size in [2 * GIB, 0] {
        device.set_requested_size(size).unwrap();
        reads.set(0);
        let mut steps = 0;
        let step = driver.work(hotplug, &mut Unmovable, |_| {
            steps += 1;
            true
        });
        assert_eq!((step, driver.status().plugged), (Next::Reached, size));
        assert!(steps >= 16 || size == 0, "a memory block a step, so {steps} are too few for this test");
        assert_eq!(reads.get(), 2, "one before the first step, one before the rest");
    }
}

#[test]
fn a_change_that_nobody_was_told_of_is_found_before_the_driver_rests() {
    let (engine, device) = (engine(8 * GIB), device(2 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let channel = Counted { inner: channel(&device), reads: Rc::default(), is_deaf: true };
    let driver = &mut Driver::probe(channel, hotplug, settings()).unwrap();
    device.set_requested_size(GIB).unwrap();
    let step = driver.work(hotplug, &mut Unmovable, |status| {
        if status.plugged == 512 * MIB {
            device.set_requested_size(256 * MIB).unwrap();
        }
        true
    });
    assert_eq!((step, driver.status().plugged), (Next::Reached, 256 * MIB));
    // And by the first step after it.
    device.set_requested_size(384 * MIB).unwrap();
    let step = driver.work(hotplug, &mut Unmovable, |_| true);
    assert_eq!((step, driver.status().plugged), (Next::Reached, 384 * MIB));
}

/// As over PCI with MSI-X: what the transport has to say is not asked for.
#[test]
fn an_interrupt_handler_tells_of_a_change() {
    let (engine, device) = (engine(8 * GIB), device(2 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let interrupt = ConfigInterrupt::default();
    let channel = channel(&device).with_config_interrupt(interrupt.clone());
    let driver = &mut Driver::probe(channel, hotplug, settings()).unwrap();
    let cache = &mut Cache::default();
    for is_told in [false, true] {
        device.set_requested_size(GIB).unwrap();
        driver.work(hotplug, cache, |_| true);
        // What is free goes in one step, and what has to move in another.
        let used = Pfn((ADDR + 512 * MIB) >> 12);
        cache.folios.push(engine.alloc_at(used, Order::ZERO, Kind::File).unwrap().share());
        device.set_requested_size(0).unwrap();
        let mut least = GIB;
        let step = driver.work(hotplug, cache, |status| {
            if status.plugged == 2 * MIB && status.plugged < least {
                device.set_requested_size(768 * MIB).unwrap();
                if is_told {
                    interrupt.raise();
                }
            }
            least = least.min(status.plugged);
            true
        });
        assert_eq!((step, driver.status().plugged), (Next::Reached, 768 * MIB));
        assert_eq!(least, if is_told { 2 * MIB } else { 0 }, "told: {is_told}");
        cache.folios.clear();
    }
}
