//! Any text is free blocks, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::host::buddyinfo;

fuzz_target!(|text: &str| {
    for zone in buddyinfo::parse(text) {
        let _ = zone.pages_from(0);
    }
});
