//! What a loopback asks of a device.

use virtio_drivers::transport::DeviceType;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// What serving a queue came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The driver wants to be told that buffers were used.
    pub interrupt: bool,
    /// More may be waiting: serve again.
    pub more: bool,
    /// The device works no more until it is reset.
    pub needs_reset: bool,
}

/// A virtio device without a transport. The loopback keeps status, queues and interrupts; it calls one method at a time.
pub trait LoopbackDevice: Send {
    /// What kind of device it is.
    fn device_type(&self) -> DeviceType;

    /// The feature bits it offers, those of transport and queue included.
    fn offered_features(&self) -> u64;

    /// The driver has accepted these. Returns whether the device works with them; `FEATURES_OK` stays unset otherwise.
    fn accept_features(&mut self, features: u64) -> bool;

    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// The driver has set `DRIVER_OK`, and accepts these features as before; queues are served from now on. Returns whether
    /// the device takes it; `DEVICE_NEEDS_RESET` is set otherwise.
    fn driver_ready(&mut self, features: u64) -> bool;

    /// The driver has written status 0, or is gone.
    fn reset(&mut self);

    /// Changes whenever the config space does.
    fn config_generation(&self) -> u32;

    /// Copies config space from `offset` on. Returns whether it has that many bytes.
    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> bool;

    /// The driver writes to config space. Most devices have nothing to write there.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let _ = (offset, bytes);
    }

    /// Serves a queue: the driver has rung its doorbell, or may have.
    fn serve(&mut self, index: u16, queue: &mut Queue, memory: &GuestMemoryMmap) -> Signals;
}
