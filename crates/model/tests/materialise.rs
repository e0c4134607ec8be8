//! A flat map is made of free memory while others allocate, free and fold it.

mod common;

use common::{beside, explore, folio_at, machine, order};
use pagefold_model::{Kind, Pfn};

#[test]
fn materialise_free_against_allocation_and_free() {
    explore(2, || {
        let engine = machine();
        // Its area is one of small pages.
        let kept = folio_at(&engine, 0, 0);
        let other = beside(&engine, move |engine| {
            if let Ok(page) = engine.alloc_at(Pfn(2), order(0), Kind::Anon) {
                let page = page.share();
                assert_eq!((page.pfn(), page.refs()), (Pfn(2), 1));
            }
        });
        engine.materialise_free(2..4).unwrap();
        other.join().unwrap();
        assert_eq!(engine.free_pages(), 7);
        engine.audit().unwrap();
        let _ = kept;
    });
}

#[test]
fn materialise_free_of_whole_areas_against_allocation() {
    explore(2, || {
        let engine = machine();
        let other = beside(&engine, |engine| {
            drop(engine.alloc_at(Pfn(2), order(0), Kind::Anon).map(|page| page.share()))
        });
        engine.materialise_free(0..4).unwrap();
        other.join().unwrap();
        assert_eq!(engine.free_pages(), 8);
        engine.audit().unwrap();
    });
}

#[test]
fn materialise_free_against_the_folder() {
    explore(2, || {
        let engine = machine();
        let kept = folio_at(&engine, 0, 0);
        drop(engine.alloc_at(Pfn(2), order(0), Kind::Anon).unwrap());
        let other = beside(&engine, |engine| engine.folder(1).unwrap().fold_batch());
        engine.materialise_free(2..4).unwrap();
        other.join().unwrap();
        assert_eq!(engine.free_pages(), 7);
        engine.audit().unwrap();
        let _ = kept;
    });
}
