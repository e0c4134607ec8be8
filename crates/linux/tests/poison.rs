//! Broken pages: in use they stay as they are, and once they are free nobody gets them, wherever their memory goes.

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    BLOCK, MIB, SetOnDrop, TestEngine, TestPlatform, booted, folded, host, machine, map_pages_measured, order,
};
use pagefold_engine::hotplug::{
    BlockError, BlockId, FakeOffline, Group, Hotplug, Migrate, Migration, OnlineTo, Unmovable,
};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{
    AllocError, Class, Config, Engine, Folio, Kind, Layout, Miss, Order, Pfn, PoisonError, Poisoned, Zone,
};

const MOVABLE: OnlineTo = OnlineTo::Zone(Zone::Movable);
const NORMAL: OnlineTo = OnlineTo::Zone(Zone::Normal);

/// Makes the folder look at the section of `pfn`: something is freed there.
fn free_something_near(engine: &TestEngine, pfn: Pfn) {
    let neighbour = Pfn(pfn.0 ^ 1);
    drop(engine.alloc_at(neighbour, Order::ZERO, Kind::Anon).unwrap().share());
}

#[test]
fn a_page_that_breaks_in_use_keeps_its_descriptor_under_a_folder() {
    for layout in [Layout::Folded, Layout::Flat] {
        let engine = machine::<Fold>(128 * MIB, layout);
        let walker = engine.walker().unwrap();
        let pfn = Pfn(1000);
        let mut frozen = engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap();
        frozen.owner_mut()[0] = 0xfeed;
        let folio = frozen.share();
        assert_eq!(walker.poison(pfn), Ok(Poisoned::InUse));
        // The only page in use of its map page.
        free_something_near(&engine, pfn);
        engine.folder(64).unwrap().fold_all();
        assert_eq!(engine.class(pfn), (Class::Mapped, true), "{layout:?}");
        assert_eq!((folio.refs(), folio.owner()[0]), (1, 0xfeed));
        assert_eq!(walker.try_get(pfn).unwrap().pfn(), pfn);
        assert_eq!(engine.audit().unwrap().withheld_pages, 0, "in use is not withheld");
        map_pages_measured(&engine);
        // The last put keeps it back, and then its map page folds.
        drop(folio);
        assert_eq!(engine.audit().unwrap().withheld_pages, 1);
        assert_eq!(engine.free_pages(), 128 * MIB - 1);
        engine.folder(64).unwrap().fold_all();
        assert_eq!(engine.class(pfn), (Class::Free, false));
        assert_eq!(map_pages_measured(&engine), 0);
        assert_eq!(walker.try_get(pfn).unwrap_err(), Miss::Free);
        engine.audit().unwrap();
    }
}

#[test]
fn folios_of_every_order_that_break_in_use_lose_nothing_but_the_page() {
    for layout in [Layout::Folded, Layout::Flat] {
        for bits in 0..=13 {
            let engine = machine::<Fold>(128 * MIB, layout);
            let walker = engine.walker().unwrap();
            let folio = engine.alloc_at(Pfn(1 << 13), order(bits), Kind::File).unwrap().share();
            let pages = folio.order().pages();
            let mut broken = vec![0, pages / 2, pages - 1];
            broken.dedup();
            for &page in &broken {
                assert_eq!(walker.poison(folio.pfn().plus(page)), Ok(Poisoned::InUse));
            }
            engine.folder(64).unwrap().fold_all();
            assert_eq!(walker.try_get(folio.pfn().plus(pages - 1)).unwrap().pfn(), folio.pfn());
            engine.audit().unwrap();
            drop(folio);
            let withheld = broken.len() as u64;
            assert_eq!(engine.audit().unwrap().withheld_pages, withheld, "{layout:?} order {bits}");
            assert_eq!(engine.free_pages(), 128 * MIB - withheld);
            engine.folder(64).unwrap().fold_all();
            assert_eq!(map_pages_measured(&engine), 0, "{layout:?} order {bits}");
            engine.audit().unwrap();
        }
    }
}

#[test]
fn a_background_folder_never_takes_the_descriptor_of_a_broken_page_in_use() {
    let engine = folded(128 * MIB);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = SetOnDrop(&done);
        scope.spawn(|| {
            let mut folder = engine.folder(64).unwrap();
            while !done.load(Ordering::Acquire) {
                folder.fold_batch();
            }
        });
        let walker = engine.walker().unwrap();
        let mut folder = engine.folder(8).unwrap();
        for pfn in (0..400u64).map(|map_page| Pfn(map_page * 64 + 9)) {
            let Ok(mut frozen) = engine.alloc_at(pfn, Order::ZERO, Kind::Anon) else { continue };
            frozen.owner_mut()[0] = pfn.0;
            let folio = frozen.share();
            walker.poison(pfn).unwrap();
            for _ in 0..20 {
                // Busy while the other folder has the map page.
                drop(engine.alloc_at(pfn.plus(1), Order::ZERO, Kind::Anon).ok());
                folder.fold_batch();
                assert_eq!((folio.refs(), folio.owner()[0]), (1, pfn.0));
            }
        }
    });
    engine.audit().unwrap();
    map_pages_measured(&engine);
}

#[test]
fn poison_that_cannot_be_recorded_changes_nothing() {
    let engine = folded(128 * MIB);
    let walker = engine.walker().unwrap();
    let budget = engine.platform().budget();
    // However far it gets.
    for spare in 0.. {
        budget.set_limit(budget.used() + spare);
        match walker.poison(Pfn(1000)) {
            Err(PoisonError::OutOfMemory) => {
                assert!(!engine.is_poisoned(Pfn(1000)));
                assert_eq!((engine.poisoned_pages(), engine.free_pages()), (0, 128 * MIB));
                engine.audit().unwrap();
            }
            done => {
                assert_eq!(done, Ok(Poisoned::Withheld));
                break;
            }
        }
        assert!(spare < 64, "a few pages must do");
    }
    assert_eq!(engine.audit().unwrap().withheld_pages, 1);
}

#[test]
fn broken_pages_are_kept_back_with_no_memory_left_for_tables() {
    let engine = folded(1024 * MIB);
    let walker = engine.walker().unwrap();
    let folios: Vec<_> = [0, 3, 6, 8, 9, 12, 15, 17]
        .map(|bits| engine.alloc(order(bits), Kind::Anon).unwrap().share())
        .into_iter()
        .collect();
    for folio in &folios {
        assert_eq!(walker.poison(folio.pfn().plus(folio.order().pages() / 2)), Ok(Poisoned::InUse));
    }
    let budget = engine.platform().budget();
    budget.refuse_all();
    let refused = budget.refused();
    let count = folios.len() as u64;
    drop(folios);
    assert_eq!(budget.refused(), refused, "freeing asked for memory");
    assert_eq!(engine.audit().unwrap().withheld_pages, count);
    assert_eq!(engine.free_pages(), 1024 * MIB - count);
}

/// Boot memory, and two blocks that come and go.
fn hotplug(engine: &TestEngine, fake_offline: FakeOffline) -> Hotplug<'_, TestPlatform> {
    let mut hotplug = booted(engine, fake_offline);
    hotplug.add(BLOCK..3 * BLOCK, 0, Group::NONE).unwrap();
    hotplug
}

fn machine_of_blocks() -> TestEngine {
    Engine::new(host(), Config::new(8 * BLOCK)).unwrap()
}

fn take_all(engine: &TestEngine, inside: Range<u64>) -> Vec<Pfn> {
    let mut folios = Vec::new();
    loop {
        match engine.alloc_movable(Order::ZERO, Kind::Anon) {
            Ok(page) => folios.push(page),
            Err(AllocError::NoBlock | AllocError::OutOfMemory) => break,
            Err(other) => panic!("{other}"),
        }
    }
    folios.iter().map(|page| page.pfn()).filter(|pfn| inside.contains(&pfn.0)).collect()
}

#[test]
fn poison_follows_its_block_into_another_zone_though_no_memory_is_left() {
    let engine = machine_of_blocks();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let broken = Pfn(BLOCK + 1000);
    hotplug.online(BlockId(1), NORMAL).unwrap();
    assert_eq!(engine.walker().unwrap().poison(broken), Ok(Poisoned::Withheld));
    hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
    assert_eq!(engine.audit().unwrap().withheld_pages, 0, "offline memory is nobody's to keep back");
    // The movable zone has all that going online takes, and no more.
    hotplug.online(BlockId(2), MOVABLE).unwrap();
    let budget = engine.platform().budget();
    budget.refuse_all();
    assert_eq!(hotplug.online(BlockId(1), MOVABLE), Ok(Zone::Movable));
    let audit = engine.audit().unwrap();
    assert_eq!((audit.withheld_pages, audit.free_pages), (1, 3 * BLOCK - 1));
    assert!(matches!(
        engine.alloc_at(broken, Order::ZERO, Kind::Anon),
        Err(AllocError::Busy | AllocError::OutOfMemory)
    ));
    // Every allocation ends, whatever it says.
    budget.set_limit(u64::MAX);
    let taken = take_all(&engine, BLOCK..2 * BLOCK);
    assert_eq!(taken.len() as u64, BLOCK - 1);
    assert!(!taken.contains(&broken));
    engine.audit().unwrap();
}

#[test]
fn poison_recorded_while_its_block_is_offline_is_kept_back_in_either_zone() {
    for zone in [NORMAL, MOVABLE] {
        let engine = machine_of_blocks();
        let mut hotplug = hotplug(&engine, FakeOffline::Folded);
        let broken = Pfn(BLOCK + 777);
        hotplug.online(BlockId(2), zone).unwrap();
        assert_eq!(engine.walker().unwrap().poison(broken), Ok(Poisoned::InUse), "not ours");
        engine.platform().budget().refuse_all();
        hotplug.online(BlockId(1), zone).unwrap();
        engine.platform().budget().set_limit(u64::MAX);
        let audit = engine.audit().unwrap();
        assert_eq!((audit.withheld_pages, audit.free_pages), (1, 3 * BLOCK - 1));
    }
}

#[test]
fn boot_memory_where_a_broken_block_was_keeps_the_page_back() {
    let engine = machine_of_blocks();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let broken = Pfn(BLOCK + 1000);
    hotplug.online(BlockId(1), MOVABLE).unwrap();
    engine.walker().unwrap().poison(broken).unwrap();
    hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
    hotplug.remove(BlockId(1)).unwrap();
    engine.audit().unwrap();
    hotplug.boot(BLOCK..2 * BLOCK, 0).unwrap();
    assert_eq!(engine.audit().unwrap().withheld_pages, 1);
    assert_eq!(engine.free_pages(), 2 * BLOCK - 1);
    assert_eq!(engine.alloc_at(broken, Order::ZERO, Kind::Anon).unwrap_err(), AllocError::Busy);
}

/// The owner of one folio, who moves it if `moves`.
struct One<'e> {
    folio: Option<Folio<'e, TestPlatform>>,
    moves: bool,
}

impl<'e> Migrate<'e, TestPlatform> for One<'e> {
    fn migrate(&mut self, folio: Folio<'e, TestPlatform>) -> Migration {
        assert_eq!(self.folio.as_ref().map(Folio::pfn), Some(folio.pfn()));
        if !self.moves {
            return Migration::Unmovable;
        }
        self.folio = None;
        Migration::Moved
    }
}

#[test]
fn a_broken_page_in_use_keeps_its_block_until_its_owner_moves() {
    for fake_offline in [FakeOffline::Folded, FakeOffline::Classic { rcu: true }] {
        let engine = machine_of_blocks();
        let mut hotplug = hotplug(&engine, fake_offline);
        hotplug.online(BlockId(1), MOVABLE).unwrap();
        let folio = engine.alloc_at(Pfn(BLOCK + 1024), order(4), Kind::File).unwrap().share();
        let broken = folio.pfn().plus(3);
        assert_eq!(engine.walker().unwrap().poison(broken), Ok(Poisoned::InUse));
        let mut owner = One { folio: Some(folio), moves: false };
        let error = hotplug.offline(BlockId(1), &mut owner).unwrap_err();
        assert!(matches!(error, BlockError::Busy(busy) if busy.pages == 16), "{error}");
        assert_eq!(owner.folio.as_ref().unwrap().refs(), 1);
        engine.audit().unwrap();
        owner.moves = true;
        // A part of the block first, then all of it.
        hotplug.fake_offline(BLOCK + 1024..BLOCK + 2048, &mut owner).unwrap();
        assert_eq!(engine.audit().unwrap().withheld_pages, 0);
        hotplug.fake_online(BLOCK + 1024..BLOCK + 2048).unwrap();
        assert_eq!(engine.audit().unwrap().withheld_pages, 1);
        hotplug.offline(BlockId(1), &mut owner).unwrap();
        assert_eq!(engine.audit().unwrap().withheld_pages, 0);
        hotplug.online(BlockId(1), NORMAL).unwrap();
        assert_eq!(engine.audit().unwrap().withheld_pages, 1);
        assert_eq!(engine.alloc_at(broken, Order::ZERO, Kind::Anon).unwrap_err(), AllocError::Busy);
    }
}

#[test]
fn what_breaks_in_an_isolated_range_is_kept_back_when_that_ends() {
    let engine = folded(64 * MIB);
    let walker = engine.walker().unwrap();
    let in_use = engine.alloc_at(Pfn(700), order(2), Kind::Anon).unwrap();
    assert_eq!(walker.poison(Pfn(600)), Ok(Poisoned::Withheld));
    let mut isolated = engine.isolate(512..2048).unwrap();
    for pfn in [700, 800, 1600] {
        assert_eq!(walker.poison(Pfn(pfn)), Ok(Poisoned::InUse), "held, or in use");
    }
    assert_eq!(isolated.collect(), 4, "what is kept back is not in use");
    drop(in_use);
    // Free, and not collected yet.
    assert_eq!(walker.poison(Pfn(701)), Ok(Poisoned::InUse));
    assert_eq!(isolated.collect(), 0);
    drop(isolated);
    let audit = engine.audit().unwrap();
    assert_eq!((audit.withheld_pages, audit.free_pages), (5, 64 * MIB - 5));
    engine.folder(64).unwrap().fold_all();
    assert_eq!(map_pages_measured(&engine), 0);
}

#[test]
fn pages_without_memory_do_not_keep_an_isolated_range_in_use() {
    let mut engine = Engine::<TestPlatform>::new(host(), Config::new(128 * MIB)).unwrap();
    engine.online(70..4000).unwrap();
    assert_eq!(engine.isolate(0..512).unwrap().collect(), 0);
    assert_eq!(engine.isolate(3584..4096).unwrap().collect(), 0);
    engine.audit().unwrap();
}

#[test]
fn a_map_page_all_of_whose_pages_broke_is_left_alone() {
    let engine = folded(128 * MIB);
    let walker = engine.walker().unwrap();
    let folio = engine.alloc_at(Pfn(640), order(6), Kind::Anon).unwrap().share();
    (640..704).for_each(|pfn| assert_eq!(walker.poison(Pfn(pfn)), Ok(Poisoned::InUse)));
    drop(folio);
    assert_eq!(engine.audit().unwrap().withheld_pages, 64);
    drop(engine.alloc_at(Pfn(704), Order::ZERO, Kind::Anon).unwrap());
    engine.folder(64).unwrap().fold_all();
    assert!(engine.alloc_at(Pfn(650), Order::ZERO, Kind::Anon).is_err());
    engine.audit().unwrap();
    map_pages_measured(&engine);
}
