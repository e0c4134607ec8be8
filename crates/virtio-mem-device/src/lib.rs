//! A virtio-mem device for any VMM that is built on `vm-memory` and `virtio-queue`.

mod bitmap;
mod core;
mod device;
mod host;
mod memfd;
mod queue;
mod settings;

pub use crate::core::RegionRange;
pub use device::{Device, FeaturesError, Notify, ResetError, ResizeError, SystemReset, VERSION_1};
pub use host::{Backing, GuestAccess, HostError, Step};
pub use memfd::{Memfd, MemfdError, Pages};
pub use queue::{QUEUE_SIZE, Served};
pub use settings::{
    DEFAULT_GUEST_BLOCK_SIZE, MIN_BLOCK_SIZE, RequestedSizeError, Settings, SettingsError, Unplugged,
    thp_size,
};
