//! `/proc/buddyinfo`: free blocks by order.

use serde::{Deserialize, Serialize};

/// More orders than any kernel has.
const MAX_ORDERS: usize = 32;

/// The free blocks of one zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FreeBlocks {
    /// The node.
    pub node: u32,
    /// The zone's name.
    pub zone: String,
    /// Free blocks of each order, from order 0.
    pub blocks: Vec<u64>,
}

impl FreeBlocks {
    /// Pages in free blocks of at least `order`.
    pub fn pages_from(&self, order: u32) -> u64 {
        let pages = |(order, &blocks): (usize, &u64)| blocks.saturating_mul(1 << order);
        self.blocks.iter().enumerate().skip(order as usize).map(pages).fold(0, u64::saturating_add)
    }
}

/// The zones of the file. Lines of another form are skipped.
pub fn parse(text: &str) -> Vec<FreeBlocks> {
    let line = |line: &str| {
        let (node, rest) = line.strip_prefix("Node ")?.split_once(", zone")?;
        let mut words = rest.split_ascii_whitespace();
        let zone = words.next()?.to_owned();
        let blocks: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        let fine = (1..=MAX_ORDERS).contains(&blocks.len());
        Some(FreeBlocks { node: node.trim().parse().ok()?, zone, blocks }).filter(|_| fine)
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_of_every_order() {
        let zones = parse(
            "Node 0, zone      DMA      0      1      3 \nNode 1, zone   Normal   9570   4775   1849    840\n\
             Node 1, zone\nNode x, zone Normal 1\nNode 2, zone Normal 1 two\nrubbish\n",
        );
        let dma = FreeBlocks { node: 0, zone: "DMA".into(), blocks: vec![0, 1, 3] };
        let normal = FreeBlocks { node: 1, zone: "Normal".into(), blocks: vec![9570, 4775, 1849, 840] };
        assert_eq!(zones, [dma, normal]);
        assert_eq!(zones[0].pages_from(0), 14);
        assert_eq!(zones[0].pages_from(2), 12);
        assert_eq!(zones[0].pages_from(9), 0);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(Node [0-9]{1,11}, zone [A-Z]{1,3}( [0-9]{1,20}){0,40}\n|.{0,80}\n){0,8}") {
            for zone in parse(&text) {
                let _ = zone.pages_from(0);
            }
        }
    }
}
