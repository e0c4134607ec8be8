//! Any text is counters, or none; and they tell the size of a page, or do not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::host::{Counters, PageSize};

fuzz_target!(|texts: (&str, &str)| {
    let (meminfo, vmstat) = (Counters::parse(texts.0), Counters::parse(texts.1));
    assert!(PageSize::find(false, &meminfo, &vmstat).bytes.is_power_of_two());
});
