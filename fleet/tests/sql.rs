//! A hundred hosts, two days each, exported by the real command; and every query of docs/sql, run by DataFusion, held against what
//! the hosts were made of. With the feature `ballista` the same by Ballista: a scheduler and two executors, processes on loopback.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pagefold_fleet::compact;
use pagefold_fleet::hosts::{self, Host, PAGES};
use pagefold_fleet::queries::{self, Cells};

const HOSTS: usize = 100;
const PAGE: i64 = 4096;
const DESCRIPTOR: i64 = 64;

fn sorted(mut rows: Vec<(i64, Cells)>) -> Vec<Cells> {
    // As the queries do: the most first, then by name.
    rows.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn row(cells: &[&dyn ToString]) -> Cells {
    cells.iter().map(|cell| cell.to_string()).collect()
}

/// Bytes that HVO gives back of 2 MiB pages: 7 of 8 pages of descriptors each.
fn savable(host: &Host) -> i64 {
    host.huge * 7 * PAGE
}

fn expected(name: &str, hosts: &[Host]) -> Vec<Cells> {
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

/// All files below a directory.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_says_what_the_hosts_were_made_of() {
    // With a quote in their names, as SQL has to be told.
    let directory = || tempfile::Builder::new().prefix("the fleet's ").tempdir().unwrap();
    let dir = directory();
    let hosts = hosts::hosts(HOSTS);
    assert_eq!(hosts.len(), HOSTS);
    hosts::export(&hosts, dir.path());
    let one = queries::datafusion(dir.path()).await.unwrap();
    #[cfg(feature = "ballista")]
    let program = Path::new(env!("CARGO_BIN_EXE_pagefold-fleet"));
    #[cfg(feature = "ballista")]
    let cluster = pagefold_fleet::cluster::Cluster::start(program, 2).unwrap();
    let days = directory();
    assert_eq!(compact::compact(dir.path(), days.path()).await.unwrap(), 2);
    assert_eq!(compact::compact(dir.path(), days.path()).await.unwrap(), 0, "they are there");
    let engines = [
        ("DataFusion", &one),
        ("DataFusion, days compacted", &queries::datafusion(days.path()).await.unwrap()),
        #[cfg(feature = "ballista")]
        ("Ballista", &queries::ballista(&cluster.url(), dir.path()).await.unwrap()),
        #[cfg(feature = "ballista")]
        ("Ballista, days compacted", &queries::ballista(&cluster.url(), days.path()).await.unwrap()),
    ];
    let queries = queries::all().unwrap();
    assert_eq!(queries.len(), 7);
    for query in queries {
        let expected = expected(&query.name, &hosts);
        assert!(!expected.is_empty(), "{} is put to no test", query.name);
        for (engine, context) in engines {
            let rows = queries::run(context, &query.sql).await;
            let rows = rows.unwrap_or_else(|error| panic!("{engine}, {}: {error}", query.name));
            assert_eq!(rows, expected, "{engine}: {}", query.name);
        }
    }
    // Few files, which say their layout as those of the command do.
    let files = walk(days.path());
    assert!((2..=16).contains(&files.len()), "{files:?}");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        assert!(bytes.windows(15).any(|word| word == b"pagefold.layout"), "{file:?}");
    }
    // The columns that the documentation names, the partition last; and all pages of all hosts.
    let columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'runs'";
    let columns = queries::run(&one, columns).await.unwrap();
    let documented = fs::read_to_string(queries::directory().join("../fleet.md")).unwrap();
    for column in &columns {
        assert!(documented.contains(&format!("`{}`", column[0])), "{column:?}");
    }
    assert_eq!(columns.len(), 16);
    let all = "SELECT sum(pages), count(DISTINCT host), count(DISTINCT date) FROM runs";
    let pages = PAGES * HOSTS as i64 * 2;
    for (engine, context) in engines {
        assert_eq!(queries::run(context, all).await.unwrap(), [row(&[&pages, &HOSTS, &2])], "{engine}");
    }
}
