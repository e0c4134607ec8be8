//! The device that connections, resizes and signals share, and what its VMM is told.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pagefold_virtio_mem_device::{
    Device, HostError, Memfd, MemfdError, Notify, ResizeError, RestoreError, Settings, SettingsError,
    Snapshot, Stats,
};
use rustix::net::SendFlags;

use crate::event::Event;

/// Why there is no backend.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The memory file cannot be used.
    #[error(transparent)]
    Memory(#[from] MemfdError),
    /// The settings do not fit, or not the memory.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The saved state does not fit.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// How a device stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where the region begins in guest physical address space.
    pub addr: u64,
    /// Bytes of the region.
    pub region_size: u64,
    /// Bytes of a device block.
    pub block_size: u64,
    /// Bytes that the host wants plugged.
    pub requested_size: u64,
    /// Bytes of the region that may be plugged now.
    pub usable_size: u64,
    /// Bytes that are plugged.
    pub plugged_size: u64,
    /// Bytes of memory that the file holds.
    pub resident: u64,
    /// Feature bits of the driver; none where no driver is ready.
    pub driver: Option<u64>,
    /// Whether a VMM is connected.
    pub connected: bool,
    /// Whether blocks may not change now: the device is being migrated.
    pub frozen: bool,
    /// How often the host would not do something.
    pub host_failures: u64,
    /// Plugged ranges: guest address and bytes of each, in order.
    pub plugged: Vec<(u64, u64)>,
}

/// A virtio-mem device that is served to a VMM. Clones are the same device.
#[derive(Clone)]
pub struct Backend(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    settings: Settings,
    device: Mutex<Device<Memfd>>,
    link: Mutex<Link>,
    log: Box<dyn Fn(Event) + Send + Sync>,
}

/// The way to the VMM.
#[derive(Default)]
pub(crate) struct Link {
    /// Whether one is connected.
    pub(crate) connected: bool,
    /// The back channel, where the VMM has made one and will take config changes.
    pub(crate) back_channel: Option<OwnedFd>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

impl Backend {
    /// A device on a memory file that the VMM has open too; with a snapshot, the device that was saved. `log` is called from
    /// several threads, and with the device locked: it must not call the backend.
    ///
    /// # Errors
    /// [`BackendError`]: what does not fit.
    pub fn new(
        settings: Settings,
        memory: Memfd,
        saved: Option<&Snapshot>,
        log: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, BackendError> {
        let mut device = match saved {
            None => Device::new(settings.clone(), memory, ())?,
            Some(saved) => Device::restore(settings.clone(), memory, (), saved)?,
        };
        // No driver is there yet, whatever was saved: it comes with its VMM.
        device.device_reset();
        let shared =
            Shared { settings, device: Mutex::new(device), link: Mutex::default(), log: Box::new(log) };
        Ok(Self(Arc::new(shared)))
    }

    /// The host wants `bytes` plugged. The VMM is told, if one is there; one that comes later reads it from the config space.
    ///
    /// # Errors
    /// As [`Device::set_requested_size`].
    pub fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        let notify = self.device().set_requested_size(bytes)?;
        // Without the device: the VMM may be reading its config space just now.
        let told = notify == Notify::Nothing || self.tell_config_changed();
        self.log(Event::Resized { bytes, told });
        Ok(())
    }

    /// How the device stands.
    pub fn status(&self) -> Status {
        let connected = self.link().connected;
        let device = self.device();
        let config = device.config();
        Status {
            addr: config.addr.get(),
            region_size: config.region_size.get(),
            block_size: config.block_size.get(),
            requested_size: config.requested_size.get(),
            usable_size: config.usable_region_size.get(),
            plugged_size: config.plugged_size.get(),
            // A file that we have open can be looked at.
            resident: device.backing().resident().unwrap_or_default(),
            driver: device.negotiated_features(),
            connected,
            frozen: device.is_frozen(),
            host_failures: device.host_failures().0,
            plugged: device.plugged_ranges().map(|range| (range.addr, range.len)).collect(),
        }
    }

    /// What the device has done.
    pub fn stats(&self) -> Stats {
        self.device().stats()
    }

    /// The device's state, without its memory. The device is not frozen by it: save it when nothing is served any more.
    pub fn snapshot(&self) -> Snapshot {
        let mut device = self.device();
        let was_frozen = device.is_frozen();
        let snapshot = device.snapshot();
        if !was_frozen {
            // What the host refuses stays due, and is in the record.
            let _ = device.thaw();
        }
        snapshot
    }

    /// Locks the device: nothing is served from here on until the lock is dropped. For the end of the process.
    pub fn stop(&self) -> impl Drop + '_ {
        self.device()
    }

    /// Makes the device what was saved elsewhere: its memory has arrived in the file already.
    pub(crate) fn restore(&self, device: &mut Device<Memfd>, saved: &Snapshot) -> Result<(), BackendError> {
        let memory = device.backing().try_clone()?;
        let mut restored = Device::restore(self.0.settings.clone(), memory, (), saved)?;
        restored.device_reset();
        *device = restored;
        Ok(())
    }

    pub(crate) fn thaw(device: &mut Device<Memfd>) -> Result<(), HostError> {
        if device.is_frozen() { device.thaw() } else { Ok(()) }
    }

    /// The device, for one caller at a time. Nothing is left half done by one that panics: the device's own changes are
    /// whole or not at all.
    pub(crate) fn device(&self) -> MutexGuard<'_, Device<Memfd>> {
        self.0.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn link(&self) -> MutexGuard<'_, Link> {
        self.0.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn log(&self, event: Event) {
        (self.0.log)(event);
    }

    /// Tells the VMM that the config space has changed; false where there is no way to tell it.
    pub(crate) fn tell_config_changed(&self) -> bool {
        // Request 2 (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG), version 1 and no reply wanted, no body.
        const MESSAGE: [u32; 3] = [2, 1, 0];
        let link = self.link();
        let Some(channel) = &link.back_channel else { return false };
        let bytes: Vec<u8> = MESSAGE.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // Never wait for the VMM. Where the channel is full, it has messages like this one to read still, and reads the
        // config space after them.
        match rustix::net::send(channel, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => true,
            Err(_) => false,
        }
    }
}
