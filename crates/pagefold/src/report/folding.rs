//! What folding would leave. From every page's state it is a sum; without, only limits are known.

use super::accounts::Accounts;
use super::limits::limits;
use super::memdesc::memdesc;
use super::model::{Figure, FoldingReport, Interval};
use crate::survey::Survey;

/// Bytes of the engine's tables for each map page, at most: one of class, eight of the allocator's row. The rest (a lane
/// byte for 2 MiB, a tree word for 1 GiB) is an eighth of a byte more.
const TABLES_NUMERATOR: u64 = 73;
const TABLES_DENOMINATOR: u64 = 8;

/// What folding would leave here.
pub fn folding(survey: &Survey, accounts: &Accounts) -> FoldingReport {
    let shape = accounts.shape;
    let full = &accounts.full;
    let (descriptors, sections) = match &survey.pages {
        Some(pages) => {
            let left = pages.tally.page.map_pages.saturating_mul(shape.page);
            let from = "map pages in which a page or a head is in use, by every page's state";
            (Interval::computed(left, left, from), pages.tally.page.page_tables)
        }
        None => {
            let sections = accounts.described.max / survey.host.section_bytes().max(1);
            (limits(&survey.host, accounts, shape, 1), sections)
        }
    };
    let map_pages = full.max / shape.page.max(1);
    let tables = map_pages.saturating_mul(TABLES_NUMERATOR) / TABLES_DENOMINATOR;
    // Where a section keeps any map page, a page table maps it page by page.
    let tables = tables.saturating_add(sections.saturating_mul(shape.page));
    let tables = Figure::computed(
        tables,
        "at most: 9 bytes a map page for classes and the allocator, a page table a section",
    );
    let total = Interval::computed(
        descriptors.min.saturating_add(tables.bytes),
        descriptors.max.saturating_add(tables.bytes),
        descriptors.from.clone(),
    );
    FoldingReport { descriptors, tables, total, memdesc: memdesc(survey, accounts) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::host::{Counters, FreeBlocks, Pool};
    use pagefold_machine::{Host, ZoneRecord};

    #[test]
    fn limits_hold_what_is_known_to_fold() {
        // 4 GiB: 1 GiB free in large blocks, 1 GiB of huge pages, 2 GiB in use.
        let host = Host {
            meminfo: Counters::from([("MemFree", 1 << 30)]),
            zones: vec![ZoneRecord {
                present: 1 << 20,
                spanned: 1 << 20,
                free: 1 << 18,
                ..ZoneRecord::default()
            }],
            free_blocks: vec![FreeBlocks {
                node: 0,
                zone: "Normal".into(),
                blocks: [vec![0; 10], vec![256]].concat(),
            }],
            pools: vec![Pool { size: 2 << 20, pages: 512, free: 0, surplus: 0 }],
            ..Host::default()
        };
        let survey = Survey { origin: String::new(), host, pages: None };
        let accounts = Accounts::of(&survey);
        let folding = folding(&survey, &accounts);
        // 2 GiB of small pages keep 32 MiB; 512 huge pages keep 2 MiB.
        assert_eq!(folding.descriptors.max, 34 << 20);
        assert_eq!(folding.descriptors.min, (4 << 20) + (2 << 20));
        assert!(folding.tables.bytes < 1 << 20);
    }
}
