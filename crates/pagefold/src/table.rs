//! Tables for people: names on the left, numbers aligned on the right, no lines.

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table};

use crate::lines::width;

/// An empty table. All columns but the first are aligned on the right; none is broken into lines, unless it holds [`words`].
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for column in table.column_iter_mut() {
        column.set_constraint(ColumnConstraint::ContentWidth);
        column.set_padding((0, 2));
    }
    table
}

/// Aligns columns that hold words on the left.
pub fn words(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Left);
            column.remove_constraint();
        }
    }
}

/// Adds a row.
pub fn add<const N: usize>(table: &mut Table, cells: [String; N]) {
    table.add_row(cells.into_iter().map(Cell::new));
}

/// The table as text. On a terminal that is too narrow for it, words go on in the next line.
pub fn fit(table: &mut Table) -> String {
    /// Words in fewer columns than this are worse than long lines.
    const WORDS: usize = 9;
    let widths = table.column_max_content_widths();
    let least = table.column_iter().zip(widths).map(|(column, width)| match column.constraint() {
        Some(ColumnConstraint::Hidden) => 0,
        Some(_) => usize::from(width) + 2,
        None => usize::from(width).min(WORDS) + 2,
    });
    let least: usize = least.sum();
    // Behind the last column is a padding, which is cut off.
    if let Some(width) = width().map(|width| width + 2).filter(|&width| width >= least)
        && let Ok(width) = u16::try_from(width)
    {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table.trim_fmt()
}
