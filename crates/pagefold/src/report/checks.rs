//! Numbers that should tell the same thing. Where they do not, both are shown, and what that means.

use pagefold_machine::PageState;

use super::accounts::Accounts;
use super::limits::deferred;
use super::model::{Check, Figure, Interval};
use crate::survey::Survey;

/// All comparisons that this machine allows.
pub fn checks(survey: &Survey, accounts: &Accounts) -> Vec<Check> {
    let host = &survey.host;
    let page = accounts.shape.page;
    let mut checks = Vec::new();
    if let Some(counted) = &accounts.counted {
        let excess = &accounts.excess;
        let explained = |end: fn(&Interval) -> u64| end(&excess.page_ext).saturating_add(end(&excess.device));
        let arithmetic = Interval::computed(
            accounts.full.min.saturating_sub(accounts.savable).saturating_add(explained(|part| part.min)),
            accounts.full.max.saturating_add(explained(|part| part.max)),
            format!("{}, with and without HVO", accounts.full.from),
        );
        let mut check = compare(
            "descriptors",
            "descriptors: the kernel's count, and arithmetic",
            counted.clone().into(),
            arithmetic,
            accounts.full.max / 200,
            count_note(counted.bytes > accounts.full.max),
        );
        check.agrees = accounts.agree;
        checks.push(check);
    }
    let sum = |field: fn(&pagefold_machine::ZoneRecord) -> u64| {
        host.zones.iter().fold(0u64, |sum, zone| sum.saturating_add(field(zone))).saturating_mul(page)
    };
    if !host.zones.is_empty() {
        let managed = sum(|zone| zone.managed);
        if let Some(total) = host.meminfo.get("MemTotal").filter(|_| managed > 0) {
            checks.push(compare(
                "total",
                "MemTotal, and managed pages of all zones",
                Figure::counted(total, "/proc/meminfo MemTotal").into(),
                Figure::counted(managed, "/proc/zoneinfo managed").into(),
                total / 100,
                match (deferred(host) > 0, total > managed) {
                    (true, _) => "MemTotal counts memory that no zone has yet (deferred initialisation)",
                    (false, true) => {
                        "unexplained: zones may be missing here, or the files were read at different times"
                    }
                    (false, false) => {
                        "unexplained: memory may have been added between, or the files are of different times"
                    }
                },
            ));
        }
        if let Some(free) = host.meminfo.get("MemFree") {
            let zones = sum(|zone| zone.free);
            checks.push(compare(
                "free",
                "MemFree, and free pages of all zones",
                Figure::counted(free, "/proc/meminfo MemFree").into(),
                Figure::counted(zones, "/proc/zoneinfo nr_free_pages").into(),
                free / 64,
                if deferred(host) > 0 {
                    "the rest is free, but not initialised yet: no zone has it"
                } else {
                    "the files are not read at the same moment"
                },
            ));
        }
    }
    // Where only meminfo tells of pools, there is nothing to compare.
    let has_pools = !host.gaps.iter().any(|gap| gap.path == "/sys/kernel/mm/hugepages");
    if let Some(hugetlb) = host.meminfo.get("Hugetlb").filter(|_| has_pools) {
        let pools = host.pools.iter().fold(0u64, |sum, pool| sum.saturating_add(pool.bytes()));
        checks.push(compare(
            "hugetlb",
            "Hugetlb, and pools of huge pages",
            Figure::counted(hugetlb, "/proc/meminfo Hugetlb").into(),
            Figure::counted(pools, "/sys/kernel/mm/hugepages").into(),
            0,
            "a pool changed while it was read",
        ));
    }
    let nodes: Vec<u64> = host.nodes.iter().filter_map(|node| node.meminfo.get("MemTotal")).collect();
    if let Some(total) = host.meminfo.get("MemTotal").filter(|_| !nodes.is_empty()) {
        checks.push(compare(
            "nodes",
            "MemTotal, and that of all nodes",
            Figure::counted(total, "/proc/meminfo MemTotal").into(),
            Figure::counted(
                nodes.iter().fold(0, |sum, &node| sum.saturating_add(node)),
                "/sys/devices/system/node",
            )
            .into(),
            total / 100,
            if deferred(host) > 0 {
                "nodes count what their zones manage, without free memory that is not initialised yet"
            } else {
                "a node came or went, or its file is missing"
            },
        ));
    }
    if let Some(pages) = survey.pages.as_ref()
        && let Some(free) = host.meminfo.get("MemFree")
    {
        let scanned = pages.tally.state(PageState::Free).pages + pages.tally.state(PageState::Deferred).pages;
        checks.push(compare(
            "free_pages",
            "MemFree, and pages that are free one by one",
            Figure::counted(free, "/proc/meminfo MemFree").into(),
            Figure::counted(scanned.saturating_mul(4096), "/proc/kpageflags").into(),
            accounts.memory.bytes / 50,
            "the machine went on while its pages were read; pages on per-CPU lists have no flag",
        ));
    }
    checks
}

fn compare(
    name: &'static str,
    what: &str,
    left: Interval,
    right: Interval,
    tolerated: u64,
    note: &str,
) -> Check {
    let difference = left.min.saturating_sub(right.max).max(right.min.saturating_sub(left.max));
    let agrees = difference <= tolerated;
    Check { name, what: what.into(), left, right, difference, agrees, note: note.into() }
}

fn count_note(is_more: bool) -> &'static str {
    if is_more {
        "page extensions and descriptors of device memory would count there too, and on some kernels nr_memmap_boot_pages \
         does not fall when memory that was there at boot is removed"
    } else {
        "less than HVO can explain: descriptors of part of a section, or a counter that is wrong"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::host::{Counters, Memmap};
    use pagefold_machine::{Host, ZoneRecord};

    /// The traps of a real machine: 24 GiB, lazily initialised; figures of Linux 6.18.
    #[test]
    fn the_traps_are_shown() {
        let zone = ZoneRecord {
            node: 0,
            name: "Normal".into(),
            start: 0,
            spanned: 6_291_456,
            present: 6_291_456,
            managed: 3_040_870,
            free: 1_000_000,
        };
        let host = Host {
            meminfo: Counters::from([("MemTotal", 24_684_092 << 10), ("MemFree", 10_652_760 << 10)]),
            memmap: Some(Memmap { pages: 98_304, boot_pages: Some(98_304) }),
            zones: vec![zone],
            ..Host::default()
        };
        let survey = Survey { origin: String::new(), host, pages: None };
        let checks = checks(&survey, &Accounts::of(&survey));
        let agrees = |name| checks.iter().find(|check| check.name == name).map(|check| check.agrees);
        assert_eq!(agrees("descriptors"), Some(true));
        assert_eq!(agrees("total"), Some(false));
        assert_eq!(agrees("free"), Some(false));
    }
}
