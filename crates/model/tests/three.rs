//! Three threads: one frees, one folds, one looks. Only the allocator orders the first before the second, and only a
//! grace period the third before the second.

mod common;

use common::{
    ModelEngine, beside, explore, flat_machine, folio_at, frozen_at, is_one_of, machine, order, take, walk,
};
use loom::sync::Arc;
use pagefold_model::{Kind, Pfn};

/// Two forced switches among three threads: each of the others meets the third at any step.
const BOUND: usize = 2;

/// One frees the folio of order `bits` at `pfn`, another folds, a third asks for page `asked`.
fn free_fold_look(engine: Arc<ModelEngine>, pfn: u64, bits: u32, asked: u64) {
    let raw = folio_at(&engine, pfn, bits);
    let walker = beside(&engine, move |engine| walk(engine, asked));
    let freer = beside(&engine, move |engine| drop(take(engine, raw)));
    engine.folder(4).unwrap().fold_batch();
    freer.join().unwrap();
    let found = walker.join().unwrap();
    assert!(is_one_of(found, &[bits]), "{found:?}");
    engine.folder(4).unwrap().fold_all();
    let audit = engine.audit().unwrap();
    assert_eq!((audit.free_pages, audit.materialised), (8, 0));
}

#[test]
fn one_frees_another_folds_a_third_looks_at_a_page() {
    explore(BOUND, || free_fold_look(machine(), 2, 0, 2));
}

#[test]
fn one_frees_another_folds_a_third_looks_at_a_folded_tail() {
    explore(BOUND, || free_fold_look(machine(), 0, 2, 3));
}

#[test]
fn one_frees_another_folds_a_third_looks_at_a_written_tail() {
    explore(BOUND, || free_fold_look(flat_machine(), 0, 2, 3));
}

/// The whole section, which is folded as one range.
#[test]
fn one_frees_another_folds_a_third_looks_in_a_section_that_goes_whole() {
    explore(BOUND, || free_fold_look(flat_machine(), 0, 3, 5));
}

/// Two puts on two threads, and a third that folds what the last one freed.
#[test]
fn two_put_and_a_third_folds() {
    explore(BOUND, || {
        let engine = machine();
        let folio = frozen_at(&engine, 0, 2).share();
        let raws = [folio.get().unwrap().into_raw(), folio.into_raw()];
        let holders = raws.map(|raw| beside(&engine, move |engine| drop(take(engine, raw))));
        engine.folder(4).unwrap().fold_batch();
        holders.into_iter().for_each(|holder| holder.join().unwrap());
        engine.folder(4).unwrap().fold_all();
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.materialised), (8, 0));
    });
}

/// One uses pages that another has just folded, while a third looks there.
#[test]
fn one_folds_another_allocates_a_third_looks() {
    // Only one: a second multiplies the run by a hundred.
    explore(1, || {
        let engine = machine();
        drop(take(&engine, folio_at(&engine, 2, 0)));
        let walker = beside(&engine, |engine| walk(engine, 2));
        let folder = beside(&engine, |engine| {
            engine.folder(2).unwrap().fold_batch();
        });
        let mine = engine.alloc_at(Pfn(2), order(1), Kind::Anon).map(|frozen| frozen.share());
        folder.join().unwrap();
        let found = walker.join().unwrap();
        assert!(is_one_of(found, &[1]), "{found:?}");
        drop(mine);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// One owner's end beside the next one's beginning, and a walker that must not mistake them.
#[test]
fn one_frees_another_allocates_a_third_looks() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 2);
        let walker = beside(&engine, |engine| walk(engine, 2));
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        let mine = engine.alloc_at(Pfn(2), order(0), Kind::File).map(|frozen| frozen.share());
        freer.join().unwrap();
        let found = walker.join().unwrap();
        assert!(is_one_of(found, &[0, 2]), "{found:?}");
        if let Ok(mine) = &mine {
            assert_eq!(mine.refs(), 1);
            assert_eq!(walk(&engine, 2), Ok(0), "the first owner's end undid the second one's descriptor");
        }
        drop(mine);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// Two walkers, of which the first may keep a grace period from ending while the second begins.
#[test]
fn two_look_while_one_folds() {
    // Only one: two readers' sections and a wait for both multiply.
    explore(1, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let walkers = [(); 2].map(|()| beside(&engine, |engine| walk(engine, 2)));
        drop(take(&engine, raw));
        engine.folder(4).unwrap().fold_batch();
        for walker in walkers {
            let found = walker.join().unwrap();
            assert!(is_one_of(found, &[0]), "{found:?}");
        }
        engine.audit().unwrap();
    });
}

/// A walker that comes back: its second section is met first, and what its first one did must be over all the same.
#[test]
fn a_walker_that_looks_twice_while_one_folds() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let walker = beside(&engine, |engine| {
            let walker = engine.walker().unwrap();
            [2, 2].map(|pfn| walker.try_get(Pfn(pfn)).is_ok())
        });
        drop(take(&engine, raw));
        engine.folder(4).unwrap().fold_batch();
        walker.join().unwrap();
        engine.audit().unwrap();
    });
}
