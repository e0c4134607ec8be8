//! The device's state, to be saved, sent and restored.
//!
//! A VMM that saves or migrates a guest: [`Device::freeze`], then [`Device::snapshot`], then the memory of
//! [`Device::plugged_ranges`] and no other. Where the guest runs on meanwhile, take a second snapshot once its CPUs have
//! stopped, and restore that one: blocks are the same, but a driver may have come, or the machine been reset. On the other
//! side: [`Device::restore`] with the same settings, the memory, and where the memory arrived by a way that may have touched
//! the rest, [`Device::discard_unplugged`]; then [`Device::serve`] once. On this side, if the guest stays after all:
//! [`Device::thaw`].

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes, transmute};

use crate::bitmap::Bitmap;
use crate::core::Core;
use crate::device::{Device, DriverState, FeaturesError};
use crate::host::{Backing, GuestAccess, HostError, Step};
use crate::range::RegionRange;
use crate::settings::{Settings, SettingsError, check_requested};

/// The version of [`Snapshot`] this crate writes, and the only one it reads.
pub const SNAPSHOT_VERSION: u32 = 2;

/// The state of a device, without its memory. `serde` writes and reads it.
///
/// Every version is a version number and words that are that version's own, so that a device which does not know the words
/// can still name the version. The last word is a checksum of all else (CRC-32): a snapshot that was damaged on its way is
/// refused. It is no protection from a snapshot that was made up; see [`Device::restore`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    version: u32,
    #[serde(default)]
    state: Vec<u64>,
}

impl Snapshot {
    /// The version it was written in; [`SNAPSHOT_VERSION`] where this crate did.
    pub fn version(&self) -> u32 {
        self.version
    }
}

/// Why a snapshot was not restored. The memory behind the region holds what was saved in it, as before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No device can be built from the settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Of another version.
    #[error("device snapshot version {0}; this device reads version {SNAPSHOT_VERSION}")]
    Version(u32),
    /// The device was built differently.
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
        saved: Option<u64>,
        /// In this device.
        here: Option<u64>,
    },
    /// The negotiated features do not fit the device.
    #[error("the snapshot's features do not fit this device: {0}")]
    Features(#[from] FeaturesError),
    /// No device writes this.
    #[error("damaged device snapshot: {0}; take another")]
    Damaged(&'static str),
    /// The host refused.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What a snapshot of this version holds: the head's words in this order, then two words for each run of plugged blocks
/// (first block, blocks), then the checksum.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes)]
#[repr(C)]
struct Head {
    addr: u64,
    region_size: u64,
    block_size: u64,
    guest_block_size: u64,
    /// 0, or the node and one.
    node: u64,
    usable_size: u64,
    requested_size: u64,
    generation: u64,
    /// 0: no driver, 1: one is ready, 2: its queue is beyond repair.
    driver: u64,
    /// 0 where there is no driver.
    features: u64,
}

/// Its words.
const HEAD: usize = size_of::<Head>() / size_of::<u64>();

impl<B: Backing, G: GuestAccess> Device<B, G> {
    /// The state now; freezes the device, so that it stays true until [`Device::thaw`].
    ///
    /// Where a reset of the machine is due, the state is that after the reset: nothing is plugged. Due repairs of the host
    /// are not part of it.
    pub fn snapshot(&mut self) -> Snapshot {
        self.freeze();
        let core = &self.core;
        let (driver, features) = match self.driver {
            DriverState::Away | DriverState::ResetDue => (0, 0),
            DriverState::Ready { features } => (1, features),
            DriverState::Broken { features } => (2, features),
        };
        let mut head = Head {
            addr: core.addr,
            region_size: core.region_size,
            block_size: core.block_size,
            guest_block_size: core.guest_block_size,
            node: node_word(core),
            usable_size: core.usable_size,
            requested_size: core.requested_size,
            generation: core.generation.into(),
            driver,
            features,
        };
        let reset = self.driver == DriverState::ResetDue;
        if reset {
            head.usable_size = core.usable_size.min(core.usable_for(core.requested_size));
            // It is another config space than the one that can be read here.
            head.generation = core.generation.wrapping_add(1).into();
        }
        let words: [u64; HEAD] = transmute!(head);
        let mut state = words.to_vec();
        if !reset {
            state.extend(core.bitmap.runs().flat_map(|run| [run.start, run.end - run.start]));
        }
        state.push(checksum(SNAPSHOT_VERSION, &state).into());
        Snapshot { version: SNAPSHOT_VERSION, state }
    }

    /// The device that was saved, built with the same settings on memory that may already hold the plugged blocks'
    /// contents. Plugged ranges are populated and shown to the guest, all others are discarded. Where a driver was active,
    /// [`Device::serve`](crate::Device::serve) next.
    ///
    /// A snapshot is not trusted. Whatever it says, the device that comes of it is one that could have come of the settings
    /// and a guest's requests: all numbers fit the settings and each other. Which blocks of the region were plugged, and what
    /// was requested, only the snapshot knows.
    ///
    /// # Errors
    /// [`RestoreError`]. What plugged ranges hold stays as it is, so that it can be tried again.
    pub fn restore(
        settings: Settings,
        backing: B,
        guest: G,
        snapshot: &Snapshot,
    ) -> Result<Self, RestoreError> {
        let mut device = Self::build(&settings, backing, guest)?;
        (device.core, device.driver) = device.state_of(snapshot)?;
        device.bring_up()?;
        Ok(device)
    }

    /// Gives back whatever memory lies beside the plugged blocks. It touches no plugged block, whenever it is called. A
    /// failure leaves some memory, which does no harm but costs: call again.
    ///
    /// # Errors
    /// Where the host refuses.
    pub fn discard_unplugged(&mut self) -> Result<(), HostError> {
        let gaps: Vec<_> = self.core.unplugged_ranges().collect();
        gaps.into_iter().try_for_each(|gap| self.host.take_one(Step::Discard, gap))
    }

    /// Has the host do for the core's bitmap what plugging block by block would have come to.
    fn bring_up(&mut self) -> Result<(), HostError> {
        let runs: Vec<_> = self.core.plugged_ranges().collect();
        // It is not undone: the memory may hold what the guest is to find in it.
        runs.iter().try_for_each(|run| self.host.take_one(Step::Adopt, *run))?;
        // Before the guest has access: nothing is to be undone if the host refuses.
        self.discard_unplugged()?;
        let mut steps = Vec::with_capacity(2 * runs.len() + 1);
        if self.hides() {
            steps.extend(runs.iter().map(|run| (Step::Show, *run)));
        } else if self.core.usable_size > 0 {
            steps.push((Step::Show, self.part(0, self.core.usable_size)));
        }
        steps.extend(runs.iter().map(|run: &RegionRange| (Step::MapDma, *run)));
        self.host.take(&steps)
    }

    /// What a snapshot makes of this device, once everything in it was found sound.
    fn state_of(&self, snapshot: &Snapshot) -> Result<(Core, DriverState), RestoreError> {
        use RestoreError::Damaged;
        if snapshot.version != SNAPSHOT_VERSION {
            return Err(RestoreError::Version(snapshot.version));
        }
        let (sum, words) = snapshot.state.split_last().ok_or(Damaged("it is empty"))?;
        if *sum != u64::from(checksum(snapshot.version, words)) {
            return Err(Damaged("its checksum is another"));
        }
        let (head, runs) = words.split_first_chunk::<HEAD>().ok_or(Damaged("it is too short"))?;
        let head: Head = transmute!(*head);
        let mut core = self.core.clone();
        for (what, saved, here) in [
            ("address", head.addr, core.addr),
            ("region size", head.region_size, core.region_size),
            ("block size", head.block_size, core.block_size),
            ("guest memory block", head.guest_block_size, core.guest_block_size),
        ] {
            if saved != here {
                return Err(RestoreError::Different { what, saved, here });
            }
        }
        if head.node != node_word(&core) {
            let (saved, here) = (head.node.checked_sub(1), node_word(&core).checked_sub(1));
            return Err(RestoreError::Node { saved, here });
        }
        let driver = match head.driver {
            0 if head.features == 0 => DriverState::Away,
            0 => return Err(Damaged("features without a driver")),
            1 => DriverState::Ready { features: head.features },
            2 => DriverState::Broken { features: head.features },
            _ => return Err(Damaged("the driver is in no known state")),
        };
        if driver != DriverState::Away {
            self.check_features(head.features)?;
        }
        core.generation =
            u32::try_from(head.generation).map_err(|_| Damaged("a generation beyond 32 bits"))?;
        check_requested(head.requested_size, core.block_size, core.region_size)
            .map_err(|_| Damaged("a requested size that the device would refuse"))?;
        core.requested_size = head.requested_size;
        let usable = head.usable_size;
        // A usable region comes of a requested size: this one, or a larger one before.
        let least = core.usable_for(core.requested_size);
        let some = usable == 0 || usable >= core.usable_for(core.block_size);
        if !usable.is_multiple_of(core.block_size) || usable > core.region_size || usable < least || !some {
            return Err(Damaged("a usable region that comes of no requested size"));
        }
        core.usable_size = usable;
        let (bitmap, blocks) = bitmap_of(runs, core.bitmap.len(), usable / core.block_size)
            .ok_or(Damaged("plugged blocks that overlap, touch, are out of order, or are not usable"))?;
        (core.bitmap, core.plugged_size) = (bitmap, blocks * core.block_size);
        Ok((core, driver))
    }
}

fn node_word(core: &Core) -> u64 {
    core.node.map_or(0, |node| u64::from(node) + 1)
}

/// Runs of plugged blocks among the first `usable` of `len`, and how many blocks they are.
fn bitmap_of(runs: &[u64], len: u64, usable: u64) -> Option<(Bitmap, u64)> {
    let (mut bitmap, mut sum, mut after) = (Bitmap::new(len), 0, None);
    let mut runs = runs.iter();
    while let Some(&first) = runs.next() {
        let blocks = *runs.next()?;
        let end = first.checked_add(blocks).filter(|end| *end <= usable)?;
        if blocks == 0 || after.is_some_and(|after| first <= after) {
            return None;
        }
        bitmap.set(&(first..end));
        sum += blocks;
        after = Some(end);
    }
    Some((bitmap, sum))
}

/// The CRC-32 of Ethernet, over the version's and the words' bytes, lowest first.
fn checksum(version: u32, words: &[u64]) -> u32 {
    let bytes = version.to_le_bytes().into_iter().chain(words.iter().flat_map(|word| word.to_le_bytes()));
    !bytes.fold(!0u32, |sum, byte| {
        let mut sum = sum ^ u32::from(byte);
        for _ in 0..8 {
            let out = sum & 1;
            sum >>= 1;
            if out == 1 {
                sum ^= 0xedb8_8320;
            }
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn the_checksum_is_the_one_of_ethernet() {
        // As zlib counts them.
        assert_eq!(checksum(u32::from_le_bytes(*b"1234"), &[]), 0x9be3_e0a3);
        assert_eq!(checksum(u32::from_le_bytes(*b"1234"), &[u64::from_le_bytes(*b"56789abc")]), 0xbdb0_c0e4);
    }
}
