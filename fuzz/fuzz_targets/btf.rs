//! Any bytes are an error or types.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::host::btf;

fuzz_target!(|bytes: &[u8]| {
    let _ = btf::structs(bytes, &[("page", "memcg_data"), ("memory_block", "")]);
});
