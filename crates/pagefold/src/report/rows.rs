//! Descriptors by place, node, zone, memory block, huge page and page state.

use std::collections::BTreeMap;

use pagefold_machine::host::{Block, Node, OnlineState};
use pagefold_machine::{Host, PageState};

use super::accounts::{Accounts, pools};
use super::model::{
    BlockGroup, BlockRow, BlocksReport, Figure, FolioRow, How, HugeRow, Interval, NodeRow, NodeUses,
    OfflineReport, PlaceReport, StateRow, ZoneRow,
};
use crate::survey::{Pages, Survey};

/// Bytes in a section of x86-64, where there are no blocks.
const SECTION: u64 = 128 << 20;

/// Where descriptors lie.
pub fn places(host: &Host, accounts: &Accounts) -> Vec<PlaceReport> {
    let counted = host.memmap.filter(|_| accounts.descriptors.how == How::Counted);
    let Some((memmap, boot)) = counted.and_then(|memmap| Some((memmap, memmap.boot_pages?))) else {
        let note = "boot memory, or the buddy allocator: this kernel does not tell (6.12 and newer do)";
        return vec![PlaceReport {
            place: "unknown",
            descriptors: accounts.descriptors.clone(),
            note: note.into(),
        }];
    };
    let page = accounts.shape.page;
    let boot = boot.min(memmap.pages);
    let later = (memmap.pages - boot).saturating_mul(page);
    let (place, note) = match host.memmap_on_memory {
        Some(true) => (
            "runtime or block",
            "from the buddy allocator, or on the added blocks themselves: memmap_on_memory is on, and the kernel does not \
             tell which blocks took it (virtio-mem's never do)",
        ),
        _ => ("runtime", "from the buddy allocator, for memory added after boot or given back by HVO"),
    };
    let mut places = vec![
        PlaceReport {
            place: "boot",
            descriptors: Figure::counted(boot.saturating_mul(page), "vmstat nr_memmap_boot_pages"),
            note: "taken from memory at boot".into(),
        },
        PlaceReport {
            place,
            descriptors: Figure::counted(later, "vmstat nr_memmap_pages"),
            note: note.into(),
        },
    ];
    if host.memmap_on_memory == Some(false) {
        places.push(PlaceReport {
            place: "block",
            descriptors: Figure::computed(0, "memmap_on_memory is off"),
            note: "on the added blocks themselves".into(),
        });
    }
    places
}

/// By node.
pub fn nodes(host: &Host, accounts: &Accounts) -> Vec<NodeRow> {
    let shape = accounts.shape;
    let only = host.nodes.iter().filter(|node| has_memory(host, node.id)).count() == 1;
    let with_memory = host.nodes.iter().filter(|node| has_memory(host, node.id));
    with_memory
        .map(|node| {
            let size = host.blocks.as_ref().map_or(0, |blocks| blocks.size);
            let in_blocks = size.saturating_mul(node.blocks.len() as u64);
            let present = host
                .zones
                .iter()
                .filter(|zone| zone.node == node.id)
                .fold(0u64, |sum, zone| sum.saturating_add(zone.present))
                .saturating_mul(shape.page);
            let memory = if in_blocks > 0 { in_blocks } else { present };
            let savable = node.pools.iter().fold(0u64, |sum, pool| {
                sum.saturating_add(pool.pages.saturating_mul(shape.hvo_saves(pool.size)))
            });
            let savable = savable.min(accounts.savable);
            let full = shape.descriptors(memory);
            let saved_least = savable.saturating_sub(accounts.savable.saturating_sub(accounts.saved.min));
            let saved_most = savable.min(accounts.saved.max);
            let descriptors = if only {
                accounts.descriptors.clone().into()
            } else {
                let from = if in_blocks > 0 { "its memory blocks" } else { "its zones' present pages" };
                let least = full.saturating_sub(saved_most);
                Interval::computed(least, full.saturating_sub(saved_least), from)
            };
            let hvo_saved = Interval::computed(saved_least, saved_most, accounts.saved.from.clone());
            let page_tables = node.meminfo.get("PageTables");
            let page_tables = page_tables
                .map(|bytes| Figure::counted(bytes, format!("node{}/meminfo PageTables", node.id)));
            NodeRow {
                node: node.id,
                memory,
                descriptors,
                hvo_saved,
                hvo_savable: savable,
                page_tables,
                uses: uses(node),
            }
        })
        .collect()
}

/// What a node's memory is used for.
fn uses(node: &Node) -> Option<NodeUses> {
    let get = |name: &str| node.meminfo.get(name);
    Some(NodeUses {
        total: get("MemTotal")?,
        free: get("MemFree")?,
        anonymous: get("AnonPages").unwrap_or(0),
        page_cache: get("FilePages").unwrap_or(0),
        slab: get("Slab").unwrap_or(0),
        huge_pages: node.pools.iter().fold(0u64, |sum, pool| sum.saturating_add(pool.bytes())),
    })
}

fn has_memory(host: &Host, node: u32) -> bool {
    let in_zones = host.zones.iter().any(|zone| zone.node == node && zone.present > 0);
    in_zones || host.nodes.iter().any(|known| known.id == node && !known.blocks.is_empty())
}

/// By zone.
pub fn zones(host: &Host, accounts: &Accounts) -> Vec<ZoneRow> {
    let bytes = |pages: u64| pages.saturating_mul(accounts.shape.page);
    let row = |zone: &pagefold_machine::ZoneRecord| ZoneRow {
        node: zone.node,
        zone: zone.name.clone(),
        present: bytes(zone.present),
        managed: bytes(zone.managed),
        free: bytes(zone.free),
        descriptors: Figure::computed(
            accounts.shape.descriptors(bytes(zone.present)),
            "present pages, without HVO",
        ),
    };
    host.zones.iter().map(row).collect()
}

/// By memory block.
pub fn blocks(survey: &Survey, accounts: &Accounts) -> Option<BlocksReport> {
    let host = &survey.host;
    let blocks = host.blocks.as_ref()?;
    let node_of: BTreeMap<u64, u32> =
        host.nodes.iter().flat_map(|node| node.blocks.iter().map(|&block| (block, node.id))).collect();
    let descriptors = accounts.shape.descriptors(blocks.size);
    let row = |block: &Block| {
        let offline = survey.pages.as_ref().map(|pages| offline_in(pages, block.id, blocks.size));
        BlockRow {
            block: block.id,
            state: block.state,
            zone: block.zone.clone(),
            has_no_zone: block.has_no_zone,
            node: node_of.get(&block.id).copied(),
            descriptors,
            offline,
            offline_descriptors: offline.map(|bytes| accounts.shape.descriptors(bytes)),
        }
    };
    let list: Vec<BlockRow> = blocks.list.iter().map(row).collect();
    // What makes blocks alike: state, zone, and whether there is none that has all of one.
    type Kind = (OnlineState, Option<String>, bool);
    let mut alike: BTreeMap<Kind, (u64, Option<u64>)> = BTreeMap::new();
    for row in &list {
        let kind = (row.state, row.zone.clone(), row.has_no_zone);
        let (count, offline) = alike.entry(kind).or_insert((0, row.offline.map(|_| 0)));
        *count += 1;
        *offline = offline.zip(row.offline).map(|(sum, bytes)| sum.saturating_add(bytes));
    }
    let group = |((state, zone, has_no_zone), (count, offline))| BlockGroup {
        state,
        zone,
        has_no_zone,
        blocks: count,
        memory: blocks.size.saturating_mul(count),
        descriptors: Figure::computed(descriptors.saturating_mul(count), "whole blocks, without HVO"),
        offline,
    };
    Some(BlocksReport {
        size: blocks.size,
        auto_online: blocks.auto_online.clone(),
        groups: alike.into_iter().map(group).collect(),
        list,
    })
}

fn offline_in(pages: &Pages, block: u64, size: u64) -> u64 {
    let pages_per_block = size / 4096;
    let first = block.saturating_mul(pages_per_block);
    pages.tally.offline_in(first..first.saturating_add(pages_per_block)).saturating_mul(4096)
}

/// By size of huge pages.
pub fn huge_pages(survey: &Survey, accounts: &Accounts) -> Vec<HugeRow> {
    let shape = accounts.shape;
    let is_known = !survey.host.pools.is_empty();
    let row = |pool: pagefold_machine::host::Pool| {
        let full = shape.descriptors(pool.bytes());
        let order = (pool.size / shape.page.max(1)).max(1).ilog2() as usize;
        let optimised =
            survey.pages.as_ref().and_then(|pages| pages.tally.optimised.as_ref()?.get(order).copied());
        let saved = pool.pages.saturating_mul(shape.hvo_saves(pool.size));
        HugeRow {
            size: pool.size,
            pages: pool.pages,
            free: is_known.then_some(pool.free),
            optimised,
            descriptors: Figure::computed(full, "without HVO"),
            with_hvo: Figure::computed(
                full.saturating_sub(saved),
                "one page of descriptors of each huge page",
            ),
        }
    };
    pools(survey).into_iter().map(row).collect()
}

/// By page state; nothing without a scan.
pub fn states(survey: &Survey) -> Vec<StateRow> {
    let Some(pages) = &survey.pages else { return Vec::new() };
    let tally = &pages.tally;
    let mut rows: Vec<StateRow> = PageState::ALL
        .into_iter()
        .map(|state| (state, tally.state(state)))
        // Offline blocks and the like come below, with the holes.
        .filter(|(state, sum)| sum.pages > 0 && *state != PageState::NoPage)
        .map(|(state, sum)| {
            let descriptors = sum.pages.saturating_mul(64);
            let optimised: u64 =
                tally.hugetlb.iter().skip(7).fold(0, |sum, folios| sum.saturating_add(*folios));
            let small: u64 = (tally.hugetlb.iter().take(7).enumerate())
                .fold(0, |sum, (order, folios)| sum.saturating_add(folios << order));
            let with_hvo = match state {
                PageState::Hugetlb => optimised.saturating_mul(4096).saturating_add(small * 64),
                _ => descriptors,
            };
            StateRow {
                state: state.name(),
                pages: sum.pages,
                memory: sum.pages.saturating_mul(4096),
                descriptors,
                with_hvo,
                folded: (sum.map_pages_left * 4096.0).round() as u64,
            }
        })
        .collect();
    let holes = pages.described.saturating_sub(pages.memory) / 4096;
    if holes > 0 {
        let (descriptors, with_hvo) = (holes * 64, holes * 64);
        rows.push(StateRow {
            state: "holes, offline blocks",
            pages: holes,
            memory: 0,
            descriptors,
            with_hvo,
            folded: 0,
        });
    }
    rows
}

/// Folios in use by order; nothing without a scan.
pub fn folios(survey: &Survey) -> Vec<FolioRow> {
    let Some(pages) = &survey.pages else { return Vec::new() };
    let orders = (0u32..).zip(&pages.tally.folios).filter(|(_, folios)| **folios > 0);
    orders
        .map(|(order, &folios)| FolioRow { order, folios, memory: folios.saturating_mul(4096 << order) })
        .collect()
}

/// Offline pages; `None` without a scan.
pub fn offline(survey: &Survey, accounts: &Accounts) -> Option<OfflineReport> {
    let pages = survey.pages.as_ref()?;
    let bytes = pages.tally.state(PageState::Offline).pages.saturating_mul(4096);
    let block = survey.host.blocks.as_ref().map_or(SECTION, |blocks| blocks.size);
    Some(OfflineReport {
        memory: Figure::counted(bytes, "/proc/kpageflags KPF_OFFLINE"),
        descriptors: Figure::computed(accounts.shape.descriptors(bytes), "of these pages"),
        blocks: pages.tally.offline_blocks(block / 4096),
    })
}
