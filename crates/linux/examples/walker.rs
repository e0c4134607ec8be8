//! A walker against a folder: one thread looks at pages by their numbers, another one folds and unfolds what they belong to.
//!
//! Each look is a compare-and-swap on a descriptor that may be gone in the next moment. None reaches a descriptor that is
//! folded, and none gets a reference on a folio that does not contain the page.

use std::sync::atomic::{AtomicBool, Ordering};

use pagefold_engine::{Config, Engine, Kind, Order, Pfn};
use pagefold_linux::{Linux, Membarrier};

/// Pages of memory: 1 GiB.
const PAGES: u64 = 1 << 18;
const ROUNDS: u32 = 500;

/// Tells the walker to stop.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg_attr(test, test)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host: Linux<_, [u64; 7]> = Linux::new(Membarrier::register()?)?;
    let mut engine: Engine<_> = Engine::new(host, Config::new(PAGES))?;
    engine.online(0..PAGES)?;
    let engine = &engine;
    let done = AtomicBool::new(false);

    let (found, missed) = std::thread::scope(|scope| {
        let walker = scope.spawn(|| {
            let walker = engine.walker().expect("memory for a walker");
            let (mut found, mut missed) = (0u64, 0u64);
            let mut page = 0;
            while !done.load(Ordering::Relaxed) {
                // Any page number, in an order that no cache likes.
                page = (page + 77_777) % 512;
                match walker.try_get(Pfn(page)) {
                    Ok(folio) => {
                        let pages = folio.pfn().0..folio.pfn().0 + (1 << folio.order().get());
                        assert!(pages.contains(&page), "page {page} is in none of {pages:?}");
                        found += 1;
                    }
                    Err(_) => missed += 1,
                }
            }
            (found, missed)
        });
        // Whatever happens here, the walker ends before the scope waits for it.
        let stop = StopOnDrop(&done);
        for _ in 0..ROUNDS {
            // Where the walker still holds the last folio, its pages are not free yet.
            let folio = loop {
                match engine.alloc_at(Pfn(0), Order::AREA, Kind::Anon) {
                    Ok(folio) => break folio.share(),
                    Err(_) => std::thread::yield_now(),
                }
            };
            std::thread::yield_now();
            drop(folio);
            engine.folder(64).expect("memory for a folder").fold_all();
        }
        drop(stop);
        walker.join().expect("no promise was broken")
    });
    println!("{ROUNDS} folios came, were folded and went; {found} looks found one, {missed} found none");
    engine.audit().map_err(|violation| violation.to_string())?;
    Ok(())
}
