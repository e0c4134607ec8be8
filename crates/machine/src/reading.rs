//! How far the reading of a machine is, and why it may fail.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why the machine could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// A file cannot be read; for the page files that means: not root.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No file says where memory is.
    #[error("neither /proc/iomem nor /proc/zoneinfo says where memory is")]
    NoMemory,
    /// A page file ends before memory does.
    #[error(
        "{path} ends at page {end}, but memory goes on to page {needed}: did it shrink while it was read? Read it again"
    )]
    Short {
        /// Which file.
        path: PathBuf,
        /// The first page it does not have.
        end: u64,
        /// One past the last page it should have.
        needed: u64,
    },
}

impl LiveError {
    /// Whether more rights would help.
    pub fn is_permission(&self) -> bool {
        matches!(self, LiveError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether a file is not there at all.
    pub fn is_missing(&self) -> bool {
        matches!(self, LiveError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Progress of a scan, in pages.
#[derive(Debug, Default)]
pub struct ScanProgress {
    done: AtomicU64,
    total: AtomicU64,
}

impl ScanProgress {
    /// Pages read, and pages to read.
    pub fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Says how many pages there are to read.
    pub(crate) fn begin(&self, pages: u64) {
        self.total.store(pages, Ordering::Relaxed);
    }

    pub(crate) fn advance(&self, pages: u64) {
        self.done.fetch_add(pages, Ordering::Relaxed);
    }
}
