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
//! | `private` | memory of this process alone: [`Private`] |
//! | `lazy` | memory that arrives while the guest runs: [`Lazy`] |
//! | `slots` | memory slots larger than a block: [`SlotAccess`] |
//! | `mappers` | devices that reach memory directly, and come late: [`Mappers`] |
//! | `snapshot` | saving, sending and restoring |
//! | `saved` | device and queue saved together: [`Saved`] |
//! | `range` | parts of the region |
//! | `settings` | what a device is built from, and what is wrong with it |
//! | `stats` | what a device has done so far, and how long it took |
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
//! let accepted = VERSION_1 | Features::UNPLUGGED_INACCESSIBLE.bits();
//! device.check_features(accepted)?;
//! device.activate(accepted)?;
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
//! - Call [`Device::check_features`] at `FEATURES_OK`, [`Device::activate`] at `DRIVER_OK`, [`Device::device_reset`] when the
//!   driver writes status 0, and [`Device::system_reset`] when the machine resets.
//! - Call [`Device::serve`] on a doorbell and after `activate` and `restore`, and raise the interrupts that [`Served`] and
//!   [`Notify`] ask for.
//! - Keep other readers of guest memory (dumps, vhost back ends, saving) to [`Device::plugged_ranges`].
//!
//! # What it cannot get wrong
//!
//! | mistake | what happens |
//! |---|---|
//! | the features are not checked at `FEATURES_OK` | `activate` checks them |
//! | `activate` is forgotten, or comes twice | nothing is served, and a resize says so; the second is refused |
//! | the queue is not told of `EVENT_IDX`, or wrongly | `serve` tells it |
//! | a doorbell rings without a driver, or in a reset | nothing |
//! | memory that holds something is given to a new device | refused: no guest sees another's memory, and what was saved stays |
//! | a device is used before it is restored, or restored twice | cannot be written: [`Device::restore`] makes the device |
//! | a snapshot is taken without a freeze | `snapshot` freezes |
//! | the machine resets while the device is frozen | `thaw` does it, and a snapshot has it |
//! | the host fails, and fails again when that is to be undone | the device undoes it before the next change |
//! | populating, discarding, hiding behind the device's back | cannot be written: it lends its parts to look at only |
//! | memory slots for another region | [`SlotAccess`] learns the region from the device |
//! | two threads | need a lock: all that changes a device takes `&mut self` |
//!
//! What remains: [`Served::more`] and interrupts that are not obeyed (the compiler warns), a queue that is not reset with the
//! device (its indices make no sense to the next driver: [`Served::needs_reset`]), a device left frozen (every change is
//! BUSY), and two devices on one file.

mod bitmap;
mod core;
mod device;
mod host;
mod lazy;
mod mappers;
mod memfd;
mod private;
mod queue;
mod range;
mod saved;
mod settings;
mod slots;
mod snapshot;
mod stats;

pub use device::{Device, FeaturesError, Notify, ResizeError, SystemReset, VERSION_1};
pub use host::{Backing, GuestAccess, HostError, Step};
pub use lazy::{Lazy, Loader};
pub use mappers::{DmaMapper, MapperId, Mappers};
pub use memfd::{Memfd, MemfdError, Pages};
pub use private::Private;
pub use queue::{QUEUE_SIZE, Served};
pub use range::RegionRange;
pub use saved::Saved;
pub use settings::{
    DEFAULT_GUEST_BLOCK_SIZE, MIN_BLOCK_SIZE, RequestedSizeError, Settings, SettingsError, Unplugged,
    thp_size,
};
pub use slots::{MemorySlots, SlotAccess};
pub use snapshot::{RestoreError, SNAPSHOT_VERSION, Snapshot};
pub use stats::{LATENCY_BOUNDS, Latency, Requests, Stats};
