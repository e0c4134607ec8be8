//! Readers and their sections.

use alloc::boxed::Box;
use core::cell::Cell;
use core::marker::PhantomData;

use super::{Block, NEST, NEST_MASK, Rcu, ReaderSlot};
use crate::barrier::Barrier;
use crate::heap::{OutOfMemory, try_box};
use crate::sync::{AtomicU64, Ordering};

impl<B: Barrier> Rcu<B> {
    /// Registers a reader: a thread, or a CPU. Dropping it makes its slot free for the next.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`] when all slots are taken and no block of new ones can be had.
    pub fn reader(&self) -> Result<Reader<'_, B>, OutOfMemory> {
        loop {
            // Acquire: pairs with the Release below that published the block.
            let head = self.blocks.load(Ordering::Acquire);
            for slot in self.slots_from(head) {
                // Acquire: pairs with the Release of the reader that gave the slot back.
                let free = slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
                if free.is_ok() {
                    return Ok(Reader { rcu: self, slot, _not_sync: PhantomData });
                }
            }
            let mut block = try_box(Block::new()).map_err(|_| OutOfMemory)?;
            block.next = head;
            let block = Box::into_raw(block);
            // Release: the block's content before its address. On failure another reader added one: look again.
            if self.blocks.compare_exchange(head, block, Ordering::Release, Ordering::Relaxed).is_err() {
                // SAFETY: `block` came from `into_raw` above and was not published.
                drop(unsafe { Box::from_raw(block) });
            }
        }
    }
}

/// A registered reader. One thread at a time; it may move between threads outside sections.
pub struct Reader<'r, B: Barrier> {
    rcu: &'r Rcu<B>,
    pub(super) slot: &'r ReaderSlot,
    /// Two threads entering through one slot would lose each other's sections.
    _not_sync: PhantomData<Cell<()>>,
}

impl<'r, B: Barrier> Reader<'r, B> {
    /// Enters a section. Sections nest, up to 65,534 deep; the outermost one is two stores in all and no atomic
    /// read-modify-write. A reader that goes deeper counts as inside until it is dropped, and grace periods wait for it.
    ///
    /// Context: any.
    #[inline]
    pub fn section(&self) -> ReadSection<'_> {
        let word = &self.slot.word;
        // Relaxed: only this reader writes its slot.
        let now = word.load(Ordering::Relaxed);
        if now & NEST_MASK == 0 {
            // Relaxed: an old epoch only makes a writer wait longer.
            let epoch = self.rcu.epoch.load(Ordering::Relaxed);
            // Release: see the argument above, "even if it first sees a later section".
            word.store(epoch | NEST, Ordering::Release);
            self.rcu.barrier.light();
        } else if now & NEST_MASK != NEST_MASK {
            word.store(now + NEST, Ordering::Release);
        }
        // At 65,535 the count sticks, here and in leaving: such a reader (it leaked its guards) never looks idle again.
        // Grace periods then wait for ever, but none ends too early.
        ReadSection { word, _not_send: PhantomData }
    }

    /// Runs `f` inside a section. As [`section`](Self::section), but leaving needs no look at the slot. A section that `f`
    /// enters has ended when it returns.
    #[inline]
    pub(crate) fn within<T>(&self, f: impl FnOnce() -> T) -> T {
        let word = &self.slot.word;
        // Relaxed: only this reader writes its slot.
        let now = word.load(Ordering::Relaxed);
        if now & NEST_MASK != 0 {
            // Inside already, and still inside afterwards.
            return f();
        }
        // Relaxed and Release as in `section`.
        let epoch = self.rcu.epoch.load(Ordering::Relaxed);
        word.store(epoch | NEST, Ordering::Release);
        self.rcu.barrier.light();
        // Left also if `f` panics: every grace period would wait for this reader, for ever.
        let _leave = Leave { word, epoch };
        f()
    }

    /// Whether this reader is inside a section.
    pub fn is_inside(&self) -> bool {
        self.slot.word.load(Ordering::Relaxed) & NEST_MASK != 0
    }
}

impl<B: Barrier> Drop for Reader<'_, B> {
    fn drop(&mut self) {
        // A section guard borrows the reader, so none is alive; one that was leaked ends here.
        self.slot.word.store(0, Ordering::Release);
        // Release: the next owner of the slot sees it idle.
        self.slot.taken.store(false, Ordering::Release);
    }
}

impl<B: Barrier> core::fmt::Debug for Reader<'_, B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Reader").field("inside", &self.is_inside()).finish()
    }
}

/// Leaves the section of [`Reader::within`] when dropped.
struct Leave<'a> {
    word: &'a AtomicU64,
    epoch: u64,
}

impl Drop for Leave<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: everything the section did happens before a writer that sees it gone.
        self.word.store(self.epoch, Ordering::Release);
    }
}

/// Proof of being inside a read-side section; leaving when dropped. While it is there, and if it is forgotten as long as its
/// [`Reader`] is there, no grace period ends that began later.
#[must_use = "the section ends when this is dropped"]
pub struct ReadSection<'a> {
    word: &'a AtomicU64,
    /// Leaving is a plain load and store of the reader's own slot.
    _not_send: PhantomData<*const ()>,
}

impl Drop for ReadSection<'_> {
    #[inline]
    fn drop(&mut self) {
        let now = self.word.load(Ordering::Relaxed);
        // Release: everything the section did happens before a writer that sees it gone. Guards may be dropped in any
        // order; the count does not care which is outermost.
        if now & NEST_MASK != NEST_MASK {
            self.word.store(now - NEST, Ordering::Release);
        }
    }
}

impl core::fmt::Debug for ReadSection<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("ReadSection")
    }
}
