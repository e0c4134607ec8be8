//! A map for scripts.

use std::io::{self, Write};

use pagefold_picture::Grid;
use pagefold_picture::Subject;
use serde::Serialize;

use super::args::By;
use crate::source::Found;

/// The JSON, with `schema` raised whenever a field changes its meaning.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold map"))]
pub struct MapJson<'a> {
    schema: u32,
    origin: &'a str,
    kernel: &'a str,
    note: &'a str,
    by: &'static str,
    /// `counted` from page flags, or `computed` from page states.
    source: &'static str,
    pages: u64,
    page_bytes: u64,
    pages_per_cell: u64,
    /// In the order of `pages` of each cell.
    categories: Vec<CategoryRow>,
    /// Cells that have memory, in ascending order.
    cells: Vec<CellRow<'a>>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct CategoryRow {
    name: &'static str,
    pages: u64,
    memory_bytes: u64,
    /// By state: of Linux's descriptors, 64 bytes a page. By folding: of the map pages that stay. Computed.
    descriptor_bytes: u64,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct CellRow<'a> {
    start_pfn: u64,
    /// Pages by category.
    pages: &'a [u64],
}

pub fn write(
    to: &mut impl Write,
    by: By,
    found: &Found,
    subject: &Subject<'_>,
    grid: &Grid,
) -> io::Result<()> {
    let header = &found.machine.header;
    let extra = subject.extra.as_ref();
    let category = |(category, &pages): (usize, &u64)| CategoryRow {
        name: subject.palette.categories[category].name,
        pages,
        memory_bytes: pages.saturating_mul(subject.page_bytes),
        descriptor_bytes: extra.map_or(0, |extra| extra.bytes[category]),
    };
    let cell = |slot: u64| {
        let start_pfn = grid.axis.first_pfn(slot)?;
        grid.look(slot).map(|_| CellRow { start_pfn, pages: grid.cells.pages(slot) })
    };
    let map = MapJson {
        schema: 1,
        origin: &found.origin,
        kernel: &header.kernel,
        note: &header.note,
        by: match by {
            By::State => "state",
            By::Folding => "folding",
        },
        source: match by {
            By::State => "counted",
            By::Folding => "computed",
        },
        pages: subject.pages(),
        page_bytes: subject.page_bytes,
        pages_per_cell: grid.axis.unit(),
        categories: grid.cells.totals().iter().enumerate().map(category).collect(),
        cells: grid.cells.slots().filter_map(cell).collect(),
    };
    serde_json::to_writer(&mut *to, &map).map_err(io::Error::from)?;
    writeln!(to)
}
