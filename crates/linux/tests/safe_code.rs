//! What safe code asks for and must not get: it is refused, nothing is changed, and no memory is another's.

mod common;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{BLOCK, TestEngine, TestPlatform, folded, frame_allocator, host, hotplug};
use pagefold_engine::hotplug::{
    BadPart, BlockChange, BlockError, BlockId, Event, FakeOffline, Group, Hotplug, Listener, Migrate,
    Migration, OnlineTo, Unmovable, Veto,
};
use pagefold_engine::{
    AddError, BlockState, Class, Config, Engine, Folio, Isolated, Kind, Order, PageKind, Pfn, PushError, Zone,
};

const AREA: u64 = 512;
const CLASSIC: FakeOffline = FakeOffline::Classic { rcu: true };
const POLICIES: [FakeOffline; 3] = [FakeOffline::Folded, CLASSIC, FakeOffline::Classic { rcu: false }];
const MOVABLE: OnlineTo = OnlineTo::Zone(Zone::Movable);

fn empty() -> TestEngine {
    Engine::new(host(), Config::new(4 * BLOCK)).unwrap()
}

/// Memory hotplug with block 1 online in the movable zone.
fn one_block(engine: &TestEngine, fake_offline: FakeOffline) -> Hotplug<'_, TestPlatform> {
    let mut hotplug = hotplug(engine, fake_offline);
    hotplug.add(BLOCK..2 * BLOCK, 0, Group::NONE).unwrap();
    hotplug.online(BlockId(1), MOVABLE).unwrap();
    hotplug
}

// ---- handles of another engine ---------------------------------------------------------------------------------

#[test]
fn a_batch_refuses_a_folio_of_another_engine_and_gives_it_back() {
    let (mine, other) = (folded(BLOCK), folded(BLOCK));
    // Live pages of one engine, where the other has one huge folio.
    let live: Vec<_> = (0..8)
        .map(|map_page| {
            let mut page = mine.alloc_at(Pfn(map_page * 64 + 5), Order::ZERO, Kind::Anon).unwrap();
            page.owner_mut()[0] = 7;
            page.share()
        })
        .collect();
    let huge = other.alloc_at(Pfn(0), Order::AREA, Kind::Hugetlb).unwrap();
    let mut batch = mine.fold_batch(1).unwrap();
    let (huge, error) = batch.push(huge).unwrap_err();
    assert_eq!((error, huge.pfn(), huge.order()), (PushError::OtherEngine, Pfn(0), Order::AREA));
    assert!(batch.is_empty());
    assert_eq!(batch.commit(), Default::default());
    assert!(live.iter().all(|page| page.owner()[0] == 7 && page.refs() == 1));
    // Where it belongs it is taken.
    let mut batch = other.fold_batch(1).unwrap();
    batch.push(huge).unwrap();
    batch.commit();
    mine.audit().unwrap();
    other.audit().unwrap();
}

#[test]
fn a_batch_keeps_its_bound() {
    let engine = folded(BLOCK);
    let huge = |at| engine.alloc_at(Pfn(at * AREA), Order::AREA, Kind::Hugetlb).unwrap();
    let mut batch = engine.fold_batch(2).unwrap();
    batch.push(huge(0)).unwrap();
    batch.push(huge(1)).unwrap();
    let (third, error) = batch.push(huge(2)).unwrap_err();
    assert_eq!((error, third.pfn(), batch.len()), (PushError::Full, Pfn(2 * AREA), 2));
    batch.commit();
    assert_eq!(batch.drain().count(), 2);
    batch.push(third).unwrap();
    assert_eq!(engine.fold_batch(0).unwrap().capacity(), 1);
}

#[test]
fn folios_of_two_engines_do_not_collapse() {
    let (mine, other) = (folded(BLOCK), folded(BLOCK));
    let pages = vec![
        mine.alloc_at(Pfn(0), Order::ZERO, Kind::Anon).unwrap(),
        other.alloc_at(Pfn(1), Order::ZERO, Kind::Anon).unwrap(),
    ];
    let (pages, _) = pagefold_engine::Frozen::collapse(pages).unwrap_err();
    assert_eq!(pages.len(), 2);
    drop(pages);
    assert_eq!((mine.free_pages(), other.free_pages()), (BLOCK, BLOCK));
    mine.audit().unwrap();
    other.audit().unwrap();
}

// ---- fake-offline ----------------------------------------------------------------------------------------------

#[test]
fn only_pages_that_are_fake_offline_become_online_again() {
    for policy in POLICIES {
        let engine = empty();
        let mut hotplug = one_block(&engine, policy);
        let mut page = engine.alloc_at(Pfn(BLOCK + AREA + 3), Order::ZERO, Kind::Anon).unwrap();
        page.owner_mut()[0] = 7;
        let page = page.share();
        hotplug.fake_offline(BLOCK..BLOCK + AREA, &mut Unmovable).unwrap();
        let (free, managed) = (engine.free_pages(), hotplug.zone(Zone::Movable).managed);
        // In use, free, in part fake-offline, and empty or misshapen ranges.
        for (range, error) in [
            (BLOCK + AREA..BLOCK + 2 * AREA, BlockError::NotFakeOffline(Pfn(BLOCK + AREA))),
            (BLOCK + 2 * AREA..BLOCK + 3 * AREA, BlockError::NotFakeOffline(Pfn(BLOCK + 2 * AREA))),
            (BLOCK..BLOCK + 3 * AREA, BlockError::NotFakeOffline(Pfn(BLOCK + AREA))),
            (BLOCK..2 * BLOCK, BlockError::NotFakeOffline(Pfn(BLOCK + AREA))),
            (BLOCK..BLOCK, BlockError::BadRange),
            (BLOCK + 1..BLOCK + AREA + 1, BlockError::BadRange),
            (BLOCK..3 * BLOCK, BlockError::BadRange),
            (0..AREA, BlockError::BadRange),
            (u64::MAX - AREA + 1..u64::MAX, BlockError::BadRange),
        ] {
            assert_eq!(hotplug.fake_online(range.clone()), Err(error), "{policy:?} {range:x?}");
            assert_eq!((page.owner()[0], page.refs(), page.kind()), (7, 1, Kind::Anon.into()));
            assert_eq!((engine.free_pages(), hotplug.zone(Zone::Movable).managed), (free, managed));
            engine.audit().unwrap();
        }
        hotplug.fake_online(BLOCK..BLOCK + AREA).unwrap();
        assert_eq!(hotplug.fake_online(BLOCK..BLOCK + AREA), Err(BlockError::NotFakeOffline(Pfn(BLOCK))));
        assert_eq!(engine.free_pages(), free + AREA);
        engine.audit().unwrap();
    }
}

#[test]
fn pages_that_are_fake_offline_already_stay_and_nobody_is_asked_to_move_them() {
    struct Nobody;
    impl<'e> Migrate<'e, TestPlatform> for Nobody {
        fn migrate(&mut self, folio: Folio<'e, TestPlatform>) -> Migration {
            panic!("asked to move {folio:?}");
        }
    }
    for policy in POLICIES {
        let engine = empty();
        let mut hotplug = one_block(&engine, policy);
        hotplug.fake_offline(BLOCK + AREA..BLOCK + 2 * AREA, &mut Nobody).unwrap();
        let (free, managed) = (engine.free_pages(), hotplug.zone(Zone::Movable).managed);
        for range in [BLOCK..BLOCK + 2 * AREA, BLOCK + AREA..BLOCK + 3 * AREA, BLOCK..2 * BLOCK] {
            let error = BlockError::AlreadyFakeOffline(Pfn(BLOCK + AREA));
            assert_eq!(hotplug.fake_offline(range, &mut Nobody), Err(error));
            assert_eq!((engine.free_pages(), hotplug.zone(Zone::Movable).managed), (free, managed));
            engine.audit().unwrap();
        }
        // The block goes with them, and nobody is asked either.
        hotplug.offline(BlockId(1), &mut Nobody).unwrap();
        hotplug.remove(BlockId(1)).unwrap();
        engine.audit().unwrap();
    }
}

/// Objects describe no fake-offline pages.
#[test]
#[cfg_attr(feature = "memdesc", ignore = "objects describe no fake-offline pages")]
fn a_walker_that_holds_a_fake_offline_page_keeps_it_until_it_lets_go() {
    for policy in [CLASSIC, FakeOffline::Classic { rcu: false }] {
        let engine = empty();
        let mut hotplug = one_block(&engine, policy);
        let area = BLOCK + AREA..BLOCK + 2 * AREA;
        hotplug.fake_offline(area.clone(), &mut Unmovable).unwrap();
        let walker = engine.walker().unwrap();
        // The last page, so that all others have been let go of when it is found.
        let pfn = Pfn(area.end - 1);
        let held = walker.try_get(pfn).unwrap();
        let owner = held.owner();
        assert_eq!((held.kind(), held.refs(), *owner), (PageKind::Offline, 2, [0; 7]));
        // It cannot become its holder's alone.
        let held = held.freeze().unwrap_err();
        let free = engine.free_pages();
        for _ in 0..2 {
            let error = hotplug.fake_online(area.clone()).unwrap_err();
            assert!(matches!(error, BlockError::Held(page) if page.pfn == pfn), "{error}");
            let error = hotplug.offline(BlockId(1), &mut Unmovable).unwrap_err();
            assert!(matches!(error, BlockError::Held(page) if page.pfn == pfn), "{error}");
            assert_eq!((held.refs(), held.owner()), (2, &[0; 7]));
            assert_eq!(
                engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap_err().to_string(),
                "the block is not free"
            );
            // All the others are as they were, too.
            let others = area.clone().map(|pfn| walker.try_get(Pfn(pfn)).unwrap());
            assert!(others.filter(|page| page.pfn() != pfn).all(|page| page.refs() == 2));
            assert_eq!(
                (engine.free_pages(), hotplug.block(BlockId(1)).unwrap().state),
                (free, BlockState::Online)
            );
            engine.audit().unwrap();
        }
        drop(held);
        hotplug.fake_online(area.clone()).unwrap();
        let mut page = engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap();
        page.owner_mut()[0] = 99;
        drop(page);
        hotplug.fake_offline(area, &mut Unmovable).unwrap();
        hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
        engine.audit().unwrap();
    }
}

#[test]
fn a_frozen_folio_keeps_its_block_online_whatever_its_kind() {
    for policy in POLICIES {
        let engine = empty();
        let mut hotplug = one_block(&engine, policy);
        for kind in Kind::ALL {
            let mut page = engine.alloc_movable(Order::ZERO, kind).unwrap();
            page.owner_mut()[0] = 1;
            let error = hotplug.offline(BlockId(1), &mut Unmovable).unwrap_err();
            assert!(matches!(error, BlockError::Busy(busy) if busy.pages == 1), "{kind:?} {error}");
            let area = page.pfn().0 / AREA * AREA..(page.pfn().0 / AREA + 1) * AREA;
            let error = hotplug.fake_offline(area, &mut Unmovable).unwrap_err();
            assert!(matches!(error, BlockError::Busy(busy) if busy.pages == 1), "{kind:?} {error}");
            assert_eq!((page.owner()[0], engine.class(page.pfn())), (1, (Class::Mapped, true)));
            engine.audit().unwrap();
        }
    }
}

#[test]
fn a_question_about_any_range_ends() {
    let engine = empty();
    let hotplug = one_block(&engine, CLASSIC);
    let reversed = Range { start: u64::MAX, end: 0 };
    for range in [0..u64::MAX, u64::MAX - 1..u64::MAX, 5..5, reversed] {
        assert_eq!(hotplug.is_fake_offline(range), Ok(false));
    }
}

// ---- listeners -------------------------------------------------------------------------------------------------

type Plugged = dyn Fn(&Range<u64>, &mut dyn FnMut(Range<u64>)) -> bool + Send + Sync;

/// Says what its function says, and nothing else.
struct Says(Box<Plugged>);

impl Listener for Says {
    fn notify(&self, _: Event, _: &BlockChange) -> Result<(), Veto> {
        Ok(())
    }
    fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        (self.0)(pages, part)
    }
}

#[test]
#[allow(clippy::single_range_in_vec_init)]
fn a_listener_that_contradicts_itself_cannot_bring_a_block_online() {
    let at = |area: u64| BLOCK + area * AREA;
    let parts = |parts: &[Range<u64>]| parts.to_vec();
    let not_areas = |start, end| BadPart::NotAreas { start, end };
    let not_ascending = |start, end| BadPart::NotAscending { start, end };
    let cases = [
        // Twice, in part twice, and out of order.
        (parts(&[at(0)..at(1), at(0)..at(1)]), not_ascending(at(0), at(1))),
        (parts(&[at(0)..at(2), at(1)..at(3)]), not_ascending(at(1), at(3))),
        (parts(&[at(5)..at(6), at(2)..at(3)]), not_ascending(at(2), at(3))),
        (parts(&[BLOCK..2 * BLOCK, BLOCK..2 * BLOCK]), not_ascending(BLOCK, 2 * BLOCK)),
        // Outside, at either end, and far away.
        (parts(&[at(0) - AREA..at(1)]), not_areas(at(0) - AREA, at(1))),
        (parts(&[BLOCK..2 * BLOCK + AREA]), not_areas(BLOCK, 2 * BLOCK + AREA)),
        (parts(&[at(1)..at(2), 0..AREA]), not_areas(0, AREA)),
        (parts(&[0..u64::MAX]), not_areas(0, u64::MAX)),
        // No whole areas, or nothing.
        (parts(&[at(0) + 1..at(1)]), not_areas(at(0) + 1, at(1))),
        (parts(&[at(0)..at(1) - 64]), not_areas(at(0), at(1) - 64)),
        (parts(&[at(3)..at(3)]), not_areas(at(3), at(3))),
        (parts(&[Range { start: at(4), end: at(3) }]), not_areas(at(4), at(3))),
    ];
    for policy in POLICIES {
        for (parts, bad) in &cases {
            refused(
                policy,
                Says(Box::new({
                    let parts = parts.clone();
                    move |_, part| {
                        parts.iter().cloned().for_each(part);
                        true
                    }
                })),
                *bad,
            );
        }
        let disowned = Says(Box::new(move |pages, part| {
            part(pages.start..pages.start + AREA);
            false
        }));
        refused(policy, disowned, BadPart::NotIts);
    }

    fn refused(policy: FakeOffline, listener: Says, bad: BadPart) {
        let engine = empty();
        let mut hotplug = hotplug(&engine, policy);
        hotplug.boot(0..BLOCK, 0).unwrap();
        let boot: Vec<_> = (0..64).map(|_| engine.alloc(Order::ZERO, Kind::Anon).unwrap().share()).collect();
        let listener: Arc<dyn Listener> = Arc::new(listener);
        hotplug.listen(Arc::clone(&listener)).unwrap();
        hotplug.add(BLOCK..2 * BLOCK, 0, Group::NONE).unwrap();
        for _ in 0..2 {
            assert_eq!(hotplug.online(BlockId(1), MOVABLE), Err(BlockError::BadPart(bad)), "{policy:?}");
            assert_eq!(hotplug.block(BlockId(1)).unwrap().state, BlockState::Offline);
            assert_eq!(engine.class(Pfn(BLOCK)), (Class::Offline, false));
            assert_eq!(engine.free_pages(), BLOCK - 64);
            assert_eq!(hotplug.zone(Zone::Movable), Default::default());
            engine.audit().unwrap();
        }
        assert!(hotplug.unlisten(&listener));
        hotplug.online(BlockId(1), MOVABLE).unwrap();
        assert_eq!(engine.free_pages(), 2 * BLOCK - 64);
        engine.audit().unwrap();
        drop(boot);
    }
}

#[test]
fn a_listener_is_asked_once_and_what_it_allocates_is_its_own() {
    let engine = empty();
    let asked = Arc::new(AtomicUsize::new(0));
    let kept = Arc::new(Mutex::new(Vec::new()));
    let listener = {
        let (engine, asked, kept) = (&engine, Arc::clone(&asked), Arc::clone(&kept));
        struct Once<'e>(&'e TestEngine, Arc<AtomicUsize>, Arc<Mutex<Vec<Folio<'e, TestPlatform>>>>);
        impl Listener for Once<'_> {
            fn notify(&self, _: Event, _: &BlockChange) -> Result<(), Veto> {
                Ok(())
            }
            fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
                self.1.fetch_add(1, Ordering::Relaxed);
                part(pages.start..pages.start + AREA);
                // It has the engine, and may use it; there is nothing of the block yet.
                assert!(self.0.alloc_at(Pfn(pages.start), Order::ZERO, Kind::Anon).is_err());
                let mut page = self.0.alloc(Order::ZERO, Kind::Anon).unwrap();
                page.owner_mut()[0] = 7;
                self.2.lock().unwrap().push(page.share());
                part(pages.start + AREA..pages.start + 2 * AREA);
                true
            }
        }
        Arc::new(Once(engine, asked, kept))
    };
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    hotplug.boot(0..BLOCK, 0).unwrap();
    hotplug.listen(listener).unwrap();
    hotplug.add(BLOCK..2 * BLOCK, 0, Group::NONE).unwrap();
    hotplug.online(BlockId(1), MOVABLE).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(engine.free_pages(), BLOCK - 1 + 2 * AREA);
    assert!(kept.lock().unwrap().iter().all(|page| page.owner()[0] == 7));
    engine.audit().unwrap();
}

// ---- isolation -------------------------------------------------------------------------------------------------

/// Lets go of (or collects) an old isolation in the midst of its block's going.
struct Meddler<'e> {
    old: Vec<Isolated<'e, TestPlatform>>,
    collects: bool,
    asked: usize,
}

impl<'e> Migrate<'e, TestPlatform> for Meddler<'e> {
    fn migrate(&mut self, _: Folio<'e, TestPlatform>) -> Migration {
        self.asked += 1;
        match self.collects {
            true => self.old.iter_mut().for_each(|old| _ = old.collect()),
            false => self.old.clear(),
        }
        Migration::Busy
    }
}

#[test]
fn an_isolation_has_no_say_over_memory_that_came_later() {
    for collects in [false, true] {
        let engine = empty();
        let mut hotplug = hotplug(&engine, FakeOffline::Folded);
        hotplug.add(BLOCK..2 * BLOCK, 0, Group::NONE).unwrap();
        // In the zone that the block will lie in, whose memory is not there yet: all of it, and once more.
        let isolate = || engine.isolate(BLOCK..2 * BLOCK).unwrap();
        let mut old = vec![isolate(), isolate()];
        hotplug.online(BlockId(1), OnlineTo::Zone(Zone::Normal)).unwrap();
        assert_eq!(old.iter_mut().map(Isolated::collect).sum::<u64>(), 0);
        assert!(old.iter().all(|old| old.held_pages() == 0));
        assert_eq!(engine.free_pages(), BLOCK);
        let page = engine.alloc(Order::ZERO, Kind::Anon).unwrap().share();
        let mut meddler = Meddler { old, collects, asked: 0 };
        let error = hotplug.offline(BlockId(1), &mut meddler).unwrap_err();
        assert!(matches!(error, BlockError::Busy(busy) if busy.pages == 1), "{error}");
        assert!(meddler.asked > 0);
        assert_eq!((page.refs(), engine.class(page.pfn())), (1, (Class::Mapped, true)));
        drop(meddler);
        assert_eq!(engine.free_pages(), BLOCK - 1);
        drop(page);
        engine.audit().unwrap();
        hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
        engine.audit().unwrap();
    }
}

// ---- adding memory ---------------------------------------------------------------------------------------------

#[test]
fn page_numbers_that_were_added_are_not_added_again() {
    let mut frames = frame_allocator(BLOCK);
    frames.online(100..1000).unwrap();
    frames.online(2 * AREA..BLOCK).unwrap();
    let mut taken = Vec::new();
    while let Ok(page) = frames.alloc(Order::ZERO, 0) {
        taken.push(page.0);
    }
    for again in [0..101, 100..1000, 500..501, 999..1024, 0..BLOCK, BLOCK - 1..BLOCK] {
        assert_eq!(frames.online(again.clone()), Err(AddError::Overlap), "{again:?}");
        assert!(frames.alloc(Order::ZERO, 0).is_err());
    }
    frames.online(1000..1024).unwrap();
    frames.online(0..100).unwrap();
    while let Ok(page) = frames.alloc(Order::ZERO, 0) {
        taken.push(page.0);
    }
    taken.sort_unstable();
    assert!(taken.iter().copied().eq(0..BLOCK));
}

// ---- callbacks -------------------------------------------------------------------------------------------------

#[test]
fn a_callback_that_panics_does_not_keep_the_others_from_running() {
    let engine = empty();
    let ran = Arc::new(AtomicUsize::new(0));
    let count = || {
        let ran = Arc::clone(&ran);
        Box::new(move || _ = ran.fetch_add(1, Ordering::Relaxed))
    };
    for _ in 0..3 {
        assert!(engine.rcu().defer(count()).is_ok());
    }
    assert!(engine.rcu().defer(Box::new(|| panic!("a callback's own fault"))).is_ok());
    // Newest first: the one that panics runs before the others.
    let panicked = catch_unwind(AssertUnwindSafe(|| engine.rcu().run_deferred()));
    assert!(panicked.is_err());
    assert_eq!(ran.load(Ordering::Relaxed), 3);
    assert_eq!(engine.rcu().run_deferred(), 0);
}

// ---- arguments -------------------------------------------------------------------------------------------------

#[test]
fn no_page_number_range_or_order_is_too_odd_to_be_answered() {
    let engine = empty();
    let mut hotplug = one_block(&engine, FakeOffline::Folded);
    let walker = engine.walker().unwrap();
    let free = engine.free_pages();
    let numbers = [0, 1, BLOCK - 1, 3 * BLOCK, 4 * BLOCK - 1, 4 * BLOCK, 1 << 40, u64::MAX - 511, u64::MAX];
    for &number in &numbers {
        let pfn = Pfn(number);
        assert!(walker.try_get(pfn).is_err());
        let _ = (walker.peek(pfn), engine.class(pfn), engine.zone_of(pfn), engine.is_poisoned(pfn));
        for bits in 0..=18 {
            assert!(engine.alloc_at(pfn, Order::new(bits).unwrap(), Kind::Anon).is_err());
        }
        let id = BlockId(number.max(2));
        let _ = (hotplug.pages(id), hotplug.block_of(number));
        assert_eq!(hotplug.block(id), None);
        assert_eq!(hotplug.online(id, MOVABLE), Err(BlockError::UnknownBlock));
        assert_eq!(hotplug.offline(id, &mut Unmovable), Err(BlockError::UnknownBlock));
        assert_eq!(hotplug.remove(id), Err(BlockError::UnknownBlock));
        for &end in numbers.iter().filter(|&&end| number != 0 || end > 3 * BLOCK) {
            let range = number..end;
            assert_eq!(hotplug.fake_online(range.clone()), Err(BlockError::BadRange));
            assert_eq!(hotplug.fake_offline(range.clone(), &mut Unmovable), Err(BlockError::BadRange));
            assert_eq!(hotplug.prepare_fake_online(range.clone()), Err(BlockError::BadRange));
            // What is empty, ends beyond the machine, or has memory in it. (The last block could be added.)
            if range != (3 * BLOCK..4 * BLOCK) {
                assert!(hotplug.add(range.clone(), 0, Group::NONE).is_err(), "{range:x?}");
            }
            engine.materialise_free(range).unwrap();
        }
    }
    assert_eq!(engine.free_pages(), free);
    engine.folder(64).unwrap().fold_all();
    engine.audit().unwrap();
}

#[test]
fn a_machine_without_any_pages_answers_or_is_refused() {
    if let Ok(mut engine) = Engine::<TestPlatform>::new(host(), Config::new(0)) {
        assert!(engine.alloc(Order::ZERO, Kind::Anon).is_err());
        assert_eq!(engine.online(0..1), Err(AddError::OutOfRange));
        engine.folder(1).unwrap().fold_all();
        engine.audit().unwrap();
    }
    assert!(Engine::<TestPlatform>::new(host(), Config::new(u64::MAX)).is_err());
}
