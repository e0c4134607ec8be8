//! JSON Schemas of what commands print with `--json`.
//!
//! They are files, which a test below compares with the types: so the program does without the code that makes them.

use clap::ValueEnum;

/// A command, and how it is asked where that makes another form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// report --json, export
    Report,
    /// report --block --json
    ReportBlock,
    /// plan --json
    Plan,
    /// plan --hotplug --json
    PlanHotplug,
    /// plan --device --json
    PlanDevice,
    /// map --json
    Map,
    /// diff --json
    Diff,
    /// replay --json
    Replay,
    /// run --json
    Run,
    /// boot --json
    Boot,
}

impl SchemaOf {
    /// The schema as text.
    pub fn text(self) -> &'static str {
        match self {
            SchemaOf::Report => include_str!("../../schemas/report.json"),
            SchemaOf::ReportBlock => include_str!("../../schemas/report-block.json"),
            SchemaOf::Plan => include_str!("../../schemas/plan.json"),
            SchemaOf::PlanHotplug => include_str!("../../schemas/plan-hotplug.json"),
            SchemaOf::PlanDevice => include_str!("../../schemas/plan-device.json"),
            SchemaOf::Map => include_str!("../../schemas/map.json"),
            SchemaOf::Diff => include_str!("../../schemas/diff.json"),
            SchemaOf::Replay => include_str!("../../schemas/replay.json"),
            SchemaOf::Run => include_str!("../../schemas/run.json"),
            SchemaOf::Boot => include_str!("../../schemas/boot.json"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use schemars::{Schema, schema_for};

    use super::*;
    use crate::report::block::model::BlockAnswer;
    use crate::report::model::Report;
    use crate::{boot, diff, map, plan, replay, run};

    /// What a command's types say.
    fn of_types(of: SchemaOf) -> Schema {
        match of {
            SchemaOf::Report => schema_for!(Report),
            SchemaOf::ReportBlock => schema_for!(BlockAnswer),
            SchemaOf::Plan => schema_for!(plan::Plan),
            SchemaOf::PlanHotplug => schema_for!(plan::hotplug::HotplugAnswer),
            SchemaOf::PlanDevice => schema_for!(plan::device::DeviceAnswer),
            SchemaOf::Map => schema_for!(map::json::MapJson<'_>),
            SchemaOf::Diff => schema_for!(diff::DiffReport),
            SchemaOf::Replay => schema_for!(replay::ReplayReport),
            SchemaOf::Run => schema_for!(run::report::RunReport),
            SchemaOf::Boot => schema_for!(boot::BootOutcome),
        }
    }

    /// Where a type changed on purpose: with `PAGEFOLD_WRITE_SCHEMAS` set, the test writes the files.
    #[test]
    fn the_files_are_what_the_types_say() {
        let write = std::env::var_os("PAGEFOLD_WRITE_SCHEMAS").is_some();
        for of in SchemaOf::value_variants() {
            let text = serde_json::to_string_pretty(&of_types(*of)).unwrap() + "\n";
            let name = of.to_possible_value().unwrap();
            let file = format!("{}/schemas/{}.json", env!("CARGO_MANIFEST_DIR"), name.get_name());
            if write {
                std::fs::write(Path::new(&file), &text).unwrap();
            }
            let again = "PAGEFOLD_WRITE_SCHEMAS=1 cargo test --release -p pagefold --bin pagefold schema";
            assert!(write || of.text() == text, "{file} is out of date; run: {again}");
        }
    }
}
