//! Any text is zones with pages, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::host::Counters;
use pagefold_machine::layout;

fuzz_target!(|text: &str| {
    assert!(layout::parse_zoneinfo(text).iter().all(|zone| zone.present > 0));
    let _ = Counters::parse(text);
});
