//! The kernel's own frames: page tables, what is behind the engine's tables, stacks.
//!
//! # The reserve
//!
//! Unfolding needs frames, frames come from the engine, and taking one from the engine may unfold the map page of its
//! descriptor. So nothing that the engine calls ever asks the engine: it takes frames from a reserve, and fails when that
//! is empty. Code outside of the engine [tops it up](crate::machine::top_up). At boot the reserve is filled
//! with memory that the engine never sees, so that the first frames can be taken from the engine at all; and it is kept
//! large enough that taking one frame, which needs a map page and its tables at most, always succeeds.
//!
//! Boot's own frames are used first, so that those of the engine are there to be given back.
//!
//! Free frames are linked through their own first words. Giving one back needs no memory.

use core::ops::Range;

use spin::Mutex;

use crate::layout::{PAGE, direct};

/// Frames that boot takes for itself, those for processors' stacks not counted.
pub const BOOT: u64 = 1024;
/// Below this the reserve wants more.
pub const LOW: u64 = 384;
/// It is filled up to here, and what the engine lent above that goes back to it.
pub const HIGH: u64 = 768;

/// Free frames, linked.
struct List {
    /// The first one; 0 for none (that frame is never free: it is the real-mode interrupt table).
    head: u64,
    len: u64,
}

impl List {
    const EMPTY: List = List { head: 0, len: 0 };

    /// Takes the first one, as it is.
    fn pop(&mut self) -> Option<u64> {
        let frame = self.head;
        if frame == 0 {
            return None;
        }
        // SAFETY: a free frame is memory of ours, in the direct map, and holds the next one's address first.
        self.head = unsafe { direct::<u64>(frame).read() };
        self.len -= 1;
        Some(frame)
    }

    /// # Safety
    /// As of [`give`].
    unsafe fn push(&mut self, frame: u64) {
        // SAFETY: ours, by the caller's promise.
        unsafe { direct::<u64>(frame).write(self.head) };
        self.head = frame;
        self.len += 1;
    }
}

struct Pool {
    /// Boot's, and the engine's.
    own: List,
    lent: List,
    lowest: u64,
    /// Where boot's frames lie, in bytes: those that came first, and those that came after.
    boot: [Range<u64>; 2],
}

static POOL: Mutex<Pool> =
    Mutex::new(Pool { own: List::EMPTY, lent: List::EMPTY, lowest: u64::MAX, boot: [0..0, 0..0] });

impl Pool {
    fn free(&self) -> u64 {
        self.own.len + self.lent.len
    }

    fn pop(&mut self) -> Option<u64> {
        let frame = self.own.pop().or_else(|| self.lent.pop());
        self.lowest = self.lowest.min(self.free());
        frame
    }

    /// # Safety
    /// As of [`give`].
    unsafe fn push(&mut self, frame: u64) {
        let list =
            if self.boot.iter().any(|range| range.contains(&frame)) { &mut self.own } else { &mut self.lent };
        // SAFETY: the caller's promise.
        unsafe { list.push(frame) };
    }
}

/// Gives the reserve frames of boot's: all of a range, in bytes. The first ones, and once more, when it is known what else boot
/// needs.
///
/// # Safety
/// The range is memory in the direct map that nobody else uses.
pub unsafe fn add(boot: Range<u64>) {
    let mut pool = POOL.lock();
    if let Some(place) = pool.boot.iter_mut().find(|range| range.is_empty()) {
        *place = boot.clone();
    }
    for frame in boot.step_by(PAGE as usize) {
        // SAFETY: the caller's promise.
        unsafe { pool.push(frame) };
    }
}

/// A frame of 4 KiB that holds zeros: its physical address. `None` when the reserve is empty.
pub fn take() -> Option<u64> {
    take_chain(1)?.next()
}

/// A frame that the engine lent, as it is, if the reserve has more than it wants.
pub fn take_lent() -> Option<u64> {
    let mut pool = POOL.lock();
    if pool.free() > HIGH { pool.lent.pop() } else { None }
}

/// Gives a frame back, or one more to the reserve.
///
/// # Safety
/// The frame at this physical address is memory in the direct map that nobody uses or can reach any more, not even by a
/// stale translation.
pub unsafe fn give(frame: u64) {
    // SAFETY: the caller's promise.
    unsafe { POOL.lock().push(frame) };
}

/// How many frames boot took for itself.
pub fn of_boot() -> u64 {
    POOL.lock().boot.iter().map(|range| (range.end - range.start) / PAGE).sum()
}

/// Frames in the reserve, and the least that there ever were.
pub fn reserve() -> (u64, u64) {
    let pool = POOL.lock();
    (pool.free(), pool.lowest.min(pool.free()))
}

/// Frames taken together, linked as free ones are.
pub struct Chain(List);

/// Takes `count` frames, or none.
pub fn take_chain(count: u64) -> Option<Chain> {
    let mut pool = POOL.lock();
    if pool.free() < count {
        return None;
    }
    let mut chain = List::EMPTY;
    for _ in 0..count {
        if let Some(frame) = pool.pop() {
            // SAFETY: a free frame, ours now.
            unsafe { chain.push(frame) };
        }
    }
    Some(Chain(chain))
}

impl Iterator for Chain {
    type Item = u64;

    /// The next frame; it holds zeros.
    fn next(&mut self) -> Option<u64> {
        let frame = self.0.pop()?;
        // SAFETY: a frame of the chain is ours alone.
        unsafe { direct::<u8>(frame).write_bytes(0, PAGE as usize) };
        Some(frame)
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        while let Some(frame) = self.0.pop() {
            // SAFETY: taken and not used.
            unsafe { give(frame) };
        }
    }
}
