//! Growing and shrinking.

use vm_lab::our_device::{Driven, Wanted};
use vm_lab::{GIB, Kernel};

/// 0, 1, 2 GiB, and back: after each step all accounts agree.
pub fn up_and_down(kernel: &Kernel) {
    let mut driven = Driven::boot(kernel, &Wanted::default()).unwrap();
    for size in [GIB, 2 * GIB, 0] {
        driven.resize(size).unwrap();
        driven.agree().unwrap();
    }
    assert_eq!(driven.backend.status().resident, 0);
}
