//! What else memory costs by the page: page tables, sections, blocks, and the extensions that some boots ask for.

use pagefold_machine::Host;
use pagefold_picture::amount::Bytes;

use super::accounts::Accounts;
use super::excess::device_memory;
use super::model::{Figure, How, Interval, OtherCost};

/// A page-table page has 512 entries on every architecture with 4 KiB pages and 8-byte entries.
const ENTRIES: u64 = 512;
/// `mem_section_usage` ends in four bits for each page block of 2 MiB (`pageblock_flags`).
const PAGEBLOCK_BYTES: u64 = 32;

/// All that is known.
pub fn other_costs(host: &Host, accounts: &Accounts) -> Vec<OtherCost> {
    let mut costs = vec![OtherCost {
        name: "page_tables",
        title: "page tables of processes",
        cost: counted(host, "PageTables"),
        note: "8 bytes for each page mapped".into(),
    }];
    if host.meminfo.get("SecPageTables").is_some_and(|bytes| bytes > 0) {
        costs.push(OtherCost {
            name: "secondary_page_tables",
            title: "page tables of guests and IOMMUs",
            cost: counted(host, "SecPageTables"),
            note: "KVM's and IOMMUs' page tables, as far as they are accounted".into(),
        });
    }
    costs.push(OtherCost {
        name: "direct_map_page_tables",
        title: "page tables of the direct map",
        cost: direct_map(host),
        note: "the kernel's own mapping of all memory".into(),
    });
    costs.push(memory_map_tables(accounts));
    if let (Some(section), Some(usage)) = (host.structs.mem_section, host.structs.mem_section_usage) {
        let sections = accounts.described.max / host.section_bytes();
        let bytes = sections.saturating_mul(section.saturating_add(usage).saturating_add(PAGEBLOCK_BYTES));
        costs.push(OtherCost {
            name: "sections",
            title: "sections",
            cost: Some(
                Figure::computed(bytes, "BTF: mem_section, mem_section_usage; page-block flags").into(),
            ),
            note: "where descriptors are; page blocks".into(),
        });
    }
    if let (Some(blocks), Some(size)) = (&host.blocks, host.structs.memory_block) {
        let bytes = (blocks.list.len() as u64).saturating_mul(size);
        costs.push(OtherCost {
            name: "memory_blocks",
            title: "memory block devices",
            cost: Some(Figure::computed(bytes, "BTF: memory_block").into()),
            note: "without their sysfs entries".into(),
        });
    }
    let excess = &accounts.excess;
    if !host.boot.page_ext.is_empty() {
        costs.push(OtherCost {
            name: "page_ext",
            title: "page extensions (page_ext)",
            cost: (excess.page_ext.max > 0).then(|| excess.page_ext.clone()),
            note: format!("asked for at boot: {}", host.boot.page_ext.join(", ")),
        });
    }
    costs.extend(device(host, accounts));
    if excess.unexplained.max > 0 {
        costs.push(OtherCost {
            name: "unexplained",
            title: "unexplained",
            cost: Some(excess.unexplained.clone()),
            note: "the kernel counts it as descriptors, and nothing that was read tells of what".into(),
        });
    }
    if host.structs.page_has_memcg == Some(true) {
        let words = accounts.shape.page.max(1);
        let bytes = accounts.described.max / words * 8;
        costs.push(OtherCost {
            name: "memcg",
            title: "memory cgroups (in descriptors)",
            cost: Some(Figure::computed(bytes, "BTF: page.memcg_data, 8 bytes of each descriptor").into()),
            note: "part of the descriptors above".into(),
        });
    }
    // What is in use but of unknown size is named all the same.
    costs.retain(|cost| cost.cost.is_some() || cost.name == "page_ext");
    costs
}

/// Device memory (`ZONE_DEVICE`: persistent memory, CXL memory as DAX, memory of GPUs). Its descriptors lie in memory, or on
/// the device itself; a device that hands out pages of 2 MiB or more may share most of them.
fn device(host: &Host, accounts: &Accounts) -> Option<OtherCost> {
    let bytes = device_memory(host);
    let all = accounts.shape.descriptors(bytes);
    let nodes: Vec<String> =
        host.zones.iter().filter(|zone| zone.is_device()).map(|zone| zone.node.to_string()).collect();
    if nodes.is_empty() {
        return None;
    }
    let (cost, place) = match accounts.counted {
        Some(_) if accounts.excess.device.min > 0 => {
            (accounts.excess.device.clone(), "its descriptors lie in memory: the kernel counts them")
        }
        Some(_) if accounts.excess.device.max > 0 => (
            accounts.excess.device.clone(),
            "page extensions hide whether its descriptors lie in memory or on the device",
        ),
        Some(_) => (
            Interval::computed(0, 0, "the kernel's count of descriptors has none of them"),
            "its descriptors lie on the device itself",
        ),
        None => (
            Interval::computed(0, all, "a descriptor for each page, if they lie in memory"),
            "this kernel does not tell whether its descriptors lie in memory or on the device",
        ),
    };
    Some(OtherCost {
        name: "device_memory",
        title: "device memory (ZONE_DEVICE)",
        cost: Some(cost),
        note: format!("at most {} on node {}: {place}", Bytes(bytes), nodes.join(", ")),
    })
}

fn counted(host: &Host, name: &str) -> Option<Interval> {
    host.meminfo.get(name).map(|bytes| Figure::counted(bytes, format!("/proc/meminfo {name}")).into())
}

/// From how much is mapped by which size of page: the lower levels' tables. x86 only: elsewhere these counters do not exist.
fn direct_map(host: &Host) -> Option<Interval> {
    let mapped = |name| host.meminfo.get(name);
    let (small, large) = (mapped("DirectMap4k")?, mapped("DirectMap2M")?);
    let huge = mapped("DirectMap1G").unwrap_or(0);
    let tables = small
        .div_ceil(4096 * ENTRIES)
        .saturating_add(small.saturating_add(large).div_ceil(4096 * ENTRIES * ENTRIES))
        .saturating_add(small.saturating_add(large).saturating_add(huge).div_ceil(4096 * ENTRIES.pow(3)));
    Some(
        Figure::computed(tables.saturating_mul(4096), "/proc/meminfo DirectMap4k, DirectMap2M, DirectMap1G")
            .into(),
    )
}

/// The memory map is mapped by 2 MiB; HVO splits that into small pages, and never joins it again.
fn memory_map_tables(accounts: &Accounts) -> OtherCost {
    let page = accounts.shape.page;
    let large = page.saturating_mul(page / 8).max(1);
    let middle = accounts.full.max.div_ceil(large.saturating_mul(page / 8).max(1));
    // Huge pages side by side share a table; at worst each has its own, and there are no more than there is map.
    let split_least = accounts.saved.min.div_ceil(large);
    let split_most =
        (accounts.saved.max / page.saturating_mul(7).max(1)).min(accounts.full.max.div_ceil(large));
    let cost = Interval {
        min: middle.saturating_add(split_least).saturating_mul(page),
        max: middle.saturating_add(split_most.max(split_least)).saturating_mul(page),
        how: How::Computed,
        from: "a table for 512 entries, and for each 2 MiB of the map that HVO split".into(),
    };
    OtherCost {
        name: "memory_map_page_tables",
        title: "page tables of the memory map",
        cost: Some(cost),
        note: "HVO splits it where it works".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::host::Counters;

    #[test]
    fn tables_of_the_direct_map() {
        let host = Host {
            meminfo: Counters::from([
                ("DirectMap4k", 28_672 << 10),
                ("DirectMap2M", 2_068_480 << 10),
                ("DirectMap1G", 25_165_824 << 10),
            ]),
            ..Host::default()
        };
        // 14 tables of 2 MiB, 2 of 1 GiB (2 GiB in small and large pages), 1 of 512 GiB.
        assert_eq!(direct_map(&host).map(|cost| cost.max), Some(17 * 4096));
        assert_eq!(direct_map(&Host::default()), None);
    }
}
