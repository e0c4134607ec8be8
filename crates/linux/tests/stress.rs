//! Everything at once with real threads: walkers of every kind against owners, both RCU flavours, both layouts.
//!
//! The work is counted, not timed: a slow machine takes longer and checks as much.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use pagefold_engine::platform::Barrier;
use pagefold_engine::protocol::{Fold, Protocol, RefcountFirst};
use pagefold_engine::{Config, Engine, Kind, Layout, Order};
use pagefold_linux::{Linux, Membarrier, YieldingFences};
use pagefold_workload::{Index, Log, OwnerTask, Shape, Stamp, WalkerKind, WalkerTask, share};

const PAGES: u64 = 256 << 8;
const OWNERS: usize = 2;
const STEPS: usize = 20_000;

/// One owner less when it is dropped, also by a panic: walkers must not go on for ever.
struct Leaves<'a>(&'a AtomicUsize);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn hammer<R: Protocol>(barrier: impl Barrier + Clone, layout: Layout) {
    let host: Linux<_, Stamp, R> = Linux::new(barrier).unwrap();
    // SAFETY: both rules keep the promises.
    let mut engine = unsafe { Engine::with_rules(host, Config { pages: PAGES, layout }) }.unwrap();
    engine.online(3..PAGES - 17).unwrap();
    // Some folios stay where they are, and must always be found.
    let pinned = (0..13).flat_map(|bits| (0..3).map(move |_| Order::new(bits).unwrap()));
    let pinned: Vec<_> = pinned.map(|order| share(engine.alloc(order, Kind::File).unwrap())).collect();
    let index = Index::new(&engine, 2048, pinned, OWNERS).unwrap();
    let log = Log::new();
    let busy_owners = AtomicUsize::new(OWNERS);
    let gets = std::thread::scope(|scope| {
        let walkers: Vec<_> = WalkerKind::ALL
            .into_iter()
            .map(|kind| {
                let (index, log, busy_owners) = (&index, &log, &busy_owners);
                scope.spawn(move || {
                    let mut task = WalkerTask::new(kind, index, log, kind as u64).unwrap();
                    while busy_owners.load(Ordering::Relaxed) > 0 {
                        task.step();
                    }
                    task.counts().gets
                })
            })
            .collect();
        for number in 0..OWNERS {
            let (index, busy_owners) = (&index, &busy_owners);
            scope.spawn(move || {
                let _leaves = Leaves(busy_owners);
                let mut task = OwnerTask::new(index, number, Shape::default(), number as u64 + 100).unwrap();
                for _ in 0..STEPS {
                    task.step();
                }
                task.finish();
                let counts = task.counts();
                assert!(counts.allocated > 0 && counts.split > 0 && counts.folded > 0, "{counts:?}");
            });
        }
        walkers.into_iter().map(|walker| walker.join().unwrap()).sum::<u64>()
    });
    assert!(gets > 0);
    assert_eq!(log.total(), 0, "{:?}", log.kept().collect::<Vec<_>>());
    let audit = engine.audit().unwrap();
    assert_eq!(audit.refs, index.occupied(), "every slot is one reference, and there are no others");
    drop(index);
    engine.folder(64).unwrap().fold_all();
    let (_, map) = engine.tables().next().unwrap();
    assert_eq!(map.measured_pages().unwrap(), 0, "all free, so nothing is materialised");
    assert_eq!(engine.free_pages(), PAGES - 20);
    engine.audit().unwrap();
}

#[test]
fn membarrier_folded() {
    hammer::<Fold>(Membarrier::register().unwrap(), Layout::Folded);
}

#[test]
fn fences_folded() {
    hammer::<Fold>(YieldingFences::default(), Layout::Folded);
}

#[test]
fn membarrier_flat() {
    hammer::<Fold>(Membarrier::register().unwrap(), Layout::Flat);
}

#[test]
fn membarrier_refcount_first() {
    hammer::<RefcountFirst>(Membarrier::register().unwrap(), Layout::Folded);
}
