//! Owners: they allocate, free, split, collapse, unfold and fold, under the walkers' eyes.

use alloc::vec::Vec;
use core::ops::Range;

use fastrand::Rng;
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::{
    AllocError, FoldBatch, FoldReport, Folder, Folio, Frozen, Kind, Order, OutOfMemory, Platform,
};

use crate::index::Index;
use crate::stamp::Stamp;

/// What owners like to allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The largest order.
    pub largest: Order,
    /// Folios folded for one grace period.
    pub batch: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { largest: Order::new(11).unwrap_or(Order::ZERO), batch: 32 }
    }
}

/// What an owner did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerCounts {
    /// Folios allocated.
    pub allocated: u64,
    /// Folios freed, or given up while a walker still held them.
    pub freed: u64,
    /// Folios split.
    pub split: u64,
    /// Folios collapsed out of pieces.
    pub collapsed: u64,
    /// Folios whose tails were unfolded.
    pub unfolded: u64,
    /// Folios whose tails were folded.
    pub folded: u64,
    /// Map pages given back, by folding tails and free memory.
    pub fold: FoldReport,
    /// Folds (of a folio's tails, or of a batch of free memory) that shared these grace periods.
    pub batches: u64,
    /// Times a folio could not be frozen because walkers held it.
    pub busy: u64,
    /// Allocations that found no memory.
    pub no_memory: u64,
}

impl core::ops::AddAssign for OwnerCounts {
    fn add_assign(&mut self, other: Self) {
        self.allocated += other.allocated;
        self.freed += other.freed;
        self.split += other.split;
        self.collapsed += other.collapsed;
        self.unfolded += other.unfolded;
        self.folded += other.folded;
        self.fold += other.fold;
        self.batches += other.batches;
        self.busy += other.busy;
        self.no_memory += other.no_memory;
    }
}

/// How far an owner's balance of pages may drift before it gives back, or keeps.
const ALLOWANCE: i64 = 1 << 14;

/// Attempts to freeze a folio that walkers are on.
const FREEZE_TRIES: usize = 16;

/// One owner.
pub struct OwnerTask<'a, 'e, P: Platform<Owner = Stamp>> {
    index: &'a Index<'e, P>,
    window: Range<usize>,
    rng: Rng,
    shape: Shape,
    batch: FoldBatch<'e, P>,
    folder: Folder<'e, P>,
    folding: bool,
    pieces: Vec<Frozen<'e, P>>,
    /// Pages it took more than it gave back. Kept near zero, so that the machine stays as full as it was found.
    balance: i64,
    counts: OwnerCounts,
}

impl<'a, 'e, P: Platform<Owner = Stamp>> OwnerTask<'a, 'e, P> {
    /// Owner `number`, which has that window of the index to itself; `seed` decides what it does.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(index: &'a Index<'e, P>, number: usize, shape: Shape, seed: u64) -> Result<Self, OutOfMemory> {
        let mut pieces = Vec::new();
        pieces.try_reserve_exact(1 << 9).map_err(|_| OutOfMemory)?;
        Ok(Self {
            index,
            window: index.window(number),
            rng: Rng::with_seed(seed),
            shape,
            batch: index.engine().fold_batch(shape.batch)?,
            folder: index.engine().folder(shape.batch)?,
            folding: false,
            pieces,
            balance: 0,
            counts: OwnerCounts::default(),
        })
    }

    /// What it did so far.
    pub fn counts(&self) -> OwnerCounts {
        self.counts
    }

    /// A few operations.
    pub fn step(&mut self) {
        for _ in 0..16 {
            match self.rng.u8(0..100) {
                0..30 => self.replace(),
                30..40 => self.free(),
                40..50 => self.split(),
                50..65 => self.refold(),
                65..90 => self.scatter_or_gather(),
                _ => self.fold_free(),
            }
        }
    }

    /// Finishes what is under way, so that everything is in the index or free.
    pub fn finish(&mut self) {
        self.commit();
        self.counts.fold += self.folder.fold_batch();
        self.folding = false;
    }

    fn somewhere(&mut self) -> usize {
        self.rng.usize(self.index.shared())
    }

    fn order(&mut self) -> Order {
        let order = match self.rng.u8(0..100) {
            0..45 => 0,
            45..70 => self.rng.u32(1..6),
            70..82 => self.rng.u32(6..9),
            82..96 => 9,
            _ => self.rng.u32(10..14),
        };
        Order::new(order.min(self.shape.largest.get())).unwrap_or(Order::ZERO)
    }

    fn alloc(&mut self, order: Order) -> Option<Folio<'e, P>> {
        let kind = if self.rng.bool() { Kind::Anon } else { Kind::File };
        match self.index.engine().alloc(order, kind) {
            Ok(frozen) => {
                self.counts.allocated += 1;
                self.balance += frozen.order().pages() as i64;
                Some(share(frozen))
            }
            Err(AllocError::NoBlock | AllocError::OutOfMemory) => {
                self.counts.no_memory += 1;
                None
            }
            Err(_) => None,
        }
    }

    /// A new folio in place of another, mostly of the same order: the machine keeps its character.
    fn replace(&mut self) {
        let at = self.somewhere();
        let model = self.index.load(at).or_else(|| {
            let other = self.somewhere();
            self.index.load(other)
        });
        let same = model.map(|entry| entry.order()).filter(|_| self.balance > 0 || self.rng.u8(0..16) != 0);
        let order = same.unwrap_or_else(|| self.order());
        let got = if self.balance > ALLOWANCE { None } else { self.alloc(order) };
        if let Some(folio) = got {
            let old = self.index.put(at, folio);
            self.release(old);
        } else {
            // Memory is short, or enough of it taken: make some room.
            for _ in 0..8 {
                self.free();
            }
        }
    }

    fn free(&mut self) {
        if self.balance < -ALLOWANCE {
            return;
        }
        let at = self.somewhere();
        let folio = self.index.take(at);
        self.release(folio);
    }

    fn release(&mut self, folio: Option<Folio<'e, P>>) {
        if let Some(folio) = folio {
            self.counts.freed += 1;
            self.balance -= folio.order().pages() as i64;
        }
    }

    /// Takes a folio out of the index and freezes it; puts it back if walkers hold on to it.
    fn take_frozen(&mut self) -> Option<Frozen<'e, P>> {
        let at = self.somewhere();
        match freeze(self.index.take(at)?) {
            Ok(frozen) => Some(frozen),
            Err(folio) => {
                self.counts.busy += 1;
                self.store(folio);
                None
            }
        }
    }

    /// Puts a folio into some empty slot; frees it if none is found soon.
    fn store(&mut self, mut folio: Folio<'e, P>) {
        for _ in 0..32 {
            let at = self.somewhere();
            match self.index.put_if_empty(at, folio) {
                Ok(()) => return,
                Err(back) => folio = back,
            }
        }
        self.release(Some(folio));
    }

    fn split(&mut self) {
        let Some(frozen) = self.take_frozen() else { return };
        if frozen.order() == Order::ZERO {
            return self.store(share(frozen));
        }
        let to = Order::new(self.rng.u32(0..frozen.order().get())).unwrap_or(Order::ZERO);
        // Not into thousands.
        let to = to.max(Order::new(frozen.order().get().saturating_sub(9)).unwrap_or(Order::ZERO));
        match frozen.split(to) {
            Err((frozen, _)) => {
                self.counts.no_memory += 1;
                self.store(share(frozen));
            }
            Ok(pieces) => {
                self.counts.split += 1;
                self.pieces.extend(pieces);
                if self.rng.bool() {
                    let pieces = core::mem::take(&mut self.pieces);
                    match Frozen::collapse(pieces) {
                        Ok(whole) => {
                            self.counts.collapsed += 1;
                            self.store(share(whole));
                        }
                        Err((pieces, _)) => self.pieces = pieces,
                    }
                }
                // A few of the pieces live on.
                while let Some(piece) = self.pieces.pop() {
                    if self.rng.u8(0..8) == 0 {
                        self.store(share(piece));
                    } else {
                        self.release(Some(share(piece)));
                    }
                }
            }
        }
    }

    /// Unfolds a large folio (as before it is handed to somebody who wants all its descriptors), and folds it again with
    /// others.
    fn refold(&mut self) {
        let Some(mut frozen) = self.take_frozen() else { return };
        if !P::Descriptors::is_foldable(frozen.order()) {
            return self.store(share(frozen));
        }
        match frozen.unfold() {
            Ok(()) => self.counts.unfolded += 1,
            Err(_) => self.counts.no_memory += 1,
        }
        if self.rng.u8(0..4) == 0 {
            // Some stay unfolded for a while.
            return self.store(share(frozen));
        }
        self.push(frozen);
    }

    /// Breaks a 2 MiB folio into pieces that anyone may find, or makes them one folio again and folds it: what a machine
    /// does that assembles huge pages, and where a stale page number hurts most. The piece's head becomes a tail, and its
    /// descriptor goes.
    fn scatter_or_gather(&mut self) {
        let Some(first) = self.window.clone().next() else { return };
        if self.index.load(first).is_none() {
            return self.scatter();
        }
        let Some(whole) = self.gather() else { return };
        self.counts.collapsed += 1;
        if self.balance > 0 || self.rng.bool() {
            // Freed instead, and its descriptors folded as free memory.
            self.release(Some(share(whole)));
            return self.fold_free();
        }
        self.push(whole);
    }

    /// Into the batch, which is committed when it is full.
    fn push(&mut self, frozen: Frozen<'e, P>) {
        if let Err((frozen, _)) = self.batch.push(frozen) {
            self.store(share(frozen));
        }
        if self.batch.len() >= self.shape.batch {
            self.commit();
        }
    }

    fn scatter(&mut self) {
        let (Some(whole), Some(piece)) = (Order::new(9), Order::new(3)) else { return };
        let Ok(frozen) = self.index.engine().alloc(whole, Kind::Anon) else {
            self.counts.no_memory += 1;
            return;
        };
        self.counts.allocated += 1;
        self.balance += whole.pages() as i64;
        match frozen.split(piece) {
            Ok(pieces) => {
                self.counts.split += 1;
                for (at, piece) in self.window.clone().zip(pieces) {
                    let old = self.index.put(at, share(piece));
                    self.release(old);
                }
            }
            Err((frozen, _)) => {
                self.counts.no_memory += 1;
                self.release(Some(share(frozen)));
            }
        }
    }

    /// The folio of the window's pieces, if no walker is on any of them.
    fn gather(&mut self) -> Option<Frozen<'e, P>> {
        if !gather(self.index, self.window.clone(), &mut self.pieces) {
            self.counts.busy += 1;
            return None;
        }
        match Frozen::collapse(core::mem::take(&mut self.pieces)) {
            Ok(whole) => Some(whole),
            Err((pieces, _)) => {
                for piece in pieces {
                    self.release(Some(share(piece)));
                }
                None
            }
        }
    }

    fn commit(&mut self) {
        self.counts.folded += self.batch.len() as u64;
        self.counts.batches += u64::from(!self.batch.is_empty());
        self.counts.fold += self.batch.commit();
        self.pieces.extend(self.batch.drain());
        while let Some(frozen) = self.pieces.pop() {
            self.store(share(frozen));
        }
    }

    /// Folds free memory in the background: never waits, looks in again later.
    fn fold_free(&mut self) {
        if !self.folding {
            self.folding = self.folder.start();
            self.counts.batches += u64::from(self.folding);
        }
        if self.folding
            && let Some(report) = self.folder.poll()
        {
            self.counts.fold += report;
            self.folding = false;
        }
    }
}

/// Freezes a folio that walkers may be on for a moment.
fn freeze<'e, P: Platform>(mut folio: Folio<'e, P>) -> Result<Frozen<'e, P>, Folio<'e, P>> {
    for _ in 0..FREEZE_TRIES {
        match folio.freeze() {
            Ok(frozen) => return Ok(frozen),
            Err(held) => folio = held,
        }
        core::hint::spin_loop();
    }
    Err(folio)
}

/// Takes every folio out of a window and freezes it, into `pieces`. If a walker holds on to one, everything is put back to
/// its place: false.
pub(crate) fn gather<'e, P: Platform<Owner = Stamp>>(
    index: &Index<'e, P>,
    window: Range<usize>,
    pieces: &mut Vec<Frozen<'e, P>>,
) -> bool {
    for at in window.clone() {
        // No slot of a full window is empty: nobody else takes from it.
        let Some(folio) = index.take(at) else { continue };
        match freeze(folio) {
            Ok(frozen) => pieces.push(frozen),
            Err(folio) => {
                drop(index.put(at, folio));
                for (at, frozen) in window.zip(pieces.drain(..)) {
                    drop(index.put(at, share(frozen)));
                }
                return false;
            }
        }
    }
    true
}

/// Seals a folio and shares it.
pub fn share<P: Platform<Owner = Stamp>>(mut frozen: Frozen<'_, P>) -> Folio<'_, P> {
    let head = frozen.pfn();
    frozen.owner_mut().seal(head);
    frozen.share()
}

impl<P: Platform<Owner = Stamp>> core::fmt::Debug for OwnerTask<'_, '_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OwnerTask").field("counts", &self.counts).finish_non_exhaustive()
    }
}
