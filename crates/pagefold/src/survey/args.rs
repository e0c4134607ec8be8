//! Which machine to look at.

use std::path::PathBuf;

use clap::Args;

#[derive(Clone, Debug, Default, Args)]
pub struct SurveyArgs {
    /// Another machine [default: this one]: a snapshot, files of /proc one after the other, what lsmem --json or page-types
    /// -l prints, a sosreport (directory or tar archive); - for standard input
    #[arg(value_name = "FILE|DIR|-")]
    pub file: Option<PathBuf>,

    /// The built-in sample, recorded from a real machine
    #[arg(long, conflicts_with_all = ["file", "root"])]
    pub sample: bool,

    /// Read DIR/proc and DIR/sys: another host's files, or a container's view of the host
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    pub root: Option<PathBuf>,

    /// Read every page's state, or exit with 3 [default: if permitted, so as root]
    #[arg(long, conflicts_with_all = ["no_scan", "file", "sample"])]
    pub scan: bool,

    /// Do not read every page's state: an answer in milliseconds
    #[arg(long, conflicts_with_all = ["file", "sample"])]
    pub no_scan: bool,
}
