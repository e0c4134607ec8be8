//! How a driver ends, or rests for longer: suspend, and going away.

use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;

use pagefold_engine::Platform;
use pagefold_engine::geometry::PAGE_SHIFT;
use pagefold_engine::hotplug::{BlockId, Hotplug, Listener};
use pagefold_virtio_mem_spec::Features;

use crate::channel::{Channel, ChannelError};
use crate::config::Mode;
use crate::driver::Driver;
use crate::state::SubState;
use crate::sync::RELAXED;

/// How deep a machine is about to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Suspend-to-idle: the device keeps running.
    Idle,
    /// Suspend-to-RAM.
    Ram,
    /// Hibernation.
    Disk,
}

/// Why it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendError {
    /// Memory is plugged, and the device does not promise to keep it ([`Features::PERSISTENT_SUSPEND`]). Shrink to
    /// nothing first.
    Plugged,
    /// Plugged memory never survives hibernation.
    Hibernation,
}

impl fmt::Display for SuspendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SuspendError::Plugged => "virtio-mem memory is plugged and would be lost: unplug it first",
            SuspendError::Hibernation => "virtio-mem does not survive hibernation",
        })
    }
}
impl core::error::Error for SuspendError {}

/// What a driver left behind.
#[derive(Debug)]
#[must_use = "what remains is handed over to the next driver, or kept"]
pub enum Removed<'e> {
    /// Nothing: its memory is out of the machine.
    Clean,
    /// Its memory is still in use. It stays as it is; its blocks can no longer change their state, so that no hole in them
    /// can come online, until the next driver of the device takes them over.
    InUse(Remains<'e>),
}

/// The listener that watches over memory that has lost its driver.
pub struct Remains<'e>(Arc<dyn Listener + 'e>);

impl<'e> Remains<'e> {
    /// Ends the watch, for a driver that is probed next, before anything else happens to the memory.
    pub fn hand_over<P: Platform>(self, hotplug: &mut Hotplug<'e, P>) {
        hotplug.unlisten(&self.0);
    }
}

impl fmt::Debug for Remains<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remains").finish_non_exhaustive()
    }
}

/// A driver that is dropped, rather than [removed](Driver::remove_driver), leaves its memory as it is, for good.
impl<C: Channel> Drop for Driver<'_, C> {
    fn drop(&mut self) {
        self.tracking.closed.store(true, RELAXED);
    }
}

impl<'e, C: Channel> Driver<'e, C> {
    /// Whether the machine may sleep that deep. Ask before every sleep.
    ///
    /// # Errors
    /// [`SuspendError`].
    pub fn may_sleep(&self, sleep: Sleep) -> Result<(), SuspendError> {
        let keeps = self.channel.features().contains(Features::PERSISTENT_SUSPEND);
        let is_plugged = self.tracking.plugged_bytes() > 0 || self.limits.plugged > 0;
        match sleep {
            Sleep::Idle => Ok(()),
            Sleep::Disk => Err(SuspendError::Hibernation),
            Sleep::Ram if is_plugged && !keeps => Err(SuspendError::Plugged),
            Sleep::Ram => Ok(()),
        }
    }

    /// Goes on over `channel` after the machine has slept, or after its transport was made anew. The old channel goes
    /// first, which resets the device; then the new one sets it up again, whatever it had set up before. Where the
    /// transport outlives the sleep there is [`restart`](Self::restart).
    ///
    /// A device keeps its blocks over its own reset; over a sleep it does if [`may_sleep`](Self::may_sleep) said yes. If it
    /// has not, its plugged size says so, and the driver asks it about every block.
    ///
    /// # Errors
    /// [`ChannelError`]: the device cannot be talked to yet. The driver is as before otherwise, and tries again by itself.
    pub fn resume(&mut self, channel: C) -> Result<(), ChannelError> {
        drop(core::mem::replace(&mut self.channel, channel));
        self.restart()
    }

    /// Sets the device up again over the channel there is, after a sleep in which it was reset.
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub fn restart(&mut self) -> Result<(), ChannelError> {
        self.is_stale = true;
        self.pass = None;
        self.channel.restart()
    }

    /// Ends the driver. Blocks that are added but offline are removed; memory in use stays in use. `hotplug` is that of
    /// the machine the driver was probed for; on any other nothing is done.
    pub fn remove_driver<P: Platform>(self, hotplug: &mut Hotplug<'e, P>) -> Removed<'e> {
        if !self.is_of(hotplug.engine()) {
            return Removed::InUse(Remains(Arc::clone(&self.listener)));
        }
        for unit in 0..self.tracking.next() {
            let is_offline = matches!(self.geometry.mode, Mode::SubBlock { .. })
                && self.tracking.sub_state(unit) == SubState::OfflinePartial;
            // Nobody may bring its holes online once we are gone.
            for block in self.geometry.memory_blocks(unit).filter(|_| is_offline) {
                if hotplug.remove(BlockId(block)).is_err() {
                    // It is found right below, and the listener stays for it.
                    break;
                }
            }
        }
        let is_added = (0..self.tracking.next()).any(|unit| {
            self.geometry.memory_blocks(unit).any(|block| hotplug.block(BlockId(block)).is_some())
        });
        if is_added {
            // The listener stays, and refuses.
            return Removed::InUse(Remains(Arc::clone(&self.listener)));
        }
        hotplug.unlisten(&self.listener);
        Removed::Clean
    }

    /// Pages of the region, for whoever wants to know whose a page is.
    pub fn pages(&self) -> Range<u64> {
        self.region.addr >> PAGE_SHIFT..(self.region.addr + self.region.size) >> PAGE_SHIFT
    }
}
