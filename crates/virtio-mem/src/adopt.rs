//! Finding out what is plugged: when the driver comes, and whenever the two ends may not agree.
//!
//! The device is asked about ranges of units, as large as they can be while nothing is plugged there, one range a step. A
//! unit that has something is *settled*: everything is made to fit what the device says of it, some sub-blocks a step. Until
//! all of that is done nothing of the device's memory goes online or offline.

use core::ops::Range;

use pagefold_engine::Platform;
use pagefold_engine::hotplug::BlockId;
use pagefold_virtio_mem_spec::BlockState;

use crate::channel::Channel;
use crate::config::Mode;
use crate::driver::{Driver, Machine, Trouble};
use crate::state::{BigState, SubState, Trigger};
use crate::sync::RELAXED;

/// What to do with blocks that were plugged before the driver came. Where the machine uses them already they are adopted
/// in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// Unplug them all, and begin from nothing.
    UnplugAll,
    /// Ask the device which ones they are, and keep what makes a memory block's worth of sense.
    Adopt,
}

/// What is left to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survey {
    /// All is to be unplugged.
    UnplugAll,
    /// Units from `next` on are to be asked about, the next `span` of them at once.
    Units { next: u64, span: u64 },
    /// Nothing outside of whole units is to stay plugged.
    Strays,
}

/// Where settling a unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settling {
    pub(crate) unit: u64,
    /// Sub-blocks below were settled.
    pub(crate) next: u64,
    /// What the device says of all of it; `None` if it differs.
    pub(crate) uniform: Option<bool>,
}

/// Device blocks asked about at once: a request says at most 65,535, and a step should not make many.
const MOST_BLOCKS: u64 = 16 * u16::MAX as u64;

impl<'e, C: Channel> Driver<'e, C> {
    /// Begins to ask the device about everything.
    pub(crate) fn begin_survey(&mut self, survey: Survey) {
        self.tracking.closed.store(true, RELAXED);
        self.survey = Some(survey);
    }

    /// All units, as many at once as a few requests can say.
    pub(crate) fn all_units(&self) -> Survey {
        let span = (MOST_BLOCKS * self.geometry.device_block / self.geometry.unit()).max(1);
        Survey::Units { next: 0, span }
    }

    /// Goes on finding out.
    pub(crate) fn go_on_surveying<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        survey: Survey,
    ) -> Result<(), Trouble> {
        self.survey = match survey {
            Survey::UnplugAll => {
                self.unplug_all()?;
                None
            }
            Survey::Units { next, span } => Some(self.survey_units(machine, next, span)?),
            Survey::Strays => {
                self.unplug_strays()?;
                None
            }
        };
        if self.survey.is_none() {
            // The plugged size has to be read again before anything is concluded from it.
            self.reads_again = true;
            self.tracking.closed.store(false, RELAXED);
        }
        Ok(())
    }

    fn survey_units<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        next: u64,
        span: u64,
    ) -> Result<Survey, Trouble> {
        // The device cannot be asked about others.
        let end = self.geometry.usable_units(self.limits.usable);
        if next >= end {
            return Ok(Survey::Strays);
        }
        let mut units = next..next.saturating_add(span).min(end);
        loop {
            let bytes = self.geometry.address(units.start, 0)..self.geometry.address(units.end, 0);
            if !self.is_known(machine, units.clone()) && self.ask_state(bytes)? == BlockState::Unplugged {
                // More at once from here on.
                let span = (units.end - units.start).saturating_mul(2);
                let Survey::Units { span: most, .. } = self.all_units() else { return Ok(Survey::Strays) };
                return Ok(Survey::Units { next: units.end, span: span.min(most) });
            }
            if units.end - units.start == 1 {
                // Settled in the next step, and those that follow.
                self.doubt_unit(units.start);
                return Ok(Survey::Units { next: units.end, span: 1 });
            }
            units.end = units.start.midpoint(units.end);
        }
    }

    /// Whether one of `units` is, or was, of any use here.
    fn is_known<P: Platform>(&self, machine: &Machine<'_, 'e, P>, mut units: Range<u64>) -> bool {
        units.any(|unit| {
            self.tracking.is_used(unit)
                || self.geometry.memory_blocks(unit).any(|id| machine.hotplug.block(BlockId(id)).is_some())
        })
    }

    /// What lies outside of whole units is of no use.
    fn unplug_strays(&mut self) -> Result<(), Trouble> {
        let (start, usable) = (self.geometry.addr, self.limits.usable);
        let end = self.geometry.address(self.geometry.usable_units(usable), 0);
        let before = start..self.geometry.start.min(start + usable);
        let behind = end.max(start)..start + usable;
        for stray in [before, behind] {
            if stray.start < stray.end && self.ask_state(stray.clone())? != BlockState::Unplugged {
                self.unplug_pieces(stray)?;
            }
        }
        Ok(())
    }

    // ---- one unit ----------------------------------------------------------------------------------------------

    /// What is plugged of `unit` is not known any more: the next step asks.
    pub(crate) fn doubt_unit(&mut self, unit: u64) {
        debug_assert!(self.tracking.doubtful().is_none_or(|other| other == unit), "one at a time");
        self.tracking.set_doubtful(Some(unit));
        self.settling = None;
    }

    /// Makes everything fit what the device says of `unit`, some sub-blocks of it at most.
    pub(crate) fn settle<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
    ) -> Result<(), Trouble> {
        let done = match self.geometry.mode {
            Mode::SubBlock { .. } => self.settle_sub_blocks(machine, unit),
            Mode::BigBlock { .. } => self.settle_big_block(machine, unit).map(|()| true),
        };
        match done {
            Ok(true) => {
                self.settling = None;
                self.tracking.set_doubtful(None);
            }
            Ok(false) | Err(Trouble::Spent) => {}
            // What was asked for may have happened or not: from the beginning.
            Err(_) => self.settling = None,
        }
        done.map(|_| ())
    }

    /// Tries again what failed half-way: units that are plugged but not added, or on their way out. Whether there was one.
    pub(crate) fn clean_up<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
    ) -> Result<bool, Trouble> {
        match self.geometry.mode {
            Mode::SubBlock { .. } => {
                if self.tracking.sub_count(SubState::Plugged) == 0 {
                    return Ok(false);
                }
                let found = self.tracking.first(self.tracking.next(), |n| n == SubState::Plugged as u8);
                let Some(unit) = found else { return Ok(false) };
                for _ in 0..crate::driver::STEP_RUNS {
                    let Some(run) = self.tracking.run(unit, 0, true) else {
                        self.tracking.apply(unit, Trigger::Gone);
                        break;
                    };
                    self.unplug(unit, run)?;
                }
            }
            Mode::BigBlock { .. } => {
                let is_half_way = |n| n == BigState::Plugged as u8 || n == BigState::FakeOffline as u8;
                if self.tracking.big_count(BigState::Plugged) + self.tracking.big_count(BigState::FakeOffline)
                    == 0
                {
                    return Ok(false);
                }
                let Some(unit) = self.tracking.first(self.tracking.next(), is_half_way) else {
                    return Ok(false);
                };
                if self.is_online(machine, unit) {
                    // An owner's panic ended the way out: it is as before.
                    self.tracking.set_big_state(unit, BigState::Added);
                    return Ok(true);
                }
                self.remove_big_block(machine, unit)?;
            }
        }
        Ok(true)
    }

    pub(crate) fn remove_empty<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
    ) -> Result<bool, Trouble> {
        match self.geometry.mode {
            Mode::SubBlock { .. } => self.remove_empty_block(machine),
            Mode::BigBlock { .. } => Ok(false),
        }
    }
}
