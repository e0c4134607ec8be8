//! Page tables against a flat array: whatever is materialised, folded, read and written, in both architectures' entries.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_pagetable::Gap;
use pagefold_pagetable::aarch64::ArmEntry;
use pagefold_pagetable::simulated::against_flat;
use pagefold_pagetable::x86_64::X86Entry;

fuzz_target!(|bytes: &[u8]| {
    for gap in [Gap::Allowed, Gap::Never] {
        against_flat(X86Entry, gap, bytes);
        against_flat(ArmEntry, gap, bytes);
    }
});
