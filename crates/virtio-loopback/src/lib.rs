//! Connects a driver written on the `virtio-drivers` crate to a device in the same process, over a real split virtqueue.
//!
//! ```text
//!  driver: VirtQueue<LoopbackHal, N> ── rings and buffers ──▶ arena: guest memory ◀── virtio_queue::Queue :device
//!          LoopbackTransport<D> ──── status, features, config, doorbell ────▶ Loopback<D> { device D }
//!                              ◀──────────── InterruptLine ────────────────
//! ```
//!
//! # The arena
//!
//! `virtio_drivers::Hal` has no `self`: where DMA memory comes from is a property of a type. Here it is one *arena* for the
//! process, reserved when it is first asked for: guest memory in `vm-memory`'s sense, at guest addresses above all that a
//! machine has. Rings lie in it. Buffers are copied into it and out of it (bounce buffers), so a device can reach nothing
//! but the arena, whatever addresses it is given, and no memory that Rust has references to is ever shared. All devices of
//! the process see the same arena, as devices of one machine see the same memory; any number of them works at once.
//! Where the arena is full, `virtio_drivers::Error::DmaError` says so for rings, and a buffer gets an address that is not
//! memory: the device then returns it unused.
//!
//! # Doorbells
//!
//! Without a [`Worker`] a doorbell serves the queue before [`virtio_drivers::transport::Transport::notify`] returns: one
//! thread, the same order every time. With one, doorbells wake its thread. Interrupts are bits on an [`InterruptLine`] that a
//! driver reads, waits for, and takes by `ack_interrupt`.

mod arena;
mod device;
mod hal;
mod interrupt;
mod memory;
mod transport;
mod worker;

pub use device::{LoopbackDevice, Signals};
pub use hal::LoopbackHal;
pub use interrupt::InterruptLine;
pub use transport::{AlreadyConnected, Loopback, LoopbackTransport};
pub use worker::Worker;
