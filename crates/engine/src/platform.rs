//! What the engine asks of the machine: ranges that are backed on demand, and a barrier that reaches every reader.

use core::ops::Range;
use core::ptr::NonNull;

use zerocopy::FromZeros;

use crate::geometry::{
    AREA_ORDER, DESCRIPTOR_SIZE, MAP_PAGE_ORDER, PAGE_SIZE, REGION_ORDER, ROW_ORDER, SECTION_ORDER,
    TREE_ORDER, pages_of_machine,
};
use crate::heap::OutOfMemory;
use crate::protocol::Protocol;

/// Which of the engine's tables a range is for. Sizes per page of memory described are at each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// The memory map: 64 bytes a page. The only table that folds at run time.
    Map,
    /// The class table: 1 byte a map page.
    Classes,
    /// The sections' classes: 1 byte a section.
    Sections,
    /// The regions' classes: 1 byte a region.
    Regions,
    /// The allocator's rows: 8 bytes a map page.
    Rows,
    /// The allocator's lanes: 1 byte an area.
    Lanes,
    /// The allocator's tree words: 4 bytes a tree.
    Trees,
    /// Poisoned pages: 8 bytes a map page.
    Poison,
    /// Pages without memory in partly present map pages: 8 bytes a map page.
    Holes,
    /// Poisoned pages that are kept back from the allocator: 8 bytes a map page.
    Withheld,
    /// What memory blocks say: 4 bytes a section.
    Blocks,
    /// The movable zone's rows.
    MovableRows,
    /// The movable zone's lanes.
    MovableLanes,
    /// The movable zone's tree words.
    MovableTrees,
}

impl TableKind {
    /// All of them, in the order the engine reserves them.
    pub const ALL: [TableKind; 14] = [
        TableKind::Map,
        TableKind::Classes,
        TableKind::Sections,
        TableKind::Regions,
        TableKind::Rows,
        TableKind::Lanes,
        TableKind::Trees,
        TableKind::Poison,
        TableKind::Holes,
        TableKind::Withheld,
        TableKind::Blocks,
        TableKind::MovableRows,
        TableKind::MovableLanes,
        TableKind::MovableTrees,
    ];

    /// Bytes of address space that the table takes on a machine of `pages` pages: what [`Platform::reserve`] will be asked
    /// for. Whole pages of 4 KiB. `None` if that is more than page numbers have bits for.
    pub const fn bytes(self, pages: u64) -> Option<u64> {
        let Some(pages) = pages_of_machine(pages) else { return None };
        (self.entries(pages) * self.entry_bytes()).checked_next_multiple_of(PAGE_SIZE)
    }

    /// Entries of the table.
    pub(crate) const fn entries(self, pages: u64) -> u64 {
        let order = match self {
            TableKind::Map => 0,
            TableKind::Classes => MAP_PAGE_ORDER,
            TableKind::Sections | TableKind::Blocks => SECTION_ORDER,
            TableKind::Regions => REGION_ORDER,
            TableKind::Rows | TableKind::MovableRows => ROW_ORDER,
            TableKind::Poison | TableKind::Holes | TableKind::Withheld => ROW_ORDER,
            // Eight lanes are one word.
            TableKind::Lanes | TableKind::MovableLanes => AREA_ORDER + 3,
            TableKind::Trees | TableKind::MovableTrees => TREE_ORDER,
        };
        pages.div_ceil(1 << order)
    }

    /// Bytes in an entry.
    pub(crate) const fn entry_bytes(self) -> u64 {
        match self {
            TableKind::Map => DESCRIPTOR_SIZE,
            TableKind::Classes | TableKind::Sections | TableKind::Regions => 1,
            TableKind::Trees | TableKind::MovableTrees | TableKind::Blocks => 4,
            _ => 8,
        }
    }
}

/// A range to be folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldRange {
    /// Byte offsets, multiples of 4 KiB.
    pub bytes: Range<u64>,
    /// Pages of 4 KiB in it that have memory. Those that have none may be included where that makes the range whole, so
    /// that page tables can go as well.
    pub backed: u64,
}

/// One reserved range of address space, backed page by page on demand.
///
/// A *folded* part of the range has no memory of its own: it reads as zero. Everything is folded at first.
///
/// # The gap
///
/// Where a page table may not go from one frame to another in one step (arm64 wants break-before-make), there is a moment
/// in which the range cannot be read. Of the memory map, and of no other table, a mapping that says
/// [`HAS_GAP`](Self::HAS_GAP) may let a range be unreadable between the start and the end of [`fold`](Self::fold) and of
/// [`materialise`](Self::materialise): no walker reads it then (see [`crate::protocol`]). No CPU has to be paused, and no fault
/// handled. That is true of [`Fold`](crate::protocol::Fold) alone; the protocols for comparison read what is folded, and
/// an engine on such a mapping does not compile with those that mean to (`no-grace-period` faults there: it is the bug).
///
/// # Safety
///
/// For as long as the value lives:
/// * the range is the value's alone: no other value has a part of it, and nothing reads or writes it but through the
///   engine that was given the value. When [`Platform::reserve`] gives the value out, all of it is folded;
/// * `base() .. base() + len()` can be read at any time (but for the gap) from any thread, and a part that is folded
///   reads as zero;
/// * after [`materialise`](Self::materialise) returned `Ok`, every CPU can write the range until it is folded, and what
///   is written stays;
/// * `base()` is aligned to 4 KiB, and neither it nor `len()` ever changes;
/// * no call unwinds.
pub unsafe trait Mapping: Send + Sync {
    /// Whether a range of the memory map may be unreadable while it is folded or materialised. `true` is always allowed
    /// and keeps the protocols for comparison away; say `false` only where every step of both leaves the range readable.
    const HAS_GAP: bool = true;

    /// The first byte.
    fn base(&self) -> NonNull<u8>;

    /// The length in bytes.
    fn len(&self) -> u64;

    /// Whether the caller is where the memory map may be materialised and folded: where page tables may change, and the TLBs
    /// of other CPUs be flushed. Asked in debug builds, which stop there; a kernel that can tell says it here.
    fn may_change(&self) -> bool {
        true
    }

    /// The table it was made for, if that makes a difference to it. The engine uses it for no other.
    fn made_for(&self) -> Option<TableKind> {
        None
    }

    /// Whether the range is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts memory behind `bytes` (widened to whole 4 KiB pages). What was folded reads as zero afterwards, what had
    /// memory keeps its content. Of the memory map, with a gap, the range may be unreadable until the call ends. On an
    /// error nothing that can be observed has changed. A range that has memory already, all of it, needs none: for that there
    /// is no error.
    ///
    /// # Safety
    /// Of the memory map ([`TableKind::Map`]), all of the range is folded and the caller's: until the call ends nobody else
    /// materialises, folds or writes a part of it, nor reads it, where there is a gap. Of other tables, any number of
    /// threads may ask for overlapping ranges at once.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the machine cannot back the range now.
    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory>;

    /// Takes the memory behind each of `ranges` away again, in order, and returns how many of them are folded. It flushes
    /// once for all of them. A range it could not fold stays as it was. Between start and end of the call the ranges may
    /// be unreadable, if there is a gap.
    ///
    /// # Safety
    /// From now until each range is materialised again nobody writes to it (nor reads it, where there is a gap): the
    /// caller owns all of it, and a grace period has passed since the last reader could have been led there.
    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize;
}

/// The two halves of an asymmetric barrier, and how to wait.
///
/// # Safety
///
/// For any call of `heavy` on one thread and `light` on another, both threads agree on an order of the two, as if each
/// were a sequentially consistent fence: either what preceded `heavy` is seen by what follows `light`, or what preceded
/// `light` is seen by what follows `heavy`. That holds for any two values that one platform gives out. No call unwinds.
pub unsafe trait Barrier: Send + Sync {
    /// The reader's half: runs at every outermost section, so it should cost nothing.
    fn light(&self);
    /// The writer's half: runs once a grace period. Freeing allocates nothing, and calls nothing of the machine, so it does
    /// not depend on this; folding does. An interrupt call that allocates must not need what the folder holds.
    fn heavy(&self);
    /// Whether the caller is where [`heavy`](Self::heavy) and [`wait`](Self::wait) may be called: not with interrupts off if
    /// `heavy` sends some, not under a lock that a reader inside a section may want, not inside a section. Asked in debug
    /// builds, which stop there; a kernel that can tell says it here.
    fn may_wait(&self) -> bool {
        true
    }
    /// A writer has found a reader inside for the `turn`th time and may rest a little.
    fn wait(&self, turn: u32) {
        let _ = turn;
        crate::sync::spin_loop();
    }
}

/// Both halves are sequentially consistent fences. Correct everywhere, and the fallback where nothing better exists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fences;

// SAFETY: two SeqCst fences are totally ordered, and C11 29.3p4-7 gives each the view the trait asks for.
unsafe impl Barrier for Fences {
    #[inline]
    fn light(&self) {
        crate::sync::fence(crate::sync::Ordering::SeqCst);
    }
    fn heavy(&self) {
        crate::sync::fence(crate::sync::Ordering::SeqCst);
    }
}

/// What an owner of memory may keep in the 56 spare bytes of a folio's descriptor.
///
/// Zero bytes must be a valid value, because a descriptor is born as zeros. The type is the same for all folios of an
/// engine; what it means by kind is the owner's to encode. It is not dropped.
pub trait Owner: FromZeros + Send + Sync + 'static {}
impl<T: FromZeros + Send + Sync + 'static> Owner for T {}

/// A machine the engine can run on.
///
/// Not `unsafe`: whatever these calls answer, memory is safe. What has to be upheld for that is upheld by the types that
/// they hand out, [`Mapping`] (each value has a range of its own) and [`Barrier`]. A mapping that is too short is refused; a
/// call that panics does so before anything was changed.
pub trait Platform: Send + Sync {
    /// Its ranges.
    type Mapping: Mapping;
    /// Its barriers.
    type Barrier: Barrier;
    /// What owners keep in a descriptor; `()` for nothing.
    type Owner: Owner;
    /// By which rules walkers and folders meet: [`Fold`](crate::protocol::Fold). Other rules are for comparison and for
    /// tests, and make an engine by [`Engine::with_rules`](crate::Engine::with_rules) only.
    type Rules: Protocol;
    /// Why a range could not be reserved.
    type Error: core::fmt::Debug;

    /// Reserves `bytes` of address space for a table, folded.
    ///
    /// # Errors
    /// Whatever the machine says.
    fn reserve(&self, kind: TableKind, bytes: u64) -> Result<Self::Mapping, Self::Error>;

    /// The barrier that reaches all of this machine's readers.
    fn barrier(&self) -> Self::Barrier;

    /// A hint where the caller runs: threads that run at the same time should get different numbers. Any number is
    /// correct; equal ones only contend.
    fn cpu(&self) -> usize;
}
