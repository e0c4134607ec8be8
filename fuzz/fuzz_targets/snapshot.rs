//! Any bytes are an error or a machine.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::snapshot;

fuzz_target!(|bytes: &[u8]| {
    let _ = snapshot::read(bytes);
});
