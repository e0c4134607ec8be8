//! Reading every page's flags and map count, with all CPUs.
//!
//! The kernel's side of this is the slow one: it looks at each descriptor for each word it hands out. So all CPUs ask at
//! once, each for a section at a time; and map counts are only asked for where flags say that a page is mapped, since a
//! page without [`MMAP`] has a count of zero. What is kept is runs of pages that are alike: memory follows what the
//! machine does with its pages, not how many there are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::flags::{Flags, MMAP};
use crate::geometry::PAGES_PER_SECTION;
use crate::layout::MemoryRange;
use crate::machine::Run;
use crate::reading::{LiveError, ScanProgress};

/// Bytes that stand for a page in both files.
const WORD: usize = 8;
/// Pages read at once: 64 KiB of each file, which the CPU's cache still has when they are looked at.
const PIECE: usize = 1 << 13;
/// This many pages that are not mapped, between two that are, are cheaper to read than to ask twice.
const GAP: usize = 16;

/// `/proc/kpageflags` and `/proc/kpagecount`, open.
pub(crate) struct PageFiles {
    flags: PageFile,
    counts: PageFile,
}

impl PageFiles {
    /// Opens both, in `/proc` or another directory.
    pub(crate) fn open(proc: &Path) -> Result<Self, LiveError> {
        Ok(PageFiles {
            flags: PageFile::open(proc, "kpageflags")?,
            counts: PageFile::open(proc, "kpagecount")?,
        })
    }
}

/// One of them: a 64-bit word for each page number.
struct PageFile {
    path: PathBuf,
    file: File,
}

impl PageFile {
    fn open(proc: &Path, name: &str) -> Result<Self, LiveError> {
        let path = proc.join(name);
        match File::open(&path) {
            Ok(file) => Ok(PageFile { path, file }),
            Err(source) => Err(LiveError::Unreadable { path, source }),
        }
    }

    /// Fills `words` with those of pages from `first` on; returns how many pages there are: fewer at the end, which must
    /// not come before page `needed`.
    fn read(&self, first: u64, words: &mut [u64], needed: u64) -> Result<usize, LiveError> {
        let needed = needed.min(first + words.len() as u64);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], first * WORD as u64 + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel's way to say that this is beyond the end.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
                Err(source) => return Err(LiveError::Unreadable { path: self.path.clone(), source }),
            }
        }
        let pages = filled / WORD;
        let end = first + pages as u64;
        if end < needed {
            return Err(LiveError::Short { path: self.path.clone(), end, needed });
        }
        Ok(pages)
    }
}

/// A section with memory: the work of one thread at a time.
#[derive(Debug, PartialEq)]
struct SectionRead {
    /// Which one, counted from 0.
    index: usize,
    pages: Range<u64>,
    /// One past its last page with memory.
    needed: u64,
}

/// The sections that have memory, in order.
struct Sections<'m> {
    memory: &'m [MemoryRange],
    /// Pages below are done.
    at: u64,
    count: usize,
}

impl Iterator for Sections<'_> {
    type Item = SectionRead;

    fn next(&mut self) -> Option<SectionRead> {
        while self.memory.first()?.end <= self.at {
            self.memory = &self.memory[1..];
        }
        let start = (self.memory[0].start / PAGES_PER_SECTION * PAGES_PER_SECTION).max(self.at);
        self.at = start + PAGES_PER_SECTION;
        let inside = self.memory.iter().take_while(|range| range.start < self.at);
        let needed = inside.last().map_or(start, |range| range.end.min(self.at));
        self.count += 1;
        Some(SectionRead { index: self.count - 1, pages: start..self.at, needed })
    }
}

/// The runs of all sections that are done without a gap, and those that wait for one before them.
#[derive(Default)]
struct JoinedRuns {
    runs: Vec<Run>,
    next: usize,
    early: BTreeMap<usize, Vec<Run>>,
}

impl JoinedRuns {
    /// Takes the runs of a section, and leaves `runs` empty.
    ///
    /// # Errors
    /// [`LiveError::NoMemory`]
    fn add(&mut self, index: usize, runs: &mut Vec<Run>) -> Result<(), LiveError> {
        if index != self.next {
            let mut early = room(runs.len())?;
            early.append(runs);
            self.early.insert(index, early);
            return Ok(());
        }
        self.append(runs)?;
        while let Some(mut runs) = self.early.remove(&self.next) {
            self.append(&mut runs)?;
        }
        Ok(())
    }

    fn append(&mut self, runs: &mut Vec<Run>) -> Result<(), LiveError> {
        self.runs.try_reserve(runs.len()).map_err(|_| LiveError::NoMemory)?;
        self.next += 1;
        let joins = match (self.runs.last_mut(), runs.first()) {
            (Some(last), Some(first)) if last.end() == first.start && last.is_like(first) => {
                last.len += first.len;
                1
            }
            _ => 0,
        };
        self.runs.extend(runs.drain(..).skip(joins));
        Ok(())
    }
}

/// An empty vector with room for so many.
fn room<T>(len: usize) -> Result<Vec<T>, LiveError> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(len).map_err(|_| LiveError::NoMemory)?;
    Ok(vector)
}

/// Reads all sections that have memory with `threads` threads.
///
/// # Errors
/// The first that a thread meets; the others stop at their next section.
pub(crate) fn scan(
    files: &PageFiles,
    memory: &[MemoryRange],
    threads: usize,
    progress: &ScanProgress,
) -> Result<Vec<Run>, LiveError> {
    let sections = Mutex::new(Sections { memory, at: 0, count: 0 });
    let joined = Mutex::new(JoinedRuns::default());
    let stop = AtomicBool::new(false);
    let work = || -> Result<(), LiveError> {
        let mut reader = SectionReader::new(files)?;
        while !stop.load(Ordering::Relaxed) {
            let section = sections.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(section) = section else { break };
            let runs = reader.read(&section).inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            let added = joined.lock().unwrap_or_else(PoisonError::into_inner).add(section.index, runs);
            added.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            progress.advance(PAGES_PER_SECTION);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        // With fewer threads it takes longer, and that is all.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let workers: Vec<_> = (1..threads).filter_map(spawn).collect();
        // This thread is one of them.
        workers.into_iter().fold(work(), |done, worker| {
            let other = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.and(other)
        })
    })?;
    Ok(joined.into_inner().unwrap_or_else(PoisonError::into_inner).runs)
}

/// Reads one section after the other, into the same buffers.
struct SectionReader<'f> {
    files: &'f PageFiles,
    /// A piece's flags.
    flags: Vec<u64>,
    /// A stretch's map counts.
    counts: Vec<u64>,
    runs: Vec<Run>,
}

impl<'f> SectionReader<'f> {
    fn new(files: &'f PageFiles) -> Result<Self, LiveError> {
        let words = || {
            let mut words = room(PIECE)?;
            words.resize(PIECE, 0);
            Ok::<_, LiveError>(words)
        };
        // Each page may be a run.
        Ok(SectionReader {
            files,
            flags: words()?,
            counts: words()?,
            runs: room(PAGES_PER_SECTION as usize)?,
        })
    }

    /// The section's runs.
    fn read(&mut self, section: &SectionRead) -> Result<&mut Vec<Run>, LiveError> {
        self.runs.clear();
        for first in section.pages.clone().step_by(PIECE) {
            let pages = self.files.flags.read(first, &mut self.flags, section.needed)?;
            self.add_piece(first, pages)?;
            if pages < PIECE {
                break;
            }
        }
        Ok(&mut self.runs)
    }

    /// Adds the runs of a piece whose flags are read.
    fn add_piece(&mut self, first: u64, pages: usize) -> Result<(), LiveError> {
        // The pages whose map counts are read.
        let mut counted = 0..0;
        let mut at = 0;
        while at < pages {
            let flags = self.flags[at];
            let alike = self.flags[at..pages].iter().take_while(|&&other| other == flags).count();
            let end = at + alike;
            if flags & MMAP == 0 {
                self.add_run(Run {
                    start: first + at as u64,
                    len: alike as u64,
                    flags: Flags(flags),
                    count: 0,
                });
                at = end;
                continue;
            }
            if at >= counted.end {
                counted = at..mapped_end(&self.flags[..pages], at);
                let start = first + at as u64;
                self.files.counts.read(start, &mut self.counts[..counted.len()], u64::MAX)?;
            }
            // All of these pages are mapped, so all are in the stretch.
            while at < end {
                let count = self.counts[at - counted.start];
                self.add_run(Run { start: first + at as u64, len: 1, flags: Flags(flags), count });
                at += 1;
            }
        }
        Ok(())
    }

    fn add_run(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last) if last.is_like(&run) => last.len += run.len,
            _ => self.runs.push(run),
        }
    }
}

/// One past the stretch of mapped pages that begins at `start`, narrow gaps included.
fn mapped_end(flags: &[u64], start: usize) -> usize {
    let mut end = start + 1;
    for (at, flags) in flags.iter().enumerate().skip(end) {
        if flags & MMAP != 0 {
            end = at + 1;
        } else if at - end >= GAP {
            break;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{ANON, BUDDY, LRU};
    use proptest::prelude::*;

    /// The two files, with what they say of each page.
    fn proc_with(flags: &[u64], counts: &[u64]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, words) in [("kpageflags", flags), ("kpagecount", counts)] {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    fn scan_of(proc: &Path, memory: &[(u64, u64)], threads: usize) -> Result<Vec<Run>, LiveError> {
        let memory: Vec<_> = memory.iter().map(|&(start, end)| MemoryRange { start, end }).collect();
        scan(&PageFiles::open(proc).unwrap(), &memory, threads, &ScanProgress::default())
    }

    fn sections_of(memory: &[(u64, u64)]) -> Vec<(Range<u64>, u64)> {
        let memory: Vec<_> = memory.iter().map(|&(start, end)| MemoryRange { start, end }).collect();
        let sections = Sections { memory: &memory, at: 0, count: 0 };
        sections
            .enumerate()
            .inspect(|(at, section)| assert_eq!(*at, section.index))
            .map(|(_, section)| (section.pages, section.needed))
            .collect()
    }

    const SECTION: u64 = PAGES_PER_SECTION;

    #[test]
    fn sections_with_memory_are_read_once_and_whole() {
        assert_eq!(sections_of(&[]), []);
        assert_eq!(
            sections_of(&[(1, 9), (20, SECTION + 5), (SECTION + 7, SECTION + 8), (5 * SECTION, 6 * SECTION)]),
            [
                (0..SECTION, SECTION),
                (SECTION..2 * SECTION, SECTION + 8),
                (5 * SECTION..6 * SECTION, 6 * SECTION)
            ]
        );
    }

    #[test]
    fn runs_join_over_pieces_and_sections_but_not_over_holes() {
        let pages = 3 * SECTION + 100;
        let mut flags = vec![BUDDY; pages as usize];
        flags[5] = 0;
        let proc = proc_with(&flags, &vec![0; flags.len()]);
        let runs = scan_of(proc.path(), &[(0, SECTION + 1), (3 * SECTION, pages)], 2).unwrap();
        let runs: Vec<_> = runs.iter().map(|run| (run.start, run.len)).collect();
        assert_eq!(runs, [(0, 5), (5, 1), (6, 2 * SECTION - 6), (3 * SECTION, 100)]);
    }

    #[test]
    fn files_may_end_behind_memory_but_not_before_it() {
        let proc = proc_with(&[ANON | MMAP; 100], &[1; 90]);
        let text = |end| scan_of(proc.path(), &[(0, end)], 1).unwrap_err().to_string();
        assert!(
            text(101).contains("kpageflags ends at page 100, but memory goes on to page 101"),
            "{}",
            text(101)
        );
        // Even where only pages without memory are missing: what flags tell of, counts must tell too.
        assert!(
            text(50).contains("kpagecount ends at page 90, but memory goes on to page 100"),
            "{}",
            text(50)
        );
        let proc = proc_with(&[ANON | MMAP; 100], &[1; 100]);
        assert_eq!(
            scan_of(proc.path(), &[(0, 50)], 4).unwrap(),
            [Run { start: 0, len: 100, flags: Flags(ANON | MMAP), count: 1 }]
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_any_more_is_named() {
        // Opens, as a file does that is gone, and fails when it is read.
        let proc = proc_with(&[MMAP], &[]);
        std::fs::remove_file(proc.path().join("kpagecount")).unwrap();
        std::fs::create_dir(proc.path().join("kpagecount")).unwrap();
        let error = scan_of(proc.path(), &[(0, 1)], 3).unwrap_err();
        assert!(
            matches!(&error, LiveError::Unreadable { path, .. } if path.ends_with("kpagecount")),
            "{error}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Any mixture of stretches, read by any number of threads, is what a plain look at each page says.
        #[test]
        fn runs_are_what_each_page_says(
            stretches in prop::collection::vec((0usize..4, prop_oneof![1usize..40, 1usize..30_000]), 1..60),
            threads in 1usize..5,
        ) {
            let mut flags = Vec::new();
            for (kind, len) in stretches {
                flags.extend(std::iter::repeat_n([BUDDY, ANON | MMAP, LRU | MMAP, LRU][kind], len));
            }
            let counts: Vec<u64> =
                flags.iter().enumerate().map(|(pfn, flags)| if flags & MMAP != 0 { 1 + pfn as u64 / 7 % 3 } else { 0 }).collect();
            let mut plain: Vec<Run> = Vec::new();
            for (pfn, (&flags, &count)) in flags.iter().zip(&counts).enumerate() {
                let run = Run { start: pfn as u64, len: 1, flags: Flags(flags), count };
                match plain.last_mut() {
                    Some(last) if last.is_like(&run) => last.len += 1,
                    _ => plain.push(run),
                }
            }
            let proc = proc_with(&flags, &counts);
            prop_assert_eq!(scan_of(proc.path(), &[(0, flags.len() as u64)], threads).unwrap(), plain);
        }
    }
}
