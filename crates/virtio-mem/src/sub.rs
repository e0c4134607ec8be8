//! Sub-block mode: parts of memory blocks are plugged and unplugged.
//!
//! Plugging fills partly plugged blocks first (those in the normal zone, in the movable zone, offline), then takes unused
//! blocks, then new ones upward, so that memory and its descriptors stay together.
//!
//! Unplugging goes the other way: offline blocks first, since they cost nobody anything, then the movable zone, then the
//! normal one; partly plugged blocks before full ones, to get rid of whole blocks; from high to low. A fully plugged
//! block goes in one piece if it can; else sub-block by sub-block, leaving out what is busy.

use core::ops::Range;

use pagefold_engine::Platform;
use pagefold_engine::geometry::PAGE_SHIFT;
use pagefold_engine::hotplug::BlockId;

use crate::adopt::Settling;
use crate::channel::Channel;
use crate::driver::{Driver, Machine, Pass, STEP_QUESTIONS, STEP_RUNS, Trouble, Within};
use crate::state::{SubState, Trigger};

const PLUG_ORDER: [SubState; 3] =
    [SubState::KernelPartial, SubState::MovablePartial, SubState::OfflinePartial];

const UNPLUG_ORDER: [SubState; 6] = [
    SubState::OfflinePartial,
    SubState::Offline,
    SubState::MovablePartial,
    SubState::KernelPartial,
    SubState::Movable,
    SubState::Kernel,
];

impl<'e, C: Channel> Driver<'e, C> {
    fn block(&self, unit: u64) -> BlockId {
        BlockId(self.geometry.memory_blocks(unit).start)
    }

    // ---- plugging ----------------------------------------------------------------------------------------------

    /// Plugs up to `subs` sub-blocks, in one memory block.
    pub(crate) fn plug_sub_blocks<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        subs: u64,
    ) -> Result<(), Trouble> {
        let usable = self.geometry.usable_units(self.limits.usable);
        for state in PLUG_ORDER {
            if self.tracking.sub_count(state) == 0 {
                continue;
            }
            if let Some(unit) = self.tracking.first(usable.min(self.tracking.next()), |n| n == state as u8) {
                return self.fill(machine, unit, subs);
            }
        }
        let next = self.tracking.next();
        let reused = self.tracking.first(usable.min(next), |n| n == SubState::Unused as u8);
        let unit = reused.or((next < usable).then_some(next)).ok_or(Trouble::NoSpace)?;
        self.plug_new(machine, unit, subs)
    }

    /// Plugs more of a block that is added.
    fn fill<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
        subs: u64,
    ) -> Result<(), Trouble> {
        let mut subs = subs;
        let is_online = self.tracking.sub_state(unit).zone().is_some();
        for _ in 0..STEP_RUNS {
            let Some(run) = self.tracking.run(unit, 0, false).filter(|_| subs > 0) else { break };
            self.heed()?;
            let run = run.start..run.end.min(run.start + subs);
            subs -= run.end - run.start;
            let pages = self.geometry.pages(unit, run.clone());
            if is_online {
                // Before the request, so that failing is clean.
                machine.hotplug.prepare_fake_online(pages.clone())?;
            }
            self.plug(unit, run.clone())?;
            if is_online && let Err(error) = machine.hotplug.fake_online(pages) {
                // Never seen by anyone: back to the host. If the host does not take it either it is plugged and out of use,
                // and is settled before anything else happens.
                if self.unplug(unit, run).is_err() {
                    self.doubt_unit(unit);
                }
                return Err(error.into());
            }
            self.sync_partial(unit);
        }
        Ok(())
    }

    /// The block's state after some of its sub-blocks were plugged or unplugged.
    fn sync_partial(&mut self, unit: u64) {
        let is_full = self.tracking.is_full(unit);
        let state = self.tracking.sub_state(unit);
        let was_full = matches!(state, SubState::Offline | SubState::Kernel | SubState::Movable);
        if is_full != was_full {
            self.tracking.apply(unit, if is_full { Trigger::Fully } else { Trigger::Partly });
        }
    }

    /// Plugs the start of an unused block, adds it, and brings it online if that is our business.
    fn plug_new<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
        subs: u64,
    ) -> Result<(), Trouble> {
        let offline =
            self.tracking.sub_count(SubState::Offline) + self.tracking.sub_count(SubState::OfflinePartial);
        if (offline + 1) * self.geometry.memory_block > self.offline_limit() {
            return Err(Trouble::OfflineLimit);
        }
        let subs = subs.min(self.geometry.per_unit());
        // Room to owe it, should there be no memory to bring it online.
        self.owed.try_reserve(1).map_err(|_| Trouble::NoMemory)?;
        self.plug(unit, 0..subs)?;
        // The state before the block: who brings it online then exposes only what is plugged.
        self.tracking.apply(unit, Trigger::Plug { all: subs == self.geometry.per_unit() });
        let pages = machine.hotplug.pages(self.block(unit));
        if let Err(error) = machine.hotplug.add(pages, self.node, self.group) {
            let unplugged = self.unplug(unit, 0..subs).is_ok();
            self.tracking.apply(unit, Trigger::AddFailed { unplugged });
            return Err(error.into());
        }
        match self.settings.online {
            // Room was made above.
            Some(to) => {
                self.owed.push((self.block(unit), to));
                self.bring_online(machine).map(|_| ())
            }
            None => Ok(()),
        }
    }

    // ---- unplugging --------------------------------------------------------------------------------------------

    /// Looks at the next memory block of the pass, or goes on with it, and unplugs up to `subs` sub-blocks of it.
    pub(crate) fn unplug_sub_blocks<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        subs: u64,
    ) -> Result<(), Trouble> {
        let mut pass = self.take_pass();
        let within = pass.within.take().or_else(|| self.next_of(&mut pass));
        let Some(mut within) = within else { return Err(pass.stuck.unwrap_or(Trouble::IN_USE)) };
        // Until it has been looked at, whatever ends this step.
        pass.within = Some(within);
        self.pass = Some(pass);
        let looked = self.look_at(machine, &mut within, &mut pass, subs);
        if looked == Err(Trouble::ConfigChanged) {
            return Err(Trouble::ConfigChanged);
        }
        pass.within = Some(within).filter(|_| looked == Ok(false));
        self.pass = Some(pass);
        looked.map(|_| ())
    }

    /// The next memory block of a pass.
    fn next_of(&self, pass: &mut Pass) -> Option<Within> {
        while let Some(&state) = UNPLUG_ORDER.get(pass.kind) {
            let is_allowed = self.settings.unplug_online || state.zone().is_none();
            if is_allowed
                && self.tracking.sub_count(state) > 0
                && let Some(unit) = self.tracking.last(pass.end, |n| n == state as u8)
            {
                pass.end = unit;
                return Some(Within { unit, end: self.geometry.per_unit(), tried_whole: false, pauses: 0 });
            }
            (pass.kind, pass.end) = (pass.kind + 1, self.tracking.next());
        }
        None
    }

    /// Unplugs what goes of a memory block, some sub-blocks of it at most, and removes it when none is left. Whether it is
    /// done with; what does not go is noted in the pass.
    fn look_at<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        within: &mut Within,
        pass: &mut Pass,
        subs: u64,
    ) -> Result<bool, Trouble> {
        let unit = within.unit;
        if !self.tracking.sub_state(unit).is_added() {
            // Somebody else took it away since.
            return Ok(true);
        }
        let is_done = match self.tracking.sub_state(unit).zone() {
            None => self.unplug_offline(unit, subs)?,
            Some(_) => self.unplug_online(machine, within, pass, subs)?,
        };
        if self.tracking.plugged_in(unit) == 0 {
            match self.remove(machine, unit) {
                Err(stuck) if stuck.is_stuck() => pass.stuck = Some(stuck),
                done => done?,
            }
            return Ok(true);
        }
        Ok(is_done)
    }

    /// Pauses that all of a unit's folios can make necessary, were each asked twice.
    fn most_pauses(&self) -> u64 {
        (self.geometry.unit() >> PAGE_SHIFT) / STEP_QUESTIONS * 2 + 4
    }

    fn unplug_offline(&mut self, unit: u64, mut subs: u64) -> Result<bool, Trouble> {
        for _ in 0..STEP_RUNS {
            let last = self.tracking.last_run(unit, self.geometry.per_unit(), true);
            let Some(run) = last.filter(|_| subs > 0) else { return Ok(true) };
            self.heed()?;
            let run = run.start.max(run.end.saturating_sub(subs))..run.end;
            subs -= run.end - run.start;
            // The state before the request: nobody may bring the block online as if it were full.
            if self.tracking.sub_state(unit) == SubState::Offline {
                self.tracking.apply(unit, Trigger::Partly);
            }
            let done = self.unplug(unit, run);
            self.sync_partial(unit);
            done?;
        }
        Ok(false)
    }

    fn unplug_online<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        within: &mut Within,
        pass: &mut Pass,
        subs: u64,
    ) -> Result<bool, Trouble> {
        let (unit, all) = (within.unit, self.geometry.per_unit());
        let walker = machine.hotplug.engine().walker().map_err(|_| Trouble::NoMemory)?;
        let is_whole = within.end == all && subs >= all && self.tracking.is_full(unit);
        if is_whole && !self.refusals.any_stands(&walker, unit) && !within.tried_whole {
            self.heed()?;
            within.tried_whole = true;
            return match self.unplug_run(machine, unit, 0..all) {
                // It goes on in the next step, unless owners only say that something moves.
                Err(Trouble::Paused) => {
                    within.pauses += 1;
                    within.tried_whole = within.pauses > self.most_pauses();
                    Ok(false)
                }
                // Sub-block by sub-block, then, in the next step.
                Err(stuck) if stuck.is_stuck() || stuck == Trouble::NoRoom => Ok(false),
                done => done.map(|()| true),
            };
        }
        let mut subs = subs;
        for _ in 0..STEP_RUNS {
            let last = self.tracking.last_run(unit, within.end, true);
            let Some(run) = last.filter(|_| subs > 0) else { return Ok(true) };
            self.heed()?;
            if self.questions.left == 0 {
                return Ok(false);
            }
            let sub = run.end - 1;
            within.end = sub;
            let Some(zone) = self.tracking.sub_state(unit).zone() else { return Ok(true) };
            if self.refusals.stands(&walker, unit, sub) {
                let pinned = Trouble::PINNED;
                self.note_left(zone, pinned);
                pass.stuck = Some(pinned);
                continue;
            }
            match self.unplug_run(machine, unit, sub..sub + 1) {
                Ok(()) => subs -= 1,
                Err(Trouble::Paused) if within.pauses < 2 * self.most_pauses() => {
                    within.pauses += 1;
                    within.end = sub + 1;
                    return Ok(false);
                }
                Err(mut stuck) => {
                    if stuck == Trouble::Paused {
                        stuck = Trouble::IN_USE;
                    }
                    if stuck.is_stuck() || stuck == Trouble::NoRoom {
                        self.note_left(zone, stuck);
                        pass.stuck = Some(stuck);
                    }
                    if !stuck.is_stuck() {
                        return Err(stuck);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Unplugs plugged sub-blocks of an online block: out of use first, then back to the host.
    fn unplug_run<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
        subs: Range<u64>,
    ) -> Result<(), Trouble> {
        let pages = self.geometry.pages(unit, subs.clone());
        let asking = &mut Self::asking(&mut self.questions, &mut self.refusals, machine.migrate);
        if let Err(error) = machine.hotplug.fake_offline(pages.clone(), asking) {
            return Err(match self.questions.are_spent {
                true if self.questions.were_worth_it() => Trouble::Paused,
                true => Trouble::IN_USE,
                false => error.into(),
            });
        }
        if let Err(trouble) = self.unplug(unit, subs) {
            // In doubt it stays out of use: there may be no memory behind it. What becomes of it is settled next.
            if self.tracking.doubtful().is_none() && machine.hotplug.fake_online(pages).is_err() {
                self.doubt_unit(unit);
            }
            return Err(trouble);
        }
        self.sync_partial(unit);
        Ok(())
    }

    /// Takes a block out of the machine whose sub-blocks are all unplugged. If that fails it stays, empty.
    fn remove<P: Platform>(&mut self, machine: &mut Machine<'_, 'e, P>, unit: u64) -> Result<(), Trouble> {
        let block = self.block(unit);
        if self.tracking.sub_state(unit).zone().is_some() {
            machine.hotplug.offline(
                block,
                &mut Self::asking(&mut self.questions, &mut self.refusals, machine.migrate),
            )?;
        }
        machine.hotplug.remove(block)?;
        self.tracking.apply(unit, Trigger::Gone);
        self.refusals.forget(unit);
        Ok(())
    }

    /// Removes a block that stayed behind, empty. Whether there was one.
    pub(crate) fn remove_empty_block<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
    ) -> Result<bool, Trouble> {
        let partial = [SubState::OfflinePartial, SubState::MovablePartial, SubState::KernelPartial];
        if partial.into_iter().all(|state| self.tracking.sub_count(state) == 0) {
            return Ok(false);
        }
        for unit in (0..self.tracking.next()).rev() {
            if partial.contains(&self.tracking.sub_state(unit)) && self.tracking.plugged_in(unit) == 0 {
                self.remove(machine, unit)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    // ---- settling ----------------------------------------------------------------------------------------------

    /// Asks the device what is plugged of `unit`, and makes everything fit it again, some sub-blocks at a time. Whether
    /// that is done.
    pub(crate) fn settle_sub_blocks<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
    ) -> Result<bool, Trouble> {
        let all = self.geometry.per_unit();
        let mut settling = match self.settling {
            Some(settling) if settling.unit == unit => settling,
            _ => {
                let whole = self.geometry.address(unit, 0)..self.geometry.address(unit, all);
                let uniform = match self.ask_state(whole)? {
                    pagefold_virtio_mem_spec::BlockState::Plugged => Some(true),
                    pagefold_virtio_mem_spec::BlockState::Unplugged => Some(false),
                    pagefold_virtio_mem_spec::BlockState::Mixed => None,
                };
                Settling { unit, next: 0, uniform }
            }
        };
        let info = machine.hotplug.block(self.block(unit));
        let is_online = info.is_some_and(|info| info.state == pagefold_engine::BlockState::Online);
        for sub in settling.next..all.min(settling.next + STEP_RUNS) {
            self.settling = Some(settling);
            self.settle_sub_block(machine, unit, sub, settling.uniform, is_online)?;
            settling.next = sub + 1;
            if self.questions.asked > 0 {
                break;
            }
        }
        self.settling = Some(settling);
        if settling.next < all {
            return Ok(false);
        }
        let (plugged, is_full) = (self.tracking.plugged_in(unit), self.tracking.is_full(unit));
        use SubState::{
            Kernel, KernelPartial, Movable, MovablePartial, Offline, OfflinePartial, Plugged, Unused,
        };
        let state = match info {
            None if plugged == 0 => Unused,
            None => Plugged,
            Some(info) => match (is_online.then_some(info.zone), is_full) {
                (None, true) => Offline,
                (None, false) => OfflinePartial,
                (Some(pagefold_engine::Zone::Normal), true) => Kernel,
                (Some(pagefold_engine::Zone::Normal), false) => KernelPartial,
                (Some(pagefold_engine::Zone::Movable), true) => Movable,
                (Some(pagefold_engine::Zone::Movable), false) => MovablePartial,
            },
        };
        self.tracking.set_sub_state(unit, state);
        Ok(true)
    }

    fn settle_sub_block<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
        sub: u64,
        uniform: Option<bool>,
        is_online: bool,
    ) -> Result<(), Trouble> {
        let is_plugged = match uniform {
            Some(state) => state,
            None => self.settle_mixed(unit, sub)?,
        };
        let pages = self.geometry.pages(unit, sub..sub + 1);
        let is_out =
            is_online && machine.hotplug.is_fake_offline(pages.clone()).map_err(|_| Trouble::NoMemory)?;
        match (is_plugged, is_out) {
            (true, true) => {
                // Plugged, but not in use: into use, or back to the host.
                self.tracking.set_plugged(unit, sub..sub + 1, true);
                if let Err(error) = machine.hotplug.fake_online(pages) {
                    // If neither works, the reason is that of the first.
                    return self.unplug(unit, sub..sub + 1).map_err(|_| error.into());
                }
            }
            // In use without memory behind it. The device must not do that. Owners can copy nothing from there any more,
            // but what they have elsewhere goes on; it is taken out of use, or failing that memory is asked for again.
            (false, false) if is_online => {
                // The sub-block in one step, and no more after it.
                self.questions.left = u64::MAX;
                let asking = &mut Self::asking(&mut self.questions, &mut self.refusals, machine.migrate);
                match machine.hotplug.fake_offline(pages, asking) {
                    Ok(()) => self.tracking.set_plugged(unit, sub..sub + 1, false),
                    Err(_) => self.plug(unit, sub..sub + 1)?,
                }
            }
            _ => self.tracking.set_plugged(unit, sub..sub + 1, is_plugged),
        }
        Ok(())
    }

    /// The state of one sub-block. One that is plugged in part is of no use: it is unplugged, device block by device
    /// block.
    fn settle_mixed(&mut self, unit: u64, sub: u64) -> Result<bool, Trouble> {
        use pagefold_virtio_mem_spec::BlockState;
        let bytes = self.geometry.address(unit, sub)..self.geometry.address(unit, sub + 1);
        match self.ask_state(bytes.clone())? {
            BlockState::Plugged => Ok(true),
            BlockState::Unplugged => Ok(false),
            BlockState::Mixed => {
                self.unplug_pieces(bytes)?;
                Ok(false)
            }
        }
    }
}
