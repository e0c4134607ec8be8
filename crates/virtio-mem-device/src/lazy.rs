//! Memory that arrives lazily: a guest goes on while what it had in memory is still on its way, page by page as it is touched
//! (`userfaultfd`; QEMU's postcopy, Firecracker's restore with a page-fault handler).
//!
//! Who fills pages must know what the device takes away: a page that arrives after its block was unplugged would cost memory
//! that is nobody's, and if the block is plugged again, the guest would find in it what it had given up. So the device tells it
//! before, and waits. The faults of what was told are zeros from then on (QEMU places zero pages where its device says
//! unplugged; Firecracker's handlers learn it of `UFFD_EVENT_REMOVE`, which `fallocate` on a memfd does not raise).

use std::io;

use crate::host::Backing;

/// Who fills memory, as the device sees it. Offsets and lengths are bytes, multiples of the device block.
pub trait Loader {
    /// The device was restored, and this range was plugged: its bytes are to arrive.
    ///
    /// # Errors
    /// It cannot be had; the device is not restored then.
    fn expect(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// The range is about to be given back, or to be plugged empty. When this returns, nothing more arrives in it: pages that
    /// were on their way have arrived, and faults from here on are zeros. Called also for ranges of which nothing was
    /// expected, and twice for the same.
    ///
    /// # Errors
    /// It cannot be stopped; nothing changes then, and the driver is told to come again.
    fn forget(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// The host would not give the range back, and the guest has it still: what the last [`Loader::forget`], of this range, has
    /// taken from what is to arrive is to arrive after all.
    fn remember(&mut self, offset: u64, len: u64);
}

/// Memory that a [`Loader`] fills. Take it in place of the memory itself.
///
/// Plugged ranges of a restored device are not filled by the memory ([`Backing::populate`]): a page that is there does not
/// fault, and what was saved in it would never arrive.
#[derive(Debug)]
pub struct Lazy<B, L> {
    memory: B,
    loader: L,
}

impl<B: Backing, L: Loader> Lazy<B, L> {
    /// `memory`, which `loader` fills.
    pub fn new(memory: B, loader: L) -> Self {
        Self { memory, loader }
    }

    /// The memory, to look at.
    pub fn memory(&self) -> &B {
        &self.memory
    }

    /// Who fills it, to look at.
    pub fn loader(&self) -> &L {
        &self.loader
    }
}

impl<B: Backing, L: Loader> Backing for Lazy<B, L> {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn page_size(&self) -> u64 {
        self.memory.page_size()
    }

    fn default_block_size(&self) -> u64 {
        self.memory.default_block_size()
    }

    fn resident(&self) -> io::Result<u64> {
        self.memory.resident()
    }

    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.loader.forget(offset, len)?;
        self.memory.populate(offset, len)
    }

    fn adopt(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.loader.expect(offset, len)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.loader.forget(offset, len)?;
        self.memory.discard(offset, len).inspect_err(|_| self.loader.remember(offset, len))
    }
}
