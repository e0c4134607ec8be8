//! Zones on a grid: their lanes beside it, and the borders between them inside.

use crate::grid::Grid;
use crate::subject::ZoneSpan;

/// A zone beside a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its number among the zones.
    pub zone: usize,
    /// Zones that overlap lie in different lanes.
    pub lane: u32,
    /// First page that lies on the map.
    pub first: u64,
    /// Last page that lies on the map.
    pub last: u64,
    /// Its name, with its node if there are several.
    pub name: String,
}

/// The zones that lie on the map, by first page, and how many lanes they need.
pub fn lanes(zones: &[ZoneSpan], grid: &Grid) -> (Vec<Label>, u32) {
    let spans = grid.axis.spans();
    let (Some(start), Some(end)) = (spans.first(), spans.last()) else { return (Vec::new(), 0) };
    let unit = grid.axis.unit();
    let map = start.cells.start.saturating_mul(unit)..end.cells.end.saturating_mul(unit);
    let mut labels: Vec<Label> = zones
        .iter()
        .enumerate()
        .filter_map(|(zone, ZoneSpan { start, pages, .. })| {
            let first = (*start).max(map.start);
            let end = start.saturating_add(*pages).min(map.end);
            let name = name(zones, &zones[zone]);
            (first < end).then(|| Label { zone, lane: 0, first, last: end - 1, name })
        })
        .collect();
    labels.sort_by_key(|label| (label.first, label.last));
    let mut lanes: Vec<u64> = Vec::new();
    for label in &mut labels {
        let lane = lanes.iter().position(|&last| last < label.first).unwrap_or(lanes.len());
        match lanes.get_mut(lane) {
            Some(last) => *last = label.last,
            None => lanes.push(label.last),
        }
        label.lane = lane as u32;
    }
    (labels, lanes.len() as u32)
}

fn name(zones: &[ZoneSpan], zone: &ZoneSpan) -> String {
    match zones.iter().any(|other| other.node != zone.node) {
        true => format!("{}:{}", zone.node, zone.name),
        false => zone.name.clone(),
    }
}

/// An edge of a cell with another zone on its other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Border {
    /// Column of the cell right of the edge, or below it.
    pub column: u32,
    /// Row of that cell.
    pub row: u32,
    /// Left of the cell; else above it.
    pub is_upright: bool,
}

/// The borders between cells of different zones.
pub fn borders(zones: &[ZoneSpan], grid: &Grid) -> Vec<Border> {
    let (width, height) = grid.used;
    if zones.len() < 2 {
        return Vec::new();
    }
    // The zone at each place; where zones overlap, the one that begins last.
    let mut places = vec![None; width as usize * height as usize];
    for slot in grid.cells.slots().filter(|&slot| grid.look(slot).is_some()) {
        let (column, row) = grid.layout.place(slot, grid.columns);
        let Some(pfn) = grid.axis.first_pfn(slot) else { continue };
        let last = pfn + grid.axis.unit() - 1;
        let within = |zone: &&ZoneSpan| zone.start <= last && last - zone.start < zone.pages.max(1);
        let zone = zones.iter().filter(within).max_by_key(|zone| zone.start);
        places[(row * width + column) as usize] = zone.map(|zone| (zone.node, zone.start));
    }
    let at = |column: u32, row: u32| places[(row * width + column) as usize];
    let differ = |a: Option<(u32, u64)>, b: Option<(u32, u64)>| a.is_some() && b.is_some() && a != b;
    let mut borders = Vec::new();
    for row in 0..height {
        for column in 0..width {
            if column > 0 && differ(at(column - 1, row), at(column, row)) {
                borders.push(Border { column, row, is_upright: true });
            }
            if row > 0 && differ(at(column, row - 1), at(column, row)) {
                borders.push(Border { column, row, is_upright: false });
            }
        }
    }
    borders
}
