//! Entries of tables: classes, sections, regions, rows, lanes, trees, marks and blocks are written only where a call that
//! made them writable happened before.
//!
//! The checker's entries look at that themselves (see `sync/checked.rs` of the engine), in every test. Those here go where
//! nothing has been made writable yet, and where one thread relies on what another one has made so.

mod common;

use common::{alone, beside, explore, folio_at, freeze, frozen_at, machine, machine_of, order, room, take};
use pagefold_model::hotplug::{BlockId, FakeOffline, Group, HotplugConfig, OnlineTo, Unmovable};
use pagefold_model::platform::TableKind;
use pagefold_model::{AllocError, Class, Kind, Pfn, Zone};

/// Two forced switches: who makes an entry writable is met before and after it says so.
const BOUND: usize = 2;

// ---- two that come first -------------------------------------------------------------------------------------------

/// Two owners of one section that nobody used before: classes, lanes and rows of both areas.
#[test]
fn two_first_uses_of_one_section() {
    explore(BOUND, || {
        let engine = machine();
        let other = beside(&engine, |engine| drop(frozen_at(engine, 4, 1).share()));
        let mine = frozen_at(&engine, 0, 1).share();
        other.join().unwrap();
        drop(mine);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// The same with large folios, whose tails' classes are set without unfolding anything.
#[test]
fn two_first_folios_of_one_section() {
    explore(BOUND, || {
        let engine = machine();
        let other = beside(&engine, |engine| drop(frozen_at(engine, 4, 2).share()));
        let mine = frozen_at(&engine, 0, 2).share();
        other.join().unwrap();
        drop(mine);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// Two sections of one region, each used for the first time.
#[test]
fn two_first_uses_of_two_sections() {
    explore(BOUND, || {
        let engine = machine_of(0..16);
        let other = beside(&engine, |engine| drop(frozen_at(engine, 8, 2).share()));
        let mine = frozen_at(&engine, 0, 2).share();
        other.join().unwrap();
        drop(mine);
        assert_eq!(engine.audit().unwrap().free_pages, 16);
    });
}

/// One looks for something to fold while another makes the section explicit.
#[test]
fn the_folder_meets_a_section_that_is_used_for_the_first_time() {
    explore(BOUND, || {
        let engine = machine();
        let other = beside(&engine, |engine| drop(frozen_at(engine, 2, 0).share()));
        engine.folder(2).unwrap().fold_batch();
        other.join().unwrap();
        engine.folder(4).unwrap().fold_all();
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.materialised), (8, 0));
    });
}

// ---- one after the other -------------------------------------------------------------------------------------------

#[test]
fn poison_is_recorded_where_nothing_was_ever_used() {
    alone(|| {
        let engine = machine_of(0..16);
        let walker = engine.walker().unwrap();
        for pfn in [0, 5, 13] {
            walker.poison(Pfn(pfn)).unwrap();
        }
        let audit = engine.audit().unwrap();
        assert_eq!((audit.withheld_pages, audit.free_pages), (3, 13));
    });
}

#[test]
fn poison_is_recorded_in_folios_that_leave_no_trace_in_rows() {
    alone(|| {
        let engine = machine();
        let whole = folio_at(&engine, 0, 3);
        engine.walker().unwrap().poison(Pfn(5)).unwrap();
        drop(take(&engine, whole));
        let audit = engine.audit().unwrap();
        assert_eq!((audit.withheld_pages, audit.free_pages), (1, 7));
    });
}

#[test]
fn a_range_is_isolated_and_returned_where_nothing_was_ever_used() {
    alone(|| {
        let engine = machine_of(0..16);
        let isolated = engine.isolate(4..12).unwrap();
        assert_eq!(isolated.held_pages(), 8);
        assert!(matches!(engine.alloc_at(Pfn(4), order(0), Kind::Anon), Err(AllocError::Busy)));
        drop(isolated);
        drop(frozen_at(&engine, 8, 3));
        assert_eq!(engine.audit().unwrap().free_pages, 16);
    });
}

#[test]
fn a_large_folio_is_split_to_pages_and_joined_where_no_row_was_ever_used() {
    alone(|| {
        let engine = machine();
        let pieces: Vec<_> = frozen_at(&engine, 0, 3).split(order(0)).unwrap().collect();
        assert_eq!(pieces.len(), 8);
        let whole = pagefold_model::Frozen::collapse(pieces).unwrap();
        assert_eq!(whole.order(), order(3));
        drop(whole);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// Memory that begins and ends inside of map pages, areas and sections.
#[test]
fn memory_comes_online_in_parts_of_everything() {
    alone(|| {
        let mut engine = room(32);
        engine.online(3..13).unwrap();
        engine.add_offline(14..20).unwrap();
        engine.online(21..32).unwrap();
        let free = 10 + 11;
        assert_eq!(engine.audit().unwrap().free_pages, free);
        for (pfn, bits) in [(3, 0), (4, 2), (12, 0), (21, 0), (24, 3)] {
            drop(frozen_at(&engine, pfn, bits).share());
        }
        assert_eq!(engine.class(Pfn(16)).0, Class::Offline);
        engine.folder(8).unwrap().fold_all();
        let audit = engine.audit().unwrap();
        assert_eq!((audit.free_pages, audit.materialised), (free, 0));
    });
}

/// Blocks of two sections each, all four regions of them, some of which nobody touches.
#[test]
fn blocks_come_and_go_where_nothing_was_ever_used() {
    for policy in [FakeOffline::Folded, FakeOffline::Classic { rcu: true }] {
        alone(move || {
            let engine = room(32);
            let config = HotplugConfig {
                block_pages: 16,
                fake_offline: policy,
                passes: 1,
                ..HotplugConfig::default()
            };
            let mut hotplug = engine.hotplug(config).unwrap();
            for _ in 0..2 {
                hotplug.add(0..32, 0, Group::NONE).unwrap();
                hotplug.online(BlockId(1), OnlineTo::Zone(Zone::Movable)).unwrap();
                hotplug.fake_offline(20..24, &mut Unmovable).unwrap();
                hotplug.fake_online(20..24).unwrap();
                hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
                hotplug.remove(BlockId(1)).unwrap();
                hotplug.online(BlockId(0), OnlineTo::Zone(Zone::Normal)).unwrap();
                drop(frozen_at(&engine, 12, 0).share());
                hotplug.offline(BlockId(0), &mut Unmovable).unwrap();
                hotplug.remove(BlockId(0)).unwrap();
                engine.audit().unwrap();
            }
        });
    }
}

// ---- tables that get no memory -------------------------------------------------------------------------------------

/// Whichever table has no memory: the allocation fails, changes nothing, and writes nothing.
#[test]
fn an_allocation_without_memory_for_a_table_changes_nothing() {
    for kind in [
        TableKind::Map,
        TableKind::Classes,
        TableKind::Sections,
        TableKind::Regions,
        TableKind::Rows,
        TableKind::Lanes,
    ] {
        alone(move || {
            let engine = machine_of(0..16);
            engine.platform().faults.refuse(kind, 0);
            for (pfn, bits) in [(2, 0), (8, 2), (0, 3)] {
                match engine.alloc_at(Pfn(pfn), order(bits), Kind::Anon) {
                    Err(error) => assert_eq!(error, AllocError::OutOfMemory, "{kind:?}"),
                    // Whole areas are taken without rows.
                    Ok(folio) => assert!(bits >= 2 && kind == TableKind::Rows, "{kind:?} {folio:?}"),
                }
            }
            assert_eq!(engine.audit().unwrap().free_pages, 16);
            engine.platform().faults.end();
            drop([frozen_at(&engine, 2, 0), frozen_at(&engine, 8, 2)]);
            assert_eq!(engine.audit().unwrap().free_pages, 16);
        });
    }
}

/// The same of what records poison.
#[test]
fn poison_without_memory_for_a_table_changes_nothing() {
    for kind in [TableKind::Rows, TableKind::Lanes, TableKind::Poison] {
        alone(move || {
            let engine = machine();
            let walker = engine.walker().unwrap();
            engine.platform().faults.refuse(kind, 0);
            assert!(walker.poison(Pfn(3)).is_err(), "{kind:?}");
            assert_eq!(engine.poisoned_pages(), 0);
            engine.platform().faults.end();
            walker.poison(Pfn(3)).unwrap();
            assert_eq!(engine.audit().unwrap().withheld_pages, 1);
        });
    }
}

/// Memory that comes online while a table has none: it is not there afterwards, and can come later.
#[test]
fn memory_comes_online_whole_or_not_at_all() {
    for kind in TableKind::ALL {
        alone(move || {
            let mut engine = room(16);
            engine.platform().faults.refuse(kind, 0);
            let refused = engine.online(3..13).is_err();
            if refused {
                let audit = engine.audit().unwrap();
                assert_eq!((audit.free_pages, engine.free_pages()), (0, 0), "{kind:?}");
                assert!((0..16).all(|pfn| engine.class(Pfn(pfn)).0 == Class::Absent), "{kind:?}");
                engine.platform().faults.end();
                engine.online(3..13).unwrap();
            }
            engine.platform().faults.end();
            assert_eq!(engine.audit().unwrap().free_pages, 10, "{kind:?}");
        });
    }
}

/// A frozen folio becomes a shared one and back without any table.
#[test]
fn sharing_and_freezing_need_no_memory() {
    alone(|| {
        let engine = machine();
        let folio = frozen_at(&engine, 0, 2).share();
        for kind in TableKind::ALL {
            engine.platform().faults.refuse(kind, 0);
            drop(engine.walker().unwrap().try_get(Pfn(3)).unwrap());
        }
        let frozen = freeze(folio);
        drop(frozen);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}
