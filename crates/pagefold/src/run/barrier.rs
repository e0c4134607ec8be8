//! A barrier that counts grace periods.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagefold_engine::platform::Barrier;

use crate::rcu::Rcu;

/// A barrier, and how often its writer's half ran: once a grace period.
#[derive(Clone)]
pub struct CountedBarrier {
    inner: Rcu,
    count: Arc<AtomicU64>,
}

impl CountedBarrier {
    pub fn new(inner: Rcu) -> Self {
        Self { inner, count: Arc::default() }
    }

    /// Where it is counted.
    pub fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.count)
    }
}

// SAFETY: both halves are those of `inner`, which keeps the trait's promise; counting comes before and changes nothing.
unsafe impl Barrier for CountedBarrier {
    #[inline]
    fn light(&self) {
        self.inner.light();
    }
    fn heavy(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.inner.heavy();
    }
    fn wait(&self, turn: u32) {
        self.inner.wait(turn);
    }
}
