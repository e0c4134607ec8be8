//! The living part: walkers on all CPUs, folding under their eyes, then owners for a while.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::{Engine, FoldReport, Folio, Frozen, Platform, RawFolio};
use pagefold_workload::{Index, Log, OwnerCounts, OwnerTask, Shape, Stamp, WalkerKind};

use crate::source::bar;
use crate::walkers::{StopOnDrop, Walk, join, spawn, with_walkers};

/// How many threads do what, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct ReplayPlan {
    pub walkers: usize,
    pub owners: usize,
    pub seconds: f64,
    pub seed: u64,
    pub shape: Shape,
}

/// What happened.
pub struct Lived {
    /// Folding all there was to fold: what it did, and how long it took.
    pub folding: Folding,
    pub walk: Walk,
    pub owners: OwnerCounts,
    /// Seconds the owners worked.
    pub owned_for: f64,
    /// Threads by their kernel number, for naming culprits.
    pub threads: Vec<(i32, String)>,
}

/// Folding everything once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Folding {
    pub folios: u64,
    pub report: FoldReport,
    pub seconds: f64,
}

/// Folios folded for one grace period when everything is folded once.
const BATCH: usize = 512;

/// Lives with the index's folios. `folded` runs when everything is folded, while the walkers go on.
pub fn live<'e, P: Platform<Owner = Stamp>>(
    index: &Index<'e, P>,
    fixed: &[RawFolio],
    plan: ReplayPlan,
    log: &Log,
    interrupted: &AtomicBool,
    folded: impl FnOnce() -> Result<()>,
) -> Result<Lived> {
    let threads = Mutex::new(Vec::new());
    let enlist = |name: String| {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((thread, name));
    };
    let kinds: Vec<_> = WalkerKind::ALL.into_iter().cycle().take(plan.walkers).collect();
    let enlist_walker = |kind: WalkerKind| enlist(format!("{} walker", kind.name()));
    let ((folding, owners, owned_for), walk) =
        with_walkers(index, &kinds, log, plan.seed, enlist_walker, || {
            let folding = fold_everything(index, fixed)?;
            folded()?;
            let owning = Instant::now();
            let owners = own(index, plan, &enlist, interrupted)?;
            Ok((folding, owners, owning.elapsed().as_secs_f64()))
        })?;
    let threads = threads.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Lived { folding, walk, owners, owned_for, threads })
}

/// Owners, a thread each, for as long as planned.
fn own<P: Platform<Owner = Stamp>>(
    index: &Index<'_, P>,
    plan: ReplayPlan,
    enlist: &(impl Fn(String) + Sync),
    interrupted: &AtomicBool,
) -> Result<OwnerCounts> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopper = StopOnDrop(&stop);
        let owners: Vec<_> = (0..plan.owners)
            .map(|number| {
                let stop = &stop;
                spawn(scope, move || {
                    enlist(format!("owner {number}"));
                    let seed = plan.seed.wrapping_mul(1009).wrapping_add(number as u64);
                    let mut task = OwnerTask::new(index, number, plan.shape, seed)?;
                    while !stop.load(Ordering::Relaxed) {
                        task.step();
                    }
                    task.finish();
                    Ok(task.counts())
                })
            })
            .collect::<Result<_>>()?;
        wait(plan.seconds, interrupted);
        drop(stopper);
        let mut counts = OwnerCounts::default();
        for owner in owners {
            counts += join(owner)?;
        }
        Ok(counts)
    })
}

fn wait(seconds: f64, interrupted: &AtomicBool) {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let bar = bar("walking, folding");
    bar.set_length((seconds * 1000.0) as u64);
    while !interrupted.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        bar.set_position(((seconds - left.as_secs_f64()) * 1000.0) as u64);
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    bar.finish_and_clear();
}

/// Folds all tails and all free memory, in batches, each for one grace period.
fn fold_everything<P: Platform<Owner = Stamp>>(index: &Index<'_, P>, fixed: &[RawFolio]) -> Result<Folding> {
    let engine = index.engine();
    let begun = Instant::now();
    let mut folding = Folding::default();
    // Where nothing stays of a large folio, those of neighbours fold as one range. The kernel frees a page table with it if the
    // range covers all that the table maps: 512 map pages.
    let capacity = if P::Descriptors::KEPT_MAP_PAGES == 0 { BATCH * 64 } else { BATCH };
    let mut batch = engine.fold_batch(capacity)?;
    let mut slots = Vec::with_capacity(capacity);
    let mut commit = |batch: &mut pagefold_engine::FoldBatch<'_, P>, slots: &mut Vec<Option<usize>>| {
        folding.folios += batch.len() as u64;
        folding.report += batch.commit();
        for (slot, frozen) in slots.drain(..).zip(batch.drain()) {
            let folio = frozen.share();
            match slot {
                Some(at) => drop(index.put(at, folio)),
                None => drop(folio.into_raw()),
            }
        }
    };
    let foldable = (0..index.len())
        .filter(|&at| index.load(at).is_some_and(|entry| P::Descriptors::is_foldable(entry.order())));
    let in_index = foldable.map(|at| (Some(at), index.take(at)));
    // SAFETY: the numbers were made by the loader out of handles, and each is taken up once here and made again.
    let in_kernel = fixed.iter().map(|&raw| (None, Some(unsafe { engine.from_raw(raw) })));
    for (slot, folio) in in_index.chain(in_kernel) {
        let Some(folio) = folio else { continue };
        let frozen = freeze(folio);
        if !frozen.has_unfolded_tails() {
            let folio = frozen.share();
            match slot {
                Some(at) => drop(index.put(at, folio)),
                None => drop(folio.into_raw()),
            }
            continue;
        }
        batch.push(frozen).ok().context("no memory for a batch of folds")?;
        slots.push(slot);
        if batch.len() == capacity {
            commit(&mut batch, &mut slots);
        }
    }
    commit(&mut batch, &mut slots);
    folding.report += engine.folder(BATCH)?.fold_all();
    folding.seconds = begun.elapsed().as_secs_f64();
    Ok(folding)
}

/// Freezes a folio that walkers hold for moments only.
fn freeze<'e, P: Platform>(mut folio: Folio<'e, P>) -> Frozen<'e, P> {
    loop {
        match folio.freeze() {
            Ok(frozen) => return frozen,
            Err(held) => folio = held,
        }
        std::thread::yield_now();
    }
}

/// Folds folios before walkers run.
pub fn fold_quietly<'e, P: Platform>(
    engine: &'e Engine<P>,
    folios: Vec<Folio<'e, P>>,
) -> Result<Vec<Folio<'e, P>>> {
    let mut batch = engine.fold_batch(folios.len())?;
    for folio in folios {
        batch.push(freeze(folio)).ok().context("no memory for a batch of folds")?;
    }
    batch.commit();
    Ok(batch.drain().map(Frozen::share).collect())
}
