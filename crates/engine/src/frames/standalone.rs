//! The frame allocator by itself, for kernels that keep descriptors elsewhere, or none.

use alloc::vec::Vec;
use core::ops::Range;

use super::Frames;
use super::error::{AllocError, FreeError, NotOwned};
use super::lanes::{FREE, WHOLE};
use crate::geometry::{AREA_ORDER, MapShape, Order, Pfn, Row};
use crate::mapping::{Mapping, TableKind};
use crate::online::AddError;
use crate::reserve::{NewError, Tables};
use crate::sync::{AtomicBool, Ordering, spin_loop};

/// The engine's frame allocator without the engine: it hands out page numbers.
///
/// It needs three tables and nothing else of a machine: no barrier, no grace periods. Over tables whose memory is always there
/// ([`Flat`](crate::Flat)) it works before there is a heap or a page table of one's own;
/// [`table_bytes`](Self::table_bytes) says how large they are. A table that is backed on demand costs nothing for memory that was never
/// touched.
///
/// All calls but [`online`](Self::online) may be made from any number of threads at once, also from interrupt handlers and with
/// interrupts off: nothing waits, but for a page table's worth of stores by another CPU that breaks a block of 2 MiB up. On
/// tables that are backed on demand, [`alloc`](Self::alloc) may call [`Mapping::materialise`]; freeing never does.
///
/// A page number is no more than that: giving back pages of another owner breaks no memory of this crate, but they may be
/// handed out twice then. (The engine's handles cannot be given back twice; these numbers can.)
///
/// ```
/// use pagefold_engine::platform::TableKind;
/// use pagefold_engine::{Flat, FrameAllocator, Order};
///
/// const PAGES: u64 = 1 << 18; // 1 GiB
/// let mut frames = FrameAllocator::new(PAGES, |table: TableKind, bytes: u64| {
///     let words = Vec::leak(vec![[0u64; 512]; bytes.div_ceil(4096) as usize + 1]);
///     Flat::from_zeroed(words.as_flattened_mut()).ok_or(table)
/// })?;
/// frames.online(0..PAGES).expect("memory");
/// let block = frames.alloc(Order::AREA, 0).expect("2 MiB");
/// // Any part of it may go back first.
/// frames.free_run(block.0 + 3..block.0 + 100).expect("ours");
/// let buffer = frames.alloc_run(97, 0).expect("97 pages in a row");
/// # Ok::<(), pagefold_engine::NewError<TableKind>>(())
/// ```
pub struct FrameAllocator<M: Mapping> {
    frames: Frames<M>,
    pages: u64,
    /// What was added, ascending.
    added: Vec<Range<u64>>,
    /// An owner is breaking a block up.
    splitting: AtomicBool,
}

/// There are no descriptors.
const NO_MAP: MapShape = MapShape { map_page_order: 0, entry_bytes: 0, class_bytes: 0, object_bytes: 0 };

impl<M: Mapping> FrameAllocator<M> {
    /// The tables that it asks for.
    pub const TABLES: [TableKind; 3] = [TableKind::Rows, TableKind::Lanes, TableKind::Trees];

    /// Bytes of one of them on a machine of `pages` pages: what `reserve` will be asked for. `None` if that is more pages than
    /// page numbers have bits for.
    pub const fn table_bytes(table: TableKind, pages: u64) -> Option<u64> {
        table.bytes(pages, NO_MAP)
    }

    /// An allocator without memory, for page numbers up to `pages` (rounded up to whole sections). `reserve` makes a table
    /// of so many bytes, all zero.
    ///
    /// # Errors
    /// [`NewError`].
    pub fn new<E>(pages: u64, reserve: impl Fn(TableKind, u64) -> Result<M, E>) -> Result<Self, NewError<E>> {
        let tables = Tables::new(reserve, pages, NO_MAP)?;
        let pages = tables.pages();
        let [rows, lanes, trees] = Self::TABLES;
        let frames = Frames::new(tables.table(rows)?, tables.table(lanes)?, tables.table(trees)?);
        Ok(Self { frames, pages, added: Vec::new(), splitting: AtomicBool::new(false) })
    }

    /// Adds `pages` as free memory. On tables that are backed on demand this backs the rows of `pages` (8 bytes for every
    /// 64 pages), so that nothing that is freed will ever need memory.
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
        self.frames.prepare_rows(&pages)?;
        self.note_added(at, pages.clone());
        self.frames.online(pages);
        Ok(())
    }

    /// Notes `pages` at their place among what was added, joined to what they continue. There is room.
    fn note_added(&mut self, at: usize, pages: Range<u64>) {
        let joins_next = self.added.get(at).is_some_and(|next| next.start == pages.end);
        let end = if joins_next { self.added.remove(at).end } else { pages.end };
        match at.checked_sub(1).and_then(|before| self.added.get_mut(before)) {
            Some(before) if before.end == pages.start => before.end = end,
            _ => self.added.insert(at, pages.start..end),
        }
    }

    /// Whether all of `pages` was added. Pages that were not look taken where their area has memory beside them.
    #[inline]
    fn is_there(&self, pages: &Range<u64>) -> bool {
        let has_all = |added: &Range<u64>| added.start <= pages.start && pages.end <= added.end;
        // The common case, and most pages of the others: the piece of memory that is last.
        self.added.last().is_some_and(has_all) || {
            let at = self.added.partition_point(|added| added.end <= pages.start);
            self.added.get(at).is_some_and(has_all)
        }
    }

    /// Takes a block of `order`, aligned to its size. `cpu` is a hint, as [`Platform::cpu`](crate::Platform::cpu) is: CPUs
    /// that ask at the same time should give different numbers.
    ///
    /// # Errors
    /// [`AllocError`].
    #[inline]
    pub fn alloc(&self, order: Order, cpu: usize) -> Result<Pfn, AllocError> {
        self.frames.alloc(order, cpu, |pages| self.give_back(pages))
    }

    /// Gives back what was taken of a block.
    #[cold]
    fn give_back(&self, pages: Range<u64>) {
        let given = self.free_run(pages);
        debug_assert!(given.is_ok(), "not taken");
    }

    /// Takes `pages` adjacent pages. They begin at a multiple of `pages` rounded up to a power of two. `cpu` as for
    /// [`alloc`](Self::alloc).
    ///
    /// # Errors
    /// [`AllocError`]; `NoBlock` also for no pages at all, and for more than a block can have.
    pub fn alloc_run(&self, pages: u64, cpu: usize) -> Result<Pfn, AllocError> {
        let whole = pages.checked_next_power_of_two().filter(|_| pages > 0).ok_or(AllocError::NoBlock)?;
        let order = Order::new(whole.ilog2()).ok_or(AllocError::NoBlock)?;
        let first = self.alloc(order, cpu)?;
        // Ours until here, as the whole block is.
        let rest = self.free_run(first.0 + pages..first.0 + whole);
        debug_assert!(rest.is_ok() || pages == whole, "{first} is not taken");
        Ok(first)
    }

    /// Takes the block of `order` at `pfn`.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_at(&self, pfn: Pfn, order: Order) -> Result<(), AllocError> {
        if pfn.0.checked_add(order.pages()).is_none_or(|end| end > self.pages) {
            return Err(AllocError::Absent);
        }
        self.frames.alloc_at(pfn, order, |pages| self.give_back(pages))
    }

    /// Gives a block back: one that was taken, or any aligned part of what was taken. It allocates nothing.
    ///
    /// # Errors
    /// [`FreeError`]; nothing was changed.
    #[inline]
    pub fn free(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        if !pfn.is_aligned(order) {
            return Err(FreeError::Misaligned);
        }
        if !self.is_there(&(pfn.0..pfn.0.saturating_add(order.pages()))) {
            return Err(FreeError::Absent);
        }
        if order.get() < AREA_ORDER {
            return self.free_small(pfn, order).map_err(|NotOwned| FreeError::Free);
        }
        self.frames.free(pfn, order).or_else(|NotOwned| self.free_run(pfn.0..pfn.0 + order.pages()))
    }

    /// Gives a block below an area back. Rows mean nothing in an area that is free, and in one that was taken whole.
    #[inline]
    fn free_small(&self, pfn: Pfn, order: Order) -> Result<(), NotOwned> {
        match self.frames.area_state(pfn) {
            FREE => return Err(NotOwned),
            WHOLE => self.split(pfn),
            _ => {}
        }
        self.frames.free(pfn, order)
    }

    /// Gives adjacent pages back, which may be any part of what was taken, however it was taken. It allocates nothing.
    ///
    /// # Errors
    /// [`FreeError`]; nothing was changed.
    pub fn free_run(&self, pages: Range<u64>) -> Result<(), FreeError> {
        self.are_taken(&pages)?;
        let mut next = pages.start;
        while next < pages.end {
            let (pfn, order) = (Pfn(next), Order::fitting(Pfn(next), pages.end - next).min(Order::AREA));
            if order == Order::AREA {
                self.frames.free_area(pfn);
            } else {
                let given = self.free_small(pfn, order);
                debug_assert!(given.is_ok(), "{pfn} is given back twice at once");
            }
            next += order.pages();
        }
        Ok(())
    }

    fn are_taken(&self, pages: &Range<u64>) -> Result<(), FreeError> {
        if pages.start >= pages.end {
            return Ok(());
        }
        if !self.is_there(pages) {
            return Err(FreeError::Absent);
        }
        let is_taken = |row: Row| self.frames.taken_mask(row) & row.mask_of(pages) == row.mask_of(pages);
        if Row::covering(pages).all(is_taken) { Ok(()) } else { Err(FreeError::Free) }
    }

    /// Makes the area of `pfn`, which was taken whole, an area of small pages, all of them taken. Owners of parts of it
    /// may come at the same time: one does it.
    #[cold]
    fn split(&self, pfn: Pfn) {
        // Acquire: pairs with the Release below, so that the area is seen as the last one left it.
        while self.splitting.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            spin_loop();
        }
        if self.frames.area_state(pfn) == WHOLE {
            self.frames.split_whole(pfn.head(Order::AREA), Order::AREA);
        }
        self.splitting.store(false, Ordering::Release);
    }

    /// Free pages, counted. Exact while nothing moves.
    pub fn free_pages(&self) -> u64 {
        self.frames.free_pages()
    }
}

impl<M: Mapping> core::fmt::Debug for FrameAllocator<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FrameAllocator").field("pages", &self.pages).finish_non_exhaustive()
    }
}
