//! Broken pages: recorded while somebody allocates, frees or folds, they are never handed out, and a folio that has one
//! stays as it is.

mod common;

use common::{ModelEngine, explore, folio_at, machine, order};
use loom::sync::Arc;
use loom::thread;
use pagefold_model::protocol::Fold;
use pagefold_model::{Folio, Kind, Pfn, Poisoned, RawFolio};

fn take(engine: &ModelEngine<Fold>, raw: RawFolio) -> Folio<'_, common::Model<Fold>, Fold> {
    // SAFETY: every raw folio of these tests is taken up once.
    unsafe { engine.from_raw(raw) }
}

/// The page is broken and in use, alone in its map page, while the folder searches.
#[test]
fn a_broken_page_in_use_keeps_its_descriptor() {
    explore(2, || {
        let engine = machine::<Fold>();
        let folio = folio_at(&engine, 2, 0);
        drop(engine.alloc_at(Pfn(3), order(0), Kind::Anon).unwrap());
        let poisoner = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || {
                assert_eq!(engine.walker().unwrap().poison(Pfn(2)), Ok(Poisoned::InUse));
            })
        };
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
        let engine = machine::<Fold>();
        // Only page 2 is free.
        let _kept = [folio_at(&engine, 0, 1), folio_at(&engine, 3, 0), folio_at(&engine, 4, 2)];
        let poisoner = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.walker().unwrap().poison(Pfn(2)).unwrap())
        };
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
        let audit = engine.audit().unwrap();
        assert_eq!((audit.withheld_pages, audit.free_pages), (1, 0));
    });
}

/// The last put of a broken folio, and its poison, and the folder.
#[test]
fn poison_against_freeing_and_folding() {
    explore(1, || {
        let engine = machine::<Fold>();
        let raw = folio_at(&engine, 2, 0);
        let freer = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || drop(take(&engine, raw)))
        };
        let poisoner = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.walker().unwrap().poison(Pfn(2)).map(|_| ()).unwrap())
        };
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
