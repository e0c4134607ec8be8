//! What others see between two steps of one change, and what one step leaves for the next.

mod common;

use common::{
    Descriptors, alone, beside, explore, flat_machine, folio_at, freeze, frozen_at, machine, order, room,
    take, walk,
};
use loom::sync::Arc;
use loom::thread;
use pagefold_model::geometry::MapGeometry;
use pagefold_model::hotplug::{BlockError, BlockId, FakeOffline, Group, HotplugConfig, OnlineTo, Unmovable};
use pagefold_model::{Frozen, Miss, Pfn, Zone};

const BLOCK: BlockId = BlockId(0);

/// Two forced switches: the one who changes something is met between two steps, and goes on.
const BOUND: usize = 2;

// ---- descriptors ---------------------------------------------------------------------------------------------------

/// A walker that meets an unfolding never finds words that are not written yet.
#[test]
fn a_frozen_folio_does_not_look_free_while_it_unfolds() {
    explore(BOUND, || {
        let engine = machine();
        let mut frozen = frozen_at(&engine, 0, 2);
        let walker = beside(&engine, |engine| walk(engine, 3));
        frozen.unfold().unwrap();
        assert_eq!(walker.join().unwrap(), Err(Miss::Frozen));
        drop(frozen);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// The data of the owners of the parts does not come back when the whole is unfolded and split again.
#[test]
fn the_parts_of_a_whole_leave_no_data_behind() {
    alone(|| {
        let engine = machine();
        let mut parts: Vec<_> = [0, 2, 4, 6].map(|pfn| frozen_at(&engine, pfn, 1)).into();
        parts.iter_mut().for_each(|part| *part.owner_mut() = 7);
        let mut whole = Frozen::collapse(parts).unwrap();
        whole.unfold().unwrap();
        for piece in whole.split(order(1)).unwrap().skip(1) {
            assert_eq!(*piece.owner(), 0, "{piece:?}");
        }
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// A folio whose tails were folded is split as one that was made folded: its pieces' tails get no memory.
#[test]
fn a_folio_that_was_folded_is_not_flat_any_more() {
    alone(|| {
        let engine = flat_machine();
        let mut batch = engine.fold_batch(1).unwrap();
        batch.push(frozen_at(&engine, 0, 3)).unwrap();
        batch.commit();
        let folio = batch.drain().next().unwrap();
        let kept = Descriptors::KEPT_MAP_PAGES;
        assert_eq!(engine.audit().unwrap().materialised, kept);
        drop(folio.split(order(2)).unwrap());
        assert_eq!(engine.audit().unwrap().materialised, 2 * kept);
    });
}

// ---- the folder ----------------------------------------------------------------------------------------------------

/// A folder that is dropped in the middle of a batch waits for whoever is inside.
#[test]
fn a_folder_that_is_dropped_waits_for_walkers() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let walker = beside(&engine, |engine| walk(engine, 2));
        drop(take(&engine, raw));
        let mut folder = engine.folder(4).unwrap();
        folder.start();
        drop(folder);
        assert!(matches!(walker.join().unwrap(), Ok(0) | Err(_)));
        engine.audit().unwrap();
    });
}

/// What the platform did not take is tried again although nobody frees anything there any more.
#[test]
fn a_fold_that_was_refused_is_tried_again() {
    alone(|| {
        let engine = machine();
        drop(frozen_at(&engine, 2, 0));
        engine.platform().faults.fold_at_most(0);
        assert_eq!(engine.folder(4).unwrap().fold_batch().refused, 1);
        engine.platform().faults.end();
        assert_eq!(engine.folder(4).unwrap().fold_all().map_pages, 1);
        assert_eq!(engine.audit().unwrap().materialised, 0);
    });
}

// ---- memory blocks -------------------------------------------------------------------------------------------------

/// A section that had class bytes of its own says one thing after the other, not the first one again.
#[test]
fn a_block_that_came_online_is_not_offline_again() {
    explore(BOUND, || {
        let engine = Arc::new(room(8));
        let config = HotplugConfig { block_pages: 8, passes: 1, ..HotplugConfig::default() };
        let mut hotplug = engine.hotplug(config).unwrap();
        hotplug.add(0..8, 0, Group::NONE).unwrap();
        hotplug.online(BLOCK, OnlineTo::Zone(Zone::Normal)).unwrap();
        drop(frozen_at(&engine, 2, 0));
        hotplug.offline(BLOCK, &mut Unmovable).unwrap();
        let walker = beside(&engine, |engine| {
            let walker = engine.walker().unwrap();
            [2, 2].map(|pfn| walker.try_get(Pfn(pfn)).map(drop))
        });
        hotplug.online(BLOCK, OnlineTo::Zone(Zone::Normal)).unwrap();
        let seen = walker.join().unwrap();
        assert_ne!(seen, [Err(Miss::Free), Err(Miss::Offline)]);
    });
}

/// A walker that lets go inside its section is never in the way of fake-offline pages that come back.
#[test]
fn a_walker_that_keeps_nothing_is_not_in_the_way_of_fake_offline_pages() {
    explore(BOUND, || {
        let engine = Arc::new(room(8));
        let fake_offline = FakeOffline::Classic { rcu: true };
        let config = HotplugConfig { block_pages: 8, passes: 1, fake_offline, ..HotplugConfig::default() };
        let mut hotplug = engine.hotplug(config).unwrap();
        hotplug.add(0..8, 0, Group::NONE).unwrap();
        hotplug.online(BLOCK, OnlineTo::Zone(Zone::Movable)).unwrap();
        hotplug.fake_offline(0..4, &mut Unmovable).unwrap();
        let walker = beside(&engine, |engine| {
            let walker = engine.walker().unwrap();
            let section = walker.section();
            drop(walker.try_get(Pfn(2)));
            drop(section);
        });
        hotplug.fake_online(0..4).unwrap();
        walker.join().unwrap();
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// Without grace periods too: what a walker did with a fake-offline page is over when its block goes.
#[test]
fn a_walkers_reference_is_over_when_a_classic_block_goes() {
    explore(BOUND, || {
        let engine = Arc::new(room(8));
        let fake_offline = FakeOffline::Classic { rcu: false };
        let config = HotplugConfig { block_pages: 8, passes: 1, fake_offline, ..HotplugConfig::default() };
        let mut hotplug = engine.hotplug(config).unwrap();
        hotplug.add(0..8, 0, Group::NONE).unwrap();
        hotplug.online(BLOCK, OnlineTo::Zone(Zone::Movable)).unwrap();
        hotplug.fake_offline(0..4, &mut Unmovable).unwrap();
        let walker = beside(&engine, |engine| drop(engine.walker().unwrap().try_get(Pfn(2))));
        loop {
            match hotplug.offline(BLOCK, &mut Unmovable) {
                Ok(()) => break,
                Err(BlockError::Busy(_) | BlockError::Held(_)) => thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        }
        walker.join().unwrap();
        assert_eq!(engine.audit().unwrap().free_pages, 0);
    });
}

/// An area whose last page is freed is closed, unless somebody takes a page of it first.
#[test]
fn an_area_is_not_closed_over_a_page_that_was_just_taken() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        let mine = frozen_at(&engine, 0, 0).share();
        freer.join().unwrap();
        engine.audit().unwrap();
        drop(freeze(mine));
        drop(frozen_at(&engine, 0, 3));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}
