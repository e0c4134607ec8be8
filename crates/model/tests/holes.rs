//! Holes: pages without memory in a map page that is only partly present. They are nobody's, and in nobody's way.

mod common;

use common::{alone, beside, explore, folio_at, frozen_at, is_one_of, machine_of, order, take, walk};
use pagefold_model::{AllocError, Kind, Miss, Pfn};

/// Page 0 and page 7 have no memory; six pages do.
fn machine() -> loom::sync::Arc<common::ModelEngine> {
    machine_of(1..7)
}

#[test]
fn a_hole_is_never_handed_out() {
    alone(|| {
        let engine = machine();
        for (pfn, bits) in [(0, 0), (0, 1), (6, 1), (0, 2), (0, 3)] {
            let taken = engine.alloc_at(Pfn(pfn), order(bits), Kind::Anon);
            assert!(matches!(taken, Err(AllocError::Busy | AllocError::Absent)), "{pfn} {bits}: {taken:?}");
        }
        let all: Vec<_> = std::iter::from_fn(|| engine.alloc(order(0), Kind::Anon).ok()).collect();
        let mut pages: Vec<_> = all.iter().map(|folio| folio.pfn().0).collect();
        pages.sort();
        assert_eq!(pages, [1, 2, 3, 4, 5, 6]);
        assert_eq!(engine.audit().unwrap().holes, 2);
        drop(all);
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.holes), (6, 2));
        engine.folder(4).unwrap().fold_all();
        assert_eq!(engine.audit().unwrap().materialised, 0);
    });
}

/// A map page with a hole is folded like any other, and its hole stays one.
///
/// Two forced switches: the walker between its looks, the folder between its claim and its fold.
#[test]
fn try_get_beside_a_hole_against_free_fold_and_reuse() {
    explore(2, || {
        let engine = machine();
        let raw = folio_at(&engine, 1, 0);
        let walker = beside(&engine, |engine| (walk(engine, 1), walk(engine, 0)));
        drop(take(&engine, raw));
        engine.folder(1).unwrap().fold_batch();
        // Unless the walker still has it.
        let again = engine.alloc_at(Pfn(1), order(0), Kind::Anon).map(|frozen| frozen.share());
        let (page, hole) = walker.join().unwrap();
        assert!(is_one_of(page, &[0]), "{page:?}");
        assert_eq!(hole, Err(Miss::Free));
        drop(again);
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.holes), (6, 2));
    });
}

/// The folder claims the pages beside a hole while somebody takes one of them.
#[test]
fn a_folder_against_an_allocation_beside_a_hole() {
    explore(2, || {
        let engine = machine();
        drop(frozen_at(&engine, 6, 0));
        let folder = beside(&engine, |engine| engine.folder(1).unwrap().fold_batch().map_pages);
        let mine = engine.alloc_at(Pfn(6), order(0), Kind::Anon).map(|frozen| frozen.share());
        folder.join().unwrap();
        if let Ok(mine) = &mine {
            assert_eq!((mine.refs(), walk(&engine, 6)), (1, Ok(0)));
        }
        drop(mine);
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.holes), (6, 2));
    });
}

#[test]
fn a_hole_cannot_be_broken() {
    alone(|| {
        let engine = machine();
        let walker = engine.walker().unwrap();
        assert!(walker.poison(Pfn(0)).is_err() && walker.poison(Pfn(7)).is_err());
        walker.poison(Pfn(1)).unwrap();
        engine.folder(4).unwrap().fold_all();
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.holes, audit.withheld_pages), (5, 2, 1));
    });
}

/// Isolated, collected and returned with its holes.
#[test]
fn a_hole_is_not_collected() {
    alone(|| {
        let engine = machine();
        let isolated = engine.isolate(0..8).unwrap();
        assert_eq!(isolated.held_pages(), 6);
        drop(isolated);
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.holes), (6, 2));
        assert!(engine.alloc_at(Pfn(0), order(0), Kind::Anon).is_err());
    });
}
