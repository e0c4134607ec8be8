//! A folio's life: claimed, unfolded, folded, split, collapsed, released. The caller owns its pages.

use core::ops::Range;

use crate::geometry::{MAP_PAGE_ORDER, MapPage, Order, PAGES_PER_MAP_PAGE, Pfn};
use crate::heap::OutOfMemory;
use crate::map::{Layout, MemoryMap};
use crate::page::{Kind, State};
use crate::platform::{Mapping, Owner};
use crate::protocol::class::ClassByte;
use crate::sync::Ordering;

impl<M: Mapping, O: Owner> MemoryMap<M, O> {
    /// Makes the free block at `pfn` a frozen folio. The caller owns its pages. Nothing is changed on an error.
    pub(crate) fn claim(&self, pfn: Pfn, order: Order, kind: Kind) -> Result<(), OutOfMemory> {
        let first = pfn.map_page();
        match self.layout() {
            Layout::Folded => {
                self.classes.ensure(first.0..first.0 + order.map_pages())?;
                self.ensure_mapped(first)?;
                // A map page that is still materialised stays so for now: its folding can wait for a batch.
                self.classes.set_tails(first.0 + 1..first.0 + order.map_pages(), order);
                if order.get() < MAP_PAGE_ORDER {
                    self.write_tails(pfn, order);
                }
            }
            Layout::Flat => {
                if order.is_foldable() {
                    let all = first.0..first.0 + order.map_pages();
                    self.classes.ensure(all.clone())?;
                    self.materialise_missing(all.clone())?;
                    all.for_each(|map_page| self.classes.set(MapPage(map_page), ClassByte::MAPPED));
                } else {
                    self.ensure_mapped(first)?;
                }
                self.write_tails(pfn, order);
            }
        }
        // Release: tails and classes before the head.
        self.store(pfn, self.marked(pfn, State::head(order, kind.into())), Ordering::Release);
        Ok(())
    }

    fn write_tails(&self, pfn: Pfn, order: Order) {
        for tail in pfn.0 + 1..pfn.0 + order.pages() {
            // Release: the class of the tail's map page may be an old one, and not say that memory is behind the head's.
            // This does.
            self.store(Pfn(tail), self.marked(Pfn(tail), State::tail(order)), Ordering::Release);
        }
    }

    /// Whether every descriptor of the (frozen or freshly made) folio is written, rather than only its head's.
    fn is_flat(&self, pfn: Pfn, order: Order) -> bool {
        order.get() > 0
            && self
                .pages
                .get(pfn.0 + 1)
                .is_some_and(|page| State(page.state.load(Ordering::Relaxed)).is_tail())
    }

    /// Makes the frozen folio at `pfn` free memory. Allocates nothing, cannot fail. The caller keeps owning the pages
    /// and gives them to the allocator next.
    pub(crate) fn release(&self, pfn: Pfn, order: Order) {
        let is_flat = self.is_flat(pfn, order);
        let first = pfn.map_page();
        if is_flat && order.get() <= MAP_PAGE_ORDER {
            (pfn.0 + 1..pfn.0 + order.pages()).for_each(|tail| self.clear(Pfn(tail)));
        } else if is_flat {
            (first.first_pfn().0 + 1..first.first_pfn().0 + PAGES_PER_MAP_PAGE)
                .for_each(|tail| self.clear(Pfn(tail)));
        }
        self.clear(pfn);
        // Folded to folded: no grace period. A walker that still believes in the tail looks at the head, and the head's
        // word speaks for itself.
        self.classes.set_free(first.0 + 1..first.0 + order.map_pages(), |tail| {
            self.clear_map_page(tail);
            self.classes.set(tail, ClassByte::MAPPED);
        });
    }

    /// Materialises every descriptor of a frozen folio and writes its tails (Linux: restoring the vmemmap). Nothing is
    /// changed on an error.
    pub(crate) fn unfold(&self, pfn: Pfn, order: Order) -> Result<(), OutOfMemory> {
        if !order.is_foldable() {
            return Ok(());
        }
        let first = pfn.map_page().0;
        let tails = first + 1..first + order.map_pages();
        self.materialise_missing(tails.clone())?;
        // While the class says folded no walker looks at these words, and when it says `Mapped` they are whole.
        self.write_tails(pfn, order);
        tails.for_each(|tail| self.classes.set(MapPage(tail), ClassByte::MAPPED));
        Ok(())
    }

    /// Publishes the tails of a frozen folio as folded, ahead of taking their memory away. Returns the map pages whose
    /// memory is to go after a grace period: pass them to [`fold`](Self::fold).
    pub(crate) fn publish_tails(&self, pfn: Pfn, order: Order) -> Range<u64> {
        let first = pfn.map_page().0;
        let tails = first + 1..first + order.map_pages();
        if order.get() >= MAP_PAGE_ORDER && self.is_flat(pfn, order) {
            // The head's own map page: back to the head standing for it.
            (pfn.0 + 1..pfn.0 + PAGES_PER_MAP_PAGE).for_each(|tail| self.clear(Pfn(tail)));
        }
        self.classes.set_tails(tails.clone(), order);
        tails
    }

    /// Publishes a free map page as folded, ahead of taking its memory away; whether there is memory to take. The
    /// caller owns all its pages, but for those without an owner (withheld ones and holes).
    pub(crate) fn publish_free(&self, map_page: MapPage) -> bool {
        if self.classes.get(map_page) != ClassByte::MAPPED {
            return false;
        }
        self.classes.set(map_page, ClassByte::FREE.backed());
        true
    }

    /// Makes a frozen folio into frozen folios of order `to`. Nothing is changed on an error.
    pub(crate) fn split(&self, pfn: Pfn, order: Order, to: Order) -> Result<(), OutOfMemory> {
        let kind = State(self.pages.get(pfn.0).map_or(0, |page| page.state.load(Ordering::Relaxed))).kind();
        let first = pfn.map_page().0;
        let all = first..first + order.map_pages();
        let is_flat = self.is_flat(pfn, order) && order.get() >= MAP_PAGE_ORDER;
        let stride = if is_flat { 1 } else { to.map_pages() };
        self.materialise_missing(all.clone().step_by(stride as usize))?;
        for leftover in all.clone().map(MapPage) {
            // Folded in class, but its memory has not gone yet: it may hold old words.
            let now = self.classes.get(leftover);
            if now.tail_order().is_some() && now.is_backed() {
                self.clear_map_page(leftover);
            }
        }
        if is_flat || to.get() < MAP_PAGE_ORDER {
            // Every descriptor is, or will be, written.
            for piece in (pfn.0..pfn.0 + order.pages()).step_by(to.pages() as usize) {
                self.write_tails(Pfn(piece), to);
            }
        }
        for piece in (pfn.0..pfn.0 + order.pages()).step_by(to.pages() as usize).map(Pfn) {
            self.store(piece, self.marked(piece, State::head(to, kind)), Ordering::Release);
        }
        for map_page in all {
            let has_head = (map_page - first).is_multiple_of(to.map_pages());
            let now = self.classes.get(MapPage(map_page));
            let class = match (has_head || is_flat, now.is_backed()) {
                (true, _) => ClassByte::MAPPED,
                (false, true) => ClassByte::tail(to).backed(),
                (false, false) => ClassByte::tail(to),
            };
            self.classes.set(MapPage(map_page), class);
        }
        Ok(())
    }

    /// Makes adjacent frozen folios that fill the block of `order` at `pfn` one frozen folio of `kind`. Cannot fail.
    pub(crate) fn collapse(&self, pfn: Pfn, order: Order, kind: Kind) {
        let first = pfn.map_page();
        if order.get() <= MAP_PAGE_ORDER {
            (pfn.0 + 1..pfn.0 + order.pages()).for_each(|tail| self.clear(Pfn(tail)));
        } else {
            let first_pfn = first.first_pfn().0;
            (first_pfn + 1..first_pfn + PAGES_PER_MAP_PAGE).for_each(|tail| self.clear(Pfn(tail)));
        }
        for tail in (first.0 + 1..first.0 + order.map_pages()).map(MapPage) {
            if self.classes.is_mapped(tail) {
                self.clear_map_page(tail);
            }
        }
        self.classes.set_tails(first.0 + 1..first.0 + order.map_pages(), order);
        let tails = first.0 + 1..first.0 + order.map_pages();
        let is_backed = tails.clone().all(|tail| self.classes.get(MapPage(tail)).is_backed());
        if order.get() < MAP_PAGE_ORDER || (self.layout() == Layout::Flat && is_backed) {
            self.write_tails(pfn, order);
            tails.for_each(|tail| self.classes.set(MapPage(tail), ClassByte::MAPPED));
        }
        self.store(pfn, self.marked(pfn, State::head(order, kind.into())), Ordering::Release);
    }

    /// Materialises the descriptors of free memory, as a flat memory map has them. The caller owns every page, so nobody
    /// else is unfolding any of it. Nothing is changed on an error.
    pub(crate) fn unfold_free(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        self.classes.ensure(map_pages.clone())?;
        self.materialise_missing(map_pages.clone())?;
        map_pages.for_each(|map_page| self.classes.set(MapPage(map_page), ClassByte::MAPPED));
        Ok(())
    }
}
