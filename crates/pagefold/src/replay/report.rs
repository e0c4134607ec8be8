//! The result, for people and for scripts.

use std::io::{self, Write};

use comfy_table::Table;
use pagefold_picture::amount::{Bytes, Count, Whole};
use pagefold_picture::text::printable;
use serde::Serialize;

use crate::cost::{Cost, CostPart};
use crate::table::{add, table};

/// Everything a replay found. The JSON is this, with `schema` raised whenever a field changes its meaning.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold replay"))]
pub struct ReplayReport {
    pub schema: u32,
    pub origin: String,
    pub kernel: String,
    pub note: String,
    /// What a descriptor is: `page` or `memdesc`.
    pub descriptors: &'static str,
    /// With `memdesc`: bytes of an object, and objects in use when everything was folded. Otherwise 0 and none.
    pub object_bytes: u64,
    pub objects: Option<u64>,
    pub protocol: &'static str,
    pub rcu: &'static str,
    pub strict: bool,
    pub tiles: u64,
    pub pages: u64,
    pub described_pages: u64,
    pub folios: u64,
    /// Seconds: making the engine, reading the machine, materialising everything flat, making the folios.
    pub created_seconds: f64,
    pub read_seconds: f64,
    pub flat_seconds: Option<f64>,
    pub load_seconds: f64,
    pub load_pages_per_second: f64,
    pub folding: FoldedReport,
    pub states: Vec<ReplayStateRow>,
    /// After everything was materialised; absent where that would not fit.
    pub flat: Option<Cost>,
    /// After everything was folded.
    pub folded: Cost,
    /// At the end, with whatever the owners did.
    pub last: Cost,
    /// Pages in use when everything was folded, and at the end.
    pub folded_pages_in_use: u64,
    pub last_pages_in_use: u64,
    pub bookkeeping_bytes: u64,
    pub lived_seconds: f64,
    pub walkers: Vec<WalkerRow>,
    pub owners: OwnersReport,
    pub violations: Violations,
    pub agree: bool,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FoldedReport {
    pub folios: u64,
    pub map_pages: u64,
    pub refused: u64,
    pub grace_periods: u64,
    pub map_pages_per_grace_period: f64,
    pub seconds: f64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReplayStateRow {
    pub state: &'static str,
    pub pages: u64,
    pub memory_bytes: u64,
    /// 64 bytes a page (computed).
    pub linux_bytes: u64,
    /// With HVO for hugetlb folios (computed).
    pub hvo_bytes: u64,
    /// Map pages that are left, by what they describe (counted).
    pub pagefold_bytes: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WalkerRow {
    pub kind: &'static str,
    pub threads: usize,
    pub looks_per_second: f64,
    pub gets_per_second: f64,
    pub stale_per_second: f64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OwnersReport {
    pub threads: usize,
    pub allocated: u64,
    pub freed: u64,
    pub split: u64,
    pub collapsed: u64,
    pub unfolded: u64,
    pub folded: u64,
    pub busy: u64,
    pub no_memory: u64,
    pub map_pages_folded: u64,
    pub grace_periods: u64,
    pub map_pages_per_grace_period: f64,
    pub operations_per_second: f64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Violations {
    pub total: u64,
    /// Compare-and-swaps that landed on a folded descriptor, as walkers noticed them.
    pub stray_writes: u64,
    /// Folded map pages that have memory of their own at the end, as the system sees them.
    pub rematerialised: u64,
    /// Writes trapped by strict mode.
    pub trapped: Option<u64>,
    pub wrong_page: u64,
    pub resurrected: u64,
    pub missed: u64,
    /// What the audit at the end found.
    pub audit: Option<String>,
    /// Whether the protocol lets stray writes be. That is wrong, whether or not one came in this run: the pages that they
    /// bring back are never given back again.
    pub wrong_protocol: bool,
    pub list: Vec<ViolationRow>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ViolationRow {
    pub what: String,
    pub pfn: u64,
    pub walker: String,
    /// The system shows the map page of `pfn` as brought back.
    pub confirmed: bool,
}

impl ReplayReport {
    pub fn print(&self, mut to: impl Write) -> io::Result<()> {
        self.print_head(&mut to)?;
        self.print_states(&mut to)?;
        self.print_costs(&mut to)?;
        self.print_life(&mut to)?;
        self.print_verdict(&mut to)
    }

    fn print_head(&self, to: &mut impl Write) -> io::Result<()> {
        let memory = Bytes(self.pages * 4096);
        // What a snapshot says of itself may be anything.
        let (kernel, note) = (printable(&self.kernel), printable(&self.note));
        let kernel = if kernel.is_empty() { String::new() } else { format!(", Linux {kernel}") };
        let tiles = if self.tiles > 1 { format!(", repeated {} times", self.tiles) } else { String::new() };
        writeln!(to, "machine   {}: {memory}{kernel}{tiles}", self.origin)?;
        if !note.is_empty() {
            writeln!(to, "          {note}")?;
        }
        if self.folios == 0 {
            writeln!(
                to,
                "loaded    {} pages, all free, in {:.1} ms",
                Whole(self.pages),
                self.created_seconds * 1e3
            )?;
        } else {
            writeln!(
                to,
                "loaded    {} folios of {} pages at {} pages/s{}",
                Whole(self.folios),
                Whole(self.pages),
                Count(self.load_pages_per_second),
                match self.flat {
                    Some(_) => ", every descriptor materialised",
                    None => ", folded from the start (a flat map would not fit)",
                }
            )?;
        }
        let folding = &self.folding;
        writeln!(
            to,
            "folded    {} map pages in {:.0} ms while walkers looked: {} grace periods, {} map pages each",
            Whole(folding.map_pages),
            folding.seconds * 1e3,
            Whole(folding.grace_periods),
            Count(folding.map_pages_per_grace_period)
        )?;
        writeln!(to)
    }

    fn print_states(&self, to: &mut impl Write) -> io::Result<()> {
        let mut table =
            table(&["descriptors by page state", "pages", "memory", "Linux", "with HVO", "Pagefold"]);
        let row = |row: &ReplayStateRow| {
            [
                row.state.to_owned(),
                Whole(row.pages).to_string(),
                Bytes(row.memory_bytes).to_string(),
                Bytes(row.linux_bytes).to_string(),
                Bytes(row.hvo_bytes).to_string(),
                Bytes(row.pagefold_bytes).to_string(),
            ]
        };
        self.states.iter().for_each(|state| add(&mut table, row(state)));
        let sum = |field: fn(&ReplayStateRow) -> u64| self.states.iter().map(field).sum();
        let total = ReplayStateRow {
            state: "total",
            pages: sum(|row| row.pages),
            memory_bytes: sum(|row| row.memory_bytes),
            linux_bytes: sum(|row| row.linux_bytes),
            hvo_bytes: sum(|row| row.hvo_bytes),
            pagefold_bytes: sum(|row| row.pagefold_bytes),
        };
        add(&mut table, row(&total));
        writeln!(to, "{table}")?;
        let percent = |bytes: u64| bytes as f64 * 100.0 / total.linux_bytes.max(1) as f64;
        writeln!(
            to,
            "Linux, HVO: computed, 64 bytes a page. Pagefold: the map pages left, {:.2} % of Linux's\n\
             ({:.2} % with all metadata, measured).",
            percent(total.pagefold_bytes),
            percent(self.folded.total().smaps),
        )?;
        writeln!(to)
    }

    fn print_costs(&self, to: &mut impl Write) -> io::Result<()> {
        let mut table = table(&["all metadata", "counted", "smaps", "page map"]);
        let part = |table: &mut Table, name: String, part: CostPart| {
            let [counted, smaps] = [part.counted, part.smaps].map(|bytes| Bytes(bytes).to_string());
            let pagemap = part.pagemap.map_or_else(String::new, |bytes| Bytes(bytes).to_string());
            add(table, [name, counted, smaps, pagemap]);
        };
        let in_use = |pages: u64| format!("{} in use", Bytes(pages * 4096));
        if let Some(flat) = &self.flat {
            part(&mut table, "flat".into(), flat.total());
        }
        let folded = format!("folded, {}", in_use(self.folded_pages_in_use));
        part(&mut table, folded, self.folded.total());
        for (name, cost) in [
            ("  memory map", self.folded.map),
            ("  objects", self.folded.objects),
            ("  its page tables", self.folded.page_tables),
            ("  classes", self.folded.classes),
            ("  allocator", self.folded.allocator),
        ] {
            if name != "  objects" || self.objects.is_some() {
                part(&mut table, name.into(), cost);
            }
        }
        let last = format!("at the end, {}", in_use(self.last_pages_in_use));
        part(&mut table, last, self.last.total());
        writeln!(to, "{table}")?;
        writeln!(
            to,
            "Counted: by the engine. smaps, page map: measured (page tables: VmPTE; those above present pages).\n\
             And at most {} on the heap. The empty machine was made in {:.1} ms.",
            Bytes(self.bookkeeping_bytes),
            self.created_seconds * 1e3
        )?;
        writeln!(to)
    }

    fn print_life(&self, to: &mut impl Write) -> io::Result<()> {
        writeln!(
            to,
            "lived     {:.1} s, protocol {}, grace periods by {}{}",
            self.lived_seconds,
            self.protocol,
            self.rcu,
            if self.strict { ", strict" } else { "" }
        )?;
        if !self.walkers.is_empty() {
            let mut table = table(&["walkers", "threads", "looks/s", "references/s", "stale/s"]);
            for row in &self.walkers {
                add(
                    &mut table,
                    [
                        row.kind.to_owned(),
                        row.threads.to_string(),
                        Count(row.looks_per_second).to_string(),
                        Count(row.gets_per_second).to_string(),
                        Count(row.stale_per_second).to_string(),
                    ],
                );
            }
            writeln!(to, "{table}")?;
        }
        let owners = &self.owners;
        if owners.threads > 0 {
            writeln!(
                to,
                "owners    {} threads, {} operations/s: {} allocated, {} freed, {} split, {} collapsed, {} unfolded, \
                 {} folded",
                owners.threads,
                Count(owners.operations_per_second),
                Count(owners.allocated as f64),
                Count(owners.freed as f64),
                Count(owners.split as f64),
                Count(owners.collapsed as f64),
                Count(owners.unfolded as f64),
                Count(owners.folded as f64),
            )?;
            writeln!(
                to,
                "          {} map pages given back in {} grace periods, {} each",
                Whole(owners.map_pages_folded),
                Whole(owners.grace_periods),
                Count(owners.map_pages_per_grace_period)
            )?;
        }
        writeln!(to)
    }

    fn print_verdict(&self, to: &mut impl Write) -> io::Result<()> {
        let violations = &self.violations;
        if violations.wrong_protocol {
            writeln!(
                to,
                "wrong     protocol {} lets stray writes be: {} folded map pages came back ({}) and stay",
                self.protocol,
                Whole(violations.rematerialised),
                Bytes(violations.rematerialised * 4096)
            )?;
        }
        writeln!(to, "violations {}", Whole(violations.total))?;
        let parts = [
            (violations.stray_writes, "stray writes to folded descriptors, as walkers noticed them"),
            (violations.rematerialised, "folded map pages brought back, as the system shows"),
            (violations.trapped.unwrap_or(0), "stray writes trapped"),
            (violations.wrong_page, "references on a folio without the page"),
            (violations.resurrected, "references on a folio that is not alive"),
            (violations.missed, "pages of held folios not found"),
        ];
        if violations.total > 0 {
            for (count, what) in parts.into_iter().filter(|part| part.0 > 0) {
                writeln!(to, "          {} {what}", Whole(count))?;
            }
            if let Some(audit) = &violations.audit {
                writeln!(to, "          audit: {audit}")?;
            }
        }
        const SHOWN: usize = 12;
        for row in violations.list.iter().take(SHOWN) {
            let confirmed = if row.confirmed { ", and the system shows the page brought back" } else { "" };
            writeln!(to, "          pfn {:#x}: {} by {}{confirmed}", row.pfn, row.what, row.walker)?;
        }
        if violations.list.len() > SHOWN {
            writeln!(to, "          ... and {} more (--json lists them)", violations.list.len() - SHOWN)?;
        }
        if !self.agree {
            writeln!(to, "the system and the engine disagree by more than 1 %")?;
        }
        Ok(())
    }
}
