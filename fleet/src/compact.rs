//! A day of many hosts as a few files. Hosts write a file each; engines read a few large ones many times faster.

use std::fs;
use std::path::Path;

use datafusion::error::DataFusionError;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::queries::location;

/// The version of the layout, as the command writes it into its files' metadata.
const LAYOUT: &str = "'format.metadata::pagefold.layout' '1'";

/// Writes every day of the fleet in `from` that `to` does not have yet. Each appears whole or not at all. Returns how many. What
/// arrives for a day after it was written is not added to it.
///
/// # Errors
/// A day cannot be read or written; those before it are there.
pub async fn compact(from: &Path, to: &Path) -> Result<usize, DataFusionError> {
    let mut days = Vec::new();
    for entry in fs::read_dir(from)? {
        days.push(entry?.file_name().to_string_lossy().into_owned());
    }
    days.retain(|name| name.starts_with("date=") && !to.join(name).exists());
    days.sort();
    fs::create_dir_all(to)?;
    for day in &days {
        compact_day(&from.join(day), to, day).await?;
    }
    Ok(days.len())
}

async fn compact_day(from: &Path, to: &Path, day: &str) -> Result<(), DataFusionError> {
    // Engines leave out what begins with a dot.
    let unfinished = to.join(format!(".{day}"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    // Directories `host=` say what a column of the files says.
    let config =
        SessionConfig::new().set_bool("datafusion.execution.listing_table_factory_infer_partitions", false);
    let context = SessionContext::new_with_config(config);
    let table = format!("CREATE EXTERNAL TABLE day STORED AS PARQUET LOCATION {}", location(from));
    context.sql(&table).await?;
    // By host, so that the columns that are the same in all rows of one cost nothing here either.
    let copy = format!(
        "COPY (SELECT * FROM day ORDER BY host, ts, start_pfn) TO {} STORED AS PARQUET OPTIONS ({LAYOUT})",
        location(&unfinished)
    );
    context.sql(&copy).await?.collect().await?;
    fs::rename(unfinished, to.join(day))?;
    Ok(())
}
