//! A part of memory is withdrawn while a walker looks, and while what is in it is freed: the engine's own code, all
//! interleavings.

#![allow(clippy::single_range_in_vec_init, reason = "a list of parts may have one")]

mod common;

use common::{ModelEngine, beside, empty, explore, folio_at, order, take, walk};
use loom::sync::Arc;
use pagefold_model::hotplug::{
    BlockId, FakeOffline, Fate, Group, Hotplug, HotplugConfig, OnlineTo, Unmovable, Wanted, Withdrawn,
};
use pagefold_model::protocol::{Fold, NoGracePeriod, Protocol};
use pagefold_model::{Kind, Pfn, Zone};

/// The one block: a section of eight pages in four map pages and two areas.
fn hotplug<R: Protocol>(engine: &ModelEngine<R>, fake_offline: FakeOffline) -> Hotplug<'_, common::Model<R>> {
    let config = HotplugConfig { block_pages: 8, fake_offline, passes: 1, ..HotplugConfig::default() };
    let mut hotplug = engine.hotplug(config).unwrap();
    hotplug.add(0..8, 0, Group::NONE).unwrap();
    hotplug.online(BlockId(0), OnlineTo::Zone(Zone::Movable)).unwrap();
    hotplug
}

fn withdraw<R: Protocol>(hotplug: &mut Hotplug<'_, common::Model<R>>, asks: bool) -> Withdrawn {
    let parts = [0..8];
    let wanted = Wanted { parts: &parts, piece: 4, pages: 8, runs: 2 };
    let mut nobody = Unmovable;
    hotplug.withdraw(&wanted, if asks { Some(&mut nobody) } else { None }).unwrap()
}

/// Whether what was withdrawn and what was not add up, and are as they should be; and puts it back.
fn put_back<R: Protocol>(
    engine: &ModelEngine<R>,
    hotplug: &mut Hotplug<'_, common::Model<R>>,
    done: &Withdrawn,
) {
    let taken: u64 = done.taken().iter().map(|run| run.end - run.start).sum();
    assert!(done.fate(Pfn(4)) == Some(Fate::Free) && taken >= 4, "nobody was in the second area: {done:?}");
    assert_eq!(engine.free_pages(), 8 - taken);
    engine.audit().unwrap();
    done.taken().iter().for_each(|run| hotplug.fake_online(run.clone()).unwrap());
    assert_eq!(engine.free_pages(), 8);
    engine.audit().unwrap();
}

/// A page in use is freed while its area is withdrawn with another one.
fn against_free(asks: bool, policy: FakeOffline) {
    let engine: Arc<ModelEngine> = Arc::new(empty());
    let mut hotplug = hotplug(&engine, policy);
    let raw = folio_at(&engine, 2, 0);
    let owner = beside(&engine, move |engine| drop(take(engine, raw)));
    let done = withdraw(&mut hotplug, asks);
    owner.join().unwrap();
    put_back(&engine, &mut hotplug, &done);
}

#[test]
fn withdraw_against_free() {
    explore(2, || against_free(true, FakeOffline::Folded));
}

#[test]
fn withdraw_of_what_is_free_against_free() {
    explore(2, || against_free(false, FakeOffline::Folded));
}

#[test]
fn classic_withdraw_against_free() {
    explore(1, || against_free(true, FakeOffline::Classic { rcu: true }));
}

/// A page was used and freed, so its map page is materialised; a walker looks at it while its area goes and comes.
fn against_walker<R: Protocol>(asks: bool) {
    let engine: Arc<ModelEngine<R>> = Arc::new(empty());
    let mut hotplug = hotplug(&engine, FakeOffline::Folded);
    let raw = folio_at(&engine, 2, 0);
    let walker = beside(&engine, |engine| walk(engine, 2));
    drop(take(&engine, raw));
    let done = withdraw(&mut hotplug, asks);
    walker.join().unwrap().ok();
    put_back(&engine, &mut hotplug, &done);
}

#[test]
fn withdraw_against_try_get() {
    explore(2, || against_walker::<Fold>(true));
}

#[test]
fn withdraw_of_what_is_free_against_try_get() {
    explore(2, || against_walker::<Fold>(false));
}

#[test]
#[cfg_attr(feature = "memdesc", ignore = "walkers write to objects alone: see `objects`")]
#[should_panic(expected = "stray write")]
fn without_a_grace_period_withdrawing_is_found_wrong() {
    explore(3, || against_walker::<NoGracePeriod>(true));
}

/// Another CPU takes a page, or a whole area, while what is free is withdrawn: it has it, or the hypervisor does.
#[test]
fn withdraw_of_what_is_free_against_alloc() {
    for bits in [0, 2] {
        explore(2, move || {
            let engine: Arc<ModelEngine> = Arc::new(empty());
            let mut hotplug = hotplug(&engine, FakeOffline::Folded);
            let other = beside(&engine, move |engine| {
                let folio = engine.alloc_movable(order(bits), Kind::Anon).ok()?;
                Some(folio.share().into_raw())
            });
            let done = withdraw(&mut hotplug, false);
            let raw = other.join().unwrap();
            let taken: u64 = done.taken().iter().map(|run| run.end - run.start).sum();
            if let Some(raw) = raw {
                let folio = take(&engine, raw);
                assert!(
                    done.taken().iter().all(|run| !run.contains(&folio.pfn().0)),
                    "{folio:?} in {done:?}"
                );
                drop(folio);
            }
            assert_eq!(engine.free_pages(), 8 - taken);
            engine.audit().unwrap();
        });
    }
}
