//! Fake-offline the way Linux does it: every page keeps a descriptor, of kind `Offline`, with one reference.
//!
//! The reference is in the way when the block goes offline. So the driver drops it when it is told that the block is
//! about to (`GoingOffline`), and takes it again when that is cancelled. A walker that looked in between has a
//! reference of its own, for a moment, and then the count does not reach 0. Linux warns and dumps the page; here the
//! step fails, with the page in the error, and everything is as before.
//!
//! With grace periods that cannot happen to walkers who take references inside a section only: the class says `Offline`
//! first, then whoever looked before is waited for, then the references are dropped.

use core::fmt;
use core::ops::Range;

use super::withdraw::{Migrate, Withdrawal};
use super::{FakeError, map_pages_of};
use crate::engine::Engine;
use crate::geometry::{MapPage, Order, Pfn};
use crate::page::State;
use crate::platform::Platform;
use crate::protocol::Protocol;

/// A fake-offline page with a reference too many, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPage {
    /// The page.
    pub pfn: Pfn,
    /// Its descriptor.
    pub state: State,
}

impl fmt::Display for HeldPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is fake-offline, but somebody holds on to it: {:?}", self.pfn, self.state)
    }
}

impl<P: Platform, R: Protocol> Engine<P, R> {
    /// For a driver that keeps fake-offline pages as [`Classic`](super::FakeOffline::Classic): drops the reference of
    /// each of `pages` (whole map pages), so that their block can go offline. With `rcu`, after telling walkers by the
    /// class and waiting for those who looked before. Must not be called inside a section.
    ///
    /// # Errors
    /// The first page with a reference too many. All references are as before.
    pub fn drop_offline_references(&self, pages: Range<u64>, rcu: bool) -> Result<(), HeldPage> {
        if rcu {
            map_pages_of(&pages).for_each(|map_page| self.map.hide_offline(MapPage(map_page), true));
            self.rcu.synchronize();
        }
        for pfn in pages.clone().map(Pfn) {
            if let Err(state) = self.map.drop_offline(pfn) {
                self.retake_offline_references(pages);
                return Err(HeldPage { pfn, state });
            }
        }
        Ok(())
    }

    /// The inverse of [`drop_offline_references`](Self::drop_offline_references).
    pub fn retake_offline_references(&self, pages: Range<u64>) {
        pages.clone().for_each(|pfn| self.map.retake_offline(Pfn(pfn)));
        map_pages_of(&pages).for_each(|map_page| self.map.hide_offline(MapPage(map_page), false));
    }

    /// Takes online areas out of use: each page gets a descriptor of kind `Offline`. Returns how many pages.
    pub(crate) fn hold_offline<'e>(
        &'e self,
        pages: &Range<u64>,
        migrate: &mut dyn Migrate<'e, P, R>,
        passes: usize,
    ) -> Result<u64, FakeError> {
        let Withdrawal { isolated, pages: withdrawn } = self.clear_out(pages, migrate, passes)?;
        for map_page in map_pages_of(pages).map(MapPage) {
            // The isolation ends with an error, and the pages are free again.
            self.map.ensure_mapped(map_page)?;
        }
        map_pages_of(pages).for_each(|map_page| self.map.write_offline(MapPage(map_page)));
        isolated.keep();
        Ok(withdrawn)
    }

    /// Frees fake-offline pages: their memory is there again.
    pub(crate) fn free_offline(&self, pages: &Range<u64>) -> Result<(), FakeError> {
        // Whoever looked at them lets go within a grace period, unless it means to keep a reference.
        self.drop_offline_references(pages.clone(), true).map_err(FakeError::Held)?;
        let map_pages = map_pages_of(pages);
        map_pages.clone().for_each(|map_page| self.map.end_offline(MapPage(map_page)));
        for area in pages.clone().step_by(Order::AREA.pages() as usize) {
            self.frames(Pfn(area).map_page()).free_area(Pfn(area));
        }
        self.withhold_poison(map_pages);
        Ok(())
    }
}
