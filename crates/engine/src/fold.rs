//! Folding: giving descriptors back, many at a time, for one grace period and one flush.
//!
//! Two things can be folded, and they differ in who owns the pages meanwhile:
//!
//! * [`FoldBatch`] folds the tails of frozen folios, which their owner hands over and gets back.
//! * [`Folder`](crate::Folder) folds the descriptors of free memory. It takes the free pages from the allocator, as any owner would,
//!   and gives them back when they are folded.

use alloc::vec::Vec;
use core::fmt;

use crate::barrier::Barrier;
use crate::descriptors::seam::DescriptorMap;
use crate::engine::Engine;
use crate::errors::error_texts;
use crate::folio::Frozen;
use crate::heap::{OutOfMemory, try_vec};
use crate::mapping::FoldRange;
use crate::platform::Platform;
use crate::protocol::Protocol;
use crate::rcu::Ticket;

/// What folding did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoldReport {
    /// Map pages whose memory was given back.
    pub map_pages: u64,
    /// Map pages that were to be folded, but whose memory the platform did not take. They stay materialised.
    pub refused: u64,
    /// Pages of 4 KiB full of unused objects whose memory was given back, where descriptors are objects.
    pub object_pages: u64,
    /// Grace periods waited for.
    pub grace_periods: u64,
}

impl core::ops::AddAssign for FoldReport {
    fn add_assign(&mut self, other: Self) {
        self.map_pages += other.map_pages;
        self.refused += other.refused;
        self.object_pages += other.object_pages;
        self.grace_periods += other.grace_periods;
    }
}

/// Why a folio could not be handed over to a batch. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The folio belongs to another engine than the batch: push it to a batch of its own engine.
    OtherEngine,
    /// The batch has as many folios as it was made for: commit it, take them out, and push this one again.
    Full,
    /// No memory to note it: commit what is there, or free some, and retry.
    OutOfMemory,
}

error_texts!(PushError {
    OtherEngine => "the folio belongs to another engine: push it to a batch of that one",
    Full => "the batch is full: commit it first",
    OutOfMemory => "no memory to note the folio: free some and retry",
});

/// Ranges of the map that have been published as folded and wait for their grace period.
pub(crate) struct Pending<'e, B> {
    ranges: Vec<FoldRange>,
    ticket: Option<Ticket<'e, B>>,
}

impl<'e, B: Barrier> Pending<'e, B> {
    pub(crate) fn new(capacity: usize) -> Result<Self, OutOfMemory> {
        Ok(Self { ranges: try_vec(capacity)?, ticket: None })
    }

    /// Notes a range, joined to the last one if it goes on from there. There is room for it.
    pub(crate) fn push(&mut self, range: FoldRange) {
        match self.ranges.last_mut() {
            Some(last) if last.bytes.end == range.bytes.start => {
                last.bytes.end = range.bytes.end;
                last.backed += range.backed;
            }
            _ => self.ranges.push(range),
        }
    }

    /// Starts the grace period for all ranges, and for whatever `else_waits`.
    pub(crate) fn start<P: Platform<Barrier = B>>(&mut self, engine: &'e Engine<P>, else_waits: bool) {
        if P::Rules::WAITS && (else_waits || !self.ranges.is_empty()) {
            self.ticket = Some(engine.rcu.start());
        }
    }

    /// Whether no reader that began before can be inside any more. Without a ticket there is nothing to wait for.
    pub(crate) fn is_over(&self) -> bool {
        self.ticket.is_none_or(|ticket| ticket.is_over())
    }

    pub(crate) fn wait(&self) {
        if let Some(ticket) = self.ticket {
            ticket.wait();
        }
    }

    /// Takes the memory away. The grace period is over.
    pub(crate) fn finish<P: Platform<Barrier = B>>(&mut self, engine: &Engine<P>) -> FoldReport {
        let grace_periods = u64::from(self.ticket.take().is_some());
        if self.ranges.is_empty() {
            return FoldReport { grace_periods, ..FoldReport::default() };
        }
        let wanted = self.ranges.iter().map(|range| range.backed).sum::<u64>();
        // SAFETY: the ranges were published as folded by the owner of their pages, before the ticket was started, and
        // the ticket is over (or the protocol is wrong on purpose). The owner's handles or claims still exist.
        let map_pages = unsafe { engine.map.fold(&self.ranges) };
        self.ranges.clear();
        FoldReport { map_pages, refused: wanted - map_pages, grace_periods, object_pages: 0 }
    }
}

/// Frozen folios to be folded together.
///
/// [`push`](Self::push) hands a folio over and publishes its tails as folded; [`commit`](Self::commit) waits for one
/// grace period and gives the memory of all their tails back; then the folios can be taken out again. Dropping the batch
/// before that frees the folios.
#[must_use = "nothing is folded before commit"]
pub struct FoldBatch<'e, P: Platform> {
    engine: &'e Engine<P>,
    folios: Vec<Frozen<'e, P>>,
    /// Folios it takes at most.
    capacity: usize,
    pending: Pending<'e, P::Barrier>,
}

impl<P: Platform> Engine<P> {
    /// An empty batch for up to `capacity` folios (at least one). Allocates.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn fold_batch(&self, capacity: usize) -> Result<FoldBatch<'_, P>, OutOfMemory> {
        let capacity = capacity.max(1);
        let (folios, pending) = (try_vec(capacity)?, Pending::new(capacity)?);
        Ok(FoldBatch { engine: self, folios, capacity, pending })
    }
}

impl<'e, P: Platform> FoldBatch<'e, P> {
    /// Folios in the batch.
    pub fn len(&self) -> usize {
        self.folios.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.folios.is_empty()
    }
    /// Folios it takes at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Hands a folio over.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// The folio as it was, and why.
    #[allow(clippy::type_complexity)]
    pub fn push(&mut self, folio: Frozen<'e, P>) -> Result<(), (Frozen<'e, P>, PushError)> {
        if !core::ptr::eq(folio.engine(), self.engine) {
            return Err((folio, PushError::OtherEngine));
        }
        if self.folios.len() >= self.capacity {
            return Err((folio, PushError::Full));
        }
        let runs = self.engine.backed_tails(folio.pfn(), folio.order()).count();
        if self.pending.ranges.try_reserve(runs).is_err() {
            return Err((folio, PushError::OutOfMemory));
        }
        let tails = self.engine.map.publish_tails(folio.pfn(), folio.order());
        self.engine.map.backed_runs(tails).for_each(|run| self.pending.push(run));
        self.folios.push(folio);
        Ok(())
    }

    /// Waits for one grace period and gives the memory of all tails back. Must not be called inside a section.
    ///
    /// Context: waits for a grace period, interrupts other CPUs, changes page tables.
    pub fn commit(&mut self) -> FoldReport {
        self.pending.start(self.engine, false);
        self.pending.wait();
        self.pending.finish(self.engine)
    }

    /// Takes the folios out, in the order in which they came. Those that were not committed have their tails published
    /// as folded, but their memory stays until they are pushed again, or freed.
    pub fn drain(&mut self) -> impl Iterator<Item = Frozen<'e, P>> {
        self.pending.ranges.clear();
        self.folios.drain(..)
    }
}

impl<P: Platform> fmt::Debug for FoldBatch<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoldBatch").field("folios", &self.folios).finish_non_exhaustive()
    }
}
