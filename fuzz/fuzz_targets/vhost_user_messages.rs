//! A VMM that says anything to the vhost-user backend: it lives, and serves the next one.

#![no_main]

#[path = "../../crates/virtio-mem-vhost/tests/common/hostile.rs"]
mod hostile;
#[path = "../../crates/virtio-mem-vhost/tests/common/vmm.rs"]
mod vmm;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    hostile::run(bytes);
});
