//! A machine's pages as rows: runs in one state, of one order, in one zone.

use std::collections::BTreeSet;
use std::ops::Range;

use pagefold_machine::{Machine, PageState, ZoneRecord, fake_heads};

use crate::covered::Covered;

/// Adjacent pages that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRow<'m> {
    /// The zone, if any is known there. Where zones overlap: the one that begins last.
    pub zone: Option<&'m ZoneRecord>,
    /// First page.
    pub start: u64,
    /// Pages.
    pub pages: u64,
    /// What they are used for.
    pub state: PageState,
    /// Order of their folios.
    pub order: u32,
    /// Of huge pages: whether HVO has taken the descriptors of their tails. `None` where page flags do not tell.
    pub optimised: Option<bool>,
}

/// All of a machine's memory, in ascending order.
pub fn rows(machine: &Machine) -> impl Iterator<Item = PageRow<'_>> {
    let memory = machine.header.memory.iter().map(|range| range.start..range.end);
    let zones = Zones::new(&machine.header.zones);
    let tells = fake_heads::are_shown(machine);
    let cut = Covered::new(memory, machine.extents()).flat_map(move |extent| {
        let end = extent.start + extent.pages;
        let optimised = (tells && extent.state == PageState::Hugetlb).then_some(extent.optimised);
        zones.cut(extent.start..end).map(move |(pages, zone)| PageRow {
            zone,
            start: pages.start,
            pages: pages.end - pages.start,
            state: extent.state,
            order: extent.order,
            optimised,
        })
    });
    JoinedRows { rows: cut, pending: None }
}

/// Zones as ranges that do not overlap.
#[derive(Clone)]
struct Zones<'m> {
    ranges: Vec<(Range<u64>, &'m ZoneRecord)>,
}

impl<'m> Zones<'m> {
    fn new(zones: &'m [ZoneRecord]) -> Self {
        let end = |zone: &ZoneRecord| zone.start.saturating_add(zone.spanned);
        let bounds: BTreeSet<u64> = zones.iter().flat_map(|zone| [zone.start, end(zone)]).collect();
        let ranges = bounds.iter().zip(bounds.iter().skip(1)).filter_map(|(&first, &last)| {
            let around = zones.iter().filter(|zone| zone.start <= first && last <= end(zone));
            around.max_by_key(|zone| zone.start).map(|zone| (first..last, zone))
        });
        Self { ranges: ranges.collect() }
    }

    /// `pages`, cut where another zone begins.
    fn cut(&self, pages: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<&'m ZoneRecord>)> + use<'m> {
        let from = self.ranges.partition_point(|(range, _)| range.end <= pages.start);
        let to = self.ranges.partition_point(|(range, _)| range.start < pages.end).max(from);
        let mut parts = Vec::with_capacity(to - from);
        let mut at = pages.start;
        for (range, zone) in &self.ranges[from..to] {
            if at < range.start {
                parts.push((at..range.start, None));
                at = range.start;
            }
            let stop = range.end.min(pages.end);
            parts.push((at..stop, Some(*zone)));
            at = stop;
        }
        if at < pages.end {
            parts.push((at..pages.end, None));
        }
        parts.into_iter()
    }
}

/// Joins rows that differ in nothing that a row tells.
struct JoinedRows<'m, I: Iterator<Item = PageRow<'m>>> {
    rows: I,
    pending: Option<PageRow<'m>>,
}

impl<'m, I: Iterator<Item = PageRow<'m>>> Iterator for JoinedRows<'m, I> {
    type Item = PageRow<'m>;

    fn next(&mut self) -> Option<PageRow<'m>> {
        let mut row = self.pending.take().or_else(|| self.rows.next())?;
        for next in self.rows.by_ref() {
            let is_alike = next.start == row.start + row.pages
                && (next.state, next.order, next.optimised) == (row.state, row.order, row.optimised)
                && next.zone.map(std::ptr::from_ref) == row.zone.map(std::ptr::from_ref);
            if !is_alike {
                self.pending = Some(next);
                break;
            }
            row.pages += next.pages;
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::{Flags, Header, MemoryRange, Run, flags};

    fn zone(node: u32, start: u64, spanned: u64) -> ZoneRecord {
        ZoneRecord { node, name: format!("Z{start}"), start, spanned, present: 1, ..ZoneRecord::default() }
    }

    #[test]
    fn rows_end_where_zones_do() {
        let zones = vec![zone(0, 0, 100), zone(1, 100, 100), zone(2, 150, 20)];
        let memory = vec![MemoryRange { start: 10, end: 120 }, MemoryRange { start: 140, end: 300 }];
        let run = |start, len, flags, count| Run { start, len, flags: Flags(flags), count };
        // Map counts are not told: the two first are one row.
        let runs = vec![run(90, 2, flags::ANON, 1), run(92, 18, flags::ANON, 2)];
        let machine = Machine { header: Header { memory, zones, ..Header::default() }, runs };
        let seen: Vec<_> = rows(&machine)
            .map(|row| (row.start, row.pages, row.state, row.zone.map(|zone| zone.node)))
            .collect();
        let (free, anon) = (PageState::Free, PageState::Anon);
        let expected = [
            (10, 80, free, Some(0)),
            (90, 10, anon, Some(0)),
            (100, 10, anon, Some(1)),
            (110, 10, free, Some(1)),
            (140, 10, free, Some(1)),
            (150, 20, free, Some(2)),
            (170, 30, free, Some(1)),
            (200, 100, free, None),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn absurd_zones_do_no_harm() {
        let zones = vec![zone(0, u64::MAX - 1, u64::MAX), zone(1, 5, 0), zone(2, 0, u64::MAX)];
        let header = Header { memory: vec![MemoryRange { start: 0, end: 10 }], zones, ..Header::default() };
        let machine = Machine { header, runs: Vec::new() };
        assert_eq!(rows(&machine).map(|row| row.pages).sum::<u64>(), 10);
    }
}
