//! `/proc/meminfo`, `/proc/vmstat` and each node's `meminfo`: names and numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The counters of one file. Those with a unit (`kB`) are in bytes, others as they stand there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads all lines that hold a name and a number, and skips others: these files grow with every kernel. A node's
    /// file has `Node N` before each name.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let mut name = words.next()?;
            if name == "Node" {
                words.next()?;
                name = words.next()?;
            }
            let value: u64 = words.next()?.parse().ok()?;
            let value = if words.next() == Some("kB") { value.saturating_mul(1024) } else { value };
            Some((name.trim_end_matches(':').to_owned(), value))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// One counter.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<const N: usize> From<[(&str, u64); N]> for Counters {
    fn from(counters: [(&str, u64); N]) -> Self {
        Self(counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_numbers_and_units() {
        let counters = Counters::parse(
            "MemTotal:       24684092 kB\nHugePages_Total:       7\nnr_memmap_boot_pages 98304\n\
             Node 1 PageTables:     4080 kB\nbroken\nnegative -3\nlater words and more\n",
        );
        assert_eq!(counters.get("MemTotal"), Some(24_684_092 << 10));
        assert_eq!(counters.get("HugePages_Total"), Some(7));
        assert_eq!(counters.get("nr_memmap_boot_pages"), Some(98304));
        assert_eq!(counters.get("PageTables"), Some(4080 << 10));
        for name in ["broken", "negative", "later", "Node"] {
            assert_eq!(counters.get(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".{0,200}") {
            let _ = Counters::parse(&text);
        }

        #[test]
        fn any_number_is_held(value: u64) {
            let counters = Counters::parse(&format!("a {value}\nb: {value} kB\n"));
            prop_assert_eq!(counters.get("a"), Some(value));
            prop_assert_eq!(counters.get("b"), Some(value.saturating_mul(1024)));
        }
    }
}
