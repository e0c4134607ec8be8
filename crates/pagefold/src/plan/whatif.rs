//! What descriptors would cost under each option.

use pagefold_machine::cost::Shape;
use pagefold_machine::host::{Hvo, Pool};
use pagefold_machine::kernel::{Kernel, page_sizes};
use serde::Serialize;

use super::base::Base;
use crate::report::memdesc::OBJECT;
use crate::report::model::{How, Interval};

/// One way to keep descriptors.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Alternative {
    /// A name.
    pub name: String,
    /// What descriptors would cost (computed).
    pub descriptors: Interval,
    /// Against what descriptors cost now (of sizes alone: all descriptors, without HVO); negative if it costs more.
    pub saved_min: i64,
    pub saved_max: i64,
    /// Whether Linux has it.
    pub in_linux: Availability,
    /// What it costs in time.
    pub time: Vec<Time>,
    /// What else there is to know.
    pub note: String,
}

/// A cost in time.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Time {
    /// How that is known: measured once, elsewhere.
    pub how: How,
    /// How long what takes.
    pub what: String,
    /// Where it was measured.
    pub from: &'static str,
}

impl Time {
    fn measured(what: impl Into<String>, from: &'static str) -> Self {
        Self { how: How::Measured, what: what.into(), from }
    }
}

/// Whether Linux has an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// In Linux today.
    Yes,
    /// In Linux, but not in this machine's kernel.
    NotHere,
    /// On other architectures.
    ElsewhereOnly,
    /// Not in Linux today.
    No,
}

impl Availability {
    pub const fn name(self) -> &'static str {
        match self {
            Availability::Yes => "yes",
            Availability::NotHere => "not in this kernel",
            Availability::ElsewhereOnly => "other architectures",
            Availability::No => "no",
        }
    }
}

/// All ways.
pub fn scenarios(base: &Base) -> Vec<Alternative> {
    let full = base.full();
    let now = &base.descriptors_now;
    let exact = |bytes: u64, from: &str| Interval::computed(bytes, bytes, from);
    let mut options = vec![Alternative::new(
        "as Linux has them, no HVO",
        now,
        exact(full, "a descriptor for each page"),
        Availability::Yes,
        Vec::new(),
        "",
    )];
    options.push(hvo(base, full));
    options.push(Alternative::new(
        "memmap_on_memory",
        now,
        exact(full, "the same number, in another place"),
        Availability::Yes,
        Vec::new(),
        "saves nothing: added blocks hold their own; not with virtio-mem, not with HVO",
    ));
    for size in [32, 16, 8] {
        options.push(memdesc(base, size));
    }
    options.push(Alternative::new(
        "folding",
        now,
        base.folded_in_all(),
        Availability::No,
        vec![Time::measured(
            "takes 0.8 us to fold a huge page, 1.3 to 3.3 us to unfold a map page",
            "Pagefold's engine in user space, Linux 6.18, 2 CPUs under virtualisation",
        )],
        "with the engine's tables; `pagefold replay` measures it",
    ));
    options.push(Alternative::new(
        "memdesc of 8 bytes, folded",
        now,
        base.memdesc_in_all(),
        Availability::No,
        Vec::new(),
        "with the engine's tables; `pagefold replay --descriptors memdesc` measures it",
    ));
    for page in [16 << 10, 64 << 10].into_iter().filter(|&page| page > base.shape.page) {
        options.push(larger_pages(base, page));
    }
    options
}

/// What HVO gives back for pools.
fn hvo_saves(pools: &[Pool], shape: Shape) -> u64 {
    hvo_saves_but(pools, shape, 1)
}

/// The same, if it keeps so many pages of descriptors of each huge page.
fn hvo_saves_but(pools: &[Pool], shape: Shape, keeps: u64) -> u64 {
    pools.iter().fold(0u64, |sum, pool| {
        let each = shape.hvo_saves(pool.size).saturating_sub((keeps - 1).saturating_mul(shape.page));
        sum.saturating_add(pool.pages.saturating_mul(each))
    })
}

/// HVO, where the machine's kernel has it.
fn hvo(base: &Base, full: u64) -> Alternative {
    const NAME: &str = "HVO for all huge pages";
    let now = &base.descriptors_now;
    let keeps = if base.planned.is_asked { base.planned.kernel.hvo_keeps() } else { 1 };
    let saved = hvo_saves_but(&base.pools, base.shape, keeps);
    let from = match keeps {
        1 => "one page of descriptors for each huge page",
        _ => "two pages of descriptors for each huge page, as before Linux 5.18",
    };
    let left = full.saturating_sub(saved);
    if base.hvo == Hvo::Unsupported {
        let all = Interval::computed(full, full, "a descriptor for each page");
        let note = match saved {
            0 => String::new(),
            _ => format!("a kernel that has it would save {}", pagefold_picture::amount::Bytes(saved)),
        };
        return Alternative::new(NAME, now, all, Availability::NotHere, Vec::new(), &note);
    }
    let note = match base.hvo {
        _ if base.pools.is_empty() => "there are no huge pages; try --hugetlb",
        Hvo::On => "it is on: huge pages made from now on are optimised",
        _ if base.planned.is_asked && base.planned.kernel.is_before((5, 19)) => {
            "hugetlb_free_vmemmap=on at boot"
        }
        _ => "vm.hugetlb_optimize_vmemmap=1",
    };
    Alternative::new(
        NAME,
        now,
        Interval::computed(left, left, from),
        Availability::Yes,
        hvo_time(&base.pools, &base.planned.kernel),
        note,
    )
}

fn memdesc(base: &Base, size: u64) -> Alternative {
    let shape = Shape { descriptor: size, ..base.shape };
    let words = shape.descriptors(base.described);
    let huge = base.pools.iter().fold(0u64, |sum, pool| sum.saturating_add(pool.pages));
    let objects = |folios: u64| folios.saturating_add(huge).saturating_mul(OBJECT);
    let descriptors = Interval::computed(
        words.saturating_add(objects(base.folios.least)),
        words.saturating_add(objects(base.folios.most)),
        format!("{size} bytes a page, and {OBJECT} for each folio in use: {}", base.folios.from),
    );
    let note = match hvo_saves(&base.pools, shape) {
        _ if base.pools.is_empty() => String::new(),
        0 => "HVO on top would save nothing: a huge page has one page of them".into(),
        more => format!("HVO on top would save {} more", pagefold_picture::amount::Bytes(more)),
    };
    let name = format!("memdesc of {size} bytes");
    Alternative::new(&name, &base.descriptors_now, descriptors, Availability::No, Vec::new(), &note)
}

fn larger_pages(base: &Base, page: u64) -> Alternative {
    let bytes = Shape { page, ..base.shape }.descriptors(base.described);
    let name = format!("pages of {} KiB", page >> 10);
    let is_here = page_sizes(&base.planned.kernel.arch).contains(&page);
    let availability = if is_here { Availability::Yes } else { Availability::ElsewhereOnly };
    let from = Interval::computed(bytes, bytes, "a descriptor for each page");
    let note = "small files and mappings take whole pages, which is not in this figure";
    Alternative::new(&name, &base.descriptors_now, from, availability, Vec::new(), note)
}

/// What HVO adds to making and to freeing a huge page of 2 MiB, in microseconds, in QEMU with one emulated CPU: 1,024 of them,
/// with and without. By the first release that it is taken for.
const EMULATED: [((u64, u64), &str, u64, u64); 4] =
    [((5, 14), "6.1", 62, 67), ((6, 7), "6.12", 63, 76), ((6, 16), "6.18", 55, 75), ((7, 1), "7.3", 19, 34)];

/// What HVO adds to making and freeing pools.
fn hvo_time(pools: &[Pool], kernel: &Kernel) -> Vec<Time> {
    /// 1024 huge pages of 2 MiB: 6.2 to 26.7 ms to allocate, 5.5 to 25.2 ms to free, without and with HVO.
    const ADDED_US: f64 = 20.0;
    let pages = |size: u64| pools.iter().find(|pool| pool.size == size).map_or(0, |pool| pool.pages);
    let mut times = Vec::new();
    if pages(2 << 20) > 0 {
        let pool = pages(2 << 20) as f64 * ADDED_US / 1e6;
        times.push(Time::measured(
            format!("adds {ADDED_US:.0} us for each 2 MiB page made or freed: {pool:.2} s for this pool"),
            "Linux 6.18, 2 CPUs under virtualisation, free memory at hand",
        ));
        // Of the releases that were compared, the one whose way of doing it the kernel has.
        let like = EMULATED.iter().rev().find(|(first, ..)| kernel.is_since(*first));
        if let Some(&(_, release, make, free)) = like.filter(|(_, release, ..)| *release != "6.18") {
            let (_, _, make_618, free_618) = EMULATED[2];
            times.push(Time::measured(
                format!(
                    "adds {make} us for each 2 MiB page made and {free} us for each freed in an emulated Linux \
                     {release}, where 6.18 has {make_618} us and {free_618} us"
                ),
                "QEMU, one emulated CPU: compare, do not add up",
            ));
        }
    }
    if pages(1 << 30) > 0 {
        times.push(Time::measured(
            "adds 1 to 48 ms for each 1 GiB page made or freed",
            "Linux 7.3 to 6.1, one emulated CPU: compare, do not add up",
        ));
    }
    times
}

impl Alternative {
    fn new(
        name: &str,
        now: &Interval,
        descriptors: Interval,
        in_linux: Availability,
        time: Vec<Time>,
        note: &str,
    ) -> Self {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Self {
            name: name.into(),
            saved_min: signed(now.min).saturating_sub(signed(descriptors.max)),
            saved_max: signed(now.max).saturating_sub(signed(descriptors.min)),
            descriptors,
            in_linux,
            time,
            note: note.into(),
        }
    }
}

/// What a memory block size means.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BlockSize {
    /// Bytes in a block.
    pub size: u64,
    /// Blocks of this machine's memory.
    pub blocks: u64,
    /// Bytes of descriptors that adding one takes, in Linux.
    pub descriptors: u64,
    /// Bytes in a sub-block, the least that virtio-mem can take away.
    pub sub_block: u64,
    /// If one sub-block stays plugged in every block: bytes in use,
    pub stuck: u64,
    /// descriptors in Linux,
    pub stuck_linux: u64,
    /// and under folding, if these are used as small pages.
    pub stuck_folded: u64,
}

/// The block sizes that a kernel chooses from: a section, or on x86-64 up to 2 GiB. What stays is a sub-block of virtio-mem's,
/// the size of a page block.
pub fn block_sizes(base: &Base) -> Vec<BlockSize> {
    let kernel = &base.planned.kernel;
    let sub_block = kernel.page_block();
    let least = kernel.section().max(sub_block);
    let most = if matches!(kernel.arch.as_str(), "x86_64" | "") { 2 << 30 } else { least };
    let size = |size: u64| {
        let blocks = base.memory.div_ceil(size);
        BlockSize {
            size,
            blocks,
            descriptors: base.shape.descriptors(size),
            sub_block,
            stuck: blocks.saturating_mul(sub_block),
            stuck_linux: base.shape.descriptors(blocks.saturating_mul(size)),
            stuck_folded: base.shape.descriptors(blocks.saturating_mul(sub_block)),
        }
    };
    let sizes = std::iter::successors(Some(least), |size| Some(size * 2)).take_while(|&size| size <= most);
    sizes.map(size).filter(|row| row.size <= base.memory || row.size == least).collect()
}

#[cfg(test)]
mod tests {
    use super::super::kernel::KernelArgs;
    use super::*;

    fn pool(size: u64, pages: u64) -> Pool {
        Pool { size, pages, free: pages, surplus: 0 }
    }

    fn of_sizes(memory: u64, free: u64, pools: Vec<Pool>) -> anyhow::Result<Base> {
        Base::of_sizes(memory, free, pools, KernelArgs::default().planned(None).unwrap())
    }

    fn on(kernel: &str, arch: Option<&'static str>, page_size: Option<u64>) -> Base {
        let args = KernelArgs { page_size, arch, kernel: Some(kernel.into()) };
        Base::of_sizes(1 << 40, 0, vec![pool(2 << 20, 1000)], args.planned(None).unwrap()).unwrap()
    }

    #[test]
    fn what_hvo_saves_and_costs_depends_on_the_kernel() {
        let hvo = |base: &Base| option(&scenarios(base), "HVO").clone();
        let saves = |release| hvo(&on(release, None, None)).saved_max;
        assert_eq!(saves("6.12"), 1000 * 7 * 4096);
        assert_eq!(saves("5.15"), 1000 * 6 * 4096);
        assert_eq!(saves("5.10"), 0);
        let times = |release| hvo(&on(release, None, None)).time;
        assert!(times("7.3")[1].what.contains("19 us") && times("7.3")[1].what.contains("55 us"));
        assert!(times("6.1")[1].what.contains("62 us"));
        assert_eq!(times("6.18").len(), 1);
        let arm = on("6.18", Some("aarch64"), Some(65536));
        assert_eq!(hvo(&arm).in_linux, Availability::NotHere);
        assert_eq!(option(&scenarios(&arm), "as Linux").descriptors.max, 1 << 30);
        let sizes = block_sizes(&arm);
        assert_eq!((sizes.len(), sizes[0].size, sizes[0].sub_block), (1, 512 << 20, 512 << 20));
        let arm = on("6.18", Some("aarch64"), None);
        assert_eq!(option(&scenarios(&arm), "pages of 64").in_linux, Availability::Yes);
    }

    fn option<'a>(options: &'a [Alternative], name: &str) -> &'a Alternative {
        options.iter().find(|option| option.name.starts_with(name)).unwrap()
    }

    #[test]
    fn a_terabyte_of_huge_pages() {
        let base = of_sizes(1 << 40, 0, vec![pool(2 << 20, 1 << 18), pool(1 << 30, 512)]).unwrap();
        let options = scenarios(&base);
        assert_eq!(option(&options, "as Linux").descriptors.max, 16 << 30);
        // A page of descriptors for each huge page.
        assert_eq!(option(&options, "HVO").descriptors.max, ((1 << 18) + 512) * 4096);
        let memdesc = option(&options, "memdesc of 8");
        assert_eq!(memdesc.descriptors.max, (2 << 30) + ((1 << 18) + 512) * 64);
        // 511 of 512 pages of each gigabyte's words, and nothing of 2 MiB pages.
        assert!(memdesc.note.contains("1022 MiB"), "{}", memdesc.note);
        assert_eq!(option(&options, "pages of 64").descriptors.max, 1 << 30);
        assert!(option(&options, "HVO").time[0].what.contains("5.24 s"));
        let folded = &option(&options, "folding").descriptors;
        assert!(folded.max < 1200 << 20, "{folded:?}");
        // An object for each huge page, no words; nine bytes of tables for each 2 MiB.
        let folded = &option(&options, "memdesc of 8 bytes, folded").descriptors;
        assert_eq!((folded.min, folded.max >> 20), (folded.max, 20));
    }

    #[test]
    fn one_sub_block_left_in_each_block() {
        let base = of_sizes(1 << 40, 1 << 39, Vec::new()).unwrap();
        let sizes = block_sizes(&base);
        let row = |size: u64| sizes.iter().find(|row| row.size == size).unwrap();
        let (small, large) = (row(128 << 20), row(2 << 30));
        assert_eq!((small.stuck, small.stuck_linux), (16 << 30, 16 << 30));
        assert_eq!((large.stuck, large.stuck_linux), (1 << 30, 16 << 30));
        assert_eq!(small.stuck_folded, 256 << 20);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert!(of_sizes(1 << 30, 1 << 29, vec![pool(1 << 30, 1)]).is_err());
        assert!(of_sizes(1 << 30, 0, vec![pool(1 << 30, u64::MAX)]).is_err());
        let base = of_sizes(1 << 30, 1 << 29, Vec::new()).unwrap();
        assert!(base.with_pools(vec![pool(1 << 30, 2)]).is_err());
    }
}
