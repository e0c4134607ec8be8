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
use pagefold_engine::hotplug::BlockId;
use pagefold_engine::protocol::Protocol;

use crate::channel::Channel;
use crate::driver::{Driver, Machine, Pass, Trouble};
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
    pub(crate) fn plug_sub_blocks<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
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
    fn fill<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
        subs: u64,
    ) -> Result<(), Trouble> {
        let mut subs = subs;
        let is_online = self.tracking.sub_state(unit).zone().is_some();
        while subs > 0
            && let Some(run) = self.tracking.run(unit, 0, false)
        {
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
                // Never seen by anyone: back to the host.
                let _ = self.unplug(unit, run);
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
    fn plug_new<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
        subs: u64,
    ) -> Result<(), Trouble> {
        let offline =
            self.tracking.sub_count(SubState::Offline) + self.tracking.sub_count(SubState::OfflinePartial);
        if (offline + 1) * self.geometry.memory_block > self.offline_limit() {
            return Err(Trouble::OfflineLimit);
        }
        let subs = subs.min(self.geometry.per_unit());
        self.plug(unit, 0..subs)?;
        // The state before the block, so that whoever brings it online exposes only what is plugged.
        self.tracking.apply(unit, Trigger::Plug { all: subs == self.geometry.per_unit() });
        let pages = machine.hotplug.pages(self.block(unit));
        if let Err(error) = machine.hotplug.add(pages, self.node, self.group) {
            let unplugged = self.unplug(unit, 0..subs).is_ok();
            self.tracking.apply(unit, Trigger::AddFailed { unplugged });
            return Err(error.into());
        }
        match self.settings.online {
            // It stays offline if that fails, which is a state like any other; the offline limit bounds it.
            Some(to) => {
                machine.hotplug.online(self.block(unit), to).map(|_| ()).or_else(|error| match error {
                    pagefold_engine::hotplug::BlockError::NoFrames => Err(Trouble::NoMemory),
                    _ => Ok(()),
                })
            }
            None => Ok(()),
        }
    }

    // ---- unplugging --------------------------------------------------------------------------------------------

    /// Unplugs up to `subs` sub-blocks, in the next memory block of the pass that gives any. Whether the pass goes on.
    pub(crate) fn unplug_sub_blocks<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        subs: u64,
    ) -> Result<bool, Trouble> {
        let mut pass = self.take_pass();
        let mut trouble = None;
        while let Some(&state) = UNPLUG_ORDER.get(pass.kind) {
            let is_allowed = self.settings.unplug_online || state.zone().is_none();
            let unit = if is_allowed && self.tracking.sub_count(state) > 0 {
                self.tracking.last(pass.end, |n| n == state as u8)
            } else {
                None
            };
            let Some(unit) = unit else {
                pass = Pass { kind: pass.kind + 1, end: self.tracking.next() };
                continue;
            };
            pass.end = unit;
            match self.unplug_unit(machine, unit, subs) {
                Ok(()) => {
                    self.pass = Some(pass);
                    return Ok(true);
                }
                // It is busy: so look at the others.
                Err(stuck @ (Trouble::InUse(_) | Trouble::Held(_))) => trouble = Some(stuck),
                Err(other) => {
                    self.pass = Some(pass);
                    return Err(other);
                }
            }
        }
        Err(trouble.unwrap_or(Trouble::IN_USE))
    }

    /// Unplugs up to `subs` sub-blocks of `unit`, and removes it when none is left. An error if not a single one went.
    fn unplug_unit<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
        subs: u64,
    ) -> Result<(), Trouble> {
        let before = self.tracking.plugged_in(unit);
        let done = match self.tracking.sub_state(unit).zone() {
            None => self.unplug_offline(unit, subs),
            Some(_) => self.unplug_online(machine, unit, subs),
        };
        let after = self.tracking.plugged_in(unit);
        if after == 0 {
            self.remove(machine, unit)?;
            return done;
        }
        match done {
            Err(Trouble::InUse(_) | Trouble::Held(_)) if after < before => Ok(()),
            done => done,
        }
    }

    fn unplug_offline(&mut self, unit: u64, mut subs: u64) -> Result<(), Trouble> {
        while subs > 0
            && let Some(run) = self.tracking.last_run(unit, self.geometry.per_unit(), true)
        {
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
        Ok(())
    }

    fn unplug_online<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
        subs: u64,
    ) -> Result<(), Trouble> {
        let all = self.geometry.per_unit();
        if subs >= all && self.tracking.is_full(unit) {
            match self.unplug_run(machine, unit, 0..all) {
                Err(Trouble::InUse(_) | Trouble::Held(_)) => {}
                done => return done,
            }
        }
        let (mut subs, mut end) = (subs, all);
        let mut stuck = None;
        while subs > 0
            && let Some(run) = self.tracking.last_run(unit, end, true)
        {
            self.heed()?;
            let sub = run.end - 1;
            end = sub;
            match self.unplug_run(machine, unit, sub..sub + 1) {
                Ok(()) => subs -= 1,
                Err(trouble @ (Trouble::InUse(_) | Trouble::Held(_))) => {
                    if let Some(zone) = self.tracking.sub_state(unit).zone() {
                        self.note_left(zone, trouble);
                    }
                    stuck = Some(trouble);
                }
                Err(other) => return Err(other),
            }
        }
        stuck.map_or(Ok(()), Err)
    }

    /// Unplugs plugged sub-blocks of an online block: out of use first, then back to the host.
    fn unplug_run<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
        subs: Range<u64>,
    ) -> Result<(), Trouble> {
        let pages = self.geometry.pages(unit, subs.clone());
        machine.hotplug.fake_offline(pages.clone(), machine.migrate)?;
        if let Err(trouble) = self.unplug(unit, subs) {
            // In doubt it stays out of use: there may be no memory behind it. What becomes of it is settled next.
            if self.tracking.doubtful().is_none() && machine.hotplug.fake_online(pages).is_err() {
                self.tracking.set_doubtful(Some(unit));
            }
            return Err(trouble);
        }
        self.sync_partial(unit);
        Ok(())
    }

    /// Takes a block out of the machine whose sub-blocks are all unplugged. If that fails it stays, empty.
    fn remove<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
    ) -> Result<(), Trouble> {
        let block = self.block(unit);
        if self.tracking.sub_state(unit).zone().is_some() {
            machine.hotplug.offline(block, machine.migrate)?;
        }
        machine.hotplug.remove(block)?;
        self.tracking.apply(unit, Trigger::Gone);
        Ok(())
    }

    /// Removes a block that stayed behind, empty. Whether there was one.
    pub(crate) fn remove_empty_block<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
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

    /// Asks the device what is plugged of `unit`, and makes everything fit it again.
    pub(crate) fn settle_sub_blocks<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
    ) -> Result<(), Trouble> {
        let all = self.geometry.per_unit();
        let whole = self.geometry.address(unit, 0)..self.geometry.address(unit, all);
        let uniform = match self.ask_state(whole)? {
            pagefold_virtio_mem_spec::BlockState::Plugged => Some(true),
            pagefold_virtio_mem_spec::BlockState::Unplugged => Some(false),
            pagefold_virtio_mem_spec::BlockState::Mixed => None,
        };
        let info = machine.hotplug.block(self.block(unit));
        let is_online = info.is_some_and(|info| info.state == pagefold_engine::BlockState::Online);
        for sub in 0..all {
            let is_plugged = match uniform {
                Some(state) => state,
                None => self.settle_mixed(unit, sub)?,
            };
            let pages = self.geometry.pages(unit, sub..sub + 1);
            if is_online {
                let is_out = machine.hotplug.is_fake_offline(pages.clone()).map_err(|_| Trouble::NoMemory)?;
                match (is_plugged, is_out) {
                    (true, true) => {
                        // Plugged, but not in use: into use, or back to the host.
                        self.tracking.set_plugged(unit, sub..sub + 1, true);
                        if machine.hotplug.fake_online(pages).is_err() {
                            self.unplug(unit, sub..sub + 1)?;
                        }
                        continue;
                    }
                    // In use without memory behind it. The device must not do that; take it out of use, or failing that
                    // ask for memory again.
                    (false, false) if machine.hotplug.fake_offline(pages, machine.migrate).is_err() => {
                        self.plug(unit, sub..sub + 1)?;
                        continue;
                    }
                    _ => {}
                }
            }
            self.tracking.set_plugged(unit, sub..sub + 1, is_plugged);
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
