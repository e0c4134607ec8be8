//! All of a machine's memory as extents, also what nothing is said of.

use std::iter::Peekable;
use std::ops::Range;

use pagefold_machine::{Extent, PageState};

/// Extents, and between them the parts of memory that none of them speaks of: as free ones, or in another state.
pub struct Covered<M: Iterator<Item = Range<u64>>, E: Iterator<Item = Extent>> {
    memory: Peekable<M>,
    extents: Peekable<E>,
    /// The state of pages that no extent speaks of.
    rest: PageState,
    /// Pages below are done.
    at: u64,
}

impl<M: Iterator<Item = Range<u64>>, E: Iterator<Item = Extent>> Covered<M, E> {
    /// `extents` within `memory`; both in ascending order, without overlap.
    pub fn new(memory: M, extents: E) -> Self {
        Self { memory: memory.peekable(), extents: extents.peekable(), rest: PageState::Free, at: 0 }
    }

    /// The same, with another state for pages that no extent speaks of.
    pub fn with_rest(self, rest: PageState) -> Self {
        Self { rest, ..self }
    }
}

impl<M: Iterator<Item = Range<u64>>, E: Iterator<Item = Extent>> Iterator for Covered<M, E> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let until = self.extents.peek().map_or(u64::MAX, |extent| extent.start);
        while let Some(range) = self.memory.peek().filter(|range| range.start < until).cloned() {
            if range.end <= until {
                self.memory.next();
            }
            let (start, end) = (range.start.max(self.at), range.end.min(until));
            if start < end {
                self.at = end;
                let pages = end - start;
                return Some(Extent {
                    start,
                    pages,
                    order: 0,
                    state: self.rest,
                    mapcount: 0,
                    optimised: false,
                });
            }
            if range.end > until {
                break;
            }
        }
        let extent = self.extents.next()?;
        self.at = extent.start + extent.pages;
        Some(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_nothing_is_said_of_is_free() {
        let extent = |start, pages| Extent {
            start,
            pages,
            order: 0,
            state: PageState::Slab,
            mapcount: 0,
            optimised: false,
        };
        // The second extent spans two ranges that touch.
        let memory = [1..10, 20..30, 30..40, 50..60];
        let extents = [extent(3, 4), extent(25, 10), extent(35, 5)];
        let covered = Covered::new(memory.into_iter(), extents.into_iter());
        let seen: Vec<_> = covered.map(|extent| (extent.start, extent.pages, extent.state)).collect();
        let (free, slab) = (PageState::Free, PageState::Slab);
        let expected = [
            (1, 2, free),
            (3, 4, slab),
            (7, 3, free),
            (20, 5, free),
            (25, 10, slab),
            (35, 5, slab),
            (50, 10, free),
        ];
        assert_eq!(seen, expected);
    }
}
