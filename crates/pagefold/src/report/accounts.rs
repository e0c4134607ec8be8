//! The two questions everything else hangs on: how many descriptors are there, and what has HVO taken of them?
//!
//! Three sources, none of which is right on every kernel:
//!
//! * Arithmetic: sections with memory, a descriptor for every page in them. Exact where sections are known; an interval
//!   where memory blocks are larger than sections, or are not known.
//! * The kernel's count (`nr_memmap_pages`, `nr_memmap_boot_pages`; 6.12). It has `page_ext` and device memory in it, and on
//!   some kernels the boot counter does not fall when memory that was there at boot is removed.
//! * The pools of huge pages: HVO can have taken at most all pages of descriptors of each huge page but the first. Whether
//!   it did, page flags tell on some kernels ([`pagefold_machine::fake_heads`]), and no file on others.
//!
//! The kernel's count is the figure, unless it is less than HVO can explain. What it has more than arithmetic is told by
//! its causes ([`super::excess`]), and by the rest, which is called unexplained.

use pagefold_machine::Host;
use pagefold_machine::cost::Shape;
use pagefold_machine::host::{Hvo, Pool};

use super::excess::{self, device_memory, sections_with_page_ext};
use super::model::{ExcessReport, Figure, Interval};
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
    /// Whether the two can both be true, with what [`excess`](Self::excess) explains.
    pub agree: bool,
    /// What the kernel counts besides descriptors of memory.
    pub excess: ExcessReport,
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
        // A kernel without HVO has nothing to offer. (Where page flags show optimised pages, it has HVO.)
        let by_flags = pages.and_then(|pages| saved_by_flags(pages, shape));
        let has_hvo = host.hvo != Hvo::Unsupported || by_flags.is_some_and(|bytes| bytes > 0);
        let savable = pools(survey).iter().fold(0u64, |sum, pool| {
            sum.saturating_add(pool.pages.saturating_mul(shape.hvo_saves(pool.size)))
        });
        let savable = if has_hvo { savable } else { 0 };
        let by_state = match by_flags {
            Some(bytes) => Figure::counted(bytes, "page flags: optimised huge pages show fake heads").into(),
            None => saved_by_state(host, savable),
        };
        let counted = host.memmap.map(|memmap| {
            let bytes = memmap.pages.saturating_mul(shape.page);
            Figure::counted(bytes, "vmstat nr_memmap_boot_pages + nr_memmap_pages")
        });
        // What else counts there, and what HVO may have taken away, hides how many descriptors there are.
        let has_page_ext = !host.boot.page_ext.is_empty();
        let is_clear = !has_page_ext && device_memory(host) == 0;
        let described = match &counted {
            Some(counted) if savable == 0 && device_memory(host) == 0 => {
                described_by_count(host, shape, counted.bytes, described)
            }
            _ => described,
        };
        let from = format!("{} bytes a page: {}", shape.descriptor, described.from);
        let full =
            Interval::computed(shape.descriptors(described.min), shape.descriptors(described.max), from);
        let slack = full.max / SLACK;
        // Huge pages that were made while HVO was on stay optimised when it is off.
        let saved_most = if by_flags.is_some() { by_state.max } else { savable };
        let least = full.min.saturating_sub(saved_most);
        let is_enough = counted.as_ref().is_none_or(|counted| counted.bytes.saturating_add(slack) >= least);
        // More than all descriptors (but for what is known to be saved) is something else.
        let most = full.max.saturating_sub(by_state.min);
        let excess = match &counted {
            Some(counted) if counted.bytes > most.saturating_add(slack) => {
                ExcessReport::of(host, shape, counted.bytes - most, counted.bytes - least)
            }
            _ => excess::none(),
        };
        let agree = is_enough && excess.unexplained.max == 0;
        let saved = match &counted {
            Some(counted) if by_flags.is_none() && agree && savable > 0 && !excess.is_any() && is_clear => {
                Interval::computed(
                    full.min.saturating_sub(counted.bytes).min(savable),
                    full.max.saturating_sub(counted.bytes).min(savable),
                    "arithmetic less the kernel's count",
                )
            }
            _ => by_state,
        };
        let computed = Interval::computed(
            full.min.saturating_sub(saved.max),
            full.max.saturating_sub(saved.min),
            full.from.clone(),
        );
        let descriptors = match &counted {
            Some(counted) if is_enough => counted.clone(),
            _ => Figure::computed(computed.max, computed.from.clone()),
        };
        Self { shape, memory, described, full, computed, counted, agree, excess, descriptors, savable, saved }
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

/// What the kernel's count says of how much memory has descriptors, where HVO has nothing to do with it.
fn described_by_count(host: &Host, shape: Shape, counted: u64, described: Interval) -> Interval {
    let full = Interval::computed(shape.descriptors(described.min), shape.descriptors(described.max), "");
    if full.is_exact() {
        return described;
    }
    if !host.boot.page_ext.is_empty() {
        return match sections_with_page_ext(host, shape, counted, &full) {
            Some(sections) => {
                let bytes = sections.saturating_mul(host.section_bytes());
                let from = "the kernel's count, of descriptors and page extensions of as many sections";
                Interval::computed(bytes, bytes, from)
            }
            None => described,
        };
    }
    if !(full.min..=full.max).contains(&counted) {
        return described;
    }
    let bytes = (counted / shape.descriptor.max(1)).saturating_mul(shape.page);
    Interval::computed(bytes, bytes, "the kernel's count")
}

fn described(host: &Host, pages: Option<&Pages>, memory: u64) -> Interval {
    if let Some(pages) = pages {
        return Interval::computed(pages.described, pages.described, "sections of System RAM");
    }
    let section = host.section_bytes();
    let blocks = blocks_bytes(host);
    if let Some(list) = host.blocks.as_ref().filter(|_| blocks > 0) {
        if list.size <= section {
            return Interval::computed(blocks, blocks, "memory blocks");
        }
        // A block may have sections without memory.
        let offline =
            list.list.iter().filter(|block| block.state != pagefold_machine::host::OnlineState::Online);
        let offline = list.size.saturating_mul(offline.count() as u64);
        return Interval::computed(
            memory.saturating_add(offline).min(blocks),
            blocks,
            "memory blocks, may have holes",
        );
    }
    let zones = host.zones.iter().filter(|zone| !zone.is_device());
    let spanned = zones.fold(0u64, |sum, zone| sum.saturating_add(zone.spanned));
    let spanned = spanned.saturating_mul(host.page_size.bytes);
    if spanned > 0 {
        return Interval::computed(memory, spanned.max(memory), "from present to spanned pages of all zones");
    }
    Interval::computed(memory, memory, "memory in total")
}

/// What HVO saves, page by page, if page flags tell which huge pages are optimised.
fn saved_by_flags(pages: &Pages, shape: Shape) -> Option<u64> {
    let optimised = pages.tally.optimised.as_ref()?.iter().enumerate();
    Some(optimised.fold(0u64, |sum, (order, &pages)| {
        sum.saturating_add(pages.saturating_mul(shape.hvo_saves(shape.page << order)))
    }))
}

fn saved_by_state(host: &Host, savable: u64) -> Interval {
    match host.hvo {
        Hvo::On => Interval::computed(0, savable, "HVO is on; older huge pages may not be optimised"),
        Hvo::Off if host.boot.hvo == Some(true) => Interval::computed(
            0,
            savable,
            "HVO is off, and was on at boot; older huge pages may be optimised",
        ),
        Hvo::Off => Interval::computed(0, 0, "HVO is off"),
        Hvo::Unsupported => Interval::computed(0, 0, "this kernel has no HVO"),
        Hvo::Unknown => Interval::computed(0, savable, "nothing says whether HVO is on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::host::{Block, Blocks, Memmap, OnlineState};

    /// 64 GiB in blocks of 128 MiB, 1024 huge pages of 2 MiB.
    fn host(hvo: Hvo, memmap_pages: Option<u64>) -> Survey {
        let block = |id| Block { id, state: OnlineState::Online, zone: None, has_no_zone: false };
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
    fn what_was_made_at_boot_stays_optimised_when_hvo_is_off() {
        let mut survey = host(Hvo::Off, None);
        assert_eq!(interval(&Accounts::of(&survey).saved), (0, 0));
        survey.host.boot.hvo = Some(true);
        assert_eq!(interval(&Accounts::of(&survey).saved), (0, ALL_SAVED));
    }

    #[test]
    fn a_count_that_is_too_small_is_not_believed() {
        let accounts = Accounts::of(&host(Hvo::On, Some(FULL - ALL_SAVED - FULL / 50)));
        assert!(!accounts.agree);
        assert_eq!(accounts.descriptors.how, How::Computed);
        assert_eq!(interval(&accounts.saved), (0, ALL_SAVED));
        // A kernel without HVO has saved nothing.
        assert!(!Accounts::of(&host(Hvo::Unsupported, Some(FULL - ALL_SAVED))).agree);
    }

    #[test]
    fn what_the_kernel_counts_and_nothing_explains_is_told() {
        let accounts = Accounts::of(&host(Hvo::Off, Some(FULL + FULL / 50)));
        assert!(!accounts.agree);
        assert_eq!(accounts.descriptors.bytes / 4096, FULL + FULL / 50);
        // What HVO may have saved of huge pages that were made while it was on would be unexplained, too.
        assert_eq!(interval(&accounts.excess.unexplained), (FULL / 50, FULL / 50 + ALL_SAVED));
    }

    #[test]
    fn page_extensions_and_device_memory_are_told_apart() {
        let mut survey = host(Hvo::Off, Some(FULL + 2000));
        survey.host.boot.page_ext = vec!["page_owner".into()];
        let accounts = Accounts::of(&survey);
        assert!(accounts.agree);
        assert_eq!(interval(&accounts.excess.page_ext), (2000, 2000 + ALL_SAVED));
        assert_eq!(accounts.descriptors.bytes / 4096, FULL + 2000);
    }

    #[test]
    fn where_there_is_no_hvo_none_is_offered() {
        let accounts = Accounts::of(&host(Hvo::Unsupported, None));
        assert_eq!((accounts.savable, interval(&accounts.left())), (0, (0, 0)));
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
        let zone = pagefold_machine::ZoneRecord { present: 3 << 18, spanned: 4 << 18, ..Default::default() };
        survey.host.zones = vec![zone];
        survey.host.blocks = Some(Blocks {
            size: 2 << 30,
            auto_online: None,
            list: (0..2)
                .map(|id| Block { id, state: OnlineState::Online, zone: None, has_no_zone: false })
                .collect(),
        });
        assert_eq!(interval(&Accounts::of(&survey).full), (3 << 12, 4 << 12));
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let mut survey = host(Hvo::On, Some(u64::MAX));
        let zone =
            pagefold_machine::ZoneRecord { present: u64::MAX, spanned: u64::MAX, ..Default::default() };
        survey.host.zones = vec![zone.clone(), zone];
        survey.host.pools = vec![Pool { size: 1 << 63, pages: u64::MAX, free: u64::MAX, surplus: 0 }];
        let accounts = Accounts::of(&survey);
        assert!(!accounts.agree);
        survey.host.blocks = None;
        let _ = Accounts::of(&survey).left();
    }
}
