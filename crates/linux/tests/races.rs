//! Two threads on one range of areas, and platforms and machines at their edges: counts stay true.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{TestDescriptors, TestEngine, host};
use pagefold_engine::hotplug::{BlockId, Group, HotplugConfig, OnlineTo};
use pagefold_engine::platform::{Mapping, Platform, TableKind};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Config, Engine, Kind, NewError, Order, Pfn};
use pagefold_linux::{Linux, LinuxError, Region, YieldingFences};

const GIB: u64 = 1 << 18;
const AREA: u64 = 512;

/// Runs `other` over and over on a thread of its own, for as long as `this` runs.
fn beside(other: impl Fn() + Sync, this: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                other();
            }
        });
        this();
        drop(stop);
    });
}

/// An allocation of many areas that meets a taken one gives the others back. Those that were isolated meanwhile are free
/// only when the isolation ends, and are counted then.
#[test]
fn areas_that_are_isolated_while_a_large_block_is_tried_are_counted_once() {
    let mut engine: TestEngine = Engine::new(host(), Config::new(GIB)).unwrap();
    engine.online(0..GIB).unwrap();
    let engine = engine;
    let half = Order::new(17).unwrap();
    let taken = engine.alloc_at(Pfn(255 * AREA), Order::AREA, Kind::Kernel).unwrap();
    beside(
        || assert!(engine.alloc_at(Pfn(0), half, Kind::Anon).is_err()),
        || (0..20_000).for_each(|_| drop(engine.isolate(0..128 * AREA).unwrap())),
    );
    engine.audit().unwrap();
    drop(taken);
    assert_eq!(engine.free_pages(), GIB);
    drop(engine.alloc_at(Pfn(0), Order::MAX, Kind::Anon).unwrap());
}

#[test]
fn every_node_and_every_group_has_a_zone_chosen_for_it() {
    let engine: TestEngine = Engine::new(host(), Config::new(GIB)).unwrap();
    let mut hotplug = engine.hotplug(HotplugConfig::default()).unwrap();
    while hotplug.group().is_ok() {}
    hotplug.add(0..1 << 15, 255, Group::NONE).unwrap();
    hotplug.online(BlockId(0), OnlineTo::Policy).unwrap();
}

/// A platform that reserves every table as if it were the allocator's.
struct Confused(Linux<YieldingFences>);

impl Platform for Confused {
    type Mapping = Region;
    type Barrier = YieldingFences;
    type Owner = ();
    type Rules = Fold;
    type Descriptors = TestDescriptors;
    type Error = LinuxError;

    fn reserve(&self, _: TableKind, bytes: u64) -> Result<Region, LinuxError> {
        self.0.reserve(TableKind::Rows, bytes)
    }
    fn barrier(&self) -> YieldingFences {
        self.0.barrier()
    }
    fn cpu(&self) -> usize {
        self.0.cpu()
    }
}

#[test]
fn a_range_that_was_made_for_another_table_is_refused() {
    let platform = Confused(Linux::new(YieldingFences::default()).unwrap());
    assert!(matches!(Engine::new(platform, Config::new(GIB)), Err(NewError::OtherTable(TableKind::Map))));
    let region = Linux::<YieldingFences>::new(YieldingFences::default())
        .unwrap()
        .reserve(TableKind::Rows, 4096)
        .unwrap();
    assert_eq!(Mapping::made_for(&region), Some(TableKind::Rows));
}
