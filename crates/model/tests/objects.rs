//! Descriptors that are objects: what is freed may be another folio's at once, and may lose its memory.
#![cfg(feature = "memdesc")]

mod common;

use common::{beside, explore, folio_at, freeze, frozen_at, machine, machine_under, order, take, walk};
use pagefold_model::Pfn;
use pagefold_model::protocol::{Fold, NoGracePeriod, Protocol};

const BOUND: usize = 2;

/// The object of a folio is another folio's between a walker's look and its swap. The walker gets nothing, and the other folio
/// has the references that it should have in the end.
#[test]
fn an_object_is_reused_under_a_walker() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 0);
        let walker = beside(&engine, |engine| walk(engine, 0).is_ok());
        drop(take(&engine, raw));
        let other = frozen_at(&engine, 5, 0).share();
        walker.join().unwrap();
        assert_eq!((other.pfn(), other.refs(), engine.objects()), (Pfn(5), 1, Some(1)));
        drop(other);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// The same, and the other folio's owner drops its reference while the walker has one by mistake. The last to drop frees it.
#[test]
fn the_last_reference_on_a_stranger_may_be_the_walkers() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 0);
        let walker = beside(&engine, |engine| walk(engine, 0).is_ok());
        drop(take(&engine, raw));
        drop(frozen_at(&engine, 1, 0).share());
        walker.join().unwrap();
        assert_eq!((engine.audit().unwrap().free_pages, engine.objects()), (8, Some(0)));
    });
}

/// A folio is split while a walker is between word and swap: it finds the piece that has the page, or nothing.
#[test]
fn a_split_under_a_walker() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 1);
        let walker = beside(&engine, |engine| walk(engine, 1));
        let pieces: Vec<_> =
            freeze(take(&engine, raw)).split(order(0)).unwrap().map(|piece| piece.share()).collect();
        let found = walker.join().unwrap();
        assert!(matches!(found, Ok(0 | 1) | Err(_)), "{found:?}");
        assert!(pieces.iter().all(|piece| piece.refs() == 1));
        drop(pieces);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// The memory of a group of objects goes while a walker knows one of them.
fn fold_a_group<R: Protocol>() {
    let engine = machine_under::<R>();
    let raw = folio_at(&engine, 0, 0);
    let walker = beside(&engine, |engine| walk(engine, 0).is_ok());
    drop(take(&engine, raw));
    let report = engine.folder(8).unwrap().fold_batch();
    walker.join().unwrap();
    assert!(report.object_pages <= 1);
    engine.folder(8).unwrap().fold_all();
    let audit = engine.audit().unwrap();
    assert_eq!((audit.free_pages, audit.materialised, engine.objects()), (8, 0, Some(0)));
}

#[test]
fn a_group_is_folded_under_a_walker() {
    explore(BOUND, fold_a_group::<Fold>);
}

/// Walkers do not write words. What they write to without the wait are objects whose memory is gone.
#[test]
#[should_panic(expected = "stray write")]
fn a_group_is_folded_under_a_walker_without_a_grace_period() {
    explore(BOUND, fold_a_group::<NoGracePeriod>);
}
