//! Suspend and resume, and the end of a driver.

use alloc::sync::Arc;
use core::fmt;

use pagefold_engine::Platform;
use pagefold_engine::hotplug::{Hotplug, Listener};
use pagefold_virtio_mem_spec::Features;
use thiserror::Error;

use crate::channel::{Channel, ChannelError};
use crate::driver::Driver;

/// The kind of sleep that a machine is about to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Suspend-to-idle. The device keeps running.
    Idle,
    /// Suspend-to-RAM.
    Ram,
    /// Hibernation.
    Disk,
}

/// Why a machine must not sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SuspendError {
    /// Memory is plugged, and the device does not promise to keep it ([`Features::PERSISTENT_SUSPEND`]). Shrink to
    /// nothing first.
    #[error("virtio-mem memory is plugged and would be lost: unplug it first")]
    Plugged,
    /// Plugged memory never survives hibernation: do not hibernate a machine with a virtio-mem driver, or remove it first.
    #[error("virtio-mem does not survive hibernation")]
    Hibernation,
}

/// What a driver left behind when it ended.
#[derive(Debug)]
#[must_use = "hand `Remains` over to the next driver, or keep it"]
pub enum Removed<'e> {
    /// Nothing: all its memory is removed.
    Clean,
    /// Its memory is still in use. Its blocks stay in their states, so that no hole in them comes online, until the next
    /// driver of the device takes them over.
    InUse(Remains<'e>),
}

/// The listener on memory whose driver has ended. Dropping this changes nothing: the listener stays registered.
pub struct Remains<'e>(Arc<dyn Listener + 'e>);

impl<'e> Remains<'e> {
    /// Removes the listener. Probe the next driver right after this: until then nothing guards the memory.
    ///
    /// Context: frees heap memory.
    pub fn hand_over<P: Platform>(self, hotplug: &mut Hotplug<'e, P>) {
        hotplug.unlisten(&self.0);
    }
}

impl fmt::Debug for Remains<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remains").finish_non_exhaustive()
    }
}

/// A driver that is dropped, rather than [removed](Driver::remove_driver), leaves its memory as it is for ever.
impl<C: Channel> Drop for Driver<'_, C> {
    fn drop(&mut self) {
        self.gate.close();
    }
}

impl<'e, C: Channel> Driver<'e, C> {
    /// Whether the machine may sleep that deep. Ask before every sleep.
    ///
    /// # Errors
    /// [`SuspendError`].
    pub fn may_sleep(&self, sleep: Sleep) -> Result<(), SuspendError> {
        let keeps = self.link.channel.features().contains(Features::PERSISTENT_SUSPEND);
        let is_plugged = self.units.plugged_bytes() > 0 || self.link.limits.plugged > 0;
        match sleep {
            Sleep::Idle => Ok(()),
            Sleep::Disk => Err(SuspendError::Hibernation),
            Sleep::Ram if is_plugged && !keeps => Err(SuspendError::Plugged),
            Sleep::Ram => Ok(()),
        }
    }

    /// Continues over `channel` after a sleep, or after the transport was made again. The old channel is dropped first,
    /// which resets the device; then the new one sets it up again. Where the transport outlives the sleep, use
    /// [`restart`](Self::restart).
    ///
    /// A device keeps its blocks over its own reset, and over a sleep that [`may_sleep`](Self::may_sleep) allowed. If it has
    /// not, its plugged size says so, and the driver asks it about every block.
    ///
    /// Context: waits for the device to reset.
    ///
    /// # Errors
    /// [`ChannelError`]: the device cannot be talked to yet. The driver keeps the new channel and tries again by itself.
    pub fn resume(&mut self, channel: C) -> Result<(), ChannelError> {
        drop(core::mem::replace(&mut self.link.channel, channel));
        self.restart()
    }

    /// Sets the device up again over the same channel, after a sleep in which it was reset.
    ///
    /// Context: as of [`resume`](Self::resume).
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub fn restart(&mut self) -> Result<(), ChannelError> {
        self.link.is_stale = true;
        self.units.end_pass();
        self.link.channel.restart()
    }

    /// Ends the driver. Blocks that are added but offline and partly plugged are removed; memory in use stays in use.
    /// `hotplug` is the one that the driver was probed with; with any other nothing is done.
    ///
    /// Context: as of [`step`](Self::step), but no owner is asked. Drops the channel, so waits for the device to reset.
    pub fn remove_driver<P: Platform>(self, hotplug: &mut Hotplug<'e, P>) -> Removed<'e> {
        let geometry = self.geometry();
        let listener = Arc::clone(&self.listener);
        if !self.is_of(hotplug.engine()) {
            return Removed::InUse(Remains(listener));
        }
        // The holes of these could come online after the end of the driver.
        for unit in (0..self.units.used()).filter(|&unit| self.units.has_offline_holes(unit)) {
            for block in geometry.memory_blocks(unit) {
                // If it fails, the block is found right below, and the listener stays for it.
                let _ = hotplug.remove(block);
            }
        }
        // Also those that this driver does not know of: an earlier one's, which no step has asked the device about, or which lie
        // outside of this one's units.
        if geometry.has_added(hotplug) {
            // The listener stays, and refuses.
            return Removed::InUse(Remains(listener));
        }
        hotplug.unlisten(&listener);
        Removed::Clean
    }
}
