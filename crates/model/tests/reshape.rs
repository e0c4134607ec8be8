//! Split, collapse, and the two layouts: what the descriptors said before is gone, whichever way they come to say
//! something else.

mod common;

use common::{
    alone, beside, explore, flat_machine, folio_at, freeze, frozen_at, is_one_of, machine, order, take, walk,
};
use pagefold_model::{Class, Frozen, Kind, Layout, Miss, Pfn};

/// Two forced switches: a walker between its look at a class and its look at the head, an owner between two words.
const BOUND: usize = 2;

/// What a walker gets at each of `pages`.
fn found(engine: &common::ModelEngine, pages: std::ops::Range<u64>) -> Vec<Result<u32, Miss>> {
    pages.map(|pfn| walk(engine, pfn)).collect()
}

// ---- collapse ------------------------------------------------------------------------------------------------------

#[test]
fn a_collapsed_folio_is_found_at_every_page() {
    for (bits, of) in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)] {
        alone(move || {
            let engine = machine();
            let parts = (0..1 << bits).step_by(1 << of).map(|pfn| frozen_at(&engine, pfn, of)).collect();
            let whole = Frozen::collapse(parts).unwrap().share();
            assert_eq!(found(&engine, 0..1 << bits), vec![Ok(bits); 1 << bits], "order {bits} of {of}");
            engine.audit().unwrap();
            drop(whole);
            assert_eq!(engine.audit().unwrap().free_pages, 8);
            engine.folder(4).unwrap().fold_all();
            assert_eq!(engine.audit().unwrap().materialised, 0);
        });
    }
}

#[test]
fn a_collapsed_folio_is_found_at_every_page_in_the_flat_layout() {
    alone(|| {
        let engine = flat_machine();
        let parts = [0, 2].map(|pfn| frozen_at(&engine, pfn, 1)).into();
        let whole = Frozen::collapse(parts).unwrap().share();
        assert_eq!(found(&engine, 0..4), [Ok(2); 4]);
        assert_eq!(engine.class(Pfn(3)), (Class::Mapped, true));
        drop(whole);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// Old heads are no way to a reference, whatever a walker saw before.
#[test]
fn try_get_of_an_old_head_against_collapse() {
    explore(BOUND, || {
        let engine = machine();
        let raws = [0, 2].map(|pfn| folio_at(&engine, pfn, 1));
        let walker = beside(&engine, |engine| walk(engine, 2));
        let parts = raws.into_iter().map(|raw| freeze(take(&engine, raw))).collect();
        let whole = Frozen::collapse(parts).unwrap().share();
        let seen = walker.join().unwrap();
        assert!(is_one_of(seen, &[1, 2]), "{seen:?}");
        assert_eq!(found(&engine, 0..4), [Ok(2); 4]);
        drop(whole);
        engine.audit().unwrap();
    });
}

// ---- split ---------------------------------------------------------------------------------------------------------

#[test]
fn pieces_are_found_at_every_page() {
    for (bits, to) in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)] {
        for layout in [Layout::Folded, Layout::Flat] {
            alone(move || {
                let engine = machine();
                engine.set_layout(layout);
                let pieces = frozen_at(&engine, 0, bits).split(order(to)).unwrap();
                let pieces: Vec<_> = pieces.map(|piece| piece.share()).collect();
                assert_eq!(
                    found(&engine, 0..1 << bits),
                    vec![Ok(to); 1 << bits],
                    "{layout:?} {bits} to {to}"
                );
                assert!(pieces.iter().all(|piece| piece.refs() == 1));
                engine.audit().unwrap();
                drop(pieces);
                assert_eq!(engine.audit().unwrap().free_pages, 8);
                engine.folder(4).unwrap().fold_all();
                assert_eq!(engine.audit().unwrap().materialised, 0);
            });
        }
    }
}

/// Tails that were published as folded but kept their memory hold what was written there: none of it may speak again.
#[test]
fn what_stood_in_tails_that_kept_their_memory_is_gone_after_a_split() {
    for to in [0, 1] {
        alone(move || {
            let engine = flat_machine();
            let mut batch = engine.fold_batch(1).unwrap();
            batch.push(frozen_at(&engine, 0, 2)).unwrap();
            // Not committed: the memory stays, with the tails of the folio of order 2 in it.
            let folio = batch.drain().next().unwrap();
            assert_eq!(engine.class(Pfn(2)), (Class::Tail(order(2)), true));
            let pieces = folio.split(order(to)).unwrap();
            let pieces: Vec<_> = pieces.map(|piece| piece.share()).collect();
            assert_eq!(found(&engine, 0..4), [Ok(to); 4]);
            engine.audit().unwrap();
            drop(pieces);
            assert_eq!(engine.audit().unwrap().free_pages, 8);
        });
    }
}

/// The same of a folio that ends: its pages are used again one by one.
#[test]
fn what_stood_in_tails_that_kept_their_memory_is_gone_after_a_free() {
    explore(BOUND, || {
        let engine = flat_machine();
        let mut batch = engine.fold_batch(1).unwrap();
        batch.push(frozen_at(&engine, 0, 2)).unwrap();
        let folio = batch.drain().next().unwrap().share();
        let walker = beside(&engine, |engine| walk(engine, 3));
        drop(freeze(folio));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
        let page = frozen_at(&engine, 2, 0).share();
        let seen = walker.join().unwrap();
        assert!(is_one_of(seen, &[2]), "{seen:?}");
        assert_eq!(found(&engine, 2..4), [Ok(0), Err(Miss::Free)]);
        drop(page);
        engine.audit().unwrap();
    });
}

// ---- layouts -------------------------------------------------------------------------------------------------------

/// Written tails, in their head's map page and in another, while the folio goes and its memory too.
#[test]
fn try_get_of_written_tails_against_free_and_fold() {
    for asked in [1, 3] {
        explore(BOUND, move || {
            let engine = flat_machine();
            let raw = folio_at(&engine, 0, 2);
            let walker = beside(&engine, move |engine| walk(engine, asked));
            drop(take(&engine, raw));
            engine.folder(4).unwrap().fold_batch();
            let seen = walker.join().unwrap();
            assert!(is_one_of(seen, &[2]), "{seen:?}");
            // The walker may have been the last to let go.
            engine.folder(4).unwrap().fold_all();
            assert_eq!(engine.audit().unwrap().materialised, 0);
        });
    }
}

/// Written tails become folded ones: by a batch, in the head's map page and in the other.
#[test]
fn try_get_of_written_tails_against_folding_them() {
    for asked in [1, 3] {
        explore(BOUND, move || {
            let engine = flat_machine();
            let raw = folio_at(&engine, 0, 2);
            let walker = beside(&engine, move |engine| walk(engine, asked));
            let mut batch = engine.fold_batch(1).unwrap();
            batch.push(freeze(take(&engine, raw))).unwrap();
            assert_eq!(batch.commit().map_pages, 1);
            let folio = batch.drain().next().unwrap().share();
            let seen = walker.join().unwrap();
            assert!(is_one_of(seen, &[2]), "{seen:?}");
            assert_eq!(found(&engine, 0..4), [Ok(2); 4]);
            drop(folio);
            engine.audit().unwrap();
        });
    }
}

/// One lays out flat what another lays out folded, in the same section.
#[test]
#[cfg_attr(feature = "memdesc", ignore = "two owners who both take objects: does not end in minutes")]
fn both_layouts_side_by_side() {
    explore(BOUND, || {
        let engine = machine();
        let other = beside(&engine, |engine| {
            engine.set_layout(Layout::Flat);
            folio_at(engine, 4, 2)
        });
        let mine = engine.alloc_at(Pfn(0), order(2), Kind::Anon).unwrap().share();
        let theirs = other.join().unwrap();
        assert_eq!(found(&engine, 0..8), [Ok(2); 8]);
        engine.audit().unwrap();
        drop((mine, take(&engine, theirs)));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}
