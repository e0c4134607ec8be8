//! TLBs: other processors forget when they are interrupted.

use core::ops::Range;

use pagefold_pagetable::{Flush, HUGE, PAGE};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

use crate::remote;

/// Pages that are forgotten one by one; for more, everything is.
const ONE_BY_ONE: u64 = 64;

/// Makes this processor forget how these addresses are mapped.
pub fn forget(ranges: &[Range<u64>]) {
    let pages: u64 = ranges.iter().map(|range| (range.end - range.start) / PAGE).sum();
    if pages > ONE_BY_ONE {
        // The engine's tables are not global: this forgets them, and what the processor kept of the levels above.
        tlb::flush_all();
        return;
    }
    for range in ranges {
        for page in range.clone().step_by(PAGE as usize) {
            tlb::flush(VirtAddr::new(page));
        }
    }
}

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
