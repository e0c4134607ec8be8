//! What the engine and the page tables do, in which order: recorded on a machine of plain memory, for one map page.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock};

use pagefold_engine::platform::{Barrier, FoldRange, Mapping, Platform, TableKind};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Class, Config, Engine, Kind, Order, OutOfMemory, Page64, Pfn};
use pagefold_pagetable::aarch64::ArmEntry;
use pagefold_pagetable::simulated::{Frames, Simulated};
use pagefold_pagetable::{Entry, Flush, Gap, HUGE, Mmu, PAGE, Reservation, Shared, Slot};
use pagefold_tlb_model::orders::FolderStep;

/// Pages of the machine: its map has two page tables.
const PAGES: u64 = 1 << 16;
const BASE: u64 = 64 * HUGE;

/// The orders that were recorded.
#[derive(Debug)]
pub struct Recorded {
    pub fold: Vec<FolderStep>,
    pub unfold_unused: Vec<FolderStep>,
    pub unfold_used: Vec<FolderStep>,
    pub unfold_shared: Vec<FolderStep>,
    pub removal: Vec<FolderStep>,
}

/// Who records, and of which map page.
struct Recorder {
    machine: Simulated<ArmEntry>,
    watch: Mutex<Watch>,
}

#[derive(Default)]
struct Watch {
    map_page: u64,
    steps: Vec<FolderStep>,
    is_mapped: bool,
    /// Page tables, and the frame behind the map page.
    tables: Vec<u64>,
    frame: u64,
}

static ENGINE: OnceLock<&'static Engine<Recording>> = OnceLock::new();

impl Recorder {
    /// A step, after what the class has become since the last one.
    fn record(&self, step: Option<FolderStep>) {
        let Some(engine) = ENGINE.get() else { return };
        let mut watch = self.watch.lock().unwrap();
        let is_mapped = engine.class(Pfn(watch.map_page * 64)).0 == Class::Mapped;
        if std::mem::replace(&mut watch.is_mapped, is_mapped) != is_mapped {
            watch.steps.push(if is_mapped { FolderStep::PublishMapped } else { FolderStep::PublishFolded });
        }
        watch.steps.extend(step);
    }

    /// What is done to the map page from now on.
    fn begin(&self, map_page: u64) {
        let mut watch = self.watch.lock().unwrap();
        watch.map_page = map_page;
        let is_mapped = ENGINE.get().unwrap().class(Pfn(map_page * 64)).0 == Class::Mapped;
        (watch.is_mapped, watch.frame) = (is_mapped, self.frame(map_page));
        watch.steps.clear();
    }

    fn end(&self) -> Vec<FolderStep> {
        self.record(None);
        std::mem::take(&mut self.watch.lock().unwrap().steps)
    }

    /// The frame that the map page's entry leads to.
    fn frame(&self, map_page: u64) -> u64 {
        let mmu = &self.machine;
        let directory = ArmEntry.address(mmu.load(mmu.upper(BASE)));
        let middle = Slot { table: directory, index: (map_page / 512) as usize };
        let table = ArmEntry.address(mmu.load(middle));
        ArmEntry.address(mmu.load(Slot { table, index: (map_page % 512) as usize }))
    }

    /// Which step it is to store `word` into `slot`, if it is one of the map page's.
    fn changed(&self, slot: Slot, old: u64, word: u64, is_swap: bool) -> Option<FolderStep> {
        const NOT_AT_EL0: u64 = 1 << 54;
        let watch = self.watch.lock().unwrap();
        let (was, is) = (ArmEntry.is_present(old), ArmEntry.is_present(word));
        if word & NOT_AT_EL0 != 0 {
            let is_ours = slot.index as u64 == watch.map_page % 512 && watch.tables.contains(&slot.table);
            return is_ours.then_some(match () {
                () if !is => FolderStep::BreakPage,
                () if !ArmEntry.is_writable(word) => FolderStep::MakeZero,
                () if is_swap => FolderStep::SwapPage,
                () => FolderStep::MakePage,
            });
        }
        // Directories' entries; those that lead to directories are not part of this.
        if slot.table == PAGE || slot.index as u64 != watch.map_page / 512 {
            return None;
        }
        let has_moved = was != is || ArmEntry.address(old) != ArmEntry.address(word);
        has_moved.then_some(match () {
            () if !is => FolderStep::BreakTable,
            () if watch.tables.contains(&ArmEntry.address(word)) => FolderStep::LinkTable,
            () => FolderStep::LinkShared,
        })
    }
}

// SAFETY: as the simulated machine, which does all of it.
unsafe impl<'m> Mmu for &'m Recorder {
    type Entry = ArmEntry;
    type Frames = Frames<'m, ArmEntry>;

    fn format(&self) -> ArmEntry {
        ArmEntry
    }
    fn upper(&self, address: u64) -> Slot {
        (&self.machine).upper(address)
    }
    fn load(&self, slot: Slot) -> u64 {
        (&self.machine).load(slot)
    }
    fn swap(&self, slot: Slot, word: u64) -> u64 {
        let old = (&self.machine).swap(slot, word);
        self.record(self.changed(slot, old, word, false));
        old
    }
    fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        (&self.machine).compare_exchange(slot, old, new)?;
        self.record(self.changed(slot, old, new, true));
        Ok(())
    }
    fn fill(&self, table: u64, word: u64) {
        (&self.machine).fill(table, word);
        let is_page_table = word >> 54 & 1 != 0;
        if is_page_table {
            self.watch.lock().unwrap().tables.push(table);
            self.record(Some(FolderStep::FillTable));
        }
    }
    fn flush(&self, what: Flush<'_>) {
        (&self.machine).flush(what);
        self.record(Some(FolderStep::Flush));
    }
    fn made(&self, range: Range<u64>) {
        (&self.machine).made(range);
    }
    fn take(&self, count: u64) -> Option<Self::Frames> {
        let machine: &'m Recorder = self;
        <&Simulated<ArmEntry> as Mmu>::take(&&machine.machine, count)
    }
    unsafe fn give(&self, frame: u64) {
        // SAFETY: the caller's promise.
        unsafe { (&self.machine).give(frame) };
        let mut watch = self.watch.lock().unwrap();
        let step = match frame {
            _ if frame == watch.frame => Some(FolderStep::FreePage),
            _ if watch.tables.contains(&frame) => Some(FolderStep::FreeTable),
            _ => None,
        };
        watch.tables.retain(|table| *table != frame);
        drop(watch);
        self.record(step);
    }
}

/// Real memory, so that the engine can use it, and page tables that lead nowhere, so that it is recorded.
struct Table {
    memory: NonNull<u8>,
    len: u64,
    reservation: Option<Reservation<'static, &'static Recorder>>,
}

// SAFETY: the memory is leaked and this value's alone.
unsafe impl Send for Table {}
// SAFETY: as above; the engine reads and writes it by the rules of `Mapping`.
unsafe impl Sync for Table {}

// SAFETY: memory that is always there, aligned, zero at first and where it is folded.
unsafe impl Mapping for Table {
    fn base(&self) -> NonNull<u8> {
        self.memory
    }
    fn len(&self) -> u64 {
        self.len
    }
    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory> {
        let Some(reservation) = &self.reservation else { return Ok(()) };
        // SAFETY: the caller's promise.
        unsafe { reservation.materialise(bytes) }.map_err(|_| OutOfMemory)
    }
    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        if let Some(reservation) = &self.reservation {
            // SAFETY: the caller's promise.
            unsafe { reservation.fold(ranges.iter().map(|range| range.bytes.clone())) };
            for range in ranges {
                let len = (range.bytes.end - range.bytes.start) as usize;
                // SAFETY: within the memory, and nobody reads or writes it.
                unsafe { self.memory.add(range.bytes.start as usize).write_bytes(0, len) };
            }
        }
        ranges.len()
    }
}

/// Fences, and a note of each grace period.
struct Noted(&'static Recorder);

// SAFETY: both halves are sequentially consistent fences.
unsafe impl Barrier for Noted {
    fn light(&self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
    fn heavy(&self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.0.record(Some(FolderStep::Grace));
    }
}

struct Recording {
    recorder: &'static Recorder,
    shared: &'static Shared<&'static Recorder>,
}

impl Platform for Recording {
    type Mapping = Table;
    type Barrier = Noted;
    type Owner = ();
    type Rules = Fold;
    type Descriptors = Page64;
    type Error = OutOfMemory;

    fn reserve(&self, kind: TableKind, bytes: u64) -> Result<Table, OutOfMemory> {
        let pages = vec![[0u64; 512]; bytes.div_ceil(PAGE) as usize + 1].leak();
        let memory = NonNull::new(pages.as_mut_ptr().cast::<u8>()).ok_or(OutOfMemory)?;
        let skip = memory.as_ptr().align_offset(PAGE as usize);
        // SAFETY: the only reservation of the machine.
        let reserve = || unsafe { Reservation::new(self.shared, BASE, bytes, Gap::Allowed) };
        let reservation = (kind == TableKind::Map).then(reserve).transpose().map_err(|_| OutOfMemory)?;
        // SAFETY: a page more than is asked for was allocated.
        Ok(Table { memory: unsafe { memory.add(skip) }, len: bytes, reservation })
    }
    fn barrier(&self) -> Noted {
        Noted(self.recorder)
    }
    fn cpu(&self) -> usize {
        0
    }
}

/// Plays a folio's and a page's life on the engine.
pub fn of_the_code() -> Recorded {
    let recorder = Recorder { machine: Simulated::new(ArmEntry, 600), watch: Mutex::default() };
    let recorder: &'static Recorder = Box::leak(Box::new(recorder));
    let shared: &'static _ = Box::leak(Box::new(Shared::new(recorder).unwrap()));
    // Its page table is not one of those that come and go.
    recorder.watch.lock().unwrap().tables.clear();
    let mut engine = Engine::new(Recording { recorder, shared }, Config::new(PAGES)).unwrap();
    engine.online(0..PAGES).unwrap();
    let engine: &'static Engine<Recording> = Box::leak(Box::new(engine));
    assert!(ENGINE.set(engine).is_ok(), "called once");

    // A folio of 2 MiB whose map pages are all there, as pages of it were used before; one of its tails is watched.
    let mut folio = engine.alloc_at(Pfn(512), Order::AREA, Kind::Hugetlb).unwrap();
    folio.unfold().unwrap();
    let watched = 512 / 64 + 1;
    let mut batch = engine.fold_batch(1).unwrap();
    recorder.begin(watched);
    batch.push(folio).unwrap();
    assert_eq!(batch.commit().map_pages, 7);
    let fold = recorder.end();
    let mut folio = batch.drain().next().unwrap();
    drop(batch);

    recorder.begin(watched);
    folio.unfold().unwrap();
    let unfold_unused = recorder.end();

    let mut batch = engine.fold_batch(1).unwrap();
    batch.push(folio).unwrap();
    batch.commit();
    let mut folio = batch.drain().next().unwrap();
    drop(batch);
    // Hardware looks at what is folded.
    assert_eq!(recorder.machine.read(BASE + watched * PAGE), Ok(0));
    recorder.begin(watched);
    folio.unfold().unwrap();
    let unfold_used = recorder.end();

    // A page in the second half: its map page is under a page table that is shared still.
    let far = PAGES / 2 + 64;
    recorder.begin(far / 64);
    let page = engine.alloc_at(Pfn(far), Order::ZERO, Kind::Slab).unwrap();
    let unfold_shared = recorder.end();

    drop(page);
    recorder.begin(far / 64);
    let mut folder = engine.folder(64).unwrap();
    folder.fold_all();
    let removal = recorder.end();
    drop(folio);
    Recorded { fold, unfold_unused, unfold_used, unfold_shared, removal }
}
