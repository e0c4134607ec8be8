//! The door to the hardware: nothing outside touches it.
//!
//! Each architecture has the same names behind it:
//!
//! | name | what |
//! |---|---|
//! | `cpu` | what a processor has of its own (`Own`), finding it (`own`), interrupting the others |
//! | `interrupts` | on, off, wait; `Frame`, what a processor had in its registers |
//! | `tlb` | forgetting translations, here |
//! | `flush` | the same everywhere; what is needed until entries that were made can be used |
//! | `firmware` | what the loader and the firmware say of the machine |
//! | `serial` | the ports for people and for the host |
//! | `lines` | interrupts of PCI devices; their addresses, where firmware has given them none |
//! | `messages` | interrupts of PCI devices that write a number to an address |
//! | `start` | what processors share, and the clock (`init`, `start_clock`); making, entering and starting them |
//! | `ticks`, `activate`, `exit`, `halt`, ... | a function each |
//!
//! The assembly of each calls two files that nothing else uses: `entry` (the first Rust) and `dispatch` (the handlers); and where a
//! processor was started, [`run`](crate::run).

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
