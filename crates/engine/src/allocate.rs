//! Allocating: pages from the allocator, their descriptors from the map, and a handle.

use crate::descriptors::seam::DescriptorMap;
use crate::engine::Engine;
use crate::folio::{Folio, Frozen, RawFolio};
use crate::frames::error::AllocError;
use crate::geometry::{Order, Pfn, ROW_ORDER, Row};
use crate::page::Kind;
use crate::platform::Platform;
use crate::zone::Zone;

impl<P: Platform> Engine<P> {
    /// Allocates a frozen folio that will stay where it is, out of the normal zone. Its owner's data is zeros.
    ///
    /// Out of folded free memory this materialises one map page, whatever the order; often none.
    ///
    /// Context: may take frames and change page tables (one map page; more in the flat layout, or for the allocator's
    /// own tables), so not where that is forbidden. Waits for no grace period.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc(&self, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        self.alloc_in(Zone::Normal, order, kind)
    }

    /// As [`alloc`](Self::alloc), for a folio whose owner will move it when asked to (see
    /// [`Migrate`](crate::hotplug::Migrate)): out of the movable zone, or the normal one where that has none.
    ///
    /// Context: as of [`alloc`](Self::alloc).
    ///
    /// # Errors
    /// [`AllocError`], of the normal zone.
    pub fn alloc_movable(&self, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        match self.alloc_in(Zone::Movable, order, kind) {
            Err(AllocError::NoBlock | AllocError::OutOfMemory) => self.alloc_in(Zone::Normal, order, kind),
            done => done,
        }
    }

    fn alloc_in(&self, zone: Zone, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        loop {
            let give_back = |pages| self.give_back_part(pages);
            let pfn = self.zone(zone).alloc(order, self.platform.cpu(), give_back)?;
            if self.has_poison(pfn, order) {
                // This ends: these poisoned pages are never handed out again.
                self.give_back_but_poison(pfn, order);
                continue;
            }
            return self.make_folio(pfn, order, kind);
        }
    }

    /// Allocates the block at `pfn`.
    ///
    /// Context: as of [`alloc`](Self::alloc).
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_at(&self, pfn: Pfn, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        if pfn.0.checked_add(order.pages()).is_none_or(|end| end > self.pages()) {
            return Err(AllocError::Absent);
        }
        self.frames(pfn).alloc_at(pfn, order, |pages| self.give_back_part(pages))?;
        if self.has_poison(pfn, order) {
            self.give_back_but_poison(pfn, order);
            return Err(AllocError::Busy);
        }
        self.make_folio(pfn, order, kind)
    }

    /// Whether the block has a poisoned page.
    #[inline]
    fn has_poison(&self, pfn: Pfn, order: Order) -> bool {
        self.map.poison.pages() != 0 && self.poison_in(pfn, order)
    }

    #[cold]
    fn poison_in(&self, pfn: Pfn, order: Order) -> bool {
        let pages = pfn.0..pfn.0 + order.pages();
        if order.get() < ROW_ORDER {
            return pages.map(Pfn).any(|page| self.map.is_poisoned(page));
        }
        Row::covering(&pages).any(|row| self.map.poison.mask(row) != 0)
    }

    fn make_folio(&self, pfn: Pfn, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        match self.map.claim(pfn, order, kind, self.platform.cpu()) {
            Ok(head) => Ok(Frozen::adopt(self, head, order)),
            Err(out_of_memory) => {
                self.give_back(pfn, order);
                Err(out_of_memory.into())
            }
        }
    }

    /// A reference that was taken out of its handle by [`Folio::into_raw`].
    ///
    /// Context: any.
    ///
    /// # Safety
    /// `raw` came from a folio of this engine and was not given back before.
    pub unsafe fn from_raw(&self, raw: RawFolio) -> Folio<'_, P> {
        // SAFETY: there is a reference on the folio that begins there, so it has a descriptor.
        Folio::adopt(self, unsafe { self.map.head(raw.0).unwrap_unchecked() })
    }
}
