//! The TLB of the processor that runs this.

use core::arch::asm;
use core::ops::Range;

/// Makes this processor forget how these addresses are mapped.
pub fn forget(_: &[Range<u64>]) {
    // SAFETY: page tables say all that a TLB remembers, so a processor may forget any of it at any time.
    unsafe { asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack)) };
}
