//! Big-block mode: whole memory blocks are plugged and unplugged, several at a time.
//!
//! Unplugging goes in three passes: big blocks that are all offline; those without anything in the normal zone; any.

pub(crate) mod blocks;

use alloc::sync::Arc;
use alloc::vec::Vec;

use pagefold_engine::hotplug::{BlockId, OnlineTo};
use pagefold_engine::{OutOfMemory, Platform, Zone};
use pagefold_virtio_mem_spec::{PlugState, RequestType};

use crate::context::Context;
use crate::gate::Gate;
use crate::geometry::Geometry;
use crate::status::Shortfall;
use crate::stop::{Result, Stop};
use blocks::{BigBlocks, BigState};

/// Passes of unplugging.
const PASSES: u32 = 3;

/// The driver's half of big-block mode; the listener has the other one.
pub(crate) struct BigMode {
    pub(crate) blocks: Arc<BigBlocks>,
    geometry: Geometry,
    /// Whether to unplug memory that is online.
    unplug_online: bool,
    /// How far unplugging is.
    pub(crate) pass: Option<Pass>,
}

/// One of the passes over all big blocks, from high to low.
#[derive(Clone, Copy)]
pub(crate) struct Pass {
    number: u32,
    /// Units from here on have been looked at.
    end: u64,
    /// Why a big block that was looked at stayed plugged.
    stuck: Option<Stop>,
}

impl BigMode {
    pub(crate) fn new(geometry: Geometry, gate: Arc<Gate>, unplug_online: bool) -> Result<Self, OutOfMemory> {
        let blocks = Arc::new(BigBlocks::new(geometry, gate)?);
        Ok(Self { blocks, geometry, unplug_online, pass: None })
    }

    /// Plugs or unplugs `unit`, which is not added.
    fn change(&self, cx: &mut Context<'_, '_, impl Platform>, kind: RequestType, unit: u64) -> Result {
        cx.change(kind, unit..unit + 1, self.geometry.unit_bytes(unit..unit + 1))?;
        let is_plug = kind == RequestType::Plug;
        self.blocks.states.set(unit, if is_plug { BigState::Plugged } else { BigState::Unused });
        Ok(())
    }

    /// Plugs one big block, adds it, and brings it online if the driver does so.
    pub(crate) fn plug(&mut self, cx: &mut Context<'_, '_, impl Platform>, _subs: u64) -> Result {
        let usable = self.geometry.usable_units(cx.link.limits.usable);
        let unit = self.blocks.states.first(usable, BigState::Unused).ok_or(Shortfall::NoSpace)?;
        if cx.adder.online.is_none()
            && self.offline_bytes(cx) + self.geometry.unit() > self.geometry.offline_limit()
        {
            return Err(Shortfall::OfflineLimit.into());
        }
        cx.adder.reserve(self.geometry.blocks_per_unit())?;
        self.change(cx, RequestType::Plug, unit)?;
        if let Err(error) = cx.add(self.geometry.pages(unit, 0..1)) {
            // If the device refuses this too, the next clean-up tries again.
            let _ = self.change(cx, RequestType::Unplug, unit);
            return Err(error);
        }
        self.blocks.states.set(unit, BigState::Added);
        if let Some(to) = cx.adder.online {
            cx.adder.owed.extend(self.geometry.memory_blocks(unit).rev().map(|block| (block, to)));
            while cx.adder.bring_online(cx.hotplug)? {}
        }
        Ok(())
    }

    fn offline_bytes(&self, cx: &Context<'_, '_, impl Platform>) -> u64 {
        let added = (0..self.blocks.states.used()).flat_map(|unit| cx.added_blocks(unit));
        added.filter(|(_, zone)| zone.is_none()).count() as u64 * self.geometry.memory_block
    }

    /// Unplugs the next big block of the pass, if possible.
    pub(crate) fn unplug(&mut self, cx: &mut Context<'_, '_, impl Platform>, _subs: u64) -> Result {
        let mut pass = self.pass.take().unwrap_or_else(|| {
            cx.owners.begin_pass();
            Pass { number: 0, end: self.blocks.states.used(), stuck: None }
        });
        let before = pass;
        let Some(unit) = self.next_of(cx, &mut pass) else { return Err(pass.stuck.unwrap_or(Stop::IN_USE)) };
        self.pass = Some(before);
        cx.link.heed()?;
        self.pass = Some(pass);
        let zone = cx.added_blocks(unit).find_map(|(_, zone)| zone).unwrap_or(Zone::Movable);
        let walker = cx.hotplug.engine().walker()?;
        let done = if cx.owners.refusals.stands(&walker, unit, 0) {
            Err(Stop::PINNED)
        } else {
            // Once it is offline it is about to be removed, and the next clean-up goes on after an error.
            self.take_offline(cx, unit).and_then(|()| self.remove(cx, unit))
        };
        if let Err(stuck) = done
            && (stuck.is_stuck() || stuck == Stop::NO_ROOM)
        {
            cx.owners.note_stuck(zone, stuck);
            pass.stuck = Some(stuck);
            self.pass = Some(pass);
            if stuck.is_stuck() {
                return Ok(());
            }
        }
        done
    }

    /// The next big block of the passes. Each belongs to one of them.
    fn next_of(&self, cx: &Context<'_, '_, impl Platform>, pass: &mut Pass) -> Option<u64> {
        while pass.number < PASSES {
            let Some(unit) = self.blocks.states.last(pass.end, BigState::Added) else {
                (pass.number, pass.end) = (pass.number + 1, self.blocks.states.used());
                continue;
            };
            pass.end = unit;
            let of_block = |(_, zone)| match zone {
                None => 0,
                Some(Zone::Movable) => 1,
                Some(Zone::Normal) => 2,
            };
            let number = cx.added_blocks(unit).map(of_block).max().unwrap_or(0);
            if pass.number == number && (self.unplug_online || number == 0) {
                return Some(unit);
            }
        }
        None
    }

    /// Takes all memory blocks of a big block offline, or none: those that cannot go back online at once are owed.
    fn take_offline(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result {
        // Which blocks are online where, for the way back, and room to owe all of them.
        let mut online: Vec<(BlockId, Zone)> = Vec::new();
        let count = self.geometry.blocks_per_unit();
        online.try_reserve_exact(count as usize).map_err(|_| Stop::NO_MEMORY)?;
        cx.adder.reserve(count)?;
        online.extend(cx.added_blocks(unit).filter_map(|(block, zone)| Some((block, zone?))));
        self.blocks.states.set(unit, BigState::FakeOffline);
        for (done, &(block, _)) in online.iter().enumerate() {
            // In one piece, or not at all.
            cx.owners.questions.left = u64::MAX;
            if let Err(error) = cx.offline(block) {
                self.blocks.states.set(unit, BigState::Added);
                let back = online.iter().take(done).rev();
                cx.adder.owed.extend(back.map(|&(block, zone)| (block, OnlineTo::Zone(zone))));
                while cx.adder.bring_online(cx.hotplug) == Ok(true) {}
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn remove_blocks(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result {
        for block in self.geometry.memory_blocks(unit) {
            if cx.hotplug.block(block).is_some() {
                cx.hotplug.remove(block)?;
            }
        }
        Ok(())
    }

    /// Removes a big block that is all offline, and gives it back to the host.
    fn remove(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result {
        self.remove_blocks(cx, unit)?;
        self.blocks.states.set(unit, BigState::Plugged);
        cx.owners.refusals.forget(unit);
        self.change(cx, RequestType::Unplug, unit)
    }

    /// Finishes what failed half-way: a big block that is plugged but not added, or about to be removed. Whether there was
    /// one.
    pub(crate) fn clean_up(&mut self, cx: &mut Context<'_, '_, impl Platform>) -> Result<bool> {
        let states = &self.blocks.states;
        let half_way = [BigState::Plugged, BigState::FakeOffline];
        if half_way.into_iter().all(|state| states.count(state) == 0) {
            return Ok(false);
        }
        let found = half_way.into_iter().filter_map(|state| states.first(states.used(), state)).min();
        let Some(unit) = found else { return Ok(false) };
        if cx.added_blocks(unit).any(|(_, zone)| zone.is_some()) {
            // A panic of an owner ended the removal: it is as before.
            states.set(unit, BigState::Added);
        } else {
            self.remove(cx, unit)?;
        }
        Ok(true)
    }

    /// Asks the device what is plugged of `unit`, and makes the machine agree with it.
    pub(crate) fn settle(&mut self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result<bool> {
        let bytes = self.geometry.unit_bytes(unit..unit + 1);
        let is_added = cx.added_blocks(unit).next().is_some();
        let state = match (cx.link.state(bytes.clone())?, is_added) {
            (PlugState::Plugged, true) => BigState::Added,
            (PlugState::Plugged, false) => BigState::Plugged,
            (PlugState::Unplugged, false) => BigState::Unused,
            (PlugState::Mixed, false) => {
                cx.link.change_rest(RequestType::Unplug, bytes)?;
                BigState::Unused
            }
            // In use without memory behind all of it, which the device must not do. It is taken out of use, or failing that
            // the device is asked for the memory again.
            (_, true) => {
                let settling = cx.gate.begin_settling();
                let done = self.take_offline(cx, unit).and_then(|()| self.remove_blocks(cx, unit));
                drop(settling);
                let (kind, state) = match done {
                    Ok(()) => (RequestType::Unplug, BigState::Unused),
                    Err(_) => (RequestType::Plug, BigState::Added),
                };
                cx.link.change_rest(kind, bytes)?;
                state
            }
        };
        self.blocks.states.set(unit, state);
        Ok(true)
    }
}
