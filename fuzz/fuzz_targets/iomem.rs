//! Any text is memory ranges, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::layout;

fuzz_target!(|text: &str| {
    assert!(layout::parse_iomem(text).iter().all(|range| range.start < range.end));
});
