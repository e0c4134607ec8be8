//! The arguments of `pagefold report`.

use clap::Args;

use super::columns::Column;
use crate::size::{UnitArgs, parse_percent};
use crate::survey::SurveyArgs;

/// What page metadata costs a machine, where, and what would save it
///
/// Reads, and never changes anything. Without root the answer takes milliseconds and comes from counters: descriptors by
/// node, zone, memory block and huge page size, where they lie, what HVO saves and could save, page tables. As root, or
/// from a snapshot file, every page's state adds what the memory is used for, fake-offline pages, and what exactly folding
/// would leave. Every number says whether it was measured, counted or computed; counters that disagree are shown.
///
/// Exit codes: 0 fine, 1 failure, 2 usage, 3 something that this kernel has could not be read (the rest is printed),
/// 10 descriptors cost more than --fail-over.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold report                       this machine
  pagefold report --no-scan             as root: only counters, in milliseconds
  pagefold report web7.pgf              a machine recorded with `pagefold snapshot`
  pagefold report sosreport.tar.xz      what was collected elsewhere; or its directory
  cat /proc/zoneinfo | pagefold report -
  pagefold report --root /host          another root: a container that has the host's in /host
  pagefold report -o RANGE,STATE,ZONES  memory blocks in columns, as lsmem has them
  pagefold report --fail-over 1.6%      exit code 10 if descriptors cost more than that
  pagefold report --block 12            why can this memory block not be taken offline?
  pagefold report --json | jq .hvo.left
")]
pub struct ReportArgs {
    #[command(flatten)]
    pub survey: SurveyArgs,

    /// List every memory block
    #[arg(long, help_heading = "Output")]
    pub blocks: bool,

    /// Print only memory blocks, in these columns: as lsmem, those that are alike in one line; with --blocks every one
    #[arg(
        long,
        short,
        value_name = "COLUMNS",
        value_enum,
        ignore_case = true,
        value_delimiter = ',',
        conflicts_with_all = ["json", "block"],
        help_heading = "Output",
    )]
    pub output: Vec<Column>,

    /// Why can this memory block not be taken offline? What lies in it, and whose it is (as root)
    #[arg(
        long,
        value_name = "N",
        value_parser = parse_block,
        conflicts_with_all = ["blocks", "fail_over", "no_scan"],
    )]
    pub block: Option<u64>,

    /// Exit with 10 if descriptors cost more than this part of memory
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub fail_over: Option<f64>,

    /// Print the result as JSON (its schema: `pagefold export --schema`)
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    #[command(flatten)]
    pub units: UnitArgs,
}

/// A memory block's number, or its name (`memory12`).
fn parse_block(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("memory").unwrap_or(text);
    number.parse().map_err(|_| format!("'{text}' is no memory block; try 12 or memory12"))
}
