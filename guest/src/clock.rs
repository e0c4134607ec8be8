//! Time: the time-stamp counter, measured against the PC's interval timer.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::Port;

/// Ticks of the interval timer in a second.
const PIT_HZ: u64 = 1_193_182;
/// How long to measure, in its ticks: 20 ms.
const MEASURE: u16 = (PIT_HZ / 50) as u16;

/// Ticks of the counter in a millisecond; and where it stood at boot.
static TICKS_PER_MS: AtomicU64 = AtomicU64::new(1_000_000);
static START: AtomicU64 = AtomicU64::new(0);

/// The time-stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Notes the moment of boot.
pub fn start() {
    START.store(ticks(), Ordering::Relaxed);
}

/// Measures the counter; takes 20 ms. `meanwhile` is called at the beginning and at the end of exactly that time.
pub fn measure<T>(mut meanwhile: impl FnMut() -> T) -> (T, T) {
    let (mut gate, mut command, mut counter) =
        (Port::<u8>::new(0x61), Port::<u8>::new(0x43), Port::<u8>::new(0x42));
    // SAFETY: the ports of a PC's interval timer and of its gate; channel 2 drives nothing but the speaker, kept off.
    unsafe {
        let before = gate.read() & !3;
        gate.write(before);
        // Channel 2, low byte then high byte, mode 0: the output rises when the count ends.
        command.write(0b1011_0000);
        counter.write((MEASURE & 0xff) as u8);
        counter.write((MEASURE >> 8) as u8);
        gate.write(before | 1);
        let (first, from) = (meanwhile(), ticks());
        // A timer that is not there would never end: the counter is no slower than 100 MHz, nor faster than 100 GHz.
        while gate.read() & 0x20 == 0 && ticks() - from < 2_000_000_000 {}
        let (last, to) = (meanwhile(), ticks());
        gate.write(before);
        let per_ms = (to - from) * PIT_HZ / u64::from(MEASURE) / 1000;
        TICKS_PER_MS.store(per_ms.max(1), Ordering::Relaxed);
        (first, last)
    }
}

/// Nanoseconds since boot.
pub fn now() -> u64 {
    let ticks = ticks().saturating_sub(START.load(Ordering::Relaxed));
    (u128::from(ticks) * 1_000_000 / u128::from(TICKS_PER_MS.load(Ordering::Relaxed))) as u64
}

/// Waits.
pub fn wait(ns: u64) {
    let end = now() + ns;
    while now() < end {
        core::hint::spin_loop();
    }
}
