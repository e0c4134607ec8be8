//! Broken pages: recorded while somebody allocates, frees or folds, they are never handed out, and a folio that has one
//! stays as it is.

mod common;

use common::{ModelEngine, alone, beside, empty, explore, folio_at, freeze, frozen_at, machine, order, take};
use loom::sync::Arc;
use loom::thread::JoinHandle;
use pagefold_model::hotplug::{BlockId, Group, HotplugConfig, OnlineTo};
use pagefold_model::protocol::Fold;
use pagefold_model::{IsolateError, Kind, Pfn, Poisoned};

/// Records on a thread of its own that `pfn` is broken.
fn poisoner(engine: &Arc<ModelEngine>, pfn: u64) -> JoinHandle<()> {
    beside(engine, move |engine| engine.walker().unwrap().poison(Pfn(pfn)).map(drop).unwrap())
}

/// So many pages are kept back, and so many are free.
fn are_kept_back(engine: &ModelEngine, withheld: u64, free: u64) {
    let audit = engine.audit().unwrap();
    assert_eq!((audit.withheld_pages, audit.free_pages), (withheld, free));
}

/// The page is broken and in use, alone in its map page, while the folder searches.
#[test]
fn a_broken_page_in_use_keeps_its_descriptor() {
    explore(2, || {
        let engine = machine();
        let folio = folio_at(&engine, 2, 0);
        drop(engine.alloc_at(Pfn(3), order(0), Kind::Anon).unwrap());
        let poisoner = beside(&engine, |engine| {
            assert_eq!(engine.walker().unwrap().poison(Pfn(2)), Ok(Poisoned::InUse));
        });
        engine.folder(4).unwrap().fold_batch();
        poisoner.join().unwrap();
        engine.folder(4).unwrap().fold_all();
        let folio = take(&engine, folio);
        assert_eq!((folio.pfn(), folio.refs()), (Pfn(2), 1));
        engine.audit().unwrap();
        drop(folio);
        assert_eq!(engine.audit().unwrap().withheld_pages, 1);
        engine.folder(4).unwrap().fold_all();
        assert_eq!(engine.materialised_map_pages(), 0);
        engine.audit().unwrap();
    });
}

/// Whoever comes first: the page is never handed out once it is known, and is either withheld or somebody's.
#[test]
fn poison_against_allocation() {
    explore(3, || {
        let engine = machine();
        // Only page 2 is free.
        let _kept = [folio_at(&engine, 0, 1), folio_at(&engine, 3, 0), folio_at(&engine, 4, 2)];
        let poisoner = beside(&engine, |engine| engine.walker().unwrap().poison(Pfn(2)).unwrap());
        let mine = engine.alloc(order(0), Kind::Anon);
        let known = engine.is_poisoned(Pfn(2));
        let poisoned = poisoner.join().unwrap();
        match &mine {
            Ok(mine) => assert_eq!((mine.pfn(), poisoned), (Pfn(2), Poisoned::InUse)),
            Err(_) => assert!(known),
        }
        engine.audit().unwrap();
        drop(mine);
        // Now or at the next attempt, it is kept back.
        assert!(engine.alloc(order(0), Kind::Anon).is_err());
        are_kept_back(&engine, 1, 0);
    });
}

/// The last put of a broken folio, and its poison, and the folder.
#[test]
fn poison_against_freeing_and_folding() {
    explore(1, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        let poisoner = poisoner(&engine, 2);
        engine.folder(1).unwrap().fold_batch();
        freer.join().unwrap();
        poisoner.join().unwrap();
        engine.audit().unwrap();
        assert!(engine.alloc_at(Pfn(2), order(0), Kind::Anon).is_err());
        assert_eq!(engine.audit().unwrap().withheld_pages, 1);
        engine.folder(4).unwrap().fold_all();
        assert_eq!(engine.materialised_map_pages(), 0);
    });
}

/// Poison is recorded while the page's map page is being unfolded: the mark is put back, or set, or comes later; nothing
/// is written where no memory is.
///
/// Two forced switches: one of the poisoner between its record and its mark, one of the owner.
#[test]
fn poison_against_unfolding() {
    explore(2, || {
        let engine = machine();
        let poisoner = poisoner(&engine, 3);
        let mine = engine.alloc_at(Pfn(2), order(0), Kind::Anon).unwrap().share();
        poisoner.join().unwrap();
        assert_eq!(mine.refs(), 1);
        assert!(engine.alloc_at(Pfn(3), order(0), Kind::Anon).is_err());
        drop(mine);
        assert_eq!(engine.audit().unwrap().withheld_pages, 1);
    });
}

/// A broken tail of a folio that is frozen, unfolded, and freed.
#[test]
fn poison_against_unfolding_a_folio_and_its_end() {
    explore(2, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 2);
        let poisoner = poisoner(&engine, 3);
        let mut frozen = freeze(take(&engine, raw));
        frozen.unfold().unwrap();
        drop(frozen);
        poisoner.join().unwrap();
        assert!(engine.alloc_at(Pfn(3), order(0), Kind::Anon).is_err());
        are_kept_back(&engine, 1, 7);
    });
}

/// The mark in a descriptor is a copy, and whoever makes the descriptor anew makes it again.
#[test]
fn the_mark_is_put_back_when_a_broken_page_is_unfolded() {
    alone(|| {
        let engine = machine();
        let mut folio = frozen_at(&engine, 0, 2);
        let walker = engine.walker().unwrap();
        let is_marked = |pfn| walker.peek(Pfn(pfn)).unwrap().state.is_poison_marked();
        assert_eq!(walker.poison(Pfn(3)), Ok(Poisoned::InUse));
        assert_eq!(walker.poison(Pfn(3)), Ok(Poisoned::Known));
        folio.unfold().unwrap();
        assert!(is_marked(3) && !is_marked(2), "as a written tail");
        // Its pages are withheld or free, its map pages folded, and one of them used again.
        drop(folio);
        engine.folder(4).unwrap().fold_all();
        assert_eq!(engine.audit().unwrap().materialised, 0);
        let neighbour = frozen_at(&engine, 2, 0);
        assert!(is_marked(3) && !is_marked(2), "beside a page in use");
        drop(neighbour);
        engine.audit().unwrap();
    });
}

/// In the window after a broken page was freed and before it is withheld, an allocation that asks for it finds the poison
/// itself.
#[test]
fn a_broken_page_is_not_handed_out_between_its_free_and_its_withholding() {
    explore(2, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        engine.walker().unwrap().poison(Pfn(2)).unwrap();
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        assert!(engine.alloc_at(Pfn(2), order(0), Kind::Anon).is_err());
        freer.join().unwrap();
        are_kept_back(&engine, 1, 7);
    });
}

/// The same, for an allocation of any page: the broken one is the only one in the area that this CPU works in.
#[test]
fn an_allocation_does_not_find_a_broken_page_between_its_free_and_its_withholding() {
    explore(2, || {
        let engine = machine();
        let mut kept = [(); 4].map(|()| Some(engine.alloc(order(0), Kind::Anon).unwrap()));
        let broken = kept[3].take().unwrap().share();
        let pfn = broken.pfn();
        let raw = broken.into_raw();
        engine.walker().unwrap().poison(pfn).unwrap();
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        let found = engine.alloc(order(0), Kind::Anon).unwrap();
        assert_ne!(found.pfn(), pfn);
        freer.join().unwrap();
        drop((found, kept));
        are_kept_back(&engine, 1, 7);
    });
}

/// A page breaks while it is freed: one of the two keeps it back, and nobody else has to come by. Of a row, and of a lane.
#[test]
fn poison_against_freeing() {
    for bits in [0, 2] {
        explore(1, move || {
            let engine = machine();
            // A mark that is there already tells nothing of the room for the next one.
            assert_eq!(engine.walker().unwrap().poison(Pfn(7)), Ok(Poisoned::Withheld));
            let raw = folio_at(&engine, 0, bits);
            let freer = beside(&engine, move |engine| drop(take(engine, raw)));
            assert!(engine.walker().unwrap().poison(Pfn(0)).is_ok());
            freer.join().unwrap();
            are_kept_back(&engine, 2, 6);
        });
    }
}

/// The same of a page that a folder has while it folds, an isolation until its end, and memory that comes online.
#[test]
fn poison_against_a_folder() {
    explore(1, || {
        let engine = machine();
        drop(take(&engine, folio_at(&engine, 2, 0)));
        let folder = beside(&engine, |engine| _ = engine.folder(1).unwrap().fold_batch());
        assert!(engine.walker().unwrap().poison(Pfn(2)).is_ok());
        folder.join().unwrap();
        assert_eq!(engine.audit().unwrap().withheld_pages, 1);
    });
}

#[test]
fn poison_against_the_end_of_an_isolation() {
    // All of the range is free when the isolation begins, or one page of it is in use until it ends.
    for in_use in [None, Some(3)] {
        explore(1, move || {
            let engine = machine();
            let folio = in_use.map(|pfn| frozen_at(&engine, pfn, 0));
            let isolated = engine.isolate(0..4).unwrap();
            let poisoner = poisoner(&engine, 0);
            drop((folio, isolated));
            poisoner.join().unwrap();
            are_kept_back(&engine, 1, 7);
        });
    }
}

#[test]
fn poison_against_memory_that_comes_online() {
    explore(2, || {
        let engine = Arc::new(empty::<Fold>());
        let mut hotplug =
            engine.hotplug(HotplugConfig { block_pages: 8, ..HotplugConfig::default() }).unwrap();
        hotplug.add(0..8, 0, Group::NONE).unwrap();
        let poisoner = poisoner(&engine, 2);
        hotplug.online(BlockId(0), OnlineTo::Policy).unwrap();
        poisoner.join().unwrap();
        are_kept_back(&engine, 1, 7);
    });
}

/// A page is found broken while an isolation has it that comes to nothing: the second half of its range is isolated already.
/// What the isolation gives back is looked at again.
#[test]
fn poison_against_an_isolation_that_fails() {
    explore(1, || {
        let engine = machine();
        let isolated = engine.isolate(4..8).unwrap();
        let poisoner = poisoner(&engine, 2);
        assert_eq!(engine.isolate(0..8).map(drop), Err(IsolateError::Isolated));
        poisoner.join().unwrap();
        drop(isolated);
        are_kept_back(&engine, 1, 7);
    });
}

/// Two who find different pages of one map page broken: room for the marks is made once or twice.
#[test]
fn two_record_poison_in_one_map_page() {
    explore(2, || {
        let engine = machine();
        let other = beside(&engine, |engine| engine.walker().unwrap().poison(Pfn(2)).unwrap());
        assert_eq!(engine.walker().unwrap().poison(Pfn(3)), Ok(Poisoned::Withheld));
        assert_eq!(other.join().unwrap(), Poisoned::Withheld);
        let audit = engine.audit().unwrap();
        assert_eq!((audit.withheld_pages, audit.free_pages, engine.poisoned_pages()), (2, 6, 2));
    });
}

/// Two who find the same page broken: one is told that it is known.
#[test]
fn two_record_the_same_poison() {
    explore(3, || {
        let engine = machine();
        let other = beside(&engine, |engine| engine.walker().unwrap().poison(Pfn(2)).unwrap());
        let told = [engine.walker().unwrap().poison(Pfn(2)).unwrap(), other.join().unwrap()];
        assert!(told.contains(&Poisoned::Known) && told.contains(&Poisoned::Withheld), "{told:?}");
        assert_eq!((engine.audit().unwrap().withheld_pages, engine.poisoned_pages()), (1, 1));
    });
}
