//! What folding would leave if a page had a word of 8 bytes and each folio an object (memdesc). From every page's state it is a
//! sum; without, only limits are known. `pagefold replay --descriptors memdesc` measures it.

use pagefold_machine::cost::Shape;
use pagefold_machine::folding::Left;

use super::accounts::Accounts;
use super::limits::{huge_pages, limits};
use super::model::{Figure, Interval, MemdescReport};
use crate::survey::Survey;

/// Bytes in a word.
const WORD: u64 = 8;

/// Bytes in an object: a state word, the first page's number, and 48 bytes of the owner's. What `pagefold replay` makes, and
/// about what a head has in `struct page` today; in Linux it is not decided.
pub const OBJECT: u64 = 64;

/// Words, in the shape of the descriptors that they take the place of.
pub fn words_of(shape: Shape) -> Shape {
    Shape { descriptor: WORD, ..shape }
}

/// What it would leave here.
pub fn memdesc(survey: &Survey, accounts: &Accounts) -> MemdescReport {
    let shape = words_of(accounts.shape);
    let memory = accounts.described.max;
    match &survey.pages {
        Some(pages) => {
            let left = pages.tally.memdesc;
            let words = left.map_pages.saturating_mul(shape.page);
            let words = Interval::computed(
                words,
                words,
                "map pages of words in which a page of a small folio is in use, by every page's state",
            );
            let from = "this machine's folios";
            let folios = Interval::computed(left.folios, left.folios, from);
            MemdescReport::new(words, &folios, tables(memory, shape, left))
        }
        None => {
            let host = &survey.host;
            let words = limits(host, accounts, shape, 0);
            let (huge, bytes) =
                huge_pages(host, shape.page).fold((0u64, 0u64), |(huge, bytes), (size, pages)| {
                    (huge.saturating_add(pages), bytes.saturating_add(size.saturating_mul(pages)))
                });
            let free = host.meminfo.get("MemFree").unwrap_or(0);
            let in_use = accounts.memory.bytes.saturating_sub(free).saturating_sub(bytes);
            let folios = Interval::computed(
                huge.saturating_add(in_use >> 21),
                huge.saturating_add(in_use / shape.page.max(1)),
                "what is in use, in 2 MiB folios to small pages",
            );
            let tables = tables_at_most(memory, accounts.shape, words.max, folios.max);
            MemdescReport::new(words, &folios, tables)
        }
    }
}

/// The engine's tables, with so many bytes of words, which may be anywhere.
pub fn tables_at_most(memory: u64, shape: Shape, words: u64, folios: u64) -> u64 {
    let shape = words_of(shape);
    let map_pages = words / shape.page.max(1);
    let reach = shape.described_by_map_page().saturating_mul(512).max(1);
    tables(memory, shape, Left { map_pages, page_tables: map_pages.min(memory.div_ceil(reach)), folios })
}

/// Bytes of class and of the allocator's lane for each map page of words.
const CLASS_AND_LANE: u64 = 8 + 1;
/// Bytes of the allocator's rows for a map page of words: eight for 64 pages.
const ROWS: u64 = 64;
/// Objects have an allocator too: a row of eight bytes for 64 of them, and a lane.
const OBJECTS_PER_ROW: u64 = 64;

fn tables(memory: u64, shape: Shape, left: Left) -> u64 {
    let map_pages = memory / shape.described_by_map_page().max(1);
    // Rows are there where an area is neither free nor taken as a whole, a page of them at a time.
    let rows = map_pages.saturating_mul(ROWS).min(left.map_pages.saturating_mul(shape.page));
    // Objects lie side by side, so page tables that map them are full.
    let object_tables = left.folios.saturating_mul(OBJECT).div_ceil(shape.page.saturating_mul(512).max(1));
    map_pages
        .saturating_mul(CLASS_AND_LANE)
        .saturating_add(rows)
        .saturating_add(left.page_tables.saturating_add(object_tables).saturating_mul(shape.page))
        .saturating_add(left.folios / OBJECTS_PER_ROW * 9)
}

impl MemdescReport {
    /// From words in bytes, a number of folios, and the bytes of tables.
    pub fn new(words: Interval, folios: &Interval, tables: u64) -> Self {
        let objects = Interval::computed(
            folios.min.saturating_mul(OBJECT),
            folios.max.saturating_mul(OBJECT),
            format!("{OBJECT} bytes for each folio: {}", folios.from),
        );
        let total = Interval::computed(
            words.min.saturating_add(objects.min).saturating_add(tables),
            words.max.saturating_add(objects.max).saturating_add(tables),
            words.from.clone(),
        );
        let tables = Figure::computed(
            tables,
            "at most: classes, the allocators of pages and of objects, and page tables of words and objects",
        );
        Self { words, objects, tables, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tebibyte_in_huge_pages_has_objects_and_no_words() {
        let shape = words_of(Shape::USUAL);
        let left = Left { map_pages: 0, page_tables: 0, folios: 1 << 19 };
        let folios = Interval::computed(left.folios, left.folios, "");
        let report = MemdescReport::new(Interval::computed(0, 0, ""), &folios, tables(1 << 40, shape, left));
        assert_eq!(report.objects.max, 32 << 20);
        // Classes and lanes, 16 page tables of objects, and rows and lanes of their allocator.
        assert_eq!(report.tables.bytes, (1 << 19) * 9 + 16 * 4096 + (1 << 13) * 9);
        assert_eq!(report.total.max, report.objects.max + report.tables.bytes);
    }

    #[test]
    fn every_page_table_of_the_words_is_counted_where_nothing_tells() {
        assert_eq!(tables_at_most(1 << 30, Shape::USUAL, 2 << 20, 0), 512 * (9 + 64) + 4096);
        assert_eq!(tables_at_most(1 << 30, Shape::USUAL, 0, 0), 512 * 9);
    }
}
