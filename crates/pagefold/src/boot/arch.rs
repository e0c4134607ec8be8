//! The machine's architecture, and what depends on it.

use clap::ValueEnum;
use pagefold_boot::KernelKind;
use pagefold_qemu::Arch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArchArg {
    /// A PC
    #[value(name = "x86_64")]
    X86_64,
    /// QEMU's board "virt"
    #[value(name = "aarch64")]
    Aarch64,
}

/// CPUs that a GICv2 has interfaces for.
const GIC2_CPUS: u32 = 8;
/// Models of arm64 without atomic instructions (ID_AA64ISAR0_EL1.Atomic is 0).
const WITHOUT_ATOMICS: [&str; 4] = ["cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72"];

impl ArchArg {
    /// Whether a machine with so many CPUs can have that interrupt controller.
    pub fn possible(self, gic: u8, cpus: u32) -> Result<(), String> {
        if self == ArchArg::Aarch64 && gic == 2 && cpus > GIC2_CPUS {
            return Err(format!("--gic: version 2 is for {GIC2_CPUS} CPUs at most"));
        }
        Ok(())
    }

    /// The kernel that a machine with such processors can run.
    pub fn kind(self, cpu: &str) -> KernelKind {
        match self {
            ArchArg::Aarch64 if WITHOUT_ATOMICS.contains(&cpu) => KernelKind::Aarch64LlSc,
            _ => self.arch().into(),
        }
    }

    /// As QEMU has it.
    pub fn arch(self) -> Arch {
        match self {
            ArchArg::X86_64 => Arch::X86_64,
            ArchArg::Aarch64 => Arch::Aarch64,
        }
    }

    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        self.arch().name()
    }
}
