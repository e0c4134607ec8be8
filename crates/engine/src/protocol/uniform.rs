//! Stretches of one class: whole sections by one byte, whole regions by one.

use core::ops::Range;

use crate::geometry::{MapPage, SECTIONS_PER_REGION};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::protocol::class::ClassEntry;
use crate::protocol::classes::{ClassCell, Classed, Classes};

use super::classes::EXPLICIT;
use crate::sync::Ordering;

impl<D: Classed, M: Mapping> Classes<D, M> {
    /// If `section` is uniform: its class, and the first section that may not be like it. Whole regions go by at once.
    pub(crate) fn uniform(&self, section: u64) -> Option<(ClassEntry, u64)> {
        if self.is_explicit(section) {
            return None;
        }
        let region = section / SECTIONS_PER_REGION;
        let next =
            if self.is_explicit_region(region) { section + 1 } else { (region + 1) * SECTIONS_PER_REGION };
        Some((self.section_class(section), next))
    }

    /// Whether no map page of a uniform section has a byte of its own, as it must be.
    pub(crate) fn is_silent(&self, section: u64) -> bool {
        let mut bytes = section * D::MAP_PAGES_PER_SECTION..(section + 1) * D::MAP_PAGES_PER_SECTION;
        // Acquire, as in `get`. Nothing is set meanwhile if the caller keeps its promise.
        bytes.all(|index| {
            self.entries.get(index).is_none_or(|byte| byte.load(Ordering::Acquire) == ClassEntry::UNSET.0)
        })
    }

    /// Makes sure that [`fill_uniform`](Self::fill_uniform) of `map_pages`, or of whole sections of it, has all bytes it
    /// may write.
    pub(crate) fn prepare_uniform(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        let (before, sections, after) = parts(map_pages, D::MAP_PAGES_PER_SECTION);
        let mut next = sections.start;
        self.ensure(before)?;
        self.ensure(after)?;
        while next < sections.end {
            let step = self.uniform_step(next, sections.end);
            match step {
                Stretch::Region(region) => self.regions.materialise(region..region + 1)?,
                Stretch::Section(section) => self.ensure_sections(section..section + 1)?,
            }
            next = step.end();
        }
        Ok(())
    }

    /// Gives all of `map_pages`, none of which has memory behind it, the same folded class: whole regions by one byte,
    /// whole sections by one, the rest map page by map page. The caller owns all of it, and no other thread changes classes
    /// there meanwhile. It was prepared: by itself, or as part of a range in whose other part a section is explicit
    /// (then its region is as well).
    pub(crate) fn fill_uniform(&self, map_pages: Range<u64>, class: ClassEntry) {
        let (before, sections, after) = parts(map_pages, D::MAP_PAGES_PER_SECTION);
        for map_page in before.chain(after) {
            self.set(MapPage(map_page), class);
        }
        let mut next = sections.start;
        while next < sections.end {
            let step = self.uniform_step(next, sections.end);
            match step {
                Stretch::Region(region) => {
                    if let Some(byte) = self.regions.get(region) {
                        byte.store(class.0 as u8, Ordering::Release);
                    }
                }
                Stretch::Section(section) => self.set_section(section, class),
            }
            next = step.end();
        }
    }

    /// `map_pages` in stretches: those in which no map page has memory behind it, as long as they go, and between them
    /// those in which some may have (then each lies in one section, which is explicit). Each comes with whether one has.
    pub(crate) fn stretches(&self, map_pages: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let mut next = map_pages.start;
        let in_section = move |section: u64| {
            let first = section * D::MAP_PAGES_PER_SECTION;
            first.max(map_pages.start)..(first + D::MAP_PAGES_PER_SECTION).min(map_pages.end)
        };
        let has_backed = move |part: Range<u64>| {
            self.is_explicit(D::section_of(MapPage(part.start)))
                && part.map(MapPage).any(|map_page| self.get(map_page).is_backed())
        };
        core::iter::from_fn(move || {
            let start = next;
            while next < map_pages.end {
                let section = D::section_of(MapPage(next));
                if let Some((_, after)) = self.uniform(section) {
                    next = (after * D::MAP_PAGES_PER_SECTION).min(map_pages.end);
                    continue;
                }
                let part = in_section(section);
                if has_backed(part.clone()) {
                    if start < part.start {
                        // What comes before it, first.
                        break;
                    }
                    next = part.end;
                    return Some((part, true));
                }
                next = part.end;
            }
            (start < next).then_some((start..next, false))
        })
    }

    /// What can be set at once from `section` on.
    fn uniform_step(&self, section: u64, end: u64) -> Stretch {
        let region = section / SECTIONS_PER_REGION;
        let is_whole =
            section.is_multiple_of(SECTIONS_PER_REGION) && section + SECTIONS_PER_REGION <= end.max(section);
        if is_whole && !self.is_explicit_region(region) {
            Stretch::Region(region)
        } else {
            Stretch::Section(section)
        }
    }

    fn set_section(&self, section: u64, class: ClassEntry) {
        debug_assert!(
            self.is_explicit_region(section / SECTIONS_PER_REGION),
            "section {section} has no byte of its own"
        );
        let Some(byte) = self.sections.get(section) else { return };
        let bytes = section * D::MAP_PAGES_PER_SECTION..(section + 1) * D::MAP_PAGES_PER_SECTION;
        if byte.load(Ordering::Acquire) & EXPLICIT == 0 {
            byte.store(class.0 as u8, Ordering::Release);
            return;
        }
        // Every map page says `class` itself, then the section says it for all, then the bytes fall silent. A reader
        // that meets a silent byte (Acquire) sees the section's byte that was stored before it.
        for map_page in bytes.clone() {
            self.set(MapPage(map_page), class);
        }
        // A swap, since others set the folder's hint in the same byte (and loom lets their read-modify-write overtake a
        // plain store). A hint that gets lost here is none: nothing is materialised.
        byte.swap(class.0 as u8 | EXPLICIT, Ordering::Release);
        for map_page in bytes {
            self.set(MapPage(map_page), ClassEntry::UNSET);
        }
    }
}

/// A stretch that one byte stands for.
#[derive(Clone, Copy)]
enum Stretch {
    Region(u64),
    Section(u64),
}

impl Stretch {
    /// The section after it.
    const fn end(self) -> u64 {
        match self {
            Stretch::Region(region) => (region + 1) * SECTIONS_PER_REGION,
            Stretch::Section(section) => section + 1,
        }
    }
}

/// A range cut at multiples of `unit`: what comes before the first whole unit, the whole units (by number), and what
/// comes after the last. Without a whole unit all of it comes before.
fn parts(range: Range<u64>, unit: u64) -> (Range<u64>, Range<u64>, Range<u64>) {
    let units = range.start.div_ceil(unit)..range.end / unit;
    if units.start >= units.end {
        return (range, 0..0, 0..0);
    }
    let (start, end) = (units.start * unit, units.end * unit);
    (range.start..start, units, end..range.end)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_whole_units() {
        assert_eq!(parts(3..35, 10), (3..10, 1..3, 30..35));
        assert_eq!(parts(10..30, 10), (10..10, 1..3, 30..30));
        assert_eq!(parts(3..9, 10), (3..9, 0..0, 0..0));
        assert_eq!(parts(3..15, 10), (3..15, 0..0, 0..0));
    }
}
