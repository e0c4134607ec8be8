//! Pages whose memory is broken: recorded beside the map, one bit a page, so that a folded folio can have them too.
//!
//! The bit is the truth, and it is for ever. The mark in a descriptor is a copy for dumps, put back when the map page
//! is unfolded.
//!
//! A poisoned page is never handed out. Who allocates looks at the bits *after* taking the pages; who poisons sets the
//! bit *before* trying to take the page. Both are sequentially consistent, so one of them sees the other: either the
//! allocation notices the poison and keeps the page back, or the poisoner finds the page in use.

use crate::geometry::{MapPage, PAGES_PER_MAP_PAGE, Pfn};
use crate::platform::{Mapping, NoFrames};
use crate::sync::{AtomicU64, Ordering};
use crate::table::Table;

pub(crate) struct Poison<M> {
    rows: Table<AtomicU64, M>,
    pages: AtomicU64,
}

impl<M: Mapping> Poison<M> {
    pub(crate) fn new(rows: Table<AtomicU64, M>) -> Self {
        Self { rows, pages: AtomicU64::new(0) }
    }

    pub(crate) fn mapping(&self) -> &M {
        self.rows.mapping()
    }

    /// Poisoned pages. 0 almost everywhere, which spares everyone a look at the bits.
    #[inline]
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::SeqCst)
    }

    /// The poisoned pages of one map page, as a mask.
    #[inline]
    pub(crate) fn mask(&self, map_page: MapPage) -> u64 {
        if self.pages() == 0 {
            return 0;
        }
        self.rows.get(map_page.0).map_or(0, |row| row.load(Ordering::SeqCst))
    }

    /// Records a page. Whether it is new.
    pub(crate) fn record(&self, pfn: Pfn) -> Result<bool, NoFrames> {
        let row = pfn.map_page().0;
        self.rows.materialise(row..row + 1)?;
        // Counted first: nobody may skip the bits while one of them is set.
        self.pages.fetch_add(1, Ordering::SeqCst);
        let bit = 1 << (pfn.0 % PAGES_PER_MAP_PAGE);
        let before = self.rows.get(row).map_or(bit, |word| word.fetch_or(bit, Ordering::SeqCst));
        if before & bit != 0 {
            self.pages.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(before & bit == 0)
    }
}
