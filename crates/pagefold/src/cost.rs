//! What all metadata costs: by our own count, by smaps, and by the page map.

use std::io;

use anyhow::{Context, Result};
use pagefold_engine::platform::{Barrier, TableKind};
use pagefold_engine::protocol::Protocol;
use pagefold_engine::{Descriptors, Engine, Pfn};
use pagefold_linux::{Linux, Region, measure};
use pagefold_machine::host::Counters;
use pagefold_workload::Stamp;
use serde::Serialize;

use crate::stderr::say;

/// One sort of metadata, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CostPart {
    /// By our own count.
    pub counted: u64,
    /// As `/proc/self/smaps` (for page tables: `/proc/self/status`) has it.
    pub smaps: u64,
    /// As the process's page map has it (`PAGEMAP_SCAN`); absent where it is too large to be read without that.
    pub pagemap: Option<u64>,
}

impl CostPart {
    /// The three agree within 1 % (or a few pages, where there is next to nothing).
    pub fn agrees(&self) -> bool {
        let near = |a: u64, b: u64| a.abs_diff(b) <= (a.max(b) / 100).max(SLACK);
        near(self.counted, self.smaps) && self.pagemap.is_none_or(|pagemap| near(self.counted, pagemap))
    }
}

impl std::ops::Add for CostPart {
    type Output = CostPart;
    fn add(self, other: CostPart) -> CostPart {
        CostPart {
            counted: self.counted + other.counted,
            smaps: self.smaps + other.smaps,
            pagemap: self.pagemap.zip(other.pagemap).map(|(a, b)| a + b),
        }
    }
}

/// Sixteen pages: `VmPTE` counts the page tables of the whole process, and those of its heap and of its threads' stacks come and
/// go while the engine lives (24 to 51 KiB were seen).
const SLACK: u64 = 16 * 4096;

/// All metadata of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cost {
    /// The memory map: what stands for each page.
    pub map: CostPart,
    /// Where descriptors are objects: those, and their allocator.
    pub objects: CostPart,
    /// Page tables that map the tables into this process.
    pub page_tables: CostPart,
    /// Class table, section table, and marks beside the map.
    pub classes: CostPart,
    /// The frame allocator.
    pub allocator: CostPart,
}

impl CostPart {
    const ZERO: CostPart = CostPart { counted: 0, smaps: 0, pagemap: Some(0) };
}

impl Cost {
    /// Nothing.
    pub const ZERO: Cost = Cost {
        map: CostPart::ZERO,
        objects: CostPart::ZERO,
        page_tables: CostPart::ZERO,
        classes: CostPart::ZERO,
        allocator: CostPart::ZERO,
    };
    pub fn total(&self) -> CostPart {
        self.map + self.objects + self.page_tables + self.classes + self.allocator
    }

    /// Whether all agree but for `VmPTE`: where the rest of the process has freed memory since, the kernel keeps empty page
    /// tables for it, and does not say whose they are.
    pub fn agrees_without_vmpte(&self) -> bool {
        let page_tables = CostPart { smaps: self.page_tables.counted, ..self.page_tables };
        Cost { page_tables, ..*self }.total().agrees()
    }
}

/// Page tables of this process before the engine was made.
#[derive(Clone, Copy, Debug)]
pub struct Baseline {
    all: u64,
    others: u64,
}

impl Baseline {
    pub fn take() -> io::Result<Self> {
        Ok(Self { all: measure::page_table_bytes()?, others: measure::page_tables_outside(&[])? })
    }
}

type LinuxEngine<B, R, D> = Engine<Linux<B, Stamp, R, D>>;

/// Asks the system, and counts.
pub fn measure<B: Barrier + Clone, R: Protocol, D: Descriptors>(
    engine: &LinuxEngine<B, R, D>,
    baseline: Baseline,
) -> io::Result<Cost> {
    let mut cost = Cost::ZERO;
    let mut ranges = Vec::new();
    for (kind, region) in engine.tables() {
        let counted = match kind {
            TableKind::Map => engine.materialised_map_pages() * 4096,
            _ => region.counted_pages() * 4096,
        };
        let part = CostPart {
            counted,
            smaps: measure::smaps_anonymous(&region.addresses())?,
            pagemap: if_possible(region.measured_pages())?.map(|pages| pages * 4096),
        };
        let sum = match kind {
            TableKind::Map => &mut cost.map,
            TableKind::Objects
            | TableKind::ObjectGroups
            | TableKind::ObjectRows
            | TableKind::ObjectLanes
            | TableKind::ObjectTrees => &mut cost.objects,
            TableKind::Classes
            | TableKind::Sections
            | TableKind::Regions
            | TableKind::Poison
            | TableKind::Holes
            | TableKind::Withheld
            | TableKind::Blocks => &mut cost.classes,
            TableKind::Rows
            | TableKind::Lanes
            | TableKind::Trees
            | TableKind::MovableRows
            | TableKind::MovableLanes
            | TableKind::MovableTrees => &mut cost.allocator,
        };
        *sum = *sum + part;
        ranges.push(region.addresses());
    }
    // The kernel only says what all page tables of the process cost: take away what they cost before, and what the
    // rest of the process has grown by since.
    let all = measure::page_table_bytes()?;
    let others = measure::page_tables_outside(&ranges)?;
    let ours = all.saturating_sub(baseline.all).saturating_sub(others.saturating_sub(baseline.others));
    let by_scan = if_possible(measure::page_tables_of(&ranges))?;
    cost.page_tables = CostPart { counted: by_scan.unwrap_or(ours), smaps: ours, pagemap: by_scan };
    Ok(cost)
}

/// What a kernel cannot tell is no error.
fn if_possible<T>(measured: io::Result<T>) -> io::Result<Option<T>> {
    match measured {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        other => other.map(Some),
    }
}

/// Bytes the engine and its platform keep outside of the tables, at most.
pub fn bookkeeping<B: Barrier + Clone, R: Protocol, D: Descriptors>(engine: &LinuxEngine<B, R, D>) -> u64 {
    let regions = engine.tables().map(|(_, region)| Region::bookkeeping(region)).sum::<u64>();
    size_of_val(engine) as u64 + regions
}

/// Map pages that are folded by their class, but have memory of their own: somebody wrote to them.
pub fn rematerialised<B: Barrier + Clone, R: Protocol, D: Descriptors>(
    engine: &LinuxEngine<B, R, D>,
) -> Result<Vec<u64>> {
    let Some((_, map)) = engine.tables().next() else { return Ok(Vec::new()) };
    let base = map.addresses().start;
    let mut back = Vec::new();
    let scanned = map.scan_private(&mut |run| {
        for map_page in (run.start - base) / 4096..(run.end - base) / 4096 {
            if !engine.class(Pfn(map_page * D::PAGES_PER_MAP_PAGE)).1 {
                back.push(map_page);
            }
        }
    });
    match scanned {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            say(
                "this kernel cannot scan a memory map of that size (PAGEMAP_SCAN, Linux 6.7): stray pages are not looked for",
            );
        }
        other => other.context("scanning the memory map for stray pages")?,
    }
    Ok(back)
}

/// Bytes of memory this machine can spare.
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    Counters::parse(&meminfo).get("MemAvailable")
}
