//! A virtio-mem driver beside a device whose configuration and answers are the fuzzer's.

#![no_main]

#[path = "../../crates/virtio-mem/tests/common/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::survive(bytes));
