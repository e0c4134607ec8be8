//! A virtio-mem driver: memory that a hypervisor plugs and unplugs, a few MiB at a time, while the machine runs.
//!
//! ```text
//!  host ── requested size ──▶ device ◀── PLUG, UNPLUG, STATE ── Channel ◀── Driver ──▶ Hotplug ──▶ zones, memory map
//!                                                                             ▲           │
//!                                                                           states ◀── listener (events)
//! ```
//!
//! * [`Driver`] follows the requested size in both directions, step by step, and says why when it falls short.
//! * [`Channel`] is its way to the device. [`VirtioChannel`] is one over any transport of the `virtio-drivers` crate.
//! * [`ConfigInterrupt`] and [`Intx`] are for interrupt handlers: over MSI-X, and over a PCI line.
//!
//! In *sub-block mode* the driver plugs and unplugs parts of memory blocks; what is not plugged of an online block is
//! fake-offline. In *big-block mode*, for devices with large blocks, it plugs and unplugs several whole memory blocks.
//!
//! # Example
//!
//! A machine with 512 MiB of boot memory, whose host gives it 1 GiB more. Here the transport leads to a device in the same
//! process; in a kernel it is `virtio_drivers::transport::pci::PciTransport`.
//!
//! ```
//! use pagefold_engine::hotplug::{HotplugConfig, Unmovable};
//! use pagefold_engine::{Config, Engine};
//! use pagefold_linux::{Linux, Membarrier};
//! use pagefold_virtio_loopback::{Loopback, LoopbackHal};
//! use pagefold_virtio_mem::{Driver, DriverSettings, Next, VirtioChannel};
//! use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Settings::new(4 << 30, 2 << 30);
//! let device = Loopback::new(Device::new(device, Memfd::new(2 << 30, Pages::Normal)?, ())?);
//!
//! let host: Linux<_, ()> = Linux::new(Membarrier::register()?)?;
//! let engine = Engine::<_>::new(host, Config::new((8 << 30) / 4096))?;
//! let mut hotplug = engine.hotplug(HotplugConfig::default())?;
//! hotplug.boot(0..(512 << 20) / 4096, 0)?;
//!
//! let channel = VirtioChannel::<LoopbackHal, _>::new(device.connect()?, u64::MAX)?;
//! let mut driver = Driver::probe(channel, &mut hotplug, DriverSettings::default())?;
//! device.set_requested_size(1 << 30)?;
//! // No folio moves here; a kernel passes what moves its folios.
//! let step = driver.work(&mut hotplug, &mut Unmovable, |_| true);
//! assert_eq!((step, driver.status().plugged), (Next::Reached, 1 << 30));
//! # Ok(())
//! # }
//! ```
//!
//! The crate is `no_std` (with `alloc`), never logs and never panics. It has no clock: a step that is to be tried again later
//! says how much later.
//!
//! States, orders and fallbacks are those of Linux (`drivers/virtio/virtio_mem.c`), with three differences: after a restart
//! or an odd answer this driver asks the device for the state of blocks instead of giving up; it retries after 100 ms rather
//! than 50 s; and no answer of the device, and no silence, ends it or makes it spin.
//!
//! # Bounds
//!
//! A [step](Driver::step) makes a bounded number of requests and asks owners a bounded number of times, whatever the device
//! and the owners say. It waits for a request in [a number of](LONGEST_PATIENCE) looks at the ring; then the step ends, and a
//! device that stays silent, or says that it has failed, is reset. [`Status::shortfall`] says why less is plugged or unplugged
//! than the host wants. An owner that refuses to move a folio is not asked again while nothing has changed; tell the driver by
//! [`Driver::ask_again`] when something has that no reference shows.

#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::todo)
)]

extern crate alloc;

mod big;
mod channel;
mod config;
mod context;
mod driver;
mod gate;
mod geometry;
mod intx;
mod lifecycle;
mod link;
mod owners;
mod pace;
mod probe;
mod queue;
mod states;
mod status;
mod stop;
mod sub;
mod survey;
mod units;
mod virtio;
mod window;

pub use channel::{Channel, ChannelError};
pub use config::ConfigError;
pub use driver::Driver;
pub use geometry::{Geometry, Mode};
pub use intx::Intx;
pub use lifecycle::{Remains, Removed, Sleep, SuspendError};
pub use probe::{DriverSettings, Inherited, ProbeError};
pub use status::{Next, Shortfall, Status, StuckBlocks};
pub use virtio::{ConfigInterrupt, LONGEST_PATIENCE, VirtioChannel};
