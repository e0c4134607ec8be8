//! Freeing: the descriptors end, the pages go back to the allocator, and what is broken of them is kept back.

use core::ops::Range;

use crate::descriptors::seam::DescriptorMap;
use crate::engine::{Engine, HeadOf};
use crate::geometry::{AREA_ORDER, Order, PAGES_PER_ROW, Pfn, Row, SECTION_ORDER};
use crate::heap::OutOfMemory;
use crate::mapping::FoldRange;
use crate::page::Kind;
use crate::platform::Platform;
use crate::stock::Source;

impl<P: Platform> Engine<P> {
    /// Frees a frozen folio that the caller owns. Allocates nothing and cannot fail.
    pub(crate) fn free_block(&self, head: &HeadOf<P>, order: Order) {
        let pfn = self.map.pfn_of(head);
        self.map.release(head, pfn, order, self.platform.cpu());
        self.give_back(pfn, order);
    }

    /// Gives pages without descriptors back to the allocator.
    pub(crate) fn give_back(&self, pfn: Pfn, order: Order) {
        let given = self.frames(pfn).free(pfn, order);
        // Every caller owns the block. (Should one not, its pages stay taken, and the audit finds them leaked.)
        debug_assert!(given.is_ok(), "{pfn} {order} was not owned");
        self.after_giving_back(pfn, order);
    }

    /// As [`give_back`](Self::give_back), for pages of a block of which others are in use.
    #[cold]
    pub(crate) fn give_back_part(&self, pages: Range<u64>) {
        let mut next = pages.start;
        while next < pages.end {
            let order = Order::fitting(Pfn(next), pages.end - next);
            self.give_back(Pfn(next), order);
            next += order.pages();
        }
    }

    #[inline]
    fn after_giving_back(&self, pfn: Pfn, order: Order) {
        if order.get() <= SECTION_ORDER {
            self.map.classes.hint_freed(self.map.map_page(pfn));
        } else {
            self.map.classes.hint_foldable(&self.map.map_pages(pfn, order));
        }
        self.withhold_poison(pfn.0..pfn.0 + order.pages());
    }

    /// As [`give_back`](Self::give_back), for a block that was just taken and turned out to have poisoned pages: those are
    /// withheld at once, so that the allocator never has them again.
    #[cold]
    pub(crate) fn give_back_but_poison(&self, pfn: Pfn, order: Order) {
        let in_block = match order.pages() {
            pages if pages < PAGES_PER_ROW => ((1 << pages) - 1) << (pfn.0 % PAGES_PER_ROW),
            _ => Row::ALL,
        };
        self.frames(pfn).free_but(pfn, order, |row| {
            let poisoned = self.map.poison.mask(row) & in_block;
            self.withhold(row, poisoned);
            poisoned
        });
        self.after_giving_back(pfn, order);
    }

    /// Marks pages that the caller owns in the allocator, and that are poisoned, as withheld. They have no owner any more.
    pub(crate) fn withhold(&self, row: Row, mask: u64) {
        if self.map.withheld.mark(row, mask) != 0 {
            // What stands in the way of folding this map page is out of the way now.
            self.map.classes.hint_foldable(&self.map.map_pages(row.first_pfn(), Order::ZERO));
        }
    }

    /// Withholds the poisoned pages among those of `pages` that were just given back. Should an allocation be faster, it
    /// finds the poison itself. (Poisoned pages of the same rows are looked at too: they are withheld if they are free.)
    #[inline]
    pub(crate) fn withhold_poison(&self, pages: Range<u64>) {
        if self.map.poison.pages() != 0 {
            self.withhold_free(&pages);
        }
    }

    #[cold]
    fn withhold_free(&self, pages: &Range<u64>) {
        for row in Row::covering(pages) {
            let poisoned = self.map.poison.mask(row) & !self.map.withheld.mask(row);
            if poisoned != 0 {
                let taken = self.frames(row.first_pfn()).take_free_of(row, poisoned);
                self.withhold(row, taken);
            }
        }
    }

    /// Pages of a row that are taken although they have no owner: withheld ones, and those without memory.
    pub(crate) fn never_free(&self, row: Row) -> u64 {
        self.map.withheld.mask(row) | self.map.holes.mask(row)
    }

    pub(crate) fn split_block(
        &self,
        pfn: Pfn,
        order: Order,
        to: Order,
        source: &mut Source<'_>,
    ) -> Result<(), OutOfMemory> {
        let breaks_areas = order.get() >= AREA_ORDER && to.get() < AREA_ORDER;
        if breaks_areas {
            self.frames(pfn).prepare_split(pfn, order, source)?;
        }
        self.map.split(pfn, order, to, self.platform.cpu(), source)?;
        if breaks_areas {
            self.frames(pfn).split_whole(pfn, order);
        }
        Ok(())
    }

    pub(crate) fn collapse_block(&self, head: &HeadOf<P>, pfn: Pfn, order: Order, kind: Kind) {
        self.map.collapse(head, pfn, order, kind);
        self.frames(pfn).join_whole(pfn, order);
    }

    /// The parts of a frozen folio's map that fold, and have memory.
    pub(crate) fn backed_tails(&self, pfn: Pfn, order: Order) -> impl Iterator<Item = FoldRange> {
        self.map.backed_runs(self.map.foldable(pfn, order))
    }
}
