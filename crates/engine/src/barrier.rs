//! The asymmetric barrier between readers and those who wait for them.

/// The two halves of an asymmetric barrier, and how to wait.
///
/// # Safety
///
/// For any call of `heavy` on one thread and `light` on another, both threads agree on an order of the two, as if each
/// were a sequentially consistent fence: either what preceded `heavy` is seen by what follows `light`, or what preceded
/// `light` is seen by what follows `heavy`. That holds for any two values that one platform gives out. No call unwinds.
pub unsafe trait Barrier: Send + Sync {
    /// The reader's half: runs at every outermost section, so it should cost nothing.
    fn light(&self);
    /// The writer's half: runs once a grace period. Freeing allocates nothing, and calls nothing of the machine, so it does
    /// not depend on this; folding does. An interrupt call that allocates must not need what the folder holds.
    fn heavy(&self);
    /// Whether the caller is where [`heavy`](Self::heavy) and [`wait`](Self::wait) may be called: not with interrupts off if
    /// `heavy` sends some, not under a lock that a reader inside a section may want, not inside a section. Asked in debug
    /// builds, which stop there; a kernel that can tell says it here.
    fn may_wait(&self) -> bool {
        true
    }
    /// A writer has found a reader inside for the `turn`th time and may rest a little.
    fn wait(&self, turn: u32) {
        let _ = turn;
        crate::sync::spin_loop();
    }
}

/// Both halves are sequentially consistent fences. Correct everywhere, and the fallback where nothing better exists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fences;

// SAFETY: two SeqCst fences are totally ordered, and C11 29.3p4-7 gives each the view the trait asks for.
unsafe impl Barrier for Fences {
    #[inline]
    fn light(&self) {
        crate::sync::fence(crate::sync::Ordering::SeqCst);
    }
    fn heavy(&self) {
        crate::sync::fence(crate::sync::Ordering::SeqCst);
    }
}
