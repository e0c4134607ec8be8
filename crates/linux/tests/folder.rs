//! What folders of free memory promise.

mod common;

use common::{folded, map_pages_measured, order};
use pagefold_engine::geometry::PAGES_PER_SECTION;
use pagefold_engine::{Kind, Pfn};

#[test]
fn fold_all_looks_at_every_section_whatever_it_met_before() {
    let engine = folded(3 * PAGES_PER_SECTION);
    let page = |section| engine.alloc_at(Pfn(section * PAGES_PER_SECTION), order(0), Kind::Anon).unwrap();
    drop(page(0));
    engine.folder(64).unwrap().fold_all();
    drop(page(1));
    assert_eq!(map_pages_measured(&engine), 1);
    // Its folder is sent to section 0 first: all of it is free, as many areas as a batch has room for, and nothing of it
    // is materialised.
    drop(engine.isolate(0..512).unwrap());
    let report = engine.folder(64).unwrap().fold_all();
    assert_eq!((report.map_pages, map_pages_measured(&engine)), (1, 0));
    engine.audit().unwrap();
}
