//! Areas of online blocks that go and come: fake-offline, and online again.

use core::ops::Range;

use super::block::{BlockId, FakeOffline};
use super::error::BlockError;
use super::lock::Hotplug;
use super::migrate::Migrate;
use super::withdraw::{Wanted, Withdrawn};
use crate::geometry::{AREA_ORDER, MapPage, Pfn};
use crate::heap::OutOfMemory;
use crate::platform::Platform;
use crate::protocol::class::Class;
use crate::zone::{BlockState, Record, Zone};

impl<'e, P: Platform> Hotplug<'e, P> {
    /// Takes online areas out of use: their memory is to be unplugged. Owners are asked to move what is in use. All of
    /// `pages` must be whole areas of one online block, and none of them fake-offline.
    ///
    /// Context: waits for grace periods, interrupts other CPUs, changes page tables; calls owners.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn fake_offline(
        &mut self,
        pages: Range<u64>,
        migrate: &mut dyn Migrate<'e, P>,
    ) -> Result<(), BlockError> {
        let record = self.online_areas(&pages)?;
        if let Some(pfn) = self.find(&pages, true).map_err(|_| BlockError::OutOfMemory)? {
            return Err(BlockError::AlreadyFakeOffline(pfn));
        }
        let passes = self.passes_of(record.zone());
        let withdrawn = match self.config.fake_offline {
            FakeOffline::Folded => self.engine.withdraw_all(&pages, migrate, passes)?,
            FakeOffline::Classic { .. } => {
                let all = core::slice::from_ref(&pages);
                let clearing = self.engine.clear_all(all, migrate, passes)?;
                // The isolation ends with an error, and the pages are free again.
                self.engine.prepare_hold(all)?;
                let withdrawn = clearing.managed(all);
                self.engine.hold_offline(all);
                clearing.into_parts().0.keep(all);
                withdrawn
            }
        };
        self.counts.managed(record.zone(), -(withdrawn as i64));
        Ok(())
    }

    /// Takes what can be had of `wanted` out of use, as [`fake_offline`](Self::fake_offline) does: of any number of areas,
    /// in any number of online blocks of one zone. Owners are asked to move what is in use; without any of them, only what is
    /// free is taken. From high to low page numbers.
    ///
    /// Whatever the number of areas, there is one grace period at most for those who look at what has moved, and one for
    /// the descriptors that are folded.
    ///
    /// Context: as of [`fake_offline`](Self::fake_offline).
    ///
    /// # Errors
    /// [`BlockError::BadRange`] and [`BlockError::OutOfMemory`]. Nothing was changed, but for what owners have moved.
    pub fn withdraw(
        &mut self,
        wanted: &Wanted<'_>,
        migrate: Option<&mut dyn Migrate<'e, P>>,
    ) -> Result<Withdrawn, BlockError> {
        let zone = self.online_parts(wanted)?;
        let engine = self.engine;
        let clearing = engine.clear_parts(wanted, migrate)?;
        let (taken, from) = clearing.choose(wanted.pages, wanted.runs);
        // What can fail comes before anything can be seen. The isolation ends with an error.
        match self.config.fake_offline {
            FakeOffline::Folded => {
                let map_pages = taken.iter().map(|pages| engine.map.map_pages_of(pages));
                map_pages.into_iter().try_for_each(|run| engine.map.classes.prepare_uniform(run))?;
            }
            FakeOffline::Classic { .. } => engine.prepare_hold(&taken)?,
        }
        let withdrawn = clearing.managed(&taken);
        let no_room = clearing.no_room && from == clearing.asked_from;
        let (isolated, fates) = clearing.into_parts();
        let first = isolated.pages().start;
        match self.config.fake_offline {
            FakeOffline::Folded => {
                engine.fold_withdrawn(&taken);
                isolated.remove(&taken);
            }
            FakeOffline::Classic { .. } => {
                engine.hold_offline(&taken);
                isolated.keep(&taken);
            }
        }
        self.counts.managed(zone, -(withdrawn as i64));
        Ok(Withdrawn { taken, fates, first, from, no_room })
    }

    fn passes_of(&self, zone: Zone) -> usize {
        match zone {
            // As Linux: what lies in the normal zone rarely moves.
            Zone::Normal => 1,
            Zone::Movable => self.config.passes,
        }
    }

    /// The zone of all of `wanted`, if it makes sense.
    fn online_parts(&self, wanted: &Wanted<'_>) -> Result<Zone, BlockError> {
        let piece = wanted.piece;
        let mut next = 0;
        let mut zone = None;
        if !piece.is_power_of_two() || piece < 1 << AREA_ORDER {
            return Err(BlockError::BadRange);
        }
        for part in wanted.parts {
            let is_whole = part.start.is_multiple_of(piece) && part.end.is_multiple_of(piece);
            if !is_whole || part.start >= part.end || part.start < next || part.end > self.engine.pages() {
                return Err(BlockError::BadRange);
            }
            next = part.end;
            for block in self.block_of(part.start).0..=self.block_of(part.end - 1).0 {
                let record = self.record(BlockId(block));
                let is_same = *zone.get_or_insert(record.zone()) == record.zone();
                if record.state() != Some(BlockState::Online) || !is_same {
                    return Err(BlockError::BadRange);
                }
            }
        }
        zone.ok_or(BlockError::BadRange)
    }

    /// Puts fake-offline areas back to use: their memory has been plugged. All of `pages` must be whole areas of one online
    /// block, and all of them fake-offline.
    ///
    /// Context: as of [`fake_offline`](Self::fake_offline) with classic pages; else none of that: it was prepared.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn fake_online(&mut self, pages: Range<u64>) -> Result<(), BlockError> {
        let record = self.online_areas(&pages)?;
        if let Some(pfn) = self.find(&pages, false).map_err(|_| BlockError::OutOfMemory)? {
            return Err(BlockError::NotFakeOffline(pfn));
        }
        match self.config.fake_offline {
            FakeOffline::Folded => {
                // The block went online with all its tables.
                self.engine.map.classes.ensure(self.engine.map.map_pages_of(&pages))?;
                self.engine.enlist(pages.clone(), record.zone());
            }
            FakeOffline::Classic { .. } => self.engine.free_offline(&pages)?,
        }
        self.counts.managed(record.zone(), (pages.end - pages.start) as i64);
        Ok(())
    }

    /// Makes sure that [`fake_online`](Self::fake_online) of `pages` will not need memory, before they are plugged.
    ///
    /// Context: may take frames for tables.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn prepare_fake_online(&mut self, pages: Range<u64>) -> Result<(), BlockError> {
        self.online_areas(&pages)?;
        Ok(self.engine.map.classes.ensure(self.engine.map.map_pages_of(&pages))?)
    }

    /// Whether any of `pages` is fake-offline: in an online block, without memory behind it.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn is_fake_offline(&self, pages: Range<u64>) -> Result<bool, OutOfMemory> {
        Ok(self.find(&pages, true)?.is_some())
    }

    /// The first of `pages` that is fake-offline, or that is not. Only this `Hotplug` changes that: it stands.
    fn find(&self, pages: &Range<u64>, is_fake_offline: bool) -> Result<Option<Pfn>, OutOfMemory> {
        let walker = self.engine.walker()?;
        let map = &self.engine.map;
        // An area is fake-offline as a whole, so the first page of a map page speaks for it.
        let found = map
            .map_pages_of(&(pages.start..pages.end.min(self.engine.pages())))
            .map(|map_page| map.first_pfn(MapPage(map_page)))
            .find(|&pfn| {
                walker.peek(pfn).is_some_and(|peek| {
                    let is_one = match peek.class {
                        Class::Offline => true,
                        Class::Mapped => peek.state.is_offline(),
                        _ => false,
                    };
                    is_one == is_fake_offline
                })
            });
        Ok(found.map(|pfn| pfn.max(Pfn(pages.start))))
    }

    fn online_areas(&self, pages: &Range<u64>) -> Result<Record, BlockError> {
        let area = 1 << AREA_ORDER;
        let is_aligned =
            pages.start.is_multiple_of(area) && pages.end.is_multiple_of(area) && pages.start < pages.end;
        let block = self.block_of(pages.start);
        let record = self.record(block);
        let is_inside = pages.end <= self.pages(block).end;
        if !is_aligned || !is_inside || record.state() != Some(BlockState::Online) {
            return Err(BlockError::BadRange);
        }
        Ok(record)
    }
}
