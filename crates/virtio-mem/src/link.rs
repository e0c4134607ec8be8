//! The driver's link to its device: the config space as it was last read, and requests: the list of them for a range, what
//! the answers mean for the driver, and the way back when one of them fails.

use core::ops::Range;

use pagefold_virtio_mem_spec::{PlugState, Request, RequestType};

use crate::channel::{Channel, Reply, interpret};
use crate::config::{ConfigError, Limits, Region, check};
use crate::geometry::Geometry;
use crate::status::Shortfall;
use crate::stop::{Result, Stop};

/// Requests of one step before a question ends it, to be gone on with in the next one. A device that calls every range
/// mixed would be asked about each of its blocks otherwise.
pub(crate) const STEP_REQUESTS: u32 = 512;

/// A list of requests that failed.
pub(crate) struct Failed {
    pub(crate) stop: Stop,
    /// The device's blocks are as they were before the first request.
    pub(crate) nothing_changed: bool,
}

/// The requests for `bytes`, in device blocks of `block` bytes, in ascending order. One request names at most 65,535 of
/// them.
fn requests(kind: RequestType, bytes: Range<u64>, block: u64) -> impl Iterator<Item = Request> {
    let most = block.saturating_mul(u16::MAX.into());
    let mut start = bytes.start;
    core::iter::from_fn(move || {
        if start >= bytes.end {
            return None;
        }
        let end = bytes.end.min(start.saturating_add(most));
        // At most u16::MAX by the line above.
        let request = Request::new(kind, start, ((end - start) / block) as u16);
        start = end;
        Some(request)
    })
}

/// One device. The channel comes last, so that a link to any channel is a `Link<dyn Channel>` for what a step calls.
pub(crate) struct Link<C: ?Sized> {
    pub(crate) region: Region,
    pub(crate) geometry: Geometry,
    pub(crate) limits: Limits,
    /// The config space has to be read before anything rests on `limits`.
    pub(crate) is_stale: bool,
    /// The current step did something that may have changed the config space.
    pub(crate) reads_again: bool,
    /// Requests of the current step before [`Stop::Spent`].
    pub(crate) requests_left: u32,
    pub(crate) channel: C,
}

impl<C> Link<C> {
    pub(crate) fn new(channel: C, region: Region, geometry: Geometry, limits: Limits) -> Self {
        Self { channel, region, geometry, limits, is_stale: true, reads_again: false, requests_left: 0 }
    }
}

impl<C: Channel + ?Sized> Link<C> {
    /// Reads the config space if the device has said that it changed, or if it is stale. Whether it was read.
    pub(crate) fn refresh(&mut self) -> Result<bool> {
        // The flag first: a change that comes after it sets it again.
        let is_due = self.channel.config_changed() || self.is_stale;
        if is_due {
            self.read_config()?;
        }
        Ok(is_due)
    }

    /// [`Stop::NewWish`] if the host has changed the requested size. An interrupt alone does not say so: a device may send
    /// as many as it likes.
    pub(crate) fn heed(&mut self) -> Result {
        if !self.channel.config_changed() {
            return Ok(());
        }
        let before = self.limits.requested;
        self.read_config()?;
        if self.limits.requested == before { Ok(()) } else { Err(Stop::NewWish) }
    }

    fn read_config(&mut self) -> Result {
        let config = self.channel.config().map_err(Shortfall::Channel)?;
        let (region, limits) = check(&config).map_err(Shortfall::Config)?;
        for (field, now, before) in [
            ("block size", region.block_size, self.region.block_size),
            ("address", region.addr, self.region.addr),
            ("region size", region.size, self.region.size),
        ] {
            if now != before {
                return Err(Shortfall::Config(ConfigError::Changed(field)).into());
            }
        }
        self.limits = limits;
        Ok(())
    }

    fn reply(&mut self, kind: RequestType, request: Request) -> Result<Reply> {
        self.requests_left = self.requests_left.saturating_sub(1);
        let response = self.channel.request(request).map_err(Shortfall::Channel)?;
        Ok(interpret(kind, &response))
    }

    /// Makes a request that is answered by an acknowledgement alone.
    fn acknowledged(&mut self, kind: RequestType, request: Request) -> Result {
        Err(match self.reply(kind, request)? {
            Reply::Ack => return Ok(()),
            Reply::Nack => Stop::Nack,
            Reply::Busy => Shortfall::DeviceBusy.into(),
            Reply::Error => Shortfall::DeviceError.into(),
            Reply::State(_) | Reply::Malformed => Shortfall::Malformed.into(),
        })
    }

    /// Plugs or unplugs `bytes`. If one request of the list fails, those before it are undone.
    pub(crate) fn change(&mut self, kind: RequestType, bytes: Range<u64>) -> Result<(), Failed> {
        for request in requests(kind, bytes.clone(), self.geometry.device_block) {
            let Err(stop) = self.acknowledged(kind, request) else { continue };
            let undo = match kind {
                RequestType::Plug => RequestType::Unplug,
                _ => RequestType::Plug,
            };
            let is_clear = matches!(stop, Stop::Nack | Stop::Short(Shortfall::DeviceBusy));
            let done = bytes.start..request.addr.get();
            // Where that fails too, the driver asks the device for the state of the range.
            let is_undone = done.is_empty() || self.change(undo, done).is_ok();
            return Err(Failed { stop, nothing_changed: is_clear && is_undone });
        }
        Ok(())
    }

    /// Unplugs everything. That may also change the usable region, and no interrupt tells of it.
    pub(crate) fn unplug_all(&mut self) -> Result {
        self.reads_again = true;
        self.acknowledged(RequestType::UnplugAll, Request::new(RequestType::UnplugAll, 0, 0))
    }

    /// The state of `bytes`, as the device says.
    pub(crate) fn state(&mut self, bytes: Range<u64>) -> Result<PlugState> {
        if self.requests_left == 0 {
            return Err(Stop::Spent);
        }
        let mut found = None;
        for request in requests(RequestType::State, bytes, self.geometry.device_block) {
            let state = match self.reply(RequestType::State, request)? {
                Reply::State(state) => state,
                Reply::Error => return Err(Shortfall::DeviceError.into()),
                _ => return Err(Shortfall::Malformed.into()),
            };
            if state == PlugState::Mixed || found.is_some_and(|found| found != state) {
                return Ok(PlugState::Mixed);
            }
            found = Some(state);
        }
        Ok(found.unwrap_or(PlugState::Unplugged))
    }

    /// Plugs or unplugs those blocks of `bytes` that are not yet, in halves until each is uniform. After an error some are
    /// done, and the next attempt finds out which.
    pub(crate) fn change_rest(&mut self, kind: RequestType, bytes: Range<u64>) -> Result {
        match (self.state(bytes.clone())?, kind) {
            (PlugState::Plugged, RequestType::Plug) | (PlugState::Unplugged, RequestType::Unplug) => Ok(()),
            (PlugState::Mixed, _) => {
                let block = self.geometry.device_block;
                let blocks = (bytes.end - bytes.start) / block;
                // A device may call a single block mixed; then there is no half of it to ask about.
                if blocks < 2 {
                    return Err(Shortfall::Malformed.into());
                }
                let middle = bytes.start + blocks / 2 * block;
                self.change_rest(kind, bytes.start..middle)?;
                self.change_rest(kind, middle..bytes.end)
            }
            _ => self.change(kind, bytes).map_err(|failed| failed.stop),
        }
    }
}
