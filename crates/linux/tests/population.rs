//! Workloads on the real platform: they fill memory, pin it, move out of memory blocks that go, and what they wrote
//! survives.

mod common;

use std::cell::{Cell, RefCell};
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{BLOCK, SetOnDrop};
use pagefold_engine::hotplug::{BlockError, BlockId, Group, Hotplug, HotplugConfig, OnlineTo};
use pagefold_engine::{Config, Engine, Folio, Frozen, Order, Pfn, Platform, Zone};
use pagefold_linux::{Linux, Membarrier};
use pagefold_workload::{
    Change, Contents, Index, Log, Population, PopulationError, Stamp, WalkerKind, WalkerTask, Workload,
    WorkloadArg, slots,
};

const BLOCKS: u64 = 8;
const PAGE: u64 = 4096;

type Machine = Linux<Membarrier, Stamp>;
type TestEngine = Engine<Machine>;

/// All memory as one range of words, as a kernel's direct map has it. Pages that nobody writes to take none.
struct DirectMap {
    words: RefCell<Vec<u64>>,
    /// Whether there is memory for more.
    is_full: Cell<bool>,
}

impl DirectMap {
    fn new() -> Self {
        let words = vec![0; (BLOCKS * BLOCK * PAGE / 8) as usize];
        Self { words: RefCell::new(words), is_full: Cell::new(false) }
    }

    fn words(head: Pfn, order: Order) -> Range<usize> {
        let word = |pages: u64| (pages * PAGE / 8) as usize;
        word(head.0)..word(head.0 + order.pages())
    }

    fn range<P: Platform>(folio: &Folio<'_, P>) -> Range<usize> {
        Self::words(folio.pfn(), folio.order())
    }

    fn frozen_range<P: Platform>(folio: &Frozen<'_, P>) -> Range<usize> {
        Self::words(folio.pfn(), folio.order())
    }

    fn scribble(&self, pages: Range<u64>) {
        self.words.borrow_mut()[(pages.start * PAGE / 8) as usize..(pages.end * PAGE / 8) as usize].fill(0);
    }
}

impl<P: Platform> Contents<P> for DirectMap {
    type Error = &'static str;

    fn mark(&self, folio: &mut Frozen<'_, P>, mark: u64) -> Result<(), Self::Error> {
        if self.is_full.get() {
            return Err("no memory behind it");
        }
        self.words.borrow_mut()[Self::frozen_range(folio)].fill(mark);
        Ok(())
    }

    fn holds(&self, folio: &Folio<'_, P>, mark: u64) -> Result<bool, Self::Error> {
        Ok(self.words.borrow()[Self::range(folio)].iter().all(|&word| word == mark))
    }

    fn copy(&self, from: &Folio<'_, P>, to: &mut Frozen<'_, P>, mark: u64) -> Result<bool, Self::Error> {
        if self.is_full.get() {
            return Err("no memory behind it");
        }
        self.words.borrow_mut().copy_within(Self::range(from), Self::frozen_range(to).start);
        self.holds(from, mark)
    }
}

fn engine() -> TestEngine {
    let host = Linux::new(Membarrier::register().unwrap()).unwrap();
    Engine::new(host, Config::new(BLOCKS * BLOCK)).unwrap()
}

fn workloads(texts: &[&str]) -> Vec<Workload> {
    texts.iter().map(|text| WorkloadArg::parse(text).unwrap().workload).collect()
}

fn index<'e>(engine: &'e TestEngine, workloads: &[Workload]) -> Index<'e, Machine> {
    Index::new(engine, slots(workloads), Vec::new(), 0).unwrap()
}

/// A block of boot memory, and `added` movable ones from the fourth on.
fn hotplug(engine: &TestEngine, added: Range<u64>) -> Hotplug<'_, Machine> {
    let mut hotplug = engine.hotplug(HotplugConfig::default()).unwrap();
    hotplug.boot(0..BLOCK, 0).unwrap();
    added.for_each(|number| plug(&mut hotplug, number));
    hotplug
}

fn plug(hotplug: &mut Hotplug<'_, Machine>, number: u64) {
    hotplug.add(block(number), 0, Group::NONE).unwrap();
    hotplug.online(BlockId(number), OnlineTo::Zone(Zone::Movable)).unwrap();
}

fn block(number: u64) -> Range<u64> {
    number * BLOCK..(number + 1) * BLOCK
}

type People<'a, 'e> = Population<'a, 'e, Machine, DirectMap>;

fn change(people: &mut People<'_, '_>, workload: usize, change: Change, blocks: &[Range<u64>]) -> u64 {
    people.change(workload, change, blocks, |_| ControlFlow::Continue(()))
}

/// Heads of all folios there are.
fn heads(index: &Index<'_, Machine>) -> Vec<u64> {
    index.shared().filter_map(|slot| index.load(slot)).map(|entry| entry.head().0).collect()
}

#[test]
fn a_block_is_emptied_and_what_was_written_survives() {
    let engine = engine();
    let mut hotplug = hotplug(&engine, 3..5);
    let memory = DirectMap::new();
    let workloads = workloads(&[
        "page-cache=24M,orders=0:0.2+4:0.3+9:0.5,touch",
        "anonymous=16M,orders=0:0.4+9:0.6,touch,fragmentation=0.5",
        "hugetlb=8M,touch",
    ]);
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    for (number, megabytes) in [24, 16, 8].into_iter().enumerate() {
        assert_eq!(change(&mut people, number, Change::To(megabytes << 20), &[]), 0);
    }
    let folios = people.folios();
    let [normal, movable] = people.in_use();
    assert_eq!(normal, 0, "movable folios go into the movable zone");
    assert!(movable.abs_diff(48 << 20) < 2 << 20, "{movable}");
    assert_eq!(people.hvo_saving(), 4 * 7 * PAGE);
    // Something lies in each of the two blocks that go; it moves to boot memory in the end.
    hotplug.offline(BlockId(3), &mut people).unwrap();
    hotplug.offline(BlockId(4), &mut people).unwrap();
    assert!(people.migrated() >= folios, "{} of {folios}", people.migrated());
    assert_eq!(people.in_use(), [movable, 0]);
    assert_eq!((people.folios(), people.hvo_saving()), (folios, 4 * 7 * PAGE));
    assert!(heads(&index).iter().all(|&pfn| pfn < BLOCK));
    // The host takes what was there.
    memory.scribble(3 * BLOCK..5 * BLOCK);
    engine.audit().unwrap();
    for number in 0..3 {
        change(&mut people, number, Change::To(0), &[]);
    }
    assert_eq!((people.lost(), people.folios(), people.in_use()), (0, 0, [0; 2]));
    assert_eq!(people.hvo_saving(), 0);
    assert_eq!(engine.free_pages(), BLOCK);
    engine.audit().unwrap();
}

#[test]
fn what_was_lost_is_noticed() {
    let engine = engine();
    let _hotplug = hotplug(&engine, 3..4);
    let memory = DirectMap::new();
    let workloads = workloads(&["anonymous=1M,touch", "page-cache=1M"]);
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    change(&mut people, 0, Change::To(1 << 20), &[]);
    change(&mut people, 1, Change::To(1 << 20), &[]);
    for head in heads(&index).into_iter().take(3) {
        memory.scribble(head..head + 1);
    }
    change(&mut people, 0, Change::Free(1.0), &[]);
    change(&mut people, 1, Change::Free(1.0), &[]);
    assert_eq!(people.lost(), 3, "and nothing of what was never written to");
}

#[test]
fn pinned_folios_are_spread_and_keep_every_block() {
    let engine = engine();
    let mut hotplug = hotplug(&engine, 2..8);
    let memory = DirectMap::new();
    let workloads = workloads(&["pinned=48K", "page-cache=8M,touch"]);
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    let blocks: Vec<_> = (2..8).map(block).collect();
    assert_eq!(change(&mut people, 0, Change::To(48 << 10), &blocks), 0);
    let heads = heads(&index);
    for block in &blocks {
        assert_eq!(heads.iter().filter(|&head| block.contains(head)).count(), 2);
    }
    change(&mut people, 1, Change::To(8 << 20), &blocks);
    for number in 2..8 {
        let Err(BlockError::Busy(busy)) = hotplug.offline(BlockId(number), &mut people) else {
            panic!("block {number} went with pinned folios in it");
        };
        assert_eq!((busy.pages, busy.unmovable), (2, 2), "all else moved away, or it was not there");
    }
    engine.audit().unwrap();
    change(&mut people, 0, Change::Pin(0.0), &blocks);
    for number in 2..8 {
        hotplug.offline(BlockId(number), &mut people).unwrap();
    }
    change(&mut people, 1, Change::To(0), &blocks);
    assert_eq!(people.lost(), 0);
    engine.audit().unwrap();
}

#[test]
fn a_share_is_pinned_and_a_share_is_freed() {
    let engine = engine();
    let mut hotplug = hotplug(&engine, 3..4);
    let memory = DirectMap::new();
    let workloads = workloads(&["anonymous=4M"]);
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    change(&mut people, 0, Change::To(4 << 20), &[]);
    change(&mut people, 0, Change::Free(0.5), &[]);
    assert_eq!(people.folios(), 512);
    change(&mut people, 0, Change::Pin(0.25), &[]);
    let Err(BlockError::Busy(busy)) = hotplug.offline(BlockId(3), &mut people) else { panic!("pinned") };
    assert_eq!(busy.unmovable, 128);
    assert_eq!(people.migrated(), 384);
    // What is freed takes its pin along: the slot's next folio moves.
    change(&mut people, 0, Change::To(0), &[]);
    change(&mut people, 0, Change::To(4 << 20), &[]);
    hotplug.offline(BlockId(3), &mut people).unwrap();
}

#[test]
fn kernel_memory_stays_where_it_is() {
    let engine = engine();
    let mut hotplug = engine.hotplug(HotplugConfig::default()).unwrap();
    hotplug.add(block(3), 0, Group::NONE).unwrap();
    hotplug.online(BlockId(3), OnlineTo::Zone(Zone::Normal)).unwrap();
    plug(&mut hotplug, 4);
    let memory = DirectMap::new();
    let workloads = workloads(&["kernel=1M,orders=3,touch"]);
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    change(&mut people, 0, Change::To(1 << 20), &[]);
    assert_eq!(people.in_use(), [1 << 20, 0], "the movable zone has room, and is not for it");
    let Err(BlockError::Busy(busy)) = hotplug.offline(BlockId(3), &mut people) else { panic!("it stays") };
    assert_eq!((busy.unmovable, people.migrated()), (32, 0));
}

#[test]
fn what_is_given_back_in_between_leaves_holes() {
    let engine = engine();
    let _hotplug = hotplug(&engine, 3..5);
    let memory = DirectMap::new();
    // Areas that pages of each lie in: 16 MiB fill eight of them.
    let areas = |text: &str| {
        let workloads = workloads(&[text]);
        let index = index(&engine, &workloads);
        let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
        change(&mut people, 0, Change::To(16 << 20), &[]);
        assert_eq!(people.folios(), 4096);
        let mut areas: Vec<_> = heads(&index).into_iter().map(|head| head / 512).collect();
        areas.sort_unstable();
        areas.dedup();
        areas.len()
    };
    assert!(areas("anonymous=16M") <= 9);
    assert!(areas("anonymous=16M,fragmentation=0.75") >= 31);
}

#[test]
fn what_finds_no_place_is_counted() {
    let engine = engine();
    let _hotplug = hotplug(&engine, 0..0);
    let memory = DirectMap::new();
    let workloads = workloads(&["anonymous=200M,orders=9", "page-cache=1M,touch"]);
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    assert_eq!(change(&mut people, 0, Change::To(200 << 20), &[]), 72 << 20, "the machine has 128 MiB");
    change(&mut people, 0, Change::To(0), &[]);
    memory.is_full.set(true);
    assert_eq!(change(&mut people, 1, Change::To(1 << 20), &[]), 1 << 20, "the host has none");
    assert_eq!((people.folios(), engine.free_pages()), (0, BLOCK));
}

#[test]
fn without_memory_for_the_copy_nothing_moves_and_nothing_is_lost() {
    let engine = engine();
    let mut hotplug = hotplug(&engine, 3..4);
    let memory = DirectMap::new();
    let workloads = workloads(&["page-cache=4M,orders=0:0.5+9:0.5,touch"]);
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    change(&mut people, 0, Change::To(4 << 20), &[]);
    memory.is_full.set(true);
    let Err(BlockError::NoRoom(busy)) = hotplug.offline(BlockId(3), &mut people) else { panic!("no copy") };
    assert_eq!((busy.pages, busy.unmovable, people.migrated()), (1024, 0, 0));
    engine.audit().unwrap();
    memory.is_full.set(false);
    hotplug.offline(BlockId(3), &mut people).unwrap();
    change(&mut people, 0, Change::To(0), &[]);
    assert_eq!(people.lost(), 0);
}

#[test]
fn whoever_listens_may_end_it() {
    let engine = engine();
    let _hotplug = hotplug(&engine, 3..4);
    let memory = DirectMap::new();
    let workloads = workloads(&["anonymous=4M"]);
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    let until = |people: &mut People<'_, '_>, change, end: u64| {
        people.change(0, change, &[], |people| match people.folios() {
            folios if folios == end => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert_eq!(people.folios(), end);
    };
    until(&mut people, Change::To(4 << 20), 100);
    change(&mut people, 0, Change::To(4 << 20), &[]);
    assert_eq!(people.folios(), 1024);
    until(&mut people, Change::Free(1.0), 700);
    until(&mut people, Change::To(0), 3);
}

#[test]
fn a_seed_decides_everything() {
    let live = |seed| {
        let engine = engine();
        let mut hotplug = hotplug(&engine, 3..6);
        let memory = DirectMap::new();
        let workloads = workloads(&["page-cache=8M,orders=0:0.5+4:0.5,fragmentation=0.5", "pinned=64K"]);
        let index = index(&engine, &workloads);
        let mut people = Population::new(&index, &memory, &workloads, seed).unwrap();
        let blocks: Vec<_> = (3..6).map(block).collect();
        change(&mut people, 0, Change::To(8 << 20), &blocks);
        change(&mut people, 1, Change::To(64 << 10), &blocks);
        change(&mut people, 0, Change::Free(0.5), &blocks);
        hotplug.offline(BlockId(3), &mut people).unwrap_err();
        heads(&index)
    };
    assert_eq!(live(7), live(7));
    assert_ne!(live(7), live(8));
}

#[test]
fn nothing_that_is_asked_for_makes_it_fail() {
    let engine = engine();
    let _hotplug = hotplug(&engine, 3..4);
    let memory = DirectMap::new();
    let workloads = workloads(&["anonymous=1M", "pinned=1M,orders=4"]);
    let small = Index::new(&engine, 3, Vec::new(), 0).unwrap();
    let refused = Population::new(&small, &memory, &workloads, 7).unwrap_err();
    assert_eq!(refused, PopulationError::FewSlots { needed: 256 + 16, available: 3 });
    assert!(refused.to_string().contains("272") && refused.to_string().contains("room for 3"));
    let index = index(&engine, &workloads);
    let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
    #[allow(clippy::reversed_empty_ranges)]
    let blocks = [5..3, 0..0, u64::MAX - 1..u64::MAX, 0..u64::MAX, 100 * BLOCK..101 * BLOCK, 1..17];
    for part in [f64::NAN, f64::INFINITY, -1.0, 5.0] {
        for number in [0, 1, 2, usize::MAX] {
            for change in [Change::Free(part), Change::Pin(part), Change::To(u64::MAX), Change::To(1)] {
                people.change(number, change, &blocks, |_| ControlFlow::Continue(()));
            }
        }
    }
    assert!(people.folios() <= 272);
    // Room is all that limits it: no more folios than were allowed for.
    assert_eq!(change(&mut people, 0, Change::To(2 << 20), &[]), 1 << 20);
    engine.audit().unwrap();
}

#[test]
fn memory_comes_and_goes_under_walkers() {
    let engine = engine();
    let mut hotplug = hotplug(&engine, 3..5);
    let memory = DirectMap::new();
    let workloads = workloads(&["page-cache=16M,orders=0:0.5+4:0.2+9:0.3,touch", "anonymous=16M,touch"]);
    let index = index(&engine, &workloads);
    let (log, stop) = (Log::new(), AtomicBool::new(false));
    let people = std::thread::scope(|scope| {
        let _stopper = SetOnDrop(&stop);
        for (kind, seed) in WalkerKind::ALL.into_iter().zip(0..) {
            let (index, log, stop) = (&index, &log, &stop);
            scope.spawn(move || {
                let mut walker = WalkerTask::new(kind, index, log, seed).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    walker.step();
                }
            });
        }
        let mut people = Population::new(&index, &memory, &workloads, 7).unwrap();
        let mut round = |number: u64| {
            change(&mut people, 0, Change::To(16 << 20), &[]);
            change(&mut people, 1, Change::To((number % 3) << 23), &[]);
            for number in 3..5 {
                // A walker may be on a folio for a moment: as many attempts as that can take, and no more.
                let is_offline = (0..1000).any(|_| match hotplug.offline(BlockId(number), &mut people) {
                    Ok(()) => true,
                    Err(BlockError::Busy(_)) => false,
                    Err(other) => panic!("{other}"),
                });
                assert!(is_offline, "block {number} stays busy");
                hotplug.remove(BlockId(number)).unwrap();
                memory.scribble(block(number));
                plug(&mut hotplug, number);
            }
            change(&mut people, 0, Change::Free(0.5), &[]);
        };
        (0..12).for_each(&mut round);
        people
    });
    assert!(people.migrated() > 1000);
    assert_eq!((people.lost(), log.total()), (0, 0));
    engine.audit().unwrap();
}
