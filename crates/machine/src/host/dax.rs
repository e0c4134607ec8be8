//! DAX devices: `/sys/bus/dax/devices`. Memory of CXL, of persistent memory and of other devices, before it is brought online
//! as ordinary memory.

use serde::{Deserialize, Serialize};

use super::files::Files;

const DIR: &str = "sys/bus/dax/devices";
const TELLS: &str = "memory of DAX devices";

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Dax {
    /// Its name: `dax0.0`.
    pub name: String,
    /// Bytes of memory.
    pub size: u64,
    /// Bytes that mappings are aligned to; absent where the kernel does not tell (before Linux 5.10).
    pub align: Option<u64>,
    /// The node that its memory would make, or be part of.
    pub node: Option<u32>,
    /// Whether its descriptors would lie on itself when it is brought online (Linux 6.8 or newer).
    pub memmap_on_memory: Option<bool>,
}

/// Reads all devices; none where the kernel has none.
pub(super) fn read(files: &mut Files) -> Vec<Dax> {
    if !files.exists(DIR) {
        return Vec::new();
    }
    let names = files.names(DIR, TELLS);
    let names = names.into_iter().filter(|name| name.starts_with("dax"));
    names
        .filter_map(|name| {
            let dir = format!("{DIR}/{name}");
            let size = files.number(&format!("{dir}/size"), TELLS, number)?;
            let mut optional = |file: &str| files.optional_text(&format!("{dir}/{file}"), TELLS);
            let align = optional("align").and_then(|text| number(&text));
            // What it is near to is only its own node where there is no better.
            let node = optional("target_node").or_else(|| optional("numa_node"));
            let node = node.and_then(|text| text.trim().parse().ok());
            let memmap_on_memory = optional("memmap_on_memory").map(|text| text.trim() == "1");
            Some(Dax { name, size, align, node, memmap_on_memory })
        })
        .collect()
}

/// A number as sysfs writes them: decimal, or hexadecimal with `0x`.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::paste::Pasted;
    use super::*;

    #[test]
    fn devices_are_read() {
        let file = |name: &str, text: &str| (format!("{DIR}/{name}"), text.as_bytes().to_vec());
        let files: Pasted = [
            file("dax0.0/size", "137438953472\n"),
            file("dax0.0/align", "0x200000\n"),
            file("dax0.0/target_node", "2\n"),
            file("dax0.0/numa_node", "0\n"),
            file("dax0.0/memmap_on_memory", "1\n"),
            file("dax1.0/size", "4096\n"),
            file("dax1.0/target_node", "-1\n"),
            file("dax2.0/size", "much\n"),
        ]
        .into_iter()
        .collect();
        let mut files = Files::of(files);
        let found = read(&mut files);
        let first = Dax {
            name: "dax0.0".into(),
            size: 128 << 30,
            align: Some(2 << 20),
            node: Some(2),
            memmap_on_memory: Some(true),
        };
        assert_eq!(found, [first, Dax { name: "dax1.0".into(), size: 4096, ..Dax::default() }]);
        assert_eq!(files.into_gaps().len(), 1);
        assert!(read(&mut Files::of(Pasted::new())).is_empty());
    }
}
