//! What `lsmem --json` prints: memory blocks, by ranges. It becomes the files that it was made of.

use serde::Deserialize;

use super::paste::Pasted;

/// Blocks that are believed: what 128 TiB have in blocks of 128 MiB.
const MAX_BLOCKS: u64 = 1 << 20;

#[derive(Deserialize)]
struct Listing {
    memory: Vec<Range>,
}

/// A range. Columns that were not asked for (`-o`) are missing; older versions print all values as strings.
#[derive(Deserialize)]
struct Range {
    range: Option<String>,
    state: Option<String>,
    block: Option<serde_json::Value>,
    node: Option<serde_json::Value>,
    zones: Option<String>,
}

/// Why a listing is of no use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LsmemError {
    /// Another JSON.
    #[error("it is not what lsmem --json prints: {0}")]
    NotLsmem(String),
    /// Columns are missing.
    #[error("lsmem's columns RANGE, STATE and BLOCK are needed: run lsmem --json --output-all")]
    Columns,
    /// Numbers that contradict each other.
    #[error("lsmem's ranges contradict each other: {0}")]
    Contradiction(&'static str),
}

/// The files of `/sys` that tell the same.
///
/// # Errors
/// [`LsmemError`].
pub fn parts(json: &str) -> Result<Pasted, LsmemError> {
    let listing: Listing =
        serde_json::from_str(json).map_err(|error| LsmemError::NotLsmem(error.to_string()))?;
    let mut files = Pasted::new();
    let mut size = None;
    let mut blocks = 0u64;
    for range in &listing.memory {
        let (Some(addresses), Some(state), Some(numbers)) = (&range.range, &range.state, &range.block) else {
            return Err(LsmemError::Columns);
        };
        let numbers = match numbers {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let wrong = LsmemError::Contradiction;
        let (first, last) = pair(addresses, 16).ok_or(wrong("a range that is none"))?;
        let (from, to) = pair(&numbers, 10).ok_or(wrong("block numbers that are none"))?;
        let count = to
            .checked_sub(from)
            .and_then(|more| more.checked_add(1))
            .ok_or(wrong("block numbers that fall"))?;
        blocks = count.saturating_add(blocks);
        if blocks > MAX_BLOCKS {
            return Err(wrong("more blocks than any machine has"));
        }
        let bytes = last
            .checked_sub(first)
            .and_then(|more| more.checked_add(1))
            .ok_or(wrong("a range that falls"))?;
        if bytes % count != 0 || *size.get_or_insert(bytes / count) != bytes / count {
            return Err(wrong("blocks of different sizes"));
        }
        if from.checked_mul(bytes / count) != Some(first) {
            return Err(wrong("blocks that are not where their numbers say"));
        }
        for block in from..=to {
            let dir = format!("sys/devices/system/memory/memory{block}");
            files.insert(format!("{dir}/state"), state.clone().into_bytes());
            if let Some(zone) = &range.zones {
                files.insert(format!("{dir}/valid_zones"), zone.replace('/', " ").into_bytes());
            }
            if let Some(node) = range.node.as_ref().and_then(number) {
                files.insert(format!("sys/devices/system/node/node{node}/memory{block}/state"), Vec::new());
            }
        }
    }
    let size = size.ok_or(LsmemError::Contradiction("there are none"))?;
    files.insert("sys/devices/system/memory/block_size_bytes".into(), format!("{size:x}").into_bytes());
    Ok(files)
}

/// `0x0-0x7fffffff`, `0-15`, `32`.
fn pair(text: &str, radix: u32) -> Option<(u64, u64)> {
    let number = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), radix).ok();
    match text.split_once('-') {
        Some((first, last)) => Some((number(first)?, number(last)?)),
        None => number(text).map(|only| (only, only)),
    }
}

fn number(value: &serde_json::Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_become_blocks() {
        // Newer versions print numbers, older ones strings.
        for node in ["1", "\"1\""] {
            let json = format!(
                r#"{{"memory": [
                    {{"range": "0x0000000000000000-0x0000000017ffffff", "size": "384M", "state": "online",
                      "removable": true, "block": "0-2", "node": {node}, "zones": "Normal"}},
                    {{"range": "0x0000000100000000-0x0000000107ffffff", "size": "128M", "state": "offline",
                      "removable": null, "block": "32", "node": {node}, "zones": "Normal/Movable"}}]}}"#
            );
            let files = parts(&json).unwrap();
            let text = |path: &str| String::from_utf8(files[path].clone()).unwrap();
            assert_eq!(text("sys/devices/system/memory/block_size_bytes"), "8000000");
            assert_eq!(text("sys/devices/system/memory/memory2/state"), "online");
            assert_eq!(text("sys/devices/system/memory/memory32/state"), "offline");
            assert_eq!(text("sys/devices/system/memory/memory32/valid_zones"), "Normal Movable");
            assert!(files.contains_key("sys/devices/system/node/node1/memory32/state"));
            assert!(!files.contains_key("sys/devices/system/memory/memory3/state"));
        }
    }

    #[test]
    fn what_is_of_no_use_is_told() {
        let error = |json: &str| parts(json).unwrap_err();
        assert!(matches!(error("{}"), LsmemError::NotLsmem(_)));
        assert_eq!(error(r#"{"memory": [{"range": "0x0-0xff"}]}"#), LsmemError::Columns);
        let odd = r#"{"memory": [{"range": "0x0-0xff", "state": "online", "block": "0-2"}]}"#;
        assert_eq!(error(odd), LsmemError::Contradiction("blocks of different sizes"));
        let huge = r#"{"memory": [{"range": "0x0-0xffffffffffffffff", "state": "online", "block": "0-18446744073709551615"}]}"#;
        assert!(matches!(error(huge), LsmemError::Contradiction(_)));
        let many =
            r#"{"memory": [{"range": "0x0-0xfffffffffffff", "state": "online", "block": "0-33554431"}]}"#;
        assert_eq!(error(many), LsmemError::Contradiction("more blocks than any machine has"));
        let elsewhere = r#"{"memory": [{"range": "0x0-0x7ffffff", "state": "online", "block": "7"}]}"#;
        assert_eq!(
            error(elsewhere),
            LsmemError::Contradiction("blocks that are not where their numbers say")
        );
    }

    proptest! {
        #[test]
        fn any_range_is_judged(range in "[0-9a-fx-]{0,12}", block in "[0-9-]{0,6}") {
            let _ = parts(&format!(r#"{{"memory": [{{"range": "{range}", "state": "online", "block": "{block}"}}]}}"#));
        }
    }
}
