//! The driver's ear on the notifier chain: it follows what goes online and offline, says which parts of its blocks have
//! memory behind them, and refuses what must not be.

use alloc::sync::Arc;
use core::ops::Range;

use pagefold_engine::hotplug::{BlockChange, Event, Listener, Veto};

use crate::config::Mode;
use crate::state::{BigState, SubState, Trigger};
use crate::sync::RELAXED;
use crate::tracking::Tracking;

pub(crate) struct Watch {
    pub(crate) tracking: Arc<Tracking>,
}

impl Watch {
    fn notify_sub_block(&self, unit: u64, event: Event, change: &BlockChange) -> Result<(), Veto> {
        let state = self.tracking.sub_state(unit);
        match event {
            Event::GoingOnline if !matches!(state, SubState::Offline | SubState::OfflinePartial) => {
                return Err(Veto::Refused("the memory block is not the driver's to bring online"));
            }
            Event::Online => self.tracking.apply(unit, Trigger::Online(change.zone)),
            Event::Offline => self.tracking.apply(unit, Trigger::WentOffline),
            Event::GoingOnline | Event::CancelOnline | Event::GoingOffline | Event::CancelOffline => {}
        }
        Ok(())
    }
}

impl Listener for Watch {
    fn notify(&self, event: Event, change: &BlockChange) -> Result<(), Veto> {
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
