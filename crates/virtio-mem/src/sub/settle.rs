//! Settling a memory block in sub-block mode: the device is asked what is plugged of it, and the machine made to agree.

use pagefold_engine::{BlockState, Platform};
use pagefold_virtio_mem_spec::{PlugState, RequestType};

use crate::context::Context;
use crate::stop::{Result, Stop};
use crate::sub::state::SubState;
use crate::sub::{Progress, STEP_RUNS, SubMode};

impl SubMode {
    /// Settles `unit`, some sub-blocks at a time. Whether that is done.
    pub(crate) fn settle(&mut self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result<bool> {
        let done = self.settle_some(cx, unit);
        if !matches!(done, Ok(false) | Err(Stop::Spent)) {
            // It is done; or what was asked for may have happened or not, so it begins again.
            self.settling = None;
        }
        done
    }

    fn settle_some(&mut self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result<bool> {
        let all = self.geometry.per_unit();
        let mut settling = match self.settling {
            Some(settling) if settling.unit == unit => settling,
            _ => {
                let state = cx.link.state(self.geometry.bytes(unit, 0..all))?;
                let is_plugged = (state != PlugState::Mixed).then_some(state == PlugState::Plugged);
                Progress { unit, next: 0, is_plugged }
            }
        };
        let info = cx.hotplug.block(self.block(unit));
        let zone = info.filter(|info| info.state == BlockState::Online).map(|info| info.zone);
        for sub in settling.next..all.min(settling.next + STEP_RUNS) {
            self.settling = Some(settling);
            self.settle_sub_block(cx, unit, sub, settling.is_plugged, zone.is_some())?;
            settling.next = sub + 1;
            if cx.owners.questions.asked > 0 {
                break;
            }
        }
        self.settling = Some(settling);
        if settling.next < all {
            return Ok(false);
        }
        let state = match info {
            None if self.blocks.plugged_in(unit) == 0 => SubState::Unused,
            None => SubState::Plugged,
            Some(_) => SubState::added(zone, self.blocks.is_full(unit)),
        };
        self.blocks.states.set(unit, state);
        Ok(true)
    }

    fn settle_sub_block(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        unit: u64,
        sub: u64,
        is_plugged: Option<bool>,
        is_online: bool,
    ) -> Result {
        let subs = sub..sub + 1;
        let is_plugged = match is_plugged {
            Some(is_plugged) => is_plugged,
            None => self.settle_mixed(cx, unit, sub)?,
        };
        let pages = self.geometry.pages(unit, subs.clone());
        let is_out = is_online && cx.hotplug.is_fake_offline(pages.clone())?;
        match (is_plugged, is_out) {
            (true, true) => {
                // Plugged, but not in use: into use, or back to the host.
                self.blocks.set_plugged(unit, subs.clone(), true);
                if let Err(error) = cx.hotplug.fake_online(pages) {
                    // If neither works, the reason is that of the first.
                    return self.change(cx, RequestType::Unplug, unit, subs).map_err(|_| error.into());
                }
            }
            // In use without memory behind it, which the device must not do. Owners cannot copy from there, but what they
            // have elsewhere goes on: it is taken out of use, or failing that the device is asked for the memory again.
            (false, false) if is_online => {
                // All of the sub-block in this step, and no other.
                cx.owners.questions.left = u64::MAX;
                match cx.fake_offline(pages) {
                    Ok(()) => self.blocks.set_plugged(unit, subs, false),
                    Err(_) => self.change(cx, RequestType::Plug, unit, subs)?,
                }
            }
            _ => self.blocks.set_plugged(unit, subs, is_plugged),
        }
        Ok(())
    }

    /// Whether a sub-block is plugged. One that is plugged in part is of no use: the rest of it is unplugged.
    fn settle_mixed(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64, sub: u64) -> Result<bool> {
        let bytes = self.geometry.bytes(unit, sub..sub + 1);
        let state = cx.link.state(bytes.clone())?;
        if state == PlugState::Mixed {
            cx.link.change_rest(RequestType::Unplug, bytes)?;
        }
        Ok(state == PlugState::Plugged)
    }
}
