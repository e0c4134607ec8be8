//! Isolation: nothing new is allocated in the range, what is freed there is collected once, and all of it comes back.

mod common;

use common::{beside, explore, folio_at, frozen_at, is_one_of, machine, order, take, walk};
use pagefold_model::{AllocError, Kind, Pfn};

/// Two forced switches: the one who frees or takes is met before and after its word, and so is the one who isolates.
const BOUND: usize = 2;

/// Pages are freed in the range while it is isolated, and a walker looks.
#[test]
fn a_free_against_an_isolation_and_a_walker() {
    // One switch: there are three threads.
    explore(1, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let walker = beside(&engine, |engine| walk(engine, 2));
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        let mut isolated = engine.isolate(0..4).unwrap();
        freer.join().unwrap();
        let found = walker.join().unwrap();
        assert!(is_one_of(found, &[0]), "{found:?}");
        assert_eq!(isolated.collect(), 0);
        assert_eq!(isolated.held_pages(), 4);
        drop(isolated);
        drop(frozen_at(&engine, 0, 3));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

#[test]
fn a_free_against_an_isolation() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        let mut isolated = engine.isolate(0..4).unwrap();
        let busy = isolated.collect();
        assert_eq!(busy + isolated.held_pages(), 4);
        freer.join().unwrap();
        assert_eq!((isolated.collect(), isolated.held_pages()), (0, 4));
        drop(isolated);
        drop(frozen_at(&engine, 0, 3));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// A whole folio, whose lane is marked while it is given back.
#[test]
fn a_free_of_a_whole_area_against_an_isolation() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 2);
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        let mut isolated = engine.isolate(0..4).unwrap();
        let busy = isolated.collect();
        assert_eq!(busy + isolated.held_pages(), 4);
        freer.join().unwrap();
        assert_eq!((isolated.collect(), isolated.held_pages()), (0, 4));
        drop(isolated);
        drop(frozen_at(&engine, 0, 3));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// The last page is freed while the isolation ends: it is free either way.
#[test]
fn a_free_against_the_end_of_an_isolation() {
    for bits in [0, 2] {
        explore(BOUND, move || {
            let engine = machine();
            let raw = folio_at(&engine, 0, bits);
            let isolated = engine.isolate(0..4).unwrap();
            let freer = beside(&engine, move |engine| drop(take(engine, raw)));
            drop(isolated);
            freer.join().unwrap();
            drop(frozen_at(&engine, 0, 3));
            assert_eq!(engine.audit().unwrap().free_pages, 8);
        });
    }
}

/// Either the allocation was first, or it gets nothing in the range until the isolation has ended.
#[test]
fn an_allocation_against_an_isolation() {
    for bits in [0, 2] {
        explore(BOUND, move || {
            let engine = machine();
            let other = beside(&engine, move |engine| {
                engine.alloc_at(Pfn(0), order(bits), Kind::Anon).map(|frozen| frozen.share().into_raw())
            });
            let mut isolated = engine.isolate(0..4).unwrap();
            let taken = other.join().unwrap();
            let in_use = if taken.is_ok() { 1 << bits } else { 0 };
            assert_eq!((isolated.collect(), isolated.held_pages()), (in_use, 4 - in_use));
            assert!(matches!(engine.alloc_at(Pfn(3), order(0), Kind::Anon), Err(AllocError::Busy)));
            drop(isolated);
            if let Ok(raw) = taken {
                drop(take(&engine, raw));
            }
            drop(frozen_at(&engine, 0, 3));
            assert_eq!(engine.audit().unwrap().free_pages, 8);
        });
    }
}

/// A search finds what is outside, and what comes back.
#[test]
fn a_search_against_the_end_of_an_isolation() {
    explore(BOUND, || {
        let engine = machine();
        let kept = frozen_at(&engine, 4, 2);
        let isolated = engine.isolate(0..4).unwrap();
        let other = beside(&engine, |engine| engine.alloc(order(0), Kind::Anon).map(drop));
        drop(isolated);
        let found = other.join().unwrap();
        assert!(matches!(found, Ok(()) | Err(AllocError::NoBlock)), "{found:?}");
        drop(engine.alloc(order(2), Kind::Anon).unwrap());
        drop(kept);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// The folder's claim and an isolation: each page is held by one of them, and none is forgotten.
#[test]
fn a_folder_against_an_isolation() {
    explore(BOUND, || {
        let engine = machine();
        drop(frozen_at(&engine, 2, 0));
        let folder = beside(&engine, |engine| {
            engine.folder(2).unwrap().fold_batch();
        });
        let mut isolated = engine.isolate(0..4).unwrap();
        folder.join().unwrap();
        assert_eq!((isolated.collect(), isolated.held_pages()), (0, 4));
        drop(isolated);
        // What was out of the folder's reach is in it again.
        engine.folder(4).unwrap().fold_all();
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.materialised), (8, 0));
    });
}

/// Two want ranges that overlap: one is refused, and leaves nothing behind.
#[test]
fn two_isolations_of_one_area() {
    explore(BOUND, || {
        let engine = machine();
        let other = beside(&engine, |engine| engine.isolate(4..8).map(drop));
        let mine = engine.isolate(0..8).map(drop);
        let theirs = other.join().unwrap();
        assert!(mine.is_ok() || theirs.is_ok());
        drop(frozen_at(&engine, 0, 3));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}
