//! What the driver needs of its device: the config space, and one request at a time.

use pagefold_virtio_mem_spec::{
    ConfigSpace, Features, PlugState, Request, RequestType, Response, ResponseType,
};
use thiserror::Error;

/// Why there is no answer. At a probe the variant says what to do; later the driver resets the device where that helps,
/// and asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChannelError {
    /// The transport does not work, or there is no DMA memory for the queue: correct the transport, or free memory.
    #[error("the device cannot be talked to: {0}")]
    Transport(#[from] virtio_drivers::Error),
    /// The device has not answered yet. It may still act on the request, so no other is made until it answers; a device
    /// that stays silent is reset.
    #[error("the device has not answered the last request")]
    NoAnswer,
    /// The device has written fewer bytes than an answer has. The driver asks it for the state of the range.
    #[error("the device answered with {0} bytes instead of 10")]
    Short(u32),
    /// The device does not offer VIRTIO_F_VERSION_1, or has legacy queues only. Memory devices are never legacy devices:
    /// correct the host.
    #[error("the device is a legacy device, which no memory device can be")]
    NotModern,
    /// The device refuses the features that it offered itself: correct the host.
    #[error("the device refuses the features it was offered back")]
    FeaturesRefused,
    /// The device offers other features than before it was reset: end this driver and probe again.
    #[error("the device offers other features than before it was reset: probe it again")]
    FeaturesChanged,
    /// The device's queue has this many entries, too few for a request, which needs two, or one and VIRTIO_F_INDIRECT_DESC:
    /// correct the host.
    #[error("the device's queue has {0} entries, too few for a request")]
    QueueSize(u32),
    /// The device does not confirm a reset. The driver tries again.
    #[error("the device does not reset")]
    NoReset,
    /// The device has failed and said so (DEVICE_NEEDS_RESET). It is reset before the next request.
    #[error("the device has failed and has to be reset")]
    NeedsReset,
    /// Other code than this channel has reset the device. It is set up again before the next request.
    #[error("the device was reset by other code")]
    WasReset,
    /// The device has returned what it was never given. It is reset before the next request.
    #[error("the device returned what it was never given")]
    Damaged,
    /// The config space changed while it was read, several times. The driver reads it again.
    #[error("the device's config space changes faster than it can be read")]
    ConfigUnsteady,
}

/// A way to a virtio-mem device: [`VirtioChannel`](crate::VirtioChannel), or one of your own. A driver calls it where it is
/// called itself, from [`Driver::step`](crate::Driver::step) and its like, never from an interrupt handler.
pub trait Channel {
    /// The features that both ends agreed on.
    fn features(&self) -> Features;

    /// Reads the config space. Its fields are of one moment.
    ///
    /// # Errors
    /// [`ChannelError`].
    fn config(&mut self) -> Result<ConfigSpace, ChannelError>;

    /// Whether the device has said since the last call that its config space changed. The driver calls this between any two
    /// requests, so it should be cheap. A missed change costs time only: the driver reads the config space before it rests.
    fn config_changed(&mut self) -> bool;

    /// Makes a request and waits, in bounds, for the response. It is returned as the device wrote it, unchecked.
    ///
    /// # Errors
    /// [`ChannelError`].
    fn request(&mut self, request: Request) -> Result<Response, ChannelError>;

    /// Sets the device up again, after a sleep or another channel has reset it. The default is for channels without a set-up:
    /// it does nothing.
    ///
    /// # Errors
    /// [`ChannelError`]. It may be tried again.
    fn restart(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }
}

/// What a response means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Done.
    Ack,
    /// Acknowledged, with the state that was asked for.
    State(PlugState),
    /// It would pass the requested size.
    Nack,
    /// Not now.
    Busy,
    /// Not with this range.
    Error,
    /// None of the responses that the specification has for the request.
    Malformed,
}

/// What `response` to a request of type `asked` means. Only its type counts, and its state where that was asked for and
/// acknowledged.
pub(crate) fn interpret(asked: RequestType, response: &Response) -> Reply {
    match (ResponseType::try_from(response.kind.get()), asked) {
        (Ok(ResponseType::Ack), RequestType::State) => {
            PlugState::try_from(response.state.get()).map_or(Reply::Malformed, Reply::State)
        }
        (Ok(ResponseType::Ack), _) => Reply::Ack,
        // Only PLUG can pass the requested size.
        (Ok(ResponseType::Nack), RequestType::Plug) => Reply::Nack,
        (Ok(ResponseType::Busy), RequestType::Plug | RequestType::Unplug | RequestType::UnplugAll) => {
            Reply::Busy
        }
        (Ok(ResponseType::Error), _) => Reply::Error,
        _ => Reply::Malformed,
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
                            0 => Reply::State(PlugState::Plugged),
                            1 => Reply::State(PlugState::Unplugged),
                            2 => Reply::State(PlugState::Mixed),
                            _ => Reply::Malformed,
                        },
                        (0, _) => Reply::Ack,
                        (1, Plug) => Reply::Nack,
                        (2, Plug | Unplug | UnplugAll) => Reply::Busy,
                        (3, _) => Reply::Error,
                        _ => Reply::Malformed,
                    };
                    assert_eq!(interpret(asked, &response), expected, "{asked:?} {kind} {state}");
                }
            }
        }
    }
}
