//! A machine on which every allocation can fail, and every fold can be refused: once, at the place that a program names.
//!
//! A plan belongs to a thread, and strikes only while the thread is inside a call of the engine ([`armed`]): what the
//! programs allocate for themselves, and what their callbacks do, is spared.

use std::alloc::{GlobalAlloc, Layout as Shape, System};
use std::cell::Cell;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use pagefold_engine::geometry::PAGE_SIZE;
use pagefold_engine::platform::{FoldRange, Mapping, TableKind};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Engine, OutOfMemory, Platform};
use pagefold_linux::{Linux, LinuxError, Membarrier, Preempted, Region};

/// What owners keep in descriptors.
pub type Owner = [u64; 7];
/// The protocol, with walkers that lose their CPU at the worst moment.
pub type Rules = Preempted<Fold>;
/// What a descriptor is: the same programs run over both kinds.
#[cfg(not(feature = "memdesc"))]
pub type TestDescriptors = pagefold_engine::Page64;
#[cfg(feature = "memdesc")]
pub type TestDescriptors = pagefold_engine::Memdesc;
pub type Machine = Engine<Failing>;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scarce {
    /// Heap memory.
    Heap,
    /// Memory behind the engine's tables, the memory map included.
    Tables,
    /// Nothing is missing, but the mapping does not take memory back.
    Folds,
}

/// After so many calls that go well, so many fail; then all is well again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub what: Scarce,
    pub after: u8,
    pub times: u8,
}

thread_local! {
    static PLAN: Cell<Option<Fault>> = const { Cell::new(None) };
    static IS_ARMED: Cell<bool> = const { Cell::new(false) };
    static HAS_STRUCK: Cell<bool> = const { Cell::new(false) };
    static PACE: Cell<u64> = const { Cell::new(0) };
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// Sets the plan of this thread for its next step.
pub fn plan(fault: Option<Fault>) {
    PLAN.set(fault);
    HAS_STRUCK.set(false);
}

/// Whether the plan has struck since it was set.
pub fn has_struck() -> bool {
    HAS_STRUCK.get()
}

/// Sets `IS_ARMED` back, also when a callback panics.
struct Back(bool);

impl Drop for Back {
    fn drop(&mut self) {
        IS_ARMED.set(self.0);
    }
}

/// Runs a call of the engine, which the plan may strike.
pub fn armed<T>(call: impl FnOnce() -> T) -> T {
    let _back = Back(IS_ARMED.replace(true));
    call()
}

/// Runs what the plan must not strike: a callback.
pub fn spared<T>(call: impl FnOnce() -> T) -> T {
    let _back = Back(IS_ARMED.replace(false));
    call()
}

/// Says which CPU the thread runs on from now on, and how often it is to lose it inside of the engine (0: never).
pub fn run_on(cpu: usize, pace: u64) {
    CPU.set(cpu);
    PACE.set(pace);
}

fn strikes(what: Scarce) -> bool {
    // A thread that ends has no plan any more.
    if !IS_ARMED.try_with(Cell::get).unwrap_or(false) {
        return false;
    }
    let Some(fault) = PLAN.get().filter(|fault| fault.what == what) else { return false };
    let (next, strikes) = match fault {
        Fault { after: 1.., .. } => (Fault { after: fault.after - 1, ..fault }, false),
        Fault { times: 1.., .. } => (Fault { times: fault.times - 1, ..fault }, true),
        _ => (fault, false),
    };
    PLAN.set(Some(next));
    HAS_STRUCK.set(HAS_STRUCK.get() || strikes);
    strikes
}

/// Gives the CPU to another thread, now and then.
fn lose_cpu() {
    let pace = PACE.get();
    if pace != 0 {
        let next = pace.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) | 1;
        PACE.set(next);
        if next >> 62 == 0 {
            std::thread::yield_now();
        }
    }
}

/// The system's allocator, but for allocations that are to fail.
pub struct Heap;

// SAFETY: the system's allocator in every respect; a null pointer is what an allocator answers that has no memory.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, shape: Shape) -> *mut u8 {
        if strikes(Scarce::Heap) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(shape) }
    }
    unsafe fn alloc_zeroed(&self, shape: Shape) -> *mut u8 {
        if strikes(Scarce::Heap) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(shape) }
    }
    unsafe fn realloc(&self, place: *mut u8, shape: Shape, size: usize) -> *mut u8 {
        if strikes(Scarce::Heap) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.realloc(place, shape, size) }
    }
    unsafe fn dealloc(&self, place: *mut u8, shape: Shape) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, shape) }
    }
}

/// This machine, with failures.
pub struct Failing(Linux<Membarrier, Owner>);

impl Failing {
    pub fn new() -> Self {
        Self(Linux::new(Membarrier::register().unwrap()).unwrap())
    }
}

impl Platform for Failing {
    type Mapping = FailingRegion;
    type Barrier = Membarrier;
    type Owner = Owner;
    type Rules = Rules;
    type Descriptors = TestDescriptors;
    type Error = LinuxError;

    fn reserve(&self, kind: TableKind, bytes: u64) -> Result<FailingRegion, LinuxError> {
        if strikes(Scarce::Tables) {
            return Err(LinuxError::NoPopulate(std::io::ErrorKind::OutOfMemory.into()));
        }
        let region = self.0.reserve(kind, bytes)?;
        let words = if kind.folds() { 0 } else { region.len().div_ceil(64 * PAGE_SIZE) };
        Ok(FailingRegion { region, backed: (0..words).map(|_| AtomicU64::new(0)).collect() })
    }
    fn barrier(&self) -> Membarrier {
        self.0.barrier()
    }
    fn cpu(&self) -> usize {
        CPU.get()
    }
}

/// A table of it.
pub struct FailingRegion {
    region: Region,
    /// A bit a page: has memory. Not for the memory map, of which only what has none is asked for.
    backed: Vec<AtomicU64>,
}

impl FailingRegion {
    /// Pages behind it: as the system sees them, and by the platform's count.
    pub fn pages(&self) -> (u64, u64) {
        (self.region.measured_pages().unwrap(), self.region.counted_pages())
    }

    fn pages_of(&self, bytes: &Range<u64>) -> Range<u64> {
        bytes.start / PAGE_SIZE..bytes.end.min(self.region.len()).div_ceil(PAGE_SIZE)
    }

    /// The word and bit of a page, where they are kept.
    fn bit(&self, page: u64) -> Option<(&AtomicU64, u64)> {
        self.backed.get((page / 64) as usize).map(|word| (word, 1 << (page % 64)))
    }

    /// Whether all of it has memory: then no machine fails to put memory behind it.
    fn is_backed(&self, bytes: &Range<u64>) -> bool {
        self.pages_of(bytes)
            .all(|page| self.bit(page).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0))
    }
}

// SAFETY: the region's promises are kept by the region. A call that fails here has not reached it: nothing has changed.
unsafe impl Mapping for FailingRegion {
    const HAS_GAP: bool = Region::HAS_GAP;

    fn base(&self) -> NonNull<u8> {
        self.region.base()
    }
    fn len(&self) -> u64 {
        self.region.len()
    }
    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory> {
        lose_cpu();
        if !self.is_backed(&bytes) && strikes(Scarce::Tables) {
            return Err(OutOfMemory);
        }
        let pages = self.pages_of(&bytes);
        // SAFETY: the caller's promise.
        let done = unsafe { self.region.materialise(bytes) };
        if done.is_ok() {
            pages
                .filter_map(|page| self.bit(page))
                .for_each(|(word, bit)| _ = word.fetch_or(bit, Ordering::SeqCst));
        }
        lose_cpu();
        done
    }
    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        lose_cpu();
        // One that is refused ends the call, and those before it are folded.
        let taken = ranges.iter().take_while(|_| !strikes(Scarce::Folds)).count();
        let ranges = ranges.get(..taken).unwrap_or_default();
        // SAFETY: the caller's promise, for the first of its ranges.
        let done = if ranges.is_empty() { 0 } else { unsafe { self.region.fold(ranges) } };
        lose_cpu();
        done
    }
}
