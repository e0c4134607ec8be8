//! What is watched: the numbers of `pagefold report`, by tab and section.

use std::collections::BTreeMap;

use anyhow::Result;
use pagefold_machine::Host;
use pagefold_machine::host::Hvo;

use crate::report::model::{Figure, Interval, Report};
use crate::size::{Bytes, Whole};
use crate::survey::SurveyArgs;

/// The tabs.
pub const TABS: [&str; 5] = ["Overview", "Nodes and zones", "Huge pages", "Free blocks", "Counters"];

/// One reading of a machine.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Which machine.
    pub title: String,
    /// What each tab shows.
    pub tabs: [Vec<Section>; TABS.len()],
}

/// Gauges under a headline.
#[derive(Clone, Debug)]
pub struct Section {
    pub title: String,
    pub gauges: Vec<Gauge>,
    /// Lines of text below them.
    pub notes: Vec<String>,
}

/// A number.
#[derive(Clone, Debug)]
pub struct Gauge {
    pub name: String,
    pub value: Value,
    /// How it came about: counted, computed.
    pub how: &'static str,
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Bytes.
    Bytes(u64),
    /// Bytes, within limits.
    Range(u64, u64),
    /// A count of something.
    Count(u64),
}

impl Value {
    /// The number that its history shows: of limits, the upper one.
    pub fn number(self) -> u64 {
        match self {
            Value::Bytes(value) | Value::Range(_, value) | Value::Count(value) => value,
        }
    }

    /// The value in words.
    pub fn text(self) -> String {
        match self {
            Value::Bytes(bytes) => Bytes(bytes).to_string(),
            Value::Range(min, max) => {
                let (min, max) = (Bytes(min).to_string(), Bytes(max).to_string());
                if min == max { min } else { format!("{min} to {max}") }
            }
            Value::Count(count) => Whole(count).to_string(),
        }
    }

    /// A change of it in a second, in words; nothing for nothing.
    pub fn rate_text(self, rate: f64) -> String {
        let size = rate.abs().round() as u64;
        let sign = if rate < 0.0 { '-' } else { '+' };
        match self {
            _ if size == 0 => String::new(),
            Value::Count(_) => format!("{sign}{}/s", Whole(size)),
            Value::Bytes(_) | Value::Range(..) => format!("{sign}{}/s", Bytes(size)),
        }
    }
}

impl Section {
    fn new(title: impl Into<String>) -> Section {
        Section { title: title.into(), gauges: Vec::new(), notes: Vec::new() }
    }

    fn gauge(&mut self, name: impl Into<String>, value: Value, how: &'static str) {
        self.gauges.push(Gauge { name: name.into(), value, how });
    }

    fn figure(&mut self, name: &str, figure: &Figure) {
        self.gauge(name, Value::Bytes(figure.bytes), figure.how.name());
    }

    fn interval(&mut self, name: &str, interval: &Interval) {
        self.gauge(name, Value::Range(interval.min, interval.max), interval.how.name());
    }

    fn is_empty(&self) -> bool {
        self.gauges.is_empty() && self.notes.is_empty()
    }
}

const COUNTED: &str = "counted";

/// Reads a machine.
///
/// # Errors
/// Nothing in it says how much memory there is.
pub fn read(args: &SurveyArgs) -> Result<Reading> {
    let survey = args.survey()?;
    Ok(Reading::of(&Report::of(&survey), &survey.host))
}

impl Reading {
    /// What `report` and `host` say.
    pub fn of(report: &Report, host: &Host) -> Reading {
        let kernel = &report.machine.kernel;
        let kernel = if kernel.is_empty() { String::new() } else { format!(", Linux {kernel}") };
        let mut tabs = [
            overview(report, host),
            nodes_and_zones(report),
            huge_pages(report),
            free_blocks(host),
            counters(report, host),
        ];
        tabs.iter_mut().for_each(|sections| sections.retain(|section| !section.is_empty()));
        let memory = Bytes(report.memory.bytes);
        Reading { title: format!("{}: {memory}{kernel}", report.machine.origin), tabs }
    }
}

fn overview(report: &Report, host: &Host) -> Vec<Section> {
    let mut descriptors = Section::new("Page descriptors");
    descriptors.figure("all", &report.descriptors);
    if report.descriptors_counted.is_some() {
        descriptors.interval("all, by arithmetic", &report.descriptors_computed);
    }
    for place in &report.places {
        descriptors.figure(&format!("lie in: {}", place.place), &place.descriptors);
    }
    let state = match report.hvo.state {
        Hvo::On => "on",
        Hvo::Off => "off",
        Hvo::Unsupported => "not in this kernel",
        Hvo::Unknown => "unknown",
    };
    let mut hvo = Section::new(format!("HVO: {state}"));
    hvo.interval("saved now", &report.hvo.saved);
    hvo.interval("left to save", &report.hvo.left);
    let mut memory = Section::new("Memory");
    memory.figure("all", &report.memory);
    if let Some(free) = host.meminfo.get("MemFree") {
        memory.gauge("free", Value::Bytes(free), COUNTED);
    }
    let pools = host.pools.iter().fold((0u64, 0u64), |(all, free), pool| {
        (all.saturating_add(pool.bytes()), free.saturating_add(pool.free.saturating_mul(pool.size)))
    });
    if !host.pools.is_empty() {
        memory.gauge("hugetlb pools", Value::Bytes(pools.0), COUNTED);
        memory.gauge("hugetlb pools, free", Value::Bytes(pools.1), COUNTED);
    }
    let mut others = Section::new("Other costs by the page");
    for cost in &report.other_costs {
        if let Some(interval) = &cost.cost {
            others.interval(cost.title, interval);
        }
    }
    let mut folding = Section::new("Folding (not in Linux today)");
    folding.interval("would leave", &report.folding.total);
    vec![descriptors, hvo, memory, others, folding]
}

fn nodes_and_zones(report: &Report) -> Vec<Section> {
    let nodes = report.nodes.iter().map(|row| {
        let mut section = Section::new(format!("Node {}", row.node));
        section.gauge("memory", Value::Bytes(row.memory), COUNTED);
        section.interval("descriptors", &row.descriptors);
        section.interval("saved by HVO", &row.hvo_saved);
        if let Some(page_tables) = &row.page_tables {
            section.figure("page tables", page_tables);
        }
        section
    });
    let zones = report.zones.iter().map(|row| {
        let mut section = Section::new(format!("Node {}, zone {}", row.node, row.zone));
        section.gauge("present", Value::Bytes(row.present), COUNTED);
        section.gauge("managed", Value::Bytes(row.managed), COUNTED);
        section.gauge("free", Value::Bytes(row.free), COUNTED);
        section.figure("descriptors, without HVO", &row.descriptors);
        section
    });
    nodes.chain(zones).collect()
}

fn huge_pages(report: &Report) -> Vec<Section> {
    let mut sections: Vec<_> = report
        .huge_pages
        .iter()
        .map(|row| {
            let mut section = Section::new(format!("Pages of {}", crate::size::Units::Iec.size(row.size)));
            section.gauge("in the pool", Value::Count(row.pages), COUNTED);
            if let Some(free) = row.free {
                section.gauge("free", Value::Count(free), COUNTED);
            }
            section.figure("descriptors without HVO", &row.descriptors);
            section.figure("descriptors with HVO for all", &row.with_hvo);
            section
        })
        .collect();
    if sections.is_empty() {
        let mut none = Section::new("Huge pages");
        none.notes.push("This host has no pools of huge pages.".into());
        sections.push(none);
    }
    sections
}

fn free_blocks(host: &Host) -> Vec<Section> {
    let page = host.page_size.bytes;
    let section = |title: String, blocks: &[u64]| {
        let mut section = Section::new(title);
        for (order, &blocks) in blocks.iter().enumerate() {
            let size = page.checked_shl(order as u32).unwrap_or(u64::MAX);
            let size = crate::size::Units::Iec.size(size);
            section.gauge(format!("order {order:>2}: {size}"), Value::Count(blocks), COUNTED);
        }
        section
    };
    let mut all: BTreeMap<usize, u64> = BTreeMap::new();
    for (order, blocks) in host.free_blocks.iter().flat_map(|zone| zone.blocks.iter().enumerate()) {
        let sum = all.entry(order).or_default();
        *sum = sum.saturating_add(*blocks);
    }
    let all: Vec<u64> = all.into_values().collect();
    let zones = host.free_blocks.iter().map(|zone| {
        let mut section = section(format!("Node {}, zone {}", zone.node, zone.zone), &zone.blocks);
        let bytes = zone.pages_from(0).saturating_mul(page);
        section.gauge("in all", Value::Bytes(bytes), COUNTED);
        section
    });
    std::iter::once(section("All zones".into(), &all)).chain(zones).collect()
}

fn counters(report: &Report, host: &Host) -> Vec<Section> {
    const VMSTAT: [&str; 6] = [
        "nr_memmap_boot_pages",
        "nr_memmap_pages",
        "nr_free_pages",
        "nr_page_table_pages",
        "nr_sec_page_table_pages",
        "nr_free_cma",
    ];
    const MEMINFO: [&str; 11] = [
        "MemTotal",
        "MemFree",
        "MemAvailable",
        "PageTables",
        "SecPageTables",
        "AnonHugePages",
        "ShmemHugePages",
        "FileHugePages",
        "Hugetlb",
        "HardwareCorrupted",
        "Balloon",
    ];
    let mut vmstat = Section::new("/proc/vmstat");
    for name in VMSTAT {
        if let Some(value) = host.vmstat.get(name) {
            vmstat.gauge(name, Value::Count(value), COUNTED);
        }
    }
    let mut meminfo = Section::new("/proc/meminfo");
    for name in MEMINFO {
        if let Some(value) = host.meminfo.get(name) {
            meminfo.gauge(name, Value::Bytes(value), COUNTED);
        }
    }
    let mut checks = Section::new("Numbers that should agree");
    for check in &report.checks {
        let agrees = if check.agrees { "agrees" } else { "DIFFERS" };
        checks.gauge(check.name, Value::Bytes(check.difference), agrees);
    }
    let mut gaps = Section::new("Not read");
    gaps.notes = host.gaps.iter().map(|gap| format!("{} ({}): {}", gap.path, gap.tells, gap.why)).collect();
    vec![vmstat, meminfo, checks, gaps]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_say_what_they_are() {
        assert_eq!(Value::Bytes(3 << 30).text(), "3.00 GiB");
        assert_eq!(Value::Range(1 << 20, 1 << 20).text(), "1.00 MiB");
        assert_eq!(Value::Range(0, 1 << 20).text(), "0 B to 1.00 MiB");
        assert_eq!(Value::Count(12345).text(), "12,345");
        assert_eq!(Value::Bytes(0).rate_text(-2048.0), "-2.00 KiB/s");
        assert_eq!(Value::Count(0).rate_text(3.2), "+3/s");
        assert_eq!(Value::Count(0).rate_text(-0.2), "");
    }

    #[test]
    fn the_number_of_every_tab_has_a_history_of_its_own() {
        let mut host = Host::default();
        let zone = |zone: &str| pagefold_machine::host::FreeBlocks {
            node: 0,
            zone: zone.into(),
            blocks: vec![1, 2, u64::MAX],
        };
        host.free_blocks = vec![zone("DMA"), zone("Normal")];
        let sections = free_blocks(&host);
        assert_eq!(sections.len(), 3);
        assert_eq!(sections[0].gauges[1].value, Value::Count(4));
        assert_eq!(sections[0].gauges[2].value, Value::Count(u64::MAX));
    }
}
