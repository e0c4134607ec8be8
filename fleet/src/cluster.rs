//! Ballista on this machine: a scheduler and executors, each a process (`pagefold-fleet scheduler`, `executor`) that listens on
//! loopback, and ends when its stdin does.

use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ballista::prelude::SessionConfigExt;
use ballista_core::serde::BallistaCodec;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_scheduler::standalone::new_standalone_scheduler_from_state;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionConfig;
use tempfile::TempDir;

/// What a part of a cluster says when it is up, before its address.
const READY: &str = "ready ";

/// Bytes of a message between the parts. A task names all its files, with what is in them: about a kilobyte each. Of a larger task
/// the executors never hear, and the query does not end.
const MESSAGE: usize = 256 << 20;

/// How all parts talk.
pub(crate) fn config() -> SessionConfig {
    SessionConfig::new_with_ballista().with_ballista_grpc_client_max_message_size(MESSAGE)
}

/// A scheduler and executors. Dropping it ends them.
pub struct Cluster {
    parts: Vec<Child>,
    address: SocketAddr,
    /// Where executors keep what they exchange.
    _work: TempDir,
}

impl Cluster {
    /// Starts them, with the program of this crate.
    ///
    /// # Errors
    /// A process cannot be started, or does not come up.
    pub fn start(program: &Path, executors: usize) -> io::Result<Self> {
        let work = tempfile::tempdir()?;
        let mut parts = Vec::new();
        let address = part(program, &["scheduler"], work.path(), &mut parts)?;
        let address = address.parse().map_err(io::Error::other)?;
        for _ in 0..executors {
            part(program, &["executor", &format!("{address}")], work.path(), &mut parts)?;
        }
        Ok(Self { parts, address, _work: work })
    }

    /// What a client connects to.
    pub fn url(&self) -> String {
        format!("df://{}", self.address)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for part in &mut self.parts {
            drop(part.stdin.take());
        }
        for part in &mut self.parts {
            let _ = part.wait();
        }
    }
}

/// Starts a part, waits until it is up, and returns what it says then.
fn part(program: &Path, args: &[&str], work: &Path, parts: &mut Vec<Child>) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        // Executors make their directories there.
        .env("TMPDIR", work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?;
    parts.push(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    match line.trim_end().strip_prefix(READY) {
        Some(said) => Ok(said.to_owned()),
        None => Err(io::Error::other(format!("{args:?} did not come up"))),
    }
}

/// The scheduler's process.
///
/// # Errors
/// It cannot listen.
pub fn run_scheduler() -> Result<(), Box<dyn std::error::Error>> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let state = SessionStateBuilder::new().with_config(config()).with_default_features().build();
        let address = new_standalone_scheduler_from_state(&state).await?;
        println!("{READY}{address}");
        until_stdin_ends().await
    })
}

/// An executor's process, which works for a scheduler with one task at a time.
///
/// # Errors
/// The scheduler cannot be reached.
pub fn run_executor(scheduler: &str) -> Result<(), Box<dyn std::error::Error>> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let client = SchedulerGrpcClient::connect(format!("http://{scheduler}")).await?;
        let client = client.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE);
        ballista_executor::new_standalone_executor(client, 1, BallistaCodec::default()).await?;
        println!("{READY}{scheduler}");
        until_stdin_ends().await
    })
}

async fn until_stdin_ends() -> Result<(), Box<dyn std::error::Error>> {
    let ended = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
    ended.await??;
    // Nothing of it is worth an orderly end.
    std::process::exit(0)
}
