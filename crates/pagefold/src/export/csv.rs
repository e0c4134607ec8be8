//! CSV: one number a line, so that a new number is a new line and never a new column.

use anyhow::{Context, Result};
use csv::Writer;

use crate::report::model::{Figure, How, Interval, Report};

/// The report as CSV.
///
/// # Errors
/// None that happens: it is written to memory.
pub fn text(report: &Report) -> Result<String> {
    let mut rows = Rows { to: Writer::from_writer(Vec::new()) };
    rows.to.write_record(["scope", "name", "quantity", "value", "how"])?;
    rows.machine(report)?;
    rows.parts(report)?;
    rows.rest(report)?;
    let bytes = rows.to.into_inner().context("cannot write CSV")?;
    Ok(String::from_utf8(bytes)?)
}

struct Rows {
    to: Writer<Vec<u8>>,
}

impl Rows {
    fn row(&mut self, scope: &str, name: &str, quantity: &str, value: u64, how: How) -> Result<()> {
        Ok(self.to.write_record([scope, name, quantity, &value.to_string(), how.name()])?)
    }

    fn figure(&mut self, scope: &str, name: &str, quantity: &str, figure: &Figure) -> Result<()> {
        self.row(scope, name, quantity, figure.bytes, figure.how)
    }

    fn interval(&mut self, scope: &str, name: &str, quantity: &str, interval: &Interval) -> Result<()> {
        self.row(scope, name, &format!("{quantity}_min"), interval.min, interval.how)?;
        self.row(scope, name, &format!("{quantity}_max"), interval.max, interval.how)
    }

    fn machine(&mut self, report: &Report) -> Result<()> {
        self.row("machine", "", "schema", u64::from(report.schema), How::Counted)?;
        self.row("machine", "", "page_size_bytes", report.machine.page_size, How::Counted)?;
        self.row("machine", "", "descriptor_size_bytes", report.machine.descriptor_size, How::Counted)?;
        self.row("machine", "", "partial", u64::from(report.partial), How::Counted)?;
        self.figure("machine", "", "memory_bytes", &report.memory)?;
        self.figure("machine", "", "descriptor_bytes", &report.descriptors)?;
        self.interval("machine", "", "descriptor_bytes_computed", &report.descriptors_computed)?;
        self.interval("machine", "", "hvo_saved_bytes", &report.hvo.saved)?;
        self.interval("machine", "", "hvo_left_bytes", &report.hvo.left)?;
        self.interval("machine", "", "folded_bytes", &report.folding.total)?;
        if let Some(offline) = &report.offline {
            self.figure("machine", "", "offline_bytes", &offline.memory)?;
            self.figure("machine", "", "offline_descriptor_bytes", &offline.descriptors)?;
        }
        Ok(())
    }

    fn parts(&mut self, report: &Report) -> Result<()> {
        for stage in &report.memory_went {
            self.figure("memory_went", stage.stage, "memory_bytes", &stage.memory)?;
            for part in &stage.parts {
                self.figure(
                    "memory_went",
                    &format!("{}/{}", stage.stage, part.name),
                    "memory_bytes",
                    &part.bytes,
                )?;
            }
        }
        for place in &report.places {
            self.figure("place", place.place, "descriptor_bytes", &place.descriptors)?;
        }
        for node in &report.nodes {
            let name = node.node.to_string();
            self.row("node", &name, "memory_bytes", node.memory, How::Counted)?;
            self.interval("node", &name, "descriptor_bytes", &node.descriptors)?;
            self.interval("node", &name, "hvo_saved_bytes", &node.hvo_saved)?;
        }
        for zone in &report.zones {
            let name = format!("{}/{}", zone.node, zone.zone);
            self.row("zone", &name, "present_bytes", zone.present, How::Counted)?;
            self.row("zone", &name, "managed_bytes", zone.managed, How::Counted)?;
            self.row("zone", &name, "free_bytes", zone.free, How::Counted)?;
            self.figure("zone", &name, "descriptor_bytes", &zone.descriptors)?;
        }
        for block in report.blocks.iter().flat_map(|blocks| &blocks.list) {
            let name = block.block.to_string();
            self.row("block", &name, "descriptor_bytes", block.descriptors, How::Computed)?;
            if let Some(offline) = block.offline {
                self.row("block", &name, "offline_bytes", offline, How::Counted)?;
            }
        }
        Ok(())
    }

    fn rest(&mut self, report: &Report) -> Result<()> {
        for row in &report.huge_pages {
            let name = row.size.to_string();
            self.row("huge_page", &name, "pages", row.pages, How::Counted)?;
            self.figure("huge_page", &name, "descriptor_bytes", &row.descriptors)?;
            self.figure("huge_page", &name, "descriptor_bytes_with_hvo", &row.with_hvo)?;
        }
        for row in &report.states {
            self.row("state", row.state, "pages", row.pages, How::Counted)?;
            self.row("state", row.state, "descriptor_bytes", row.descriptors, How::Computed)?;
            self.row("state", row.state, "folded_bytes", row.folded, How::Computed)?;
        }
        for row in &report.folios {
            self.row("order", &row.order.to_string(), "folios", row.folios, How::Counted)?;
        }
        for cost in &report.other_costs {
            if let Some(interval) = &cost.cost {
                self.interval("other", cost.name, "bytes", interval)?;
            }
        }
        for check in &report.checks {
            self.row("check", check.name, "difference_bytes", check.difference, How::Computed)?;
            self.row("check", check.name, "agrees", u64::from(check.agrees), How::Computed)?;
        }
        Ok(())
    }
}
