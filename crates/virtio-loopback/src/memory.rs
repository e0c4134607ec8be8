//! The virtio-mem device on a loopback.

use pagefold_virtio_mem_device::{
    Backing, Device, GuestAccess, HostError, Notify, QUEUE_SIZE, ResizeError, SystemReset,
};
use pagefold_virtio_mem_spec::GUEST_REQUEST_QUEUE;
use virtio_drivers::transport::DeviceType;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use zerocopy::IntoBytes;

use crate::device::{LoopbackDevice, Signals};
use crate::transport::Loopback;

impl<B: Backing + Send, G: GuestAccess + Send> LoopbackDevice for Device<B, G> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Memory
    }

    fn offered_features(&self) -> u64 {
        self.features()
    }

    fn accept_features(&mut self, features: u64) -> bool {
        self.check_features(features).is_ok()
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn driver_ready(&mut self, features: u64) -> bool {
        self.activate(features).is_ok()
    }

    fn reset(&mut self) {
        self.device_reset();
    }

    fn config_generation(&self) -> u32 {
        Device::config_generation(self)
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let config = self.config();
        let part = offset.checked_add(bytes.len()).and_then(|end| config.as_bytes().get(offset..end));
        part.map(|part| bytes.copy_from_slice(part)).is_some()
    }

    fn serve(&mut self, index: u16, queue: &mut Queue, memory: &GuestMemoryMmap) -> Signals {
        if index != GUEST_REQUEST_QUEUE {
            return Signals::default();
        }
        let served = Device::serve(self, queue, memory);
        Signals { interrupt: served.interrupt, more: served.more, needs_reset: served.needs_reset }
    }
}

/// The host's side of a memory device.
impl<B: Backing + Send, G: GuestAccess + Send> Loopback<Device<B, G>> {
    /// The host wants `size` bytes plugged; the driver is told by an interrupt.
    ///
    /// # Errors
    /// [`ResizeError`]: nothing has changed.
    pub fn set_requested_size(&self, size: u64) -> Result<(), ResizeError> {
        self.with(|device, line| {
            if device.set_requested_size(size)? == Notify::ConfigChanged {
                line.raise_config();
            }
            Ok(())
        })
    }

    /// The machine resets: its queues are gone, and a reboot unplugs everything.
    ///
    /// # Errors
    /// What the host would not do: blocks are still plugged.
    pub fn system_reset(&self, reset: SystemReset) -> Result<(), HostError> {
        if reset == SystemReset::Reboot {
            self.reset();
        }
        self.with(|device, _| device.system_reset(reset))
    }
}
