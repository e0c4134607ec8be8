//! The guest's kernel in QEMU, from the host: booted, asked, and understood when it ends.
//!
//! [`Guest`] is one that runs, [`Lost`] why it says nothing any more, [`Ending`] how it ended, with the names of functions
//! in its dump. What both ends say is [`pagefold_boot_protocol`].

mod ending;
mod guest;
mod kernel;
mod lost;
mod settle;
mod symbols;

pub use ending::Ending;
pub use guest::{Guest, PATIENCE};
pub use kernel::{BUILD, KernelKind, VARIABLE, find_kernel, find_kernel_of};
pub use lost::{Lost, nonsense};
pub use settle::Rest;
