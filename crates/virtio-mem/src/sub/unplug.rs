//! Unplugging in sub-block mode: offline memory blocks first, which cost their owners nothing, then the movable zone, then
//! the normal one; partly plugged blocks before full ones, so that whole blocks become free; from high to low. A full block
//! is unplugged in one piece if possible, else sub-block by sub-block, without those in use.

use core::ops::Range;

use pagefold_engine::Platform;
use pagefold_engine::geometry::PAGE_SHIFT;
use pagefold_virtio_mem_spec::RequestType;

use crate::context::Context;
use crate::owners::STEP_QUESTIONS;
use crate::stop::{Result, Stop};
use crate::sub::state::{SubState, Trigger};
use crate::sub::{Pass, STEP_RUNS, SubMode, Within};

const ORDER: [SubState; 6] = [
    SubState::OfflinePartial,
    SubState::Offline,
    SubState::MovablePartial,
    SubState::KernelPartial,
    SubState::Movable,
    SubState::Kernel,
];

impl SubMode {
    /// Looks at the next memory block of the pass, or goes on with it, and unplugs up to `subs` sub-blocks of it.
    pub(crate) fn unplug(&mut self, cx: &mut Context<'_, '_, impl Platform>, subs: u64) -> Result {
        let mut pass = self.pass.take().unwrap_or_else(|| {
            cx.owners.begin_pass();
            Pass { order: 0, end: self.blocks.states.used(), within: None, stuck: None }
        });
        let within = pass.within.take().or_else(|| self.next_of(&mut pass));
        let Some(mut within) = within else { return Err(pass.stuck.unwrap_or(Stop::IN_USE)) };
        // The next step goes on here even if a panic of an owner ends this one.
        pass.within = Some(within);
        self.pass = Some(pass);
        let looked = self.look_at(cx, &mut within, &mut pass, subs);
        pass.within = Some(within).filter(|_| looked == Ok(false));
        self.pass = Some(pass);
        looked.map(|_| ())
    }

    /// The next memory block of a pass.
    fn next_of(&self, pass: &mut Pass) -> Option<Within> {
        let states = &self.blocks.states;
        while let Some(&state) = ORDER.get(pass.order) {
            let is_allowed = self.unplug_online || state.zone().is_none();
            if is_allowed
                && states.count(state) > 0
                && let Some(unit) = states.last(pass.end, state)
            {
                pass.end = unit;
                return Some(Within { unit, end: self.geometry.per_unit(), tried_whole: false, pauses: 0 });
            }
            (pass.order, pass.end) = (pass.order + 1, states.used());
        }
        None
    }

    /// Unplugs what can be unplugged of a memory block, some sub-blocks of it at most, and removes the block when none is
    /// left. Whether the pass is done with it; what stays is recorded in the pass.
    fn look_at(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        within: &mut Within,
        pass: &mut Pass,
        subs: u64,
    ) -> Result<bool> {
        let (unit, state) = (within.unit, self.blocks.states.get(within.unit));
        if !state.is_added() {
            // It was removed since, by other code.
            return Ok(true);
        }
        let is_done = match state.zone() {
            None => self.unplug_offline(cx, unit, subs)?,
            Some(_) => self.unplug_online(cx, within, pass, subs)?,
        };
        if self.blocks.plugged_in(unit) == 0 {
            match self.remove(cx, unit) {
                Err(stuck) if stuck.is_stuck() => pass.stuck = Some(stuck),
                done => done?,
            }
            return Ok(true);
        }
        Ok(is_done)
    }

    fn unplug_offline(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        unit: u64,
        mut subs: u64,
    ) -> Result<bool> {
        for _ in 0..STEP_RUNS {
            let last = self.blocks.last_run(unit, self.geometry.per_unit());
            let Some(run) = last.filter(|_| subs > 0) else { return Ok(true) };
            cx.link.heed()?;
            let run = run.start.max(run.end.saturating_sub(subs))..run.end;
            subs -= run.end - run.start;
            // The state before the request: the block must not come online as if it were full.
            if self.blocks.states.get(unit) == SubState::Offline {
                self.blocks.apply(unit, Trigger::Partly);
            }
            let done = self.change(cx, RequestType::Unplug, unit, run);
            self.sync_full(unit);
            done?;
        }
        Ok(false)
    }

    fn unplug_online(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        within: &mut Within,
        pass: &mut Pass,
        mut subs: u64,
    ) -> Result<bool> {
        let (unit, all) = (within.unit, self.geometry.per_unit());
        // As many pauses as all folios of a unit can make necessary, were each asked about twice.
        let most_pauses = (self.geometry.unit() >> PAGE_SHIFT) / STEP_QUESTIONS * 2 + 4;
        let walker = cx.hotplug.engine().walker()?;
        let is_whole = within.end == all && subs >= all && self.blocks.is_full(unit);
        if is_whole && !cx.owners.refusals.any_stands(&walker, unit) && !within.tried_whole {
            cx.link.heed()?;
            within.tried_whole = true;
            return match self.unplug_run(cx, unit, 0..all) {
                Err(Stop::Paused) => {
                    within.pauses += 1;
                    within.tried_whole = within.pauses > most_pauses;
                    Ok(false)
                }
                // Sub-block by sub-block in the next step.
                Err(stuck) if stuck.is_stuck() || stuck == Stop::NO_ROOM => Ok(false),
                done => done.map(|()| true),
            };
        }
        for _ in 0..STEP_RUNS {
            let last = self.blocks.last_run(unit, within.end);
            let Some(run) = last.filter(|_| subs > 0) else { return Ok(true) };
            cx.link.heed()?;
            if cx.owners.questions.left == 0 {
                return Ok(false);
            }
            let sub = run.end - 1;
            within.end = sub;
            let Some(zone) = self.blocks.states.get(unit).zone() else { return Ok(true) };
            let done = if cx.owners.refusals.stands(&walker, unit, sub) {
                Err(Stop::PINNED)
            } else {
                self.unplug_run(cx, unit, sub..sub + 1)
            };
            let stuck = match done {
                Ok(()) => {
                    subs -= 1;
                    continue;
                }
                Err(Stop::Paused) if within.pauses < 2 * most_pauses => {
                    within.pauses += 1;
                    within.end = sub + 1;
                    return Ok(false);
                }
                Err(Stop::Paused) => Stop::IN_USE,
                Err(stop) => stop,
            };
            if stuck.is_stuck() || stuck == Stop::NO_ROOM {
                cx.owners.note_stuck(zone, stuck);
                pass.stuck = Some(stuck);
            }
            if !stuck.is_stuck() {
                return Err(stuck);
            }
        }
        Ok(false)
    }

    /// Unplugs plugged sub-blocks of an online block: first out of use, then back to the host.
    fn unplug_run(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64, subs: Range<u64>) -> Result {
        let pages = self.geometry.pages(unit, subs.clone());
        if let Err(error) = cx.fake_offline(pages.clone()) {
            return Err(cx.owners.questions.spent().unwrap_or(error.into()));
        }
        if let Err(stop) = self.change(cx, RequestType::Unplug, unit, subs) {
            // In doubt it stays out of use, since there may be no memory behind it, and the next step settles it.
            if cx.gate.doubtful().is_none() && cx.hotplug.fake_online(pages).is_err() {
                cx.gate.doubt(unit);
            }
            return Err(stop);
        }
        self.sync_full(unit);
        Ok(())
    }

    /// Removes a memory block whose sub-blocks are all unplugged. If that fails it stays, empty.
    fn remove(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result {
        let block = self.block(unit);
        if self.blocks.states.get(unit).zone().is_some() {
            cx.offline(block)?;
        }
        cx.hotplug.remove(block)?;
        self.blocks.apply(unit, Trigger::Gone);
        cx.owners.refusals.forget(unit);
        Ok(())
    }

    /// Removes a block that stayed behind, empty. Whether there was one.
    pub(crate) fn remove_empty(&mut self, cx: &mut Context<'_, '_, impl Platform>) -> Result<bool> {
        let states = &self.blocks.states;
        let partial = [SubState::OfflinePartial, SubState::MovablePartial, SubState::KernelPartial];
        if partial.into_iter().all(|state| states.count(state) == 0) {
            return Ok(false);
        }
        let is_empty = |unit| partial.contains(&states.get(unit)) && self.blocks.plugged_in(unit) == 0;
        let Some(unit) = (0..states.used()).rev().find(|&unit| is_empty(unit)) else { return Ok(false) };
        self.remove(cx, unit)?;
        Ok(true)
    }
}
