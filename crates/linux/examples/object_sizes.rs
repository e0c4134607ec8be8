//! What folios cost with a word a page and an object a folio, for objects of several sizes: all tables and the page tables
//! that map them, as the system has them.
//!
//! ```console
//! $ cargo run --release -p pagefold-linux --example object_sizes
//! ```

use std::error::Error;

use pagefold_engine::platform::Owner;
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Config, Descriptors, Engine, Kind, Memdesc, Order};
use pagefold_linux::{Linux, Membarrier, measure};

/// Pages of a GiB.
const GIB: u64 = 1 << 18;

/// Memory of so many pages, all of it folios of one order: bytes of all metadata, and the size of an object.
fn cost<O: Owner>(pages: u64, order: u32) -> Result<(u64, u64), Box<dyn Error>> {
    let host: Linux<Membarrier, O, Fold, Memdesc> = Linux::new(Membarrier::register()?)?;
    let mut engine = Engine::new(host, Config::new(pages))?;
    engine.online(0..pages)?;
    let order = Order::new(order).ok_or("no such order")?;
    for _ in 0..pages / order.pages() {
        let _for_good = engine.alloc(order, Kind::File)?.share().into_raw();
    }
    engine.folder(512)?.fold_all();
    let ranges: Vec<_> = engine.tables().map(|(_, table)| table.addresses()).collect();
    let mut bytes = measure::page_tables_of(&ranges)?;
    for (_, table) in engine.tables() {
        bytes += table.measured_pages()? * 4096;
    }
    Ok((bytes, Memdesc::shape::<O>().object_bytes))
}

fn row(name: &str, pages: u64, order: u32) -> Result<(), Box<dyn Error>> {
    let costs = [
        cost::<()>(pages, order)?,
        cost::<[u64; 4]>(pages, order)?,
        cost::<[u64; 6]>(pages, order)?,
        cost::<[u64; 8]>(pages, order)?,
    ];
    assert_eq!(costs.map(|(_, object)| object), [16, 48, 64, 80]);
    let cells = costs.map(|(bytes, _)| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)));
    println!("| {name} | {} |", cells.join(" | "));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("| memory | objects of 16 bytes | 48 | 64 | 80 |\n|---|---|---|---|---|");
    row("1 TiB in 1 GiB folios", 1024 * GIB, 18)?;
    row("1 TiB in 2 MiB folios", 1024 * GIB, 9)?;
    row("64 GiB in 64 KiB folios", 64 * GIB, 4)?;
    row("64 GiB in 16 KiB folios", 64 * GIB, 2)?;
    row("64 GiB in single pages", 64 * GIB, 0)
}
