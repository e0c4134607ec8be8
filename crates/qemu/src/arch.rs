//! Architectures that machines may have.

use crate::QEMU;

/// A machine's architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arch {
    /// A PC.
    #[default]
    X86_64,
    /// The board "virt".
    Aarch64,
}

impl Arch {
    /// Its name, as Rust, Linux and QEMU have it.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// QEMU for it, as Debian's packages name it.
    pub const fn program(self) -> &'static str {
        match self {
            Arch::X86_64 => QEMU,
            Arch::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// The machine that is made unless told otherwise.
    pub const fn machine(self) -> &'static str {
        match self {
            Arch::X86_64 => "q35",
            Arch::Aarch64 => "virt,gic-version=3",
        }
    }
}
