//! Memory set aside, so that a bounded number of unfolds and splits cannot fail.
//!
//! Unfolding puts memory behind map pages, and a split may take rows of the allocator and objects besides. An owner
//! that cannot undo its step any more must not fail at that, and has the memory set aside before. Frames come from the platform
//! ([`Platform::set_aside`]), objects from the engine's own table.

use core::fmt;

use crate::descriptors::seam::DescriptorMap;
use crate::engine::{Engine, MapOf};
use crate::folio::{Frozen, Pieces, ReshapeError};
use crate::geometry::{Order, Pfn};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::platform::Platform;
use crate::stock::{Source, Stock};
use crate::zone::Zone;

/// What must not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reshape {
    /// An unfold of a folio of that order.
    Unfold(Order),
    /// A split of a folio of one order into folios of another.
    Split {
        /// Of the folio.
        order: Order,
        /// Of the pieces.
        to: Order,
    },
}

/// What a reshape takes at most.
struct Demand {
    frames: u64,
    objects: u64,
}

/// Memory set aside. Dropping it gives back what is left.
#[must_use = "dropping it gives the memory back"]
pub struct SetAside<'e, P: Platform> {
    engine: &'e Engine<P>,
    stock: Stock,
}

impl<P: Platform> Engine<P> {
    /// Sets memory aside for `times` reshapes, whichever folios they will be of.
    ///
    /// Context: takes frames; with [`Memdesc`](crate::Memdesc) it may change page tables.
    ///
    /// # Errors
    /// [`OutOfMemory`], also where the platform sets nothing aside. Nothing is set aside.
    pub fn set_aside(&self, what: Reshape, times: u64) -> Result<SetAside<'_, P>, OutOfMemory> {
        let mut aside = SetAside { engine: self, stock: Stock::default() };
        aside.add(what, times)?;
        Ok(aside)
    }

    fn demand(&self, what: Reshape) -> Demand {
        let (order, to) = match what {
            Reshape::Unfold(order) => (order, None),
            Reshape::Split { order, to } => (order, Some(to)),
        };
        // What is never folded of a folio is there.
        let map_pages = self.map.foldable(Pfn(0), order);
        let frames = match map_pages.is_empty() {
            true => 0,
            false => self.map.mapping().frames_for(map_pages.end - map_pages.start),
        };
        let Some(to) = to else { return Demand { frames, objects: 0 } };
        let pieces = 1 << order.get().saturating_sub(to.get());
        Demand {
            frames: frames.saturating_add(self.zone(Zone::Normal).frames_for_split(order)),
            objects: MapOf::<P>::objects_for(pieces),
        }
    }
}

impl<'e, P: Platform> SetAside<'e, P> {
    /// Sets more aside, for `times` reshapes.
    ///
    /// # Errors
    /// [`OutOfMemory`]; what was set aside before still is. Memory behind objects that were taken and given back goes with the
    /// next batch of a [`Folder`](crate::Folder).
    pub fn add(&mut self, what: Reshape, times: u64) -> Result<(), OutOfMemory> {
        let Demand { frames, objects } = self.engine.demand(what);
        let (frames, objects) =
            (frames.checked_mul(times).ok_or(OutOfMemory)?, objects.checked_mul(times).ok_or(OutOfMemory)?);
        let room = usize::try_from(objects).map_err(|_| OutOfMemory)?;
        // There are never more objects than pages.
        if objects > self.engine.pages() {
            return Err(OutOfMemory);
        }
        self.stock.objects.try_reserve(room).map_err(|_| OutOfMemory)?;
        // Gives everything back if it is dropped on the way.
        let mut more = SetAside { engine: self.engine, stock: Stock::default() };
        more.stock.objects.try_reserve(room).map_err(|_| OutOfMemory)?;
        // Frames first: a refusal leaves nothing behind.
        if frames > 0 {
            self.engine.platform.set_aside(frames)?;
            more.stock.frames = frames;
        }
        for _ in 0..objects {
            more.stock.objects.push(self.engine.map.take_object(self.engine.platform.cpu())?);
        }
        self.stock.objects.append(&mut more.stock.objects);
        self.stock.frames += core::mem::take(&mut more.stock.frames);
        Ok(())
    }

    /// How many such reshapes it is enough for.
    pub fn covers(&self, what: Reshape) -> u64 {
        let Demand { frames, objects } = self.engine.demand(what);
        let by_frames = self.stock.frames.checked_div(frames).unwrap_or(u64::MAX);
        let by_objects = (self.stock.objects.len() as u64).checked_div(objects).unwrap_or(u64::MAX);
        by_frames.min(by_objects)
    }

    /// As [`Frozen::unfold`], from what is set aside.
    ///
    /// Context: changes page tables; takes no frames from the machine.
    ///
    /// # Errors
    /// [`OutOfMemory`]: less is set aside than it may take ([`covers`](Self::covers) is 0), or the folio is another engine's.
    /// The folio is as it was.
    pub fn unfold(&mut self, folio: &mut Frozen<'e, P>) -> Result<(), OutOfMemory> {
        if !self.is_for(folio) || self.covers(Reshape::Unfold(folio.order())) == 0 {
            return Err(OutOfMemory);
        }
        self.engine.map.unfold(folio.pfn(), folio.order(), &mut Source::Stock(&mut self.stock))
    }

    /// As [`Frozen::split`], from what is set aside.
    ///
    /// Context: may change page tables; takes no frames from the machine.
    ///
    /// # Errors
    /// The folio as it was, and why. [`ReshapeError::OutOfMemory`]: as with [`unfold`](Self::unfold).
    #[allow(clippy::type_complexity)]
    pub fn split(
        &mut self,
        folio: Frozen<'e, P>,
        to: Order,
    ) -> Result<Pieces<'e, P>, (Frozen<'e, P>, ReshapeError)> {
        if !self.is_for(&folio) || self.covers(Reshape::Split { order: folio.order(), to }) == 0 {
            return Err((folio, OutOfMemory.into()));
        }
        folio.split_from(to, &mut Source::Stock(&mut self.stock))
    }

    fn is_for(&self, folio: &Frozen<'e, P>) -> bool {
        core::ptr::eq(self.engine, folio.engine())
    }
}

impl<P: Platform> Drop for SetAside<'_, P> {
    fn drop(&mut self) {
        self.stock.objects.drain(..).for_each(|number| self.engine.map.give_object(number));
        if self.stock.frames > 0 {
            self.engine.platform.end_set_aside(self.stock.frames);
        }
    }
}

impl<P: Platform> fmt::Debug for SetAside<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetAside")
            .field("frames", &self.stock.frames)
            .field("objects", &self.stock.objects.len())
            .finish_non_exhaustive()
    }
}
