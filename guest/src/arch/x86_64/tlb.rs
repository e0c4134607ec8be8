//! The TLB of the processor that runs this.

use core::ops::Range;

use pagefold_pagetable::PAGE;
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

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
