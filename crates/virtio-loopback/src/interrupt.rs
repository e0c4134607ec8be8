//! Interrupts, as bits that a driver looks at.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_drivers::transport::InterruptStatus;

/// The interrupt line of one device. Clones are the same line.
#[derive(Clone, Default)]
pub struct InterruptLine {
    shared: Arc<(Mutex<InterruptStatus>, Condvar)>,
}

impl std::fmt::Debug for InterruptLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InterruptLine").field("pending", &self.pending().bits()).finish()
    }
}

impl InterruptLine {
    /// What is pending. It stays pending.
    pub fn pending(&self) -> InterruptStatus {
        *self.bits()
    }

    /// What is pending; it no longer is.
    pub fn take(&self) -> InterruptStatus {
        std::mem::take(&mut *self.bits())
    }

    /// Waits until something is pending, or until `timeout` has passed. What is pending stays so.
    pub fn wait(&self, timeout: Duration) -> InterruptStatus {
        let idle = |bits: &mut InterruptStatus| bits.is_empty();
        let waited = self.shared.1.wait_timeout_while(self.bits(), timeout, idle);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The device's config space has changed.
    pub fn raise_config(&self) {
        self.raise(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
    }

    pub(crate) fn raise(&self, interrupt: InterruptStatus) {
        self.bits().insert(interrupt);
        self.shared.1.notify_all();
    }

    fn bits(&self) -> MutexGuard<'_, InterruptStatus> {
        // Bits are whole whatever panicked.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
