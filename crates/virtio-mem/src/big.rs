//! Big-block mode: whole memory blocks are plugged and unplugged, several at a time. Here is all of it but unplugging.

pub(crate) mod blocks;
mod unplug;

use alloc::sync::Arc;
use core::ops::Range;

use pagefold_engine::{OutOfMemory, Platform};
use pagefold_virtio_mem_spec::{PlugState, RequestType};

use crate::context::Context;
use crate::gate::Gate;
use crate::geometry::Geometry;
use crate::status::Shortfall;
use crate::stop::{Result, Stop};
use blocks::{BigBlocks, BigState};

/// The driver's half of big-block mode; the listener has the other one.
pub(crate) struct BigMode {
    pub(crate) blocks: Arc<BigBlocks>,
    geometry: Geometry,
    /// Whether to unplug memory that is online.
    unplug_online: bool,
    /// How far unplugging is.
    pub(crate) pass: Option<Pass>,
}

/// A pass over all big blocks, kind by kind, from high to low.
#[derive(Clone, Copy)]
pub(crate) struct Pass {
    /// Index of what is looked for.
    order: usize,
    /// Units from here on have been looked at.
    end: u64,
    /// Units that the next window spans, if that is more than are wanted.
    span: u64,
    /// Why a big block that was looked at stayed plugged.
    stuck: Option<Stop>,
}

impl BigMode {
    pub(crate) fn new(geometry: Geometry, gate: Arc<Gate>, unplug_online: bool) -> Result<Self, OutOfMemory> {
        let blocks = Arc::new(BigBlocks::new(geometry, gate)?);
        Ok(Self { blocks, geometry, unplug_online, pass: None })
    }

    /// Plugs or unplugs `units`, which are not added.
    fn change(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        kind: RequestType,
        units: Range<u64>,
    ) -> Result {
        cx.change(kind, units.clone(), self.geometry.unit_bytes(units.clone()))?;
        let state = if kind == RequestType::Plug { BigState::Plugged } else { BigState::Unused };
        units.for_each(|unit| self.blocks.states.set(unit, state));
        Ok(())
    }

    /// Plugs one big block, adds it, and brings it online if the driver does so.
    pub(crate) fn plug(&mut self, cx: &mut Context<'_, '_, impl Platform>, _subs: u64) -> Result {
        let usable = self.geometry.usable_units(cx.link.limits.usable);
        let unit = self.blocks.states.first_unused(usable).ok_or(Shortfall::NoSpace)?;
        if cx.adder.online.is_none()
            && self.offline_bytes(cx) + self.geometry.unit() > self.geometry.offline_limit()
        {
            return Err(Shortfall::OfflineLimit.into());
        }
        cx.adder.reserve(self.geometry.blocks_per_unit())?;
        self.change(cx, RequestType::Plug, unit..unit + 1)?;
        if let Err(error) = cx.add(self.geometry.pages(unit, 0..1)) {
            // If the device refuses this too, the next clean-up tries again.
            let _ = self.change(cx, RequestType::Unplug, unit..unit + 1);
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
        match self.remove(cx, unit) {
            Ok(()) => self.change(cx, RequestType::Unplug, unit..unit + 1)?,
            // It is in use again.
            Err(stuck) if stuck.is_stuck() && states.get(unit) == BigState::Added => {}
            Err(stop) => return Err(stop),
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
                let done = self.remove(cx, unit);
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
