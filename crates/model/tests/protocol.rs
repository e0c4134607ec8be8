//! Walkers against everything an owner does to pages, over the engine's real code.
//!
//! What is wrong ends the model: a write to a folded descriptor ("stray write", see the engine's `sync` module), under
//! the right protocol a read of one too ("stray read"), an access that nothing orders ("Causality violation"), a folio that
//! does not contain the page asked for, a refcount or an audit that does not come out.
//!
//! Three forced switches reach every state that one remap has for one look. `MODEL_PREEMPTIONS=4` asks for a fourth, which
//! takes minutes.
//!
//! Walkers of memdesc write to no map page, so that its memory can go early without a stray write; `objects` has the test of what
//! they do write to.

mod common;

use common::{ModelEngine, beside, explore, folio_at, freeze, machine_under, order, take, walk};
use loom::sync::Arc;
use pagefold_model::protocol::{Fold, NoGracePeriod, Protocol, RefcountFirst, WritableTails};
use pagefold_model::{Frozen, Kind, Miss, Pfn};

/// Spawns a walker, runs `owner` beside it, and audits what is left.
fn beside_a_walker<R: Protocol>(
    engine: Arc<ModelEngine<R>>,
    pfn: u64,
    owner: impl FnOnce(&ModelEngine<R>),
) -> Result<u32, Miss> {
    let walker = beside(&engine, move |engine| walk(engine, pfn));
    owner(&engine);
    let found = walker.join().unwrap();
    engine.audit().unwrap();
    found
}

// ---- free and fold -------------------------------------------------------------------------------------------------

/// A walker holds a stale page number; its folio is freed, the free memory folded, and used again.
fn fold_free_memory_and_reuse<R: Protocol>() {
    let engine = machine_under::<R>();
    let raw = folio_at(&engine, 2, 0);
    let found = beside_a_walker(engine, 2, |engine| {
        drop(take(engine, raw));
        engine.folder(1).unwrap().fold_batch();
        let reused = engine.alloc_at(Pfn(0), order(2), Kind::File);
        if let Ok(frozen) = reused {
            drop(frozen.share());
        }
    });
    assert!(matches!(found, Ok(0 | 2) | Err(Miss::Free | Miss::Frozen)), "{found:?}");
}

#[test]
fn try_get_against_free_fold_and_reuse() {
    explore(3, fold_free_memory_and_reuse::<Fold>);
}

#[test]
fn try_get_against_free_fold_and_reuse_refcount_first() {
    explore(3, fold_free_memory_and_reuse::<RefcountFirst>);
}

#[test]
#[cfg_attr(feature = "memdesc", ignore = "walkers write to objects alone: see `objects`")]
#[should_panic(expected = "stray write")]
fn without_a_grace_period_the_harness_finds_the_stray_write() {
    explore(3, fold_free_memory_and_reuse::<NoGracePeriod>);
}

#[test]
#[cfg_attr(feature = "memdesc", ignore = "walkers write to objects alone: see `objects`")]
#[should_panic(expected = "stray write")]
fn writable_tails_only_hide_the_stray_write() {
    explore(3, fold_free_memory_and_reuse::<WritableTails>);
}

// ---- fold of tails -------------------------------------------------------------------------------------------------

/// The page was a small folio; then it became a tail of a huge one (as HVO finds it), whose tails are folded.
fn fold_tails_over_a_former_folio<R: Protocol>() {
    let engine = machine_under::<R>();
    let raw = folio_at(&engine, 2, 0);
    let found = beside_a_walker(engine, 2, |engine| {
        drop(freeze(take(engine, raw)));
        let huge = engine.alloc_at(Pfn(0), order(2), Kind::Hugetlb).unwrap();
        let mut batch = engine.fold_batch(1).unwrap();
        batch.push(huge).unwrap();
        assert_eq!(batch.commit().map_pages, 1);
        let folio = batch.drain().next().unwrap().share();
        drop(freeze(folio));
    });
    assert!(matches!(found, Ok(0 | 2) | Err(Miss::Free | Miss::Frozen)), "{found:?}");
}

#[test]
fn try_get_against_folding_tails() {
    explore(3, fold_tails_over_a_former_folio::<Fold>);
}

#[test]
fn try_get_against_folding_tails_refcount_first() {
    explore(3, fold_tails_over_a_former_folio::<RefcountFirst>);
}

#[test]
#[cfg_attr(feature = "memdesc", ignore = "walkers write to objects alone: see `objects`")]
#[should_panic(expected = "stray write")]
fn folding_tails_without_a_grace_period_is_found() {
    explore(3, fold_tails_over_a_former_folio::<NoGracePeriod>);
}

#[test]
#[cfg_attr(feature = "memdesc", ignore = "walkers write to objects alone: see `objects`")]
#[should_panic(expected = "stray write")]
fn folding_writable_tails_is_found() {
    explore(3, fold_tails_over_a_former_folio::<WritableTails>);
}

// ---- unfold --------------------------------------------------------------------------------------------------------

#[test]
fn try_get_against_unfold_and_fold_again() {
    explore(3, || {
        let engine = machine_under::<Fold>();
        let raw = folio_at(&engine, 0, 2);
        let found = beside_a_walker(engine, 3, |engine| {
            let mut frozen = freeze(take(engine, raw));
            frozen.unfold().unwrap();
            let folio = frozen.share();
            let mut batch = engine.fold_batch(1).unwrap();
            batch.push(freeze(folio)).unwrap();
            batch.commit();
            drop(batch);
        });
        assert!(matches!(found, Ok(2) | Err(Miss::Free | Miss::Frozen)), "{found:?}");
    });
}

/// As before, but the head's map page is folded as well: a tail that was written in another map page must not lead there.
#[test]
fn try_get_against_folding_all_of_an_unfolded_folio() {
    explore(2, || {
        let engine = machine_under::<Fold>();
        let raw = folio_at(&engine, 0, 2);
        let found = beside_a_walker(engine, 3, |engine| {
            let mut frozen = freeze(take(engine, raw));
            frozen.unfold().unwrap();
            drop(frozen.share());
            engine.folder(4).unwrap().fold_batch();
        });
        assert!(matches!(found, Ok(2) | Err(Miss::Free | Miss::Frozen)), "{found:?}");
    });
}

/// One who only looks, at a tail, while the folio goes and all of it is folded.
#[test]
fn peek_against_unfold_free_and_fold() {
    explore(3, || {
        let engine = machine_under::<Fold>();
        let raw = folio_at(&engine, 0, 2);
        let looker = beside(&engine, |engine| {
            let peek = engine.walker().unwrap().peek(Pfn(3)).unwrap();
            assert!(peek.head.is_none_or(|(head, state)| state.covers(head, Pfn(3))), "{peek:?}");
        });
        let mut frozen = freeze(take(&engine, raw));
        frozen.unfold().unwrap();
        drop(frozen);
        engine.folder(4).unwrap().fold_batch();
        looker.join().unwrap();
        engine.audit().unwrap();
    });
}

#[test]
fn a_folio_that_nobody_touches_is_always_found() {
    explore(3, || {
        let engine = machine_under::<Fold>();
        let kept = folio_at(&engine, 0, 2);
        // Its neighbours come, go, fold and unfold; it stays where it is.
        let found = beside_a_walker(Arc::clone(&engine), 3, |engine| {
            drop(engine.alloc_at(Pfn(4), order(0), Kind::Anon).unwrap().share());
            engine.folder(2).unwrap().fold_batch();
            drop(engine.alloc_at(Pfn(4), order(2), Kind::Anon).unwrap().share());
        });
        assert_eq!(found, Ok(2));
        drop(take(&engine, kept));
    });
}

#[test]
#[cfg_attr(feature = "memdesc", ignore = "two owners who both take objects: does not end in minutes")]
fn two_owners_unfold_one_map_page() {
    // One: a second forced switch takes minutes.
    explore(1, || {
        let engine = machine_under::<Fold>();
        let other = beside(&engine, |engine| {
            drop(engine.alloc_at(Pfn(0), order(0), Kind::Anon).unwrap().share());
        });
        let mine = engine.alloc_at(Pfn(1), order(0), Kind::Anon).unwrap().share();
        assert_eq!(walk(&engine, 1), Ok(0));
        drop(mine);
        other.join().unwrap();
        assert_eq!(engine.audit().unwrap().materialised, 1);
    });
}

// ---- two folders ---------------------------------------------------------------------------------------------------

#[test]
fn two_folders_fold_each_map_page_once() {
    // Objects are folded too, which takes more steps.
    explore(if cfg!(feature = "memdesc") { 2 } else { 3 }, || {
        let engine = machine_under::<Fold>();
        let raws = [folio_at(&engine, 1, 0), folio_at(&engine, 6, 0)];
        raws.into_iter().for_each(|raw| drop(take(&engine, raw)));
        let other = beside(&engine, |engine| engine.folder(1).unwrap().fold_batch().map_pages);
        let mine = engine.folder(1).unwrap().fold_batch().map_pages;
        let folded = mine + other.join().unwrap();
        assert!(folded <= 2);
        let left = engine.folder(4).unwrap().fold_all().map_pages;
        assert_eq!(folded + left, 2);
        let audit = engine.audit().unwrap();
        assert_eq!((audit.materialised, audit.free_pages), (0, 8));
    });
}

#[test]
fn a_folder_against_an_allocation_in_its_map_page() {
    explore(2, || {
        let engine = machine_under::<Fold>();
        drop(take(&engine, folio_at(&engine, 2, 0)));
        let folder = beside(&engine, |engine| {
            engine.folder(1).unwrap().fold_batch();
        });
        // Either the folder has the page, or this allocation does.
        let mine = engine.alloc_at(Pfn(2), order(0), Kind::Anon).map(|frozen| frozen.share());
        if let Ok(mine) = &mine {
            assert_eq!(walk(&engine, 2), Ok(0));
            assert_eq!(mine.refs(), 1);
        }
        folder.join().unwrap();
        drop(mine);
        engine.audit().unwrap();
    });
}

// ---- split and collapse --------------------------------------------------------------------------------------------

fn split_and_share(bits: u32, to: u32, asked: u64) {
    let engine = machine_under::<Fold>();
    let raw = folio_at(&engine, 0, bits);
    let found = beside_a_walker(engine, asked, |engine| {
        let pieces = freeze(take(engine, raw)).split(order(to)).unwrap();
        let folios: Vec<_> = pieces.map(|piece| piece.share()).collect();
        drop(folios);
    });
    let orders =
        found.map_or_else(|miss| matches!(miss, Miss::Free | Miss::Frozen), |o| o == bits || o == to);
    assert!(orders, "{found:?}");
}

#[test]
fn try_get_against_split_of_a_folded_folio() {
    explore(3, || split_and_share(2, 0, 3));
}

#[test]
fn try_get_against_split_within_a_map_page() {
    explore(2, || split_and_share(1, 0, 1));
}

#[test]
fn try_get_against_split_into_folded_pieces() {
    explore(3, || split_and_share(3, 2, 7));
}

#[test]
fn try_get_against_collapse() {
    explore(2, || {
        let engine = machine_under::<Fold>();
        let raws: Vec<_> = (0..4).map(|pfn| folio_at(&engine, pfn, 0)).collect();
        let found = beside_a_walker(engine, 2, |engine| {
            let pieces = raws.into_iter().map(|raw| freeze(take(engine, raw))).collect();
            let whole = Frozen::collapse(pieces).unwrap();
            let mut batch = engine.fold_batch(1).unwrap();
            batch.push(whole).unwrap();
            batch.commit();
            drop(batch.drain().next().unwrap().share());
        });
        assert!(matches!(found, Ok(0 | 2) | Err(Miss::Free | Miss::Frozen)), "{found:?}");
    });
}

// ---- references ----------------------------------------------------------------------------------------------------

#[test]
fn the_last_of_two_puts_frees_once() {
    explore(3, || {
        let engine = machine_under::<Fold>();
        let raw = folio_at(&engine, 4, 1);
        let found = beside_a_walker(engine, 5, |engine| drop(take(engine, raw)));
        assert!(matches!(found, Ok(1) | Err(Miss::Free | Miss::Frozen)), "{found:?}");
    });
}

#[test]
fn freeze_and_try_get_exclude_each_other() {
    explore(3, || {
        let engine = machine_under::<Fold>();
        let raw = folio_at(&engine, 4, 0);
        let found = beside_a_walker(engine, 4, |engine| {
            if let Ok(mut frozen) = take(engine, raw).freeze() {
                // Nobody can be on it: changing it in place is safe.
                frozen.set_kind(Kind::File);
                assert_eq!(frozen.kind(), Kind::File);
            }
        });
        assert!(matches!(found, Ok(0) | Err(Miss::Free | Miss::Frozen)), "{found:?}");
    });
}
