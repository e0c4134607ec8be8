//! The TLB of the processor that runs this.

use core::arch::asm;
use core::ops::Range;

/// Makes this processor forget how these addresses are mapped.
pub fn forget(_: &[Range<u64>]) {
    // SAFETY: forgets, and waits for it: as much as it likes may be forgotten.
    unsafe { asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack)) };
}
