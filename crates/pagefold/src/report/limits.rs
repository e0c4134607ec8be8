//! What folding leaves, within limits, where only counters tell.

use pagefold_machine::cost::Shape;
use pagefold_machine::{Host, deferred_pages};

use super::accounts::Accounts;
use super::model::Interval;

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
    use pagefold_machine::ZoneRecord;
    use pagefold_machine::host::Counters;

    #[test]
    fn free_memory_outside_of_zones_is_deferred() {
        let mut host = Host {
            meminfo: Counters::from([("MemTotal", 2 << 30), ("MemFree", 1 << 30)]),
            zones: vec![ZoneRecord { managed: 3 << 17, free: 1 << 17, ..ZoneRecord::default() }],
            ..Host::default()
        };
        assert_eq!(deferred(&host), 1 << 29);
        host.zones[0].free = (1 << 18) - 100;
        assert_eq!(deferred(&host), 0);
        // The files were read at different times: zones have all memory, and had less of it free.
        host.zones[0] = ZoneRecord { managed: 4 << 17, free: 1 << 17, ..ZoneRecord::default() };
        assert_eq!(deferred(&host), 0);
    }
}
