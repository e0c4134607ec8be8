//! `pagefold-fleet compact FROM TO` writes each day of a fleet as a few files. `pagefold-fleet beside [HOSTS]` runs every query of
//! `docs/sql` over so many generated hosts, with one process of DataFusion and with Ballista (a scheduler and two executors on
//! this machine), and tells how long they take. The other commands are the parts of Ballista's cluster.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use datafusion::prelude::SessionContext;
use pagefold_fleet::cluster::{self, Cluster};
use pagefold_fleet::compact::compact;
use pagefold_fleet::{hosts, queries};
use tokio::runtime::Runtime;

const USAGE: &str = "usage: pagefold-fleet compact FROM TO | beside [HOSTS] | scheduler | executor HOST:PORT";
/// How often each query runs; the median is told. (Over a file a host and day: once.)
const TIMES: usize = 3;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["scheduler"] => cluster::run_scheduler(),
        ["executor", scheduler] => cluster::run_executor(scheduler),
        ["compact", from, to] => compact_all(Path::new(from), Path::new(to)),
        ["beside"] => beside(10_000),
        ["beside", count] if count.parse().is_ok_and(|count: usize| count > 0) => {
            beside(count.parse().unwrap_or(1))
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pagefold-fleet: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compact_all(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let days = Runtime::new()?.block_on(compact(from, to))?;
    eprintln!("{days} days written to {}", to.display());
    Ok(())
}

fn beside(count: usize) -> Result<(), Box<dyn Error>> {
    let (dir, days) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let begin = Instant::now();
    hosts::export(&hosts::hosts(count), dir.path());
    eprintln!("{count} hosts, two days each, exported in {:.0} s", begin.elapsed().as_secs_f64());
    let pool = Runtime::new()?;
    let begin = Instant::now();
    pool.block_on(compact(dir.path(), days.path()))?;
    eprintln!("two days compacted in {:.1} s", begin.elapsed().as_secs_f64());
    let cluster = Cluster::start(&env::current_exe()?, 2)?;
    pool.block_on(compare(dir.path(), days.path(), &cluster))
}

async fn compare(files: &Path, days: &Path, cluster: &Cluster) -> Result<(), Box<dyn Error>> {
    let as_exported = queries::datafusion(files).await?;
    let one = queries::datafusion(days).await?;
    let many = queries::ballista(&cluster.url(), days).await?;
    println!(
        "| query | rows | a file a host: DataFusion | days compacted: DataFusion | Ballista, two executors |"
    );
    println!("|---|---|---|---|---|");
    for query in queries::all()? {
        let (rows, slow) = timed(&as_exported, &query.sql, 1).await?;
        let mut cells = format!("| {} | {} | {:.2} s |", query.name, rows.len(), slow.as_secs_f64());
        for engine in [&one, &many] {
            let (others, took) = timed(engine, &query.sql, TIMES).await?;
            if rows != others {
                return Err(format!("{}: they do not agree", query.name).into());
            }
            cells += &format!(" {:.2} s |", took.as_secs_f64());
        }
        println!("{cells}");
    }
    Ok(())
}

/// The result, and the median of the times.
async fn timed(
    context: &SessionContext,
    sql: &str,
    runs: usize,
) -> Result<(Vec<queries::Cells>, Duration), Box<dyn Error>> {
    let mut times = Vec::new();
    let mut rows = Vec::new();
    for _ in 0..runs {
        let begin = Instant::now();
        rows = queries::run(context, sql).await?;
        times.push(begin.elapsed());
    }
    times.sort();
    Ok((rows, times[runs / 2]))
}
