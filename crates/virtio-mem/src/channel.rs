//! How the driver talks to its device: one request at a time.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use bitflags::bitflags;
use pagefold_virtio_mem_spec::{
    BlockState, Config, Features, GUEST_REQUEST_QUEUE, Request, RequestType, Response, ResponseType,
};
use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{InterruptStatus, Transport};
use zerocopy::IntoBytes;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelError {
    /// The queue or the transport does not work.
    Transport(virtio_drivers::Error),
    /// The device has not answered yet. Nothing more can be asked until it does, for it may still act on the request.
    NoAnswer,
    /// The device has written fewer bytes than an answer has.
    Short(u32),
}

impl From<virtio_drivers::Error> for ChannelError {
    fn from(error: virtio_drivers::Error) -> Self {
        ChannelError::Transport(error)
    }
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChannelError::Transport(error) => write!(f, "the device cannot be talked to: {error}"),
            ChannelError::NoAnswer => f.write_str("the device has not answered the last request"),
            ChannelError::Short(bytes) => write!(f, "the device answered with {bytes} bytes instead of 10"),
        }
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

bitflags! {
    /// What this driver accepts.
    #[derive(Clone, Copy, Debug)]
    struct Accepted: u64 {
        const ACPI_PXM = Features::ACPI_PXM.bits();
        const UNPLUGGED_INACCESSIBLE = Features::UNPLUGGED_INACCESSIBLE.bits();
        const PERSISTENT_SUSPEND = Features::PERSISTENT_SUSPEND.bits();
        const VERSION_1 = 1 << 32;
    }
}

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

/// Descriptors of the queue: two a request, one request at a time.
const QUEUE: usize = 2;

/// A channel over a transport of the `virtio-drivers` crate.
pub struct VirtioChannel<H: Hal, T: Transport> {
    /// Before the queue: dropping it resets the device before its rings go.
    transport: T,
    queue: VirtQueue<H, QUEUE>,
    features: Features,
    /// What the device reads and writes. It may do so until it has answered.
    buffers: Box<(Request, Response)>,
    in_flight: Option<u16>,
    patience: u64,
    /// Where the transport has no word of config changes.
    interrupt: Option<ConfigInterrupt>,
}

impl<H: Hal, T: Transport> VirtioChannel<H, T> {
    /// Sets the device up, up to DRIVER_OK. A request is waited for in `patience` looks at the ring before it is
    /// [`ChannelError::NoAnswer`]; Linux waits for ever (`u64::MAX`).
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn new(mut transport: T, patience: u64) -> Result<Self, ChannelError> {
        let accepted = transport.begin_init(Accepted::all());
        let mut queue = VirtQueue::new(&mut transport, GUEST_REQUEST_QUEUE, false, false)?;
        // Answers are polled for. (With VIRTIO_F_EVENT_IDX, which is not accepted, there would be an interrupt for each.)
        queue.set_dev_notify(false);
        transport.finish_init();
        let features = Features::from_bits_truncate(accepted.bits());
        let buffers = Box::new((Request::default(), Response::default()));
        Ok(Self { transport, queue, features, buffers, in_flight: None, patience, interrupt: None })
    }

    /// Learns from `interrupt` alone that the config space has changed, and no longer asks the transport. For PCI with
    /// MSI-X: there the device sends a message and does not set the ISR status (virtio 1.2, 4.1.5.4), which is what
    /// `PciTransport` reads; without MSI-X it saves reading that register, an exit to the hypervisor each time.
    #[must_use]
    pub fn with_config_interrupt(self, interrupt: ConfigInterrupt) -> Self {
        Self { interrupt: Some(interrupt), ..self }
    }

    /// Whether the last request has been answered by now, after [`ChannelError::NoAnswer`]. What it did is not known: ask
    /// for the state.
    fn settle(&mut self) -> Result<Option<u32>, ChannelError> {
        let Some(token) = self.in_flight else { return Ok(None) };
        let mut looks = 0;
        while !self.queue.can_pop() {
            looks += 1;
            if looks >= self.patience {
                return Err(ChannelError::NoAnswer);
            }
            core::hint::spin_loop();
        }
        let (request, response) = &mut *self.buffers;
        // SAFETY: the buffers are those that were added with this token; they live in a box that this channel keeps.
        let used =
            unsafe { self.queue.pop_used(token, &[request.as_bytes()], &mut [response.as_mut_bytes()]) };
        self.in_flight = None;
        Ok(Some(used?))
    }
}

impl<H: Hal, T: Transport> Channel for VirtioChannel<H, T> {
    fn features(&self) -> Features {
        self.features
    }

    fn config(&mut self) -> Result<Config, ChannelError> {
        let transport = &self.transport;
        // Word by word, as a device sees what is read (virtio 1.2, 2.5.1): a structure may be read in bytes.
        let words = transport.read_consistent(|| {
            let mut words = [0u32; size_of::<Config>() / size_of::<u32>()];
            for (at, word) in words.iter_mut().enumerate() {
                *word = transport.read_config_space(at * size_of::<u32>())?;
            }
            Ok::<_, virtio_drivers::Error>(words)
        })?;
        Ok(zerocopy::transmute!(words))
    }

    fn config_changed(&mut self) -> bool {
        match &self.interrupt {
            Some(interrupt) => interrupt.take(),
            None => self.transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT),
        }
    }

    fn request(&mut self, request: Request) -> Result<Response, ChannelError> {
        self.settle()?;
        // A device that writes nothing has not acknowledged anything.
        *self.buffers = (request, Response { kind: 0xffff.into(), ..Response::default() });
        let (request, response) = &mut *self.buffers;
        // SAFETY: the buffers live in a box that this channel keeps, and nobody touches them before `settle` has popped
        // them. When the channel goes, the transport is dropped, and the device reset, before them.
        let token = unsafe { self.queue.add(&[request.as_bytes()], &mut [response.as_mut_bytes()])? };
        self.in_flight = Some(token);
        if self.queue.should_notify() {
            self.transport.notify(GUEST_REQUEST_QUEUE);
        }
        match self.settle()? {
            Some(bytes) if (bytes as usize) < size_of::<Response>() => Err(ChannelError::Short(bytes)),
            _ => Ok(self.buffers.1),
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
