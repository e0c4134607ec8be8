//! Notices a processor that makes no progress, and knows how each stood when all stopped.
//!
//! Every processor's loop counts its rounds. Every processor's timer looks at the next one's count; when that has not
//! changed for too long, all are stopped by interrupts that cannot be masked, and say where they were.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagefold_boot_protocol::GuestExit;

use crate::arch::interrupts::Frame;
use crate::{arch, clock, cpu, fault};

/// Ticks of 10 ms without progress that are too many; 0 for none.
static PATIENCE: AtomicU64 = AtomicU64::new(0);
/// Others are being stopped, for a dump.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// How many have said how they stand.
static DUMPED: AtomicU64 = AtomicU64::new(0);
/// Whose turn it is.
static TURN: spin::Mutex<()> = spin::Mutex::new(());

/// Sets how long a processor may be silent.
pub fn set_seconds(seconds: u16) {
    PATIENCE.store(u64::from(seconds) * 100, Ordering::Relaxed);
}

/// The processor that runs this makes progress.
pub fn beat() {
    cpu::this().beats.fetch_add(1, Ordering::Relaxed);
}

/// A tick of this processor's timer.
pub fn tick(frame: &Frame) {
    let patience = PATIENCE.load(Ordering::Relaxed);
    let Some(other) = cpu::get((cpu::this().number + 1) % cpu::count()) else { return };
    let beats = other.beats.load(Ordering::Relaxed);
    if other.seen.swap(beats, Ordering::Relaxed) != beats {
        other.silent.store(0, Ordering::Relaxed);
        return;
    }
    let silent = other.silent.fetch_add(1, Ordering::Relaxed);
    if patience > 0 && silent > patience {
        let seconds = patience / 100;
        fault::end(
            GuestExit::Hang,
            Some(frame),
            format_args!(
                "processor {} for {seconds} s; processor {} noticed",
                other.number,
                cpu::this().number
            ),
        );
    }
}

/// Stops all other processors and lets them say how they stood, one after the other.
pub fn dump_others() {
    STOPPING.store(true, Ordering::Release);
    arch::cpu::stop_others();
    let others = cpu::count() as u64 - 1;
    let deadline = clock::now() + 2_000_000_000;
    while DUMPED.load(Ordering::Acquire) < others && clock::now() < deadline {
        core::hint::spin_loop();
    }
}

/// An interrupt that cannot be masked: another processor ends the machine, or somebody outside pressed the button.
pub fn stopped(frame: &Frame) -> ! {
    if !STOPPING.load(Ordering::Acquire) {
        let number = cpu::this().number;
        fault::end(
            GuestExit::Hang,
            Some(frame),
            format_args!("interrupted from outside, on processor {number}"),
        );
    }
    {
        let _turn = TURN.lock();
        fault::dump(cpu::this().number, frame);
    }
    DUMPED.fetch_add(1, Ordering::Release);
    arch::halt()
}
