//! The engine's tables as page tables: folded parts read as zero, and cost nothing. How, and in which order entries change:
//! `pagefold-pagetable`.
//!
//! Only the memory map folds; it may be unreadable for a moment while it does. All other tables can be read at any time.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use pagefold_engine::OutOfMemory;
use pagefold_engine::platform::{FoldRange, Mapping, TableKind};
pub use pagefold_pagetable::SHARED_FRAMES;
use pagefold_pagetable::{Behind, Counts, Gap, HUGE, Reservation, Shared};
use spin::Once;

use crate::layout::{DEVICES, PAGE, TABLES};
use crate::mmu::GuestMmu;
use crate::paging::{self, MapError};

static SHARED: Once<Shared<GuestMmu>> = Once::new();
/// Where the next table's range begins.
static NEXT: AtomicU64 = AtomicU64::new(TABLES);
/// More tables than the engine has kinds of.
const MOST: usize = 32;
/// All that there are. Fault handlers look here, on any number of processors at once, and can wait for nobody.
static ALL: [Once<(TableKind, Range<u64>)>; MOST] = [const { Once::new() }; MOST];

/// Makes what all tables share. `None` without frames for it.
pub fn init() -> Option<()> {
    let shared = Shared::new(GuestMmu).ok()?;
    SHARED.call_once(|| shared);
    Some(())
}

/// How often what happened, once there are tables.
pub fn counts() -> Option<&'static Counts> {
    SHARED.get().map(Shared::counts)
}

/// An access flag fault: whether there was a flag to set, so that the access may be repeated.
#[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "hardware always sets the flag there"))]
pub fn note_access(address: u64) -> bool {
    find(address).is_some() && SHARED.get().is_some_and(|shared| shared.note_access(address))
}

/// The table that an address is in, and where in it.
pub fn find(address: u64) -> Option<(TableKind, u64)> {
    let (kind, range) = ALL.iter().filter_map(Once::get).find(|(_, range)| range.contains(&address))?;
    Some((*kind, address - range.start))
}

/// A table's range of addresses. Lives for ever.
pub struct Table(Reservation<'static, GuestMmu>);

impl Table {
    /// Reserves a range.
    pub fn reserve(kind: TableKind, bytes: u64) -> Result<Table, MapError> {
        let shared = SHARED.get().ok_or(MapError::NoFrames)?;
        let len = bytes.max(PAGE).checked_next_multiple_of(HUGE).ok_or(MapError::Taken)?;
        let base = NEXT.fetch_add(len, Ordering::Relaxed);
        if base.checked_add(len).is_none_or(|end| end > DEVICES) {
            return Err(MapError::Taken);
        }
        paging::make_upper(base..base + len)?;
        let gap = if kind.folds() { Gap::Allowed } else { Gap::Never };
        // SAFETY: fresh addresses, which nothing else was mapped at.
        let reservation = unsafe { Reservation::new(shared, base, bytes, gap) }?;
        let is_noted = ALL.iter().any(|place| {
            let mut is_ours = false;
            place.call_once(|| {
                is_ours = true;
                (kind, base..base + len)
            });
            is_ours
        });
        if is_noted { Ok(Table(reservation)) } else { Err(MapError::Taken) }
    }

    /// What is behind it, by its own count.
    pub fn counted(&self) -> Behind {
        self.0.counted()
    }

    /// What is behind it, by what the page tables say.
    pub fn measured(&self) -> Behind {
        self.0.measured()
    }
}

// SAFETY: a range stays mapped for ever. The exception is a table that folds: parts of it are unmapped for a moment during
// `fold` and `materialise`, while nobody reads them. Folded parts are the zeroed frame, which nobody can write. `materialise` returns after
// the frame is mapped for writing and nobody remembers that it was not.
unsafe impl Mapping for Table {
    fn base(&self) -> NonNull<u8> {
        // Never null.
        NonNull::new(self.0.base() as *mut u8).unwrap_or(NonNull::dangling())
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory> {
        // SAFETY: the caller's promise: where there may be a gap, nobody reads.
        unsafe { self.0.materialise(bytes) }.map_err(|_| OutOfMemory)
    }

    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.0.fold(ranges.iter().map(|range| range.bytes.clone())) };
        ranges.len()
    }
}
