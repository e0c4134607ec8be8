//! The driver's ear on the notifier chain: it follows what goes online and offline, says which parts of its blocks have
//! memory behind them, and refuses what must not be.

use alloc::sync::Arc;
use core::ops::Range;

use pagefold_engine::hotplug::{Change, Event, FakeOffline, Listener, Veto};
use pagefold_engine::protocol::Protocol;
use pagefold_engine::{Engine, Platform};

use crate::config::Mode;
use crate::state::{BigState, SubState, Trigger};
use crate::sync::{AtomicBool, RELAXED};
use crate::tracking::Tracking;

pub(crate) struct Watch<'e, P: Platform, R: Protocol> {
    pub(crate) engine: &'e Engine<P, R>,
    pub(crate) tracking: Arc<Tracking>,
    pub(crate) fake_offline: FakeOffline,
    /// Whether the references of a unit's holes are dropped. That an event is cancelled is also told to those who never
    /// heard of it.
    pub(crate) dropped: AtomicBool,
}

impl<P: Platform, R: Protocol> Watch<'_, P, R> {
    /// The parts of `unit` without memory, in pages.
    fn holes(&self, unit: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let Tracking { geometry, .. } = &*self.tracking;
        self.tracking.runs(unit, false).map(move |run| geometry.pages(unit, run))
    }

    /// Classic fake-offline: drops the references of all pages without memory.
    fn drop_references(&self, unit: u64, rcu: bool) -> Result<(), Veto> {
        for (done, hole) in self.holes(unit).enumerate() {
            if let Err(page) = self.engine.drop_offline_references(hole, rcu) {
                self.holes(unit).take(done).for_each(|hole| self.engine.retake_offline_references(hole));
                return Err(Veto::Held(page));
            }
        }
        Ok(())
    }

    fn notify_sub_block(&self, unit: u64, event: Event, change: &Change) -> Result<(), Veto> {
        let state = self.tracking.sub_state(unit);
        match event {
            Event::GoingOnline if !matches!(state, SubState::Offline | SubState::OfflinePartial) => {
                return Err(Veto::Refused("the memory block is not the driver's to bring online"));
            }
            Event::Online => self.tracking.apply(unit, Trigger::Online(change.zone)),
            Event::GoingOffline => {
                if let FakeOffline::Classic { rcu } = self.fake_offline {
                    self.drop_references(unit, rcu)?;
                    self.dropped.store(true, RELAXED);
                }
            }
            Event::CancelOffline => {
                if self.dropped.swap(false, RELAXED) {
                    self.holes(unit).for_each(|hole| self.engine.retake_offline_references(hole));
                }
            }
            Event::Offline => {
                self.dropped.store(false, RELAXED);
                self.tracking.apply(unit, Trigger::WentOffline);
            }
            Event::GoingOnline | Event::CancelOnline => {}
        }
        Ok(())
    }
}

impl<P: Platform, R: Protocol> Listener for Watch<'_, P, R> {
    fn notify(&self, event: Event, change: &Change) -> Result<(), Veto> {
        let Some(unit) = self.tracking.unit_of(&change.pages) else { return Ok(()) };
        let is_ours = self.tracking.settles.load(RELAXED);
        let is_going = !is_ours && matches!(event, Event::GoingOnline | Event::GoingOffline);
        if is_going && self.tracking.closed.load(RELAXED) {
            return Err(Veto::Refused("the virtio-mem driver of this memory is not ready, or gone"));
        }
        if is_going && self.tracking.doubtful() == Some(unit) {
            return Err(Veto::Refused(
                "the device has to be asked first what is plugged of the memory block",
            ));
        }
        if matches!(event, Event::Online | Event::Offline) {
            self.tracking.woken.store(true, RELAXED);
        }
        match self.tracking.geometry.mode {
            Mode::SubBlock { .. } => self.notify_sub_block(unit, event, change),
            Mode::BigBlock { .. } => {
                if event == Event::GoingOnline && self.tracking.big_state(unit) != BigState::Added {
                    return Err(Veto::Refused("the memory block is on its way out"));
                }
                Ok(())
            }
        }
    }

    fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        let Some(unit) = self.tracking.unit_of(pages) else { return false };
        let Tracking { geometry, .. } = &*self.tracking;
        match geometry.mode {
            Mode::SubBlock { .. } => {
                self.tracking.runs(unit, true).for_each(|run| part(geometry.pages(unit, run)));
            }
            Mode::BigBlock { .. } => part(pages.clone()),
        }
        true
    }
}
