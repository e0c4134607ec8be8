//! The machine: entries in memory, TLBs that remember them, frames.

use core::ops::Range;

use crate::entry::Entry;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Physical address of its table.
    pub table: u64,
    /// Which of the 512.
    pub index: usize,
}

/// What processors are to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush<'a> {
    /// How these addresses (multiples of 4 KiB) are mapped, and how their tables are found.
    Ranges(&'a [Range<u64>]),
    /// All that this crate maps.
    All,
}

/// No frame is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrames;

impl core::fmt::Display for NoFrames {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no frame is left")
    }
}
impl core::error::Error for NoFrames {}

/// A machine whose page tables this crate keeps.
///
/// # Safety
///
/// * `load`, `swap` and `compare_exchange` are atomic, also against hardware that sets accessed flags. What one of them
///   stored is seen by whoever finds it, with all that was written before (Release and Acquire).
/// * When [`flush`](Self::flush) returns, no processor remembers anything of what was to be forgotten from before the call,
///   neither of pages nor of tables on the way to them, and each has finished the accesses that used it.
/// * When [`made`](Self::made) returns, every processor that learns of it can use the entries that were stored before.
/// * Frames that [`take`](Self::take) hands out are the caller's alone, and hold zeros.
/// * [`upper`](Self::upper) answers the same for addresses of one GiB, always.
pub unsafe trait Mmu {
    /// Its entries.
    type Entry: Entry;
    /// Frames that were taken together; those that are left over go back when it is dropped.
    type Frames: Iterator<Item = u64>;

    /// What entries look like.
    fn format(&self) -> Self::Entry;
    /// The entry that leads to the page directory of an address.
    fn upper(&self, address: u64) -> Slot;

    /// An entry, as it is.
    fn load(&self, slot: Slot) -> u64;
    /// Stores an entry; the one before.
    fn swap(&self, slot: Slot, word: u64) -> u64;
    /// Stores an entry, if it is `old` still; otherwise says what it is.
    ///
    /// # Errors
    /// It is another one.
    fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64>;
    /// Makes all 512 entries of a table that no hardware can reach yet `word`.
    fn fill(&self, table: u64, word: u64);

    /// Makes every processor forget.
    fn flush(&self, what: Flush<'_>);
    /// Entries for `range` were stored: does what the machine needs until all may use them.
    fn made(&self, range: Range<u64>);

    /// So many frames, or none.
    fn take(&self, count: u64) -> Option<Self::Frames>;
    /// Takes a frame back.
    ///
    /// # Safety
    /// It came from [`take`](Self::take), and nobody uses it or can reach it any more: no entry leads to it, and no processor
    /// remembers one that did.
    unsafe fn give(&self, frame: u64);
}
