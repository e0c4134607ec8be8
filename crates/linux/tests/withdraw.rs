//! Withdrawing a part of memory: what can be had of any number of areas, for one grace period, reported area by area.

#![allow(clippy::single_range_in_vec_init, reason = "a list of parts may have one")]

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{BLOCK, MIB, Owner, TestDescriptors, order};
use pagefold_engine::hotplug::{
    BlockError, BlockId, FakeOffline, Fate, Group, Hotplug, HotplugConfig, Migrate, Migration, OnlineTo,
    Wanted,
};
use pagefold_engine::platform::Barrier;
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Config, Engine, Folio, Kind, Miss, Pfn, Zone};
use pagefold_linux::{Linux, Membarrier};

const AREA: u64 = 2 * MIB;

/// A barrier, and how often its writer's half ran: once a grace period.
#[derive(Clone)]
struct Counted(Membarrier, Arc<AtomicU64>);

// SAFETY: both halves are those of the barrier inside; counting comes before and changes nothing.
unsafe impl Barrier for Counted {
    fn light(&self) {
        self.0.light();
    }
    fn heavy(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.heavy();
    }
    fn wait(&self, turn: u32) {
        self.0.wait(turn);
    }
}

type CountedPlatform = Linux<Counted, Owner, Fold, TestDescriptors>;
type CountedEngine = Engine<CountedPlatform>;

/// A machine of eight blocks, the first one boot memory, the next four online and movable; and its count of grace periods.
fn engine() -> (CountedEngine, Arc<AtomicU64>) {
    let count = Arc::<AtomicU64>::default();
    let barrier = Counted(Membarrier::register().unwrap(), Arc::clone(&count));
    (Engine::new(Linux::new(barrier).unwrap(), Config::new(8 * BLOCK)).unwrap(), count)
}

fn hotplug(engine: &CountedEngine, fake_offline: FakeOffline) -> Hotplug<'_, CountedPlatform> {
    let mut hotplug = engine.hotplug(HotplugConfig { fake_offline, ..HotplugConfig::default() }).unwrap();
    hotplug.boot(0..BLOCK, 0).unwrap();
    hotplug.add(BLOCK..5 * BLOCK, 0, Group::NONE).unwrap();
    for block in 1..5 {
        hotplug.online(BlockId(block), OnlineTo::Zone(Zone::Movable)).unwrap();
    }
    hotplug
}

fn all_of(parts: &[Range<u64>]) -> Wanted<'_> {
    Wanted { parts, piece: AREA, pages: u64::MAX, runs: usize::MAX }
}

/// Keeps folios: moves those that may, and counts questions.
#[derive(Default)]
struct Owners<'e> {
    folios: Vec<Folio<'e, CountedPlatform>>,
    pinned: Vec<Pfn>,
    busy: Vec<Pfn>,
    without_memory: Option<Pfn>,
    asked: Vec<Pfn>,
}

impl<'e> Owners<'e> {
    fn take(&mut self, engine: &'e CountedEngine, pfn: u64, bits: u32) -> Pfn {
        self.folios.push(engine.alloc_at(Pfn(pfn), order(bits), Kind::File).unwrap().share());
        Pfn(pfn)
    }
}

impl<'e> Migrate<'e, CountedPlatform> for Owners<'e> {
    fn migrate(&mut self, folio: Folio<'e, CountedPlatform>) -> Migration {
        let pfn = folio.pfn();
        self.asked.push(pfn);
        if self.pinned.contains(&pfn) {
            return Migration::Unmovable;
        }
        if self.busy.contains(&pfn) {
            return Migration::Busy;
        }
        if self.without_memory == Some(pfn) {
            return Migration::NoMemory;
        }
        let slot = self.folios.iter_mut().find(|mine| mine.pfn() == pfn).unwrap();
        let copy = (0..BLOCK).step_by(folio.order().pages() as usize);
        let mut copies =
            copy.filter_map(|pfn| folio.engine().alloc_at(Pfn(pfn), folio.order(), Kind::File).ok());
        *slot = copies.next().unwrap().share();
        Migration::Moved
    }
}

#[test]
fn what_is_free_and_what_moves_is_taken_and_the_rest_stays_with_a_reason() {
    for policy in [FakeOffline::Folded, FakeOffline::Classic { rcu: true }] {
        let (engine, graces) = engine();
        let mut hotplug = hotplug(&engine, policy);
        let owners = &mut Owners::default();
        let at = |area: u64| BLOCK + area * AREA + 5;
        owners.take(&engine, at(3), 0);
        owners.take(&engine, at(70) - 5, 9);
        let pin = owners.take(&engine, at(100), 0);
        owners.take(&engine, at(100) + 1, 0);
        let busy = owners.take(&engine, at(200), 0);
        (owners.pinned, owners.busy) = (vec![pin], vec![busy]);
        let before = (engine.free_pages(), hotplug.zone(Zone::Movable).managed);
        graces.store(0, Ordering::Relaxed);
        let done = hotplug.withdraw(&all_of(&[BLOCK..5 * BLOCK]), Some(owners)).unwrap();
        let first = |area: u64| BLOCK + area * AREA;
        assert_eq!(
            done.taken(),
            [BLOCK..first(100), first(101)..first(200), first(201)..5 * BLOCK],
            "all but two areas, over the borders of blocks"
        );
        for (area, fate) in
            [(0, Fate::Free), (3, Fate::Moved), (70, Fate::Moved), (100, Fate::Pinned), (200, Fate::Busy)]
        {
            assert_eq!(done.fate(Pfn(at(area))), Some(fate), "area {area}");
        }
        assert_eq!(done.fate(Pfn(5 * BLOCK)), None);
        assert_eq!((done.considered_from(), done.lacks_room()), (Pfn(BLOCK), false));
        // Each owner once, and none in an area that is pinned already.
        owners.asked.sort();
        assert_eq!(owners.asked, [Pfn(at(3)), Pfn(at(70) - 5), pin, busy]);
        // One for those who look at what moved, and one for descriptors, of all blocks together.
        assert!(graces.load(Ordering::Relaxed) <= 2, "{}", graces.load(Ordering::Relaxed));
        let taken = 4 * BLOCK - 2 * AREA;
        assert_eq!(hotplug.zone(Zone::Movable).managed, before.1 - taken);
        // What was free in the areas that stay is in circulation again; two folios are in boot memory now.
        assert_eq!(engine.free_pages(), before.0 + 1 + AREA - (taken + 1 + AREA));
        engine.audit().unwrap();
        // And back.
        for run in done.taken() {
            for block in 1..5 {
                let part = run.start.max(block * BLOCK)..run.end.min((block + 1) * BLOCK);
                if part.start < part.end {
                    hotplug.fake_online(part).unwrap();
                }
            }
        }
        assert_eq!((engine.free_pages(), hotplug.zone(Zone::Movable).managed), before);
        engine.audit().unwrap();
    }
}

#[test]
fn without_owners_only_what_is_free_is_taken_and_nobody_is_waited_for() {
    let (engine, graces) = engine();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let owners = &mut Owners::default();
    let used = owners.take(&engine, 2 * BLOCK + 3 * AREA + 77, 0);
    graces.store(0, Ordering::Relaxed);
    let done = hotplug.withdraw(&all_of(&[BLOCK..5 * BLOCK]), None).unwrap();
    let hole = 2 * BLOCK + 3 * AREA..2 * BLOCK + 4 * AREA;
    assert_eq!(done.taken(), [BLOCK..hole.start, hole.end..5 * BLOCK]);
    assert_eq!(graces.load(Ordering::Relaxed), 0, "nothing there had a descriptor");
    engine.audit().unwrap();
    // Nor does a second attempt, where nothing is free, nor one whose only owner refuses.
    owners.pinned.push(used);
    let again = hotplug.withdraw(&all_of(std::slice::from_ref(&hole)), None).unwrap();
    let asked = hotplug.withdraw(&all_of(std::slice::from_ref(&hole)), Some(owners)).unwrap();
    assert!(again.taken().is_empty() && asked.taken().is_empty());
    assert_eq!((graces.load(Ordering::Relaxed), owners.asked.len()), (0, 1));
    // What was used and is free again has descriptors: one grace period for all of it.
    owners.folios.clear();
    let done = hotplug.withdraw(&all_of(std::slice::from_ref(&hole)), None).unwrap();
    assert_eq!((done.taken(), graces.load(Ordering::Relaxed)), (&[hole][..], 1));
    assert_eq!(engine.materialised_map_pages(), 0);
    engine.audit().unwrap();
}

#[test]
fn no_more_is_taken_than_is_wanted_from_high_to_low() {
    let (engine, _) = engine();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let owners = &mut Owners::default();
    for area in 0..8 {
        owners.take(&engine, 4 * BLOCK + area * AREA + 9, 0);
    }
    let parts = [BLOCK..5 * BLOCK];
    let top = 5 * BLOCK - 10 * AREA;
    let wanted = Wanted { pages: 10 * AREA + 511, ..all_of(&parts) };
    let done = hotplug.withdraw(&wanted, Some(owners)).unwrap();
    assert_eq!((done.taken(), done.considered_from()), (&[top..5 * BLOCK][..], Pfn(top)));
    assert!(owners.asked.is_empty(), "enough was free above");
    // Runs: each second area of those left is in use by a pinned folio.
    let parts = [4 * BLOCK..top];
    owners.pinned = (0..4).map(|area| Pfn(4 * BLOCK + 2 * area * AREA + 9)).collect();
    let wanted = Wanted { runs: 2, ..all_of(&parts) };
    let done = hotplug.withdraw(&wanted, Some(owners)).unwrap();
    let area = |area: u64| 4 * BLOCK + area * AREA;
    assert_eq!(done.taken(), [area(5)..area(6), area(7)..top]);
    assert_eq!(done.considered_from(), Pfn(area(4)));
    engine.audit().unwrap();
}

#[test]
fn pieces_go_whole_or_not_at_all() {
    let (engine, _) = engine();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let owners = &mut Owners::default();
    let pin = owners.take(&engine, BLOCK + 5 * AREA, 0);
    owners.pinned.push(pin);
    let other = owners.take(&engine, BLOCK + 7 * AREA, 0);
    let parts = [BLOCK..BLOCK + 16 * AREA];
    for migrate in [None, Some(owners as &mut dyn Migrate<'_, _>)] {
        let asks = migrate.is_some();
        let wanted = Wanted { piece: 4 * AREA, ..all_of(&parts) };
        let done = hotplug.withdraw(&wanted, migrate).unwrap();
        assert_eq!(done.taken(), [BLOCK..BLOCK + 4 * AREA, BLOCK + 8 * AREA..BLOCK + 16 * AREA]);
        assert_eq!(done.fate(pin), Some(if asks { Fate::Pinned } else { Fate::Busy }));
        engine.audit().unwrap();
        let online = hotplug.withdraw(&wanted, None).unwrap();
        assert!(online.taken().is_empty(), "what is out of use already is no piece of it");
        done.taken().iter().for_each(|run| hotplug.fake_online(run.clone()).unwrap());
        engine.audit().unwrap();
    }
    let owners = &mut Owners { pinned: vec![pin], ..Owners::default() };
    assert!(!owners.asked.contains(&other), "the rest of its piece would move for nothing");
}

#[test]
fn without_memory_for_a_copy_what_was_found_above_is_taken_all_the_same() {
    let (engine, _) = engine();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let owners = &mut Owners::default();
    let area = |area: u64| BLOCK + area * AREA;
    owners.take(&engine, area(9), 0);
    owners.without_memory = Some(owners.take(&engine, area(5), 0));
    owners.take(&engine, area(2), 0);
    let parts = [BLOCK..area(16)];
    let done = hotplug.withdraw(&all_of(&parts), Some(owners)).unwrap();
    assert_eq!((done.taken(), done.lacks_room()), (&[area(6)..area(16)][..], true));
    assert_eq!(done.considered_from(), Pfn(area(5)));
    assert_eq!(owners.asked, [Pfn(area(9)), Pfn(area(5))], "from high to low, and nobody after that");
    engine.audit().unwrap();
    // It goes on below.
    let rest = [BLOCK..area(5)];
    assert_eq!(hotplug.withdraw(&all_of(&rest), Some(owners)).unwrap().taken(), rest);
    engine.audit().unwrap();
}

#[test]
fn broken_pages_and_isolated_areas_are_seen_to() {
    let (engine, _) = engine();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let area = |area: u64| BLOCK + area * AREA;
    engine.walker().unwrap().poison(Pfn(area(3) + 1)).unwrap();
    let isolated = engine.isolate(area(8)..area(9)).unwrap();
    let parts = [BLOCK..area(16)];
    // A broken page makes an area one of small pages; it is in nobody's way.
    let done = hotplug.withdraw(&all_of(&parts), Some(&mut Owners::default())).unwrap();
    assert_eq!(done.taken(), [BLOCK..area(8), area(9)..area(16)]);
    assert_eq!(done.fate(Pfn(area(8))), Some(Fate::Busy));
    assert_eq!(engine.walker().unwrap().try_get(Pfn(area(3))).unwrap_err(), Miss::Offline);
    drop(isolated);
    engine.audit().unwrap();
    hotplug.fake_online(BLOCK..area(8)).unwrap();
    assert_eq!(engine.audit().unwrap().withheld_pages, 1);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (engine, _) = engine();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    hotplug.add(5 * BLOCK..7 * BLOCK, 0, Group::NONE).unwrap();
    hotplug.online(BlockId(5), OnlineTo::Zone(Zone::Normal)).unwrap();
    let bad: [&[Range<u64>]; 8] = [
        &[],
        &[BLOCK..BLOCK],
        &[BLOCK + 1..BLOCK + AREA],
        &[BLOCK..2 * BLOCK, BLOCK + AREA..3 * BLOCK],
        // Boot memory; two zones; a block that is offline; beyond the machine.
        &[0..AREA],
        &[4 * BLOCK..6 * BLOCK],
        &[6 * BLOCK..7 * BLOCK],
        &[BLOCK..u64::MAX / AREA * AREA],
    ];
    let free = engine.free_pages();
    for parts in bad {
        assert_eq!(hotplug.withdraw(&all_of(parts), None).unwrap_err(), BlockError::BadRange, "{parts:x?}");
    }
    let parts = [BLOCK..2 * BLOCK];
    for piece in [0, 64, 3 * AREA, 2 * BLOCK] {
        let wanted = Wanted { piece, ..all_of(&parts) };
        assert_eq!(hotplug.withdraw(&wanted, None).unwrap_err(), BlockError::BadRange, "{piece}");
    }
    let nothing = Wanted { pages: 0, ..all_of(&parts) };
    assert!(hotplug.withdraw(&nothing, None).unwrap().taken().is_empty());
    assert_eq!(engine.free_pages(), free);
    engine.audit().unwrap();
}
