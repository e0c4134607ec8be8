//! Violations: counted, and the first of them kept.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use pagefold_engine::Pfn;

use crate::walker_kind::WalkerKind;

/// A broken promise, as a walker saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenPromise {
    /// The walker's compare-and-swap reached a folded map page and brought it back.
    StrayWrite,
    /// The folio does not contain the page that was asked for.
    NotItsPage,
    /// The descriptor does not belong to a live folio there: somebody else's, or freed memory.
    Resurrected,
    /// A page of a folio that was held all along was not found.
    Missed,
}

impl BrokenPromise {
    const ALL: [BrokenPromise; 4] = [
        BrokenPromise::StrayWrite,
        BrokenPromise::NotItsPage,
        BrokenPromise::Resurrected,
        BrokenPromise::Missed,
    ];
}

impl fmt::Display for BrokenPromise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BrokenPromise::StrayWrite => "stray write to a folded descriptor",
            BrokenPromise::NotItsPage => "reference on a folio that does not contain the page",
            BrokenPromise::Resurrected => "reference on a folio that is not alive",
            BrokenPromise::Missed => "page of a held folio not found",
        })
    }
}

/// Violations kept with their details.
const KEPT: usize = 256;

/// One violation that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What.
    pub violation: BrokenPromise,
    /// The page asked for.
    pub pfn: Pfn,
    /// Who saw it.
    pub walker: WalkerKind,
}

/// A log that any number of walkers write to without a lock.
#[derive(Debug)]
pub struct Log {
    total: [AtomicU64; BrokenPromise::ALL.len()],
    next: AtomicU64,
    /// Page number plus one, so that 0 is an entry not written yet; the top 16 bits say who and what.
    kept: [AtomicU64; KEPT],
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// An empty log.
    pub const fn new() -> Self {
        Self {
            total: [const { AtomicU64::new(0) }; BrokenPromise::ALL.len()],
            next: AtomicU64::new(0),
            kept: [const { AtomicU64::new(0) }; KEPT],
        }
    }

    /// Notes a violation.
    pub fn note(&self, violation: BrokenPromise, pfn: Pfn, walker: WalkerKind) {
        if let Some(total) = self.total.get(violation as usize) {
            total.fetch_add(1, Ordering::Relaxed);
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(entry) = self.kept.get(at as usize) {
            let who = (walker as u64) << 56 | (violation as u64) << 48;
            entry.store(who | ((pfn.0 + 1) & ((1 << 48) - 1)), Ordering::Relaxed);
        }
    }

    /// All violations so far.
    pub fn total(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Violations of one sort so far.
    pub fn count(&self, violation: BrokenPromise) -> u64 {
        self.total.get(violation as usize).map_or(0, |total| total.load(Ordering::Relaxed))
    }

    /// The first violations.
    pub fn kept(&self) -> impl Iterator<Item = Kept> + '_ {
        self.kept.iter().filter_map(|entry| {
            let word = entry.load(Ordering::Relaxed);
            let pfn = Pfn((word & ((1 << 48) - 1)).checked_sub(1)?);
            let walker = *WalkerKind::ALL.get((word >> 56) as usize)?;
            let violation = *BrokenPromise::ALL.get((word >> 48 & 0xff) as usize)?;
            Some(Kept { violation, pfn, walker })
        })
    }
}
