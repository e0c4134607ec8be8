//! One table's reservation of address space: backed on demand, given back in batches.
//!
//! Traps this code avoids (each was met on a real kernel):
//!
//! * `khugepaged` would put huge pages over folded parts: `MADV_NOHUGEPAGE`.
//! * `mlockall(MCL_FUTURE)` would populate terabytes at `mmap`: reserved without access first, unlocked, then opened.
//! * A forked child would copy pages on write: `MADV_DONTFORK`.
//! * A first write that finds no memory is a signal: `MADV_POPULATE_WRITE` makes it an error.
//! * Without `MAP_NORESERVE` the heuristic overcommit would refuse large machines.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagefold_engine::OutOfMemory;
use pagefold_engine::platform::{FoldRange, Mapping, TableKind};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munlock, munmap,
};
use zerocopy::FromZeros;

use crate::budget::Budget;
use crate::error::{Limit, LinuxError};
use crate::kept::Kept;
use crate::madvise::{populate, process_madvise_dontneed};
use crate::measure::{self, Pages};
use crate::probe::Support;
use crate::strict::StrictMode;

const PAGE: u64 = 4096;
/// Bytes without access behind each table.
const GUARD: u64 = PAGE;

/// A reserved range of address space.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: u64,
    kind: TableKind,
    support: Arc<Support>,
    budget: Arc<Budget>,
    kept: Arc<Kept>,
    /// Pages behind the range, by our own count.
    pages: AtomicU64,
    /// Which pages those are; not for the memory map, whose classes say it.
    backed: Vec<AtomicU64>,
    strict: Option<Arc<StrictMode>>,
}

// SAFETY: the range is plain memory that outlives every use through `&self`; all else is atomics.
unsafe impl Sync for Region {}
// SAFETY: as above; nothing is tied to a thread.
unsafe impl Send for Region {}

impl Region {
    pub(crate) fn reserve(
        kind: TableKind,
        bytes: u64,
        support: Arc<Support>,
        budget: Arc<Budget>,
        kept: Arc<Kept>,
        strict: Option<Arc<StrictMode>>,
    ) -> Result<Self, LinuxError> {
        let no_space =
            |source: io::Error| LinuxError::NoAddressSpace { kind, bytes, source, limit: Limit::find(bytes) };
        // A page behind it stays closed, so that the kernel does not join two tables into one mapping: each has its own
        // line in smaps.
        let len = bytes.max(PAGE).checked_add(GUARD).and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or_else(|| no_space(Errno::NOMEM.into()))?;
        // SAFETY: a new private mapping at a place of the kernel's choice touches nothing that exists.
        let address = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let base = address.map_err(|errno| no_space(errno.into()))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| no_space(Errno::NOMEM.into()))?;
        let open = len as u64 - GUARD;
        let words = if kind.folds() { 0 } else { (open / PAGE).div_ceil(64) as usize };
        let region = Self {
            base,
            len: open,
            kind,
            support,
            budget,
            kept,
            pages: AtomicU64::new(0),
            // They cost nothing until they are touched.
            backed: AtomicU64::new_vec_zeroed(words).map_err(|_| no_space(Errno::NOMEM.into()))?,
            strict,
        };
        region.open().map_err(|errno| no_space(errno.into()))?;
        if let Some(strict) = &region.strict {
            strict.watch(region.base.as_ptr() as u64, region.len)?;
        }
        Ok(region)
    }

    /// Makes the fresh reservation readable and writable, and keeps the kernel from being helpful.
    fn open(&self) -> Result<(), Errno> {
        let (start, len) = (self.base.as_ptr().cast(), self.len as usize);
        // SAFETY: the range is our own fresh mapping, and nothing in it is in use yet.
        unsafe {
            // Locked memory could not be given back. Fails where nothing was locked and limits are odd: no matter.
            let _ = munlock(start, len);
            // EINVAL where the kernel has no huge pages: then there is nothing to avoid.
            let _ = madvise(start, len, Advice::LinuxNoHugepage);
            madvise(start, len, Advice::LinuxDontFork)?;
            mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE)?;
        }
        self.name();
        Ok(())
    }

    /// Names the mapping for whoever reads `/proc/PID/maps` (Linux 5.17; elsewhere it stays nameless).
    fn name(&self) {
        let name: &std::ffi::CStr = match self.kind {
            TableKind::Map => c"pagefold map",
            TableKind::Classes => c"pagefold classes",
            TableKind::Sections => c"pagefold sections",
            TableKind::Regions => c"pagefold regions",
            TableKind::Rows => c"pagefold rows",
            TableKind::Lanes => c"pagefold lanes",
            TableKind::Trees => c"pagefold trees",
            TableKind::Poison => c"pagefold poison",
            TableKind::Holes => c"pagefold holes",
            TableKind::Withheld => c"pagefold withheld",
            TableKind::Blocks => c"pagefold blocks",
            TableKind::MovableRows => c"pagefold movable rows",
            TableKind::MovableLanes => c"pagefold movable lanes",
            TableKind::MovableTrees => c"pagefold movable trees",
            TableKind::Objects => c"pagefold objects",
            TableKind::ObjectGroups => c"pagefold object groups",
            TableKind::ObjectRows => c"pagefold object rows",
            TableKind::ObjectLanes => c"pagefold object lanes",
            TableKind::ObjectTrees => c"pagefold object trees",
        };
        // SAFETY: the name outlives the call, and the range is our own.
        unsafe {
            libc::prctl(
                libc::PR_SET_VMA,
                libc::PR_SET_VMA_ANON_NAME as libc::c_ulong,
                self.base.as_ptr(),
                self.len,
                name.as_ptr(),
            );
        }
    }

    /// Which table it is.
    pub fn kind(&self) -> TableKind {
        self.kind
    }

    /// The range in this process's address space.
    pub fn addresses(&self) -> Range<u64> {
        let base = self.base.as_ptr() as u64;
        base..base + self.len
    }

    /// Calls `each` for every run of addresses that has memory of its own, as the system sees it.
    ///
    /// # Errors
    /// As [`measure::scan`].
    pub fn scan_private(&self, each: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
        // In strict mode empty pages carry marks that look like swapped memory.
        let pages = if self.strict.is_some() { Pages::PrivateResident } else { Pages::Private };
        measure::scan(self.addresses(), pages, each)
    }

    /// Pages of memory behind it, as the system sees it.
    ///
    /// # Errors
    /// As [`scan_private`](Self::scan_private).
    pub fn measured_pages(&self) -> io::Result<u64> {
        let mut pages = 0;
        self.scan_private(&mut |run| pages += (run.end - run.start) / PAGE)?;
        Ok(pages)
    }

    /// Pages behind it, by our own count.
    pub fn counted_pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Bytes kept on the heap for it, at most.
    pub fn bookkeeping(&self) -> u64 {
        (size_of::<Self>() + self.backed.len() * size_of::<AtomicU64>()) as u64
    }

    fn populate(&self, bytes: &Range<u64>) -> Result<(), Errno> {
        if let Some(strict) = &self.strict {
            strict.allow(self.base.as_ptr() as u64 + bytes.start, bytes.end - bytes.start)?;
        }
        let len = (bytes.end - bytes.start) as usize;
        // SAFETY: in bounds of our own mapping (checked by the caller).
        unsafe { populate(self.base.as_ptr().add(bytes.start as usize).cast(), len) }
    }

    fn discard(&self, bytes: &Range<u64>) -> Result<(), Errno> {
        let len = (bytes.end - bytes.start) as usize;
        // SAFETY: in bounds of our own mapping, and the caller has given up the content.
        unsafe {
            let start = self.base.as_ptr().add(bytes.start as usize);
            madvise(start.cast(), len, Advice::LinuxDontNeed)
        }
    }

    /// The whole pages that `bytes` lie in.
    fn pages_of(&self, bytes: &Range<u64>) -> Range<u64> {
        let start = bytes.start / PAGE;
        start..bytes.end.min(self.len).div_ceil(PAGE).max(start)
    }

    /// How many of `pages` have no memory.
    fn wanted(&self, pages: &Range<u64>) -> u64 {
        if self.kind.folds() { pages.end - pages.start } else { self.unbacked(pages.clone()) }
    }

    /// Notes that `pages` have memory, of which `wanted` had none before. Returns how many are new.
    fn note_backed(&self, pages: Range<u64>, wanted: u64) -> u64 {
        let mut fresh = wanted;
        if !self.kind.folds() {
            // Others may have populated some of the same pages: whoever notes a page first counts it.
            fresh = 0;
            for page in pages {
                if let Some(word) = self.backed.get((page / 64) as usize) {
                    let bit = 1 << (page % 64);
                    fresh += u64::from(word.fetch_or(bit, Ordering::AcqRel) & bit == 0);
                }
            }
        }
        self.pages.fetch_add(fresh, Ordering::Relaxed);
        fresh
    }

    /// Those pages of a range that are not noted as backed.
    fn unbacked(&self, pages: Range<u64>) -> u64 {
        pages.filter(|&page| !self.is_backed(page)).count() as u64
    }

    fn is_backed(&self, page: u64) -> bool {
        let word = self.backed.get((page / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 != 0)
    }
}

// SAFETY: `base..base+len` is a private anonymous mapping that lives until drop. Never-written and discarded pages read
// as zero (madvise(2), MADV_DONTNEED on private anonymous memory). After a populate succeeded, writes need no memory
// any more, since nothing swaps pages out of existence. The base is page aligned as every mapping is.
unsafe impl Mapping for Region {
    // The kernel puts its zero page, or a frame, where a page table has nothing; a reader that comes between faults, waits
    // in the kernel, and reads one or the other.
    const HAS_GAP: bool = false;

    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn made_for(&self) -> Option<TableKind> {
        Some(self.kind)
    }
    fn len(&self) -> u64 {
        self.len
    }

    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory> {
        let pages = self.pages_of(&bytes);
        let wanted = self.wanted(&pages);
        if wanted == 0 {
            return Ok(());
        }
        if !self.budget.take(wanted) {
            return Err(OutOfMemory);
        }
        let range = pages.start * PAGE..pages.end * PAGE;
        if self.populate(&range).is_err() {
            self.budget.give(wanted);
            if self.kind.folds() {
                // It may have got half-way. All of the range was folded, and is the caller's.
                let _ = self.discard(&range);
            }
            return Err(OutOfMemory);
        }
        let fresh = self.note_backed(pages, wanted);
        self.budget.give(wanted - fresh.min(wanted));
        Ok(())
    }

    unsafe fn materialise_set_aside(&self, bytes: Range<u64>) -> u64 {
        let pages = self.pages_of(&bytes);
        let wanted = self.wanted(&pages);
        if wanted == 0 {
            return 0;
        }
        self.kept.give_back(wanted);
        // The limits that are this process's have room for what was just given back; the machine's memory the kernel waits
        // for. What it does refuse for a moment is asked for again.
        while self.populate(&(pages.start * PAGE..pages.end * PAGE)).is_err() {
            std::thread::yield_now();
        }
        let fresh = self.note_backed(pages, wanted);
        // Of pages that others populated meanwhile the budget has those already.
        self.budget.give(wanted - fresh.min(wanted));
        wanted
    }

    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        let mut done = 0;
        if let Some(pidfd) = &self.support.pidfd
            && ranges.len() > 1
        {
            let mut bytes = process_madvise_dontneed(pidfd, self.base.as_ptr(), ranges).unwrap_or(0);
            while let Some(range) = ranges.get(done)
                && bytes >= range.bytes.end - range.bytes.start
            {
                bytes -= range.bytes.end - range.bytes.start;
                done += 1;
            }
        }
        // One range alone, an old kernel, or whatever the batch stumbled over: one by one.
        done += ranges.iter().skip(done).take_while(|range| self.discard(&range.bytes).is_ok()).count();
        let mut pages = 0;
        for range in ranges.iter().take(done) {
            pages += range.backed;
            if let Some(strict) = &self.strict {
                let Range { start, end } = range.bytes;
                strict.forbid(self.base.as_ptr() as u64 + start, end - start);
            }
        }
        self.pages.fetch_sub(pages, Ordering::Relaxed);
        self.budget.give(pages);
        done
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.budget.give(self.counted_pages());
        // SAFETY: mapped by `reserve`; the engine that used it is gone.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), (self.len + GUARD) as usize) };
    }
}
