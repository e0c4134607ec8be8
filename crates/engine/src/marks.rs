//! Pages marked one by one, beside the map: a bit a page, so that folded map pages can have marks too.
//!
//! There are two sets: pages whose memory is *poisoned* (broken), and *holes*, the pages without memory in a map page
//! that is only partly present. The bits are the truth, and they are for ever. The poison mark in a descriptor is a copy
//! for dumps, put back when the map page is unfolded.
//!
//! A poisoned page is never handed out. Who allocates looks at the bits *after* taking the pages; who poisons sets the
//! bit *before* trying to take the page. Both are sequentially consistent, so one of them sees the other: either the
//! allocation notices the poison and keeps the page back, or the poisoner finds the page in use.

use crate::geometry::{MapPage, PAGES_PER_MAP_PAGE, Pfn};
use crate::platform::{Mapping, NoFrames};
use crate::sync::{AtomicU64, Ordering};
use crate::table::Table;

pub(crate) struct Marks<M> {
    rows: Table<AtomicU64, M>,
    pages: AtomicU64,
}

impl<M: Mapping> Marks<M> {
    pub(crate) fn new(rows: Table<AtomicU64, M>) -> Self {
        Self { rows, pages: AtomicU64::new(0) }
    }

    pub(crate) fn mapping(&self) -> &M {
        self.rows.mapping()
    }

    /// Marked pages. For poison that is 0 almost everywhere, which spares everyone a look at the bits.
    #[inline]
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::SeqCst)
    }

    /// The marked pages of one map page, as a mask.
    #[inline]
    pub(crate) fn mask(&self, map_page: MapPage) -> u64 {
        if self.pages() == 0 {
            return 0;
        }
        self.rows.get(map_page.0).map_or(0, |row| row.load(Ordering::SeqCst))
    }

    /// Whether `pfn` is marked.
    pub(crate) fn contains(&self, pfn: Pfn) -> bool {
        self.mask(pfn.map_page()) >> (pfn.0 % PAGES_PER_MAP_PAGE) & 1 != 0
    }

    /// Makes room for marks in `map_page`, so that marking cannot fail.
    pub(crate) fn ensure(&self, map_page: MapPage) -> Result<(), NoFrames> {
        self.rows.materialise(map_page.0..map_page.0 + 1)
    }

    /// Marks the pages of `mask`, for which there is room. Returns those that are new.
    pub(crate) fn mark(&self, map_page: MapPage, mask: u64) -> u64 {
        if mask == 0 {
            // Nothing was ensured for it either.
            return 0;
        }
        // Counted first: nobody may skip the bits while one of them is set.
        self.pages.fetch_add(u64::from(mask.count_ones()), Ordering::SeqCst);
        let before = self.rows.get(map_page.0).map_or(mask, |row| row.fetch_or(mask, Ordering::SeqCst));
        self.pages.fetch_sub(u64::from((before & mask).count_ones()), Ordering::SeqCst);
        mask & !before
    }
}
