//! Reading the machine this runs on.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::flags::Flags;
use crate::layout::{MemoryRange, Zone, parse_iomem, parse_zoneinfo, value};
use crate::machine::{Header, Machine, PAGES_PER_SECTION, Run};

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

/// Pages read at once: 1 MiB of each file.
const CHUNK: u64 = 1 << 17;

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
    let open = |name: &str| {
        let path = proc.join(name);
        File::open(&path).map_err(|source| LiveError::Unreadable { path, source })
    };
    let (flags, counts) = (open("kpageflags")?, open("kpagecount")?);
    let header = read_header(proc, note)?;
    let chunks = chunks(&header.memory);
    progress.total.store(chunks.iter().map(|chunk| chunk.end - chunk.start).sum(), Ordering::Relaxed);
    let runs = scan(&flags, &counts, &chunks, progress)
        .map_err(|source| LiveError::Unreadable { path: proc.join("kpageflags"), source })?;
    Ok(Machine { header, runs })
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

/// The page numbers to read: all sections with memory, in chunks.
fn chunks(memory: &[MemoryRange]) -> Vec<Range<u64>> {
    let mut chunks = Vec::new();
    let mut next = 0;
    for range in memory {
        let start = (range.start / PAGES_PER_SECTION * PAGES_PER_SECTION).max(next);
        let end = range.end.next_multiple_of(PAGES_PER_SECTION);
        chunks.extend((start..end).step_by(CHUNK as usize).map(|start| start..(start + CHUNK).min(end)));
        next = end.max(next);
    }
    chunks
}

fn scan(flags: &File, counts: &File, chunks: &[Range<u64>], progress: &Progress) -> io::Result<Vec<Run>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Vec<Run>)>> = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(chunks.len().max(1));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> io::Result<()> {
                    let mut buffers = [vec![0; CHUNK as usize * 8], vec![0; CHUNK as usize * 8]];
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(chunk) = chunks.get(at) else { return Ok(()) };
                        let runs = read_chunk(flags, counts, chunk, &mut buffers)?;
                        progress.done.fetch_add(chunk.end - chunk.start, Ordering::Relaxed);
                        done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, runs));
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("a reading thread failed")),
        })
    })?;
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|&(at, _)| at);
    let mut runs: Vec<Run> = Vec::with_capacity(done.iter().map(|(_, runs)| runs.len()).sum());
    for run in done.into_iter().flat_map(|(_, runs)| runs) {
        match runs.last_mut() {
            Some(last) if is_same(last, &run) && last.end() == run.start => last.len += run.len,
            _ => runs.push(run),
        }
    }
    Ok(runs)
}

fn is_same(a: &Run, b: &Run) -> bool {
    (a.flags, a.count) == (b.flags, b.count)
}

fn read_chunk(
    flags: &File,
    counts: &File,
    pages: &Range<u64>,
    [flag_bytes, count_bytes]: &mut [Vec<u8>; 2],
) -> io::Result<Vec<Run>> {
    let wanted = ((pages.end - pages.start) * 8) as usize;
    // Both files end at the last page of the machine, which may come before the end of its section.
    let flag_bytes = read_at(flags, &mut flag_bytes[..wanted], pages.start * 8)?;
    let count_bytes = read_at(counts, &mut count_bytes[..wanted], pages.start * 8)?;
    let words = |bytes: &[u8]| -> Vec<u64> {
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default())).collect()
    };
    let (flag_words, count_words) = (words(flag_bytes), words(count_bytes));
    let mut runs: Vec<Run> = Vec::new();
    for ((pfn, flags), count) in (pages.start..).zip(flag_words).zip(count_words) {
        let run = Run { start: pfn, len: 1, flags: Flags(flags), count };
        match runs.last_mut() {
            Some(last) if is_same(last, &run) => last.len += 1,
            _ => runs.push(run),
        }
    }
    Ok(runs)
}

fn read_at<'b>(file: &File, buffer: &'b mut [u8], offset: u64) -> io::Result<&'b [u8]> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The kernel's way to say that this is beyond the end.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(&buffer[..filled])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc_with(flags: &[u64], iomem: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        fs::write(dir.path().join("kpageflags"), bytes(flags)).unwrap();
        fs::write(dir.path().join("kpagecount"), bytes(&vec![0; flags.len()])).unwrap();
        fs::write(dir.path().join("iomem"), iomem).unwrap();
        dir
    }

    #[test]
    fn runs_join_over_chunks() {
        let pages = 2 * CHUNK as usize + 100;
        let mut flags = vec![1 << 10; pages];
        flags[5] = 0;
        let proc = proc_with(&flags, &format!("00000000-{:08x} : System RAM\n", pages * 4096 - 1));
        let progress = Progress::default();
        let machine = read_from(proc.path(), "a test", &progress).unwrap();
        let runs: Vec<_> = machine.runs.iter().map(|run| (run.start, run.len)).collect();
        assert_eq!(runs, [(0, 5), (5, 1), (6, pages as u64 - 6)]);
        assert_eq!(machine.pages(), pages as u64);
        let (done, total) = progress.get();
        assert_eq!(done, total);
    }

    #[test]
    fn missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_from(dir.path(), "", &Progress::default()).unwrap_err();
        assert!(error.to_string().contains("kpageflags"), "{error}");
        let proc = proc_with(&[0], "nonsense\n");
        assert!(matches!(read_from(proc.path(), "", &Progress::default()), Err(LiveError::NoMemory)));
    }

    #[test]
    fn spans_of_zones_stand_in_for_iomem() {
        let zone = |start, spanned| Zone { start, spanned, present: 1, ..Zone::default() };
        let ranges = spans(&[zone(4096, 100), zone(1, 4095), zone(10_000, 1)]);
        assert_eq!(ranges, [MemoryRange { start: 1, end: 4196 }, MemoryRange { start: 10_000, end: 10_001 }]);
    }
}
