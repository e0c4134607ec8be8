//! The TLBs of all processors: others forget when they are interrupted.

use core::ops::Range;

use pagefold_pagetable::{Flush, HUGE};

use crate::remote;

/// Makes every processor forget.
pub fn flush(what: Flush<'_>) {
    match what {
        Flush::Ranges(ranges) => remote::flush(ranges),
        // More than is forgotten one by one.
        Flush::All => remote::flush(core::slice::from_ref(&(0..HUGE))),
    }
}

/// Nothing: no processor remembers an entry that is not present, so what was made can be used at once.
pub fn made(_: Range<u64>) {}

/// How often [`made`] flushed.
pub fn after_making() -> u64 {
    0
}
