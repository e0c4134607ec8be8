//! Fake-offline the way Linux does it: every page keeps a descriptor, of kind `Offline`, with one reference.
//!
//! The reference is in the way when the block goes offline, or when the page is to be used again. It is dropped then, and
//! taken again when the step is cancelled. A walker that looked in between has a reference of its own, for a moment, and
//! then the count does not reach 0. Linux warns and dumps the page; here the step fails, with the page in the error, and
//! everything is as before.
//!
//! With grace periods that cannot happen to walkers who take references inside a section only: the class says `Offline`
//! first, then a grace period waits for walkers that looked before, then the references are dropped.
//!
//! In Linux the driver drops the references, when it is told that the block is about to go offline. Here
//! [`Hotplug`](super::Hotplug) does, once all listeners have agreed: a reference that any listener could drop would have no owner.

use core::ops::Range;

use super::error::{BlockError, HeldPage};
use crate::descriptors::seam::OfflinePages;
use crate::engine::Engine;
use crate::geometry::{MapPage, Order, Pfn};
use crate::heap::OutOfMemory;
use crate::platform::Platform;
use crate::rcu::Reader;

/// The engine's references on the fake-offline pages of a range, dropped. Taken again when this is dropped, unless
/// [`keep`](Self::keep) says that the pages are something else by now.
pub(crate) struct Dropped<'e, P: Platform> {
    engine: &'e Engine<P>,
    reader: Reader<'e, P::Barrier>,
    /// Whole areas of an online block.
    pages: Range<u64>,
}

impl<P: Platform> Dropped<'_, P> {
    /// The fake-offline areas of the range: an area is as a whole, or not at all.
    fn areas(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pages.clone().step_by(Order::AREA.pages() as usize).filter_map(|first| {
            // Owners may fold their folios meanwhile.
            let _section = self.reader.section();
            self.engine.map.is_held_offline(Pfn(first)).then(|| first..first + Order::AREA.pages())
        })
    }

    fn hide(&self, is_hidden: bool) -> bool {
        let mut any = false;
        for area in self.areas() {
            any = true;
            self.engine
                .map
                .map_pages_of(&area)
                .for_each(|map_page| self.engine.map.hide_offline(MapPage(map_page), is_hidden));
        }
        any
    }

    pub(crate) fn keep(mut self) {
        self.pages = 0..0;
    }
}

impl<P: Platform> Drop for Dropped<'_, P> {
    fn drop(&mut self) {
        for area in self.areas() {
            area.for_each(|pfn| self.engine.map.retake_offline(Pfn(pfn)));
        }
        self.hide(false);
    }
}

impl<P: Platform> Engine<P> {
    /// Drops the engine's references on all fake-offline pages of `pages` (whole areas of an online block, which the
    /// caller alone changes). With `rcu`, after telling walkers by the class and waiting for those who looked before. Must
    /// not be called inside a section.
    pub(crate) fn drop_offline_references(
        &self,
        pages: Range<u64>,
        rcu: bool,
    ) -> Result<Dropped<'_, P>, BlockError> {
        let reader = self.rcu.reader().map_err(|_| BlockError::OutOfMemory)?;
        let dropped = Dropped { engine: self, reader, pages };
        if rcu && dropped.hide(true) {
            self.rcu.synchronize();
        }
        for pfn in dropped.areas().flatten().map(Pfn) {
            // Those that were dropped are taken again with the return.
            self.map.drop_offline(pfn).map_err(|state| BlockError::Held(HeldPage { pfn, state }))?;
        }
        Ok(dropped)
    }

    /// Materialises the descriptors of `taken`, whose pages the caller owns. What was made until an error describes free
    /// pages, as before.
    pub(super) fn prepare_hold(&self, taken: &[Range<u64>]) -> Result<(), OutOfMemory> {
        let map_pages = taken.iter().flat_map(|pages| self.map.map_pages_of(pages));
        map_pages.map(MapPage).try_for_each(|map_page| self.map.ensure_mapped(map_page))
    }

    /// Each page of `taken` gets a descriptor of kind `Offline`. They were prepared.
    pub(super) fn hold_offline(&self, taken: &[Range<u64>]) {
        let map_pages = taken.iter().flat_map(|pages| self.map.map_pages_of(pages));
        map_pages.for_each(|map_page| self.map.write_offline(MapPage(map_page)));
    }

    /// Frees fake-offline areas: their memory is there again.
    pub(crate) fn free_offline(&self, pages: &Range<u64>) -> Result<(), BlockError> {
        // A walker that looked at them lets go within a grace period, unless it means to keep a reference.
        self.drop_offline_references(pages.clone(), true)?.keep();
        self.map.map_pages_of(pages).for_each(|map_page| self.map.end_offline(MapPage(map_page)));
        for area in pages.clone().step_by(Order::AREA.pages() as usize).map(Pfn) {
            self.frames(area).free_area(area);
        }
        self.map.classes.hint_foldable(&self.map.map_pages_of(pages));
        self.withhold_poison(pages.clone());
        Ok(())
    }
}
