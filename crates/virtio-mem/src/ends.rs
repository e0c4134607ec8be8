//! How a driver begins and ends: memory that is plugged when it comes, odd answers, suspend, and going away.

use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;

use pagefold_engine::Platform;
use pagefold_engine::geometry::PAGE_SHIFT;
use pagefold_engine::hotplug::{BlockId, Hotplug, Listener};
use pagefold_engine::protocol::Protocol;
use pagefold_virtio_mem_spec::{BlockState, Features};

use crate::channel::Channel;
use crate::config::Mode;
use crate::driver::{Driver, Machine, Trouble};
use crate::state::{BigState, SubState, Trigger};
use crate::sync::RELAXED;

/// What to do with blocks that were plugged before the driver came. Where the machine uses them already they are adopted
/// in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// Unplug them all, and begin from nothing.
    UnplugAll,
    /// Ask the device which ones they are, and keep what makes a memory block's worth of sense.
    Adopt,
}

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
    pub fn hand_over<P: Platform, R: Protocol>(self, hotplug: &mut Hotplug<'e, P, R>) {
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
    /// Deals with what was plugged before.
    pub(crate) fn take_over<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
    ) -> Result<(), Trouble> {
        if self.leftovers == Some(Leftovers::UnplugAll) {
            self.unplug_all()?;
        } else {
            let start = self.geometry.addr;
            let units = self.geometry.usable_units(self.limits.usable);
            self.adopt(machine, 0..units)?;
            // What lies outside of whole units is of no use.
            let end = self.geometry.address(units, 0);
            for stray in
                [start..self.geometry.start.min(start + self.limits.usable), end..start + self.limits.usable]
            {
                if stray.start < stray.end && self.ask_state(stray.clone())? != BlockState::Unplugged {
                    self.unplug_pieces(stray)?;
                }
            }
        }
        self.leftovers = None;
        self.tracking.closed.store(false, RELAXED);
        Ok(())
    }

    /// Settles all of `units` that may have something plugged, asking about as few ranges as possible.
    fn adopt<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        units: Range<u64>,
    ) -> Result<(), Trouble> {
        if units.start >= units.end {
            return Ok(());
        }
        let bytes = self.geometry.address(units.start, 0)..self.geometry.address(units.end, 0);
        let is_known = units.clone().any(|unit| {
            self.geometry.memory_blocks(unit).any(|id| machine.hotplug.block(BlockId(id)).is_some())
        });
        if !is_known && self.ask_state(bytes)? == BlockState::Unplugged {
            return Ok(());
        }
        if units.end - units.start == 1 {
            return self.settle(machine, units.start);
        }
        let middle = units.start.midpoint(units.end);
        self.adopt(machine, units.start..middle)?;
        self.adopt(machine, middle..units.end)
    }

    /// Makes everything fit what the device says of `unit`.
    pub(crate) fn settle<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
        unit: u64,
    ) -> Result<(), Trouble> {
        match self.geometry.mode {
            Mode::SubBlock { .. } => self.settle_sub_blocks(machine, unit),
            Mode::BigBlock { .. } => self.settle_big_block(machine, unit),
        }
    }

    /// Unplugs whatever is plugged of `bytes`, halving until each piece is all one or all the other.
    pub(crate) fn unplug_pieces(&mut self, bytes: Range<u64>) -> Result<(), Trouble> {
        match self.ask_state(bytes.clone())? {
            BlockState::Unplugged => Ok(()),
            BlockState::Plugged => self.give_back(bytes),
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
            BlockState::Unplugged => self.take(bytes),
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

    /// Tries again what failed half-way: units that are plugged, but were never added. Whether there was one.
    pub(crate) fn clean_up(&mut self) -> Result<bool, Trouble> {
        match self.geometry.mode {
            Mode::SubBlock { .. } => {
                if self.tracking.sub_count(SubState::Plugged) == 0 {
                    return Ok(false);
                }
                let found = self.tracking.first(self.tracking.next(), |n| n == SubState::Plugged as u8);
                let Some(unit) = found else { return Ok(false) };
                while let Some(run) = self.tracking.run(unit, 0, true) {
                    self.unplug(unit, run)?;
                }
                self.tracking.apply(unit, Trigger::Gone);
            }
            Mode::BigBlock { .. } => {
                if self.tracking.big_count(BigState::Plugged) == 0 {
                    return Ok(false);
                }
                let found = self.tracking.first(self.tracking.next(), |n| n == BigState::Plugged as u8);
                let Some(unit) = found else { return Ok(false) };
                self.unplug(unit, 0..1)?;
                self.tracking.set_big_state(unit, BigState::Unused);
            }
        }
        Ok(true)
    }

    pub(crate) fn remove_empty<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
    ) -> Result<bool, Trouble> {
        match self.geometry.mode {
            Mode::SubBlock { .. } => self.remove_empty_block(machine),
            Mode::BigBlock { .. } => Ok(false),
        }
    }

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

    /// After a sleep the device has been reset: goes on over a channel that was set up anew. The device has kept its
    /// blocks, or none were plugged.
    pub fn resume(&mut self, channel: C) {
        self.channel = channel;
        self.is_stale = true;
        self.pass = None;
    }

    /// Ends the driver. Blocks that are added but offline are removed; memory in use stays in use.
    pub fn remove_driver<P: Platform, R: Protocol>(self, hotplug: &mut Hotplug<'e, P, R>) -> Removed<'e> {
        for unit in 0..self.tracking.next() {
            let is_offline = matches!(self.geometry.mode, Mode::SubBlock { .. })
                && self.tracking.sub_state(unit) == SubState::OfflinePartial;
            if is_offline {
                // Nobody may bring its holes online once we are gone.
                for block in self.geometry.memory_blocks(unit) {
                    let _ = hotplug.remove(BlockId(block));
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
