//! Walkers on real threads, from beginning to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};
use pagefold_engine::Platform;
use pagefold_engine::protocol::Protocol;
use pagefold_workload::{Index, Log, Stamp, WalkerCounts, WalkerKind, WalkerTask};

use super::report::Walked;

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `act` while walkers of these kinds walk, a thread each. Returns what it returns, and what they did.
pub fn with_walkers<P: Platform<Owner = Stamp>, R: Protocol, T>(
    index: &Index<'_, P, R>,
    kinds: &[WalkerKind],
    log: &Log,
    seed: u64,
    act: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Walked>)> {
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // Whatever happens below, the threads are told to stop before the scope waits for them.
        let stopper = StopOnDrop(&stop);
        let threads: Vec<_> = kinds
            .iter()
            .zip(0u64..)
            .map(|(&kind, number)| {
                let stop = &stop;
                scope.spawn(move || -> Result<WalkerCounts> {
                    let mut task = WalkerTask::new(kind, index, log, seed.wrapping_mul(31) + number)?;
                    while !stop.load(Ordering::Relaxed) {
                        task.step();
                    }
                    Ok(task.counts())
                })
            })
            .collect();
        let done = act()?;
        drop(stopper);
        let seconds = begun.elapsed().as_secs_f64();
        let mut walked: Vec<Walked> = Vec::new();
        for (thread, kind) in threads.into_iter().zip(kinds) {
            let counts = thread.join().map_err(|_| anyhow!("a walker's thread failed"))??;
            let rate = |count: u64| count as f64 / seconds.max(1e-9);
            let (looks, gets) = (rate(counts.looks), rate(counts.gets));
            match walked.iter_mut().find(|walked| walked.kind == kind.name()) {
                Some(walked) => {
                    walked.threads += 1;
                    walked.looks_per_second += looks;
                    walked.gets_per_second += gets;
                }
                None => walked.push(Walked {
                    kind: kind.name(),
                    threads: 1,
                    looks_per_second: looks,
                    gets_per_second: gets,
                }),
            }
        }
        Ok((done, walked))
    })
}
