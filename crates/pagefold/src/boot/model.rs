//! What `pagefold boot` found out, for people and for scripts. The JSON is this.

use pagefold_boot::Ending;
use pagefold_boot_protocol::{Cycles, DeviceStatus, Hello, Report};
use serde::Serialize;

/// Raised whenever a field changes its meaning.
pub const SCHEMA: u32 = 1;

/// Everything. Sizes in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold boot"))]
pub struct BootOutcome {
    pub schema: u32,
    /// The machine's architecture: `x86_64` or `aarch64`.
    pub arch: &'static str,
    pub memory: u64,
    pub cpus: u32,
    pub protocol: &'static str,
    /// What a descriptor is: `page` or `memdesc`.
    pub descriptors: &'static str,
    /// What the guest said of itself when it came up.
    pub hello: Option<Hello>,
    pub rows: Vec<BootRow>,
    pub ending: Ending,
    /// What is not as it should be.
    pub broken: Vec<String>,
}

/// A step, and how everything stood after it.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BootRow {
    pub step: String,
    /// Wall time of the step, measured here.
    pub seconds: f64,
    /// Why it is not what was asked for.
    pub short: Option<String>,
    /// What must not be.
    pub wrong: Option<String>,
    /// Nanoseconds that drivers worked, if devices were asked for something.
    pub driver_ns: Option<u64>,
    /// Bytes that were used, by a touch.
    pub touched: Option<u64>,
    /// How a cycle went.
    pub cycles: Option<Cycles>,
    /// What the guest executed during the step, if it was counted.
    pub instructions: Option<u64>,
    pub devices: Vec<DeviceStatus>,
    /// What everything costs.
    pub report: Report,
}

/// Linux's descriptors for this memory: 64 bytes a page of what is online, and at boot.
pub fn linux(report: &Report) -> u64 {
    report.memory.described / 4096 * 64
}

impl BootRow {
    /// Bytes of the memory map and its objects: by the engine's count, and by the page tables.
    pub fn map(&self) -> (u64, u64) {
        let parts = self.report.tables.iter().filter(|table| ["Map", "Objects"].contains(&&*table.name));
        parts.fold((0, 0), |sum, part| (sum.0 + part.counted, sum.1 + part.measured))
    }

    /// Bytes of all metadata: all tables by the page tables, and those.
    pub fn metadata(&self) -> u64 {
        self.report.metadata()
    }

    /// What is not as it should be.
    pub fn broken(&self) -> Vec<String> {
        let mut broken: Vec<String> = Vec::new();
        broken.extend(self.wrong.as_ref().map(|wrong| format!("{}: {wrong}", self.step)));
        let report = &self.report;
        let after = &self.step;
        for table in report.tables.iter().filter(|table| table.counted != table.measured) {
            let (counted, measured) = (table.counted, table.measured);
            broken.push(format!(
                "after {after}: table {} has {counted} bytes by count, {measured} by the page tables",
                table.name
            ));
        }
        let frames = &report.frames;
        if frames.lost() != 0 {
            let (have, found) = (frames.boot + frames.taken, frames.reserve + frames.tables + frames.other);
            broken.push(format!("after {after}: {have} frames taken, {found} found"));
        }
        for (count, what) in [
            (report.walks.violations, "promises broken, as walkers saw"),
            (report.folios.lost, "folios whose contents were not as they were left"),
        ] {
            if count > 0 {
                broken.push(format!("after {after}: {count} {what}"));
            }
        }
        if let Some(cycles) = &self.cycles
            && cycles.lost_frames != 0
        {
            broken.push(format!("{after}: {} frames lost", cycles.lost_frames));
        }
        broken
    }
}
