//! Memory blocks on the real platform: added, online, offline, removed, with walkers looking; and both ways to keep
//! what is fake-offline.

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use common::{BLOCK, SetOnDrop, TestEngine, TestPlatform, booted, host, map_pages_measured, order};
use pagefold_engine::hotplug::{
    BlockChange, BlockError, BlockId, Busy, Event, FakeOffline, Group, Hotplug, HotplugConfig, HotplugError,
    Listener, Migrate, Migration, OnlineTo, Unmovable, Veto,
};
use pagefold_engine::{AddError, Class, Config, Engine, Folio, Kind, Miss, PageKind, Pfn, Zone};

const CLASSIC: FakeOffline = FakeOffline::Classic { rcu: true };
const MOVABLE: OnlineTo = OnlineTo::Zone(Zone::Movable);

/// A machine of 16 blocks, the first one boot memory.
fn engine() -> TestEngine {
    Engine::new(host(), Config::new(16 * BLOCK)).unwrap()
}

fn block(number: u64) -> Range<u64> {
    number * BLOCK..(number + 1) * BLOCK
}

/// Keeps folios, and moves them when asked.
#[derive(Default)]
struct Cache<'e> {
    folios: Vec<Folio<'e, TestPlatform>>,
    pinned: Vec<Pfn>,
    moved: usize,
}

impl<'e> Cache<'e> {
    fn fill(engine: &'e TestEngine, folios: usize, bits: u32) -> Self {
        let alloc = |_| engine.alloc_movable(order(bits), Kind::File).unwrap().share();
        Self { folios: (0..folios).map(alloc).collect(), ..Self::default() }
    }
}

impl<'e> Migrate<'e, TestPlatform> for Cache<'e> {
    fn migrate(&mut self, folio: Folio<'e, TestPlatform>) -> Migration {
        if self.pinned.contains(&folio.pfn()) {
            return Migration::Unmovable;
        }
        let Some(slot) = self.folios.iter_mut().find(|mine| mine.pfn() == folio.pfn()) else {
            return Migration::Unmovable;
        };
        match slot.engine().alloc_movable(folio.order(), Kind::File) {
            Ok(copy) => {
                *slot = copy.share();
                self.moved += 1;
                Migration::Moved
            }
            Err(_) => Migration::NoMemory,
        }
    }
}

#[test]
fn a_block_lives_its_whole_life_without_a_descriptor() {
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    let walker = engine.walker().unwrap();
    let pfn = Pfn(3 * BLOCK + 77);
    let mut round = || {
        assert_eq!(walker.try_get(pfn).unwrap_err(), Miss::Absent);
        hotplug.add(block(3), 0, Group::NONE).unwrap();
        assert_eq!(walker.try_get(pfn).unwrap_err(), Miss::Offline);
        assert_eq!(hotplug.online(BlockId(3), MOVABLE), Ok(Zone::Movable));
        assert_eq!(walker.try_get(pfn).unwrap_err(), Miss::Free);
        assert_eq!(engine.free_pages(), 2 * BLOCK);
        assert_eq!(hotplug.zone(Zone::Movable).managed, BLOCK);
        engine.audit().unwrap();
        assert_eq!(map_pages_measured(&engine), 0);
        hotplug.offline(BlockId(3), &mut Unmovable).unwrap();
        assert_eq!(walker.try_get(pfn).unwrap_err(), Miss::Offline);
        hotplug.remove(BlockId(3)).unwrap();
        assert_eq!(walker.try_get(pfn).unwrap_err(), Miss::Absent);
        assert_eq!(engine.free_pages(), BLOCK);
        engine.audit().unwrap();
    };
    (0..3).for_each(|_| round());
    assert_eq!(map_pages_measured(&engine), 0);
}

#[test]
fn what_was_used_in_a_block_is_folded_when_it_goes() {
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    hotplug.add(block(3), 0, Group::NONE).unwrap();
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    // Small pages and huge ones, all over the block.
    let cache = Cache::fill(&engine, 5000, 0);
    let large = Cache::fill(&engine, 20, 9);
    assert!(cache.folios.iter().chain(&large.folios).all(|folio| block(3).contains(&folio.pfn().0)));
    let least = 5000 / common::DESCRIBED;
    assert!(map_pages_measured(&engine) > least);
    drop((cache, large));
    assert!(map_pages_measured(&engine) > least, "freeing leaves the descriptors");
    hotplug.offline(BlockId(3), &mut Unmovable).unwrap();
    assert_eq!(map_pages_measured(&engine), 0);
    engine.audit().unwrap();
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    assert_eq!(engine.free_pages(), 2 * BLOCK);
    engine.audit().unwrap();
}

#[test]
fn owners_move_what_is_in_use() {
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    hotplug.add(block(3), 0, Group::NONE).unwrap();
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    let mut cache = Cache::fill(&engine, 1000, 2);
    cache.folios.extend(Cache::fill(&engine, 10, 9).folios);
    hotplug.offline(BlockId(3), &mut cache).unwrap();
    assert_eq!(cache.moved, 1010);
    assert!(cache.folios.iter().all(|folio| folio.pfn().0 < BLOCK), "moved to boot memory");
    assert_eq!(hotplug.zone(Zone::Movable), pagefold_engine::hotplug::ZoneInfo::default());
    engine.audit().unwrap();
}

#[test]
fn a_pinned_page_keeps_its_block_online_and_nothing_changes() {
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    hotplug.add(block(3), 0, Group::NONE).unwrap();
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    let mut cache = Cache::fill(&engine, 100, 0);
    let pin = cache.folios[50].pfn();
    cache.pinned.push(pin);
    let free = engine.free_pages();
    let error = hotplug.offline(BlockId(3), &mut cache).unwrap_err();
    let BlockError::Busy(Busy { pages, unmovable, near }) = error else { panic!("{error}") };
    assert_eq!((pages, unmovable, near), (1, 1, pin));
    assert_eq!(engine.free_pages(), free);
    assert_eq!(hotplug.block(BlockId(3)).unwrap().state, pagefold_engine::BlockState::Online);
    engine.audit().unwrap();
    // Memory is allocated there again.
    assert!(block(3).contains(&engine.alloc_movable(order(0), Kind::Anon).unwrap().pfn().0));
    cache.pinned.clear();
    hotplug.offline(BlockId(3), &mut cache).unwrap();
    engine.audit().unwrap();
}

/// Answers the same to everybody, and counts.
struct Says {
    answer: Migration,
    asked: u64,
}

impl<'e> Migrate<'e, TestPlatform> for Says {
    fn migrate(&mut self, _: Folio<'e, TestPlatform>) -> Migration {
        self.asked += 1;
        self.answer
    }
}

#[test]
fn owners_are_asked_once_what_never_moves_and_nobody_when_there_is_no_memory() {
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    hotplug.add(block(3), 0, Group::NONE).unwrap();
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    let cache = Cache::fill(&engine, 100, 1);
    let rules = [
        (Migration::Unmovable, 100, 100),
        // Nothing changes, so there is nothing to ask again.
        (Migration::Busy, 100, 0),
        // The first to say so ends the attempt.
        (Migration::NoMemory, 1, 0),
    ];
    for (answer, expected, unmovable) in rules {
        let mut owners = Says { answer, asked: 0 };
        let error = hotplug.offline(BlockId(3), &mut owners).unwrap_err();
        let busy = match (answer, error) {
            (Migration::NoMemory, BlockError::NoRoom(busy)) => busy,
            (Migration::Unmovable | Migration::Busy, BlockError::Busy(busy)) => busy,
            (_, error) => panic!("{answer:?}: {error}"),
        };
        assert_eq!((owners.asked, busy.pages, busy.unmovable), (expected, 200, unmovable), "{answer:?}");
        engine.audit().unwrap();
    }
    drop(cache);
    hotplug.offline(BlockId(3), &mut Unmovable).unwrap();
}

#[test]
fn poison_stays_out_of_use_whatever_becomes_of_its_block() {
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    hotplug.add(block(3), 0, Group::NONE).unwrap();
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    let pfn = Pfn(3 * BLOCK + 1000);
    engine.walker().unwrap().poison(pfn).unwrap();
    for _ in 0..2 {
        hotplug.offline(BlockId(3), &mut Unmovable).unwrap();
        engine.audit().unwrap();
        hotplug.online(BlockId(3), MOVABLE).unwrap();
        assert_eq!(engine.audit().unwrap().withheld_pages, 1);
        assert_eq!(engine.free_pages(), 2 * BLOCK - 1);
    }
}

#[test]
fn misuse_is_refused_and_changes_nothing() {
    let engine = engine();
    let bad = HotplugConfig { block_pages: BLOCK * 3, ..HotplugConfig::default() };
    assert_eq!(engine.hotplug(bad).unwrap_err(), HotplugError::BlockSize);
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    assert_eq!(engine.hotplug(HotplugConfig::default()).unwrap_err(), HotplugError::Taken);
    let mut add = |pages| hotplug.add(pages, 0, Group::NONE);
    assert_eq!(add(BLOCK..BLOCK), Err(AddError::Misaligned));
    assert_eq!(add(BLOCK + 64..2 * BLOCK), Err(AddError::Misaligned));
    assert_eq!(add(15 * BLOCK..17 * BLOCK), Err(AddError::OutOfRange));
    assert_eq!(add(0..2 * BLOCK), Err(AddError::Overlap));
    add(block(3)).unwrap();
    assert_eq!(add(2 * BLOCK..4 * BLOCK), Err(AddError::Overlap));
    assert_eq!(hotplug.blocks().count(), 1);
    assert_eq!(hotplug.online(BlockId(5), MOVABLE), Err(BlockError::UnknownBlock));
    let offline = BlockError::State(pagefold_engine::BlockState::Offline);
    assert_eq!(hotplug.offline(BlockId(3), &mut Unmovable), Err(offline));
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    let online = BlockError::State(pagefold_engine::BlockState::Online);
    assert_eq!(hotplug.online(BlockId(3), MOVABLE), Err(online));
    assert_eq!(hotplug.remove(BlockId(3)), Err(online));
    for pages in
        [0..512, 3 * BLOCK + 1..3 * BLOCK + 512, 3 * BLOCK..4 * BLOCK + 512, u64::MAX - 511..u64::MAX]
    {
        assert_eq!(hotplug.fake_offline(pages, &mut Unmovable), Err(BlockError::BadRange));
    }
    engine.audit().unwrap();
}

#[test]
fn an_isolation_that_ends_leaves_memory_alone_that_came_after_it_began() {
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    hotplug.add(block(1), 0, Group::NONE).unwrap();
    let folio = engine.alloc_at(Pfn(0), order(9), Kind::Anon).unwrap();
    // Block 1 has no memory yet: there is nothing of it to isolate.
    let first = engine.isolate(0..2 * BLOCK).unwrap();
    hotplug.online(BlockId(1), OnlineTo::Zone(Zone::Normal)).unwrap();
    let mut second = engine.isolate(block(1)).unwrap();
    drop(first);
    assert_eq!((second.collect(), second.held_pages()), (0, BLOCK));
    assert!(engine.alloc_at(Pfn(BLOCK), order(0), Kind::Anon).is_err(), "it is isolated still");
    drop((second, folio));
    engine.audit().unwrap();
    assert_eq!(engine.free_pages(), 2 * BLOCK);
}

/// Notes what it is told.
struct Witness {
    name: char,
    priority: i32,
    refuses: Option<Event>,
    log: Arc<Mutex<Vec<(char, Event)>>>,
}

impl Listener for Witness {
    fn priority(&self) -> i32 {
        self.priority
    }
    fn notify(&self, event: Event, change: &BlockChange) -> Result<(), Veto> {
        assert_eq!((change.pages.clone(), change.zone), (block(3), Zone::Movable));
        self.log.lock().unwrap().push((self.name, event));
        if self.refuses == Some(event) { Err(Veto::Refused("not today")) } else { Ok(()) }
    }
}

#[test]
fn a_veto_is_followed_by_cancel_to_all_also_those_not_yet_told() {
    use Event::{CancelOffline, CancelOnline, GoingOffline, GoingOnline, Online};
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    hotplug.add(block(3), 0, Group::NONE).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let witness = |name, priority, refuses| -> Arc<dyn Listener> {
        Arc::new(Witness { name, priority, refuses, log: Arc::clone(&log) })
    };
    let refuser = witness('b', 5, Some(GoingOnline));
    // Registered in another order than they are told in.
    hotplug.listen(witness('c', 0, Some(GoingOffline))).unwrap();
    hotplug.listen(witness('a', 9, None)).unwrap();
    hotplug.listen(Arc::clone(&refuser)).unwrap();
    let veto = BlockError::Veto(Veto::Refused("not today"));
    assert_eq!(hotplug.online(BlockId(3), MOVABLE), Err(veto));
    let told = std::mem::take(&mut *log.lock().unwrap());
    let expected = [('a', GoingOnline), ('b', GoingOnline)];
    let cancelled = ['a', 'b', 'c'].map(|name| (name, CancelOnline));
    assert_eq!(told, [&expected[..], &cancelled[..]].concat());
    assert_eq!(engine.free_pages(), BLOCK);

    assert!(hotplug.unlisten(&refuser));
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    let told = std::mem::take(&mut *log.lock().unwrap());
    assert_eq!(told, [('a', GoingOnline), ('c', GoingOnline), ('a', Online), ('c', Online)]);
    assert_eq!(hotplug.offline(BlockId(3), &mut Unmovable), Err(veto));
    let told = std::mem::take(&mut *log.lock().unwrap());
    let order = [('a', GoingOffline), ('c', GoingOffline), ('a', CancelOffline), ('c', CancelOffline)];
    assert_eq!(told, order);
    assert_eq!(engine.free_pages(), 2 * BLOCK);
    engine.audit().unwrap();
}

/// Says that memory is only behind some parts.
struct Driver {
    plugged: Vec<Range<u64>>,
}

impl Listener for Driver {
    fn notify(&self, _: Event, _: &BlockChange) -> Result<(), Veto> {
        Ok(())
    }
    fn plugged(&self, _: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        self.plugged.iter().cloned().for_each(part);
        true
    }
}

/// A block with 2 MiB at its start and 4 MiB in its middle.
fn sparse<'e>(
    engine: &'e TestEngine,
    fake_offline: FakeOffline,
) -> (Hotplug<'e, TestPlatform>, [Range<u64>; 2]) {
    let mut hotplug = booted(engine, fake_offline);
    let start = block(3).start;
    let parts = [start..start + 512, start + 64 * 512 / 2..start + 64 * 512 / 2 + 1024];
    let driver = Driver { plugged: parts.to_vec() };
    hotplug.listen(Arc::new(driver)).unwrap();
    hotplug.add(block(3), 0, Group::NONE).unwrap();
    hotplug.online(BlockId(3), MOVABLE).unwrap();
    (hotplug, parts)
}

#[test]
fn only_what_is_plugged_goes_online_under_both_policies() {
    for (policy, map_pages) in [(FakeOffline::Folded, 0), (CLASSIC, 512)] {
        let engine = engine();
        let (mut hotplug, parts) = sparse(&engine, policy);
        assert_eq!(engine.free_pages(), BLOCK + 1536);
        let zone = hotplug.zone(Zone::Movable);
        assert_eq!((zone.present, zone.managed), (BLOCK, 1536), "present counts the holes, managed does not");
        // Objects describe no fake-offline pages.
        let policy = hotplug.config().fake_offline;
        let map_pages = if policy == FakeOffline::Folded { 0 } else { map_pages };
        assert_eq!(map_pages_measured(&engine), map_pages, "{policy:?}");
        engine.audit().unwrap();
        let walker = engine.walker().unwrap();
        let hole = Pfn(block(3).start + 512 + 5);
        match policy {
            FakeOffline::Folded => assert_eq!(walker.try_get(hole).unwrap_err(), Miss::Offline),
            FakeOffline::Classic { .. } => {
                let page = walker.try_get(hole).unwrap();
                assert_eq!((page.kind(), page.refs()), (PageKind::Offline, 2));
            }
        }
        // All of what is plugged can be used, and nothing else.
        let mut cache = Cache::default();
        while let Ok(page) = engine.alloc_movable(order(0), Kind::Anon) {
            if !block(3).contains(&page.pfn().0) {
                break;
            }
            cache.folios.push(page.share());
        }
        assert_eq!(cache.folios.len(), 1536);
        assert!(cache.folios.iter().all(|page| parts.iter().any(|part| part.contains(&page.pfn().0))));
        hotplug.offline(BlockId(3), &mut cache).unwrap();
        assert_eq!(hotplug.zone(Zone::Movable).managed, 0);
        hotplug.remove(BlockId(3)).unwrap();
        engine.audit().unwrap();
        assert_eq!(engine.class(hole), (Class::Absent, false));
    }
}

#[test]
fn a_block_without_any_memory_goes_online_and_offline_again() {
    for fake_offline in [FakeOffline::Folded, CLASSIC] {
        let engine = engine();
        let mut hotplug = booted(&engine, fake_offline);
        let driver = Driver { plugged: Vec::new() };
        hotplug.listen(Arc::new(driver)).unwrap();
        hotplug.add(block(3), 0, Group::NONE).unwrap();
        // The movable zone has no memory at all then, nor ever had any.
        hotplug.online(BlockId(3), MOVABLE).unwrap();
        assert_eq!(engine.free_pages(), BLOCK);
        hotplug.offline(BlockId(3), &mut Unmovable).unwrap();
        hotplug.remove(BlockId(3)).unwrap();
        engine.audit().unwrap();
    }
}

#[test]
fn areas_are_unplugged_and_plugged_again_under_both_policies() {
    for policy in [FakeOffline::Folded, CLASSIC, FakeOffline::Classic { rcu: false }] {
        let engine = engine();
        let (mut hotplug, [part, _]) = sparse(&engine, policy);
        let mut cache = Cache::fill(&engine, 700, 0);
        let pin = cache.folios.iter().map(Folio::pfn).find(|pfn| part.contains(&pfn.0)).unwrap();
        cache.pinned.push(pin);
        let free = engine.free_pages();
        let error = hotplug.fake_offline(part.clone(), &mut cache).unwrap_err();
        assert!(matches!(error, BlockError::Busy(Busy { pages: 1, unmovable: 1, .. })), "{error}");
        assert_eq!((engine.free_pages(), hotplug.zone(Zone::Movable).managed), (free, 1536));
        engine.audit().unwrap();
        cache.pinned.clear();
        for _ in 0..2 {
            hotplug.fake_offline(part.clone(), &mut cache).unwrap();
            assert_eq!((engine.free_pages(), hotplug.zone(Zone::Movable).managed), (free - 512, 1024));
            assert!(cache.folios.iter().all(|page| !part.contains(&page.pfn().0)));
            engine.audit().unwrap();
            hotplug.fake_online(part.clone()).unwrap();
            assert_eq!((engine.free_pages(), hotplug.zone(Zone::Movable).managed), (free, 1536));
            engine.audit().unwrap();
        }
    }
}

/// A walker in the way of a classic driver (objects describe no fake-offline pages, so there is none): it has a reference on a fake-offline page for as long as its section lasts, and
/// the section lasts until the driver says by the class that there is nothing to take, or has given up.
#[test]
#[cfg_attr(feature = "memdesc", ignore = "objects describe no fake-offline pages")]
fn without_rcu_a_speculative_reference_gets_into_classic_and_rcu_closes_it() {
    for rcu in [false, true] {
        let engine = engine();
        let (mut hotplug, _) = sparse(&engine, FakeOffline::Classic { rcu });
        let page = Pfn(block(3).start + 512 + 77);
        let is_over = AtomicBool::new(false);
        let (enters, is_inside) = mpsc::channel();
        let answer = std::thread::scope(|scope| {
            let (engine, is_over) = (&engine, &is_over);
            let _stopper = SetOnDrop(is_over);
            scope.spawn(move || {
                let walker = engine.walker().unwrap();
                let section = walker.section();
                // As GUP-fast does: take it first, then look at what it is.
                let found = walker.try_get(page).unwrap();
                assert_eq!((found.kind(), found.refs()), (PageKind::Offline, 2));
                enters.send(()).unwrap();
                while engine.class(page).0 == Class::Mapped && !is_over.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                // A driver that does not wait is through by now.
                (0..1000).for_each(|_| std::thread::yield_now());
                drop(found);
                drop(section);
            });
            is_inside.recv().unwrap();
            hotplug.offline(BlockId(3), &mut Unmovable)
        });
        if rcu {
            answer.unwrap();
            hotplug.online(BlockId(3), MOVABLE).unwrap();
        } else {
            // Reported with the page, and everything as before.
            let Err(BlockError::Held(held)) = answer else { panic!("{answer:?}") };
            assert_eq!((held.pfn, held.state.refs()), (page, 2));
        }
        engine.audit().unwrap();
        assert_eq!(engine.free_pages(), BLOCK + 1536);
        hotplug.offline(BlockId(3), &mut Unmovable).unwrap();
    }
}

/// Walkers over a block that comes and goes, with memory in use: every reference is on a folio that is there, and
/// nothing is written to what is folded.
#[test]
fn walkers_go_on_while_blocks_come_and_go() {
    let engine = engine();
    let mut hotplug = booted(&engine, FakeOffline::Folded);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopper = SetOnDrop(&stop);
        for seed in 1..=2u64 {
            let (engine, stop) = (&engine, &stop);
            scope.spawn(move || {
                let walker = engine.walker().unwrap();
                let mut random = seed;
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let pfn = Pfn((random >> 33) % (5 * BLOCK));
                    if let Ok(folio) = walker.try_get(pfn) {
                        assert!(folio.contains(pfn));
                    }
                }
            });
        }
        let mut cache = Cache::default();
        for round in 0..200u64 {
            let number = 1 + round % 4;
            hotplug.add(block(number), 0, Group::NONE).unwrap();
            hotplug.online(BlockId(number), MOVABLE).unwrap();
            cache.folios.extend(Cache::fill(&engine, 64, 0).folios);
            cache.folios.extend(Cache::fill(&engine, 4, 9).folios);
            let kept = cache.folios.len().saturating_sub(400);
            cache.folios.drain(..kept);
            // A walker has a reference now and then, and lets go: as many attempts as that can take, and no more.
            let is_offline = (0..1000).any(|_| match hotplug.offline(BlockId(number), &mut cache) {
                Ok(()) => true,
                Err(BlockError::Busy(_)) => false,
                Err(other) => panic!("{other}"),
            });
            assert!(is_offline, "block {number} stays busy");
            hotplug.remove(BlockId(number)).unwrap();
        }
    });
    map_pages_measured(&engine);
    engine.audit().unwrap();
}

#[test]
fn a_huge_block_size_works_like_a_small_one() {
    let engine = Engine::new(host(), Config::new(64 * BLOCK)).unwrap();
    let config = HotplugConfig { block_pages: 16 * BLOCK, ..HotplugConfig::default() };
    let mut hotplug = engine.hotplug(config).unwrap();
    hotplug.boot(0..BLOCK, 0).unwrap();
    hotplug.add(16 * BLOCK..48 * BLOCK, 1, Group::NONE).unwrap();
    for id in [BlockId(1), BlockId(2)] {
        hotplug.online(id, MOVABLE).unwrap();
        assert_eq!(hotplug.block(id).unwrap().node, 1);
    }
    assert_eq!(engine.free_pages(), 33 * BLOCK);
    let cache = Cache::fill(&engine, 300, 9);
    engine.audit().unwrap();
    drop(cache);
    hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
    assert_eq!(hotplug.zone(Zone::Movable).span, 32 * BLOCK..48 * BLOCK, "the span shrank");
    hotplug.remove(BlockId(1)).unwrap();
    engine.audit().unwrap();
}
