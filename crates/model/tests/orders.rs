//! What one thread did is seen by the next, whichever way a page, a slot or a callback goes from hand to hand. The data
//! that is handed over stands outside of the engine, and nothing but the engine orders it.

mod common;

use common::{
    Model, ModelEngine, NoMemory, alone, beside, empty, explore, folio_at, frame_allocator, machine, order,
    section_is_seen, take, visit,
};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;
use pagefold_model::hotplug::{
    BlockError, BlockId, FakeOffline, Group, Hotplug, HotplugConfig, OnlineTo, Unmovable,
};
use pagefold_model::platform::Fences;
use pagefold_model::protocol::Fold;
use pagefold_model::rcu::Rcu;
use pagefold_model::{AllocError, FrameAllocator, Frozen, Kind, Miss, Order, Pfn, RawFolio, Zone};

type ModelMachine = ModelEngine<Fold>;
type Taken<'e> = Result<Frozen<'e, Model<Fold>>, AllocError>;

fn data() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(0))
}

/// A thread that works on a folio and puts its reference.
fn holder(engine: &Arc<ModelMachine>, raw: RawFolio, data: &Arc<AtomicUsize>) -> thread::JoinHandle<()> {
    let data = Arc::clone(data);
    beside(engine, move |engine| {
        let folio = take(engine, raw);
        data.store(1, Relaxed);
        drop(folio);
    })
}

// ---- owner to walker -----------------------------------------------------------------------------------------------

/// A folio is made out of folded memory and shared, while a walker asks for it.
fn shared_at(pfn: u64, bits: u32, asked: u64) {
    let (engine, data) = (machine(), data());
    let seen = Arc::clone(&data);
    let walker = beside(&engine, move |engine| {
        if let Ok(folio) = engine.walker().unwrap().try_get(Pfn(asked)) {
            assert_eq!(seen.load(Relaxed), 1, "the owner's data is not seen");
            assert_eq!(folio.order().get(), bits);
        }
    });
    let frozen = engine.alloc_at(Pfn(pfn), order(bits), Kind::Anon).unwrap();
    data.store(1, Relaxed);
    let folio = frozen.share();
    walker.join().unwrap();
    drop(folio);
    engine.audit().unwrap();
}

#[test]
fn a_walker_sees_what_the_owner_did_before_sharing() {
    explore(3, || shared_at(2, 0, 2));
}

#[test]
fn a_walker_that_comes_by_a_tail_sees_it_too() {
    explore(3, || shared_at(0, 2, 3));
}

// ---- holder to owner -----------------------------------------------------------------------------------------------

/// A folio is freed by its holder, beside others that are `kept`; who takes its pages then sees what the holder did.
fn freed_at(pfn: u64, bits: u32, kept: &[(u64, u32)], next: fn(&ModelMachine) -> Taken<'_>) {
    let (engine, data) = (machine(), data());
    for &(pfn, bits) in kept {
        let _for_good = folio_at(&engine, pfn, bits);
    }
    let raw = folio_at(&engine, pfn, bits);
    let other = holder(&engine, raw, &data);
    if let Ok(next) = next(&engine) {
        assert_eq!(data.load(Relaxed), 1, "the former owner's work is not seen");
        drop(next);
    }
    other.join().unwrap();
}

#[test]
fn a_page_that_was_freed_brings_what_its_holder_did() {
    explore(3, || freed_at(2, 0, &[], |engine| engine.alloc_at(Pfn(2), order(0), Kind::Anon)));
}

#[test]
fn an_area_that_was_freed_brings_what_its_holder_did() {
    explore(3, || freed_at(0, 2, &[(4, 2)], |engine| engine.alloc(order(2), Kind::Anon)));
}

#[test]
fn a_page_that_a_search_finds_brings_what_its_holder_did() {
    let kept = [(4, 2), (0, 1), (2, 0)];
    explore(3, move || freed_at(3, 0, &kept, |engine| engine.alloc(order(0), Kind::Anon)));
}

#[test]
fn a_whole_map_page_that_was_freed_brings_what_its_holder_did() {
    let kept = [(4, 2), (2, 0)];
    explore(3, move || freed_at(0, 1, &kept, |engine| engine.alloc_at(Pfn(0), order(1), Kind::Anon)));
}

#[test]
fn the_next_owner_sees_what_every_holder_did() {
    explore(3, || {
        let (engine, first, second) = (machine(), data(), data());
        let folio = engine.alloc_at(Pfn(2), order(0), Kind::Anon).unwrap().share();
        let raw = folio.get().unwrap().into_raw();
        let other = holder(&engine, raw, &first);
        second.store(1, Relaxed);
        drop(folio);
        // Free only if both are done.
        if let Ok(next) = engine.alloc_at(Pfn(2), order(0), Kind::Anon) {
            assert_eq!((first.load(Relaxed), second.load(Relaxed)), (1, 1), "a holder's work is not seen");
            drop(next);
        }
        other.join().unwrap();
    });
}

#[test]
fn who_freezes_sees_what_every_holder_did() {
    explore(3, || {
        let (engine, data) = (machine(), data());
        let folio = engine.alloc_at(Pfn(2), order(0), Kind::Anon).unwrap().share();
        let raw = folio.get().unwrap().into_raw();
        let other = holder(&engine, raw, &data);
        if let Ok(frozen) = folio.freeze() {
            assert_eq!(data.load(Relaxed), 1, "a former holder's work is not seen");
            drop(frozen);
        }
        other.join().unwrap();
        engine.audit().unwrap();
    });
}

/// A folio is freed while the area it lies in is isolated.
fn isolated_under(pfn: u64, bits: u32) {
    let (engine, data) = (machine(), data());
    let raw = folio_at(&engine, pfn, bits);
    let other = holder(&engine, raw, &data);
    let mut isolated = engine.isolate(0..4).unwrap();
    if isolated.collect() == 0 {
        assert_eq!(data.load(Relaxed), 1, "a former holder's work is not seen");
    }
    other.join().unwrap();
    assert_eq!(isolated.collect(), 0);
    drop(isolated);
    assert_eq!(engine.free_pages(), 8);
    engine.audit().unwrap();
}

#[test]
fn who_isolates_a_range_sees_what_the_holders_of_its_pages_did() {
    explore(2, || isolated_under(2, 0));
}

#[test]
fn who_isolates_an_area_that_was_whole_sees_what_its_holder_did() {
    explore(2, || isolated_under(0, 2));
}

/// The end of an isolation hands its pages over as a put does.
#[test]
fn who_allocates_after_an_isolation_sees_what_was_done_under_it() {
    explore(2, || {
        let (engine, data) = (machine(), data());
        let _kept = [folio_at(&engine, 4, 2), folio_at(&engine, 0, 1), folio_at(&engine, 2, 0)];
        let isolated = engine.isolate(0..4).unwrap();
        let seen = Arc::clone(&data);
        let other = beside(&engine, move |engine| {
            if let Ok(next) = engine.alloc_at(Pfn(3), order(0), Kind::Anon) {
                // Taken before the isolation began its work on it is impossible: it had collected the page.
                assert_eq!(seen.load(Relaxed), 1, "the work under isolation is not seen");
                drop(next);
            }
        });
        data.store(1, Relaxed);
        drop(isolated);
        other.join().unwrap();
        engine.audit().unwrap();
    });
}

// ---- grace periods -------------------------------------------------------------------------------------------------

#[test]
fn a_try_does_not_end_the_section_around_it() {
    alone(|| {
        let engine = machine();
        let kept = folio_at(&engine, 2, 0);
        let walker = engine.walker().unwrap();
        let section = walker.section();
        let ticket = engine.rcu().start();
        drop(walker.try_get(Pfn(2)).unwrap());
        assert!(!ticket.is_over(), "a try ended the section around it");
        assert!(walker.try_get(Pfn(3)).is_err() && walker.try_get(Pfn(0)).is_err());
        assert!(!ticket.is_over(), "a failed try ended the section around it");
        drop(section);
        assert!(ticket.is_over());
        drop(walker.try_get(Pfn(2)).unwrap());
        assert!(engine.rcu().start().is_over(), "a try that is over is not waited for");
        drop(take(&engine, kept));
    });
}

/// Three forced switches: before and after the first section, and inside the second.
#[test]
fn an_earlier_section_is_seen_though_the_scan_meets_a_later_one() {
    explore(3, || {
        section_is_seen(|reader, inside| {
            visit(&reader, inside);
            drop(reader.section());
        });
    });
}

#[test]
fn an_earlier_section_is_seen_though_the_scan_meets_a_later_nested_one() {
    explore(3, || {
        section_is_seen(|reader, inside| {
            visit(&reader, inside);
            let _later = reader.section();
            drop(reader.section());
        });
    });
}

#[test]
fn references_end_at_their_limit_and_none_is_left_behind() {
    alone(|| {
        let engine = machine();
        let walker = engine.walker().unwrap();
        let folio = engine.alloc_at(Pfn(0), order(2), Kind::Anon).unwrap().share();
        let mut held = Vec::new();
        while let Ok(more) = folio.get() {
            held.push(more);
        }
        let limit = folio.refs();
        assert_eq!(limit, pagefold_model::MAX_REFS);
        assert_eq!(walker.try_get(Pfn(0)).unwrap_err(), Miss::Saturated);
        assert_eq!(walker.try_get(Pfn(3)).unwrap_err(), Miss::Saturated);
        assert!(folio.get().is_err());
        assert_eq!(folio.refs(), limit, "a refused reference is left behind");
        held.pop();
        held.push(walker.try_get(Pfn(0)).unwrap());
        assert_eq!(folio.refs(), limit);
        held.pop();
        held.push(walker.try_get(Pfn(3)).unwrap());
        assert_eq!(folio.refs(), limit);
        drop((held, folio));
        assert_eq!(engine.free_pages(), 8);
        engine.audit().unwrap();
    });
}

#[test]
fn a_section_of_a_reader_that_is_gone_is_seen() {
    explore(3, || {
        section_is_seen(|reader, inside| visit(&reader, inside));
    });
}

/// The slot's next owner enters a section; the last owner's farewell must not undo that.
#[test]
fn a_slot_that_was_given_back_is_idle_for_its_next_owner() {
    explore(3, || {
        let rcu = Arc::new(Rcu::new(Fences));
        let first = rcu.reader().unwrap();
        drop(first.section());
        let _second = rcu.reader().unwrap();
        let other = beside(&rcu, |rcu| {
            let reader = rcu.reader().unwrap();
            let section = reader.section();
            assert!(reader.is_inside());
            let ticket = rcu.start();
            assert!(!ticket.is_over(), "a section in a slot of another's is not waited for");
            drop(section);
        });
        drop(first);
        other.join().unwrap();
    });
}

#[test]
fn readers_in_every_block_of_slots_are_waited_for() {
    alone(|| {
        let rcu = Rcu::new(Fences);
        let readers: Vec<_> = (0..5).map(|_| rcu.reader().unwrap()).collect();
        for reader in &readers {
            let section = reader.section();
            let ticket = rcu.start();
            assert!(!ticket.is_over(), "a reader is not waited for");
            drop(section);
            assert!(ticket.is_over());
        }
    });
}

#[test]
fn what_was_done_before_deferring_is_seen_by_the_callback() {
    explore(3, || {
        let rcu = Arc::new(Rcu::new(Fences));
        let value = data();
        let other = beside(&rcu, move |rcu| {
            value.store(1, Relaxed);
            rcu.defer(Box::new(move || assert_eq!(value.load(Relaxed), 1, "not seen")))
                .map_err(|_| ())
                .unwrap();
        });
        let ran = rcu.run_deferred();
        other.join().unwrap();
        assert_eq!(ran + rcu.run_deferred(), 1);
    });
}

#[test]
fn two_defer_at_the_same_time_and_both_run() {
    explore(2, || {
        let rcu = Arc::new(Rcu::new(Fences));
        let ran = data();
        let (mine, theirs) = (Arc::clone(&ran), Arc::clone(&ran));
        let other = beside(&rcu, move |rcu| {
            rcu.defer(Box::new(move || _ = theirs.fetch_add(1, Relaxed))).map_err(|_| ()).unwrap()
        });
        rcu.defer(Box::new(move || _ = mine.fetch_add(1, Relaxed))).map_err(|_| ()).unwrap();
        other.join().unwrap();
        assert_eq!(rcu.run_deferred(), 2);
        assert_eq!(ran.load(Relaxed), 2);
    });
}

// ---- the allocator -------------------------------------------------------------------------------------------------

/// The other page of the area is freed, so the area closes: its rows are taken for a moment.
#[test]
fn a_free_page_is_not_refused_while_its_area_closes() {
    explore(3, || {
        let mut frames: FrameAllocator<NoMemory<Fold>> = frame_allocator();
        frames.online(0..4).unwrap();
        let frames = Arc::new(frames);
        let last = frames.alloc(Order::ZERO, 0).unwrap();
        let other = beside(&frames, move |frames| frames.free(last, Order::ZERO).unwrap());
        let mine = frames.alloc(Order::ZERO, 0);
        other.join().unwrap();
        let mine = mine.expect("three pages were free all the time");
        frames.free(mine, Order::ZERO).unwrap();
        assert_eq!(frames.free_pages(), 4);
    });
}

#[test]
fn a_particular_free_page_is_not_refused_while_its_area_closes() {
    explore(3, || {
        let engine = machine();
        let raw = folio_at(&engine, 1, 0);
        let other = holder(&engine, raw, &data());
        let mine = engine.alloc_at(Pfn(2), order(0), Kind::Anon);
        other.join().unwrap();
        drop(mine.expect("the page was free all the time"));
        assert_eq!(engine.free_pages(), 8);
        engine.audit().unwrap();
    });
}

#[test]
fn memory_that_comes_online_is_used_with_its_tables() {
    explore(2, || {
        let engine: Arc<ModelMachine> = Arc::new(empty());
        let other = beside(&engine, |engine| {
            match engine.alloc(order(0), Kind::Anon).map(|frozen| frozen.share()) {
                Ok(folio) => {
                    assert_eq!(folio.refs(), 1);
                    let walker = engine.walker().unwrap();
                    assert!(walker.try_get(folio.pfn()).is_ok(), "a folio that is shared is not found");
                }
                // Not there yet. What is there has its tables.
                Err(error) => assert_eq!(error, AllocError::NoBlock),
            }
        });
        let mut hotplug =
            engine.hotplug(HotplugConfig { block_pages: 8, ..HotplugConfig::default() }).unwrap();
        hotplug.boot(0..8, 0).unwrap();
        other.join().unwrap();
        assert_eq!(engine.free_pages(), 8);
        engine.audit().unwrap();
    });
}

// ---- fake-offline --------------------------------------------------------------------------------------------------

fn classic(engine: &ModelMachine) -> Hotplug<'_, Model<Fold>> {
    let fake_offline = FakeOffline::Classic { rcu: true };
    let config = HotplugConfig { block_pages: 8, fake_offline, passes: 1, ..HotplugConfig::default() };
    let mut hotplug = engine.hotplug(config).unwrap();
    hotplug.add(0..8, 0, Group::NONE).unwrap();
    hotplug.online(BlockId(0), OnlineTo::Zone(Zone::Movable)).unwrap();
    hotplug
}

#[test]
fn what_a_walker_did_with_a_fake_offline_page_is_seen_when_it_comes_back() {
    explore(2, || {
        let engine: Arc<ModelMachine> = Arc::new(empty());
        let mut hotplug = classic(&engine);
        hotplug.fake_offline(0..4, &mut Unmovable).unwrap();
        let work = data();
        let theirs = Arc::clone(&work);
        let walker = beside(&engine, move |engine| {
            let folio = engine.walker().unwrap().try_get(Pfn(2));
            if folio.is_ok() {
                theirs.store(1, Relaxed);
            }
            folio.is_ok()
        });
        loop {
            match hotplug.fake_online(0..4) {
                Ok(()) => break,
                Err(BlockError::Held(_)) => thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        }
        let seen = work.load(Relaxed) == 1;
        assert!(!walker.join().unwrap() || seen, "a walker's work is not seen");
        assert_eq!(engine.free_pages(), 8);
        engine.audit().unwrap();
    });
}
