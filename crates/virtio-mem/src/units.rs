//! The units of a device in either mode, and what a step does with them.

use alloc::sync::Arc;

use pagefold_engine::hotplug::Listener;
use pagefold_engine::{OutOfMemory, Platform};

use crate::big::BigMode;
use crate::context::Context;
use crate::gate::Gate;
use crate::geometry::{Geometry, Mode};
use crate::stop::Result;
use crate::sub::SubMode;
use crate::sub::state::SubState;

pub(crate) enum Units {
    /// Units are memory blocks, plugged by sub-blocks.
    Sub(SubMode),
    /// Units are big blocks, plugged as a whole.
    Big(BigMode),
}

/// The same for either mode.
macro_rules! in_mode {
    ($units:expr, $mode:ident => $what:expr) => {
        match $units {
            Units::Sub($mode) => $what,
            Units::Big($mode) => $what,
        }
    };
}

impl Units {
    pub(crate) fn new(geometry: Geometry, gate: Arc<Gate>, unplug_online: bool) -> Result<Self, OutOfMemory> {
        Ok(match geometry.mode {
            Mode::SubBlock { .. } => Units::Sub(SubMode::new(geometry, gate, unplug_online)?),
            Mode::BigBlock { .. } => Units::Big(BigMode::new(geometry, gate, unplug_online)?),
        })
    }

    /// What watches over the memory of the units.
    pub(crate) fn listener<'e>(&self) -> Arc<dyn Listener + 'e> {
        in_mode!(self, mode => Arc::clone(&mode.blocks) as _)
    }

    /// Bytes that are plugged, by the driver's count.
    pub(crate) fn plugged_bytes(&self) -> u64 {
        in_mode!(self, mode => mode.blocks.plugged_bytes())
    }

    /// All units from this one on are unused.
    pub(crate) fn used(&self) -> u64 {
        in_mode!(self, mode => mode.blocks.states.used())
    }

    /// Whether `unit` is plugged or added, in part or as a whole.
    pub(crate) fn is_used(&self, unit: u64) -> bool {
        in_mode!(self, mode => mode.blocks.states.is_used(unit))
    }

    /// Whether `unit` is added and offline, and has parts without memory.
    pub(crate) fn has_offline_holes(&self, unit: u64) -> bool {
        matches!(self, Units::Sub(mode) if mode.blocks.states.get(unit) == SubState::OfflinePartial)
    }

    /// The next unplugging begins a new pass.
    pub(crate) fn end_pass(&mut self) {
        in_mode!(self, mode => mode.pass = None);
    }

    /// Plugs up to `subs` sub-blocks of one unit: a big block in big-block mode.
    pub(crate) fn plug(&mut self, cx: &mut Context<'_, '_, impl Platform>, subs: u64) -> Result {
        in_mode!(self, mode => mode.plug(cx, subs))
    }

    /// Unplugs up to `subs` sub-blocks (big blocks) of what the pass looks at next, where possible.
    pub(crate) fn unplug(&mut self, cx: &mut Context<'_, '_, impl Platform>, subs: u64) -> Result {
        in_mode!(self, mode => mode.unplug(cx, subs))
    }

    /// Asks the device what is plugged of `unit`, and makes the machine agree with it, some sub-blocks at a time. Whether
    /// that is done.
    pub(crate) fn settle(&mut self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result<bool> {
        in_mode!(self, mode => mode.settle(cx, unit))
    }

    /// Finishes what failed half-way: a unit that is plugged but not added, or about to be removed. Whether there was one.
    pub(crate) fn clean_up(&mut self, cx: &mut Context<'_, '_, impl Platform>) -> Result<bool> {
        in_mode!(self, mode => mode.clean_up(cx))
    }

    /// Removes a unit that stayed added with nothing plugged. Whether there was one.
    pub(crate) fn remove_empty(&mut self, cx: &mut Context<'_, '_, impl Platform>) -> Result<bool> {
        match self {
            Units::Sub(mode) => mode.remove_empty(cx),
            Units::Big(_) => Ok(false),
        }
    }
}
