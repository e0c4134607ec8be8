//! `pagefold-fleet beside [HOSTS]`: every query of `docs/sql` over so many generated hosts, with one process of DataFusion and
//! with Ballista (a scheduler and two executors on this machine), and how long they take. The other commands are the parts of
//! Ballista's cluster.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use datafusion::prelude::SessionContext;
use pagefold_fleet::cluster::{self, Cluster};
use pagefold_fleet::{hosts, queries};

const USAGE: &str = "usage: pagefold-fleet beside [HOSTS] | scheduler | executor HOST:PORT";
/// How often each query runs; the median is told.
const TIMES: usize = 3;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["scheduler"] => cluster::run_scheduler(),
        ["executor", scheduler] => cluster::run_executor(scheduler),
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

fn beside(count: usize) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let begin = Instant::now();
    hosts::export(&hosts::hosts(count), dir.path());
    eprintln!("{count} hosts, two days each, exported in {:.0} s", begin.elapsed().as_secs_f64());
    let cluster = Cluster::start(&env::current_exe()?, 2)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(compare(dir.path(), &cluster))
}

async fn compare(dir: &Path, cluster: &Cluster) -> Result<(), Box<dyn Error>> {
    let one = queries::datafusion(dir).await?;
    let many = queries::ballista(&cluster.url(), dir).await?;
    println!("| query | rows | DataFusion, one process | Ballista, two executors |\n|---|---|---|---|");
    for query in queries::all()? {
        let (rows, one) = timed(&one, &query.sql).await?;
        let (others, many) = timed(&many, &query.sql).await?;
        if rows != others {
            return Err(format!("{}: the two do not agree", query.name).into());
        }
        println!(
            "| {} | {} | {:.2} s | {:.2} s |",
            query.name,
            rows.len(),
            one.as_secs_f64(),
            many.as_secs_f64()
        );
    }
    Ok(())
}

/// The result, and the median of the times.
async fn timed(context: &SessionContext, sql: &str) -> Result<(Vec<queries::Row>, Duration), Box<dyn Error>> {
    let mut times = Vec::new();
    let mut rows = Vec::new();
    for _ in 0..TIMES {
        let begin = Instant::now();
        rows = queries::run(context, sql).await?;
        times.push(begin.elapsed());
    }
    times.sort();
    Ok((rows, times[TIMES / 2]))
}
