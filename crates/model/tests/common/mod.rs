//! A machine of eight pages for the checker, and how far it explores.

#![allow(dead_code)]

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::thread;
use pagefold_model::platform::{Fences, FoldRange, Mapping, Platform, TableKind};
use pagefold_model::protocol::{Fold, Protocol};
use pagefold_model::rcu::{Rcu, Reader};
use pagefold_model::{
    Config, Engine, Folio, FrameAllocator, Frozen, Kind, Layout, Miss, Order, OutOfMemory, Pfn, RawFolio,
};

/// What the platform will refuse. Set while one thread runs; nothing of it is visible to the checker.
pub struct Faults {
    /// The table that gets no memory any more after so many more calls.
    memory: Mutex<Option<(TableKind, usize)>>,
    /// Ranges that one call to fold takes.
    folds: AtomicUsize,
}

impl Faults {
    /// From now on `kind` gets memory `granted` times more, then never.
    pub fn refuse(&self, kind: TableKind, granted: usize) {
        *self.memory.lock().unwrap() = Some((kind, granted));
    }
    /// One call to fold takes at most so many ranges.
    pub fn fold_at_most(&self, ranges: usize) {
        self.folds.store(ranges, Ordering::Relaxed);
    }
    /// Nothing is refused any more.
    pub fn end(&self) {
        *self.memory.lock().unwrap() = None;
        self.fold_at_most(usize::MAX);
    }
}

/// The checker's tables are vectors inside the engine; nothing is behind this.
pub struct NoMemory<R> {
    kind: TableKind,
    bytes: u64,
    faults: std::sync::Arc<Faults>,
    _protocol: PhantomData<R>,
}

// SAFETY: under loom the engine never touches `base`: its tables are vectors.
unsafe impl<R: Protocol> Mapping for NoMemory<R> {
    // The right protocol has to do with a gap; those that read what is folded cannot.
    const HAS_GAP: bool = R::ASKS_CLASS && R::WAITS;

    fn base(&self) -> NonNull<u8> {
        NonNull::dangling()
    }
    fn len(&self) -> u64 {
        self.bytes
    }
    unsafe fn materialise(&self, _: Range<u64>) -> Result<(), OutOfMemory> {
        match &mut *self.faults.memory.lock().unwrap() {
            Some((kind, 0)) if *kind == self.kind => Err(OutOfMemory),
            Some((kind, granted)) if *kind == self.kind => {
                *granted -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }
    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        ranges.len().min(self.faults.folds.load(Ordering::Relaxed))
    }
}

/// Both halves of the barrier are SeqCst fences: what `membarrier(2)` gives, in terms that loom knows. Owners keep one
/// number in a descriptor.
pub struct Model<R> {
    pub faults: std::sync::Arc<Faults>,
    _protocol: PhantomData<R>,
}

impl<R: Protocol> Platform for Model<R> {
    type Mapping = NoMemory<R>;
    type Barrier = Fences;
    type Owner = u64;
    type Rules = R;
    type Descriptors = Descriptors;
    type Error = ();

    fn reserve(&self, kind: TableKind, bytes: u64) -> Result<NoMemory<R>, ()> {
        Ok(NoMemory { kind, bytes, faults: self.faults.clone(), _protocol: PhantomData })
    }
    fn barrier(&self) -> Fences {
        Fences
    }
    fn cpu(&self) -> usize {
        0
    }
}

/// What a descriptor is: the same tests run over both kinds.
#[cfg(not(feature = "memdesc"))]
pub type Descriptors = pagefold_model::Page64;
#[cfg(feature = "memdesc")]
pub type Descriptors = pagefold_model::Memdesc;

pub type ModelEngine<R = Fold> = Engine<Model<R>>;

pub fn platform<R: Protocol>() -> Model<R> {
    let faults = Faults { memory: Mutex::new(None), folds: AtomicUsize::new(usize::MAX) };
    Model { faults: std::sync::Arc::new(faults), _protocol: PhantomData }
}

/// A frame allocator for one section, without memory.
pub fn frame_allocator() -> FrameAllocator<NoMemory<Fold>> {
    let model: Model<Fold> = platform();
    FrameAllocator::new(8, |kind, bytes| model.reserve(kind, bytes)).unwrap()
}

/// Room for `pages` pages (rounded up to sections of eight), and no memory.
pub fn room(pages: u64) -> ModelEngine {
    Engine::new(platform(), Config::new(pages)).unwrap()
}

/// Room for eight pages, and no memory, under any rules.
pub fn empty<R: Protocol>() -> ModelEngine<R> {
    // SAFETY: the checker's descriptors are no memory; what wrong rules do to them ends the model.
    unsafe { Engine::with_rules(platform(), Config::new(8)) }.unwrap()
}

/// The pages of `memory`, all free, in a machine that has room up to the end of their section.
pub fn machine_of(memory: Range<u64>) -> Arc<ModelEngine> {
    let mut engine = room(memory.end);
    engine.online(memory).unwrap();
    Arc::new(engine)
}

/// Eight pages, all free: four map pages of two descriptors, two areas.
pub fn machine() -> Arc<ModelEngine> {
    machine_of(0..8)
}

/// The same under any rules.
pub fn machine_under<R: Protocol>() -> Arc<ModelEngine<R>> {
    let mut engine = empty();
    engine.online(0..8).unwrap();
    Arc::new(engine)
}

/// Eight pages, all free, where large folios have every descriptor written.
pub fn flat_machine() -> Arc<ModelEngine> {
    let engine = machine();
    engine.set_layout(Layout::Flat);
    engine
}

pub fn order(order: u32) -> Order {
    Order::new(order).unwrap()
}

/// A frozen folio at a particular place.
pub fn frozen_at<R: Protocol>(engine: &ModelEngine<R>, pfn: u64, bits: u32) -> Frozen<'_, Model<R>> {
    engine.alloc_at(Pfn(pfn), order(bits), Kind::Anon).unwrap()
}

/// A shared folio at a particular place, as a number, so that any thread can take it up.
pub fn folio_at<R: Protocol>(engine: &ModelEngine<R>, pfn: u64, bits: u32) -> RawFolio {
    frozen_at(engine, pfn, bits).share().into_raw()
}

/// Takes the handle up again that was left as a number.
pub fn take<R: Protocol>(engine: &ModelEngine<R>, raw: RawFolio) -> Folio<'_, Model<R>> {
    // SAFETY: every raw folio of these tests is taken up once.
    unsafe { engine.from_raw(raw) }
}

/// Freezes a folio as soon as no walker is on it.
pub fn freeze<R: Protocol>(mut folio: Folio<'_, Model<R>>) -> Frozen<'_, Model<R>> {
    loop {
        match folio.freeze() {
            Ok(frozen) => return frozen,
            Err(back) => folio = back,
        }
        thread::yield_now();
    }
}

/// Takes the block at `pfn` if it is free, writes, and frees it.
pub fn use_at(engine: &ModelEngine, pfn: u64, bits: u32) {
    if let Ok(mut next) = engine.alloc_at(Pfn(pfn), order(bits), Kind::File) {
        assert_eq!(*next.owner(), 0, "an owner's data begins as zero");
        *next.owner_mut() = 2;
        drop(next.share());
    }
}

/// A thread with the machine, or with whatever else is shared.
pub fn beside<A: 'static, T: 'static>(
    shared: &Arc<A>,
    work: impl FnOnce(&A) -> T + 'static,
) -> thread::JoinHandle<T> {
    let shared = Arc::clone(shared);
    thread::spawn(move || work(&shared))
}

/// A grace period waits for a section of a reader that `visit`s: it calls what it is given once, inside.
pub fn section_is_seen(visit: fn(Reader<'_, Fences>, &dyn Fn())) -> Arc<Rcu<Fences>> {
    let rcu = Arc::new(Rcu::new(Fences));
    let (gate, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let theirs = (Arc::clone(&gate), Arc::clone(&done));
    let reader = beside(&rcu, move |rcu| {
        let (gate, done) = theirs;
        let was_open = std::cell::Cell::new(None);
        visit(rcu.reader().unwrap(), &|| {
            was_open.set(Some(gate.load(Ordering::Relaxed)));
            done.store(true, Ordering::Relaxed);
        });
        was_open.get().expect("the reader was inside")
    });
    gate.store(true, Ordering::Relaxed);
    rcu.synchronize();
    let seen = done.load(Ordering::Relaxed);
    assert!(reader.join().unwrap() || seen);
    rcu
}

/// Enters a section of `reader`, does `inside`, and leaves it.
pub fn visit(reader: &Reader<'_, Fences>, inside: &dyn Fn()) {
    let _section = reader.section();
    inside();
}

/// A walker that asks for `pfn` once, and checks what it gets.
pub fn walk<R: Protocol>(engine: &ModelEngine<R>, pfn: u64) -> Result<u32, Miss> {
    let walker = engine.walker().unwrap();
    let folio = walker.try_get(Pfn(pfn))?;
    assert!(folio.contains(Pfn(pfn)), "{folio:?} does not contain page {pfn}");
    assert!(folio.refs() >= 1);
    Ok(folio.order().get())
}

/// Whether a walker that met a folio of one of `orders` on its way in or out may have found this.
pub fn is_one_of(found: Result<u32, Miss>, orders: &[u32]) -> bool {
    match found {
        Ok(order) => orders.contains(&order),
        Err(miss) => matches!(miss, Miss::Free | Miss::Frozen),
    }
}

/// Explores all interleavings with at most `preemptions` forced switches (loom explores all weak-memory outcomes within
/// them; a thread that waits or ends is no forced switch). `MODEL_PREEMPTIONS` asks for more: a night's work. A model that
/// should have threads and turns out to have one interleaving shows nothing about them, and fails.
pub fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let more = std::env::var("MODEL_PREEMPTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions.max(more));
    builder.max_branches = 100_000;
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&executions);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let executions = executions.load(Ordering::Relaxed);
    assert!(preemptions == 0 || executions > 1, "one interleaving is all that was explored");
    println!("{executions} executions");
}

/// What one thread does, which leaves nothing to explore: the checks of memory run all the same.
pub fn alone(model: impl Fn() + Sync + Send + 'static) {
    explore(0, model);
}
