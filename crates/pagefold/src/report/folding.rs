//! What folding would leave. From every page's state it is a sum; without, only limits are known.

use pagefold_machine::cost::Shape;
use pagefold_machine::{Host, deferred_pages};

use super::accounts::Accounts;
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

/// Limits from counters, with descriptors of that shape, of which each huge page keeps so many map pages: what is free in blocks
/// of a map page or more folds, and the rest keeps between all (small pages) and what large folios keep.
pub fn limits(host: &Host, accounts: &Accounts, shape: Shape, keeps: u64) -> Interval {
    let map_page = shape.described_by_map_page();
    let order = (map_page / shape.page.max(1)).max(1).ilog2();
    let free = host
        .free_blocks
        .iter()
        .fold(0u64, |sum, zone| sum.saturating_add(zone.pages_from(order)))
        .saturating_mul(shape.page);
    let unborn = deferred(host);
    let (mut huge, mut kept) = (0u64, 0u64);
    for (size, pages) in huge_pages(host, shape.page) {
        huge = huge.saturating_add(size.saturating_mul(pages));
        // One that fills no map page keeps its part of one.
        let each = match size < map_page {
            true => shape.descriptors(size),
            false => shape.descriptors(size).min(keeps.saturating_mul(shape.page)),
        };
        kept = kept.saturating_add(each.saturating_mul(pages));
    }
    let full = shape.descriptors(accounts.described.max);
    let folds = shape.descriptors(free.saturating_add(unborn).saturating_add(huge));
    let rest = full.saturating_sub(folds);
    let max = rest.saturating_add(kept).min(full);
    // Holes and small free blocks may fold as well: the least is what is in use, in the largest folios.
    let free_in_all = host.meminfo.get("MemFree").unwrap_or(0).max(free);
    let in_use = accounts.memory.bytes.saturating_sub(free_in_all).saturating_sub(huge);
    let min = (shape.descriptors(in_use) / 8).saturating_mul(keeps).saturating_add(kept).min(max);
    Interval::computed(
        min,
        max,
        "free blocks, huge pages and the rest as counters have them (exact with a scan)",
    )
}

/// Huge pages that counters tell of: sizes, and how many.
pub fn huge_pages(host: &Host, page: u64) -> impl Iterator<Item = (u64, u64)> {
    let pmd = (page / 8).saturating_mul(page).max(1);
    let transparent = ["AnonHugePages", "ShmemHugePages", "FileHugePages"];
    let pools = host.pools.iter().map(|pool| (pool.size, pool.pages));
    pools.chain(transparent.map(|name| (pmd, host.meminfo.get(name).unwrap_or(0) / pmd)))
}

/// Free memory that no zone has yet (deferred initialisation).
pub fn deferred(host: &Host) -> u64 {
    if host.zones.is_empty() {
        return 0;
    }
    let page = host.page_size.bytes.max(1);
    let pages = |name| host.meminfo.get(name).unwrap_or(0) / page;
    deferred_pages(&host.zones, (pages("MemTotal"), pages("MemFree"))).saturating_mul(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::Zone;
    use pagefold_machine::host::{Counters, FreeBlocks, Pool};

    #[test]
    fn limits_hold_what_is_known_to_fold() {
        // 4 GiB: 1 GiB free in large blocks, 1 GiB of huge pages, 2 GiB in use.
        let host = Host {
            meminfo: Counters::from([("MemFree", 1 << 30)]),
            zones: vec![Zone { present: 1 << 20, spanned: 1 << 20, free: 1 << 18, ..Zone::default() }],
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

    #[test]
    fn free_memory_outside_of_zones_is_deferred() {
        let mut host = Host {
            meminfo: Counters::from([("MemTotal", 2 << 30), ("MemFree", 1 << 30)]),
            zones: vec![Zone { managed: 3 << 17, free: 1 << 17, ..Zone::default() }],
            ..Host::default()
        };
        assert_eq!(deferred(&host), 1 << 29);
        host.zones[0].free = (1 << 18) - 100;
        assert_eq!(deferred(&host), 0);
        // The files were read at different times: zones have all memory, and had less of it free.
        host.zones[0] = Zone { managed: 4 << 17, free: 1 << 17, ..Zone::default() };
        assert_eq!(deferred(&host), 0);
    }
}
