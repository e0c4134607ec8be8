//! A virtio-mem device for any VMM that is built on `vm-memory` and `virtio-queue`: guest memory that grows and shrinks
//! block by block, and goes back to the host when it is unplugged.
//!
//! What the device promises is the virtio specification's "Memory Device" (version 1.4), and where the specification leaves
//! room, what the reference device does (QEMU, `hw/virtio/virtio-mem.c`).
//!
//! | module | one subject |
//! |---|---|
//! | `core` | what is decided: config space, plugged blocks, requests in, decisions out; touches no memory |
//! | `bitmap` | which blocks are plugged |
//! | `device` | decisions carried out on the host, whole or not at all; the device's life |
//! | `queue` | chains in, answers out; every chain comes back |
//! | `host` | what the device asks of the host: [`Backing`] and [`GuestAccess`] |
//! | `memfd` | memory of a sparse file: [`Memfd`] |
//! | `slots` | memory slots larger than a block: [`SlotAccess`] |
//! | `snapshot` | saving, sending and restoring |
//! | `settings` | what a device is built from, and what is wrong with it |
//!
//! # Example
//!
//! ```
//! use pagefold_virtio_mem_device::{Device, Memfd, Notify, Pages, Settings, VERSION_1};
//! use pagefold_virtio_mem_spec::{Features, Request, RequestType, Response, ResponseType};
//!
//! // 64 GiB above the first 4 GiB of the guest; no memory is used yet.
//! let memory = Memfd::new(64 << 30, Pages::Normal)?;
//! let mut device = Device::new(Settings::new(4 << 30, 64 << 30), memory, ())?;
//!
//! // What the transport does when the driver comes: FEATURES_OK, then DRIVER_OK.
//! device.set_driver_features(VERSION_1 | Features::UNPLUGGED_INACCESSIBLE.bits())?;
//! device.driver_ready();
//!
//! // The host wants 1 GiB plugged; the driver must be told.
//! assert_eq!(device.set_requested_size(1 << 30)?, Notify::ConfigChanged);
//!
//! // The driver asks for the first blocks. In a VMM this comes out of the queue: `Device::serve`.
//! let block = device.config().block_size.get();
//! let answer = device.handle(&Request::new(RequestType::Plug, 4 << 30, 16));
//! assert_eq!(answer, Response::new(ResponseType::Ack));
//! assert_eq!(device.config().plugged_size.get(), 16 * block);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a VMM must do
//!
//! - Offer [`Device::features`], device number 24, one queue of [`QUEUE_SIZE`] entries, and [`Device::config`].
//! - Call [`Device::serve`] on a doorbell and after `DRIVER_OK`, and raise the interrupts that [`Served`] and [`Notify`] ask
//!   for.
//! - Keep other readers of guest memory (dumps, vhost back ends, saving) to [`Device::plugged_ranges`].

mod bitmap;
mod core;
mod device;
mod host;
mod memfd;
mod queue;
mod settings;
mod slots;
mod snapshot;

pub use crate::core::RegionRange;
pub use device::{Device, FeaturesError, Notify, ResetError, ResizeError, SystemReset, VERSION_1};
pub use host::{Backing, GuestAccess, HostError, Step};
pub use memfd::{Memfd, MemfdError, Pages};
pub use queue::{QUEUE_SIZE, Served};
pub use settings::{
    DEFAULT_GUEST_BLOCK_SIZE, MIN_BLOCK_SIZE, RequestedSizeError, Settings, SettingsError, Unplugged,
    thp_size,
};
pub use slots::{MemorySlots, SlotAccess};
pub use snapshot::{RestoreError, SNAPSHOT_VERSION, Snapshot};
