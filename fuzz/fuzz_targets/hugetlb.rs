//! Any name is that of a directory of huge pages, or not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::host::hugetlb;

fuzz_target!(|name: &str| {
    assert!(hugetlb::parse_dir(name).is_none_or(u64::is_power_of_two));
});
