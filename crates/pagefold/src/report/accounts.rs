//! The two questions everything else hangs on: how many descriptors are there, and what has HVO taken of them?
//!
//! Three sources, none of which is right on every kernel:
//!
//! * Arithmetic: sections with memory, a descriptor for every page in them. Exact where sections are known; an interval
//!   where memory blocks are larger than sections, or are not known.
//! * The kernel's count (`nr_memmap_pages`, `nr_memmap_boot_pages`; 6.12). It has `page_ext` and device memory in it, and on
//!   some kernels the boot counter does not fall when memory that was there at boot is removed.
//! * The pools of huge pages: HVO can have taken at most all pages of descriptors of each huge page but the first. Whether
//!   it did, no file says.
//!
//! The kernel's count is believed where arithmetic says that it is possible; then it also says what HVO has saved.

use pagefold_machine::Host;
use pagefold_machine::cost::Shape;
use pagefold_machine::host::{Hvo, Pool};

use super::model::{Figure, Interval};
use crate::survey::{Pages, Survey};

/// Bytes that the kernel's count may differ from arithmetic by: one part in so many.
const SLACK: u64 = 200;

/// The answers.
pub struct Accounts {
    pub shape: Shape,
    /// Bytes of memory with pages.
    pub memory: Figure,
    /// Bytes of memory with descriptors: whole sections.
    pub described: Interval,
    /// Descriptors if HVO had taken none.
    pub full: Interval,
    /// Descriptors by arithmetic.
    pub computed: Interval,
    /// Descriptors as the kernel counts them.
    pub counted: Option<Figure>,
    /// Whether the two can both be true.
    pub agree: bool,
    /// The best figure.
    pub descriptors: Figure,
    /// What HVO can save at most on the huge pages there are.
    pub savable: u64,
    /// What it saves now.
    pub saved: Interval,
}

impl Accounts {
    pub fn of(survey: &Survey) -> Self {
        let host = &survey.host;
        let shape = Shape { page: host.page_size.bytes, descriptor: host.descriptor_size() };
        let pages = survey.pages.as_ref();
        let memory = memory(host, pages);
        let described = described(host, pages, memory.bytes);
        let from = format!("{} bytes a page: {}", shape.descriptor, described.from);
        let full =
            Interval::computed(shape.descriptors(described.min), shape.descriptors(described.max), from);
        let savable = pools(survey).iter().fold(0u64, |sum, pool| {
            sum.saturating_add(pool.pages.saturating_mul(shape.hvo_saves(pool.size)))
        });
        let by_state = saved_by_state(host.hvo, savable);
        // Huge pages that were made while HVO was on stay optimised: only the kernel's count can tell.
        let possible = if host.hvo == Hvo::Unsupported { 0 } else { savable };
        let counted = host.memmap.map(|memmap| {
            let bytes = memmap.pages.saturating_mul(shape.page);
            Figure::counted(bytes, "vmstat nr_memmap_boot_pages + nr_memmap_pages")
        });
        let slack = full.max / SLACK;
        let agree = counted.as_ref().is_none_or(|counted| {
            counted.bytes.saturating_add(slack) >= full.min.saturating_sub(possible)
                && counted.bytes <= full.max.saturating_add(slack)
        });
        let saved = match &counted {
            Some(counted) if agree && savable > 0 && host.boot.page_ext.is_empty() => Interval::computed(
                full.min.saturating_sub(counted.bytes).min(possible),
                full.max.saturating_sub(counted.bytes).min(possible),
                "arithmetic less the kernel's count",
            ),
            _ => by_state,
        };
        let computed = Interval::computed(
            full.min.saturating_sub(saved.max),
            full.max.saturating_sub(saved.min),
            full.from.clone(),
        );
        let descriptors = match &counted {
            Some(counted) if agree => counted.clone(),
            _ => Figure::computed(computed.max, computed.from.clone()),
        };
        Self { shape, memory, described, full, computed, counted, agree, descriptors, savable, saved }
    }

    /// What HVO has not saved yet.
    pub fn left(&self) -> Interval {
        Interval::computed(
            self.savable.saturating_sub(self.saved.max),
            self.savable.saturating_sub(self.saved.min),
            "all pages of descriptors of each huge page but the first, less what is saved",
        )
    }
}

/// The pools; of a snapshot, the huge pages that were found in it.
pub fn pools(survey: &Survey) -> Vec<Pool> {
    let pools = &survey.host.pools;
    let Some(pages) = survey.pages.as_ref().filter(|_| pools.is_empty()) else { return pools.clone() };
    let orders = pages.tally.hugetlb.iter().enumerate().filter(|&(order, &pages)| order > 0 && pages > 0);
    orders.map(|(order, &pages)| Pool { size: 4096 << order, pages, free: 0, surplus: 0 }).collect()
}

fn memory(host: &Host, pages: Option<&Pages>) -> Figure {
    if let Some(pages) = pages {
        return Figure::counted(pages.memory, "/proc/iomem System RAM");
    }
    let present = host.zones.iter().fold(0u64, |sum, zone| sum.saturating_add(zone.present));
    let present = present.saturating_mul(host.page_size.bytes);
    if present > 0 {
        return Figure::counted(present, "/proc/zoneinfo present");
    }
    match (host.meminfo.get("MemTotal"), blocks_bytes(host)) {
        (Some(total), _) => Figure::counted(total, "/proc/meminfo MemTotal"),
        (None, bytes) => Figure::computed(bytes, "memory blocks"),
    }
}

fn blocks_bytes(host: &Host) -> u64 {
    host.blocks.as_ref().map_or(0, |blocks| blocks.size.saturating_mul(blocks.list.len() as u64))
}

fn described(host: &Host, pages: Option<&Pages>, memory: u64) -> Interval {
    if let Some(pages) = pages {
        return Interval::computed(pages.described, pages.described, "sections of System RAM");
    }
    let section = section_size(host);
    let blocks = blocks_bytes(host);
    if let Some(list) = host.blocks.as_ref().filter(|_| blocks > 0) {
        if list.size <= section {
            return Interval::computed(blocks, blocks, "memory blocks");
        }
        // A block may have sections without memory.
        let offline =
            list.list.iter().filter(|block| block.state != pagefold_machine::host::BlockState::Online);
        let offline = list.size.saturating_mul(offline.count() as u64);
        return Interval::computed(
            memory.saturating_add(offline).min(blocks),
            blocks,
            "memory blocks, may have holes",
        );
    }
    let spanned = host.zones.iter().fold(0u64, |sum, zone| sum.saturating_add(zone.spanned));
    let spanned = spanned.saturating_mul(host.page_size.bytes);
    if spanned > 0 {
        return Interval::computed(memory, spanned.max(memory), "from present to spanned pages of all zones");
    }
    Interval::computed(memory, memory, "memory in total")
}

/// Bytes in a section: 128 MiB, and 512 MiB on arm64 with pages of 64 KiB (`SECTION_SIZE_BITS`).
pub fn section_size(host: &Host) -> u64 {
    match (host.arch.as_str(), host.page_size.bytes) {
        ("aarch64" | "arm64", 65536) => 512 << 20,
        _ => 128 << 20,
    }
}

fn saved_by_state(hvo: Hvo, savable: u64) -> Interval {
    match hvo {
        Hvo::On => Interval::computed(0, savable, "HVO is on; older huge pages may not be optimised"),
        Hvo::Off => Interval::computed(0, 0, "HVO is off"),
        Hvo::Unsupported => Interval::computed(0, 0, "this kernel has no HVO"),
        Hvo::Unknown => Interval::computed(0, savable, "nothing says whether HVO is on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::host::{Block, BlockState, Blocks, Memmap};

    /// 64 GiB in blocks of 128 MiB, 1024 huge pages of 2 MiB.
    fn host(hvo: Hvo, memmap_pages: Option<u64>) -> Survey {
        let block = |id| Block { id, state: BlockState::Online, zone: None };
        let host = Host {
            arch: "x86_64".into(),
            blocks: Some(Blocks { size: 128 << 20, auto_online: None, list: (0..512).map(block).collect() }),
            pools: vec![Pool { size: 2 << 20, pages: 1024, free: 0, surplus: 0 }],
            hvo,
            memmap: memmap_pages.map(|pages| Memmap { pages, boot_pages: Some(pages) }),
            ..Host::default()
        };
        Survey { origin: String::new(), host, pages: None }
    }

    use crate::report::model::How;
    const FULL: u64 = 1 << 18;
    const ALL_SAVED: u64 = 7168;

    fn interval(interval: &Interval) -> (u64, u64) {
        (interval.min / 4096, interval.max / 4096)
    }

    #[test]
    fn without_a_count_hvo_is_an_interval() {
        let accounts = Accounts::of(&host(Hvo::On, None));
        assert_eq!(interval(&accounts.saved), (0, ALL_SAVED));
        assert_eq!(interval(&accounts.left()), (0, ALL_SAVED));
        assert_eq!(interval(&accounts.computed), (FULL - ALL_SAVED, FULL));
        assert_eq!(accounts.descriptors.how, How::Computed);
        assert_eq!(interval(&Accounts::of(&host(Hvo::Off, None)).saved), (0, 0));
    }

    #[test]
    fn the_kernels_count_tells_what_hvo_saved() {
        // Half of the pool was made before HVO was switched on.
        let accounts = Accounts::of(&host(Hvo::On, Some(FULL - ALL_SAVED / 2)));
        assert_eq!(interval(&accounts.saved), (ALL_SAVED / 2, ALL_SAVED / 2));
        assert_eq!(interval(&accounts.left()), (ALL_SAVED / 2, ALL_SAVED / 2));
        assert_eq!((accounts.descriptors.how, accounts.agree), (How::Counted, true));
        // Switched off later: what was saved stays saved.
        let accounts = Accounts::of(&host(Hvo::Off, Some(FULL - ALL_SAVED)));
        assert_eq!(interval(&accounts.saved), (ALL_SAVED, ALL_SAVED));
    }

    #[test]
    fn an_impossible_count_is_not_believed() {
        for count in [FULL + FULL / 50, FULL - ALL_SAVED - FULL / 50] {
            let accounts = Accounts::of(&host(Hvo::On, Some(count)));
            assert!(!accounts.agree, "{count}");
            assert_eq!(accounts.descriptors.how, How::Computed);
            assert_eq!(interval(&accounts.saved), (0, ALL_SAVED));
        }
        // A kernel without HVO has saved nothing.
        assert!(!Accounts::of(&host(Hvo::Unsupported, Some(FULL - ALL_SAVED))).agree);
    }

    #[test]
    fn page_ext_hides_what_hvo_saved() {
        let mut survey = host(Hvo::On, Some(FULL));
        survey.host.boot.page_ext = vec!["page_owner".into()];
        assert_eq!(interval(&Accounts::of(&survey).saved), (0, ALL_SAVED));
    }

    #[test]
    fn blocks_larger_than_sections_may_have_holes() {
        let mut survey = host(Hvo::Off, None);
        let zone = pagefold_machine::Zone { present: 3 << 18, spanned: 4 << 18, ..Default::default() };
        survey.host.zones = vec![zone];
        survey.host.blocks = Some(Blocks {
            size: 2 << 30,
            auto_online: None,
            list: (0..2).map(|id| Block { id, state: BlockState::Online, zone: None }).collect(),
        });
        assert_eq!(interval(&Accounts::of(&survey).full), (3 << 12, 4 << 12));
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let mut survey = host(Hvo::On, Some(u64::MAX));
        let zone = pagefold_machine::Zone { present: u64::MAX, spanned: u64::MAX, ..Default::default() };
        survey.host.zones = vec![zone.clone(), zone];
        survey.host.pools = vec![Pool { size: 1 << 63, pages: u64::MAX, free: u64::MAX, surplus: 0 }];
        let accounts = Accounts::of(&survey);
        assert!(!accounts.agree);
        survey.host.blocks = None;
        let _ = Accounts::of(&survey).left();
    }
}
