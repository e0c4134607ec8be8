//! Device and queue, saved together: the queue's indices mean nothing without the device that has answered so far, nor the
//! device without them.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};

use crate::device::Device;
use crate::host::{Backing, GuestAccess};
use crate::settings::Settings;
use crate::snapshot::{RestoreError, Snapshot};

/// A device and its queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    device: Snapshot,
    #[serde(with = "Words")]
    queue: QueueState,
}

/// What files have of a queue: `QueueState` has no form of its own for them.
#[derive(Serialize, Deserialize)]
#[serde(remote = "QueueState")]
struct Words {
    max_size: u16,
    size: u16,
    next_avail: u16,
    next_used: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    /// `serve` tells the queue.
    #[serde(skip)]
    event_idx_enabled: bool,
}

impl Saved {
    /// The device, for who keeps queues elsewhere.
    pub fn device(&self) -> &Snapshot {
        &self.device
    }
}

impl<B: Backing, G: GuestAccess> Device<B, G> {
    /// The state of this device and its queue; freezes the device, as [`Device::snapshot`] does. Save the memory of
    /// [`Device::plugged_ranges`] beside it.
    pub fn save(&mut self, queue: &Queue) -> Saved {
        let queue = QueueState { event_idx_enabled: false, ..queue.state() };
        Saved { device: self.snapshot(), queue }
    }

    /// The device and the queue that were saved; [`Device::serve`](crate::Device::serve) next. As [`Device::restore`]: what
    /// was saved is not trusted.
    ///
    /// # Errors
    /// [`RestoreError`]; memory stays as it is.
    pub fn load(
        settings: Settings,
        backing: B,
        guest: G,
        saved: &Saved,
    ) -> Result<(Self, Queue), RestoreError> {
        let queue = Queue::try_from(saved.queue)
            .map_err(|_| RestoreError::Damaged("the queue is one that there cannot be"))?;
        Ok((Self::restore(settings, backing, guest, &saved.device)?, queue))
    }
}
