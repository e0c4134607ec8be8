//! Where the kernel is.

use std::path::{Path, PathBuf};

/// What makes it.
pub const BUILD: &str = "guest/build";

/// The kernel that `guest/build` made: in the sources that this was built from, or beside the program that runs.
pub fn find_kernel() -> Option<PathBuf> {
    const NAME: &str = "pagefold-guest";
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest").join(NAME);
    let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join(NAME)));
    [Some(sources), beside].into_iter().flatten().find(|path| path.is_file())
}
