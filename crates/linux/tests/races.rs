//! Two threads on one range of areas, and platforms and machines at their edges: counts stay true.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{TestDescriptors, TestEngine, host, machine};
use pagefold_engine::hotplug::{BlockId, Group, HotplugConfig, OnlineTo};
use pagefold_engine::platform::{Mapping, Platform, TableKind};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Config, Engine, Kind, Layout, NewError, Order, Pfn};
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

/// An allocation of many areas meets one that was taken just now, and gives the others back. Those that were isolated
/// meanwhile are free only when the isolation ends, and are counted then.
#[test]
fn areas_that_are_isolated_while_a_large_block_is_tried_are_counted_once() {
    // Of a GiB, so that the count of its free areas lets both try.
    let half = Order::new(17).unwrap();
    for round in 0..2000 {
        let engine: TestEngine = machine(GIB, Layout::Folded);
        let last = || engine.alloc_at(Pfn(half.pages() - AREA), Order::AREA, Kind::Kernel).ok();
        beside(
            || drop(engine.alloc_at(Pfn(0), half, Kind::Anon)),
            || {
                (0..50).for_each(|_| drop(last()));
                let last = last();
                drop((engine.isolate(0..128 * AREA), last));
            },
        );
        engine.audit().unwrap();
        assert_eq!(engine.free_pages(), GIB, "round {round}");
        drop(engine.alloc_at(Pfn(0), Order::MAX, Kind::Anon).unwrap());
    }
}

/// An allocation of four rows meets a page in use in the last of them, and gives the others back. A page that turns out to be
/// broken while the attempt has it is kept back then, and not only when somebody is about to have it.
#[test]
fn a_page_that_breaks_while_a_block_is_tried_in_vain_is_kept_back() {
    const ROUNDS: u64 = 4096;
    let order = Order::new(8).unwrap();
    let mut engine: TestEngine = Engine::new(host(), Config::new(ROUNDS * AREA)).unwrap();
    engine.online(0..ROUNDS * AREA).unwrap();
    let engine = engine;
    let walker = engine.walker().unwrap();
    let block = AtomicU64::new(0);
    let mut kept = Vec::new();
    beside(
        || drop(engine.alloc_at(Pfn(block.load(Ordering::Relaxed)), order, Kind::Anon)),
        || {
            for round in 0..ROUNDS {
                let first = round * AREA;
                kept.push(
                    engine.alloc_at(Pfn(first + order.pages() - 1), Order::ZERO, Kind::Kernel).unwrap(),
                );
                block.store(first, Ordering::Relaxed);
                // Of the first three rows.
                assert!(walker.poison(Pfn(first + round % 192)).is_ok());
            }
        },
    );
    let audit = engine.audit().unwrap();
    assert_eq!((audit.withheld_pages, audit.free_pages), (ROUNDS, ROUNDS * (AREA - 2)));
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
