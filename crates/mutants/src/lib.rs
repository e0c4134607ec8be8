//! Do the checks notice when the engine is wrong? A list of mutants (each a change of one place in the source) says what
//! should, and this crate tries it: on a copy of the workspace, so that the product carries no switches for it.
//!
//! The list lies in `crates/model/mutants`, the litmus tests for what no test can judge in
//! `crates/model/litmus`; `docs/verification.md` tells what is proved how.

pub mod list;
pub mod litmus;
pub mod run;
pub mod scratch;
pub mod table;
pub mod weave;

use std::path::{Path, PathBuf};

/// The root of the workspace that this crate was built in.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}
