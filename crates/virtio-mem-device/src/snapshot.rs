//! The device's state, to be saved, sent and restored.
//!
//! A VMM that saves or migrates a guest: [`Device::freeze`], [`Device::snapshot`], send it *before* the memory, then the
//! memory of [`Device::plugged_ranges`] and no other. On the other side: a new device with the same settings,
//! [`Device::restore`], the memory, and where the memory arrived by a way that may have touched the rest,
//! [`Device::discard_unplugged`].

use serde::{Deserialize, Serialize};

use crate::bitmap::Bitmap;
use crate::core::RegionRange;
use crate::device::{Device, FeaturesError};
use crate::host::{Backing, GuestAccess, HostError, Step};
use crate::settings::{RequestedSizeError, check_requested};

/// The version of [`Snapshot`] this crate writes, and the only one it reads.
pub const SNAPSHOT_VERSION: u32 = 1;

/// The state of a device, without its memory. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`].
    pub version: u32,
    /// Where the region begins.
    pub addr: u64,
    /// The region.
    pub region_size: u64,
    /// The device block.
    pub block_size: u64,
    /// The proximity domain.
    pub node: Option<u16>,
    /// The usable region.
    pub usable_region_size: u64,
    /// What the host wants plugged.
    pub requested_size: u64,
    /// What is plugged: runs of blocks as (first block, blocks), in order and apart.
    pub plugged: Vec<(u64, u64)>,
    /// Feature bits that were negotiated.
    pub features: u64,
    /// A driver has set `DRIVER_OK`.
    pub driver_ready: bool,
    /// The queue is unusable until the driver resets the device.
    pub needs_reset: bool,
}

/// Why a snapshot was not restored. Except after [`RestoreError::Host`], nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Of another version.
    #[error("device snapshot version {0}; this device reads version {SNAPSHOT_VERSION}")]
    Version(u32),
    /// The device is built differently.
    #[error(
        "the snapshot's {what} is {saved}, this device's is {here}: build the device as the saved one was"
    )]
    Different {
        /// What differs.
        what: &'static str,
        /// In the snapshot.
        saved: u64,
        /// In this device.
        here: u64,
    },
    /// The proximity domain differs.
    #[error(
        "the snapshot's node is {saved:?}, this device's is {here:?}: build the device as the saved one was"
    )]
    Node {
        /// In the snapshot.
        saved: Option<u16>,
        /// In this device.
        here: Option<u16>,
    },
    /// The requested size is impossible.
    #[error("damaged device snapshot: {0}")]
    Requested(#[from] RequestedSizeError),
    /// The usable region is impossible.
    #[error("damaged device snapshot: a usable region of {0} bytes")]
    Usable(u64),
    /// The plugged blocks are impossible.
    #[error(
        "damaged device snapshot: {blocks} plugged blocks from {first} on overlap, are out of order, or not usable"
    )]
    Plugged {
        /// The run's first block.
        first: u64,
        /// Its blocks.
        blocks: u64,
    },
    /// The negotiated features are impossible.
    #[error("the snapshot's features do not fit this device: {0}")]
    Features(#[from] FeaturesError),
    /// The device has been used.
    #[error("this device has plugged blocks or a driver: restore into a new one")]
    Used,
    /// The host refused. The device is as new, but plugged ranges may hold memory, or have lost it.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl<B: Backing, G: GuestAccess> Device<B, G> {
    /// The state now. [`Device::freeze`] first, so that it stays true.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: SNAPSHOT_VERSION,
            addr: self.core.addr,
            region_size: self.core.region_size,
            block_size: self.core.block_size,
            node: self.core.node,
            usable_region_size: self.core.usable_size,
            requested_size: self.core.requested_size,
            plugged: self.core.bitmap.runs().map(|run| (run.start, run.end - run.start)).collect(),
            features: self.negotiated,
            driver_ready: self.driver_ready,
            needs_reset: self.needs_reset,
        }
    }

    /// Makes a new device what the saved one was, on memory that may already hold the plugged blocks' contents. Plugged
    /// ranges are populated and shown to the guest, all others are discarded.
    ///
    /// # Errors
    /// [`RestoreError`]. A snapshot is not trusted: one that was damaged, or made up, is refused.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RestoreError> {
        let (bitmap, plugged_size) = self.check(snapshot)?;
        let (negotiated, fresh) = (self.negotiated, self.core.clone());
        if snapshot.features != 0 {
            self.set_driver_features(snapshot.features)?;
        }
        self.core.bitmap = bitmap;
        if let Err(error) = self.bring_up(fresh.usable_size, snapshot.usable_region_size) {
            self.core = fresh;
            self.negotiated = negotiated;
            return Err(error.into());
        }
        self.core.plugged_size = plugged_size;
        self.core.usable_size = snapshot.usable_region_size;
        self.core.requested_size = snapshot.requested_size;
        self.core.changed();
        self.driver_ready = snapshot.driver_ready;
        self.needs_reset = snapshot.needs_reset;
        Ok(())
    }

    /// Gives back whatever memory lies beside the plugged blocks. A failure leaves some of it, which does no harm but costs
    /// memory: call again.
    ///
    /// # Errors
    /// Where the host refuses.
    pub fn discard_unplugged(&mut self) -> Result<(), HostError> {
        let gaps: Vec<_> = self.core.unplugged_ranges().collect();
        gaps.into_iter().try_for_each(|gap| self.take(&[(Step::Discard, gap)]))
    }

    /// Has the host do for the core's bitmap what plugging block by block would have come to.
    fn bring_up(&mut self, usable: u64, wanted: u64) -> Result<(), HostError> {
        let runs: Vec<_> = self.core.plugged_ranges().collect();
        // Populating is not undone: the memory may hold what the guest is to find in it.
        runs.iter().try_for_each(|run| self.take(&[(Step::Populate, *run)]))?;
        let mut steps = Vec::with_capacity(2 * runs.len() + 1);
        if self.hides() {
            steps.extend(runs.iter().map(|run| (Step::Show, *run)));
        } else if wanted > usable {
            steps.push((Step::Show, self.part(usable, wanted)));
        } else if wanted < usable {
            steps.push((Step::Hide, self.part(wanted, usable)));
        }
        steps.extend(runs.iter().map(|run: &RegionRange| (Step::MapDma, *run)));
        // Before the guest has access: nothing is to be undone if the host refuses.
        self.discard_unplugged()?;
        self.take(&steps)
    }

    fn check(&self, snapshot: &Snapshot) -> Result<(Bitmap, u64), RestoreError> {
        if snapshot.version != SNAPSHOT_VERSION {
            return Err(RestoreError::Version(snapshot.version));
        }
        let core = &self.core;
        for (what, saved, here) in [
            ("address", snapshot.addr, core.addr),
            ("region size", snapshot.region_size, core.region_size),
            ("block size", snapshot.block_size, core.block_size),
        ] {
            if saved != here {
                return Err(RestoreError::Different { what, saved, here });
            }
        }
        if snapshot.node != core.node {
            return Err(RestoreError::Node { saved: snapshot.node, here: core.node });
        }
        if core.plugged_size != 0 || self.driver_ready {
            return Err(RestoreError::Used);
        }
        check_requested(snapshot.requested_size, core.block_size, core.region_size)?;
        let usable = snapshot.usable_region_size;
        if !usable.is_multiple_of(core.block_size)
            || usable > core.region_size
            || usable < snapshot.requested_size
        {
            return Err(RestoreError::Usable(usable));
        }
        let (mut bitmap, mut plugged, mut after) = (Bitmap::new(core.bitmap.len()), 0, 0);
        for &(first, blocks) in &snapshot.plugged {
            let end = first.checked_add(blocks).filter(|end| *end <= usable / core.block_size);
            let Some(end) = end.filter(|_| blocks > 0 && first >= after) else {
                return Err(RestoreError::Plugged { first, blocks });
            };
            bitmap.set(&(first..end));
            plugged += blocks * core.block_size;
            after = end;
        }
        Ok((bitmap, plugged))
    }
}
