//! Two machines, page by page, in runs.

use std::collections::BTreeMap;
use std::iter::Peekable;

use pagefold_machine::geometry::ORDERS;
use pagefold_machine::{Extent, Machine, PageState};

use crate::covered::Covered;

/// What a page is in one of two machines; `None`: that machine has no memory there.
pub type PageUse = Option<(PageState, u32)>;

/// Adjacent pages that were alike, and are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageChange {
    /// First page.
    pub start: u64,
    /// Pages.
    pub pages: u64,
    /// State and folio order in A.
    pub from: PageUse,
    /// In B.
    pub to: PageUse,
}

impl PageChange {
    /// The states alone.
    pub fn states(&self) -> (Option<PageState>, Option<PageState>) {
        (self.from.map(|(state, _)| state), self.to.map(|(state, _)| state))
    }
}

/// All pages that either machine has, in ascending order.
pub fn changes<'m>(a: &'m Machine, b: &'m Machine) -> impl Iterator<Item = PageChange> + 'm {
    Changes { a: covered(a).peekable(), b: covered(b).peekable() }
}

fn covered(machine: &Machine) -> impl Iterator<Item = Extent> + '_ {
    Covered::new(machine.header.memory.iter().map(|range| range.start..range.end), machine.extents())
}

struct Changes<A: Iterator<Item = Extent>, B: Iterator<Item = Extent>> {
    a: Peekable<A>,
    b: Peekable<B>,
}

impl<A: Iterator<Item = Extent>, B: Iterator<Item = Extent>> Iterator for Changes<A, B> {
    type Item = PageChange;

    fn next(&mut self) -> Option<PageChange> {
        let (a, b) = (self.a.peek().copied(), self.b.peek().copied());
        let starts = [a, b].map(|extent| extent.map_or(u64::MAX, |extent| extent.start));
        let start = starts[0].min(starts[1]);
        // Until one of them ends, or the other begins.
        let end = [a, b]
            .into_iter()
            .flatten()
            .map(|extent| if extent.start == start { extent.start + extent.pages } else { extent.start })
            .min()?;
        let change = PageChange {
            start,
            pages: end - start,
            from: take(&mut self.a, start, end),
            to: take(&mut self.b, start, end),
        };
        Some(change)
    }
}

/// What lies at `start`, and no longer before `end`.
fn take(extents: &mut Peekable<impl Iterator<Item = Extent>>, start: u64, end: u64) -> PageUse {
    let extent = extents.peek_mut().filter(|extent| extent.start == start)?;
    let place = (extent.state, extent.order);
    extent.pages -= end - start;
    extent.start = end;
    if extent.pages == 0 {
        extents.next();
    }
    Some(place)
}

/// Changes, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Pages by what they were and are.
    pub pages: BTreeMap<(Option<PageState>, Option<PageState>), u64>,
    /// Pages in one state before and after, but in folios of another order.
    pub regrouped: u64,
    /// Pages in folios by order, in A and in B.
    pub orders: [[u64; ORDERS]; 2],
}

impl Compared {
    /// Sums up two machines.
    pub fn of(a: &Machine, b: &Machine) -> Compared {
        let mut compared = Compared::default();
        for change in changes(a, b) {
            *compared.pages.entry(change.states()).or_default() += change.pages;
            for (orders, place) in compared.orders.iter_mut().zip([change.from, change.to]) {
                if let Some((state, order)) = place
                    && has_folios(state)
                {
                    orders[(order as usize).min(ORDERS - 1)] += change.pages;
                }
            }
            if is_regrouped(&change) {
                compared.regrouped += change.pages;
            }
        }
        compared
    }
}

/// Whether only the order of the folios around has changed.
pub fn is_regrouped(change: &PageChange) -> bool {
    let (from, to) = change.states();
    from == to && change.from != change.to
}

/// Whether pages in that state are in folios.
fn has_folios(state: PageState) -> bool {
    !state.is_free()
        && !matches!(
            state,
            PageState::Reserved | PageState::Offline | PageState::HwPoison | PageState::NoPage
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::{Flags, Header, MemoryRange, Run, flags};

    fn machine(memory: &[(u64, u64)], runs: &[(u64, u64, u64)]) -> Machine {
        let memory = memory.iter().map(|&(start, end)| MemoryRange { start, end }).collect();
        let run = |&(start, len, flags): &(u64, u64, u64)| Run { start, len, flags: Flags(flags), count: 0 };
        Machine { header: Header { memory, ..Header::default() }, runs: runs.iter().map(run).collect() }
    }

    #[test]
    fn runs_of_two_layouts_are_cut_where_either_changes() {
        let a = machine(&[(0, 100), (200, 300)], &[(10, 20, flags::ANON), (250, 50, flags::SLAB)]);
        let b = machine(&[(50, 260)], &[(55, 10, flags::ANON)]);
        let seen: Vec<_> = changes(&a, &b)
            .map(|change| {
                let name = |place: PageUse| place.map_or("-", |(state, _)| state.name());
                (change.start, change.pages, name(change.from), name(change.to))
            })
            .collect();
        let expected = [
            (0, 10, "free", "-"),
            (10, 20, "anonymous", "-"),
            (30, 20, "free", "-"),
            (50, 5, "free", "free"),
            (55, 10, "free", "anonymous"),
            (65, 35, "free", "free"),
            (100, 100, "-", "free"),
            (200, 50, "free", "free"),
            (250, 10, "slab", "free"),
            (260, 40, "slab", "-"),
        ];
        assert_eq!(seen, expected);
        let compared = Compared::of(&a, &b);
        assert_eq!(compared.pages.values().sum::<u64>(), 300);
        assert_eq!(compared.orders[0][0], 70);
        assert_eq!(compared.orders[1][0], 10);
    }

    #[test]
    fn folios_that_were_split_are_regrouped() {
        let head = flags::ANON | flags::COMPOUND_HEAD;
        let a = machine(&[(0, 512)], &[(0, 1, head), (1, 511, flags::COMPOUND_TAIL)]);
        let b = machine(&[(0, 512)], &[(0, 512, flags::ANON)]);
        let compared = Compared::of(&a, &b);
        assert_eq!(compared.regrouped, 512);
        assert_eq!((compared.orders[0][9], compared.orders[1][0]), (512, 512));
        assert_eq!(Compared::of(&a, &a).regrouped, 0);
    }

    #[test]
    fn nothing_and_nothing_are_alike() {
        let none = Machine::default();
        assert_eq!(Compared::of(&none, &none), Compared::default());
    }
}
