//! The frame allocator by itself, for who wants page numbers and keeps descriptors elsewhere, or none.

use alloc::vec::Vec;
use core::ops::Range;

use super::{AllocError, Frames, NotOwned};
use crate::engine::{AddError, NewError, table};
use crate::geometry::{MAX_PAGES, Order, PAGES_PER_SECTION, Pfn};
use crate::platform::{Platform, TableKind};

/// The engine's frame allocator without the engine: it hands out page numbers.
///
/// All calls may be made from any number of threads at once, but for [`online`](Self::online), which needs the allocator
/// alone. A page number is no more than that: who gives back what is not theirs breaks no memory of this crate, but it may
/// be handed out twice then. (The engine's handles cannot be given back twice; these numbers can.)
pub struct FrameAllocator<P: Platform> {
    frames: Frames<P::Mapping>,
    platform: P,
    pages: u64,
    /// What was added, ascending.
    added: Vec<Range<u64>>,
}

impl<P: Platform> FrameAllocator<P> {
    /// An allocator without memory, for page numbers up to `pages`.
    ///
    /// # Errors
    /// [`NewError`].
    pub fn new(platform: P, pages: u64) -> Result<Self, NewError<P::Error>> {
        let pages = pages.checked_next_multiple_of(PAGES_PER_SECTION);
        let pages = pages.filter(|&pages| pages <= MAX_PAGES).ok_or(NewError::TooLarge)?;
        let (rows, words, trees) = Frames::<P::Mapping>::table_lengths(pages);
        let frames = Frames::tables(
            table(&platform, TableKind::Rows, rows)?,
            table(&platform, TableKind::Lanes, words)?,
            table(&platform, TableKind::Trees, trees)?,
        );
        Ok(Self { frames, platform, pages, added: Vec::new() })
    }

    /// Adds `pages` as free memory.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn online(&mut self, pages: Range<u64>) -> Result<(), AddError> {
        if pages.start >= pages.end || pages.end > self.pages {
            return Err(AddError::OutOfRange);
        }
        let at = self.added.partition_point(|added| added.end <= pages.start);
        if self.added.get(at).is_some_and(|next| next.start < pages.end) {
            return Err(AddError::Overlap);
        }
        self.added.try_reserve(1).map_err(|_| AddError::OutOfMemory)?;
        self.frames.prepare_online(&pages)?;
        self.added.insert(at, pages.clone());
        self.frames.online(pages);
        Ok(())
    }

    /// Takes a block of `order` pages.
    ///
    /// # Errors
    /// [`AllocError`].
    #[inline]
    pub fn alloc(&self, order: Order) -> Result<Pfn, AllocError> {
        self.frames.alloc(order, self.platform.cpu())
    }

    /// Gives a block back. It must be one that was taken, or a naturally aligned part of one below 2 MiB.
    ///
    /// # Errors
    /// [`NotOwned`] if pages of it are free, as far as that can be seen.
    #[inline]
    pub fn free(&self, pfn: Pfn, order: Order) -> Result<(), NotOwned> {
        if !pfn.is_aligned(order) || pfn.0 >= self.pages {
            return Err(NotOwned);
        }
        self.frames.free(pfn, order)
    }

    /// Free pages, counted.
    pub fn free_pages(&self) -> u64 {
        self.frames.free_pages()
    }
}

impl<P: Platform> core::fmt::Debug for FrameAllocator<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FrameAllocator").field("pages", &self.pages).finish_non_exhaustive()
    }
}
