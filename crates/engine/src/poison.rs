//! Pages whose memory is broken: recorded, and kept back from the allocator.

use crate::engine::Engine;
use crate::errors::{error_texts, from_out_of_memory};
use crate::geometry::Pfn;
use crate::platform::Platform;
use crate::protocol::class::Class;

/// What [`Walker::poison`](crate::Walker::poison) did with a broken page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poisoned {
    /// It was free and will never be handed out.
    Withheld,
    /// It is in use (or memory that is not ours). When its folio is freed, this page is kept back.
    InUse,
    /// It was known already.
    Known,
}

/// Why a broken page could not be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoisonError {
    /// There is no memory at that page number.
    Absent,
    /// The record needs memory and there is none: free some and retry.
    OutOfMemory,
}

from_out_of_memory!(PoisonError);

error_texts!(PoisonError {
    Absent => "no memory at that page number",
    OutOfMemory => "no memory to record the poisoned page: free some and retry",
});

impl<P: Platform> Engine<P> {
    /// Whether `pfn` was recorded as poisoned.
    pub fn is_poisoned(&self, pfn: Pfn) -> bool {
        self.map.is_poisoned(pfn)
    }

    /// Poisoned pages recorded.
    pub fn poisoned_pages(&self) -> u64 {
        self.map.poison.pages()
    }

    pub(crate) fn record_poison(&self, pfn: Pfn, mark: impl FnOnce()) -> Result<Poisoned, PoisonError> {
        let is_absent = pfn.0 >= self.pages() || self.class(pfn).0 == Class::Absent;
        if is_absent || self.map.holes.contains(pfn) {
            return Err(PoisonError::Absent);
        }
        let (row, bit) = (pfn.row(), pfn.bit());
        // Withholding must not need memory, now or when the page is freed, or its block comes online, in either zone.
        self.zones.iter().try_for_each(|zone| zone.prepare_withholding(pfn))?;
        self.map.withheld.ensure(row)?;
        self.map.poison.ensure(row)?;
        if self.map.poison.mark(row, bit) == 0 {
            return Ok(Poisoned::Known);
        }
        mark();
        let taken = self.frames(pfn).take_free_of(row, bit);
        self.withhold(row, taken);
        Ok(if taken != 0 { Poisoned::Withheld } else { Poisoned::InUse })
    }
}
