//! Big-block mode: whole memory blocks are plugged and unplugged, several at a time.
//!
//! Unplugging goes in three passes: big blocks that are all offline; those without anything in the normal zone; any.

use alloc::vec::Vec;

use pagefold_engine::hotplug::{BlockId, OnlineTo};
use pagefold_engine::{BlockState, Platform, Zone};

use crate::channel::Channel;
use crate::config::Geometry;
use crate::driver::{Driver, Machine, Pass, Trouble};
use crate::state::BigState;

/// Passes of unplugging.
const PASSES: usize = 3;

impl<'e, C: Channel> Driver<'e, C> {
    fn zones_of<P: Platform>(
        &self,
        machine: &Machine<'_, 'e, P>,
        unit: u64,
    ) -> impl Iterator<Item = (BlockId, Option<Zone>)> {
        let hotplug = &*machine.hotplug;
        self.geometry.memory_blocks(unit).map(BlockId).filter_map(move |id| {
            let info = hotplug.block(id)?;
            Some((id, (info.state == BlockState::Online).then_some(info.zone)))
        })
    }

    /// Whether something of `unit` is online.
    pub(crate) fn is_online<P: Platform>(&self, machine: &Machine<'_, 'e, P>, unit: u64) -> bool {
        self.zones_of(machine, unit).any(|(_, zone)| zone.is_some())
    }

    /// Plugs one big block, adds it, and brings it online if that is our business.
    pub(crate) fn plug_big_block<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
    ) -> Result<(), Trouble> {
        let usable = self.geometry.usable_units(self.limits.usable);
        let unit = self.tracking.first(usable, |n| n == BigState::Unused as u8).ok_or(Trouble::NoSpace)?;
        if self.settings.online.is_none()
            && self.offline_bytes(machine) + self.geometry.unit() > self.offline_limit()
        {
            return Err(Trouble::OfflineLimit);
        }
        // Room to owe its blocks, should there be no memory to bring them online.
        let blocks = self.geometry.memory_blocks(unit);
        self.owed.try_reserve((blocks.end - blocks.start) as usize).map_err(|_| Trouble::NoMemory)?;
        self.plug(unit, 0..1)?;
        self.tracking.set_big_state(unit, BigState::Plugged);
        let pages = self.geometry.pages(unit, 0..1);
        if let Err(error) = machine.hotplug.add(pages, self.node, self.group) {
            if self.unplug(unit, 0..1).is_ok() {
                self.tracking.set_big_state(unit, BigState::Unused);
            }
            return Err(error.into());
        }
        self.tracking.set_big_state(unit, BigState::Added);
        if let Some(to) = self.settings.online {
            self.owed.extend(blocks.rev().map(|block| (BlockId(block), to)));
            while self.bring_online(machine)? {}
        }
        Ok(())
    }

    fn offline_bytes<P: Platform>(&self, machine: &Machine<'_, 'e, P>) -> u64 {
        let offline = (0..self.tracking.next()).flat_map(|unit| self.zones_of(machine, unit));
        offline.filter(|(_, zone)| zone.is_none()).count() as u64 * self.geometry.memory_block
    }

    /// Unplugs the next big block of the pass, if it goes.
    pub(crate) fn unplug_big_block<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
    ) -> Result<(), Trouble> {
        let mut pass = self.take_pass();
        let before = pass;
        let Some(unit) = self.next_big_block(machine, &mut pass) else {
            return Err(pass.stuck.unwrap_or(Trouble::IN_USE));
        };
        self.pass = Some(before);
        self.heed()?;
        self.pass = Some(pass);
        let zone = self.zones_of(machine, unit).find_map(|(_, zone)| zone).unwrap_or(Zone::Movable);
        let walker = machine.hotplug.engine().walker().map_err(|_| Trouble::NoMemory)?;
        let done = if self.refusals.stands(&walker, unit, 0) {
            Err(Trouble::PINNED)
        } else {
            self.unplug_whole(machine, unit)
        };
        if let Err(stuck) = done
            && (stuck.is_stuck() || stuck == Trouble::NoRoom)
        {
            self.note_left(zone, stuck);
            pass.stuck = Some(stuck);
            self.pass = Some(pass);
            if stuck.is_stuck() {
                return Ok(());
            }
        }
        done
    }

    /// The next big block of a pass: each is in one of the kinds that the passes are for.
    fn next_big_block<P: Platform>(&self, machine: &Machine<'_, 'e, P>, pass: &mut Pass) -> Option<u64> {
        while pass.kind < PASSES {
            let Some(unit) = self.tracking.last(pass.end, |n| n == BigState::Added as u8) else {
                (pass.kind, pass.end) = (pass.kind + 1, self.tracking.next());
                continue;
            };
            pass.end = unit;
            let mut zones = self.zones_of(machine, unit).map(|(_, zone)| zone);
            let kind = zones.try_fold(0, |kind, zone| match zone {
                None => Some(kind),
                Some(Zone::Movable) => Some(1),
                Some(Zone::Normal) => None,
            });
            if pass.kind == kind.unwrap_or(2) && (self.settings.unplug_online || pass.kind == 0) {
                return Some(unit);
            }
        }
        None
    }

    /// Takes a big block offline, out of the machine, and back to the host. Once it is offline it is on its way out, and
    /// the next clean-up goes on after an error.
    fn unplug_whole<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
    ) -> Result<(), Trouble> {
        self.take_offline(machine, unit)?;
        self.remove_big_block(machine, unit)
    }

    /// Takes all memory blocks of a big block offline, or none: one that does not go back online at once is owed.
    fn take_offline<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
    ) -> Result<(), Trouble> {
        let blocks = self.geometry.memory_blocks(unit);
        // Which blocks are online where, for the way back, and room to owe all of them.
        let count = (blocks.end - blocks.start) as usize;
        let mut online: Vec<(BlockId, Zone)> = Vec::new();
        online.try_reserve_exact(count).map_err(|_| Trouble::NoMemory)?;
        self.owed.try_reserve(count).map_err(|_| Trouble::NoMemory)?;
        online.extend(self.zones_of(machine, unit).filter_map(|(block, zone)| Some((block, zone?))));
        self.tracking.set_big_state(unit, BigState::FakeOffline);
        for (done, &(block, _)) in online.iter().enumerate() {
            // In one piece, or not at all.
            self.questions.left = u64::MAX;
            let asking = &mut Self::asking(&mut self.questions, &mut self.refusals, machine.migrate);
            if let Err(error) = machine.hotplug.offline(block, asking) {
                self.tracking.set_big_state(unit, BigState::Added);
                let gone = online.iter().take(done).rev();
                self.owed.extend(gone.map(|&(block, zone)| (block, OnlineTo::Zone(zone))));
                // Those for which there is no memory now are brought online later.
                while self.bring_online(machine) == Ok(true) {}
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Takes a big block whose memory may be gone out of the machine.
    fn withdraw_whole<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
    ) -> Result<(), Trouble> {
        let settles = self.tracking.begin_settling();
        let done =
            self.take_offline(machine, unit).and_then(|()| Self::remove_blocks(machine, self.geometry, unit));
        drop(settles);
        done
    }

    fn remove_blocks<P: Platform>(
        machine: &mut Machine<'_, 'e, P>,
        geometry: Geometry,
        unit: u64,
    ) -> Result<(), Trouble> {
        for block in geometry.memory_blocks(unit).map(BlockId) {
            if machine.hotplug.block(block).is_some() {
                machine.hotplug.remove(block)?;
            }
        }
        Ok(())
    }

    /// Takes a big block that is all offline out of the machine, and back to the host.
    pub(crate) fn remove_big_block<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
    ) -> Result<(), Trouble> {
        Self::remove_blocks(machine, self.geometry, unit)?;
        self.tracking.set_big_state(unit, BigState::Plugged);
        self.refusals.forget(unit);
        self.unplug(unit, 0..1)?;
        self.tracking.set_big_state(unit, BigState::Unused);
        Ok(())
    }

    /// Asks the device what is plugged of `unit`, and makes everything fit it again.
    pub(crate) fn settle_big_block<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        unit: u64,
    ) -> Result<(), Trouble> {
        use pagefold_virtio_mem_spec::BlockState;
        let bytes = self.geometry.address(unit, 0)..self.geometry.address(unit, 1);
        let is_added = self.zones_of(machine, unit).next().is_some();
        let state = self.ask_state(bytes.clone())?;
        let state = match (state, is_added) {
            (BlockState::Plugged, true) => BigState::Added,
            (BlockState::Plugged, false) => BigState::Plugged,
            (BlockState::Unplugged, false) => BigState::Unused,
            (BlockState::Mixed, false) => {
                self.unplug_pieces(bytes)?;
                BigState::Unused
            }
            // In use without memory behind all of it: the device must not do that. Out of use with it, or failing that
            // memory is asked for again.
            (_, true) => match self.withdraw_whole(machine, unit) {
                Ok(()) => {
                    self.unplug_pieces(bytes)?;
                    BigState::Unused
                }
                Err(_) => {
                    self.plug_pieces(bytes)?;
                    BigState::Added
                }
            },
        };
        self.tracking.set_big_state(unit, state);
        Ok(())
    }
}
