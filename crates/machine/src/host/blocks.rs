//! Memory blocks: `/sys/devices/system/memory`.

use serde::{Deserialize, Serialize};

use super::files::Files;

const DIR: &str = "sys/devices/system/memory";

/// The memory blocks of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Blocks {
    /// Bytes in a block.
    pub size: u64,
    /// What happens to blocks that are added: `offline`, `online`, `online_kernel`, `online_movable`.
    pub auto_online: Option<String>,
    /// The blocks, in ascending order. A block is there if any section of it has memory.
    pub list: Vec<Block>,
}

/// One memory block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Block {
    /// Its number: its physical address divided by the size.
    pub id: u64,
    /// What it is now.
    pub state: OnlineState,
    /// The zone its pages are in, if they are in one and the kernel tells.
    pub zone: Option<String>,
    /// Whether the kernel says that no one zone has all of it (`none`).
    #[serde(default)]
    pub has_no_zone: bool,
}

/// States of a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", schemars(rename = "BlockState"))]
pub enum OnlineState {
    /// In use.
    Online,
    /// Added, not in use; it has descriptors all the same.
    Offline,
    /// On its way out.
    GoingOffline,
    /// None that is known here.
    Unknown,
}

impl OnlineState {
    /// The state that a `state` file tells.
    pub fn parse(text: &str) -> Self {
        match text.trim() {
            "online" => OnlineState::Online,
            "offline" => OnlineState::Offline,
            "going-offline" => OnlineState::GoingOffline,
            _ => OnlineState::Unknown,
        }
    }

    /// A word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            OnlineState::Online => "online",
            OnlineState::Offline => "offline",
            OnlineState::GoingOffline => "going offline",
            OnlineState::Unknown => "unknown",
        }
    }
}

/// `block_size_bytes`: hexadecimal, without `0x`. A power of two of at least a megabyte, or it is none.
pub fn parse_block_size(text: &str) -> Option<u64> {
    let size = u64::from_str_radix(text.trim(), 16).ok()?;
    (size.is_power_of_two() && (1 << 20..=1 << 44).contains(&size)).then_some(size)
}

/// `valid_zones` of an online block: the first word, the zone it is in.
pub fn parse_zone(text: &str) -> Option<String> {
    let word = text.split_ascii_whitespace().next()?;
    (word != NO_ZONE && word.chars().all(|c| c.is_ascii_alphanumeric())).then(|| word.to_owned())
}

/// What `valid_zones` says of an online block in several zones.
const NO_ZONE: &str = "none";

/// Whether `valid_zones` says that no one zone has all of a block.
fn says_no_zone(text: &str) -> bool {
    text.split_ascii_whitespace().next() == Some(NO_ZONE)
}

/// Reads the blocks; `None` if the kernel has none (no memory hotplug).
pub fn read(files: &mut Files) -> Option<Blocks> {
    const TELLS: &str = "memory blocks";
    if !files.exists(DIR) {
        files.absent(DIR, TELLS, "this kernel has no memory hotplug");
        return None;
    }
    let size = files.number(&format!("{DIR}/block_size_bytes"), TELLS, parse_block_size)?;
    let auto_online = files.optional_text(&format!("{DIR}/auto_online_blocks"), TELLS);
    let ids = files.numbered(DIR, "memory", TELLS);
    let list = ids.into_iter().filter(|&id| id.checked_mul(size).is_some());
    let list = list.filter_map(|id| {
        let path = format!("{DIR}/memory{id}/state");
        let text = files.listed_text(&path, TELLS)?;
        let state = OnlineState::parse(&text);
        if state == OnlineState::Unknown {
            files.malformed(&path, TELLS, &text);
        }
        let zones = match state {
            OnlineState::Online => files.optional_text(&format!("{DIR}/memory{id}/valid_zones"), TELLS),
            _ => None,
        };
        let has_no_zone = zones.as_deref().is_some_and(says_no_zone);
        Some(Block { id, state, zone: zones.and_then(|text| parse_zone(&text)), has_no_zone })
    });
    let list = list.collect();
    Some(Blocks { size, auto_online: auto_online.map(|text| text.trim().to_owned()), list })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_states_and_zones() {
        assert_eq!(parse_block_size("8000000\n"), Some(128 << 20));
        for text in ["", "0", "0x8000000", "8000001", "-1", "ffffffffffffffff", "80000000000000000"] {
            assert_eq!(parse_block_size(text), None, "{text}");
        }
        assert_eq!(OnlineState::parse("going-offline\n"), OnlineState::GoingOffline);
        assert_eq!(OnlineState::parse("onlin"), OnlineState::Unknown);
        assert_eq!(parse_zone("Normal Movable\n").as_deref(), Some("Normal"));
        assert_eq!(parse_zone("none\n"), None);
        assert!(says_no_zone("none\n") && !says_no_zone("Normal\n") && !says_no_zone(""));
        assert_eq!(parse_zone("\u{1b}[31m"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".{0,60}") {
            let _ = (parse_block_size(&text), OnlineState::parse(&text), parse_zone(&text));
        }
    }
}
