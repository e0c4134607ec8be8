//! Walkers on real threads, from beginning to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use pagefold_engine::Platform;
use pagefold_workload::{Index, Log, Stamp, WalkerCounts, WalkerKind, WalkerTask};

/// What walkers did.
#[derive(Debug)]
pub struct Walk {
    /// By kind.
    pub walked: Vec<Walked>,
    /// Seconds they walked.
    pub seconds: f64,
}

/// What the walkers of one kind did.
#[derive(Clone, Copy, Debug)]
pub struct Walked {
    pub kind: WalkerKind,
    pub threads: usize,
    pub counts: WalkerCounts,
}

/// Tells threads to stop, whatever happens, before the scope that has them waits for them.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a thread of the workload came to.
pub fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the workload failed")))
}

/// Starts a thread of the workload, in the background of `scope`.
///
/// # Errors
/// The system has no thread for it.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<T>>> {
    let thread = Builder::new().spawn_scoped(scope, work);
    thread.context(
        "no thread for a walker or an owner: ask for fewer, or raise the limit (ulimit -u, ulimit -v)",
    )
}

/// Runs `act` while walkers of these kinds walk, a thread each, which begins with `enlist`. Returns what `act` returns,
/// and what they did.
pub fn with_walkers<P: Platform<Owner = Stamp>, T>(
    index: &Index<'_, P>,
    kinds: &[WalkerKind],
    log: &Log,
    seed: u64,
    enlist: impl Fn(WalkerKind) + Sync,
    act: impl FnOnce() -> Result<T>,
) -> Result<(T, Walk)> {
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let stopper = StopOnDrop(&stop);
        let threads: Vec<_> = kinds
            .iter()
            .zip(0u64..)
            .map(|(&kind, number)| {
                let (stop, enlist) = (&stop, &enlist);
                spawn(scope, move || {
                    enlist(kind);
                    let seed = seed.wrapping_mul(31).wrapping_add(number);
                    let mut task = WalkerTask::new(kind, index, log, seed)?;
                    while !stop.load(Ordering::Relaxed) {
                        task.step();
                    }
                    Ok(task.counts())
                })
            })
            .collect::<Result<_>>()?;
        let done = act()?;
        drop(stopper);
        let mut walked: Vec<Walked> = Vec::new();
        for (thread, &kind) in threads.into_iter().zip(kinds) {
            let counts = join(thread)?;
            match walked.iter_mut().find(|walked| walked.kind == kind) {
                Some(walked) => {
                    walked.threads += 1;
                    walked.counts += counts;
                }
                None => walked.push(Walked { kind, threads: 1, counts }),
            }
        }
        Ok((done, Walk { walked, seconds: begun.elapsed().as_secs_f64() }))
    })
}
