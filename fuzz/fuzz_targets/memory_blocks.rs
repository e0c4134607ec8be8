//! Any text is a block size, a state and a zone, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::host::blocks;

fuzz_target!(|text: &str| {
    let _ = (blocks::parse_block_size(text), blocks::OnlineState::parse(text), blocks::parse_zone(text));
});
