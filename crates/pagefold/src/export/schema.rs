//! JSON Schemas of what commands print with `--json`.

use anyhow::Result;
use clap::ValueEnum;
use schemars::{Schema, schema_for};

use crate::report::block::model::BlockAnswer;
use crate::report::model::Report;
use crate::{boot, diff, map, plan, replay, run};

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
    fn schema(self) -> Schema {
        match self {
            SchemaOf::Report => schema_for!(Report),
            SchemaOf::ReportBlock => schema_for!(BlockAnswer),
            SchemaOf::Plan => schema_for!(plan::Plan),
            SchemaOf::PlanHotplug => schema_for!(plan::HotplugAnswer),
            SchemaOf::PlanDevice => schema_for!(plan::DeviceAnswer),
            SchemaOf::Map => schema_for!(map::MapJson<'_>),
            SchemaOf::Diff => schema_for!(diff::DiffReport),
            SchemaOf::Replay => schema_for!(replay::ReplayReport),
            SchemaOf::Run => schema_for!(run::RunReport),
            SchemaOf::Boot => schema_for!(boot::BootOutcome),
        }
    }

    /// The schema as text.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn text(self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.schema())? + "\n")
    }
}
