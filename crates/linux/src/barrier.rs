//! `membarrier(2)`: readers pay nothing, writers make every running thread of the process pass a full barrier.

use std::io;
use std::sync::atomic::{Ordering, compiler_fence};

use pagefold_engine::platform::Barrier;
use rustix::thread::{MembarrierCommand, membarrier};

/// The asymmetric barrier of Linux (4.14 and later).
#[derive(Clone, Copy, Debug)]
pub struct Membarrier {
    _registered: (),
}

impl Membarrier {
    /// Registers the process, as the kernel wants before the first use.
    ///
    /// # Errors
    /// What the kernel says; `ENOSYS` or `EINVAL` where it has no such call.
    pub fn register() -> io::Result<Self> {
        membarrier(MembarrierCommand::RegisterPrivateExpedited)?;
        membarrier(MembarrierCommand::PrivateExpedited)?;
        Ok(Self { _registered: () })
    }
}

// SAFETY: PRIVATE_EXPEDITED returns when every running thread of the process has passed a full memory barrier since the
// call, and threads that are not running have passed one when they were descheduled (membarrier(2)). The reader's half
// only has to keep the compiler from moving accesses across; whichever side of that barrier the reader's program order
// is on decides which of the two orders of the trait's contract holds.
unsafe impl Barrier for Membarrier {
    #[inline]
    fn light(&self) {
        compiler_fence(Ordering::SeqCst);
    }

    fn heavy(&self) {
        if membarrier(MembarrierCommand::PrivateExpedited).is_ok() {
            return;
        }
        // A forked child is not registered.
        let again = membarrier(MembarrierCommand::RegisterPrivateExpedited)
            .and_then(|()| membarrier(MembarrierCommand::PrivateExpedited))
            .or_else(|_| membarrier(MembarrierCommand::Global));
        if again.is_err() {
            // It worked when it was registered. To go on without it would be to unmap memory under readers.
            std::process::abort();
        }
    }

    fn wait(&self, turn: u32) {
        wait(turn);
    }
}

/// Readers are inside for nanoseconds, unless they were descheduled: then give them the CPU.
fn wait(turn: u32) {
    if turn < 32 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Both halves are sequentially consistent fences, as [`pagefold_engine::platform::Fences`]; waits by yielding.
#[derive(Clone, Copy, Debug, Default)]
pub struct YieldingFences(pagefold_engine::platform::Fences);

// SAFETY: both halves are those of `Fences`.
unsafe impl Barrier for YieldingFences {
    #[inline]
    fn light(&self) {
        self.0.light();
    }
    fn heavy(&self) {
        self.0.heavy();
    }
    fn wait(&self, turn: u32) {
        wait(turn);
    }
}
