//! Sub-block mode: parts of memory blocks are plugged and unplugged. Here is what plugging, unplugging and settling share.

pub(crate) mod blocks;
mod plug;
mod settle;
pub(crate) mod state;
mod unplug;

use alloc::sync::Arc;
use core::ops::Range;

use pagefold_engine::hotplug::BlockId;
use pagefold_engine::{OutOfMemory, Platform};
use pagefold_virtio_mem_spec::RequestType;

use crate::context::Context;
use crate::gate::Gate;
use crate::geometry::Geometry;
use crate::stop::{Result, Stop};
use blocks::SubBlocks;
use state::{SubState, Trigger};

/// Runs of sub-blocks of one memory block that one step plugs, settles or cleans up at most, which bounds its requests.
const STEP_RUNS: u64 = 64;

/// The driver's half of sub-block mode; the listener has the other one.
pub(crate) struct SubMode {
    pub(crate) blocks: Arc<SubBlocks>,
    geometry: Geometry,
    /// Whether to unplug memory that is online.
    unplug_online: bool,
    /// How far the current pass of unplugging is.
    pub(crate) pass: Option<Pass>,
    /// How far settling the unit in doubt is.
    settling: Option<Progress>,
}

/// A pass over all memory blocks, state by state, from high to low, some of them in each step.
#[derive(Clone, Copy)]
pub(crate) struct Pass {
    /// Index of what is looked for.
    order: usize,
    /// Sub-blocks from here on have been looked at, counted through all units.
    end: u64,
    /// Sub-blocks that the next window spans, if that is more than are wanted.
    span: u64,
    /// The sub-block at which no question to owners was left, and how often that was so.
    paused: Option<(u64, u64)>,
    /// Why something that was looked at stayed plugged.
    stuck: Option<Stop>,
}

/// How far settling a unit is.
#[derive(Clone, Copy)]
struct Progress {
    unit: u64,
    /// Sub-blocks below are settled.
    next: u64,
    /// Whether the unit is plugged, by what the device says of all of it; `None` if its parts differ.
    is_plugged: Option<bool>,
}

impl SubMode {
    pub(crate) fn new(geometry: Geometry, gate: Arc<Gate>, unplug_online: bool) -> Result<Self, OutOfMemory> {
        let blocks = Arc::new(SubBlocks::new(geometry, gate)?);
        Ok(Self { blocks, geometry, unplug_online, pass: None, settling: None })
    }

    /// The memory block that `unit` is.
    fn block(&self, unit: u64) -> BlockId {
        BlockId(self.geometry.unit_bytes(unit..unit + 1).start / self.geometry.memory_block)
    }

    /// Plugs or unplugs sub-blocks, and records it.
    fn change(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        kind: RequestType,
        unit: u64,
        subs: Range<u64>,
    ) -> Result {
        cx.change(kind, unit..unit + 1, self.geometry.bytes(unit, subs.clone()))?;
        self.blocks.set_plugged(unit, subs, kind == RequestType::Plug);
        Ok(())
    }

    /// Corrects the state of `unit` after some of its sub-blocks were plugged or unplugged.
    fn sync_full(&self, unit: u64) {
        let is_full = self.blocks.is_full(unit);
        if is_full != self.blocks.states.get(unit).is_full() {
            self.blocks.apply(unit, if is_full { Trigger::Fully } else { Trigger::Partly });
        }
    }

    /// Unplugs a memory block that is plugged and not added, since adding it failed. Whether there was one.
    pub(crate) fn clean_up(&mut self, cx: &mut Context<'_, '_, impl Platform>) -> Result<bool> {
        let states = &self.blocks.states;
        if states.count(SubState::Plugged) == 0 {
            return Ok(false);
        }
        let Some(unit) = states.first(states.used(), SubState::Plugged) else { return Ok(false) };
        for _ in 0..STEP_RUNS {
            let Some(run) = self.blocks.run(unit, 0, true) else {
                self.blocks.apply(unit, Trigger::Gone);
                break;
            };
            self.change(cx, RequestType::Unplug, unit, run)?;
        }
        Ok(true)
    }
}
