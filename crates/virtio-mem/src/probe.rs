//! What a driver starts with, and why it may not start.

use pagefold_engine::OutOfMemory;
use pagefold_engine::hotplug::OnlineTo;
use thiserror::Error;

use crate::channel::ChannelError;
use crate::config::ConfigError;

/// How a driver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverSettings {
    /// Where added blocks go online at once; `None` leaves that to other code.
    pub online: Option<OnlineTo>,
    /// Whether to unplug memory that is online (Linux: `unplug_online`).
    pub unplug_online: bool,
    /// Use big-block mode in any case (Linux: `force_bbm`).
    pub force_big: bool,
    /// Bytes of a big block, if larger than it has to be (Linux: `bbm_block_size`); a power of two.
    pub big_block: Option<u64>,
    /// The node of the memory where the device says none.
    pub node: u8,
    /// What to do with blocks that are plugged already.
    pub inherited: Inherited,
    /// The seed for the random part of the waits. Give each guest of a host another one.
    pub seed: u64,
}

impl Default for DriverSettings {
    fn default() -> Self {
        Self {
            online: Some(OnlineTo::Policy),
            unplug_online: true,
            force_big: false,
            big_block: None,
            node: 0,
            inherited: Inherited::UnplugAll,
            seed: 0x70_66,
        }
    }
}

/// What to do with blocks that were plugged before the driver was probed. Blocks that are added to the machine are adopted
/// in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// Unplug all of them.
    UnplugAll,
    /// Ask the device which ones are plugged, and keep those that a memory block can be made of.
    Adopt,
}

/// Why there is no driver. The device's blocks were not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProbeError {
    /// The device cannot be talked to. The error says what to do.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Its configuration contradicts itself, or does not fit the machine: correct the host's.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No memory for the driver's tables: free some and retry.
    #[error("no memory for the driver's tables: free some and retry")]
    OutOfMemory,
}

impl From<OutOfMemory> for ProbeError {
    fn from(_: OutOfMemory) -> Self {
        ProbeError::OutOfMemory
    }
}
