//! A hostile driver at the virtio-mem device's queue. What it does and what must hold is `tests/common/hostile.rs` of the
//! device, which runs in its tests too.

#![no_main]

#[path = "../../crates/virtio-mem-device/tests/common/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    hostile::run(bytes);
});
