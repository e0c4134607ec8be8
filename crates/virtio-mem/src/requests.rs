//! Requests to the device: how many at a time, what their answers lead to, and what is done about the first half when the
//! second one fails.

use core::ops::Range;

use pagefold_virtio_mem_spec::{BlockState, Request, RequestType};

use crate::channel::{Answer, Channel, interpret};
use crate::driver::{Driver, Trouble};

/// Requests of one step before a question ends it, to be gone on with in the next one. A device that says "some are
/// plugged, some are not" of every range would be asked about each of its blocks otherwise.
pub(crate) const STEP_REQUESTS: u32 = 512;

/// A request that failed.
struct Failed {
    trouble: Trouble,
    /// It is as if nothing had been asked.
    nothing_changed: bool,
}

impl<C: Channel> Driver<'_, C> {
    fn ask_once(&mut self, kind: RequestType, addr: u64, blocks: u16) -> Result<Answer, Trouble> {
        self.requests_left = self.requests_left.saturating_sub(1);
        let response = self.channel.request(Request::new(kind, addr, blocks)).map_err(Trouble::Channel)?;
        Ok(interpret(kind, &response))
    }

    /// A plain request, of any number of device blocks. If one of its parts fails, those before it are undone.
    fn ask(&mut self, kind: RequestType, bytes: Range<u64>) -> Result<(), Failed> {
        let block = self.geometry.device_block;
        let most = block * u64::from(u16::MAX);
        let mut addr = bytes.start;
        while addr < bytes.end {
            let end = bytes.end.min(addr.saturating_add(most));
            // At most u16::MAX by the line above.
            let blocks = ((end - addr) / block) as u16;
            let failed = match self.ask_once(kind, addr, blocks) {
                Ok(Answer::Ack) => None,
                Ok(Answer::Nack) => Some(Trouble::Nack),
                Ok(Answer::Busy) => Some(Trouble::DeviceBusy),
                Ok(Answer::Error) => Some(Trouble::DeviceError),
                Ok(Answer::State(_) | Answer::Malformed) => Some(Trouble::Malformed),
                Err(trouble) => Some(trouble),
            };
            if let Some(trouble) = failed {
                let undo = match kind {
                    RequestType::Plug => RequestType::Unplug,
                    _ => RequestType::Plug,
                };
                let is_clear = matches!(trouble, Trouble::Nack | Trouble::DeviceBusy);
                // Where that fails too, the device is asked what came of it all.
                let is_undone = addr == bytes.start || self.ask(undo, bytes.start..addr).is_ok();
                return Err(Failed { trouble, nothing_changed: is_clear && is_undone });
            }
            addr = end;
        }
        Ok(())
    }

    /// As [`ask`](Self::ask), for sub-blocks of a unit: if it is not clear what came of it, the unit is in doubt.
    fn ask_about(&mut self, kind: RequestType, unit: u64, subs: &Range<u64>) -> Result<(), Trouble> {
        let bytes = self.geometry.address(unit, subs.start)..self.geometry.address(unit, subs.end);
        self.ask(kind, bytes).map_err(|failed| {
            if !failed.nothing_changed {
                self.doubt_unit(unit);
            }
            failed.trouble
        })
    }

    /// Plugs sub-blocks, and notes it.
    pub(crate) fn plug(&mut self, unit: u64, subs: Range<u64>) -> Result<(), Trouble> {
        self.ask_about(RequestType::Plug, unit, &subs)?;
        self.tracking.set_plugged(unit, subs, true);
        Ok(())
    }

    /// Unplugs sub-blocks, and notes it.
    pub(crate) fn unplug(&mut self, unit: u64, subs: Range<u64>) -> Result<(), Trouble> {
        self.ask_about(RequestType::Unplug, unit, &subs)?;
        self.tracking.set_plugged(unit, subs, false);
        Ok(())
    }

    /// Unplugs everything. What may be plugged at all may have changed with it, and no interrupt tells of that.
    pub(crate) fn unplug_all(&mut self) -> Result<(), Trouble> {
        self.reads_again = true;
        match self.ask_once(RequestType::UnplugAll, 0, 0)? {
            Answer::Ack => Ok(()),
            Answer::Busy => Err(Trouble::DeviceBusy),
            Answer::Error => Err(Trouble::DeviceError),
            Answer::Nack | Answer::State(_) | Answer::Malformed => Err(Trouble::Malformed),
        }
    }

    /// What the device says of `bytes`.
    pub(crate) fn ask_state(&mut self, bytes: Range<u64>) -> Result<BlockState, Trouble> {
        let block = self.geometry.device_block;
        let most = block * u64::from(u16::MAX);
        if self.requests_left == 0 {
            return Err(Trouble::Spent);
        }
        let mut found = None;
        let mut addr = bytes.start;
        while addr < bytes.end {
            let end = bytes.end.min(addr.saturating_add(most));
            let state = match self.ask_once(RequestType::State, addr, ((end - addr) / block) as u16)? {
                Answer::State(state) => state,
                Answer::Error => return Err(Trouble::DeviceError),
                _ => return Err(Trouble::Malformed),
            };
            if state == BlockState::Mixed || found.is_some_and(|found| found != state) {
                return Ok(BlockState::Mixed);
            }
            found = Some(state);
            addr = end;
        }
        Ok(found.unwrap_or(BlockState::Unplugged))
    }

    /// Unplugs whatever is plugged of `bytes`, halving until each piece is all one or all the other. What was done stays
    /// done when it fails, and is found out when it is tried again.
    pub(crate) fn unplug_pieces(&mut self, bytes: Range<u64>) -> Result<(), Trouble> {
        match self.ask_state(bytes.clone())? {
            BlockState::Unplugged => Ok(()),
            BlockState::Plugged => self.ask(RequestType::Unplug, bytes).map_err(|failed| failed.trouble),
            BlockState::Mixed => {
                let [first, second] = self.halves(&bytes)?;
                self.unplug_pieces(first)?;
                self.unplug_pieces(second)
            }
        }
    }

    /// Plugs whatever is not plugged of `bytes`.
    pub(crate) fn plug_pieces(&mut self, bytes: Range<u64>) -> Result<(), Trouble> {
        match self.ask_state(bytes.clone())? {
            BlockState::Plugged => Ok(()),
            BlockState::Unplugged => self.ask(RequestType::Plug, bytes).map_err(|failed| failed.trouble),
            BlockState::Mixed => {
                let [first, second] = self.halves(&bytes)?;
                self.plug_pieces(first)?;
                self.plug_pieces(second)
            }
        }
    }

    /// A device may call a single block mixed; then there is no half of it to ask about.
    fn halves(&self, bytes: &Range<u64>) -> Result<[Range<u64>; 2], Trouble> {
        let block = self.geometry.device_block;
        let blocks = (bytes.end - bytes.start) / block;
        if blocks < 2 {
            return Err(Trouble::Malformed);
        }
        let middle = bytes.start + blocks / 2 * block;
        Ok([bytes.start..middle, middle..bytes.end])
    }
}
