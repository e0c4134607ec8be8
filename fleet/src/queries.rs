//! The canned queries, and the two engines that run them.

use std::fs;
use std::path::{Path, PathBuf};

#[cfg(feature = "ballista")]
use ballista::prelude::SessionContextExt;
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::error::DataFusionError;
#[cfg(feature = "ballista")]
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};

/// One row of a result: texts, and numbers as whole ones.
pub type Cells = Vec<String>;

/// A query of `docs/sql`.
pub struct Query {
    /// Its name, without `.sql`.
    pub name: String,
    /// Its text, unchanged.
    pub sql: String,
}

/// Where they are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sql")
}

/// All of them, by name.
///
/// # Errors
/// The directory cannot be read.
pub fn all() -> std::io::Result<Vec<Query>> {
    let mut queries = Vec::new();
    for entry in fs::read_dir(directory())? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        queries.push(Query { name, sql: fs::read_to_string(path)? });
    }
    queries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(queries)
}

/// One process of DataFusion, which knows the fleet in `dir` as `runs`.
///
/// # Errors
/// The fleet cannot be read.
pub async fn datafusion(dir: &Path) -> Result<SessionContext, DataFusionError> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_information_schema(true));
    know(&context, dir).await?;
    Ok(context)
}

/// Ballista at `url`, which knows the same.
///
/// # Errors
/// The scheduler cannot be reached, or the fleet cannot be read.
#[cfg(feature = "ballista")]
pub async fn ballista(url: &str, dir: &Path) -> Result<SessionContext, DataFusionError> {
    let config = crate::cluster::config().with_target_partitions(2);
    let state = SessionStateBuilder::new().with_config(config).with_default_features().build();
    let context = SessionContext::remote_with_state(url, state).await?;
    know(&context, dir).await?;
    Ok(context)
}

async fn know(context: &SessionContext, dir: &Path) -> Result<(), DataFusionError> {
    let table = format!(
        "CREATE EXTERNAL TABLE runs STORED AS PARQUET PARTITIONED BY (date) LOCATION {}",
        location(dir)
    );
    context.sql(&table).await?;
    Ok(())
}

/// A directory as SQL has it: a string, in which quotes are doubled.
pub(crate) fn location(path: &Path) -> String {
    format!("'{}/'", path.display().to_string().replace('\'', "''"))
}

/// Runs a query.
///
/// # Errors
/// It fails.
pub async fn run(context: &SessionContext, sql: &str) -> Result<Vec<Cells>, DataFusionError> {
    cells(&context.sql(sql).await?.collect().await?)
}

fn cells(batches: &[RecordBatch]) -> Result<Vec<Cells>, DataFusionError> {
    let mut rows = Vec::new();
    for batch in batches {
        let mut columns = Vec::new();
        for column in batch.columns() {
            let whole = match column.data_type() {
                DataType::Float64 => cast(column, &DataType::Int64)?,
                _ => column.clone(),
            };
            columns.push(cast(&whole, &DataType::Utf8)?);
        }
        rows.extend(
            (0..batch.num_rows()).map(|row| columns.iter().map(|column| cell(column, row)).collect()),
        );
    }
    Ok(rows)
}

fn cell(column: &ArrayRef, row: usize) -> String {
    match column.as_any().downcast_ref::<StringArray>() {
        Some(texts) if !texts.is_null(row) => texts.value(row).to_owned(),
        _ => "null".into(),
    }
}
