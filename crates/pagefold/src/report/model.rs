//! The report as data. The JSON is this, and so is its schema; `schema` is raised whenever a field changes its meaning.

use pagefold_machine::host::{Gap, Hvo, OnlineState, PageSizeFrom};
use serde::Serialize;

/// The version of this form.
pub const SCHEMA: u32 = 1;

/// What page metadata costs a machine, and where.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold report"))]
pub struct Report {
    /// Version of this form.
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// Which machine.
    pub machine: MachineFacts,
    /// Memory that the kernel has pages for.
    pub memory: Figure,
    /// All descriptors: the best figure there is. It is the kernel's count where that is possible at all, else computed.
    pub descriptors: Figure,
    /// What the kernel's count has besides descriptors of memory.
    pub descriptors_excess: ExcessReport,
    /// All descriptors as arithmetic has them.
    pub descriptors_computed: Interval,
    /// All descriptors as the kernel counts them (Linux 6.12 or newer).
    pub descriptors_counted: Option<Figure>,
    /// Where descriptors lie.
    pub places: Vec<PlaceReport>,
    /// By NUMA node.
    pub nodes: Vec<NodeRow>,
    /// By zone: what their pages cost without HVO.
    pub zones: Vec<ZoneRow>,
    /// By memory block; absent without memory hotplug.
    pub blocks: Option<BlocksReport>,
    /// By size of huge pages.
    pub huge_pages: Vec<HugeRow>,
    /// What HVO saves, and could save.
    pub hvo: HvoReport,
    /// Where memory went, from what is installed to what is free.
    pub memory_went: Vec<WentStage>,
    /// By page state; empty without a scan.
    pub states: Vec<StateRow>,
    /// Folios in use by order; empty without a scan.
    pub folios: Vec<FolioRow>,
    /// Offline pages in online blocks: fake-offline or ballooned. Absent without a scan.
    pub offline: Option<OfflineReport>,
    /// What folding would leave.
    pub folding: FoldingReport,
    /// Other costs by the page.
    pub other_costs: Vec<OtherCost>,
    /// Numbers that tell the same thing, compared.
    pub checks: Vec<Check>,
    /// What could not be read, and why.
    pub gaps: Vec<Gap>,
    /// Whether something is missing that this kernel has (exit code 3).
    pub partial: bool,
}

/// How a number came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Somebody did it and took the time or the size.
    Measured,
    /// The kernel counts it, or its pages were counted one by one.
    Counted,
    /// Arithmetic.
    Computed,
    /// An argument said so.
    Given,
}

impl How {
    /// The word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            How::Measured => "measured",
            How::Counted => "counted",
            How::Computed => "computed",
            How::Given => "given",
        }
    }
}

/// A number of bytes with its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Figure {
    /// Bytes.
    pub bytes: u64,
    /// How it came about.
    pub how: How,
    /// From what.
    pub from: String,
}

/// A number of bytes that is only known within limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interval {
    /// At least so many bytes.
    pub min: u64,
    /// At most so many.
    pub max: u64,
    /// How that came about.
    pub how: How,
    /// From what.
    pub from: String,
}

/// What the kernel's count of descriptors has more than descriptors of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExcessReport {
    /// Page extensions, which boot options ask for.
    pub page_ext: Interval,
    /// Descriptors of device memory.
    pub device: Interval,
    /// What nothing explains.
    pub unexplained: Interval,
}

/// An amount of memory on the way from what is installed to what is free, and what of it does not come as far as the next.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WentStage {
    /// A name: `installed`, `blocks`, `firmware_map`, `system_ram`, `mem_total`, `mem_available`.
    pub stage: &'static str,
    /// In words.
    pub title: String,
    /// So much memory.
    pub memory: Figure,
    /// What of it is something else than the next stage.
    pub parts: Vec<WentPart>,
}

/// A part of a stage.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WentPart {
    /// A name; `rest` for what is left over.
    pub name: &'static str,
    /// In words.
    pub title: String,
    /// So much of it.
    pub bytes: Figure,
}

/// Which machine.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MachineFacts {
    /// Where it was read.
    pub origin: String,
    /// Kernel release.
    pub kernel: String,
    /// Architecture.
    pub arch: String,
    /// Bytes in a page.
    pub page_size: u64,
    /// How that is known.
    pub page_size_from: PageSizeFrom,
    /// Bytes in a descriptor.
    pub descriptor_size: u64,
    /// Whether BTF or a snapshot says so; else it is assumed.
    pub descriptor_size_known: bool,
    /// Whether every page's state was read.
    pub scanned: bool,
}

/// A place where descriptors lie.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(rename = "Place"))]
pub struct PlaceReport {
    /// `boot`, `runtime` (the buddy allocator), `block` (the block they describe), `runtime or block`, `unknown`.
    pub place: &'static str,
    /// How many.
    pub descriptors: Figure,
    /// What the place means.
    pub note: String,
}

/// A NUMA node.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeRow {
    /// Its number.
    pub node: u32,
    /// Bytes of memory with descriptors.
    pub memory: u64,
    /// Its descriptors.
    pub descriptors: Interval,
    /// What HVO saves on its huge pages.
    pub hvo_saved: Interval,
    /// What HVO could save on them in all, in bytes (computed).
    pub hvo_savable: u64,
    /// Its page tables.
    pub page_tables: Option<Figure>,
    /// What its memory is used for, as the kernel counts it; absent where its `meminfo` is not there.
    pub uses: Option<NodeUses>,
}

/// What a node's memory is used for, in bytes (its `meminfo`).
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeUses {
    /// All that the buddy allocator manages (`MemTotal`).
    pub total: u64,
    /// Free.
    pub free: u64,
    /// Anonymous memory.
    pub anonymous: u64,
    /// Page cache, shared memory included.
    pub page_cache: u64,
    /// Slab.
    pub slab: u64,
    /// Pools of huge pages.
    pub huge_pages: u64,
}

/// A zone.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ZoneRow {
    /// Its node.
    pub node: u32,
    /// Its name.
    pub zone: String,
    /// Bytes of memory (zoneinfo: present).
    pub present: u64,
    /// Bytes that the buddy allocator manages.
    pub managed: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Descriptors of the present pages, without HVO.
    pub descriptors: Figure,
}

/// Memory blocks.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BlocksReport {
    /// Bytes in a block.
    pub size: u64,
    /// What happens to blocks that are added.
    pub auto_online: Option<String>,
    /// Alike blocks together.
    pub groups: Vec<BlockGroup>,
    /// Each block.
    pub list: Vec<BlockRow>,
}

/// Blocks in one state and one zone.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BlockGroup {
    /// Their state.
    pub state: OnlineState,
    /// Their zone, if they are in one and the kernel tells.
    pub zone: Option<String>,
    /// Whether the kernel says that no one zone has all of such a block.
    pub has_no_zone: bool,
    /// How many.
    pub blocks: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Descriptors, without HVO.
    pub descriptors: Figure,
    /// Bytes that are offline in them; absent without a scan.
    pub offline: Option<u64>,
}

/// One block.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BlockRow {
    /// Its number.
    pub block: u64,
    /// Its state.
    pub state: OnlineState,
    /// Its zone, if it is in one and the kernel tells.
    pub zone: Option<String>,
    /// Whether the kernel says that no one zone has all of it.
    pub has_no_zone: bool,
    /// Its node, if the kernel tells.
    pub node: Option<u32>,
    /// Bytes of descriptors, without HVO (computed).
    pub descriptors: u64,
    /// Bytes that are offline in it (counted); absent without a scan.
    pub offline: Option<u64>,
    /// Bytes of descriptors of these (computed).
    pub offline_descriptors: Option<u64>,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HugeRow {
    /// Bytes in one.
    pub size: u64,
    /// How many.
    pub pages: u64,
    /// Those that are not in use; absent where a snapshot does not tell.
    pub free: Option<u64>,
    /// Those whose descriptors HVO has taken; absent where page flags do not tell.
    pub optimised: Option<u64>,
    /// Their descriptors without HVO.
    pub descriptors: Figure,
    /// Their descriptors if all are optimised.
    pub with_hvo: Figure,
}

/// HVO here.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HvoReport {
    /// Whether it is on.
    pub state: Hvo,
    /// Whether it was asked for at boot.
    pub boot_option: Option<bool>,
    /// What it saves now.
    pub saved: Interval,
    /// What is left to save on the huge pages there are.
    pub left: Interval,
}

/// Pages in one state.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StateRow {
    /// The state.
    pub state: &'static str,
    /// Pages (counted).
    pub pages: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of descriptors, without HVO (computed).
    pub descriptors: u64,
    /// Bytes with HVO for all huge pages (computed).
    pub with_hvo: u64,
    /// Bytes that folding would leave (computed).
    pub folded: u64,
}

/// Folios of one order.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FolioRow {
    /// The order: 2^order pages.
    pub order: u32,
    /// Folios in use (counted).
    pub folios: u64,
    /// Bytes of memory in them.
    pub memory: u64,
}

/// Offline pages.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OfflineReport {
    /// Their memory.
    pub memory: Figure,
    /// Their descriptors.
    pub descriptors: Figure,
    /// Memory blocks (without blocks: sections) that have any.
    pub blocks: u64,
}

/// What folding would leave.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FoldingReport {
    /// Descriptors.
    pub descriptors: Interval,
    /// What else it needs, at most: classes, the allocator's rows, page tables of the memory map.
    pub tables: Figure,
    /// Both.
    pub total: Interval,
    /// The same with a word for each page and an object for each folio.
    pub memdesc: MemdescReport,
}

/// What folding would leave of words and objects (memdesc).
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemdescReport {
    /// Words, of 8 bytes.
    pub words: Interval,
    /// Objects, of 64 bytes.
    pub objects: Interval,
    /// What else it needs, at most.
    pub tables: Figure,
    /// All of it.
    pub total: Interval,
}

/// A cost by the page besides descriptors.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OtherCost {
    /// A name for scripts.
    pub name: &'static str,
    /// A name for people.
    pub title: &'static str,
    /// How much; absent where nothing tells.
    pub cost: Option<Interval>,
    /// What it is for.
    pub note: String,
}

/// Two numbers that tell the same thing.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Check {
    /// A name for scripts.
    pub name: &'static str,
    /// What is compared.
    pub what: String,
    /// One.
    pub left: Interval,
    /// The other.
    pub right: Interval,
    /// By how many bytes they differ.
    pub difference: u64,
    /// Whether that is within what is to be expected.
    pub agrees: bool,
    /// What a difference means.
    pub note: String,
}

impl Figure {
    pub fn counted(bytes: u64, from: impl Into<String>) -> Self {
        Self { bytes, how: How::Counted, from: from.into() }
    }

    pub fn computed(bytes: u64, from: impl Into<String>) -> Self {
        Self { bytes, how: How::Computed, from: from.into() }
    }
}

impl Interval {
    pub fn computed(min: u64, max: u64, from: impl Into<String>) -> Self {
        Self { min, max: max.max(min), how: How::Computed, from: from.into() }
    }

    pub fn is_exact(&self) -> bool {
        self.min == self.max
    }

    /// The same with both bounds changed.
    pub fn map(self, change: impl Fn(u64) -> u64) -> Self {
        Self { min: change(self.min), max: change(self.max), ..self }
    }
}

impl From<Figure> for Interval {
    fn from(figure: Figure) -> Self {
        Self { min: figure.bytes, max: figure.bytes, how: figure.how, from: figure.from }
    }
}

/// `part` of `whole` in percent.
pub fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}
