//! What the kernel's count of descriptors has more than descriptors of memory, by its causes.
//!
//! `nr_memmap_pages` and `nr_memmap_boot_pages` count descriptors of device memory (`ZONE_DEVICE`) too, and the tables of
//! page extensions (`mm/page_ext.c`), which boot options ask for: `page_owner=on` and others.

use pagefold_machine::Host;
use pagefold_machine::cost::Shape;

use super::model::{ExcessReport, Interval};

/// Words in an entry of page extensions, at most: all of them together have about 20.
const MAX_ENTRY_WORDS: u64 = 32;
const FROM: &str = "the kernel's count of descriptors, which includes it, less arithmetic";

/// Bytes that the zones of device memory span. They count no present pages; where several devices are, there may be holes.
pub fn device_memory(host: &Host) -> u64 {
    let zones = host.zones.iter().filter(|zone| zone.is_device());
    zones.fold(0u64, |sum, zone| sum.saturating_add(zone.spanned)).saturating_mul(host.page_size.bytes)
}

/// Nothing.
pub fn none() -> ExcessReport {
    let nothing = || Interval::computed(0, 0, FROM);
    ExcessReport { page_ext: nothing(), device: nothing(), unexplained: nothing() }
}

impl ExcessReport {
    /// From `least` to `most` bytes, by their causes: device memory costs what its zones say, page extensions the rest if
    /// there are any.
    pub fn of(host: &Host, shape: Shape, least: u64, most: u64) -> Self {
        let device = shape.descriptors(device_memory(host));
        let has_page_ext = !host.boot.page_ext.is_empty();
        // Beside page extensions, nothing tells whether those of devices lie in memory.
        let device_least = if has_page_ext { 0 } else { device.min(least) };
        let rest = Interval::computed(least.saturating_sub(device), most.saturating_sub(device_least), FROM);
        let nothing = || Interval::computed(0, 0, FROM);
        let device = Interval::computed(device_least, device.min(most), FROM);
        match has_page_ext {
            true => Self { page_ext: rest, device, unexplained: nothing() },
            false if rest.min == 0 => Self { page_ext: nothing(), device, unexplained: nothing() },
            false => Self { page_ext: nothing(), device, unexplained: rest },
        }
    }

    /// At least and at most so many bytes in all.
    pub fn bytes(&self) -> (u64, u64) {
        let parts = [&self.page_ext, &self.device, &self.unexplained];
        let sum =
            |end: fn(&Interval) -> u64| parts.iter().fold(0u64, |sum, part| sum.saturating_add(end(part)));
        (sum(|part| part.min), sum(|part| part.max))
    }

    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.bytes().1 > 0
    }
}

/// Sections with descriptors, if only one number of them explains the kernel's count.
///
/// Page extensions are made for the sections that have descriptors, and an entry is a whole number of words. So `counted` is
/// a number of sections times what one costs with an entry of some size; `full` are the descriptors that are possible.
pub fn sections_with_page_ext(host: &Host, shape: Shape, counted: u64, full: &Interval) -> Option<u64> {
    let section = host.section_bytes();
    let descriptors = shape.descriptors(section).max(1);
    let possible = full.min.div_ceil(descriptors)..=full.max / descriptors;
    let entries = (1..=MAX_ENTRY_WORDS).map(|words| words * 8);
    let mut found = entries.filter_map(|entry| {
        let one = descriptors.saturating_add((section / shape.page.max(1)).saturating_mul(entry));
        let sections = counted / one;
        (counted.is_multiple_of(one) && possible.contains(&sections)).then_some(sections)
    });
    let first = found.next()?;
    found.all(|sections| sections == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::ZoneRecord;

    const MIB: u64 = 1 << 20;

    fn host(page_ext: bool, device_pages: u64) -> Host {
        let mut host = Host { arch: "x86_64".into(), ..Host::default() };
        if page_ext {
            host.boot.page_ext.push("page_owner".into());
        }
        if device_pages > 0 {
            host.zones.push(ZoneRecord {
                name: "Device".into(),
                spanned: device_pages,
                ..ZoneRecord::default()
            });
        }
        host
    }

    fn parts(excess: &ExcessReport) -> [(u64, u64); 3] {
        [&excess.page_ext, &excess.device, &excess.unexplained].map(|part| (part.min, part.max))
    }

    #[test]
    fn causes_that_are_known_are_named() {
        let of = |page_ext, device, least, most| {
            parts(&ExcessReport::of(&host(page_ext, device), Shape::USUAL, least, most))
        };
        // 1 GiB of device memory has 16 MiB of descriptors.
        let gib = 1 << 18;
        assert_eq!(of(true, 0, 5, 9), [(5, 9), (0, 0), (0, 0)]);
        assert_eq!(of(false, 0, 5, 9), [(0, 0), (0, 0), (5, 9)]);
        assert_eq!(of(false, gib, 16 * MIB, 16 * MIB), [(0, 0), (16 * MIB, 16 * MIB), (0, 0)]);
        assert_eq!(of(false, gib, 20 * MIB, 20 * MIB), [(0, 0), (16 * MIB, 16 * MIB), (4 * MIB, 4 * MIB)]);
        // Memory with holes has fewer: that is no riddle.
        assert_eq!(of(false, gib, 15 * MIB, 17 * MIB)[2], (0, 0));
        assert_eq!(of(true, gib, 20 * MIB, 20 * MIB), [(4 * MIB, 20 * MIB), (0, 16 * MIB), (0, 0)]);
    }

    #[test]
    fn the_count_tells_sections_and_entries_apart() {
        let full = Interval::computed(96 * MIB, 112 * MIB, "");
        let sections = |counted| sections_with_page_ext(&host(true, 0), Shape::USUAL, counted, &full);
        // 53 sections, with an entry of 24 bytes each page: 768 KiB besides 2 MiB.
        assert_eq!(sections(53 * (2 * MIB + (768 << 10))), Some(53));
        // No size of an entry makes this.
        assert_eq!(sections(53 * (2 * MIB + (768 << 10)) + 4096), None);
        assert_eq!(sections(55 * 3 * MIB), Some(55));
        // 48 sections with 48 bytes are as much as 56 with 32.
        assert_eq!(sections(168 * MIB), None);
    }
}
