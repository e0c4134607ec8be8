//! A virtio-mem device's snapshot that is not trusted. What is done with it and what must hold is `tests/common/damage.rs` of
//! the device, which runs in its tests too.

#![no_main]

#[path = "../../crates/virtio-mem-device/tests/common/damage.rs"]
mod damage;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    damage::run(bytes);
});
