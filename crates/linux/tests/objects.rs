//! What is particular to descriptors that are objects.

mod common;

use common::{MIB, MachineOf, machine_of, measured, order};
use pagefold_engine::{Config, Engine, Kind, Layout, Memdesc, Order, Pfn, ReshapeError};
use pagefold_linux::{Linux, Membarrier};

type Machine = MachineOf<Memdesc>;

/// Objects of 64 bytes in a group, and pages of memory of a group.
const GROUP: u64 = 256;
const GROUP_PAGES: u64 = 4;

fn machine(pages: u64) -> Machine {
    machine_of(pages)
}

/// Pages of memory behind those tables that fold, as the system has them.
fn folding(engine: &Machine) -> u64 {
    let tables = engine.tables().filter(|(kind, _)| kind.folds());
    tables.map(|(_, table)| table.measured_pages().unwrap()).sum()
}

#[test]
fn a_folio_of_2_mib_has_an_object_and_no_words() {
    let engine = machine(1024 * MIB);
    let folios: Vec<_> = (0..512).map(|_| engine.alloc(order(9), Kind::Anon).unwrap().share()).collect();
    assert_eq!((engine.objects(), engine.materialised_map_pages()), (Some(512), 0));
    let walker = engine.walker().unwrap();
    for folio in &folios {
        let found = walker.try_get(folio.pfn().plus(511)).unwrap();
        assert_eq!((found.pfn(), found.refs()), (folio.pfn(), 2));
    }
    assert_eq!(engine.audit().unwrap().folios, 512);
    drop(folios);
    assert_eq!(engine.objects(), Some(0));
}

#[test]
fn an_emptied_machine_gives_all_its_objects_back() {
    let engine = machine(256 * MIB);
    // The allocators' own tables stay as large as they were.
    drop((0..40_000).map(|_| engine.alloc(Order::ZERO, Kind::File).unwrap()).collect::<Vec<_>>());
    engine.folder(64).unwrap().fold_all();
    let before = measured(&engine);
    let small: Vec<_> = (0..40_000).map(|_| engine.alloc(Order::ZERO, Kind::File).unwrap()).collect();
    let words = engine.materialised_map_pages();
    let groups = 40_000_u64.div_ceil(GROUP);
    assert!(measured(&engine) >= before + words + groups * GROUP_PAGES);
    drop(small);
    let report = engine.folder(64).unwrap().fold_all();
    assert_eq!(report.map_pages, words);
    assert!(report.object_pages >= groups * GROUP_PAGES, "{report:?}");
    assert_eq!((measured(&engine), engine.objects()), (before, Some(0)));
    engine.audit().unwrap();
}

#[test]
fn an_object_in_another_cpus_slot_is_found() {
    let engine = machine(64 * MIB);
    // Every object that has memory is in use, but for one that was another thread's, where it stays at hand.
    let _folios: Vec<_> = (0..GROUP).map(|_| engine.alloc(Order::ZERO, Kind::File).unwrap()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(engine.alloc(Order::ZERO, Kind::File).unwrap()));
    });
    engine.platform().budget().refuse_all();
    let last = engine.alloc(Order::ZERO, Kind::File).unwrap();
    assert_eq!(engine.objects(), Some(GROUP + 1));
    engine.alloc(Order::ZERO, Kind::File).unwrap_err();
    drop(last);
    engine.audit().unwrap();
}

#[test]
fn one_object_keeps_its_group_and_no_other() {
    let engine = machine(64 * MIB);
    let mut small: Vec<_> = (0..4096).map(|_| engine.alloc(Order::ZERO, Kind::File).unwrap()).collect();
    let kept = small.swap_remove(1000).share();
    drop(small);
    let report = engine.folder(64).unwrap().fold_all();
    assert_eq!(report.object_pages, (4096 / GROUP - 1) * GROUP_PAGES);
    let walker = engine.walker().unwrap();
    assert_eq!(walker.try_get(kept.pfn()).unwrap().pfn(), kept.pfn());
    engine.audit().unwrap();
}

#[test]
fn a_split_that_runs_out_of_objects_changes_nothing() {
    let engine = machine(64 * MIB);
    let whole = engine.alloc_at(Pfn(512), order(9), Kind::Anon).unwrap();
    let budget = engine.platform().budget();
    let (used, pages) = (budget.used(), folding(&engine));
    // 511 more objects and a map page of words are needed: at every limit below that the folio stays as it was.
    let mut whole = whole;
    for limit in 0.. {
        budget.set_limit(used + limit);
        match whole.split(Order::ZERO) {
            Err((same, ReshapeError::OutOfMemory)) => {
                assert_eq!((engine.objects(), engine.materialised_map_pages()), (Some(1), 0));
                let folio = same.share();
                let walker = engine.walker().unwrap();
                assert_eq!(walker.try_get(Pfn(1000)).unwrap().pfn(), Pfn(512));
                engine.audit().unwrap();
                engine.folder(8).unwrap().fold_all();
                assert_eq!(folding(&engine), pages);
                whole = folio.freeze().unwrap();
            }
            Err((_, error)) => panic!("{error}"),
            Ok(pieces) => {
                assert!(limit > GROUP_PAGES, "{limit}");
                assert_eq!((pieces.len(), engine.objects()), (512, Some(512)));
                break;
            }
        }
    }
    engine.audit().unwrap();
    assert_eq!(engine.objects(), Some(0));
}

#[test]
fn words_are_written_flat_and_folded_again() {
    let engine = machine(64 * MIB);
    engine.set_layout(Layout::Flat);
    let folio = engine.alloc(order(10), Kind::Hugetlb).unwrap();
    assert_eq!((engine.materialised_map_pages(), engine.objects()), (2, Some(1)));
    engine.set_layout(Layout::Folded);
    let mut batch = engine.fold_batch(1).unwrap();
    batch.push(folio).unwrap();
    assert_eq!(batch.commit().map_pages, 2);
    let folio = batch.drain().next().unwrap().share();
    assert_eq!(engine.walker().unwrap().try_get(folio.pfn().plus(1023)).unwrap().pfn(), folio.pfn());
    engine.audit().unwrap();
}

#[test]
fn memory_of_one_map_page_comes_in_parts() {
    let host = Linux::new(Membarrier::register().unwrap()).unwrap();
    let mut engine: Machine = Engine::new(host, Config::new(64 * MIB)).unwrap();
    engine.online(1..159).unwrap();
    engine.online(256..600).unwrap();
    engine.online(600..64 * MIB).unwrap();
    assert!(engine.online(158..256).is_err());
    engine.online(159..256).unwrap();
    assert_eq!(engine.free_pages(), 64 * MIB - 1);
    let all: Vec<_> = std::iter::from_fn(|| engine.alloc(Order::ZERO, Kind::File).ok()).collect();
    assert_eq!(all.len() as u64, 64 * MIB - 1);
    drop(all);
    engine.folder(64).unwrap().fold_all();
    assert_eq!((engine.audit().unwrap().holes, engine.materialised_map_pages()), (1, 0));
}
