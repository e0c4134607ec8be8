//! The PC's interval timer, against which the time-stamp counter is measured.

use x86_64::instructions::port::Port;

use super::ticks;
use crate::clock;

/// Ticks of the interval timer in a second.
const PIT_HZ: u64 = 1_193_182;
/// How long to measure, in its ticks: 20 ms.
const MEASURE: u16 = (PIT_HZ / 50) as u16;

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
        clock::set_rate(per_ms);
        (first, last)
    }
}
