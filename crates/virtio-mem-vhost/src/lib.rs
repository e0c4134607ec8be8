//! The virtio-mem device as a vhost-user backend: a process of its own that any VMM with a generic vhost-user device can use
//! (QEMU 10.2 and newer: `vhost-user-test-device-pci`). The protocol is "Vhost-user Protocol" of QEMU's documentation
//! (`docs/interop/vhost-user.rst`); the crates `vhost` and `vhost-user-backend` speak it.
//!
//! | module | one subject |
//! |---|---|
//! | `backend` | the device that connections, resizes and signals share; what a VMM is told |
//! | `handler` | what `vhost-user-backend` asks of a device: features, config space, memory, doorbells, migration |
//! | `door` | one VMM's connection: every message is looked at before the library has it |
//! | `message` | a message of the protocol as it stands on the socket, with its descriptors |
//! | `socket` | a socket's name: taken, left behind, or free |
//! | `server` | VMMs that come and go, one at a time |
//! | `event` | what happened, for logs |
//! | `guard` | memory that a VMM takes away while it is mapped |
//!
//! # What is special here
//!
//! - **Memory.** The device's region is memory of the VMM's: a file that both sides have open, which the VMM maps at the
//!   region's address. Unplugging punches holes into it. The VMM maps all of it, so this backend cannot take unplugged memory
//!   out of the guest's reach; drivers that decline `UNPLUGGED_INACCESSIBLE` are refused all the same.
//! - **Config changes** go to the VMM by the back channel (`VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`), without waiting for an
//!   answer: a VMM answers by reading the config space, over the very connection that would wait.
//! - **Nothing is in flight.** A request is served whole, between two messages: when a ring is stopped, or a VMM is gone, every
//!   chain that was taken has come back. So `VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD` is not offered: it would always be empty.
//! - **A VMM that comes back** finds blocks as they were: for virtio its going is a device reset, which changes none. A guest
//!   that has booted anew unplugs what it finds (Linux: `UNPLUG_ALL` when its driver starts).
//! - **A hostile VMM** ends its own connection at worst. Sizes, descriptors and files are looked at before anything is mapped;
//!   [`outlive_cut_memory`] is for files that are cut short afterwards.

mod backend;
mod door;
mod event;
mod guard;
mod handler;
mod message;
mod server;
mod socket;

pub use backend::{Backend, BackendError, Status};
pub use event::Event;
pub use guard::outlive_cut_memory;
pub use server::{Server, ServerError, Stop, Until};
pub use socket::{Socket, SocketError};
