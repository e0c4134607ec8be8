//! Prometheus text for node_exporter's textfile collector: gauges only, and labels of which a host has few. Memory blocks
//! are left out: a large host has thousands.

use std::collections::BTreeMap;

use anyhow::Result;
use pagefold_machine::host::Hvo;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::report::model::Report;

type Labels = Vec<(&'static str, String)>;

/// The report as gauges.
///
/// # Errors
/// None that happens: it is written to memory.
pub fn text(report: &Report) -> Result<String> {
    let mut gauges = Gauges { registry: Registry::default(), families: BTreeMap::new() };
    descriptors(report, &mut gauges);
    savings(report, &mut gauges);
    parts(report, &mut gauges);
    about(report, &mut gauges);
    let mut text = String::new();
    encode(&mut text, &gauges.registry)?;
    Ok(text)
}

struct Gauges {
    registry: Registry,
    families: BTreeMap<&'static str, Family<Labels, Gauge>>,
}

impl Gauges {
    fn set<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [(&'static str, &str); N],
        value: u64,
    ) {
        let registry = &mut self.registry;
        let family = self.families.entry(name).or_insert_with(|| {
            let family = Family::<Labels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        });
        let labels = labels.map(|(name, value)| (name, value.to_owned())).to_vec();
        family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

/// The node of numbers that only the whole host has.
const ALL: &str = "all";

fn descriptors(report: &Report, gauges: &mut Gauges) {
    const NAME: &str = "pagemeta_bytes";
    const HELP: &str = "Bytes of page descriptors, by node and by where they lie (unknown: the kernel tells it for the \
                        whole host only)";
    match report.nodes.as_slice() {
        [] | [_] => {
            let node = report.nodes.first().map_or(ALL.to_owned(), |node| node.node.to_string());
            for place in &report.places {
                let labels = [("node", node.as_str()), ("backing", place.place)];
                gauges.set(NAME, HELP, labels, place.descriptors.bytes);
            }
        }
        nodes => {
            for node in nodes {
                let labels = [("node", &*node.node.to_string()), ("backing", "unknown")];
                gauges.set(NAME, HELP, labels, node.descriptors.max);
            }
        }
    }
    for place in &report.places {
        gauges.set(
            "pagemeta_backing_bytes",
            "Bytes of page descriptors of the whole host, by where they lie",
            [("backing", place.place)],
            place.descriptors.bytes,
        );
    }
    gauges.set("pagemeta_memory_bytes", "Bytes of memory with pages", [], report.memory.bytes);
    for check in &report.checks {
        gauges.set(
            "pagemeta_mismatch_bytes",
            "Bytes by which two counters of one quantity differ",
            [("check", check.name)],
            check.difference,
        );
    }
}

fn savings(report: &Report, gauges: &mut Gauges) {
    const SAVED: &str = "pagemeta_saved_bytes";
    const SAVED_HELP: &str = "Bytes of page descriptors that are saved now, at least";
    const SAVABLE: &str = "pagemeta_savable_bytes";
    const SAVABLE_HELP: &str = "Bytes of page descriptors that are left to save, at most";
    if report.nodes.is_empty() {
        gauges.set(SAVED, SAVED_HELP, [("node", ALL), ("method", "hvo")], report.hvo.saved.min);
        gauges.set(SAVABLE, SAVABLE_HELP, [("node", ALL), ("method", "hvo")], report.hvo.left.max);
    }
    for node in &report.nodes {
        let labels = [("node", &*node.node.to_string()), ("method", "hvo")];
        gauges.set(SAVED, SAVED_HELP, labels, node.hvo_saved.min);
        gauges.set(SAVABLE, SAVABLE_HELP, labels, node.hvo_savable.saturating_sub(node.hvo_saved.min));
    }
    let folding = report.descriptors.bytes.saturating_sub(report.folding.total.min);
    gauges.set(SAVABLE, SAVABLE_HELP, [("node", ALL), ("method", "folding")], folding);
    if let Some(offline) = &report.offline {
        const NAME: &str = "pagemeta_fake_offline_bytes";
        const HELP: &str = "Bytes of memory that are offline in online blocks: fake-offline or ballooned";
        let mut by_node: BTreeMap<u32, u64> = BTreeMap::new();
        for row in report.blocks.iter().flat_map(|blocks| &blocks.list) {
            if let (Some(node), Some(bytes)) = (row.node, row.offline) {
                *by_node.entry(node).or_default() += bytes;
            }
        }
        if by_node.is_empty() {
            gauges.set(NAME, HELP, [("node", ALL)], offline.memory.bytes);
        }
        for (node, bytes) in by_node {
            gauges.set(NAME, HELP, [("node", &node.to_string())], bytes);
        }
    }
    gauges.set(
        "pagemeta_hvo_enabled",
        "Whether HVO is on for new huge pages",
        [],
        u64::from(report.hvo.state == Hvo::On),
    );
}

fn parts(report: &Report, gauges: &mut Gauges) {
    for zone in &report.zones {
        gauges.set(
            "pagemeta_zone_bytes",
            "Bytes of page descriptors of a zone's present pages, without HVO",
            [("node", &*zone.node.to_string()), ("zone", &*zone.zone)],
            zone.descriptors.bytes,
        );
    }
    for row in &report.huge_pages {
        gauges.set(
            "pagemeta_hugetlb_bytes",
            "Bytes of page descriptors of huge pages, without HVO",
            [("size", &row.size.to_string())],
            row.descriptors.bytes,
        );
    }
    for row in &report.states {
        gauges.set(
            "pagemeta_state_bytes",
            "Bytes of page descriptors by what their pages are used for, without HVO",
            [("state", row.state)],
            row.descriptors,
        );
    }
    for cost in &report.other_costs {
        if let Some(interval) = &cost.cost {
            gauges.set(
                "pagemeta_other_bytes",
                "Bytes of other costs by the page, at most",
                [("cost", cost.name)],
                interval.max,
            );
        }
    }
}

fn about(report: &Report, gauges: &mut Gauges) {
    gauges.set("pagemeta_page_size_bytes", "Bytes in a page", [], report.machine.page_size);
    gauges.set("pagemeta_descriptor_size_bytes", "Bytes in a descriptor", [], report.machine.descriptor_size);
    gauges.set(
        "pagemeta_partial",
        "Whether something that the kernel has could not be read",
        [],
        u64::from(report.partial),
    );
    gauges.set(
        "pagemeta_build_info",
        "The program that wrote this",
        [("version", &*report.version), ("schema", &*report.schema.to_string())],
        1,
    );
}
