//! The kernel's own frames: page tables, what is behind the engine's tables, stacks.
//!
//! # The reserve
//!
//! Unfolding needs frames, frames come from the engine, and taking one from the engine may unfold the map page of its
//! descriptor. So nothing that the engine calls ever asks the engine: it takes frames from a reserve, and fails when that
//! is empty. Whoever is outside of the engine [tops it up](crate::machine::Machine::top_up). At boot the reserve is filled
//! with memory that the engine never sees, so that the first frames can be taken from the engine at all; and it is kept
//! large enough that taking one frame, which needs a map page and its tables at most, always succeeds.
//!
//! Free frames are linked through their own first words. Giving one back needs no memory.

use spin::Mutex;

use crate::layout::{PAGE, direct};

/// Frames that boot takes for itself.
pub const BOOT: u64 = 1024;
/// Below this the reserve wants more.
pub const LOW: u64 = 384;
/// It is filled up to here, and what is above goes back to the engine.
pub const HIGH: u64 = 768;

struct Pool {
    /// The first free frame; 0 for none (that frame is never free: it is the real-mode interrupt table).
    head: u64,
    /// The last one, if there is any.
    tail: u64,
    free: u64,
    lowest: u64,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { head: 0, tail: 0, free: 0, lowest: u64::MAX });

/// A frame of 4 KiB that holds zeros: its physical address. `None` when the reserve is empty.
pub fn take() -> Option<u64> {
    take_chain(1)?.next()
}

/// Gives a frame back, or one more to the reserve.
///
/// # Safety
/// The frame at this physical address is memory in the direct map that nobody uses or can reach any more, not even by a
/// stale translation.
pub unsafe fn give(frame: u64) {
    let mut pool = POOL.lock();
    // SAFETY: ours, by the caller's promise.
    unsafe { direct::<u64>(frame).write(pool.head) };
    if pool.head == 0 {
        pool.tail = frame;
    }
    pool.head = frame;
    pool.free += 1;
}

/// As [`give`], to be taken last.
///
/// # Safety
/// As of [`give`].
pub unsafe fn give_last(frame: u64) {
    let mut pool = POOL.lock();
    // SAFETY: ours, by the caller's promise; and the last free frame is the pool's.
    unsafe {
        direct::<u64>(frame).write(0);
        if pool.head == 0 {
            pool.head = frame;
        } else {
            direct::<u64>(pool.tail).write(frame);
        }
    }
    pool.tail = frame;
    pool.free += 1;
}

/// Frames in the reserve, and the least that there ever were.
pub fn reserve() -> (u64, u64) {
    let pool = POOL.lock();
    (pool.free, pool.lowest.min(pool.free))
}

/// Frames taken together.
pub struct Chain {
    head: u64,
    left: u64,
}

/// Takes `count` frames, or none.
pub fn take_chain(count: u64) -> Option<Chain> {
    let mut pool = POOL.lock();
    if pool.free < count {
        return None;
    }
    let head = pool.head;
    for _ in 0..count {
        // SAFETY: a free frame is memory of ours, in the direct map, and holds the next one's address first.
        pool.head = unsafe { direct::<u64>(pool.head).read() };
    }
    pool.free -= count;
    pool.lowest = pool.lowest.min(pool.free);
    Some(Chain { head, left: count })
}

impl Iterator for Chain {
    type Item = u64;

    /// The next frame; it holds zeros.
    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let frame = self.head;
        // SAFETY: a frame of the chain is ours, and still holds the next one's address.
        self.head = unsafe { direct::<u64>(frame).read() };
        // SAFETY: as above.
        unsafe { direct::<u8>(frame).write_bytes(0, PAGE as usize) };
        Some(frame)
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for frame in self {
            // SAFETY: taken and not used.
            unsafe { give(frame) };
        }
    }
}
