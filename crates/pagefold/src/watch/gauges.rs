//! What is watched: the numbers of `pagefold report`, by tab and section.

use std::collections::BTreeMap;

use anyhow::Result;
use pagefold_machine::Host;
use pagefold_machine::host::Hvo;
use pagefold_picture::amount::{Bytes, Whole};

use crate::report::model::{Figure, Interval, Report};
use crate::survey::SurveyArgs;

/// The tabs.
pub const TABS: [&str; 5] = ["Overview", "Nodes and zones", "Huge pages", "Free blocks", "Counters"];

/// One reading of a machine.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Which machine.
    pub title: String,
    /// What each tab shows.
    pub tabs: [Vec<GaugeSection>; TABS.len()],
}

/// Gauges under a headline.
#[derive(Clone, Debug)]
pub struct GaugeSection {
    pub title: String,
    pub gauges: Vec<Gauge>,
    /// Lines of text below them.
    pub notes: Vec<String>,
}

/// A number.
#[derive(Clone, Debug)]
pub struct Gauge {
    pub name: String,
    pub value: GaugeValue,
    /// How it came about: counted, computed.
    pub how: &'static str,
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaugeValue {
    /// Bytes.
    Bytes(u64),
    /// Bytes, within limits.
    Range(u64, u64),
    /// A count of something.
    Count(u64),
}

impl GaugeValue {
    /// The number that its history shows: of limits, the upper one.
    pub fn number(self) -> u64 {
        match self {
            GaugeValue::Bytes(value) | GaugeValue::Range(_, value) | GaugeValue::Count(value) => value,
        }
    }

    /// The value in words.
    pub fn text(self) -> String {
        match self {
            GaugeValue::Bytes(bytes) => Bytes(bytes).to_string(),
            GaugeValue::Range(min, max) => {
                let (min, max) = (Bytes(min).to_string(), Bytes(max).to_string());
                if min == max { min } else { format!("{min} to {max}") }
            }
            GaugeValue::Count(count) => Whole(count).to_string(),
        }
    }

    /// A change of it in a second, in words; nothing for nothing.
    pub fn rate_text(self, rate: f64) -> String {
        let size = rate.abs().round() as u64;
        let sign = if rate < 0.0 { '-' } else { '+' };
        match self {
            _ if size == 0 => String::new(),
            GaugeValue::Count(_) => format!("{sign}{}/s", Whole(size)),
            GaugeValue::Bytes(_) | GaugeValue::Range(..) => format!("{sign}{}/s", Bytes(size)),
        }
    }
}

impl GaugeSection {
    fn new(title: impl Into<String>) -> GaugeSection {
        GaugeSection { title: title.into(), gauges: Vec::new(), notes: Vec::new() }
    }

    fn gauge(&mut self, name: impl Into<String>, value: GaugeValue, how: &'static str) {
        self.gauges.push(Gauge { name: name.into(), value, how });
    }

    fn figure(&mut self, name: &str, figure: &Figure) {
        self.gauge(name, GaugeValue::Bytes(figure.bytes), figure.how.name());
    }

    fn interval(&mut self, name: &str, interval: &Interval) {
        self.gauge(name, GaugeValue::Range(interval.min, interval.max), interval.how.name());
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

fn overview(report: &Report, host: &Host) -> Vec<GaugeSection> {
    let mut descriptors = GaugeSection::new("Page descriptors");
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
    let mut hvo = GaugeSection::new(format!("HVO: {state}"));
    hvo.interval("saved now", &report.hvo.saved);
    hvo.interval("left to save", &report.hvo.left);
    let mut memory = GaugeSection::new("Memory");
    memory.figure("all", &report.memory);
    if let Some(free) = host.meminfo.get("MemFree") {
        memory.gauge("free", GaugeValue::Bytes(free), COUNTED);
    }
    let pools = host.pools.iter().fold((0u64, 0u64), |(all, free), pool| {
        (all.saturating_add(pool.bytes()), free.saturating_add(pool.free.saturating_mul(pool.size)))
    });
    if !host.pools.is_empty() {
        memory.gauge("hugetlb pools", GaugeValue::Bytes(pools.0), COUNTED);
        memory.gauge("hugetlb pools, free", GaugeValue::Bytes(pools.1), COUNTED);
    }
    let mut others = GaugeSection::new("Other costs by the page");
    for cost in &report.other_costs {
        if let Some(interval) = &cost.cost {
            others.interval(cost.title, interval);
        }
    }
    let mut folding = GaugeSection::new("Folding (not in Linux today)");
    folding.interval("would leave", &report.folding.total);
    vec![descriptors, hvo, memory, others, folding]
}

fn nodes_and_zones(report: &Report) -> Vec<GaugeSection> {
    let nodes = report.nodes.iter().map(|row| {
        let mut section = GaugeSection::new(format!("Node {}", row.node));
        section.gauge("memory", GaugeValue::Bytes(row.memory), COUNTED);
        section.interval("descriptors", &row.descriptors);
        section.interval("saved by HVO", &row.hvo_saved);
        if let Some(page_tables) = &row.page_tables {
            section.figure("page tables", page_tables);
        }
        section
    });
    let zones = report.zones.iter().map(|row| {
        let mut section = GaugeSection::new(format!("Node {}, zone {}", row.node, row.zone));
        section.gauge("present", GaugeValue::Bytes(row.present), COUNTED);
        section.gauge("managed", GaugeValue::Bytes(row.managed), COUNTED);
        section.gauge("free", GaugeValue::Bytes(row.free), COUNTED);
        section.figure("descriptors, without HVO", &row.descriptors);
        section
    });
    nodes.chain(zones).collect()
}

fn huge_pages(report: &Report) -> Vec<GaugeSection> {
    let mut sections: Vec<_> = report
        .huge_pages
        .iter()
        .map(|row| {
            let mut section = GaugeSection::new(format!(
                "Pages of {}",
                pagefold_picture::amount::Units::Iec.size(row.size)
            ));
            section.gauge("in the pool", GaugeValue::Count(row.pages), COUNTED);
            if let Some(free) = row.free {
                section.gauge("free", GaugeValue::Count(free), COUNTED);
            }
            section.figure("descriptors without HVO", &row.descriptors);
            section.figure("descriptors with HVO for all", &row.with_hvo);
            section
        })
        .collect();
    if sections.is_empty() {
        let mut none = GaugeSection::new("Huge pages");
        none.notes.push("This host has no pools of huge pages.".into());
        sections.push(none);
    }
    sections
}

fn free_blocks(host: &Host) -> Vec<GaugeSection> {
    let page = host.page_size.bytes;
    let section = |title: String, blocks: &[u64]| {
        let mut section = GaugeSection::new(title);
        for (order, &blocks) in blocks.iter().enumerate() {
            let size = page.checked_shl(order as u32).unwrap_or(u64::MAX);
            let size = pagefold_picture::amount::Units::Iec.size(size);
            section.gauge(format!("order {order:>2}: {size}"), GaugeValue::Count(blocks), COUNTED);
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
        section.gauge("in all", GaugeValue::Bytes(bytes), COUNTED);
        section
    });
    std::iter::once(section("All zones".into(), &all)).chain(zones).collect()
}

fn counters(report: &Report, host: &Host) -> Vec<GaugeSection> {
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
    let mut vmstat = GaugeSection::new("/proc/vmstat");
    for name in VMSTAT {
        if let Some(value) = host.vmstat.get(name) {
            vmstat.gauge(name, GaugeValue::Count(value), COUNTED);
        }
    }
    let mut meminfo = GaugeSection::new("/proc/meminfo");
    for name in MEMINFO {
        if let Some(value) = host.meminfo.get(name) {
            meminfo.gauge(name, GaugeValue::Bytes(value), COUNTED);
        }
    }
    let mut checks = GaugeSection::new("Numbers that should agree");
    for check in &report.checks {
        let agrees = if check.agrees { "agrees" } else { "DIFFERS" };
        checks.gauge(check.name, GaugeValue::Bytes(check.difference), agrees);
    }
    let mut gaps = GaugeSection::new("Not read");
    gaps.notes = host.gaps.iter().map(|gap| format!("{} ({}): {}", gap.path, gap.tells, gap.why)).collect();
    vec![vmstat, meminfo, checks, gaps]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_say_what_they_are() {
        assert_eq!(GaugeValue::Bytes(3 << 30).text(), "3.00 GiB");
        assert_eq!(GaugeValue::Range(1 << 20, 1 << 20).text(), "1.00 MiB");
        assert_eq!(GaugeValue::Range(0, 1 << 20).text(), "0 B to 1.00 MiB");
        assert_eq!(GaugeValue::Count(12345).text(), "12,345");
        assert_eq!(GaugeValue::Bytes(0).rate_text(-2048.0), "-2.00 KiB/s");
        assert_eq!(GaugeValue::Count(0).rate_text(3.2), "+3/s");
        assert_eq!(GaugeValue::Count(0).rate_text(-0.2), "");
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
        assert_eq!(sections[0].gauges[1].value, GaugeValue::Count(4));
        assert_eq!(sections[0].gauges[2].value, GaugeValue::Count(u64::MAX));
    }
}
