//! The size of a page. Another root has no system call to ask: there, the same quantity stands in `/proc/meminfo` in kB
//! and in `/proc/vmstat` in pages.

use serde::{Deserialize, Serialize};

use super::counters::Counters;

/// Bytes in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageSize {
    /// A power of two.
    pub bytes: u64,
    /// How that is known.
    pub from: PageSizeFrom,
}

/// How the size of a page is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PageSizeFrom {
    /// The system says so.
    System,
    /// `/proc/meminfo` divided by `/proc/vmstat`.
    Counters,
    /// It stands in the snapshot file.
    Snapshot,
    /// Nothing tells; 4 KiB.
    Assumed,
}

impl Default for PageSize {
    fn default() -> Self {
        Self { bytes: 4096, from: PageSizeFrom::Assumed }
    }
}

impl PageSize {
    /// The size of a page of this host, or of one known by its counters.
    pub fn find(is_this_host: bool, meminfo: &Counters, vmstat: &Counters) -> Self {
        if is_this_host {
            return Self { bytes: rustix::param::page_size() as u64, from: PageSizeFrom::System };
        }
        by_counters(meminfo, vmstat)
            .map_or_else(Self::default, |bytes| Self { bytes, from: PageSizeFrom::Counters })
    }
}

/// Pairs of counters of one quantity.
const PAIRS: [(&str, &str); 7] = [
    ("Active(file)", "nr_active_file"),
    ("Inactive(file)", "nr_inactive_file"),
    ("AnonPages", "nr_anon_pages"),
    ("Mapped", "nr_mapped"),
    ("SReclaimable", "nr_slab_reclaimable"),
    ("PageTables", "nr_page_table_pages"),
    ("MemFree", "nr_free_pages"),
];

/// What most pairs agree on; the two files are not read at the same moment.
fn by_counters(meminfo: &Counters, vmstat: &Counters) -> Option<u64> {
    let size = |(bytes, pages): &(&str, &str)| {
        let (bytes, pages) = (meminfo.get(bytes)?, vmstat.get(pages)?);
        let ratio = bytes as f64 / pages as f64;
        // From 2 KiB to 256 KiB, rounded to a power of two.
        (pages > 15 && (2048.0..=262_144.0).contains(&ratio)).then(|| 1u64 << ratio.log2().round() as u32)
    };
    let mut sizes: Vec<u64> = PAIRS.iter().filter_map(size).collect();
    sizes.sort_unstable();
    sizes.get(sizes.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_of_all_sizes_are_recognised() {
        for shift in [12, 14, 16] {
            let pages = [("nr_anon_pages", 1000), ("nr_mapped", 4000), ("nr_free_pages", 100_000)];
            let vmstat = Counters::from(pages);
            // Free memory that no zone has yet: meminfo counts it, vmstat does not.
            let meminfo = Counters::from([
                ("AnonPages", 1010 << shift),
                ("Mapped", 3990 << shift),
                ("MemFree", 300_000 << shift),
            ]);
            let found = PageSize::find(false, &meminfo, &vmstat);
            assert_eq!(found, PageSize { bytes: 1 << shift, from: PageSizeFrom::Counters });
        }
        assert_eq!(
            PageSize::find(false, &Counters::default(), &Counters::default()).from,
            PageSizeFrom::Assumed
        );
    }

    proptest! {
        #[test]
        fn any_counters_are_taken(bytes: u64, pages: u64) {
            let size = PageSize::find(
                false,
                &Counters::from([("Mapped", bytes)]),
                &Counters::from([("nr_mapped", pages)]),
            );
            prop_assert!(size.bytes.is_power_of_two());
        }
    }
}
