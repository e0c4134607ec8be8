//! Any bytes are an error or a machine; and a machine can be summed up.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::{Tally, snapshot};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(machine) = snapshot::read(bytes) {
        let _ = Tally::of(&machine);
    }
});
