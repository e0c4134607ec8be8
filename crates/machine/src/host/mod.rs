//! What a host says of itself in small files that everyone may read: [`Host`].
//!
//! One module a source. Parsers take what they know, skip what they do not, and never fail on a whole file because of a
//! line; what could not be had is a [`Gap`] with its reason, beside the rest.

pub mod blocks;
pub mod btf;
pub mod buddyinfo;
pub mod cmdline;
pub mod counters;
pub mod dax;
pub mod files;
pub mod firmware;
pub mod hugetlb;
pub mod lsmem;
pub mod nodes;
pub mod onlining;
mod page_size;
pub mod paste;
pub mod release;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::blocks::{Block, Blocks, OnlineState};
pub use self::buddyinfo::FreeBlocks;
pub use self::cmdline::BootOptions;
pub use self::counters::Counters;
pub use self::dax::Dax;
use self::files::{Files, plain};
pub use self::files::{Gap, GapKind};
pub use self::hugetlb::{Hvo, Pool};
pub use self::nodes::Node;
pub use self::onlining::{OnlineRule, Onlining};
pub use self::page_size::{PageSize, PageSizeFrom};
pub use self::release::release;
use crate::geometry::{MAX_PAGES, PAGE_BYTES, section_bytes};
use crate::layout::{ZoneRecord, parse_zoneinfo};
use crate::machine::{Header, Machine};

/// Everything a host says of itself without root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Kernel release; empty if nothing tells.
    pub kernel: String,
    /// Architecture; empty if nothing tells.
    pub arch: String,
    /// Bytes in a page, and how that is known.
    pub page_size: PageSize,
    /// Kernel structures, from BTF.
    pub structs: Structs,
    /// What the kernel was told at boot that matters here.
    pub boot: BootOptions,
    /// `/proc/meminfo`, in bytes.
    pub meminfo: Counters,
    /// `/proc/vmstat`.
    pub vmstat: Counters,
    /// The kernel's own count of descriptors; kernels since 6.12 have one.
    pub memmap: Option<Memmap>,
    /// Zones with memory.
    pub zones: Vec<ZoneRecord>,
    /// Free blocks by zone.
    pub free_blocks: Vec<FreeBlocks>,
    /// Memory blocks; `None` without memory hotplug.
    pub blocks: Option<Blocks>,
    /// Nodes; none without NUMA.
    pub nodes: Vec<Node>,
    /// Pools of huge pages.
    pub pools: Vec<Pool>,
    /// DAX devices.
    pub dax: Vec<Dax>,
    /// Whether HVO is on.
    pub hvo: Hvo,
    /// The parameter `memory_hotplug.memmap_on_memory`: whether added blocks may hold their own descriptors.
    pub memmap_on_memory: Option<bool>,
    /// How added blocks are brought online, where the kernel is left to choose.
    pub onlining: Onlining,
    /// What the firmware and the boot tell of memory.
    pub firmware: firmware::Firmware,
    /// `vm.min_free_kbytes`, in bytes: what ordinary allocations leave.
    pub min_free: Option<u64>,
    /// What could not be read, and why.
    pub gaps: Vec<Gap>,
}

/// What the kernel counts of its descriptors, in pages (`nr_memmap_boot_pages` and `nr_memmap_pages`). `page_ext`, where it
/// is in use, and descriptors of device memory are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Memmap {
    /// All.
    pub pages: u64,
    /// Those made at boot; `None` if only the sum is known.
    pub boot_pages: Option<u64>,
}

impl Memmap {
    pub(crate) fn of(vmstat: &Counters) -> Option<Self> {
        let boot = vmstat.get("nr_memmap_boot_pages")?;
        let later = vmstat.get("nr_memmap_pages").unwrap_or(0);
        Some(Self { pages: boot.saturating_add(later), boot_pages: Some(boot) })
    }
}

/// Sizes of kernel structures; `None` where BTF does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Structs {
    /// `struct page`, the descriptor.
    pub page: Option<u64>,
    /// Whether the descriptor has a word for the memory cgroup (`memcg_data`).
    pub page_has_memcg: Option<bool>,
    /// `struct mem_section`, one a section.
    pub mem_section: Option<u64>,
    /// `struct mem_section_usage`, one a section with memory, without its page-block flags.
    pub mem_section_usage: Option<u64>,
    /// `struct memory_block`, one a memory block.
    pub memory_block: Option<u64>,
}

/// Bytes of a descriptor where nothing tells: x86-64's and arm64's, in every kernel since 2.6.
const USUAL_DESCRIPTOR: u64 = 64;
/// The same on 32-bit architectures: eight words (`struct page` in `include/linux/mm_types.h`, without options).
const USUAL_DESCRIPTOR_32: u64 = 32;
/// Architectures with words of 32 bits, as `uname -m` names them.
const ARCHS_32: [&str; 9] = ["i386", "i486", "i586", "i686", "x86", "ppc", "mips", "riscv32", "m68k"];
/// A structure of another size is no descriptor.
const SANE_DESCRIPTORS: std::ops::RangeInclusive<u64> = 8..=512;

impl Host {
    /// Bytes in a section.
    pub fn section_bytes(&self) -> u64 {
        section_bytes(&self.arch, self.page_size.bytes)
    }

    /// Reads the host under `root` (`/` for this one). Whatever fails is a gap.
    pub fn read(root: &Path) -> Self {
        Self::of_files(Files::new(root))
    }

    /// Reads the host of these files, which may be in memory. Whatever fails is a gap.
    pub fn of_files(mut files: Files) -> Self {
        let is_this_host = files.is_this_host();
        let files = &mut files;
        let meminfo = counters(files, "proc/meminfo", "memory in total and its uses", "MemTotal");
        let vmstat = counters(files, "proc/vmstat", "the kernel's count of descriptors", "nr_free_pages");
        let zones = parsed(files, "proc/zoneinfo", "zones", parse_zoneinfo);
        let free_blocks = parsed(files, "proc/buddyinfo", "free blocks by order", buddyinfo::parse);
        let (kernel, arch) = names(files, is_this_host);
        let page_size = PageSize::find(is_this_host, &meminfo, &vmstat);
        if page_size.from == PageSizeFrom::Assumed {
            files.miss("proc/vmstat", "the size of a page", GapKind::NotCollected, "4 KiB are assumed");
        }
        let pools = if files.exists("sys/kernel/mm/hugepages") {
            hugetlb::read_pools(files, "sys/kernel/mm/hugepages")
        } else {
            let why = "this kernel has no huge page pools";
            files.absent("sys/kernel/mm/hugepages", "pools of huge pages", why);
            // The pool of the default size stands in another file as well.
            hugetlb::default_pool(&meminfo).into_iter().collect()
        };
        let hvo = hugetlb::read_hvo(files, &arch, &kernel);
        let firmware = firmware::Firmware::read(files, &kernel);
        let mut host = Self {
            kernel,
            arch,
            page_size,
            structs: structs(files),
            boot: files
                .text("proc/cmdline", "boot options")
                .map_or_else(BootOptions::default, |text| BootOptions::parse(&text)),
            memmap: Memmap::of(&vmstat),
            meminfo,
            vmstat,
            zones,
            free_blocks,
            blocks: blocks::read(files),
            nodes: nodes::read(files),
            pools,
            dax: dax::read(files),
            hvo,
            memmap_on_memory: memmap_on_memory(files),
            onlining: Onlining::read(files),
            firmware,
            min_free: files
                .optional_text("proc/sys/vm/min_free_kbytes", "what allocations leave free")
                .and_then(|text| text.trim().parse::<u64>().ok()?.checked_mul(1024)),
            gaps: Vec::new(),
        };
        host.gaps = files.take_gaps();
        host
    }

    /// What a snapshot file knows of its host.
    pub fn of(machine: &Machine) -> Self {
        let Header {
            page_size,
            kernel,
            arch,
            zones,
            mem_total,
            mem_free,
            descriptor_size,
            memmap_pages,
            pools,
            ..
        } = machine.header.clone();
        let gap = |path: &str, tells: &str| Gap {
            path: path.into(),
            tells: tells.into(),
            why: "a snapshot file does not hold it".into(),
            kind: GapKind::Absent,
        };
        Self {
            kernel: plain(&kernel),
            arch: plain(&arch),
            hvo: hugetlb::hvo_without_sysctl(&plain(&arch), &plain(&kernel)),
            page_size: PageSize { bytes: page_size, from: PageSizeFrom::Snapshot },
            structs: Structs { page: (descriptor_size > 0).then_some(descriptor_size), ..Structs::default() },
            meminfo: Counters::from([("MemTotal", mem_total), ("MemFree", mem_free)]),
            memmap: memmap_pages.map(|pages| Memmap { pages, boot_pages: None }),
            zones: zones.into_iter().map(|zone| ZoneRecord { name: plain(&zone.name), ..zone }).collect(),
            pools,
            gaps: vec![
                gap("/proc/meminfo", "page tables and other uses"),
                gap("/sys/devices/system/memory", "memory blocks"),
                gap("/sys/devices/system/node", "NUMA nodes"),
                gap("/proc/sys/vm/hugetlb_optimize_vmemmap", "whether HVO is on"),
            ],
            ..Self::default()
        }
    }

    /// Bytes of a descriptor: what BTF says, or what is usual on such an architecture (64, and 32 with words of 32 bits).
    pub fn descriptor_size(&self) -> u64 {
        let is_32_bit = ARCHS_32.contains(&self.arch.as_str())
            || self.arch.starts_with("armv") && !self.arch.starts_with("armv8");
        self.structs.page.unwrap_or(if is_32_bit { USUAL_DESCRIPTOR_32 } else { USUAL_DESCRIPTOR })
    }

    /// Whether a part is missing that this kernel should have.
    pub fn is_partial(&self) -> bool {
        self.gaps.iter().any(|gap| gap.kind.is_partial())
    }
}

fn counters(files: &mut Files, path: &str, tells: &str, must_have: &str) -> Counters {
    let Some(text) = files.text(path, tells) else { return Counters::default() };
    let counters = Counters::parse(&text);
    let value = counters.get(must_have);
    if value.is_none_or(|value| value > MAX_PAGES * PAGE_BYTES) {
        files.malformed(path, tells, &text);
    }
    // A file that says more than any machine has is not believed at all.
    if value.is_some_and(|value| value > MAX_PAGES * PAGE_BYTES) {
        return Counters::default();
    }
    counters
}

fn parsed<T>(files: &mut Files, path: &str, tells: &str, parse: fn(&str) -> Vec<T>) -> Vec<T> {
    let Some(text) = files.text(path, tells) else { return Vec::new() };
    let parts = parse(&text);
    if parts.is_empty() {
        files.malformed(path, tells, &text);
    }
    parts
}

fn structs(files: &mut Files) -> Structs {
    const PATH: &str = "sys/kernel/btf/vmlinux";
    const TELLS: &str = "the size of a descriptor";
    let Some(bytes) = files.bytes(PATH, TELLS) else { return Structs::default() };
    let wanted =
        [("page", "memcg_data"), ("mem_section", ""), ("mem_section_usage", ""), ("memory_block", "")];
    match btf::structs(&bytes, &wanted) {
        Ok(found) => {
            let size = |name| found.get(name).map(|found: &btf::Struct| found.size);
            let page = size("page").filter(|size| SANE_DESCRIPTORS.contains(size));
            if page.is_none() {
                files.miss(PATH, TELLS, GapKind::Malformed, "it has no struct page of a sane size");
            }
            Structs {
                page,
                page_has_memcg: found.get("page").map(|page| page.has_member),
                mem_section: size("mem_section"),
                mem_section_usage: size("mem_section_usage"),
                memory_block: size("memory_block"),
            }
        }
        Err(error) => {
            files.miss(PATH, TELLS, GapKind::Malformed, error.to_string());
            Structs::default()
        }
    }
}

/// The kernel's release, and its architecture. Files of other hosts may have them only in `uname -a`.
fn names(files: &mut Files, is_this_host: bool) -> (String, String) {
    const TELLS: &str = "the kernel's release";
    let mut release =
        files.optional_text("proc/sys/kernel/osrelease", TELLS).map(|text| text.trim().to_owned());
    let mut arch =
        files.optional_text("proc/sys/kernel/arch", "the architecture").map(|text| text.trim().to_owned());
    // sosreport's file, and the link to it.
    for path in ["proc/version", "sos_commands/kernel/uname_-a", "uname"] {
        if release.is_some() && arch.is_some() {
            break;
        }
        let Some(text) = files.optional_text(path, TELLS) else { continue };
        if let Some((found, of)) = text.lines().find_map(paste::uname) {
            release.get_or_insert_with(|| found.to_owned());
            arch = arch.or_else(|| of.map(str::to_owned));
        }
    }
    if release.is_none() {
        files.absent("proc/sys/kernel/osrelease", TELLS, "this kernel does not have it");
    }
    let own = || if is_this_host { std::env::consts::ARCH.to_owned() } else { String::new() };
    (release.unwrap_or_default(), arch.unwrap_or_else(own))
}

fn memmap_on_memory(files: &mut Files) -> Option<bool> {
    const PATH: &str = "sys/module/memory_hotplug/parameters/memmap_on_memory";
    const TELLS: &str = "whether blocks may hold their own descriptors";
    files.optional(PATH, TELLS, |text| match text {
        "Y" | "force" => Some(true),
        "N" => Some(false),
        _ => None,
    })
}
