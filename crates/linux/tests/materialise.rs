//! Making the descriptors of free memory while it is allocated, freed and folded.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{MIB, SetOnDrop, folded, map_pages_measured};
use pagefold_engine::{Kind, Order, Pfn};

#[test]
fn descriptors_of_free_memory_are_made_while_it_is_used() {
    let engine = folded(128 * MIB);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = SetOnDrop(&done);
        for seed in 0..2u64 {
            let (engine, done) = (&engine, &done);
            scope.spawn(move || {
                let mut step = seed;
                while !done.load(Ordering::Acquire) {
                    step = (step * 5 + 1) % 64;
                    // Busy is fine: whoever else has it gives it back.
                    if let Ok(page) = engine.alloc_at(Pfn(step), Order::ZERO, Kind::Anon) {
                        let page = page.share();
                        assert_eq!((page.pfn(), page.refs()), (Pfn(step), 1));
                    }
                }
            });
        }
        let mut folder = engine.folder(4).unwrap();
        for _ in 0..20_000 {
            engine.materialise_free(0..64).unwrap();
            folder.fold_batch();
        }
    });
    assert_eq!(engine.free_pages(), 128 * MIB);
    engine.audit().unwrap();
    map_pages_measured(&engine);
}

#[test]
fn memory_that_runs_out_on_the_way_is_told_of() {
    let engine = folded(128 * MIB);
    // Some areas were used before, some never were.
    drop(engine.alloc_at(Pfn(5), Order::ZERO, Kind::Anon).unwrap());
    let _kept = engine.alloc_at(Pfn(600), Order::ZERO, Kind::Anon).unwrap();
    engine.folder(64).unwrap().fold_all();
    let budget = engine.platform().budget();
    for spare in 0.. {
        budget.set_limit(budget.used() + spare);
        let before = engine.materialised_map_pages();
        let done = engine.materialise_free(0..8192);
        engine.audit().unwrap();
        assert_eq!(engine.free_pages(), 128 * MIB - 1);
        if done.is_ok() {
            break;
        }
        assert!(engine.materialised_map_pages() >= before);
        assert!(spare < 200, "128 map pages and a few tables");
    }
    assert_eq!(map_pages_measured(&engine), 8192 / common::DESCRIBED);
}
