//! Memory blocks of two sections, two zones, and fake-offline pages that somebody holds.

mod common;

use common::{ModelEngine, alone, beside, explore, folio_at, frozen_at, order, room, take, walk};
use loom::sync::Arc;
use loom::thread;
use pagefold_model::hotplug::{
    BlockError, BlockId, FakeOffline, Group, Hotplug, HotplugConfig, OnlineTo, Unmovable,
};
use pagefold_model::protocol::Fold;
use pagefold_model::{BlockState, Class, Folio, Frozen, Kind, Pfn, Zone};

type Plug<'e> = Hotplug<'e, common::Model<Fold>>;

fn hotplug(engine: &ModelEngine, block_pages: u64, fake_offline: FakeOffline) -> Plug<'_> {
    let config = HotplugConfig { block_pages, fake_offline, passes: 1, ..HotplugConfig::default() };
    engine.hotplug(config).unwrap()
}

fn bring_online(hotplug: &mut Plug<'_>, block: u64, zone: Zone) {
    let pages = hotplug.pages(BlockId(block));
    hotplug.add(pages, 0, Group::NONE).unwrap();
    hotplug.online(BlockId(block), OnlineTo::Zone(zone)).unwrap();
}

/// Until nobody holds anything there any more.
fn take_offline(hotplug: &mut Plug<'_>, block: u64) {
    loop {
        match hotplug.offline(BlockId(block), &mut Unmovable) {
            Ok(()) => return,
            Err(BlockError::Busy(_) | BlockError::Held(_)) => thread::yield_now(),
            Err(other) => panic!("{other}"),
        }
    }
}

// ---- two sections --------------------------------------------------------------------------------------------------

/// Sections of one block that were used, and that were not, in every combination, twice over.
#[test]
fn a_block_of_two_sections_comes_and_goes() {
    for used in [vec![], vec![2], vec![12], vec![2, 12]] {
        alone(move || {
            let engine: ModelEngine = room(16);
            let mut hotplug = hotplug(&engine, 16, FakeOffline::Folded);
            for _ in 0..2 {
                bring_online(&mut hotplug, 0, Zone::Movable);
                for &pfn in &used {
                    drop(frozen_at(&engine, pfn, 0).share());
                }
                assert_eq!(engine.audit().unwrap().free_pages, 16);
                take_offline(&mut hotplug, 0);
                assert_eq!(engine.audit().unwrap().materialised, 0);
                assert!((0..16).all(|pfn| engine.class(Pfn(pfn)) == (Class::Offline, false)));
                hotplug.remove(BlockId(0)).unwrap();
            }
            engine.audit().unwrap();
        });
    }
}

/// A walker in the one section, which has memory behind its map, while the whole block goes.
///
/// One forced switch: taking a block offline is long, and waits for the walker, which is no forced switch.
#[test]
fn try_get_against_offline_of_a_block_of_two_sections() {
    explore(1, || {
        let engine = Arc::new(room(16));
        let mut hotplug = hotplug(&engine, 16, FakeOffline::Folded);
        bring_online(&mut hotplug, 0, Zone::Movable);
        let raw = folio_at(&engine, 10, 0);
        let walker = beside(&engine, |engine| walk(engine, 10).is_ok());
        drop(take(&engine, raw));
        take_offline(&mut hotplug, 0);
        walker.join().unwrap();
        hotplug.remove(BlockId(0)).unwrap();
        assert_eq!(engine.audit().unwrap().materialised, 0);
    });
}

/// A page is freed by another thread just before its block goes: what that thread did is over when the memory goes.
#[test]
fn a_free_against_offline() {
    // One forced switch: see above.
    explore(1, || {
        let engine = Arc::new(room(8));
        let mut hotplug = hotplug(&engine, 8, FakeOffline::Folded);
        bring_online(&mut hotplug, 0, Zone::Movable);
        let raw = folio_at(&engine, 2, 0);
        let freer = beside(&engine, move |engine| drop(take(engine, raw)));
        let gone = hotplug.offline(BlockId(0), &mut Unmovable);
        freer.join().unwrap();
        match gone {
            Ok(()) => assert_eq!(engine.audit().unwrap().materialised, 0),
            Err(BlockError::Busy(busy)) => {
                assert_eq!(busy.near, Pfn(2));
                assert_eq!(hotplug.block(BlockId(0)).unwrap().state, BlockState::Online);
                assert_eq!(engine.audit().unwrap().free_pages, 8);
                take_offline(&mut hotplug, 0);
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!(engine.audit().unwrap().free_pages, 0);
    });
}

// ---- two zones -----------------------------------------------------------------------------------------------------

/// A machine with boot memory in the normal zone and a block in the movable one.
fn two_zones(engine: &ModelEngine) -> Plug<'_> {
    let mut hotplug = hotplug(engine, 8, FakeOffline::Folded);
    hotplug.boot(0..8, 0).unwrap();
    bring_online(&mut hotplug, 1, Zone::Movable);
    hotplug
}

/// Owners in both zones at once: each gets its own zone's pages and gives them back there.
#[test]
#[cfg_attr(feature = "memdesc", ignore = "two owners who both take objects: does not end in minutes")]
fn two_zones_do_not_mix_their_pages() {
    explore(2, || {
        let engine = Arc::new(room(16));
        let _hotplug = two_zones(&engine);
        let other = beside(&engine, |engine| {
            let page = engine.alloc_movable(order(2), Kind::Anon).unwrap().share();
            assert!(page.pfn() >= Pfn(8), "{page:?}");
        });
        let page = engine.alloc(order(2), Kind::Kernel).unwrap().share();
        assert!(page.pfn() < Pfn(8), "{page:?}");
        other.join().unwrap();
        drop(page);
        assert_eq!(engine.audit().unwrap().free_pages, 16);
    });
}

/// The movable zone goes away under an allocation that would have liked it: the normal one serves it.
#[test]
fn an_allocation_against_offline_of_its_zone() {
    // None: the block goes in some hundred steps, and each of them that waits is switched anyway.
    explore(0, || {
        let engine = Arc::new(room(16));
        let mut hotplug = two_zones(&engine);
        let other = beside(&engine, |engine| {
            engine.alloc_movable(order(2), Kind::Anon).map(|frozen| frozen.share().into_raw())
        });
        let gone = hotplug.offline(BlockId(1), &mut Unmovable);
        let page = take(&engine, other.join().unwrap().unwrap());
        assert!(gone.is_err() || page.pfn() < Pfn(8));
        engine.audit().unwrap();
        drop(page);
        if gone.is_err() {
            take_offline(&mut hotplug, 1);
        }
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

#[test]
fn folios_of_two_zones_do_not_become_one() {
    alone(|| {
        let engine: ModelEngine = room(16);
        let mut plug = hotplug(&engine, 8, FakeOffline::Folded);
        bring_online(&mut plug, 0, Zone::Normal);
        bring_online(&mut plug, 1, Zone::Movable);
        // The largest folio is one section here, so the two can only be refused for their size; each stays whole.
        let parts = [0, 8].map(|pfn| frozen_at(&engine, pfn, 3)).into();
        let (parts, _) = Frozen::collapse(parts).unwrap_err();
        drop(parts);
        assert_eq!(engine.audit().unwrap().free_pages, 16);
    });
}

// ---- fake-offline pages that somebody holds ------------------------------------------------------------------------

/// A walker's reference on a fake-offline page is noticed: the page comes back only after it is gone.
///
/// Two forced switches: the walker between its look and its reference, the driver between its looks at the pages.
#[test]
fn a_reference_on_a_classic_fake_offline_page_is_noticed() {
    for rcu in [false, true] {
        explore(2, move || {
            let engine = Arc::new(room(8));
            let mut hotplug = hotplug(&engine, 8, FakeOffline::Classic { rcu });
            bring_online(&mut hotplug, 0, Zone::Movable);
            hotplug.fake_offline(0..4, &mut Unmovable).unwrap();
            let walker = beside(&engine, |engine| {
                // To be given back later.
                engine.walker().unwrap().try_get(Pfn(2)).map(Folio::into_raw).ok()
            });
            let back = hotplug.fake_online(0..4);
            match walker.join().unwrap() {
                Some(raw) => {
                    assert!(matches!(back, Err(BlockError::Held(page)) if page.pfn == Pfn(2)), "{back:?}");
                    let held = take(&engine, raw);
                    assert_eq!(
                        (held.refs(), held.order()),
                        (2, order(0)),
                        "the driver's reference and this one"
                    );
                    drop(held);
                    hotplug.fake_online(0..4).unwrap();
                }
                None => back.unwrap(),
            }
            assert_eq!(engine.audit().unwrap().free_pages, 8);
        });
    }
}

/// The block goes offline with fake-offline pages in it, unless a walker holds one of them.
///
/// One forced switch: as for every block that goes.
#[test]
fn a_walker_against_offline_of_a_block_with_classic_fake_offline_pages() {
    explore(1, || {
        let engine = Arc::new(room(8));
        let mut hotplug = hotplug(&engine, 8, FakeOffline::Classic { rcu: true });
        bring_online(&mut hotplug, 0, Zone::Movable);
        hotplug.fake_offline(0..4, &mut Unmovable).unwrap();
        let walker =
            beside(&engine, |engine| engine.walker().unwrap().try_get(Pfn(2)).map(Folio::into_raw).ok());
        let gone = hotplug.offline(BlockId(0), &mut Unmovable);
        if let Some(raw) = walker.join().unwrap() {
            assert!(gone.is_err(), "the block went under a reference");
            drop(take(&engine, raw));
        }
        if gone.is_err() {
            take_offline(&mut hotplug, 0);
        }
        assert_eq!(engine.audit().unwrap().free_pages, 0);
    });
}
