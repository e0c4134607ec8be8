//! A machine of eight pages for the checker, and how far it explores.

#![allow(dead_code)]

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use loom::sync::Arc;
use pagefold_model::platform::{Fences, FoldRange, Mapping, Platform, TableKind};
use pagefold_model::protocol::Protocol;
use pagefold_model::{Config, Engine, Kind, NoFrames, Order, Pfn};

/// The checker's tables are vectors inside the engine; nothing is behind this.
pub struct NoMemory<R>(u64, PhantomData<R>);

// SAFETY: under loom the engine never touches `base`: its tables are vectors.
unsafe impl<R: Protocol> Mapping for NoMemory<R> {
    // The right protocol has to do with a gap; those that read what is folded cannot.
    const HAS_GAP: bool = R::ASKS_CLASS && R::WAITS;

    fn base(&self) -> NonNull<u8> {
        NonNull::dangling()
    }
    fn len(&self) -> u64 {
        self.0
    }
    fn materialise(&self, _: Range<u64>) -> Result<(), NoFrames> {
        Ok(())
    }
    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        ranges.len()
    }
}

/// Both halves of the barrier are SeqCst fences: what `membarrier(2)` gives, in terms that loom knows.
pub struct Model<R>(PhantomData<R>);

impl<R: Protocol> Platform for Model<R> {
    type Mapping = NoMemory<R>;
    type Barrier = Fences;
    type Owner = ();
    type Error = ();

    fn reserve(&self, _: TableKind, bytes: u64) -> Result<NoMemory<R>, ()> {
        Ok(NoMemory(bytes, PhantomData))
    }
    fn barrier(&self) -> Fences {
        Fences
    }
    fn cpu(&self) -> usize {
        0
    }
}

pub type ModelEngine<R> = Engine<Model<R>, R>;

pub fn platform<R: Protocol>() -> Model<R> {
    Model(PhantomData)
}

/// Room for eight pages, and no memory.
pub fn empty<R: Protocol>() -> ModelEngine<R> {
    Engine::new(platform(), Config::new(8)).unwrap()
}

/// Eight pages, all free: four map pages of two descriptors, two areas.
pub fn machine<R: Protocol>() -> Arc<ModelEngine<R>> {
    let engine = empty();
    engine.online(0..8).unwrap();
    Arc::new(engine)
}

pub fn order(order: u32) -> Order {
    Order::new(order).unwrap()
}

/// A shared folio at a particular place, as a number, so that any thread can take it up.
pub fn folio_at<R: Protocol>(engine: &ModelEngine<R>, pfn: u64, bits: u32) -> pagefold_model::RawFolio {
    engine.alloc_at(Pfn(pfn), order(bits), Kind::Anon).unwrap().share().into_raw()
}

/// Explores all interleavings with at most `preemptions` forced switches (loom explores all weak-memory outcomes within
/// them). `MODEL_PREEMPTIONS` asks for more: a night's work.
pub fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let more = std::env::var("MODEL_PREEMPTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions.max(more));
    builder.max_branches = 100_000;
    builder.check(model);
}
