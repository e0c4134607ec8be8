//! The result, for people and for scripts.

use std::io::{self, Write};

use comfy_table::Cell;
use pagefold_picture::amount::{Bytes, Count, Whole};
use pagefold_workload::{BrokenPromise, Log};
use serde::Serialize;

use super::sample::Moment;
use crate::cost::Cost;
use crate::table::table;
use crate::walkers;

/// Everything a run found. The JSON is this, with `schema` raised whenever a field changes its meaning.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold run"))]
pub struct RunReport {
    pub schema: u32,
    pub scenario: String,
    pub about: String,
    pub rcu: &'static str,
    pub boot_bytes: u64,
    pub memory_block_bytes: u64,
    pub devices: usize,
    pub device_bytes: u64,
    /// All metadata before the first step.
    pub first: Cost,
    pub rows: Vec<StepRow>,
    /// Steps of the scenario; fewer rows if it was interrupted.
    pub steps: usize,
    pub interrupted: bool,
    pub seconds: f64,
    pub walkers: Vec<WalkedRow>,
    pub broken: Broken,
    /// Counted and measured metadata agreed at the end of every step.
    pub agree: bool,
    /// A step that must reach its size did not.
    pub fell_short: bool,
    pub moments: Vec<Moment>,
}

/// The state at the end of a step. Sizes in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepRow {
    pub name: String,
    pub requested: u64,
    pub plugged: u64,
    /// Memory blocks that are added.
    pub blocks: u64,
    /// In the normal and in the movable zone.
    pub in_use: [u64; 2],
    pub folios: u64,
    pub change_seconds: Option<f64>,
    pub resize_seconds: Option<f64>,
    /// Plugged and unplugged, by the time of the resizes.
    pub gib_per_second: Option<f64>,
    pub metadata: Cost,
    /// Linux's descriptors for the same state: computed, 64 bytes a page of boot memory and added blocks.
    pub linux: u64,
    /// The same with HVO for hugetlb folios.
    pub linux_hvo: u64,
    /// Of the devices' memory, measured.
    pub resident: u64,
    pub grace_periods: u64,
    /// Folios that owners moved.
    pub migrated: u64,
    /// Workloads, and bytes of them that found no place.
    pub no_place: Vec<(String, u64)>,
    pub must: bool,
    /// Why less or more is plugged than requested.
    pub shortfall: Option<String>,
    pub violations: u64,
}

/// What the walkers of one kind did.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WalkedRow {
    pub kind: &'static str,
    pub threads: usize,
    pub looks_per_second: f64,
    pub gets_per_second: f64,
}

/// Promises broken: all of it must be zero.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Broken {
    /// All together.
    pub total: u64,
    pub stray_writes: u64,
    pub wrong_page: u64,
    pub resurrected: u64,
    pub missed: u64,
    /// Folded map pages with memory of their own at the end, as the system shows.
    pub strays: u64,
    /// Steps after which driver and device disagreed on what is plugged.
    pub disagreements: u64,
    /// Folios whose contents were not as they were left.
    pub lost: u64,
    /// What the audit at the end found.
    pub audit: Option<String>,
}

impl WalkedRow {
    /// From what they did in so many seconds.
    pub fn new(walked: &walkers::Walked, seconds: f64) -> Self {
        let rate = |count: u64| count as f64 / seconds.max(1e-9);
        Self {
            kind: walked.kind.name(),
            threads: walked.threads,
            looks_per_second: rate(walked.counts.looks),
            gets_per_second: rate(walked.counts.gets),
        }
    }
}

impl Broken {
    /// Adds what walkers noticed, and sums up.
    pub fn note(&mut self, log: &Log) {
        self.stray_writes = log.count(BrokenPromise::StrayWrite);
        self.wrong_page = log.count(BrokenPromise::NotItsPage);
        self.resurrected = log.count(BrokenPromise::Resurrected);
        self.missed = log.count(BrokenPromise::Missed);
        let seen = log.total() - self.stray_writes + self.stray_writes.max(self.strays);
        self.total = seen + self.disagreements + self.lost + u64::from(self.audit.is_some());
    }
}

impl RunReport {
    /// Whether everything was as it must be.
    pub fn is_fine(&self) -> bool {
        self.broken.total == 0 && self.agree && !self.fell_short
    }

    pub fn print(&self, mut to: impl Write) -> io::Result<()> {
        let devices = if self.devices == 1 { "a device".into() } else { format!("{} devices", self.devices) };
        writeln!(to, "scenario  {}: {}", self.scenario, self.about)?;
        writeln!(
            to,
            "machine   {} of boot memory, {devices} of {}, memory blocks of {}; {} of metadata at first",
            Bytes(self.boot_bytes),
            Bytes(self.device_bytes),
            Bytes(self.memory_block_bytes),
            Bytes(self.first.total().smaps)
        )?;
        let walkers: Vec<String> = self
            .walkers
            .iter()
            .map(|row| format!("{} {} {}/s", row.threads, row.kind, Count(row.looks_per_second)))
            .collect();
        if !walkers.is_empty() {
            writeln!(to, "walkers   {} looks, all the time", walkers.join(", "))?;
        }
        writeln!(to)?;
        self.print_memory(&mut to)?;
        self.print_metadata(&mut to)?;
        self.print_notes(&mut to)?;
        self.print_verdict(&mut to)
    }

    fn print_memory(&self, to: &mut impl Write) -> io::Result<()> {
        let mut table = table(&[
            "memory by step",
            "requested",
            "plugged",
            "in use",
            "resident",
            "resized in",
            "GiB/s",
            "moved",
            "grace periods",
        ]);
        for (number, row) in self.rows.iter().enumerate() {
            let none = || "-".to_owned();
            table.add_row([
                format!("{} {}", number + 1, row.name),
                Bytes(row.requested).to_string(),
                Bytes(row.plugged).to_string(),
                Bytes(row.in_use.iter().sum()).to_string(),
                Bytes(row.resident).to_string(),
                row.resize_seconds.map_or_else(none, duration),
                row.gib_per_second.map_or_else(none, |rate| format!("{rate:.1}")),
                if row.migrated == 0 { none() } else { Whole(row.migrated).to_string() },
                if row.grace_periods == 0 { none() } else { Whole(row.grace_periods).to_string() },
            ]);
        }
        writeln!(to, "{table}")?;
        writeln!(
            to,
            "Resident: of the devices' memory, measured. Only workloads that touch their memory fill it. Moved: folios."
        )?;
        writeln!(to)
    }

    fn print_metadata(&self, to: &mut impl Write) -> io::Result<()> {
        let has_hvo = self.rows.iter().any(|row| row.linux != row.linux_hvo);
        let mut header =
            vec!["metadata by step", "counted", "smaps", "page map", "descriptors", "blocks", "Linux"];
        if has_hvo {
            header.push("with HVO");
        }
        header.extend(["Pagefold/Linux", "violations"]);
        let mut table = table(&header);
        for (number, row) in self.rows.iter().enumerate() {
            let total = row.metadata.total();
            let linux = if has_hvo { row.linux_hvo } else { row.linux };
            let mut cells = vec![
                format!("{} {}", number + 1, row.name),
                Bytes(total.counted).to_string(),
                Bytes(total.smaps).to_string(),
                total.pagemap.map_or_else(String::new, |bytes| Bytes(bytes).to_string()),
                Bytes(row.metadata.map.smaps).to_string(),
                Whole(row.blocks).to_string(),
                Bytes(row.linux).to_string(),
            ];
            if has_hvo {
                cells.push(Bytes(row.linux_hvo).to_string());
            }
            cells.push(format!("{:.2} %", total.smaps as f64 * 100.0 / linux.max(1) as f64));
            cells.push(Whole(row.violations).to_string());
            table.add_row(cells.into_iter().map(Cell::new));
        }
        writeln!(to, "{table}")?;
        writeln!(
            to,
            "Counted: by the engine. smaps, page map: all metadata, measured (page tables: VmPTE; those above present\n\
             pages). Linux: computed, 64 bytes for every page of boot memory and of the blocks that are added."
        )?;
        writeln!(to)
    }

    fn print_notes(&self, to: &mut impl Write) -> io::Result<()> {
        let mut any = false;
        for (number, row) in self.rows.iter().enumerate() {
            for (workload, bytes) in &row.no_place {
                any = true;
                writeln!(to, "step {:<4} no place for {} of \"{workload}\"", number + 1, Bytes(*bytes))?;
            }
            if let Some(why) = &row.shortfall {
                any = true;
                let must = if row.must { " (it must)" } else { "" };
                writeln!(to, "step {:<4} fell short{must}: {why}", number + 1)?;
            }
        }
        if any { writeln!(to) } else { Ok(()) }
    }

    fn print_verdict(&self, to: &mut impl Write) -> io::Result<()> {
        let broken = &self.broken;
        if self.interrupted {
            writeln!(
                to,
                "interrupted in step {} of {}; the result so far",
                self.rows.len().max(1),
                self.steps
            )?;
        }
        writeln!(to, "violations {} in {:.1} s", Whole(broken.total), self.seconds)?;
        for (count, what) in [
            (broken.stray_writes, "stray writes to folded descriptors, as walkers noticed them"),
            (broken.strays, "folded map pages brought back, as the system shows"),
            (broken.wrong_page, "references on a folio without the page"),
            (broken.resurrected, "references on a folio that is not alive"),
            (broken.missed, "pages of held folios not found"),
            (broken.disagreements, "steps after which driver and device disagreed"),
            (broken.lost, "folios whose contents were lost"),
        ] {
            if count > 0 {
                writeln!(to, "          {} {what}", Whole(count))?;
            }
        }
        if let Some(audit) = &broken.audit {
            writeln!(to, "          audit: {audit}")?;
        }
        if !self.agree {
            writeln!(to, "the system and the engine disagree by more than 1 %")?;
        }
        if self.fell_short {
            writeln!(to, "a step that must reach its size fell short")?;
        }
        Ok(())
    }
}

/// Seconds, for people.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}
