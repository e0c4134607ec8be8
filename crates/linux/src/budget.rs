//! How much memory the tables may take: a limit that answers "no frames" before the machine has to.

use std::sync::atomic::{AtomicU64, Ordering};

/// Pages behind tables, counted and limited.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicU64,
    used: AtomicU64,
    refused: AtomicU64,
}

impl Budget {
    pub(crate) fn unlimited() -> Self {
        Self { limit: AtomicU64::new(u64::MAX), used: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    /// Refuses whatever would take the tables beyond `pages` (4 KiB each). What is there already stays.
    pub fn set_limit(&self, pages: u64) {
        self.limit.store(pages, Ordering::Relaxed);
    }

    /// Refuses everything from now on.
    pub fn refuse_all(&self) {
        self.set_limit(0);
    }

    /// Pages behind all tables, by our own count.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Requests refused because of the limit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self, pages: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(pages).filter(|&used| used <= limit)
        });
        if taken.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    pub(crate) fn give(&self, pages: u64) {
        self.used.fetch_sub(pages, Ordering::Relaxed);
    }
}
