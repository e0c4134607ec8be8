//! Any text is a workload on a command line, which is printed as it is read, or a mistake in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_workload::WorkloadArg;

fuzz_target!(|text: &str| match WorkloadArg::parse(text) {
    Ok(read) => {
        let printed = read.to_string();
        assert_eq!(WorkloadArg::parse(&printed), Ok(read));
    }
    Err(mistake) => assert!(text.is_char_boundary(mistake.at)),
});
