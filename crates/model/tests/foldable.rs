//! What is free is found by the next folder, whatever another folder looked at while the pages were given back: the hint
//! that a section has something to fold is never set before there is.

mod common;

use common::{Model, ModelEngine, beside, empty, explore, folio_at, machine, order, take, use_at};
use loom::sync::Arc;
use pagefold_model::hotplug::{BlockId, FakeOffline, Group, Hotplug, HotplugConfig, OnlineTo, Unmovable};
use pagefold_model::protocol::Fold;
use pagefold_model::{IsolateError, Kind};

const BLOCK: BlockId = BlockId(0);

/// One block of eight pages, offline, in a machine whose fake-offline pages keep their descriptors.
fn hotplug(engine: &ModelEngine) -> Hotplug<'_, Model<Fold>> {
    let fake_offline = FakeOffline::Classic { rcu: true };
    let config = HotplugConfig { block_pages: 8, fake_offline, passes: 1, ..HotplugConfig::default() };
    let mut hotplug = engine.hotplug(config).unwrap();
    hotplug.add(0..8, 0, Group::NONE).unwrap();
    hotplug
}

fn online(hotplug: &mut Hotplug<'_, Model<Fold>>) {
    hotplug.online(BLOCK, OnlineTo::Policy).unwrap();
}

fn fold_a_batch(engine: &ModelEngine) {
    engine.folder(4).unwrap().fold_batch();
}

/// All pages are free and nobody folds: a folder finds all there is.
fn all_folds(engine: &ModelEngine) {
    engine.folder(4).unwrap().fold_all();
    assert_eq!(engine.materialised_map_pages(), 0, "free, and not found by the folder");
    engine.audit().unwrap();
}

#[test]
fn a_folder_beside_memory_that_comes_online() {
    explore(2, || {
        let engine: Arc<ModelEngine> = Arc::new(empty());
        let mut hotplug = hotplug(&engine);
        let folder = beside(&engine, fold_a_batch);
        online(&mut hotplug);
        folder.join().unwrap();
        all_folds(&engine);
    });
}

#[test]
fn a_folder_beside_memory_that_was_fake_offline() {
    explore(1, || {
        let engine: Arc<ModelEngine> = Arc::new(empty());
        let mut hotplug = hotplug(&engine);
        online(&mut hotplug);
        hotplug.fake_offline(0..8, &mut Unmovable).unwrap();
        let folder = beside(&engine, fold_a_batch);
        hotplug.fake_online(0..8).unwrap();
        folder.join().unwrap();
        all_folds(&engine);
    });
}

/// A page is freed while one folder looks at its map page, and another one after it.
#[test]
fn two_folders_beside_a_free() {
    explore(2, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let owner = beside(&engine, move |engine| drop(take(engine, raw)));
        let folder = beside(&engine, fold_a_batch);
        fold_a_batch(&engine);
        owner.join().unwrap();
        folder.join().unwrap();
        all_folds(&engine);
    });
}

/// The section has its hint already when a folio of that order is freed: a folder takes the hint away, or sees the pages.
fn a_folder_beside_a_second_free(bits: u32) {
    let engine = machine();
    let folio = |bits| engine.alloc(order(bits), Kind::Anon).unwrap().share().into_raw();
    let (first, second) = (folio(0), folio(bits));
    drop(take(&engine, first));
    let owner = beside(&engine, move |engine| drop(take(engine, second)));
    fold_a_batch(&engine);
    owner.join().unwrap();
    all_folds(&engine);
}

/// Of a row: its area stays reserved for the CPU that the page came from.
#[test]
fn a_folder_beside_a_second_free_of_a_page() {
    explore(3, || a_folder_beside_a_second_free(0));
}

/// Of a lane.
#[test]
fn a_folder_beside_a_second_free_of_an_area() {
    explore(3, || a_folder_beside_a_second_free(2));
}

/// A page is materialised and freed while a folder looks.
#[test]
fn a_folder_beside_an_allocation_and_its_free() {
    explore(1, || {
        let engine = machine();
        drop(take(&engine, folio_at(&engine, 4, 0)));
        all_folds(&engine);
        // The hint is there, and nothing to fold.
        drop(engine.isolate(0..4).unwrap());
        let user = beside(&engine, |engine| use_at(engine, 2, 0));
        fold_a_batch(&engine);
        user.join().unwrap();
        all_folds(&engine);
    });
}

/// One folder finds a page taken that looked free, and gives back what it has; the page is free again, and a second one
/// looks.
#[test]
fn a_folder_beside_one_that_was_too_late() {
    explore(1, || {
        let engine = machine();
        drop(take(&engine, folio_at(&engine, 0, 0)));
        let other = beside(&engine, |engine| {
            use_at(engine, 1, 0);
            fold_a_batch(engine);
        });
        fold_a_batch(&engine);
        other.join().unwrap();
        all_folds(&engine);
    });
}

/// What the platform refuses to take is tried again, though another folder looked while it was held.
#[test]
fn a_folder_beside_one_that_is_refused() {
    explore(2, || {
        let engine = machine();
        drop(take(&engine, folio_at(&engine, 2, 0)));
        engine.platform().faults.fold_at_most(0);
        let folder = beside(&engine, fold_a_batch);
        fold_a_batch(&engine);
        folder.join().unwrap();
        engine.platform().faults.end();
        all_folds(&engine);
    });
}

/// An isolation has the pages for a moment and comes to nothing, since the second half of its range is isolated already.
#[test]
fn a_folder_beside_an_isolation_that_fails() {
    explore(2, || {
        let engine = machine();
        drop(take(&engine, folio_at(&engine, 2, 0)));
        let isolated = engine.isolate(4..8).unwrap();
        let folder = beside(&engine, fold_a_batch);
        assert_eq!(engine.isolate(0..8).map(drop), Err(IsolateError::Isolated));
        folder.join().unwrap();
        // Not after the end of the other isolation, which is told to folders too.
        engine.folder(4).unwrap().fold_all();
        assert_eq!(engine.materialised_map_pages(), 0, "free, and not found by the folder");
        drop(isolated);
        engine.audit().unwrap();
    });
}
