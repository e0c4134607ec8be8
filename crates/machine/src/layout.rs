//! Where a machine's memory is: parsers of `/proc/iomem` and `/proc/zoneinfo`.
//!
//! They take what they know and skip what they do not: these files grow with every kernel.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::geometry::{MAX_PAGES, PAGE_BYTES};

/// A range of page numbers that has memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRange {
    /// First page.
    pub start: u64,
    /// One past the last page.
    pub end: u64,
}

/// One zone of one node, from `/proc/zoneinfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneRecord {
    /// The node.
    pub node: u32,
    /// The name: DMA, DMA32, Normal, Movable, Device.
    pub name: String,
    /// First page.
    pub start: u64,
    /// Pages from the first to the last, holes included.
    pub spanned: u64,
    /// Pages that have memory.
    pub present: u64,
    /// Pages that the buddy allocator manages.
    pub managed: u64,
    /// Pages that are free.
    pub free: u64,
}

impl ZoneRecord {
    /// Whether it is device memory (`ZONE_DEVICE`): it has descriptors, and is no memory that the kernel could allocate.
    pub fn is_device(&self) -> bool {
        self.name == "Device"
    }
}

/// What `/proc/iomem` lists: addresses, and a name.
pub(crate) fn resources(iomem: &str) -> impl Iterator<Item = (RangeInclusive<u64>, &str)> {
    iomem.lines().filter_map(|line| {
        let (addresses, name) = line.split_once(" : ")?;
        let (start, end) = addresses.trim_start().split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?..=number(end)?, name.trim()))
    })
}

/// The `System RAM` ranges of `/proc/iomem`, in pages, those only partly RAM left out; also those that a driver added
/// (`System RAM (virtio_mem)`, `System RAM (kmem)`), which stand inside the driver's own range. Empty if the file hides
/// addresses (it does without root).
pub fn parse_iomem(text: &str) -> Vec<MemoryRange> {
    let mut ranges: Vec<MemoryRange> = Vec::new();
    for (addresses, name) in resources(text) {
        if name != "System RAM" && !name.starts_with("System RAM (") {
            continue;
        }
        let (start, end) = addresses.into_inner();
        let (start, end) = (start.div_ceil(PAGE_BYTES), end.saturating_add(1) / PAGE_BYTES);
        if start >= end {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            Some(last) if last.end > start => {}
            _ => ranges.push(MemoryRange { start, end }),
        }
    }
    ranges
}

/// The zones of `/proc/zoneinfo` that have pages.
///
/// Zones of device memory have pages, but count none as present.
///
/// A span that no machine can have is left out: the zone then spans the pages it has. Kernels have shown such spans after
/// an underflow (a movable zone whose pages were moved away).
pub fn parse_zoneinfo(text: &str) -> Vec<ZoneRecord> {
    let mut zones: Vec<ZoneRecord> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Node ")
            && let Some((node, name)) = rest.split_once(", zone")
            && let Ok(node) = node.trim().parse()
        {
            zones.push(ZoneRecord { node, name: name.trim().to_owned(), ..ZoneRecord::default() });
            continue;
        }
        let Some(zone) = zones.last_mut() else { continue };
        let mut words = line.split_ascii_whitespace();
        let (Some(mut key), Some(mut value)) = (words.next(), words.next()) else { continue };
        // The first line of a zone, "pages free N". Counters (nr_free_pages, further down) are not in every copy.
        if (key, value) == ("pages", "free") {
            let Some(pages) = words.next() else { continue };
            (key, value) = ("nr_free_pages", pages);
        }
        let field = match key.trim_end_matches(':') {
            "spanned" => &mut zone.spanned,
            "present" => &mut zone.present,
            "managed" => &mut zone.managed,
            "start_pfn" => &mut zone.start,
            "nr_free_pages" => &mut zone.free,
            _ => continue,
        };
        if let Ok(value) = value.parse() {
            *field = value;
        }
    }
    zones.retain(|zone| zone.present > 0 || zone.is_device() && zone.spanned > 0);
    // The text may have been pasted twice: a zone is one zone, and the last word on it counts.
    let mut known = BTreeSet::new();
    zones.reverse();
    zones.retain(|zone| known.insert((zone.node, zone.name.clone())));
    zones.reverse();
    for zone in &mut zones {
        let end = zone.start.checked_add(zone.spanned).filter(|&end| end <= MAX_PAGES);
        if end.is_none() || zone.spanned < zone.present {
            zone.spanned = zone.present;
        }
    }
    zones
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_read(
            iomem in "( {0,4}[0-9a-f]{1,17}-[0-9a-f]{1,17} : (System RAM( \\(x\\))?|Reserved)\n|.{0,60}\n){0,8}",
            zones in "(Node [0-9]{1,11}, zone [A-Z]{1,6}\n|  (present|spanned|managed|start_pfn:|nr_free_pages) [0-9]{1,21}\n|.{0,60}\n){0,12}",
        ) {
            let ranges = parse_iomem(&iomem);
            prop_assert!(ranges.iter().all(|range| range.start < range.end));
            prop_assert!(parse_zoneinfo(&zones).iter().all(|zone| zone.spanned > 0));
        }
    }

    #[test]
    fn iomem_ranges_are_whole_pages_of_system_ram() {
        let text = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n0009fc00-000fffff : Reserved\n  000f0000-000fffff : System ROM\n00100000-bfffffff : System RAM\n  01000000-02209987 : Kernel code\n100000000-63fffffff : System RAM\n";
        let ranges = [(1, 0x9f), (0x100, 0xc_0000), (0x10_0000, 0x64_0000)];
        assert_eq!(parse_iomem(text), ranges.map(|(start, end)| MemoryRange { start, end }));
    }

    #[test]
    fn memory_that_drivers_added_stands_inside_their_ranges() {
        let text = "00100000-3fffffff : System RAM\n  01000000-01ffffff : Kernel code\n100000000-1ffffffff : virtio0\n  100000000-10fffffff : System RAM (virtio_mem)\n  110000000-117ffffff : System RAM (virtio_mem)\n200000000-2ffffffff : CXL Window 0\n  200000000-20fffffff : dax0.0\n    200000000-20fffffff : System RAM (kmem)\n";
        let ranges = [(0x100, 0x4_0000), (0x10_0000, 0x11_8000), (0x20_0000, 0x21_0000)];
        assert_eq!(parse_iomem(text), ranges.map(|(start, end)| MemoryRange { start, end }));
    }

    #[test]
    fn hidden_addresses_make_no_ranges() {
        assert_eq!(parse_iomem("00000000-00000000 : System RAM\n00000000-00000000 : System RAM\n"), []);
    }

    #[test]
    fn zones_without_pages_are_left_out() {
        let text = "Node 0, zone      DMA\n  per-node stats\n      nr_inactive_anon 1\n  pages free     3840\n        spanned  4095\n        present  3998\n        managed  3840\n      nr_free_pages 3840\n  start_pfn:           1\nNode 1, zone  Movable\n  pages free 0\n        spanned  0\n        present  0\n        managed  0\n";
        let zones = parse_zoneinfo(text);
        assert_eq!(zones.len(), 1);
        let expected = ZoneRecord {
            node: 0,
            name: "DMA".into(),
            start: 1,
            spanned: 4095,
            present: 3998,
            managed: 3840,
            free: 3840,
        };
        assert_eq!(zones[0], expected);
    }

    #[test]
    fn a_zone_that_comes_twice_is_one() {
        let zone = |node, free| {
            format!("Node {node}, zone Normal\n  pages free {free}\n  spanned 4096\n  present 4096\n")
        };
        let twice = parse_zoneinfo(&[zone(0, 1), zone(1, 2), zone(0, 3), zone(1, 4)].concat());
        assert_eq!(twice, parse_zoneinfo(&[zone(0, 3), zone(1, 4)].concat()));
    }

    #[test]
    fn free_pages_stand_on_the_first_line_too() {
        let text =
            "Node 0, zone   Normal\n  pages free     1234\n        spanned  4096\n        present  4096\n";
        assert_eq!(parse_zoneinfo(text)[0].free, 1234);
        // The counter is newer than the line: both are there, and it wins.
        let text = format!("{text}      nr_free_pages 1200\n");
        assert_eq!(parse_zoneinfo(&text)[0].free, 1200);
    }

    #[test]
    fn a_span_that_cannot_be_is_left_out() {
        for spanned in [18_446_744_073_709_289_472u64, 1 << 52, 10] {
            let text = format!(
                "Node 0, zone  Movable\n  pages free 5\n        spanned  {spanned}\n        present  4096\n  \
                 start_pfn:           1048576\n"
            );
            assert_eq!(parse_zoneinfo(&text)[0].spanned, 4096, "{spanned}");
        }
    }
}
