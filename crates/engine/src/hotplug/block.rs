//! Memory blocks, and how they are made.

use super::policy::{Group, OnlinePolicy};
use crate::geometry::PAGES_PER_SECTION;
use crate::zone::{BlockState, Zone};

/// How fake-offline areas of online blocks are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FakeOffline {
    /// Class `Offline`: no descriptors, so no reference that anyone could take or would have to drop.
    #[default]
    Folded,
    /// Linux's way: every page has a descriptor of kind [`Offline`](crate::PageKind::Offline) with one reference. It is
    /// dropped when the block is about to go offline, and taken again when that is cancelled.
    Classic {
        /// Whether walkers are told (by the class) and waited for before the references are dropped. Linux does not.
        rcu: bool,
    },
}

/// How memory blocks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotplugConfig {
    /// Pages in a memory block: a power of two, at least a section (128 MiB).
    pub block_pages: u64,
    /// Which zone [`OnlineTo::Policy`] means.
    pub policy: OnlinePolicy,
    /// How fake-offline areas are kept.
    pub fake_offline: FakeOffline,
    /// How often to ask owners at most to move their folios out of a block. They are asked again only after something has
    /// changed.
    pub passes: usize,
}

impl Default for HotplugConfig {
    fn default() -> Self {
        Self {
            block_pages: PAGES_PER_SECTION,
            policy: OnlinePolicy::default(),
            fake_offline: FakeOffline::default(),
            passes: 5,
        }
    }
}

/// Number of a memory block: first page divided by the block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u64);

/// Where a block is to go online.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnlineTo {
    /// Into this zone.
    Zone(Zone),
    /// Wherever the policy says.
    Policy,
}

/// What is known of a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its number.
    pub id: BlockId,
    /// Where it stands.
    pub state: BlockState,
    /// Its zone; meaningful while it is online.
    pub zone: Zone,
    /// Its NUMA node.
    pub node: u8,
    /// The group it was added to.
    pub group: Group,
}
