//! PSCI: processors on, the machine off.

use core::sync::atomic::{AtomicBool, Ordering};

use smccc::psci::{self, error::Error};
use smccc::{Hvc, Smc};

/// Whether it is called by SMC, as the device tree says. Relaxed: noted at boot.
static IS_SMC: AtomicBool = AtomicBool::new(false);

/// Notes how it is called.
pub fn init(is_smc: bool) {
    IS_SMC.store(is_smc, Ordering::Relaxed);
}

/// Starts a processor at a physical address, with its MMU off.
pub fn start(id: u64, entry: u64, context: u64) -> Result<(), Error> {
    if IS_SMC.load(Ordering::Relaxed) {
        psci::cpu_on::<Smc>(id, entry, context)
    } else {
        psci::cpu_on::<Hvc>(id, entry, context)
    }
}

/// Turns the machine off.
pub fn off() {
    let _ =
        if IS_SMC.load(Ordering::Relaxed) { psci::system_off::<Smc>() } else { psci::system_off::<Hvc>() };
}
