//! Reading the machine this runs on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::layout::{MemoryRange, Zone, parse_iomem, parse_zoneinfo, value};
use crate::machine::{Header, Machine};
use crate::scan::{PageFiles, scan};

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
    /// Whether it only takes more rights.
    pub fn is_permission(&self) -> bool {
        matches!(self, LiveError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether a file is not there at all.
    pub fn is_missing(&self) -> bool {
        matches!(self, LiveError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Progress of a scan, in pages, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Pages read, and pages to read.
    pub fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    pub(crate) fn advance(&self, pages: u64) {
        self.done.fetch_add(pages, Ordering::Relaxed);
    }
}

/// Reads all of this machine, with as many threads as it has CPUs. Needs root.
///
/// # Errors
/// [`LiveError`].
pub fn read(note: &str, progress: &Progress) -> Result<Machine, LiveError> {
    read_from(Path::new("/proc"), note, progress)
}

/// As [`read`], with another directory in `/proc`'s place.
///
/// # Errors
/// [`LiveError`].
pub fn read_from(proc: &Path, note: &str, progress: &Progress) -> Result<Machine, LiveError> {
    let files = PageFiles::open(proc)?;
    let mut machine = Machine { header: read_header(proc, note)?, runs: Vec::new() };
    progress.total.store(machine.described_pages(), Ordering::Relaxed);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    machine.runs = scan(&files, &machine.header.memory, threads, progress)?;
    Ok(machine)
}

fn read_header(proc: &Path, note: &str) -> Result<Header, LiveError> {
    let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
    let zones = parse_zoneinfo(&text("zoneinfo"));
    let mut memory = parse_iomem(&text("iomem"));
    if memory.is_empty() {
        memory = spans(&zones);
    }
    if memory.is_empty() {
        return Err(LiveError::NoMemory);
    }
    let (meminfo, vmstat) = (text("meminfo"), text("vmstat"));
    let boot = value(&vmstat, "nr_memmap_boot_pages");
    let release = text("sys/kernel/osrelease");
    Ok(Header {
        page_size: 4096,
        kernel: release.trim().to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        recorded: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
        note: note.to_owned(),
        memory,
        zones,
        descriptor_size: 64,
        mem_total: value(&meminfo, "MemTotal").unwrap_or(0),
        mem_free: value(&meminfo, "MemFree").unwrap_or(0),
        memmap_pages: boot.map(|boot| boot + value(&vmstat, "nr_memmap_pages").unwrap_or(0)),
    })
}

/// Where zones say memory is: their spans, which may have holes that no other file shows.
fn spans(zones: &[Zone]) -> Vec<MemoryRange> {
    let mut ranges: Vec<_> = zones
        .iter()
        .map(|zone| MemoryRange { start: zone.start, end: zone.start.saturating_add(zone.spanned) })
        .filter(|range| range.start < range.end)
        .collect();
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let overlaps = next.start <= last.end;
        if overlaps {
            last.end = last.end.max(next.end);
        }
        overlaps
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_from(dir.path(), "", &Progress::default()).unwrap_err();
        assert!(error.to_string().contains("kpageflags"), "{error}");
        fs::write(dir.path().join("kpageflags"), [0; 8]).unwrap();
        let error = read_from(dir.path(), "", &Progress::default()).unwrap_err();
        assert!(error.to_string().contains("kpagecount"), "{error}");
        fs::write(dir.path().join("kpagecount"), [0; 8]).unwrap();
        fs::write(dir.path().join("iomem"), "nonsense\n").unwrap();
        assert!(matches!(read_from(dir.path(), "", &Progress::default()), Err(LiveError::NoMemory)));
    }

    #[test]
    fn spans_of_zones_stand_in_for_iomem() {
        let zone = |start, spanned| Zone { start, spanned, present: 1, ..Zone::default() };
        let ranges = spans(&[zone(4096, 100), zone(1, 4095), zone(10_000, 1)]);
        assert_eq!(ranges, [MemoryRange { start: 1, end: 4196 }, MemoryRange { start: 10_000, end: 10_001 }]);
    }
}
