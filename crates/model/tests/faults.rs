//! A platform that refuses: memory for descriptors, or to take their memory away.

mod common;

use common::{
    alone, beside, explore, flat_machine, folio_at, freeze, frozen_at, is_one_of, machine, order, take, walk,
};
use pagefold_model::platform::TableKind;
use pagefold_model::{AllocError, Class, Kind, Pfn};

/// Two forced switches: the one whose map page gets no memory is met before and after it gives up.
const BOUND: usize = 2;

/// Descriptors get no memory any more.
fn refuse(engine: &common::ModelEngine, granted: usize) {
    engine.platform().faults.refuse(TableKind::Map, granted);
}

// ---- memory is refused ---------------------------------------------------------------------------------------------

/// Two owners in one map page, of which the first gets memory for it or not, and a walker.
#[test]
fn a_map_page_that_gets_no_memory_is_free_again_for_others() {
    // One, as in the next: both open the same area and give it back, which is long.
    explore(1, || {
        let engine = machine();
        refuse(&engine, 1);
        let other = beside(&engine, |engine| {
            engine.alloc_at(Pfn(2), order(0), Kind::Anon).map(|frozen| drop(frozen.share()))
        });
        // One of these finds memory: the map page of 0 and 1 has none then, or the one of 2 and 3.
        let mine = engine.alloc_at(Pfn(0), order(0), Kind::Anon).map(|frozen| drop(frozen.share()));
        let both = [mine, other.join().unwrap()];
        assert!(both.contains(&Ok(())) && both.contains(&Err(AllocError::OutOfMemory)), "{both:?}");
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.materialised), (8, 1));
        engine.platform().faults.end();
        drop([frozen_at(&engine, 0, 0), frozen_at(&engine, 2, 0)]);
    });
}

#[test]
fn two_owners_of_a_map_page_that_gets_no_memory() {
    explore(1, || {
        let engine = machine();
        refuse(&engine, 0);
        let other = beside(&engine, |engine| engine.alloc_at(Pfn(3), order(0), Kind::Anon).map(drop));
        let mine = engine.alloc_at(Pfn(2), order(0), Kind::Anon).map(drop);
        assert_eq!([mine, other.join().unwrap()], [Err(AllocError::OutOfMemory); 2]);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
        engine.platform().faults.end();
        drop(frozen_at(&engine, 2, 1));
    });
}

/// A walker is led nowhere while an unfolding fails.
#[test]
fn try_get_against_an_unfolding_that_fails() {
    explore(3, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 2);
        let walker = beside(&engine, |engine| walk(engine, 3));
        let mut frozen = freeze(take(&engine, raw));
        refuse(&engine, 0);
        assert!(frozen.unfold().is_err());
        assert!(!frozen.has_unfolded_tails());
        drop(frozen.share());
        let found = walker.join().unwrap();
        assert!(is_one_of(found, &[2]), "{found:?}");
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// The first run of map pages gets memory, the second does not: the first one's goes again.
#[test]
fn an_unfolding_that_fails_half_way_takes_its_memory_back() {
    alone(|| {
        let engine = machine();
        // Leaves the third map page with memory: two runs are missing.
        drop(frozen_at(&engine, 4, 0));
        let mut whole = frozen_at(&engine, 0, 3);
        assert_eq!(engine.materialised_map_pages(), 2);
        refuse(&engine, 1);
        assert!(whole.unfold().is_err());
        assert_eq!(engine.materialised_map_pages(), 2);
        let whole = whole.share();
        assert_eq!((walk(&engine, 3), walk(&engine, 7)), (Ok(3), Ok(3)));
        engine.audit().unwrap();
        engine.platform().faults.end();
        let mut whole = freeze(whole);
        whole.unfold().unwrap();
        assert_eq!(engine.materialised_map_pages(), 4);
        drop(whole);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// As before, but what did get memory cannot be folded again: it stays, and says so.
#[test]
fn an_unfolding_that_fails_and_cannot_take_its_memory_back() {
    alone(|| {
        let engine = machine();
        drop(frozen_at(&engine, 4, 0));
        let mut whole = frozen_at(&engine, 0, 3);
        refuse(&engine, 1);
        engine.platform().faults.fold_at_most(0);
        assert!(whole.unfold().is_err());
        assert!(whole.has_unfolded_tails());
        assert_eq!(engine.materialised_map_pages(), 3);
        engine.audit().unwrap();
        engine.platform().faults.end();
        let whole = whole.share();
        assert_eq!((walk(&engine, 3), walk(&engine, 7)), (Ok(3), Ok(3)));
        drop(whole);
        engine.folder(4).unwrap().fold_all();
        assert_eq!(engine.audit().unwrap().materialised, 0);
    });
}

#[test]
fn a_split_without_memory_changes_nothing() {
    alone(|| {
        let engine = machine();
        let folio = frozen_at(&engine, 0, 2);
        refuse(&engine, 0);
        let (folio, _) = folio.split(order(0)).unwrap_err();
        assert_eq!(folio.order(), order(2));
        let folio = folio.share();
        assert_eq!(walk(&engine, 3), Ok(2));
        engine.audit().unwrap();
        drop(folio);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

#[test]
fn a_flat_folio_without_memory_is_not_made() {
    alone(|| {
        let engine = flat_machine();
        drop(frozen_at(&engine, 4, 0));
        refuse(&engine, 1);
        assert!(matches!(engine.alloc_at(Pfn(0), order(3), Kind::Anon), Err(AllocError::OutOfMemory)));
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.materialised), (8, 1));
        engine.platform().faults.end();
        drop(frozen_at(&engine, 0, 3));
        assert_eq!(engine.audit().unwrap().materialised, 4);
    });
}

// ---- folds are refused ---------------------------------------------------------------------------------------------

/// What was to be folded stays, counts as refused, can be used at once, and is folded another time.
#[test]
fn memory_that_the_platform_keeps_can_be_used_and_folded_later() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        engine.platform().faults.fold_at_most(0);
        drop(take(&engine, raw));
        let walker = beside(&engine, |engine| walk(engine, 2));
        let report = engine.folder(4).unwrap().fold_batch();
        assert_eq!((report.map_pages, report.refused), (0, 1));
        let audit = engine.audit().unwrap();
        assert_eq!((audit.materialised, audit.published), (1, 0));
        assert_eq!(engine.class(Pfn(2)), (Class::Mapped, true));
        let again = frozen_at(&engine, 3, 0).share();
        let found = walker.join().unwrap();
        assert!(is_one_of(found, &[]), "{found:?}");
        drop(again);
        engine.platform().faults.end();
        assert_eq!(engine.folder(4).unwrap().fold_all().map_pages, 1);
        assert_eq!(engine.audit().unwrap().materialised, 0);
    });
}

/// Of two ranges the platform takes one.
#[test]
fn a_fold_that_is_done_in_part_counts_what_was_done() {
    alone(|| {
        let engine = machine();
        let _kept = frozen_at(&engine, 2, 0);
        drop([1, 5].map(|pfn| frozen_at(&engine, pfn, 0)));
        engine.platform().faults.fold_at_most(1);
        let report = engine.folder(4).unwrap().fold_batch();
        assert_eq!((report.map_pages, report.refused), (1, 1));
        let audit = engine.audit().unwrap();
        assert_eq!((audit.materialised, audit.published), (2, 0));
        engine.platform().faults.end();
        drop([frozen_at(&engine, 0, 1), frozen_at(&engine, 4, 1)]);
        engine.folder(4).unwrap().fold_all();
        assert_eq!(engine.audit().unwrap().materialised, 1);
    });
}

/// A batch whose tails the platform keeps: the folio is whole and found, and its tails can be folded later.
#[test]
fn tails_that_the_platform_keeps_are_folded_another_time() {
    alone(|| {
        let engine = flat_machine();
        let mut batch = engine.fold_batch(1).unwrap();
        batch.push(frozen_at(&engine, 0, 2)).unwrap();
        engine.platform().faults.fold_at_most(0);
        let report = batch.commit();
        assert_eq!((report.map_pages, report.refused), (0, 1));
        let folio = batch.drain().next().unwrap().share();
        assert_eq!((walk(&engine, 1), walk(&engine, 3)), (Ok(2), Ok(2)));
        assert_eq!(engine.audit().unwrap().published, 1);
        engine.platform().faults.end();
        let folio = freeze(folio);
        assert!(folio.has_unfolded_tails());
        batch.push(folio).unwrap();
        assert_eq!(batch.commit().map_pages, 1);
        drop(batch);
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.materialised), (8, 1));
    });
}
