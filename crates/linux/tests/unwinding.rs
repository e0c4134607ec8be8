//! Code of others that panics: what was under way is undone, and everything works afterwards.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{BLOCK, MIB, TestEngine, TestPlatform, booted, host, machine, order};
use pagefold_engine::hotplug::{
    BlockChange, BlockId, Event, FakeOffline, Group, Hotplug, Listener, Migrate, Migration, OnlineTo,
    Unmovable, Veto,
};
use pagefold_engine::protocol::Protocol;
use pagefold_engine::{BlockState, Config, Engine, Folio, Kind, Layout, Order, Pfn, Poisoned, Zone};

const MOVABLE: OnlineTo = OnlineTo::Zone(Zone::Movable);

fn engine() -> TestEngine {
    Engine::new(host(), Config::new(4 * BLOCK)).unwrap()
}

fn hotplug(engine: &TestEngine, fake_offline: FakeOffline) -> Hotplug<'_, TestPlatform> {
    let mut hotplug = booted(engine, fake_offline);
    hotplug.add(BLOCK..2 * BLOCK, 0, Group::NONE).unwrap();
    hotplug
}

fn state(hotplug: &Hotplug<'_, TestPlatform>) -> BlockState {
    hotplug.block(BlockId(1)).unwrap().state
}

fn panics<T>(run: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(|| drop(run()))).is_err(), "it was to panic");
}

struct Panics;

impl<'e> Migrate<'e, TestPlatform> for Panics {
    fn migrate(&mut self, _: Folio<'e, TestPlatform>) -> Migration {
        panic!("an owner's mistake")
    }
}

/// Notes what it is told, and panics when it is told of `at`, once.
struct Trips {
    at: Mutex<Option<Event>>,
    heard: Mutex<Vec<Event>>,
}

impl Trips {
    fn new(at: Option<Event>) -> Arc<Self> {
        Arc::new(Self { at: Mutex::new(at), heard: Mutex::new(Vec::new()) })
    }
    fn heard(&self) -> Vec<Event> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

impl Listener for Trips {
    fn notify(&self, event: Event, _: &BlockChange) -> Result<(), Veto> {
        self.heard.lock().unwrap().push(event);
        let trips = self.at.lock().unwrap().take_if(|at| *at == event).is_some();
        assert!(!trips, "a listener's mistake");
        Ok(())
    }
}

#[test]
fn an_owner_that_panics_leaves_its_block_online_and_whole() {
    for fake_offline in [FakeOffline::Folded, FakeOffline::Classic { rcu: true }] {
        let engine = engine();
        let mut hotplug = hotplug(&engine, fake_offline);
        let listener = Trips::new(None);
        hotplug.listen(Arc::clone(&listener) as Arc<dyn Listener>).unwrap();
        hotplug.online(BlockId(1), MOVABLE).unwrap();
        listener.heard();
        let folio = engine.alloc_movable(order(3), Kind::File).unwrap().share();
        assert!(folio.pfn().0 >= BLOCK);
        let free = engine.free_pages();
        panics(|| hotplug.offline(BlockId(1), &mut Panics));
        assert_eq!(state(&hotplug), BlockState::Online);
        assert_eq!(listener.heard(), [Event::GoingOffline, Event::CancelOffline]);
        panics(|| hotplug.fake_offline(BLOCK..2 * BLOCK, &mut Panics));
        assert_eq!(listener.heard(), []);
        assert_eq!((engine.free_pages(), folio.refs()), (free, 1));
        assert_eq!(hotplug.zone(Zone::Movable).managed, BLOCK);
        engine.audit().unwrap();
        drop(folio);
        hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
        hotplug.remove(BlockId(1)).unwrap();
        engine.audit().unwrap();
    }
}

#[test]
fn what_broke_while_an_owner_panicked_is_kept_back_and_folds() {
    /// Records poison in what is held free just now, then panics.
    struct Breaks<'e>(&'e TestEngine);
    impl<'e> Migrate<'e, TestPlatform> for Breaks<'e> {
        fn migrate(&mut self, _: Folio<'e, TestPlatform>) -> Migration {
            let walker = self.0.walker().unwrap();
            assert_eq!(walker.poison(Pfn(BLOCK + 5)), Ok(Poisoned::InUse));
            panic!("an owner's mistake")
        }
    }
    let engine = engine();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    hotplug.online(BlockId(1), MOVABLE).unwrap();
    let folio = engine.alloc_at(Pfn(BLOCK + 4096), order(0), Kind::File).unwrap().share();
    panics(|| hotplug.offline(BlockId(1), &mut Breaks(&engine)));
    assert_eq!(engine.audit().unwrap().withheld_pages, 1);
    drop(folio);
    engine.folder(64).unwrap().fold_all();
    assert_eq!(engine.materialised_map_pages(), 0);
    engine.audit().unwrap();
}

#[test]
fn a_listener_that_panics_leaves_its_block_as_it_was_and_all_are_told() {
    use Event::{CancelOffline, CancelOnline, GoingOffline, GoingOnline, Offline, Online};
    let engine = engine();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let trips = Trips::new(Some(GoingOnline));
    let after = Trips::new(None);
    hotplug.listen(Arc::clone(&trips) as Arc<dyn Listener>).unwrap();
    hotplug.listen(Arc::clone(&after) as Arc<dyn Listener>).unwrap();
    panics(|| hotplug.online(BlockId(1), MOVABLE));
    assert_eq!(state(&hotplug), BlockState::Offline);
    assert_eq!(trips.heard(), [GoingOnline, CancelOnline]);
    assert_eq!(after.heard(), [CancelOnline]);
    engine.audit().unwrap();

    // It has happened, and whoever comes later hears of it.
    *trips.at.lock().unwrap() = Some(Online);
    panics(|| hotplug.online(BlockId(1), MOVABLE));
    assert_eq!(state(&hotplug), BlockState::Online);
    assert_eq!(trips.heard(), [GoingOnline, Online]);
    assert_eq!(after.heard(), [GoingOnline, Online]);
    assert_eq!(engine.free_pages(), 2 * BLOCK);
    assert_eq!(hotplug.zone(Zone::Movable).present, BLOCK);

    *trips.at.lock().unwrap() = Some(GoingOffline);
    panics(|| hotplug.offline(BlockId(1), &mut Unmovable));
    assert_eq!(state(&hotplug), BlockState::Online);
    assert_eq!(trips.heard(), [GoingOffline, CancelOffline]);
    assert_eq!(after.heard(), [CancelOffline]);
    assert_eq!(engine.free_pages(), 2 * BLOCK);

    *trips.at.lock().unwrap() = Some(Offline);
    panics(|| hotplug.offline(BlockId(1), &mut Unmovable));
    assert_eq!(state(&hotplug), BlockState::Offline);
    assert_eq!(after.heard(), [GoingOffline, Offline]);
    assert_eq!(hotplug.zone(Zone::Movable).present, 0);
    hotplug.remove(BlockId(1)).unwrap();
    engine.audit().unwrap();
}

/// Says where memory is, and panics the `n`th time it is asked.
struct Parts {
    n: AtomicUsize,
}

impl Listener for Parts {
    fn notify(&self, _: Event, _: &BlockChange) -> Result<(), Veto> {
        Ok(())
    }
    fn plugged(&self, pages: &std::ops::Range<u64>, part: &mut dyn FnMut(std::ops::Range<u64>)) -> bool {
        part(pages.start..pages.start + 512);
        let left = self.n.load(Ordering::Relaxed);
        self.n.store(left.wrapping_sub(1), Ordering::Relaxed);
        assert!(left != 1, "a listener's mistake");
        part(pages.start + 1024..pages.start + 2048);
        true
    }
}

#[test]
fn a_listener_that_panics_over_where_memory_is_leaves_the_block_offline() {
    for asked in 1..=3 {
        for fake_offline in [FakeOffline::Folded, FakeOffline::Classic { rcu: true }] {
            let engine = engine();
            let mut hotplug = hotplug(&engine, fake_offline);
            hotplug.listen(Arc::new(Parts { n: AtomicUsize::new(asked) })).unwrap();
            if catch_unwind(AssertUnwindSafe(|| hotplug.online(BlockId(1), MOVABLE))).is_ok() {
                // It is not asked that often.
                assert!(asked > 1);
                continue;
            }
            assert_eq!(state(&hotplug), BlockState::Offline);
            assert_eq!(engine.free_pages(), BLOCK, "asked for the {asked}. time");
            assert_eq!(hotplug.zone(Zone::Movable).managed, 0);
            engine.audit().unwrap();
            hotplug.online(BlockId(1), MOVABLE).unwrap();
            assert_eq!(engine.free_pages(), BLOCK + 1536);
        }
    }
}

/// A protocol whose hook panics once.
struct Trip;

static TRIPS: AtomicUsize = AtomicUsize::new(0);

impl Protocol for Trip {
    const NAME: &'static str = "trip";
    const ASKS_CLASS: bool = true;
    const WAITS: bool = true;
    const TOLERATES_WRITES: bool = false;
    fn between_look_and_swap() {
        assert!(TRIPS.fetch_add(1, Ordering::Relaxed) != 0, "a mistake");
    }
}

#[test]
fn a_walker_that_panics_inside_is_outside_afterwards() {
    let engine = machine::<Trip>(64 * MIB, Layout::Folded);
    let walker = engine.walker().unwrap();
    let folio = engine.alloc(Order::ZERO, Kind::Anon).unwrap().share();
    panics(|| walker.try_get(folio.pfn()));
    let ticket = engine.rcu().start();
    assert!(ticket.is_over(), "a walker is still inside");
    assert_eq!(walker.try_get(folio.pfn()).unwrap().refs(), 2);
    assert_eq!(folio.refs(), 1);
}
