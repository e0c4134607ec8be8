//! What the driver and its listener tell each other about all units.
//!
//! Here and in the states of units, what both share is only changed under the exclusive borrow of `Hotplug`, so Relaxed is
//! enough everywhere.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pagefold_engine::hotplug::{Event, Veto};

use crate::geometry::Geometry;
use crate::states::{States, UnitState};

/// Whether memory of the device may go online or offline now.
#[derive(Default)]
pub(crate) struct Gate {
    /// The driver does not know its blocks yet, or has ended: nothing may go online or offline.
    is_closed: AtomicBool,
    /// The first unit that is in doubt, and the one after the last; equal if none is.
    doubtful: [AtomicU64; 2],
    /// The driver itself takes memory offline, to settle a unit in doubt.
    is_settling: AtomicBool,
    /// A block went online or offline, so the driver may be able to do more.
    is_woken: AtomicBool,
}

/// See [`Gate::begin_settling`].
pub(crate) struct Settling<'g>(&'g Gate);

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.0.is_settling.store(false, Relaxed);
    }
}

impl Gate {
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Relaxed);
    }

    pub(crate) fn open(&self) {
        self.is_closed.store(false, Relaxed);
    }

    fn in_doubt(&self) -> Range<u64> {
        let [start, end] = &self.doubtful;
        start.load(Relaxed)..end.load(Relaxed)
    }

    /// The first unit in doubt: what is plugged of it is not known, and the device has to be asked.
    pub(crate) fn doubtful(&self) -> Option<u64> {
        self.in_doubt().next()
    }

    /// Puts `units` in doubt, and those between them and others in doubt. The next steps settle them, one at a time, before
    /// they do anything else.
    pub(crate) fn doubt(&self, units: Range<u64>) {
        let now = self.in_doubt();
        let both = match now.is_empty() {
            true => units,
            false => now.start.min(units.start)..now.end.max(units.end),
        };
        let [start, end] = &self.doubtful;
        start.store(both.start, Relaxed);
        end.store(both.end, Relaxed);
    }

    /// The first unit in doubt is so no more.
    pub(crate) fn settled(&self) {
        let [start, end] = &self.doubtful;
        start.store((start.load(Relaxed) + 1).min(end.load(Relaxed)), Relaxed);
    }

    /// Lets memory go offline in spite of a doubt until the guard is dropped, which a panic of an owner also does.
    pub(crate) fn begin_settling(&self) -> Settling<'_> {
        self.is_settling.store(true, Relaxed);
        Settling(self)
    }

    pub(crate) fn wake(&self) {
        self.is_woken.store(true, Relaxed);
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.is_woken.load(Relaxed)
    }

    pub(crate) fn begin_step(&self) {
        self.is_woken.store(false, Relaxed);
    }

    /// Whether `event` may happen to the memory block of `pages`, and which unit that is in; none where it is not the driver's.
    /// Wakes the driver when a block of the device has gone online or offline.
    pub(crate) fn admit<S: UnitState>(
        &self,
        geometry: &Geometry,
        states: &States<S>,
        pages: &Range<u64>,
        event: Event,
    ) -> Result<Option<u64>, Veto> {
        if !geometry.is_in_region(pages) {
            return Ok(None);
        }
        let unit = geometry.unit_of(pages);
        let is_going = matches!(event, Event::GoingOnline | Event::GoingOffline);
        if is_going && !self.is_settling.load(Relaxed) {
            if self.is_closed.load(Relaxed) {
                return Err(Veto::Refused("the virtio-mem driver of this memory is not ready, or gone"));
            }
            let Some(unit) = unit.filter(|&unit| states.is_used(unit)) else {
                // An earlier driver's, where the device cannot be asked any more, or outside of whole units.
                return Err(Veto::Refused("what is plugged of the memory block is not known"));
            };
            if self.in_doubt().contains(&unit) {
                return Err(Veto::Refused(
                    "the device has to be asked first what is plugged of the memory block",
                ));
            }
        }
        if matches!(event, Event::Online | Event::Offline) {
            self.wake();
        }
        Ok(unit)
    }
}
