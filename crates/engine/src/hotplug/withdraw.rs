//! Taking memory back: what can be had of a part of memory, or all of it. Nothing new is allocated there, what is free is
//! collected, the owners of the rest are asked to move it, and the descriptors of what is empty then are folded.
//!
//! Whatever the number of areas: they are isolated once, each owner is asked once, who only looked is waited for once (if
//! anybody has moved something and somebody still holds it), and descriptors are folded for one more grace period (if there
//! are any) and one flush. Where all of it has to go, owners are asked again after something has changed.

use alloc::vec::Vec;
use core::ops::Range;

use super::clear::{Clearing, Fate, Pieces};
use super::error::{BlockError, Busy};
use super::migrate::{Migrate, Unmovable};
use crate::engine::Engine;
use crate::frames::isolate::IsolateError;
use crate::geometry::{AREA_ORDER, Pfn};
use crate::heap::OutOfMemory;
use crate::platform::Platform;
use crate::protocol::Protocol;
use crate::protocol::class::ClassEntry;

/// What is wanted of memory, see [`Hotplug::withdraw`](super::Hotplug::withdraw).
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'w> {
    /// Pages that may be taken: ascending, not empty, each a whole number of pieces.
    pub parts: &'w [Range<u64>],
    /// Pages of a piece: what is of use as a whole only. A power of two, at least an area (2 MiB).
    pub piece: u64,
    /// Take no more pages than this.
    pub pages: u64,
    /// Take no more runs of adjacent pages than this.
    pub runs: usize,
}

/// What was withdrawn, and what became of the rest.
#[derive(Clone, Debug)]
pub struct Withdrawn {
    pub(super) taken: Vec<Range<u64>>,
    pub(super) fates: Vec<Fate>,
    /// The first page that `fates` are of.
    pub(super) first: u64,
    pub(super) from: u64,
    pub(super) no_room: bool,
}

impl Withdrawn {
    /// Runs of pages that were taken, ascending: whole pieces.
    pub fn taken(&self) -> &[Range<u64>] {
        &self.taken
    }

    /// What became of the area of `pfn`. (Of a piece that is empty not all may have been taken: no more was wanted.)
    pub fn fate(&self, pfn: Pfn) -> Option<Fate> {
        let index = pfn.0.checked_sub(self.first)? >> AREA_ORDER;
        self.fates.get(usize::try_from(index).ok()?).copied()
    }

    /// The page from which on everything was considered. What lies below it was left alone: enough was found, or there was
    /// no memory for copies.
    pub fn considered_from(&self) -> Pfn {
        Pfn(self.from)
    }

    /// Whether an owner in the piece that begins at [`considered_from`](Self::considered_from) found no memory for a copy.
    /// Then nobody was asked any more.
    pub fn lacks_room(&self) -> bool {
        self.no_room
    }
}

impl<P: Platform> Engine<P> {
    /// Takes all of `pages` (whole areas of one zone) away from the allocator and folds their descriptors to `Offline`.
    /// Returns how many pages the allocator had. On an error the range is in circulation again, but for what owners have moved.
    pub(super) fn withdraw_all<'e>(
        &'e self,
        pages: &Range<u64>,
        migrate: &mut dyn Migrate<'e, P>,
        passes: usize,
    ) -> Result<u64, BlockError> {
        // What can fail comes first.
        self.map.classes.prepare_uniform(self.map.map_pages_of(pages))?;
        let all = core::slice::from_ref(pages);
        let clearing = self.clear_all(all, migrate, passes)?;
        let withdrawn = clearing.managed(all);
        self.fold_withdrawn(all);
        clearing.into_parts().0.remove(all);
        Ok(withdrawn)
    }

    /// Isolates all of `pages` (one range) and empties it.
    pub(super) fn clear_all<'e, 'p>(
        &'e self,
        pages: &'p [Range<u64>],
        migrate: &mut dyn Migrate<'e, P>,
        passes: usize,
    ) -> Result<Clearing<'e, 'p, P>, BlockError> {
        let all = pages.first().cloned().unwrap_or_default();
        let count = all.end.saturating_sub(all.start);
        let zone = self.zone_of(Pfn(all.start));
        // Whatever ends this early (an error, a panic of an owner's) puts the range back into circulation.
        let isolated = self.isolate_in(zone, all.clone()).map_err(|error| match error {
            IsolateError::OutOfMemory => BlockError::OutOfMemory,
            IsolateError::BadRange | IsolateError::Isolated => {
                BlockError::Busy(Busy { pages: count, unmovable: 0, near: Pfn(all.start) })
            }
        })?;
        let mut clearing =
            Clearing::new(self, isolated, Pieces { parts: pages, pages: count, counts_all: true })?;
        clearing.empty(migrate, count, passes);
        match clearing.busy() {
            Some(busy) if clearing.no_room => Err(BlockError::NoRoom(busy)),
            Some(busy) => Err(BlockError::Busy(busy)),
            None => Ok(clearing),
        }
    }

    /// Isolates what can be had of `wanted` and empties it: only what is free, if there is nobody to ask.
    pub(super) fn clear_parts<'e, 'w>(
        &'e self,
        wanted: &Wanted<'w>,
        migrate: Option<&mut dyn Migrate<'e, P>>,
    ) -> Result<Clearing<'e, 'w, P>, OutOfMemory> {
        let isolated = self.isolate_parts(wanted.parts, wanted.piece, migrate.is_none())?;
        let pieces = Pieces { parts: wanted.parts, pages: wanted.piece, counts_all: false };
        let mut clearing = Clearing::new(self, isolated, pieces)?;
        match migrate {
            Some(migrate) => clearing.empty(migrate, wanted.pages, 1),
            None => clearing.empty(&mut Unmovable, 0, 0),
        }
        Ok(clearing)
    }

    /// Publishes `taken`, all of which is empty and isolated, as `Offline`, and folds what has descriptors. The classes have
    /// been prepared.
    pub(super) fn fold_withdrawn(&self, taken: &[Range<u64>]) {
        let map_pages = || taken.iter().map(|pages| self.map.map_pages_of(pages));
        let publish = |any, run| self.map.publish_offline(run, ClassEntry::OFFLINE) | any;
        if map_pages().fold(false, publish) {
            if P::Rules::WAITS {
                self.rcu.synchronize();
            }
            // SAFETY: published just above by the owner of all of it (everything was collected), and waited for.
            unsafe { self.map.fold_offline(map_pages(), ClassEntry::OFFLINE) };
        }
    }
}
