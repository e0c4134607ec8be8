//! Registers: of the processor, and of devices.

use zerocopy::{FromBytes, IntoBytes};

/// Reads a system register.
macro_rules! get {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a register has no effect but for what its caller wants of it.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register. What that does is the caller's to know.
macro_rules! set {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack))
    }};
}

pub(super) use {get, set};

/// Reads a device's register. Callers name registers that are mapped, and have that many bits.
pub fn read<T: FromBytes>(address: u64) -> T {
    // SAFETY: a register of that size is mapped there, as callers promise, and any bits of it are a `T`.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes a device's register. Callers name registers as for [`read`], and know what writing does.
pub fn write<T: IntoBytes>(address: u64, value: T) {
    // SAFETY: a register of that size is mapped there, as callers promise.
    unsafe { (address as *mut T).write_volatile(value) };
}

/// Four bits of a register that says what a processor can do.
pub fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

/// Whether ranges can be flushed by one instruction (FEAT_TLBIRANGE).
pub fn flushes_ranges() -> bool {
    field(get!("id_aa64isar0_el1"), 56) >= 2
}

/// Whether there are atomic instructions (FEAT_LSE).
pub fn has_atomics() -> bool {
    field(get!("id_aa64isar0_el1"), 20) >= 2
}

/// Whether the interrupt controller's CPU interface is in system registers (GICv3).
pub fn has_gic_registers() -> bool {
    field(get!("id_aa64pfr0_el1"), 24) >= 1
}
