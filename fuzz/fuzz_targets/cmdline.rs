//! Any text is boot options, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::host::BootOptions;

fuzz_target!(|text: &str| {
    let _ = BootOptions::parse(text);
});
