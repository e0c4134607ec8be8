//! Plugging in sub-block mode: partly plugged memory blocks first (those in the normal zone, in the movable zone, offline),
//! then unused ones, then new ones upward, so that memory and its descriptors stay together.

use pagefold_engine::Platform;
use pagefold_virtio_mem_spec::RequestType::{Plug, Unplug};

use crate::context::Context;
use crate::status::Shortfall;
use crate::stop::Result;
use crate::sub::state::{SubState, Trigger};
use crate::sub::{STEP_RUNS, SubMode};

const ORDER: [SubState; 3] = [SubState::KernelPartial, SubState::MovablePartial, SubState::OfflinePartial];

impl SubMode {
    /// Plugs up to `subs` sub-blocks, in one memory block.
    pub(crate) fn plug(&mut self, cx: &mut Context<'_, '_, impl Platform>, subs: u64) -> Result {
        let states = &self.blocks.states;
        let usable = self.geometry.usable_units(cx.link.limits.usable);
        let used = usable.min(states.used());
        for state in ORDER {
            if states.count(state) > 0
                && let Some(unit) = states.first(used, state)
            {
                return self.fill(cx, unit, subs);
            }
        }
        let unit = states.first_unused(usable).ok_or(Shortfall::NoSpace)?;
        self.plug_new(cx, unit, subs)
    }

    /// Plugs more of a memory block that is added.
    fn fill(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64, mut subs: u64) -> Result {
        let is_online = self.blocks.states.get(unit).zone().is_some();
        for _ in 0..STEP_RUNS {
            let Some(run) = self.blocks.run(unit, 0, false).filter(|_| subs > 0) else { break };
            cx.link.heed()?;
            let run = run.start..run.end.min(run.start + subs);
            subs -= run.end - run.start;
            let pages = self.geometry.pages(unit, run.clone());
            if is_online {
                // Before the request, so that a failure changes nothing.
                cx.hotplug.prepare_fake_online(pages.clone())?;
            }
            self.change(cx, Plug, unit, run.clone())?;
            if is_online && let Err(error) = cx.hotplug.fake_online(pages) {
                // It was never in use: back to the host. If the device refuses that, it is plugged and out of use, and the
                // next step settles it.
                if self.change(cx, Unplug, unit, run).is_err() {
                    cx.gate.doubt(unit..unit + 1);
                }
                return Err(error.into());
            }
            self.sync_full(unit);
        }
        Ok(())
    }

    /// Plugs the start of an unused memory block, adds it, and brings it online if the driver does so.
    fn plug_new(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64, subs: u64) -> Result {
        let states = &self.blocks.states;
        let offline = states.count(SubState::Offline) + states.count(SubState::OfflinePartial);
        if (offline + 1) * self.geometry.memory_block > self.geometry.offline_limit() {
            return Err(Shortfall::OfflineLimit.into());
        }
        let subs = subs.min(self.geometry.per_unit());
        cx.adder.reserve(1)?;
        self.change(cx, Plug, unit, 0..subs)?;
        // The state before the block is added: a listener that brings it online then exposes only what is plugged.
        self.blocks.apply(unit, Trigger::Plug { all: subs == self.geometry.per_unit() });
        let pages = self.geometry.pages(unit, 0..self.geometry.per_unit());
        if let Err(error) = cx.add(pages) {
            let unplugged = self.change(cx, Unplug, unit, 0..subs).is_ok();
            self.blocks.apply(unit, Trigger::AddFailed { unplugged });
            return Err(error);
        }
        if let Some(to) = cx.adder.online {
            cx.adder.owed.push((self.block(unit), to));
            cx.adder.bring_online(cx.hotplug)?;
        }
        Ok(())
    }
}
