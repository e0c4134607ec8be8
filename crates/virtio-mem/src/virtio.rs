//! A channel over any transport of the `virtio-drivers` crate.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use pagefold_virtio_mem_spec::{ConfigSpace, Features, GUEST_REQUEST_QUEUE, Request, Response};
use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use crate::channel::{Channel, ChannelError};
use crate::queue::{Look, RequestQueue};

/// The features that this driver accepts, besides those of its queue.
const ACCEPTED: u64 = Features::all().bits() | VERSION_1;
const INDIRECT_DESC: u64 = 1 << 28;
const VERSION_1: u64 = 1 << 32;

/// How an interrupt handler tells a channel that the device's config space has changed. Clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct ConfigInterrupt(Arc<AtomicBool>);

impl ConfigInterrupt {
    /// Tells the channel. For the handler of the device's configuration interrupt.
    ///
    /// Context: any.
    pub fn raise(&self) {
        // Release: what the handler has seen of the device before the flag.
        self.0.store(true, Ordering::Release);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Acquire)
    }
}

/// The most looks at the ring for one answer: some seconds. A device that needs longer costs a
/// [`ChannelError::NoAnswer`] and another attempt, so that the kernel does other work meanwhile.
pub const LONGEST_PATIENCE: u64 = 1 << 26;
/// Attempts to get an answer before a silent device is reset.
const SILENCES: u32 = 8;
/// Looks at the ring between two looks at the device's status, which is an exit to the hypervisor.
const STATUS_LOOKS: u64 = 1 << 16;
/// Looks at the status until a device must have reset.
const RESET_LOOKS: u32 = 1 << 20;
/// Attempts to read a config space that does not change meanwhile.
const GENERATIONS: u32 = 16;

const DRIVER: DeviceStatus = DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER);
const FEATURES_OK: DeviceStatus = DRIVER.union(DeviceStatus::FEATURES_OK);

/// A channel over a transport of the `virtio-drivers` crate.
///
/// If the device fails (DEVICE_NEEDS_RESET, damaged rings, silence, a reset by other code), the request under way ends with
/// an error, and the device is reset and set up again before the next one. No block changes: a device keeps what is plugged
/// over its reset. The driver asks what became of the request.
///
/// Requests are waited for by looking at the ring; the queue's interrupt is not used. Config changes come by the transport's
/// interrupt status, which the channel reads in [`Channel::config_changed`], or by
/// [`with_config_interrupt`](Self::with_config_interrupt), which every kernel with an interrupt handler wants.
pub struct VirtioChannel<H: Hal, T: Transport> {
    /// Before the queue: a transport that resets its device when it is dropped does so before the queue's memory is freed.
    transport: T,
    queue: RequestQueue<H>,
    /// What was agreed on; `None` before the first time.
    features: Option<Features>,
    /// The device has to be set up before it is asked anything.
    is_down: bool,
    /// Attempts without an answer, one after the other.
    silences: u32,
    restarts: u64,
    patience: u64,
    /// Tells of config changes in place of the transport.
    interrupt: Option<ConfigInterrupt>,
}

impl<H: Hal, T: Transport> VirtioChannel<H, T> {
    /// Sets the device up, up to DRIVER_OK. A request is waited for in `patience` looks at the ring, at most
    /// [`LONGEST_PATIENCE`], before it is [`ChannelError::NoAnswer`].
    ///
    /// Context: takes one page by [`Hal::dma_alloc`], waits for the device to reset.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn new(transport: T, patience: u64) -> Result<Self, ChannelError> {
        let mut channel = Self {
            transport,
            queue: RequestQueue::new()?,
            features: None,
            is_down: true,
            silences: 0,
            restarts: 0,
            patience: patience.min(LONGEST_PATIENCE),
            interrupt: None,
        };
        channel.bring_up()?;
        Ok(channel)
    }

    /// Learns from `interrupt` alone that the config space has changed, and no longer asks the transport. Needed with an
    /// interrupt handler, over PCI in any case:
    ///
    /// * with MSI-X the device sends a message and does not set the ISR status (virtio 1.2, 4.1.5.4), which is what
    ///   `PciTransport` reads. Have the vector's handler call [`ConfigInterrupt::raise`];
    /// * with INTx the handler has to read the ISR status, or the line stays up, and the read clears it:
    ///   [`Intx`](crate::Intx) does both.
    ///
    /// It also saves reading that register between requests, an exit to the hypervisor each time.
    #[must_use]
    pub fn with_config_interrupt(mut self, interrupt: ConfigInterrupt) -> Self {
        self.interrupt = Some(interrupt);
        self
    }

    /// How often the device was set up again after it had failed, or after other code had reset it.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Resets the device. Whether the device confirms it.
    fn reset(&mut self) -> bool {
        self.transport.set_status(DeviceStatus::empty());
        (0..RESET_LOOKS).any(|_| {
            core::hint::spin_loop();
            self.transport.get_status().is_empty()
        })
    }

    /// Resets the device and sets it up, as virtio 1.2, 3.1.1 has it.
    fn bring_up(&mut self) -> Result<(), ChannelError> {
        self.is_down = true;
        if !self.reset() {
            return Err(ChannelError::NoReset);
        }
        let set_up = self.negotiate();
        if set_up.is_err() {
            self.transport.set_status(DRIVER | DeviceStatus::FAILED);
            return set_up;
        }
        (self.is_down, self.silences) = (false, 0);
        Ok(())
    }

    fn negotiate(&mut self) -> Result<(), ChannelError> {
        let transport = &mut self.transport;
        transport.set_status(DeviceStatus::ACKNOWLEDGE);
        transport.set_status(DRIVER);
        let offered = transport.read_device_features();
        if offered & VERSION_1 == 0 || transport.requires_legacy_layout() {
            return Err(ChannelError::NotModern);
        }
        let size = transport.max_queue_size(GUEST_REQUEST_QUEUE);
        // A request has two descriptors. Where the queue has place for one, it leads to a table with the two.
        let indirect = size == 1 && offered & INDIRECT_DESC != 0;
        if size < 2 && !indirect {
            return Err(ChannelError::QueueSize(size));
        }
        let accepted = offered & (ACCEPTED | if indirect { INDIRECT_DESC } else { 0 });
        let features = Features::from_bits_truncate(accepted);
        if self.features.is_some_and(|before| before != features) {
            return Err(ChannelError::FeaturesChanged);
        }
        transport.write_driver_features(accepted);
        transport.set_status(FEATURES_OK);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(ChannelError::FeaturesRefused);
        }
        self.queue.set_up(transport, indirect);
        transport.set_status(FEATURES_OK | DeviceStatus::DRIVER_OK);
        if transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Err(ChannelError::NeedsReset);
        }
        self.features = Some(features);
        Ok(())
    }

    /// Sets the device up again if that is due.
    fn ensure_up(&mut self) -> Result<(), ChannelError> {
        if self.is_down {
            self.restarts += 1;
            self.bring_up()?;
        }
        Ok(())
    }

    /// Whether the device is still set up.
    fn check_status(&mut self) -> Result<(), ChannelError> {
        let status = self.transport.get_status();
        let failed = if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            ChannelError::NeedsReset
        } else if !status.contains(DeviceStatus::DRIVER_OK) {
            ChannelError::WasReset
        } else {
            return Ok(());
        };
        self.is_down = true;
        Err(failed)
    }

    /// Waits for the request in flight.
    fn wait(&mut self) -> Result<(Response, u32), ChannelError> {
        let mut looks = 0;
        loop {
            match self.queue.look() {
                Look::Answer(response, len) => {
                    self.silences = 0;
                    return Ok((response, len));
                }
                Look::Damaged => {
                    self.is_down = true;
                    return Err(ChannelError::Damaged);
                }
                Look::Nothing => {}
            }
            looks += 1;
            if looks >= self.patience {
                self.check_status()?;
                self.silences += 1;
                self.is_down = self.silences >= SILENCES;
                return Err(ChannelError::NoAnswer);
            }
            if looks % STATUS_LOOKS == 0 {
                self.check_status()?;
            }
            core::hint::spin_loop();
        }
    }
}

impl<H: Hal, T: Transport> Channel for VirtioChannel<H, T> {
    fn features(&self) -> Features {
        self.features.unwrap_or_default()
    }

    fn config(&mut self) -> Result<ConfigSpace, ChannelError> {
        // A device that fails sends a config interrupt, so this is where the channel learns of it first.
        if self.check_status().is_err() {
            self.ensure_up()?;
        }
        let transport = &self.transport;
        for _ in 0..GENERATIONS {
            let before = transport.read_config_generation();
            // Word by word, as a device sees what is read (virtio 1.2, 2.5.1): a structure may be read in bytes.
            let mut words = [0u32; size_of::<ConfigSpace>() / size_of::<u32>()];
            for (at, word) in words.iter_mut().enumerate() {
                *word = transport.read_config_space(at * size_of::<u32>())?;
            }
            if transport.read_config_generation() == before {
                return Ok(zerocopy::transmute!(words));
            }
        }
        Err(ChannelError::ConfigUnsteady)
    }

    fn config_changed(&mut self) -> bool {
        match &self.interrupt {
            Some(interrupt) => interrupt.take(),
            None => self.transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT),
        }
    }

    fn request(&mut self, request: Request) -> Result<Response, ChannelError> {
        self.ensure_up()?;
        if self.queue.is_waiting() {
            // The answer to a request that the driver has given up and will ask about: it is dropped.
            self.wait()?;
        }
        if self.queue.put(request) {
            self.transport.notify(GUEST_REQUEST_QUEUE);
        }
        match self.wait()? {
            (_, len) if (len as usize) < size_of::<Response>() => Err(ChannelError::Short(len)),
            (response, _) => Ok(response),
        }
    }

    fn restart(&mut self) -> Result<(), ChannelError> {
        self.bring_up()
    }
}

/// Resets the device, so that it no longer uses the queue. The queue of one that does not reset stays allocated for good.
impl<H: Hal, T: Transport> Drop for VirtioChannel<H, T> {
    fn drop(&mut self) {
        if !self.reset() {
            self.queue.abandon();
        }
    }
}

impl<H: Hal, T: Transport> fmt::Debug for VirtioChannel<H, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioChannel").field("features", &self.features).finish_non_exhaustive()
    }
}
