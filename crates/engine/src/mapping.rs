//! Ranges of address space that are backed on demand: what the engine's tables lie in.

use core::ops::Range;
use core::ptr::NonNull;

use crate::geometry::{
    AREA_ORDER, MapShape, OBJECTS_PER_GROUP, PAGE_SIZE, REGION_ORDER, ROW_ORDER, SECTION_ORDER, TREE_ORDER,
    pages_of_machine, words_per_tree,
};
use crate::heap::OutOfMemory;

/// Which of the engine's tables a range is for. Sizes per page of memory described are at each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// The memory map: what stands for a page by itself, 64 bytes or 8. Folds at run time.
    Map,
    /// The class table: an entry a map page, of 1 byte or 8.
    Classes,
    /// The sections' classes: 1 byte a section.
    Sections,
    /// The regions' classes: 1 byte a region.
    Regions,
    /// The allocator's rows: 8 bytes for 64 pages.
    Rows,
    /// The allocator's lanes: 1 byte an area.
    Lanes,
    /// The allocator's tree words: 4 bytes a tree, or up to a cache line where there are few.
    Trees,
    /// Poisoned pages: 8 bytes for 64 pages.
    Poison,
    /// Pages without memory in partly present map pages: 8 bytes for 64 pages.
    Holes,
    /// Poisoned pages that are kept back from the allocator: 8 bytes for 64 pages.
    Withheld,
    /// What memory blocks say: 4 bytes a section.
    Blocks,
    /// The movable zone's rows.
    MovableRows,
    /// The movable zone's lanes.
    MovableLanes,
    /// The movable zone's tree words.
    MovableTrees,
    /// Descriptors that are objects: one a folio. Folds at run time.
    Objects,
    /// Which groups of objects have memory behind them: 1 byte a group.
    ObjectGroups,
    /// The objects' allocator's rows: 8 bytes for 64 objects.
    ObjectRows,
    /// The objects' allocator's lanes.
    ObjectLanes,
    /// The objects' allocator's tree words.
    ObjectTrees,
}

impl TableKind {
    /// All of them, in the order the engine reserves them.
    pub const ALL: [TableKind; 19] = [
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
        TableKind::Objects,
        TableKind::ObjectGroups,
        TableKind::ObjectRows,
        TableKind::ObjectLanes,
        TableKind::ObjectTrees,
    ];

    /// Whether parts of the table are folded at run time, by the one who owns all of the part. Of every other table, what
    /// has memory once keeps it.
    pub const fn folds(self) -> bool {
        matches!(self, TableKind::Map | TableKind::Objects)
    }

    /// Bytes of address space that the table takes on a machine of `pages` pages: what
    /// [`Platform::reserve`](crate::Platform::reserve) will be asked for, if its descriptors have that `shape`. Whole pages of
    /// 4 KiB. `None` if that is more than page numbers have bits for.
    pub const fn bytes(self, pages: u64, shape: MapShape) -> Option<u64> {
        let Some(pages) = pages_of_machine(pages) else { return None };
        (self.entries(pages, shape) * self.entry_bytes(shape)).checked_next_multiple_of(PAGE_SIZE)
    }

    /// Entries of the table.
    pub(crate) const fn entries(self, pages: u64, shape: MapShape) -> u64 {
        let order = match self {
            // As many objects as folios there can be.
            TableKind::Map | TableKind::Objects => 0,
            TableKind::Classes => shape.map_page_order,
            TableKind::ObjectGroups => OBJECTS_PER_GROUP.ilog2(),
            TableKind::Sections | TableKind::Blocks => SECTION_ORDER,
            TableKind::Regions => REGION_ORDER,
            TableKind::Rows | TableKind::MovableRows | TableKind::ObjectRows => ROW_ORDER,
            TableKind::Poison | TableKind::Holes | TableKind::Withheld => ROW_ORDER,
            // Eight lanes are one word.
            TableKind::Lanes | TableKind::MovableLanes | TableKind::ObjectLanes => AREA_ORDER + 3,
            TableKind::Trees | TableKind::MovableTrees | TableKind::ObjectTrees => {
                let trees = pages.div_ceil(1 << TREE_ORDER);
                return trees * words_per_tree(trees);
            }
        };
        pages.div_ceil(1 << order)
    }

    /// Bytes in an entry.
    pub(crate) const fn entry_bytes(self, shape: MapShape) -> u64 {
        match self {
            TableKind::Map => shape.entry_bytes,
            TableKind::Classes => shape.class_bytes,
            TableKind::Objects => shape.object_bytes,
            TableKind::Sections | TableKind::Regions | TableKind::ObjectGroups => 1,
            TableKind::Trees | TableKind::MovableTrees | TableKind::ObjectTrees | TableKind::Blocks => 4,
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
/// in which the range cannot be read. Of tables that [fold](TableKind::folds), and of no other, a mapping that says
/// [`HAS_GAP`](Self::HAS_GAP) may let a range be unreadable between the start and the end of [`fold`](Self::fold) and of
/// [`materialise`](Self::materialise): no walker reads it then (see [`crate::protocol`]). No CPU has to be paused, and no fault
/// handled. That is true of [`Fold`](crate::protocol::Fold) alone; the protocols for comparison read what is folded, and
/// an engine on such a mapping does not compile with those that mean to (`no-grace-period` faults there: it is the bug).
///
/// # Safety
///
/// For as long as the value lives:
/// * the range is the value's alone: no other value has a part of it, and nothing reads or writes it but through the
///   engine that was given the value. When [`Platform::reserve`](crate::Platform::reserve) gives the value out, all of it is folded;
/// * `base() .. base() + len()` can be read at any time (but for the gap) from any thread, and a part that is folded
///   reads as zero;
/// * after [`materialise`](Self::materialise) returned `Ok`, every CPU can write the range until it is folded, and what
///   is written stays;
/// * `base()` is aligned to 4 KiB, and neither it nor `len()` ever changes;
/// * no call unwinds.
pub unsafe trait Mapping: Send + Sync {
    /// Whether a range of a table that folds may be unreadable while it is folded or materialised. `true` is always allowed
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
    /// memory keeps its content. Of a table that folds, with a gap, the range may be unreadable until the call ends. On an
    /// error nothing that can be observed has changed. A range that has memory already, all of it, needs none: for that there
    /// is no error.
    ///
    /// # Safety
    /// Of a table that folds ([`TableKind::folds`]), all of the range is folded and the caller's: until the call ends nobody else
    /// materialises, folds or writes a part of it, nor reads it, where there is a gap. Of other tables, any number of
    /// threads may ask for overlapping ranges at once.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the machine cannot back the range now.
    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory>;

    /// Frames that materialising a range of `pages` (4 KiB each) takes at most, page tables included.
    fn frames_for(&self, pages: u64) -> u64 {
        pages
    }

    /// As [`materialise`](Self::materialise), with frames that [`Platform::set_aside`](crate::Platform::set_aside) has set aside:
    /// it cannot fail. Returns how many of them it used, page tables included. A range may come in parts; there are
    /// [`frames_for`](Self::frames_for) the whole set aside when it begins. Never called on a platform that refuses to set aside.
    ///
    /// # Safety
    /// As `materialise`.
    unsafe fn materialise_set_aside(&self, bytes: Range<u64>) -> u64 {
        let _ = bytes;
        0
    }

    /// Takes the memory behind each of `ranges` away again, in order, and returns how many of them are folded. It flushes
    /// once for all of them. A range it could not fold stays as it was. Between start and end of the call the ranges may
    /// be unreadable, if there is a gap.
    ///
    /// # Safety
    /// From now until each range is materialised again nobody writes to it (nor reads it, where there is a gap): the
    /// caller owns all of it, and a grace period has passed since the last reader could have been led there.
    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize;
}
