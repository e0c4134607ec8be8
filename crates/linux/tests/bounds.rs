//! Bounds and failures, one promise a test: what is refused changes nothing, what is taken in part is given back, what is
//! out of circulation stays out.

mod common;

use std::ops::Range;

use common::{BLOCK, DESCRIBED, TestDescriptors};
use common::{MIB, classes, folded, frame_allocator, host, machine, map_pages_measured, order};
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::hotplug::{BlockId, Group, HotplugConfig, OnlineTo};
use pagefold_engine::platform::{Mapping, TableKind};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{
    AllocError, Class, Config, Engine, FreeError, Frozen, Kind, Layout, Miss, Order, Pfn, Poisoned,
    ReshapeError, Zone,
};
use pagefold_engine::{Descriptors, Page64};

const AREA: u64 = 2 * MIB;

// ---- the allocator -------------------------------------------------------------------------------------------------

#[test]
fn a_block_of_rows_that_is_not_all_free_is_not_taken_in_part() {
    let engine = folded(64 * MIB);
    let kept = engine.alloc_at(Pfn(64), Order::ZERO, Kind::Anon).unwrap();
    assert_eq!(engine.alloc_at(Pfn(0), order(7), Kind::Anon).unwrap_err(), AllocError::Busy);
    assert_eq!(engine.free_pages(), 64 * MIB - 1);
    drop(engine.alloc_at(Pfn(0), order(6), Kind::Anon).unwrap());
    drop(kept);
    drop(engine.alloc_at(Pfn(0), order(7), Kind::Anon).unwrap());
    engine.audit().unwrap();
}

#[test]
fn a_block_of_areas_that_is_not_all_free_is_not_taken_in_part() {
    let engine = folded(256 * MIB);
    // Sixteen areas are two words of lanes; the second has a page in use.
    let kept = engine.alloc_at(Pfn(9 * AREA), Order::ZERO, Kind::Anon).unwrap();
    assert_eq!(engine.alloc_at(Pfn(0), order(13), Kind::Anon).unwrap_err(), AllocError::Busy);
    assert_eq!(engine.free_pages(), 256 * MIB - 1);
    engine.audit().unwrap();
    drop(engine.alloc_at(Pfn(0), order(12), Kind::Anon).unwrap());
    drop(kept);
}

#[test]
fn a_search_that_finds_no_run_of_areas_hides_none() {
    let engine = folded(64 * MIB);
    let every_second: Vec<_> = (0..32)
        .step_by(2)
        .map(|area| engine.alloc_at(Pfn(area * AREA), Order::AREA, Kind::Anon).unwrap())
        .collect();
    assert_eq!(engine.alloc(order(10), Kind::Anon).unwrap_err(), AllocError::NoBlock);
    engine.audit().unwrap();
    let others: Vec<_> = (0..16).map(|_| engine.alloc(Order::AREA, Kind::Anon).unwrap()).collect();
    assert_eq!(engine.free_pages(), 0);
    drop((every_second, others));
    engine.audit().unwrap();
}

#[test]
fn pages_of_which_one_is_taken_are_not_taken_together() {
    let engine = folded(2 * MIB);
    let kept = engine.alloc_at(Pfn(1), Order::ZERO, Kind::Anon).unwrap();
    assert_eq!(engine.alloc_at(Pfn(0), order(1), Kind::Anon).unwrap_err(), AllocError::Busy);
    drop(kept);
    drop(engine.alloc_at(Pfn(0), order(1), Kind::Anon).unwrap());
    assert_eq!(engine.free_pages(), 2 * MIB);
}

#[test]
fn what_is_free_in_part_or_whole_is_not_given_back() {
    let mut frames = frame_allocator(64 * MIB);
    frames.online(0..64 * MIB).unwrap();
    let pages: Vec<Pfn> = (0..256).map(|_| frames.alloc(Order::ZERO, 0).unwrap()).collect();
    let first = pages.iter().min().unwrap().head(order(8));
    frames.free(first, Order::ZERO).unwrap();
    let free = frames.free_pages();
    for bits in [0, 1, 5, 6, 7, 8, 9, 13] {
        assert!(frames.free(first, order(bits)).is_err(), "order {bits}");
    }
    assert_eq!(frames.free_pages(), free);
    let area = frames.alloc(Order::AREA, 0).unwrap();
    frames.free(area, Order::AREA).unwrap();
    assert!(frames.free(area, Order::AREA).is_err());
    assert_eq!(frames.free_pages(), free);
}

#[test]
fn blocks_are_aligned_to_their_size() {
    let mut frames = frame_allocator(256 * MIB);
    frames.online(0..256 * MIB).unwrap();
    for bits in (0..=13).chain((0..=13).rev()) {
        let block = frames.alloc(order(bits), 0).unwrap();
        assert!(block.is_aligned(order(bits)), "order {bits} at {block}");
    }
}

#[test]
fn an_empty_area_that_a_cpu_reserves_is_found_when_nothing_else_is_free() {
    let mut frames = frame_allocator(2 * MIB);
    frames.online(0..2 * MIB).unwrap();
    let page = frames.alloc(Order::ZERO, 0).unwrap();
    assert_eq!(frames.alloc(Order::AREA, 0), Err(AllocError::NoBlock));
    frames.free(page, Order::ZERO).unwrap();
    assert_eq!(frames.alloc(Order::AREA, 0), Ok(Pfn(0)));
}

#[test]
fn runs_of_any_length_are_taken_and_given_back_in_any_parts() {
    let mut frames = frame_allocator(256 * MIB);
    frames.online(100..256 * MIB - 50).unwrap();
    let all = frames.free_pages();
    let mut taken: Vec<Range<u64>> = Vec::new();
    let lengths = [1, 2, 3, 63, 64, 65, 100, 511, 512, 513, 1000, 1024, 5000, 10_000];
    for pages in lengths {
        let first = frames.alloc_run(pages, 0).unwrap();
        assert!(first.is_aligned(order(pages.next_power_of_two().ilog2())), "{pages} pages at {first}");
        let run = first.0..first.0 + pages;
        assert!(taken.iter().all(|other| run.end <= other.start || other.end <= run.start), "{run:?}");
        taken.push(run);
    }
    assert_eq!(frames.free_pages(), all - lengths.iter().sum::<u64>());
    for run in taken {
        // In three parts, the middle one first; no part goes back twice.
        let third = (run.end - run.start) / 3;
        let parts =
            [run.start + third..run.end - third, run.start..run.start + third, run.end - third..run.end];
        for part in parts {
            let free = frames.free_pages();
            frames.free_run(part.clone()).unwrap();
            assert_eq!(frames.free_pages(), free + (part.end - part.start));
            let again = if part.is_empty() { Ok(()) } else { Err(FreeError::Free) };
            assert_eq!(frames.free_run(part), again);
        }
    }
    assert_eq!(frames.free_pages(), all);
    assert_eq!(frames.alloc_run(0, 0), Err(AllocError::NoBlock));
    assert_eq!(frames.alloc_run(Order::MAX.pages() + 1, 0), Err(AllocError::NoBlock));
    for absent in [99..101, 0..1, 256 * MIB - 50..256 * MIB, 1 << 40..(1 << 40) + 1, 0..u64::MAX] {
        assert_eq!(frames.free_run(absent.clone()), Err(FreeError::Absent), "{absent:?}");
    }
    assert_eq!(frames.free(Pfn(101), order(1)), Err(FreeError::Misaligned));
    assert_eq!(frames.free_pages(), all);
}

#[test]
fn a_page_of_an_area_that_became_free_again_is_not_taken() {
    let mut frames = frame_allocator(4 * MIB);
    frames.online(0..4 * MIB).unwrap();
    let page = frames.alloc(Order::ZERO, 0).unwrap();
    frames.free(page, Order::ZERO).unwrap();
    // The area is closed when nothing else is left.
    let block = frames.alloc(order(10), 0).unwrap();
    frames.free(block, order(10)).unwrap();
    assert_eq!(frames.free(page, Order::ZERO), Err(FreeError::Free));
    assert_eq!(frames.free_run(page.0..page.0 + 100), Err(FreeError::Free));
    assert_eq!(frames.free_pages(), 4 * MIB);
}

#[test]
fn the_sizes_of_tables_are_known_before_they_exist() {
    let engine = folded(256 * MIB);
    for (kind, table) in engine.tables() {
        assert_eq!(
            Some(table.len()),
            kind.bytes(256 * MIB, TestDescriptors::shape::<common::Owner>()),
            "{kind:?}"
        );
    }
    assert_eq!(TableKind::Map.bytes(1, Page64::shape::<()>()), Some(MIB * 128 * 64));
    assert_eq!(TableKind::Map.bytes(u64::MAX, Page64::shape::<()>()), None);
}

// ---- isolation -----------------------------------------------------------------------------------------------------

#[test]
fn isolated_areas_do_not_stand_in_the_way_of_others() {
    let engine = folded(8 * MIB);
    let isolated = engine.isolate(0..2 * AREA).unwrap();
    assert_eq!(engine.alloc_at(Pfn(5), Order::ZERO, Kind::Anon).unwrap_err(), AllocError::Busy);
    assert_eq!(engine.alloc_at(Pfn(0), Order::AREA, Kind::Anon).unwrap_err(), AllocError::Busy);
    let outside: Vec<_> = (0..2).map(|_| engine.alloc(Order::AREA, Kind::Anon).unwrap()).collect();
    assert!(outside.iter().all(|folio| folio.pfn().0 >= 2 * AREA));
    assert_eq!(engine.alloc(Order::ZERO, Kind::Anon).unwrap_err(), AllocError::NoBlock);
    drop((isolated, outside));
    assert_eq!(engine.free_pages(), 8 * MIB);
    engine.audit().unwrap();
}

#[test]
fn what_is_split_or_collapsed_under_isolation_stays_out_of_circulation() {
    let engine = folded(4 * MIB);
    let whole = engine.alloc_at(Pfn(0), Order::AREA, Kind::Anon).unwrap();
    let small: Vec<_> =
        (0..2).map(|half| engine.alloc_at(Pfn(AREA + half * 256), order(8), Kind::Anon).unwrap()).collect();
    let mut isolated = engine.isolate(0..2 * AREA).unwrap();
    drop(whole.split(order(3)).unwrap());
    drop(Frozen::collapse(small).unwrap());
    for bits in [0, 3, 9] {
        assert_eq!(engine.alloc(order(bits), Kind::Anon).unwrap_err(), AllocError::NoBlock, "order {bits}");
    }
    assert_eq!(isolated.collect(), 0);
    drop(isolated);
    assert_eq!(engine.free_pages(), 4 * MIB);
    engine.audit().unwrap();
    drop(engine.alloc(order(10), Kind::Anon).unwrap());
}

// ---- folding -------------------------------------------------------------------------------------------------------

#[test]
fn a_folder_in_the_background_takes_nothing_from_under_a_section() {
    let engine = folded(64 * MIB);
    let walker = engine.walker().unwrap();
    drop(engine.alloc_at(Pfn(7), Order::ZERO, Kind::Anon).unwrap());
    let mut folder = engine.folder(1).unwrap();
    let section = walker.section();
    assert!(folder.start());
    assert_eq!(folder.poll(), None);
    assert_eq!(map_pages_measured(&engine), 1);
    drop(section);
    assert_eq!(folder.poll().map(|report| report.map_pages), Some(1));
    assert_eq!(map_pages_measured(&engine), 0);
}

#[test]
fn a_folder_that_is_dropped_gives_back_what_it_took() {
    let engine = machine::<Fold>(64 * MIB, Layout::Flat);
    engine.materialise_free(0..64 * MIB).unwrap();
    let mut folder = engine.folder(8).unwrap();
    assert!(folder.start());
    drop(folder);
    assert_eq!(engine.free_pages(), 64 * MIB);
    engine.audit().unwrap();
}

#[test]
fn a_section_that_is_free_but_for_one_page_is_folded_but_for_one_map_page() {
    let engine = folded(1024 * MIB);
    engine.materialise_free(0..128 * MIB).unwrap();
    let kept = engine.alloc_at(Pfn(128 * MIB - 1), Order::ZERO, Kind::Anon).unwrap();
    engine.folder(64).unwrap().fold_all();
    assert_eq!(map_pages_measured(&engine), 1);
    assert_eq!(engine.free_pages(), 1024 * MIB - 1);
    engine.audit().unwrap();
    drop(kept);
    engine.folder(64).unwrap().fold_all();
    assert_eq!(map_pages_measured(&engine), 0);
}

#[test]
fn a_page_that_breaks_while_it_is_folded_is_withheld() {
    let engine = folded(64 * MIB);
    drop(engine.alloc_at(Pfn(7), Order::ZERO, Kind::Anon).unwrap());
    let mut folder = engine.folder(1).unwrap();
    assert!(folder.start());
    assert_eq!(engine.walker().unwrap().poison(Pfn(7)), Ok(Poisoned::InUse));
    assert!(folder.poll().is_some());
    assert_eq!(engine.audit().unwrap().withheld_pages, 1);
    assert_eq!(engine.alloc_at(Pfn(7), Order::ZERO, Kind::Anon).unwrap_err(), AllocError::Busy);
}

#[test]
fn a_folio_that_was_taken_out_of_a_batch_is_not_folded_with_the_next() {
    let engine = machine::<Fold>(64 * MIB, Layout::Flat);
    let walker = engine.walker().unwrap();
    let mut batch = engine.fold_batch(1).unwrap();
    batch.push(engine.alloc(Order::AREA, Kind::Hugetlb).unwrap()).unwrap();
    let mut first = batch.drain().next().unwrap();
    first.unfold().unwrap();
    let first = first.share();
    batch.push(engine.alloc(Order::AREA, Kind::Hugetlb).unwrap()).unwrap();
    let kept = TestDescriptors::KEPT_MAP_PAGES;
    assert_eq!(batch.commit().map_pages, 512 / DESCRIBED - kept);
    assert_eq!(map_pages_measured(&engine), 512 / DESCRIBED + kept);
    let tail = walker.try_get(first.pfn().plus(511)).unwrap();
    assert_eq!(tail.pfn(), first.pfn());
    engine.audit().unwrap();
}

#[test]
fn every_section_of_a_gigabyte_is_folded_after_it_was_freed() {
    let engine = machine::<Fold>(1024 * MIB, Layout::Flat);
    drop(engine.alloc(Order::MAX, Kind::Hugetlb).unwrap());
    assert_eq!(map_pages_measured(&engine), 1024 * MIB / DESCRIBED);
    engine.folder(64).unwrap().fold_all();
    assert_eq!(map_pages_measured(&engine), 0);
    engine.audit().unwrap();
}

/// The tails of a folio that is larger than a section have classes in every one of its sections.
#[test]
fn every_section_of_a_gigabyte_has_memory_for_its_classes() {
    let engine = folded(1024 * MIB);
    let folio = engine.alloc(Order::MAX, Kind::Hugetlb).unwrap();
    engine.audit().unwrap();
    drop(folio);
    engine.audit().unwrap();
}

// ---- folios --------------------------------------------------------------------------------------------------------

#[test]
fn a_folio_is_split_into_smaller_ones_only() {
    let engine = folded(2 * MIB);
    let folio = engine.alloc(order(3), Kind::Anon).unwrap();
    let (folio, why) = folio.split(order(3)).unwrap_err();
    assert_eq!(why, ReshapeError::NotSmaller);
    assert_eq!(folio.split(order(2)).unwrap().len(), 2);
    assert_eq!(engine.free_pages(), 2 * MIB);
}

#[test]
fn only_neighbours_in_one_machine_become_one_folio() {
    let (engine, other) = (folded(2 * MIB), folded(2 * MIB));
    let page = |pfn| engine.alloc_at(Pfn(pfn), Order::ZERO, Kind::Anon).unwrap();
    let (folios, why) = Frozen::collapse(vec![page(0), page(2)]).unwrap_err();
    assert_eq!((folios.len(), why), (2, ReshapeError::NotABlock));
    drop(folios);
    let foreign = other.alloc_at(Pfn(1), Order::ZERO, Kind::Anon).unwrap();
    let (folios, why) = Frozen::collapse(vec![page(0), foreign]).unwrap_err();
    assert_eq!((folios.len(), why), (2, ReshapeError::NotABlock));
    drop(folios);
    assert_eq!((engine.free_pages(), other.free_pages()), (2 * MIB, 2 * MIB));
    engine.audit().unwrap();
    other.audit().unwrap();
}

#[test]
fn a_look_reports_no_folio_that_does_not_contain_the_page() {
    let engine = folded(2 * MIB);
    let small = engine.alloc_at(Pfn(64), Order::ZERO, Kind::Anon).unwrap().share();
    let walker = engine.walker().unwrap();
    assert_eq!(walker.peek(Pfn(64)).unwrap().head.map(|(head, _)| head), Some(small.pfn()));
    assert_eq!(walker.peek(Pfn(65)).unwrap().head, None);
    assert_eq!(walker.try_get(Pfn(65)).unwrap_err(), Miss::Free);
}

// ---- classes -------------------------------------------------------------------------------------------------------

#[test]
fn a_section_says_something_else_than_its_region() {
    const REGION: u64 = 512 * BLOCK;
    let engine = Engine::new(host(), Config::new(2 * REGION)).unwrap();
    let mut hotplug = engine.hotplug(HotplugConfig::default()).unwrap();
    hotplug.add(0..REGION, 0, Group::NONE).unwrap();
    let class = |block: u64| engine.class(Pfn(block * BLOCK + 5)).0;
    assert_eq!((class(0), class(511), class(512)), (Class::Offline, Class::Offline, Class::Absent));
    hotplug.online(BlockId(3), OnlineTo::Zone(Zone::Normal)).unwrap();
    assert_eq!((class(2), class(3), class(4)), (Class::Offline, Class::Free, Class::Offline));
    drop(engine.alloc(Order::ZERO, Kind::Anon).unwrap());
    hotplug.offline(BlockId(3), &mut pagefold_engine::hotplug::Unmovable).unwrap();
    hotplug.remove(BlockId(3)).unwrap();
    assert_eq!((class(2), class(3), class(4)), (Class::Offline, Class::Absent, Class::Offline));
    // What was uniform before is uniform again, map page by map page.
    assert!(classes(&engine, Pfn(3 * BLOCK), BLOCK / DESCRIBED).iter().all(|&class| class == Class::Absent));
    hotplug.remove(BlockId(4)).unwrap();
    assert_eq!((class(3), class(4), class(5)), (Class::Absent, Class::Absent, Class::Offline));
    engine.audit().unwrap();
}
