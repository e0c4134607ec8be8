//! Pictures of physical memory, as this command is asked for them: its arguments, the terminal, and files.

mod args;
mod files;
mod terminal;

pub use self::args::PictureArgs;
pub use self::files::{PAPER, PictureFiles};
