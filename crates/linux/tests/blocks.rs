//! Memory blocks of several sections, folios of several sections, zones side by side, and platforms that refuse to fold:
//! every table is written only where memory was put behind it, and what is counted is what is there.

mod common;

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    DESCRIBED, MIB, TestDescriptors, TestEngine, TestPlatform, classes, host, machine, map_pages_measured,
    order,
};
use pagefold_engine::hotplug::{
    BlockChange, BlockId, Event, Group, Hotplug, HotplugConfig, Listener, OnlineTo, Unmovable, Veto,
};
use pagefold_engine::platform::{FoldRange, Mapping, Platform, TableKind};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{
    Class, Config, Engine, Frozen, Kind, Layout, Order, OutOfMemory, Pfn, ReshapeError, Zone,
};
use pagefold_linux::{LinuxError, Membarrier, Region};

const SECTION: u64 = 128 * MIB;
const MOVABLE: OnlineTo = OnlineTo::Zone(Zone::Movable);

fn hotplug(engine: &TestEngine, sections: u64) -> Hotplug<'_, TestPlatform> {
    let config = HotplugConfig { block_pages: sections * SECTION, ..HotplugConfig::default() };
    engine.hotplug(config).unwrap()
}

/// A write to a table where no memory was asked for shows as a page that nobody counted.
fn tables_are_counted(engine: &TestEngine) {
    for (kind, table) in engine.tables() {
        if kind != TableKind::Map {
            assert_eq!(table.measured_pages().unwrap(), table.counted_pages(), "{kind:?}");
        }
    }
    map_pages_measured(engine);
}

/// One class for the block's first, middle and last pages.
fn is_all(engine: &TestEngine, pages: Range<u64>, class: Class) {
    for pfn in pages.clone().step_by(SECTION as usize / 4).chain([pages.end - 1]) {
        assert_eq!(engine.class(Pfn(pfn)), (class, false), "{pfn}");
    }
}

#[test]
fn a_block_of_several_sections_comes_and_goes_whichever_of_them_were_used() {
    for sections in [2, 4, 16] {
        for used in 0..1u64 << sections.min(4) {
            let engine = Engine::new(host(), Config::new(2 * sections * SECTION)).unwrap();
            let mut hotplug = hotplug(&engine, sections);
            let (id, pages) = (BlockId(1), sections * SECTION..2 * sections * SECTION);
            for _ in 0..2 {
                hotplug.add(pages.clone(), 0, Group::NONE).unwrap();
                is_all(&engine, pages.clone(), Class::Offline);
                hotplug.online(id, MOVABLE).unwrap();
                is_all(&engine, pages.clone(), Class::Free);
                for section in (0..4).filter(|section| used >> section & 1 != 0) {
                    let pfn = Pfn(pages.start + section * SECTION + 77);
                    drop(engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap().share());
                }
                engine.audit().unwrap();
                tables_are_counted(&engine);
                hotplug.offline(id, &mut Unmovable).unwrap();
                is_all(&engine, pages.clone(), Class::Offline);
                tables_are_counted(&engine);
                hotplug.remove(id).unwrap();
                is_all(&engine, pages.clone(), Class::Absent);
                tables_are_counted(&engine);
            }
            // And all of it can be used in the end.
            hotplug.add(pages.clone(), 0, Group::NONE).unwrap();
            hotplug.online(id, MOVABLE).unwrap();
            let every = (pages.start..pages.end).step_by(1 << 13);
            let folios: Vec<_> =
                every.map(|pfn| engine.alloc_at(Pfn(pfn), order(13), Kind::Anon).unwrap().share()).collect();
            assert_eq!(engine.free_pages(), 0);
            engine.audit().unwrap();
            tables_are_counted(&engine);
            drop(folios);
            hotplug.offline(id, &mut Unmovable).unwrap();
            assert_eq!(map_pages_measured(&engine), 0);
        }
    }
}

/// A region is 512 sections: one byte stands for it until one of its sections is used.
#[test]
fn a_block_of_a_whole_region_comes_and_goes_after_one_page_of_it_was_used() {
    let sections = 512;
    let engine = Engine::new(host(), Config::new(2 * sections * SECTION)).unwrap();
    let mut hotplug = hotplug(&engine, sections);
    let (id, pages) = (BlockId(1), sections * SECTION..2 * sections * SECTION);
    for round in 0..3 {
        hotplug.add(pages.clone(), 0, Group::NONE).unwrap();
        hotplug.online(id, MOVABLE).unwrap();
        is_all(&engine, pages.clone(), Class::Free);
        if round > 0 {
            let pfn = Pfn(pages.start + 300 * SECTION);
            drop(engine.alloc_at(pfn, order(5), Kind::Anon).unwrap().share());
        }
        hotplug.offline(id, &mut Unmovable).unwrap();
        is_all(&engine, pages.clone(), Class::Offline);
        hotplug.remove(id).unwrap();
        is_all(&engine, pages.clone(), Class::Absent);
        engine.audit().unwrap();
        tables_are_counted(&engine);
    }
}

/// Memory is behind all of the block, and it says so in two ranges that meet inside a section.
struct TwoHalves(u64);

impl Listener for TwoHalves {
    fn notify(&self, _: Event, _: &BlockChange) -> Result<(), Veto> {
        Ok(())
    }
    fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        part(pages.start..pages.start + self.0);
        part(pages.start + self.0..pages.end);
        true
    }
}

#[test]
fn memory_that_is_told_of_in_parts_is_described_part_by_part() {
    for at in [512, SECTION / 2, SECTION, SECTION + 1024, 4 * SECTION - 512] {
        let engine = Engine::new(host(), Config::new(8 * SECTION)).unwrap();
        let mut hotplug = hotplug(&engine, 4);
        hotplug.listen(Arc::new(TwoHalves(at))).unwrap();
        hotplug.add(4 * SECTION..8 * SECTION, 0, Group::NONE).unwrap();
        hotplug.online(BlockId(1), MOVABLE).unwrap();
        is_all(&engine, 4 * SECTION..8 * SECTION, Class::Free);
        tables_are_counted(&engine);
        engine.audit().unwrap();
        drop(engine.alloc_at(Pfn(4 * SECTION + at), order(3), Kind::Anon).unwrap());
        hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
        tables_are_counted(&engine);
    }
}

#[test]
fn every_section_of_a_freed_folio_is_folded() {
    for bits in [15, 16, 18] {
        let engine = machine::<Fold>(2 << 18, Layout::Flat);
        let folio = engine.alloc_at(Pfn(1 << 18), order(bits), Kind::Hugetlb).unwrap().share();
        assert_eq!(map_pages_measured(&engine), (1 << bits) / DESCRIBED);
        let mut folder = engine.folder(512).unwrap();
        folder.fold_all();
        drop(folio);
        assert_eq!(folder.fold_all().map_pages, (1 << bits) / DESCRIBED, "order {bits}");
        assert_eq!(map_pages_measured(&engine), 0);
        // The same for one that was unfolded.
        engine.set_layout(Layout::Folded);
        let mut frozen = engine.alloc_at(Pfn(1 << 18), order(bits), Kind::Hugetlb).unwrap();
        frozen.unfold().unwrap();
        folder.fold_all();
        drop(frozen);
        folder.fold_all();
        assert_eq!(map_pages_measured(&engine), 0, "order {bits}");
        engine.audit().unwrap();
    }
}

#[test]
fn what_became_free_in_an_isolated_range_of_several_sections_is_folded_after_it() {
    let engine = machine::<Fold>(4 * SECTION, Layout::Folded);
    let folios: Vec<_> = (0..4)
        .map(|section| engine.alloc_at(Pfn(section * SECTION), order(3), Kind::Anon).unwrap())
        .collect();
    let isolated = engine.isolate(0..4 * SECTION).unwrap();
    drop(folios);
    let mut folder = engine.folder(512).unwrap();
    folder.fold_all();
    assert_eq!(map_pages_measured(&engine), 4);
    drop(isolated);
    folder.fold_all();
    assert_eq!(map_pages_measured(&engine), 0);
}

#[test]
fn folios_of_two_zones_are_never_made_one() {
    let engine = Engine::<TestPlatform>::new(host(), Config::new(8 * SECTION)).unwrap();
    let mut hotplug = hotplug(&engine, 1);
    hotplug.add(0..4 * SECTION, 0, Group::NONE).unwrap();
    for (block, zone) in [(0, Zone::Normal), (1, Zone::Movable), (2, Zone::Movable), (3, Zone::Movable)] {
        hotplug.online(BlockId(block), OnlineTo::Zone(zone)).unwrap();
    }
    let section = |n: u64| engine.alloc_at(Pfn(n * SECTION), order(15), Kind::Anon).unwrap();
    let folios = vec![section(0), section(1)];
    let seen = || classes(&engine, Pfn(0), 2 * SECTION / 64);
    let before = seen();
    let (folios, error) = Frozen::collapse(folios).unwrap_err();
    assert_eq!(error, ReshapeError::TwoZones);
    assert_eq!((seen(), folios.len()), (before, 2));
    engine.audit().unwrap();
    drop(folios);
    assert_eq!(engine.free_pages(), 4 * SECTION);
    // Blocks of one zone are fine.
    let whole = Frozen::collapse(vec![section(2), section(3)]).unwrap();
    assert_eq!(whole.order(), order(16));
    engine.audit().unwrap();
    drop(whole);
    assert_eq!(engine.free_pages(), 4 * SECTION);
    for block in 0..4 {
        hotplug.offline(BlockId(block), &mut Unmovable).unwrap();
    }
    engine.audit().unwrap();
}

#[test]
fn memory_that_ends_inside_an_area_is_all_there_where_a_block_was_used_before() {
    for pages in [SECTION + 100..SECTION + 1000, SECTION..SECTION + 77, SECTION + 70..2 * SECTION] {
        let engine = Engine::new(host(), Config::new(4 * SECTION)).unwrap();
        let mut hotplug = hotplug(&engine, 1);
        let id = BlockId(1);
        hotplug.add(SECTION..2 * SECTION, 0, Group::NONE).unwrap();
        hotplug.online(id, OnlineTo::Zone(Zone::Normal)).unwrap();
        // Small pages in the areas in which the boot memory begins or ends.
        for area in [0, 512] {
            drop(engine.alloc_at(Pfn(SECTION + area), Order::ZERO, Kind::Anon).unwrap());
        }
        hotplug.offline(id, &mut Unmovable).unwrap();
        hotplug.remove(id).unwrap();
        hotplug.boot(pages.clone(), 0).unwrap();
        assert_eq!(engine.free_pages(), pages.end - pages.start, "{pages:?}");
        engine.audit().unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| engine.alloc(Order::ZERO, Kind::Anon).ok()).collect();
        assert_eq!(taken.len() as u64, pages.end - pages.start, "{pages:?}");
        assert!(taken.iter().all(|page| pages.contains(&page.pfn().0)));
    }
}

/// A platform that folds only when it likes to.
struct Moody {
    host: TestPlatform,
    refuses: Arc<AtomicBool>,
}

struct MoodyRegion(Region, Arc<AtomicBool>);

// SAFETY: the region's own promises; refusing to fold is allowed, and changes nothing.
unsafe impl Mapping for MoodyRegion {
    const HAS_GAP: bool = false;
    fn base(&self) -> NonNull<u8> {
        self.0.base()
    }
    fn len(&self) -> u64 {
        self.0.len()
    }
    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory> {
        // SAFETY: the caller's promise.
        unsafe { self.0.materialise(bytes) }
    }
    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        if self.1.load(Ordering::Relaxed) {
            return 0;
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.fold(ranges) }
    }
}

impl Platform for Moody {
    type Mapping = MoodyRegion;
    type Barrier = Membarrier;
    type Owner = common::Owner;
    type Rules = Fold;
    type Descriptors = TestDescriptors;
    type Error = LinuxError;
    fn reserve(&self, kind: TableKind, bytes: u64) -> Result<MoodyRegion, LinuxError> {
        Ok(MoodyRegion(self.host.reserve(kind, bytes)?, Arc::clone(&self.refuses)))
    }
    fn barrier(&self) -> Membarrier {
        self.host.barrier()
    }
    fn cpu(&self) -> usize {
        self.host.cpu()
    }
}

#[test]
fn what_the_platform_refused_to_fold_is_counted_and_tried_again_when_the_block_goes() {
    let refuses = Arc::new(AtomicBool::new(true));
    let platform = Moody { host: host(), refuses: Arc::clone(&refuses) };
    let engine = Engine::new(platform, Config::new(8 * SECTION)).unwrap();
    let config = HotplugConfig { block_pages: 4 * SECTION, ..HotplugConfig::default() };
    let mut hotplug = engine.hotplug(config).unwrap();
    let (id, pages) = (BlockId(1), 4 * SECTION..8 * SECTION);
    let measured = || engine.tables().next().unwrap().1.0.measured_pages().unwrap();
    for refused_at_removal in [true, false] {
        hotplug.add(pages.clone(), 0, Group::NONE).unwrap();
        hotplug.online(id, MOVABLE).unwrap();
        refuses.store(true, Ordering::Relaxed);
        for section in [0, 2] {
            let pfn = Pfn(pages.start + section * SECTION);
            drop(engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap().share());
        }
        hotplug.offline(id, &mut Unmovable).unwrap();
        assert_eq!((engine.materialised_map_pages(), measured()), (2, 2));
        assert_eq!(engine.class(Pfn(pages.start)), (Class::Offline, true));
        engine.audit().unwrap();
        refuses.store(refused_at_removal, Ordering::Relaxed);
        hotplug.remove(id).unwrap();
        let left = if refused_at_removal { 2 } else { 0 };
        assert_eq!((engine.materialised_map_pages(), measured()), (left, left));
        assert_eq!(engine.class(Pfn(pages.start)), (Class::Absent, left > 0));
        engine.audit().unwrap();
    }
    // What stayed is free memory's when the block is back, and folds as that.
    refuses.store(true, Ordering::Relaxed);
    hotplug.add(pages.clone(), 0, Group::NONE).unwrap();
    hotplug.online(id, MOVABLE).unwrap();
    drop(engine.alloc_at(Pfn(pages.start), Order::ZERO, Kind::Anon).unwrap().share());
    hotplug.offline(id, &mut Unmovable).unwrap();
    hotplug.online(id, MOVABLE).unwrap();
    assert_eq!(engine.class(Pfn(pages.start)), (Class::Mapped, true));
    engine.audit().unwrap();
    refuses.store(false, Ordering::Relaxed);
    engine.folder(64).unwrap().fold_all();
    assert_eq!((engine.materialised_map_pages(), measured()), (0, 0));
    engine.audit().unwrap();
}

#[test]
fn free_memory_that_the_platform_refused_to_fold_is_tried_again() {
    let refuses = Arc::new(AtomicBool::new(true));
    let platform = Moody { host: host(), refuses: Arc::clone(&refuses) };
    let mut engine = Engine::new(platform, Config::new(4 * SECTION)).unwrap();
    engine.online(0..4 * SECTION).unwrap();
    for section in 0..4 {
        drop(engine.alloc_at(Pfn(section * SECTION + 128), order(3), Kind::Anon).unwrap());
    }
    let mut folder = engine.folder(8).unwrap();
    let report = folder.fold_all();
    assert_eq!((report.map_pages, report.refused > 0), (0, true), "it ends all the same");
    assert_eq!(engine.materialised_map_pages(), 4);
    engine.audit().unwrap();
    refuses.store(false, Ordering::Relaxed);
    assert_eq!(folder.fold_all().map_pages, 4);
    assert_eq!(engine.materialised_map_pages(), 0);
    engine.audit().unwrap();
}

#[test]
fn memory_added_where_a_refused_block_was_is_sound() {
    let refuses = Arc::new(AtomicBool::new(true));
    let platform = Moody { host: host(), refuses: Arc::clone(&refuses) };
    let engine = Engine::new(platform, Config::new(4 * SECTION)).unwrap();
    let mut hotplug = engine.hotplug(HotplugConfig::default()).unwrap();
    hotplug.add(SECTION..2 * SECTION, 0, Group::NONE).unwrap();
    hotplug.online(BlockId(1), MOVABLE).unwrap();
    drop(engine.alloc_at(Pfn(SECTION + 128), Order::ZERO, Kind::Anon).unwrap().share());
    hotplug.offline(BlockId(1), &mut Unmovable).unwrap();
    hotplug.remove(BlockId(1)).unwrap();
    hotplug.boot(SECTION..2 * SECTION, 0).unwrap();
    engine.audit().unwrap();
    let walker = engine.walker().unwrap();
    let folio = engine.alloc_at(Pfn(SECTION), order(8), Kind::Anon).unwrap().share();
    assert_eq!(walker.try_get(Pfn(SECTION + 190)).unwrap().pfn(), folio.pfn());
    drop(folio);
    refuses.store(false, Ordering::Relaxed);
    engine.folder(64).unwrap().fold_all();
    assert_eq!(engine.materialised_map_pages(), 0);
    engine.audit().unwrap();
}
