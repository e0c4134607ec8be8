//! How the processors stood when the machine ends: each is stopped and says it for itself, one after the other.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use crate::arch::interrupts::Frame;
use crate::layout::image;
use crate::{arch, clock, console, cpu};

/// Nanoseconds that the others have to say how they stand. Emulated processors take turns on few real ones, which may have other
/// work, so this is long; one that cannot be stopped at all makes the end wait for so long.
const PATIENCE: u64 = 10_000_000_000;

/// Others are being stopped, for a dump.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// How many have said how they stand.
static DUMPED: AtomicU64 = AtomicU64::new(0);
/// Whose turn it is.
static TURN: Mutex<()> = Mutex::new(());

/// Stops all other processors and lets them say how they stood, one after the other.
pub fn stop_others() {
    STOPPING.store(true, Ordering::Release);
    arch::cpu::stop_others();
    let others = cpu::count() as u64 - 1;
    let deadline = clock::now() + PATIENCE;
    while DUMPED.load(Ordering::Acquire) < others && clock::now() < deadline {
        core::hint::spin_loop();
    }
}

/// Whether somebody stops all other processors.
pub fn is_stopping() -> bool {
    STOPPING.load(Ordering::Acquire)
}

/// This processor is stopped: says how it stood when its turn comes, and stands still for ever.
pub fn stop(frame: &Frame) -> ! {
    {
        let _turn = TURN.lock();
        processor(cpu::this().number, frame);
    }
    DUMPED.fetch_add(1, Ordering::Release);
    arch::halt()
}

/// Says how a processor stands.
pub fn processor(number: usize, frame: &Frame) {
    console::print_anyway(format_args!("{}", Dump { number, frame }));
}

struct Dump<'a> {
    number: usize,
    frame: &'a Frame,
}

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dump { number, frame } = self;
        write!(f, "processor {number}  {frame}  called from")?;
        backtrace(f, frame)?;
        f.write_char('\n')
    }
}

/// Return addresses, by the chain of frame pointers, as far as it makes sense.
fn backtrace(f: &mut fmt::Formatter<'_>, frame: &Frame) -> fmt::Result {
    let [start, text_end, ..] = image();
    let stack = &cpu::this().stack;
    let mut at = frame.frame_pointer();
    for _ in 0..16 {
        // Two words of this processor's stack; anything else might fault again.
        if !at.is_multiple_of(8) || at < stack.start || at + 16 > stack.end {
            break;
        }
        // SAFETY: two words of a stack that is mapped for ever.
        let (next, back) = unsafe { ((at as *const u64).read(), (at as *const u64).add(1).read()) };
        if !(start..text_end).contains(&back) {
            break;
        }
        write!(f, " {back:#x}")?;
        if next <= at {
            break;
        }
        at = next;
    }
    Ok(())
}
