//! Big-block mode: whole memory blocks are plugged and unplugged, several at a time.
//!
//! Unplugging goes in three passes: big blocks that are all offline; those without anything in the normal zone; any.

use alloc::vec::Vec;

use pagefold_engine::hotplug::{BlockId, OnlineTo};
use pagefold_engine::protocol::Protocol;
use pagefold_engine::{BlockState, Platform, Zone};

use crate::channel::Channel;
use crate::driver::{Driver, Machine, Pass, Trouble};
use crate::state::BigState;

/// Passes of unplugging.
const PASSES: usize = 3;

impl<'e, C: Channel> Driver<'e, C> {
    fn zones_of<P: Platform, R: Protocol>(
        &self,
        machine: &Machine<'_, 'e, P, R>,
        unit: u64,
    ) -> impl Iterator<Item = (BlockId, Option<Zone>)> {
        let hotplug = &*machine.hotplug;
        self.geometry.memory_blocks(unit).map(BlockId).filter_map(move |id| {
            let info = hotplug.block(id)?;
            Some((id, (info.state == BlockState::Online).then_some(info.zone)))
        })
    }

    /// Plugs one big block, adds it, and brings it online if that is our business.
    pub(crate) fn plug_big_block<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
    ) -> Result<(), Trouble> {
        let usable = self.geometry.usable_units(self.limits.usable);
        let unit = self.tracking.first(usable, |n| n == BigState::Unused as u8).ok_or(Trouble::NoSpace)?;
        if self.settings.online.is_none()
            && self.offline_bytes(machine) + self.geometry.unit() > self.offline_limit()
        {
            return Err(Trouble::OfflineLimit);
        }
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
            for block in self.geometry.memory_blocks(unit).map(BlockId) {
                // A block that stays offline is added all the same.
                let _ = machine.hotplug.online(block, to);
            }
        }
        Ok(())
    }

    fn offline_bytes<P: Platform, R: Protocol>(&self, machine: &Machine<'_, 'e, P, R>) -> u64 {
        let offline = (0..self.tracking.next()).flat_map(|unit| self.zones_of(machine, unit));
        offline.filter(|(_, zone)| zone.is_none()).count() as u64 * self.geometry.memory_block
    }

    /// Unplugs the next big block of the pass that goes. Whether the pass goes on.
    pub(crate) fn unplug_big_block<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
    ) -> Result<bool, Trouble> {
        let mut pass = self.take_pass();
        let mut trouble = None;
        while pass.kind < PASSES {
            let Some(unit) = self.tracking.last(pass.end, |n| n == BigState::Added as u8) else {
                pass = Pass { kind: pass.kind + 1, end: self.tracking.next() };
                continue;
            };
            pass.end = unit;
            let is_wanted = match pass.kind {
                0 => self.zones_of(machine, unit).all(|(_, zone)| zone.is_none()),
                1 => self.zones_of(machine, unit).all(|(_, zone)| zone != Some(Zone::Normal)),
                _ => true,
            };
            let is_allowed = self.settings.unplug_online || pass.kind == 0;
            if !is_wanted || !is_allowed {
                continue;
            }
            self.heed()?;
            match self.unplug_whole(machine, unit) {
                Ok(()) => {
                    self.pass = Some(pass);
                    return Ok(true);
                }
                Err(stuck @ (Trouble::InUse(_) | Trouble::Held(_))) => {
                    // Each block is counted once: in the pass that may take any.
                    if pass.kind == PASSES - 1 {
                        let zone = self.zones_of(machine, unit).find_map(|(_, zone)| zone);
                        self.note_left(zone.unwrap_or(Zone::Movable), stuck);
                    }
                    trouble = Some(stuck);
                }
                Err(other) => {
                    self.pass = Some(pass);
                    return Err(other);
                }
            }
        }
        Err(trouble.unwrap_or(Trouble::IN_USE))
    }

    /// Takes a big block offline, out of the machine, and back to the host. All of its memory blocks are as before on an
    /// error, but for an error of the device: then it is no longer added, and the next clean-up tries again.
    fn unplug_whole<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
    ) -> Result<(), Trouble> {
        let blocks = self.geometry.memory_blocks(unit);
        // Which blocks are online where, for the way back.
        let mut online: Vec<(BlockId, Zone)> = Vec::new();
        online.try_reserve_exact((blocks.end - blocks.start) as usize).map_err(|_| Trouble::NoMemory)?;
        online.extend(self.zones_of(machine, unit).filter_map(|(block, zone)| Some((block, zone?))));
        self.tracking.set_big_state(unit, BigState::FakeOffline);
        for (done, &(block, _)) in online.iter().enumerate() {
            if let Err(error) = machine.hotplug.offline(block, machine.migrate) {
                self.tracking.set_big_state(unit, BigState::Added);
                for &(block, zone) in online.iter().take(done) {
                    let _ = machine.hotplug.online(block, OnlineTo::Zone(zone));
                }
                return Err(error.into());
            }
        }
        for block in blocks {
            machine.hotplug.remove(BlockId(block))?;
        }
        self.tracking.set_big_state(unit, BigState::Plugged);
        self.unplug(unit, 0..1)?;
        self.tracking.set_big_state(unit, BigState::Unused);
        Ok(())
    }

    /// Asks the device what is plugged of `unit`, and makes everything fit it again.
    pub(crate) fn settle_big_block<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
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
            // In use without memory behind all of it: the device must not do that. Ask for it again.
            (_, true) => {
                self.plug_pieces(bytes)?;
                BigState::Added
            }
        };
        self.tracking.set_big_state(unit, state);
        Ok(())
    }
}
