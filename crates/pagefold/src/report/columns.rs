//! Memory blocks as `lsmem` lists them: ranges of blocks that are alike, in the columns that were asked for.

use std::io::{self, Write};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use comfy_table::CellAlignment;

use super::model::{BlockRow, BlocksReport};
use crate::table::{fit, table};
use pagefold_picture::amount::Units;

/// A column. The first six are lsmem's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Column {
    /// Physical addresses
    Range,
    /// Memory
    Size,
    /// State
    State,
    /// Block numbers
    Block,
    /// Node
    Node,
    /// Zone
    Zones,
    /// Their descriptors, without HVO
    Descriptors,
    /// Memory that is offline in them (as root, or of a snapshot)
    Offline,
}

impl Column {
    /// What blocks must have in common to stand in one line.
    fn key(self, row: &BlockRow) -> String {
        match self {
            Column::State => row.state.name().to_owned(),
            Column::Node => row.node.map_or_else(String::new, |node| node.to_string()),
            Column::Zones => row.zone.clone().unwrap_or_default(),
            // Amounts add up.
            Column::Range | Column::Size | Column::Block | Column::Descriptors | Column::Offline => {
                String::new()
            }
        }
    }

    fn cell(self, blocks: &[BlockRow], size: u64, units: Units) -> String {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return String::new() };
        let sum = |amount: &dyn Fn(&BlockRow) -> u64| {
            blocks.iter().fold(0u64, |sum, row| sum.saturating_add(amount(row)))
        };
        match self {
            Column::Range => {
                let end = last.block.saturating_add(1).saturating_mul(size).saturating_sub(1);
                format!("0x{:016x}-0x{end:016x}", first.block.saturating_mul(size))
            }
            Column::Size => units.size(sum(&|_| size)),
            Column::Block if first.block == last.block => first.block.to_string(),
            Column::Block => format!("{}-{}", first.block, last.block),
            Column::Descriptors => units.show(sum(&|row| row.descriptors)),
            Column::Offline if first.offline.is_none() => String::new(),
            Column::Offline => units.show(sum(&|row| row.offline.unwrap_or(0))),
            Column::State | Column::Node | Column::Zones => self.key(first),
        }
    }
}

/// Lists blocks: those that are adjacent and alike in one line, or (`each`) every one.
///
/// # Errors
/// `to` cannot be written.
pub fn print(
    blocks: &BlocksReport,
    columns: &[Column],
    each: bool,
    units: Units,
    to: &mut impl Write,
) -> io::Result<()> {
    let names: Vec<_> = columns.iter().filter_map(ValueEnum::to_possible_value).collect();
    let header: Vec<&str> = names.iter().map(PossibleValue::get_name).collect();
    let mut table = table(&header);
    for (at, column) in columns.iter().enumerate() {
        let is_amount = matches!(column, Column::Size | Column::Descriptors | Column::Offline);
        if let Some(to) = table.column_mut(at) {
            to.set_cell_alignment(if is_amount { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    let is_alike = |a: &BlockRow, b: &BlockRow| {
        !each
            && a.block.checked_add(1) == Some(b.block)
            && columns.iter().all(|column| column.key(a) == column.key(b))
    };
    for range in blocks.list.chunk_by(is_alike) {
        table.add_row(columns.iter().map(|column| column.cell(range, blocks.size, units)));
    }
    writeln!(to, "{}", fit(&mut table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::host::OnlineState;

    fn listing(columns: &[Column], each: bool) -> Vec<String> {
        let row = |block, state, zone: &str, node| BlockRow {
            block,
            state,
            zone: Some(zone.into()),
            has_no_zone: false,
            node: Some(node),
            descriptors: 2 << 20,
            offline: Some(4096),
            offline_descriptors: Some(64),
        };
        let list = vec![
            row(0, OnlineState::Online, "DMA32", 0),
            row(1, OnlineState::Online, "Normal", 0),
            row(2, OnlineState::Online, "Normal", 1),
            row(4, OnlineState::Online, "Normal", 1),
            row(5, OnlineState::Offline, "Normal", 1),
        ];
        let blocks = BlocksReport { size: 128 << 20, auto_online: None, groups: Vec::new(), list };
        let mut text = Vec::new();
        print(&blocks, columns, each, Units::Iec, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn blocks_that_are_alike_in_what_is_shown_are_a_range() {
        let usual = [Column::Range, Column::Size, Column::State, Column::Block];
        assert_eq!(
            listing(&usual, false),
            [
                "RANGE SIZE STATE BLOCK",
                "0x0000000000000000-0x0000000017ffffff 384 MiB online 0-2",
                "0x0000000020000000-0x0000000027ffffff 128 MiB online 4",
                "0x0000000028000000-0x000000002fffffff 128 MiB offline 5",
            ]
        );
        let zones = [Column::Zones, Column::Node, Column::Block, Column::Descriptors, Column::Offline];
        assert_eq!(
            listing(&zones, false)[1..3],
            ["DMA32 0 0 2.00 MiB 4.00 KiB", "Normal 0 1 2.00 MiB 4.00 KiB"]
        );
        assert_eq!(listing(&usual, true).len(), 6);
    }
}
