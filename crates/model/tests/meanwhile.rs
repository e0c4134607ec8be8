//! What is used and given back between another thread's look and its change.
//!
//! A compare-and-swap that finds the value it expects may have missed a whole life: the memory was taken, written and
//! freed in between. So the swap itself must acquire, whatever the look before it did.

mod common;

use common::{ModelEngine, beside, explore, folio_at, machine, order, room, take, use_at};
use loom::sync::Arc;
use pagefold_model::hotplug::{BlockError, BlockId, FakeOffline, Group, HotplugConfig, OnlineTo, Unmovable};
use pagefold_model::{Kind, Pfn, Zone};

/// One forced switch: to the other thread, between the look and the change. It runs to its end.
const BOUND: usize = 1;

/// Two at once, and a look at all of it in the end.
fn both(
    engine: Arc<ModelEngine>,
    other: impl FnOnce(&ModelEngine) + 'static,
    mine: impl FnOnce(&ModelEngine),
) {
    let other = beside(&engine, other);
    mine(&engine);
    other.join().unwrap();
    engine.audit().unwrap();
}

#[test]
fn an_area_is_over_when_it_is_opened() {
    explore(BOUND, || {
        both(
            machine(),
            |engine| use_at(engine, 0, 2),
            |engine| {
                let mut page = engine.alloc(order(0), Kind::File).unwrap();
                *page.owner_mut() = 1;
            },
        );
    });
}

#[test]
fn an_area_is_over_when_it_is_taken_whole() {
    explore(BOUND, || both(machine(), |engine| use_at(engine, 0, 2), |engine| use_at(engine, 0, 2)));
}

#[test]
fn a_page_is_over_when_its_area_closes_and_is_taken_whole() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 0);
        both(
            engine,
            |engine| use_at(engine, 0, 0),
            move |engine| {
                drop(take(engine, raw));
                use_at(engine, 0, 2);
            },
        );
    });
}

/// The folder knows where to look from an earlier owner.
#[test]
fn a_page_is_over_when_its_map_page_is_folded() {
    explore(BOUND, || {
        let engine = machine();
        let _kept = folio_at(&engine, 0, 0);
        use_at(&engine, 2, 0);
        both(
            engine,
            |engine| use_at(engine, 2, 0),
            |engine| {
                engine.folder(1).unwrap().fold_batch();
            },
        );
    });
}

/// One area is free at any time, though never the same one: who counted on it finds it.
#[test]
fn a_free_area_is_found_while_another_is_taken_for_it() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 4, 2);
        both(
            engine,
            move |engine| {
                drop(take(engine, raw));
                use_at(engine, 0, 2);
            },
            |engine| drop(engine.alloc(order(2), Kind::File).unwrap().share()),
        );
    });
}

/// A walker's look at a fake-offline page whose block goes, by the policy that drops references without waiting.
#[test]
fn a_walkers_look_is_over_when_the_block_of_a_fake_offline_page_goes() {
    explore(BOUND, || {
        let engine = Arc::new(room(8));
        let fake_offline = FakeOffline::Classic { rcu: false };
        let config = HotplugConfig { block_pages: 8, fake_offline, passes: 1, ..HotplugConfig::default() };
        let mut hotplug = engine.hotplug(config).unwrap();
        hotplug.add(0..8, 0, Group::NONE).unwrap();
        hotplug.online(BlockId(0), OnlineTo::Zone(Zone::Movable)).unwrap();
        hotplug.fake_offline(0..4, &mut Unmovable).unwrap();
        let walker = beside(&engine, |engine| drop(engine.walker().unwrap().try_get(Pfn(2))));
        let gone = hotplug.offline(BlockId(0), &mut Unmovable);
        assert!(matches!(gone, Ok(()) | Err(BlockError::Held(_))), "{gone:?}");
        walker.join().unwrap();
        engine.audit().unwrap();
    });
}
