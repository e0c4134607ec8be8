//! A hundred hosts, two days each, exported by the real command; and every query of docs/sql, held against what the
//! hosts were made of.

mod fleet;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::prelude::{SessionConfig, SessionContext};
use fleet::{HOSTS, Host, PAGES, hosts};

const PAGE: i64 = 4096;
const DESCRIPTOR: i64 = 64;

fn sql_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sql")
}

/// One row of a result: texts, and numbers as whole ones.
type Row = Vec<String>;

fn cells(batches: &[RecordBatch]) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| {
                let whole = match column.data_type() {
                    DataType::Float64 => cast(column, &DataType::Int64).unwrap(),
                    _ => column.clone(),
                };
                cast(&whole, &DataType::Utf8).unwrap()
            })
            .collect();
        for row in 0..batch.num_rows() {
            let cell = |column: &datafusion::arrow::array::ArrayRef| {
                let column = column.as_any().downcast_ref::<datafusion::arrow::array::StringArray>().unwrap();
                if column.is_null(row) { "null".into() } else { column.value(row).to_owned() }
            };
            rows.push(columns.iter().map(cell).collect());
        }
    }
    rows
}

fn run(dir: &Path, sql: &str) -> Vec<Row> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = SessionConfig::new().with_information_schema(true);
        let context = SessionContext::new_with_config(config);
        let table = format!(
            "CREATE EXTERNAL TABLE runs STORED AS PARQUET PARTITIONED BY (date) LOCATION '{}/'",
            dir.display()
        );
        context.sql(&table).await.unwrap();
        let frame = context.sql(sql).await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
        cells(&frame.collect().await.unwrap_or_else(|error| panic!("{error}\n{sql}")))
    })
}

fn sorted(mut rows: Vec<(i64, Row)>) -> Vec<Row> {
    // As the queries do: the most first, then by name.
    rows.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn row(cells: &[&dyn ToString]) -> Row {
    cells.iter().map(|cell| cell.to_string()).collect()
}

/// Bytes that HVO gives back of 2 MiB pages: 7 of 8 pages of descriptors each.
fn savable(host: &Host) -> i64 {
    host.huge * 7 * PAGE
}

fn expected(name: &str, hosts: &[Host]) -> Vec<Row> {
    match name {
        "hvo_savable" => {
            let with = hosts.iter().filter(|host| host.huge > 0);
            sorted(
                with.map(|host| (savable(host), row(&[&host.name, &host.hvo, &host.huge, &savable(host)])))
                    .collect(),
            )
        }
        "hvo_unused" => {
            let stale = hosts.iter().filter(|host| host.hvo && host.huge > 0 && !host.is_optimised);
            sorted(
                stale
                    .map(|host| (savable(host), row(&[&host.name, &savable(host), &savable(host)])))
                    .collect(),
            )
        }
        "fake_offline" => {
            let with = hosts.iter().filter(|host| host.offline > 0);
            sorted(
                with.map(|host| {
                    let (memory, descriptors) = (host.offline * PAGE, host.offline * DESCRIPTOR);
                    (memory, row(&[&host.name, &memory, &descriptors]))
                })
                .collect(),
            )
        }
        "descriptors_by_state" => {
            let mut states: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
            for (state, pages) in hosts.iter().flat_map(Host::states).filter(|&(_, pages)| pages > 0) {
                let (hosts, all) = states.entry(state).or_default();
                *hosts += 1;
                *all += pages;
            }
            let rows = states.into_iter().map(|(state, (hosts, pages))| {
                (pages, row(&[&state, &hosts, &(pages * PAGE), &(pages * DESCRIPTOR)]))
            });
            sorted(rows.collect())
        }
        "folding" => {
            let rows = hosts.iter().map(|host| {
                let bytes = host.map_pages_left() * PAGE;
                (bytes, row(&[&host.name, &bytes]))
            });
            sorted(rows.collect())
        }
        "hotplug" => {
            // 12 GiB / 64; the small hosts of this fleet all lack it.
            let needed = (12i64 << 30) / 64;
            let rows = hosts.iter().map(|host| {
                let free = host.free() * PAGE;
                (-free, row(&[&host.name, &free, &needed]))
            });
            sorted(rows.filter(|(free, _)| -free < needed).collect())
        }
        "growth" => {
            let rows = hosts.iter().filter(|host| host.grown > 0).map(|host| {
                let bytes = host.grown * PAGE;
                (bytes, row(&[&host.name, &"slab", &bytes]))
            });
            sorted(rows.collect())
        }
        _ => panic!("docs/sql/{name}.sql has no test"),
    }
}

#[test]
fn every_query_says_what_the_hosts_were_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = hosts();
    assert_eq!(hosts.len(), HOSTS);
    fleet::export(&hosts, dir.path());
    let mut queries: Vec<_> = fs::read_dir(sql_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    queries.sort();
    assert_eq!(queries.len(), 7);
    for path in queries {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let rows = run(dir.path(), &fs::read_to_string(&path).unwrap());
        let expected = expected(name, &hosts);
        assert!(!expected.is_empty(), "{name} is put to no test");
        assert_eq!(rows, expected, "{name}");
    }
    // The columns that the documentation names, the partition last; and all pages of all hosts.
    let columns =
        run(dir.path(), "SELECT column_name FROM information_schema.columns WHERE table_name = 'runs'");
    let documented = fs::read_to_string(sql_dir().join("../fleet.md")).unwrap();
    for column in &columns {
        assert!(documented.contains(&format!("`{}`", column[0])), "{column:?}");
    }
    assert_eq!(columns.len(), 16);
    let all = run(dir.path(), "SELECT sum(pages), count(DISTINCT host), count(DISTINCT date) FROM runs");
    let pages = PAGES * HOSTS as i64 * 2;
    assert_eq!(all, [row(&[&pages, &HOSTS, &2])]);
}
