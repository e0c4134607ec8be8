//! Schemas of what commands print.

use serde_json::Value;

use super::{json, pagefold};

/// All but the report's.
pub const NAMES: [&str; 9] =
    ["report-block", "plan", "plan-hotplug", "plan-device", "map", "diff", "replay", "run", "boot"];

/// A command's, as the program prints it.
pub fn schema(name: &str) -> Value {
    json(pagefold().args(["export", "--schema", name]).assert().success())
}

/// Fails unless `value` follows a command's schema.
pub fn follows(name: &str, value: &Value) {
    let schema = schema(name);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{name}: {errors:?}");
}
