//! The VMM's part of a virtio-mem device, in a page: its life, its queue, its configuration space, and saving it.

use pagefold_virtio_mem_device::{
    Device, Memfd, Notify, Pages, QUEUE_SIZE, ResizeError, Saved, Settings, SystemReset,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Failure = Box<dyn std::error::Error>;
const GIB: u64 = 1 << 30;

struct Vmm {
    device: Device<Memfd>,
    queue: Queue,
    memory: GuestMemoryMmap,
    /// Interrupts that were raised: used buffers, and config changes.
    raised: (u32, u32),
}

impl Vmm {
    fn new(saved: Option<&Saved>) -> Result<Self, Failure> {
        // 4 GiB above the first 4 GiB of the guest; no memory is used yet.
        let (settings, file) = (Settings::new(4 * GIB, 4 * GIB), Memfd::new(4 * GIB, Pages::Normal)?);
        let (device, queue) = match saved {
            None => (Device::new(settings, file, ())?, Queue::new(QUEUE_SIZE)?),
            Some(saved) => Device::load(settings, file, (), saved)?,
        };
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)])?;
        let memory = ram.insert_region(device.guest_region()?.into())?;
        Ok(Self { device, queue, memory, raised: (0, 0) })
    }

    /// The driver writes the device status, and has accepted these features. Returns what it will read back.
    fn set_status(&mut self, status: u8, accepted: u64) -> u8 {
        const FEATURES_OK: u8 = 8;
        const DRIVER_OK: u8 = 4;
        const NEEDS_RESET: u8 = 64;
        if status == 0 {
            self.device.device_reset();
            self.queue.reset();
        } else if status & DRIVER_OK != 0 {
            if self.device.activate(accepted).is_err() {
                return status | NEEDS_RESET;
            }
            self.doorbell();
        } else if status & FEATURES_OK != 0 && self.device.check_features(accepted).is_err() {
            return status & !FEATURES_OK;
        }
        status
    }

    /// The driver rings.
    fn doorbell(&mut self) {
        loop {
            let served = self.device.serve(&mut self.queue, &self.memory);
            self.raised.0 += u32::from(served.interrupt);
            self.raised.1 += u32::from(served.needs_reset);
            if !served.more {
                break;
            }
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// The operator wants `bytes` plugged.
    fn resize(&mut self, bytes: u64) -> Result<(), ResizeError> {
        if self.device.set_requested_size(bytes)? == Notify::ConfigChanged {
            self.raised.1 += 1;
        }
        Ok(())
    }

    fn reboot(&mut self) -> Result<(), Failure> {
        self.queue.reset();
        Ok(self.device.system_reset(SystemReset::Reboot)?)
    }

    /// Device and queue, frozen; beside it goes the memory of `plugged_ranges`, and no other.
    fn save(&mut self) -> Saved {
        self.device.save(&self.queue)
    }
}

#[cfg_attr(test, test)]
fn main() -> Result<(), Failure> {
    let mut vmm = Vmm::new(None)?;
    let accepted = vmm.device.features();
    assert_eq!(vmm.set_status(1 | 2 | 8, accepted), 1 | 2 | 8);
    assert_eq!(vmm.set_status(1 | 2 | 8 | 4, accepted), 15);
    vmm.resize(GIB)?;
    let mut requested = [0; 8];
    vmm.read_config(48, &mut requested);
    assert_eq!((u64::from_le_bytes(requested), vmm.raised.1), (GIB, 1));

    let plugged = vmm.device.plugged_ranges().map(|range| range.len).sum::<u64>();
    let saved = vmm.save();
    let there = Vmm::new(Some(&saved))?;
    assert_eq!(there.device.config(), vmm.device.config());
    assert_eq!(there.device.config_generation(), vmm.device.config_generation());
    assert_eq!(there.device.negotiated_features(), Some(accepted));

    vmm.device.thaw()?;
    vmm.reboot()?;
    assert_eq!(vmm.device.stats().resizes, 1);
    println!("one resize, saved with {} bytes of memory, restored, and rebooted", plugged);
    Ok(())
}
