//! A machine in ten lines: 64 GiB of free memory, a huge page, and a walker that finds it by any of its pages.

use pagefold_engine::{Config, Engine, Kind, Order, Pfn};
use pagefold_linux::{Linux, Membarrier};

#[cfg_attr(test, test)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host: Linux<_, [u64; 7]> = Linux::new(Membarrier::register()?)?;
    let mut engine: Engine<_> = Engine::new(host, Config::new(64 << 18))?;
    engine.online(0..64 << 18)?;

    let mut huge = engine.alloc(Order::AREA, Kind::Anon)?;
    huge.owner_mut()[0] = 42;
    let folio = huge.share();
    let walker = engine.walker()?;
    let found = walker.try_get(Pfn(folio.pfn().0 + 300)).map_err(|miss| format!("{miss:?}"))?;
    assert_eq!(found.owner()[0], 42);

    assert_eq!(engine.materialised_map_pages(), 1);
    println!("64 GiB, 2 MiB of it in use: {} map page of 4 KiB", engine.materialised_map_pages());
    Ok(())
}
