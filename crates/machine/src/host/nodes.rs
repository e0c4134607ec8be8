//! NUMA nodes: `/sys/devices/system/node`.

use serde::{Deserialize, Serialize};

use super::counters::Counters;
use super::files::Files;
use super::hugetlb::{Pool, read_pools};

const DIR: &str = "sys/devices/system/node";

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its `meminfo`, in bytes.
    pub meminfo: Counters,
    /// Its pools of huge pages.
    pub pools: Vec<Pool>,
    /// The numbers of its memory blocks.
    pub blocks: Vec<u64>,
}

/// Reads all nodes; none where the kernel has no NUMA.
pub fn read(files: &mut Files) -> Vec<Node> {
    const TELLS: &str = "NUMA nodes";
    let ids = files.numbered(DIR, "node", TELLS);
    let ids = ids.into_iter().filter_map(|id| u32::try_from(id).ok());
    ids.map(|id| {
        let dir = format!("{DIR}/node{id}");
        let meminfo = files.listed_text(&format!("{dir}/meminfo"), TELLS);
        let meminfo = meminfo.map(|text| {
            let counters = Counters::parse(&text);
            if counters.is_empty() {
                files.malformed(&format!("{dir}/meminfo"), TELLS, &text);
            }
            counters
        });
        let huge = format!("{dir}/hugepages");
        let pools = if files.exists(&huge) { read_pools(files, &huge) } else { Vec::new() };
        let blocks = files.numbered(&dir, "memory", TELLS);
        Node { id, meminfo: meminfo.unwrap_or_default(), pools, blocks }
    })
    .collect()
}
