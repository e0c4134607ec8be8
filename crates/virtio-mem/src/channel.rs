//! How the driver talks to its device: one request at a time.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use pagefold_virtio_mem_spec::{
    BlockState, Config, Features, GUEST_REQUEST_QUEUE, Request, RequestType, Response, ResponseType,
};
use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use crate::queue::{Look, RequestQueue};

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelError {
    /// The transport does not work, or there is no memory for the queue.
    Transport(virtio_drivers::Error),
    /// The device has not answered yet. Nothing more can be asked until it does, for it may still act on the request; when
    /// it stays silent it is reset.
    NoAnswer,
    /// The device has written fewer bytes than an answer has.
    Short(u32),
    /// The device does not offer VIRTIO_F_VERSION_1, or has legacy queues only: memory devices are never legacy devices.
    NotModern,
    /// The device does not work with the features that were accepted out of what it offers.
    FeaturesRefused,
    /// The device offers other features than before it was reset: end this driver and probe again.
    FeaturesChanged,
    /// The device's queue is too small for a request: it has so many entries, two are needed, or one and
    /// VIRTIO_F_INDIRECT_DESC.
    QueueSize(u32),
    /// The device was told to reset, and does not say that it has.
    NoReset,
    /// The device has failed and said so (DEVICE_NEEDS_RESET). It is reset before it is asked anything more.
    NeedsReset,
    /// The device was reset by somebody else. It is set up again before it is asked anything more.
    WasReset,
    /// The device has returned what it was never given. It is reset before it is asked anything more.
    Damaged,
    /// The config space changed every time it was read.
    ConfigUnsteady,
}

impl From<virtio_drivers::Error> for ChannelError {
    fn from(error: virtio_drivers::Error) -> Self {
        ChannelError::Transport(error)
    }
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChannelError::Transport(error) => return write!(f, "the device cannot be talked to: {error}"),
            ChannelError::Short(bytes) => {
                return write!(f, "the device answered with {bytes} bytes instead of 10");
            }
            ChannelError::QueueSize(size) => {
                return write!(f, "the device's queue has {size} entries, too few for a request");
            }
            ChannelError::NoAnswer => "the device has not answered the last request",
            ChannelError::NotModern => "the device is a legacy device, which no memory device can be",
            ChannelError::FeaturesRefused => "the device refuses the features it was offered back",
            ChannelError::FeaturesChanged => {
                "the device offers other features than before it was reset: probe it again"
            }
            ChannelError::NoReset => "the device does not reset",
            ChannelError::NeedsReset => "the device has failed and has to be reset",
            ChannelError::WasReset => "the device was reset by somebody else",
            ChannelError::Damaged => "the device returned what it was never given",
            ChannelError::ConfigUnsteady => "the device's config space changes faster than it can be read",
        })
    }
}
impl core::error::Error for ChannelError {}

/// A way to a virtio-mem device.
pub trait Channel {
    /// The features that both ends agreed on.
    fn features(&self) -> Features;

    /// The config space, consistent in itself.
    ///
    /// # Errors
    /// [`ChannelError`].
    fn config(&mut self) -> Result<Config, ChannelError>;

    /// Whether the device has said since the last time that its config space changed. A driver looks here between any two
    /// requests, so it should be cheap; and it reads the config space before it rests, so a change that nobody was told of
    /// is found then.
    fn config_changed(&mut self) -> bool;

    /// Asks, and returns what the device wrote. It may be anything.
    ///
    /// # Errors
    /// [`ChannelError`].
    fn request(&mut self, request: Request) -> Result<Response, ChannelError>;

    /// Sets the device up anew, after it was reset by a sleep or by another channel. Channels without anything to set up
    /// have nothing to do.
    ///
    /// # Errors
    /// [`ChannelError`]. It may be tried again.
    fn restart(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ack,
    /// Acknowledged, with the state that was asked for.
    State(BlockState),
    /// It would pass the requested size.
    Nack,
    /// Not now.
    Busy,
    /// Not with this range.
    Error,
    /// Nothing that the specification knows.
    Malformed,
}

/// What `response` to a request of type `asked` means. Everything but the type, and a state that was asked for and
/// acknowledged, is ignored.
pub fn interpret(asked: RequestType, response: &Response) -> Answer {
    match (ResponseType::try_from(response.kind.get()), asked) {
        (Ok(ResponseType::Ack), RequestType::State) => {
            BlockState::try_from(response.state.get()).map_or(Answer::Malformed, Answer::State)
        }
        (Ok(ResponseType::Ack), _) => Answer::Ack,
        // Only PLUG can pass the requested size.
        (Ok(ResponseType::Nack), RequestType::Plug) => Answer::Nack,
        (Ok(ResponseType::Busy), RequestType::Plug | RequestType::Unplug | RequestType::UnplugAll) => {
            Answer::Busy
        }
        (Ok(ResponseType::Error), _) => Answer::Error,
        _ => Answer::Malformed,
    }
}

/// What this driver accepts of a device's features, besides what its queue needs.
const ACCEPTED: u64 = Features::all().bits() | VERSION_1;
const INDIRECT_DESC: u64 = 1 << 28;
const VERSION_1: u64 = 1 << 32;

/// What an interrupt handler tells a channel: the device's config space has changed. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct ConfigInterrupt(Arc<AtomicBool>);

impl ConfigInterrupt {
    /// To be called by the handler of the device's configuration interrupt. It takes no lock and allocates nothing.
    pub fn raise(&self) {
        // Release: what the handler has seen of the device before the flag.
        self.0.store(true, Ordering::Release);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Acquire)
    }
}

/// Looks at the ring that a request is waited for at most, whatever patience was asked for: some seconds. A device that
/// needs longer is waited for by [`ChannelError::NoAnswer`] and another attempt, so nothing stands still meanwhile.
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
/// A device that fails (DEVICE_NEEDS_RESET, rings that make no sense, silence, a reset by somebody else) costs the request
/// that was under way an error, and is reset and set up again before the next one. That changes no block: a device keeps
/// what is plugged over its reset. What became of the request is the driver's to ask.
pub struct VirtioChannel<H: Hal, T: Transport> {
    /// Before the queue: a transport that resets its device when it goes does so before the queue's memory goes.
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
    /// Where the transport has no word of config changes.
    interrupt: Option<ConfigInterrupt>,
}

impl<H: Hal, T: Transport> VirtioChannel<H, T> {
    /// Sets the device up, up to DRIVER_OK. A request is waited for in `patience` looks at the ring, at most
    /// [`LONGEST_PATIENCE`], before it is [`ChannelError::NoAnswer`].
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

    /// Learns from `interrupt` alone that the config space has changed, and no longer asks the transport. For PCI with
    /// MSI-X: there the device sends a message and does not set the ISR status (virtio 1.2, 4.1.5.4), which is what
    /// `PciTransport` reads; without MSI-X it saves reading that register, an exit to the hypervisor each time.
    #[must_use]
    pub fn with_config_interrupt(mut self, interrupt: ConfigInterrupt) -> Self {
        self.interrupt = Some(interrupt);
        self
    }

    /// How often the device was reset and set up again, since it failed or was reset by somebody else.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Resets the device. Whether it says that it has.
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

    /// Whether the device still is as it was set up.
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

    fn config(&mut self) -> Result<Config, ChannelError> {
        // A device that fails says so by a config interrupt, so this is where it is heard of first.
        if self.check_status().is_err() {
            self.ensure_up()?;
        }
        let transport = &self.transport;
        for _ in 0..GENERATIONS {
            let before = transport.read_config_generation();
            // Word by word, as a device sees what is read (virtio 1.2, 2.5.1): a structure may be read in bytes.
            let mut words = [0u32; size_of::<Config>() / size_of::<u32>()];
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
            // The answer to a request that was given up: what it did has to be asked for, so it says nothing any more.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_specification_knows_has_a_meaning() {
        use RequestType::{Plug, State, Unplug, UnplugAll};
        for asked in [Plug, Unplug, UnplugAll, State] {
            for kind in 0..=u16::MAX {
                for state in [0, 1, 2, 3, 0xffff] {
                    let response = Response { kind: kind.into(), state: state.into(), ..Response::default() };
                    let expected = match (kind, asked) {
                        (0, State) => match state {
                            0 => Answer::State(BlockState::Plugged),
                            1 => Answer::State(BlockState::Unplugged),
                            2 => Answer::State(BlockState::Mixed),
                            _ => Answer::Malformed,
                        },
                        (0, _) => Answer::Ack,
                        (1, Plug) => Answer::Nack,
                        (2, Plug | Unplug | UnplugAll) => Answer::Busy,
                        (3, _) => Answer::Error,
                        _ => Answer::Malformed,
                    };
                    assert_eq!(interpret(asked, &response), expected, "{asked:?} {kind} {state}");
                }
            }
        }
    }
}
