//! Memory blocks that come and go while a walker looks: the engine's own code, all interleavings.

mod common;

use common::{Model, ModelEngine, empty, explore, order};
use loom::sync::Arc;
use loom::thread;
use pagefold_model::hotplug::{
    BlockError, BlockId, FakeOffline, Group, Hotplug, HotplugConfig, OnlineTo, Unmovable,
};
use pagefold_model::protocol::{Fold, NoGracePeriod, Protocol};
use pagefold_model::{Kind, Miss, Pfn, Zone};

/// The one block: a section of eight pages in four map pages and two areas.
const BLOCK: BlockId = BlockId(0);

fn machine<R: Protocol>() -> Arc<ModelEngine<R>> {
    Arc::new(empty())
}

fn hotplug<R: Protocol>(engine: &ModelEngine<R>, fake_offline: FakeOffline) -> Hotplug<'_, Model<R>> {
    let config = HotplugConfig { block_pages: 8, fake_offline, passes: 1, ..HotplugConfig::default() };
    let mut hotplug = engine.hotplug(config).unwrap();
    hotplug.add(0..8, 0, Group::NONE).unwrap();
    hotplug.online(BLOCK, OnlineTo::Zone(Zone::Movable)).unwrap();
    hotplug
}

/// A walker that asks for page 2 once, and checks what it gets.
fn walker<R: Protocol>(engine: &Arc<ModelEngine<R>>) -> thread::JoinHandle<Option<Miss>> {
    let engine = Arc::clone(engine);
    thread::spawn(move || {
        let walker = engine.walker().unwrap();
        match walker.try_get(Pfn(2)) {
            Ok(folio) => {
                assert!(folio.contains(Pfn(2)) && folio.refs() >= 1, "{folio:?}");
                None
            }
            Err(miss) => Some(miss),
        }
    })
}

fn offline<R: Protocol>(hotplug: &mut Hotplug<'_, Model<R>>) {
    loop {
        match hotplug.offline(BLOCK, &mut Unmovable) {
            Ok(()) => return,
            // The walker's reference.
            Err(BlockError::Busy(_)) => thread::yield_now(),
            Err(other) => panic!("{other}"),
        }
    }
}

/// A page in use is freed, its block goes offline and away, comes back, and is used again.
fn come_and_go<R: Protocol>() {
    let engine = machine::<R>();
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let folio = engine.alloc_at(Pfn(2), order(0), Kind::Anon).unwrap().share();
    let walker = walker(&engine);
    drop(folio);
    offline(&mut hotplug);
    assert_eq!(engine.materialised_map_pages(), 0);
    hotplug.remove(BLOCK).unwrap();
    walker.join().unwrap();
    hotplug.add(0..8, 0, Group::NONE).unwrap();
    hotplug.online(BLOCK, OnlineTo::Zone(Zone::Movable)).unwrap();
    let whole = engine.alloc_movable(order(3), Kind::File).unwrap().share();
    assert_eq!(whole.refs(), 1);
    engine.audit().unwrap();
}

#[test]
fn try_get_against_offline_and_remove() {
    explore(2, come_and_go::<Fold>);
}

#[test]
#[cfg_attr(feature = "memdesc", ignore = "walkers write to objects alone: see `objects`")]
#[should_panic(expected = "stray write")]
fn without_a_grace_period_offline_is_found_wrong() {
    explore(3, come_and_go::<NoGracePeriod>);
}

/// The walker looks while the block comes online and its first page is used.
#[test]
fn try_get_against_online_and_first_use() {
    explore(3, || {
        let engine = machine::<Fold>();
        let mut hotplug = hotplug(&engine, FakeOffline::Folded);
        offline(&mut hotplug);
        let walker = walker(&engine);
        hotplug.online(BLOCK, OnlineTo::Zone(Zone::Movable)).unwrap();
        let folio = engine.alloc_movable(order(2), Kind::File).unwrap().share();
        walker.join().unwrap();
        assert_eq!(folio.refs(), 1);
        drop(folio);
        engine.audit().unwrap();
    });
}

/// An area is unplugged, and plugged again, under both policies.
fn unplug_and_plug(policy: FakeOffline) {
    let engine = machine::<Fold>();
    let mut hotplug = hotplug(&engine, policy);
    let folio = engine.alloc_at(Pfn(2), order(0), Kind::Anon).unwrap().share();
    let walker = walker(&engine);
    drop(folio);
    let retry = |done: Result<(), BlockError>| match done {
        Ok(()) => false,
        Err(BlockError::Busy(_) | BlockError::Held(_)) => {
            thread::yield_now();
            true
        }
        Err(other) => panic!("{other}"),
    };
    while retry(hotplug.fake_offline(0..4, &mut Unmovable)) {}
    while retry(hotplug.fake_online(0..4)) {}
    walker.join().unwrap();
    assert_eq!(engine.free_pages(), 8);
    engine.audit().unwrap();
}

#[test]
fn try_get_against_folded_fake_offline() {
    explore(2, || unplug_and_plug(FakeOffline::Folded));
}

#[test]
fn try_get_against_classic_fake_offline() {
    explore(2, || unplug_and_plug(FakeOffline::Classic { rcu: true }));
}
