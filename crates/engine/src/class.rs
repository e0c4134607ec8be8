//! The class table: one byte a map page, and bytes for sections (128 MiB) and regions (64 GiB) that are uniform.
//!
//! A byte of 0 means "ask above": a map page's byte asks its section's, and that its region's, where 0 means `Absent`. So
//! memory that is all alike has no class bytes, and a petabyte of it is 16 KiB of region bytes.
//!
//! # States of a class byte
//!
//! | class | backed | its pages | a walker gets |
//! |---|---|---|---|
//! | 0 | | ask above | |
//! | `Absent` | no | no memory was ever added, or it was removed | nothing |
//! | `Offline` | no | memory that is not ours now (unplugged, fake-offline) | nothing |
//! | `Free` | no | all free | nothing |
//! | `Unfolding` | in the making | being unfolded by the owner of one of its pages | nothing |
//! | `Mapped` | yes | what the descriptors say | what the descriptors say |
//! | `Tail(order)` | no | tails of the folio at the page number rounded down to `order` | that folio |
//!
//! A folded class may carry [`BACKED`]: it has been published, but its descriptors' memory has not been taken away yet.
//! Walkers do not care. Counting the bit over the table counts the materialised map pages.
//!
//! # Explicit sections and regions
//!
//! The tables are backed on demand, so a byte may be written only where memory is known to be behind it. Two flags say
//! where that is:
//!
//! * An *explicit* section: all its map pages' bytes are writable. In a section that is not, every map page's byte is 0:
//!   the section is *uniform*.
//! * An *explicit* region: all its sections' bytes are writable. In a region that is not, every section's byte is 0.
//!
//! Nothing takes a flag away again. So whoever may change the classes of a range looks at the flags where it writes,
//! section by section: [`Classes::fill_uniform`] does for folded classes, and [`Classes::stretches`] tells those stretches
//! apart in which something is materialised (which only explicit sections can have). Everyone else who sets a byte has
//! called [`Classes::ensure`] for it, or has found the byte to be one of an explicit section.
//!
//! # Ordering
//!
//! Classes are stored with Release and loaded with Acquire: who sees `Mapped` also sees that memory is behind the map
//! page, and who sees `Tail` sees it behind the head's.

use core::ops::Range;

use crate::geometry::{MAP_PAGES_PER_SECTION, MapPage, Order, SECTIONS_PER_REGION};
use crate::heap::OutOfMemory;
use crate::platform::Mapping;
use crate::sync::{AtomicU8, Ordering};
use crate::table::{Table, View};

/// What a map page holds, as tools and tests see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No memory here: never added, or removed.
    Absent,
    /// Memory exists but is not ours: unplugged, fake-offline.
    Offline,
    /// Free; only the allocator knows.
    Free,
    /// Tails of the folio whose head is the page number rounded down to the order.
    Tail(Order),
    /// Materialised: each descriptor speaks for itself.
    Mapped,
}

impl Class {
    /// A short name for tables and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Absent => "Absent",
            Class::Offline => "Offline",
            Class::Free => "Free",
            Class::Tail(_) => "Tail",
            Class::Mapped => "Mapped",
        }
    }
}

/// A class byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClassByte(pub(crate) u8);

/// Memory is behind the map page.
pub(crate) const BACKED: u8 = 0x20;
const TAIL: u8 = 0x80;

impl ClassByte {
    /// Not set: the section's byte stands for it.
    pub(crate) const UNSET: ClassByte = ClassByte(0);
    pub(crate) const ABSENT: ClassByte = ClassByte(1);
    pub(crate) const OFFLINE: ClassByte = ClassByte(2);
    pub(crate) const FREE: ClassByte = ClassByte(3);
    pub(crate) const UNFOLDING: ClassByte = ClassByte(4);
    pub(crate) const MAPPED: ClassByte = ClassByte(5 | BACKED);

    pub(crate) const fn tail(order: Order) -> ClassByte {
        ClassByte(TAIL | order.get() as u8)
    }
    #[inline]
    pub(crate) const fn is_backed(self) -> bool {
        self.0 & BACKED != 0
    }
    pub(crate) const fn backed(self) -> ClassByte {
        ClassByte(self.0 | BACKED)
    }
    pub(crate) const fn unbacked(self) -> ClassByte {
        ClassByte(self.0 & !BACKED)
    }
    /// The order, if this is `Tail`.
    #[inline]
    pub(crate) const fn tail_order(self) -> Option<Order> {
        if self.0 & TAIL != 0 { Some(Order::from_bits(self.0 as u64)) } else { None }
    }
    /// The class, with `Unfolding` shown as the `Free` it still is to everyone else.
    pub(crate) const fn class(self) -> Class {
        if let Some(order) = self.tail_order() {
            return Class::Tail(order);
        }
        match self.unbacked().0 {
            2 => Class::Offline,
            3 | 4 => Class::Free,
            5 => Class::Mapped,
            _ => Class::Absent,
        }
    }
}

/// Bits of a section's or region's byte: a class for everything below that says none itself (0: ask above), and
/// whether anything below may say one.
const UNIFORM_CLASS: u8 = 0x0f;
const EXPLICIT: u8 = 0x80;
/// Of a section: a map page may have become foldable. A hint for the folder.
const FOLDABLE: u8 = 0x40;

/// The class table: a byte a map page, a byte a section, a byte a region.
pub(crate) struct Classes<M> {
    bytes: Table<AtomicU8, M>,
    sections: Table<AtomicU8, M>,
    regions: Table<AtomicU8, M>,
}

impl<M: Mapping> Classes<M> {
    pub(crate) fn new(
        bytes: Table<AtomicU8, M>,
        sections: Table<AtomicU8, M>,
        regions: Table<AtomicU8, M>,
    ) -> Self {
        Self { bytes, sections, regions }
    }

    /// Map pages covered.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len()
    }

    pub(crate) fn sections(&self) -> u64 {
        self.sections.len()
    }

    pub(crate) fn mappings(&self) -> [&M; 3] {
        [self.bytes.mapping(), self.sections.mapping(), self.regions.mapping()]
    }

    /// The byte of `map_page`; absent beyond the end.
    #[inline]
    pub(crate) fn get(&self, map_page: MapPage) -> ClassByte {
        match self.bytes.get(map_page.0) {
            Some(byte) => match ClassByte(byte.load(Ordering::Acquire)) {
                ClassByte::UNSET => self.section_class(map_page.section()),
                byte => byte,
            },
            None => ClassByte::ABSENT,
        }
    }

    /// Whether `map_page` is `Mapped`.
    pub(crate) fn is_mapped(&self, map_page: MapPage) -> bool {
        self.bytes.get(map_page.0).is_some_and(|byte| byte.load(Ordering::Acquire) == ClassByte::MAPPED.0)
    }

    /// The class bytes, for walkers to keep.
    pub(crate) fn view(&self) -> View<'_, AtomicU8> {
        self.bytes.view()
    }

    /// The class of every map page of `section` that has no byte of its own.
    fn section_class(&self, section: u64) -> ClassByte {
        for (table, index) in [(&self.sections, section), (&self.regions, section / SECTIONS_PER_REGION)] {
            let byte = table.get(index).map_or(0, |byte| byte.load(Ordering::Acquire));
            if byte & UNIFORM_CLASS != 0 {
                return ClassByte(byte & UNIFORM_CLASS);
            }
        }
        ClassByte::ABSENT
    }

    /// Whether class bytes may be set in `section`. If not, it is uniform.
    pub(crate) fn is_explicit(&self, section: u64) -> bool {
        self.sections.get(section).is_some_and(|byte| byte.load(Ordering::Acquire) & EXPLICIT != 0)
    }

    /// Whether class bytes may be set in all of `map_pages`.
    fn are_explicit(&self, map_pages: &Range<u64>) -> bool {
        sections_of(map_pages).all(|section| self.is_explicit(section))
    }

    fn is_explicit_region(&self, region: u64) -> bool {
        self.regions.get(region).is_some_and(|byte| byte.load(Ordering::Acquire) & EXPLICIT != 0)
    }

    /// If `section` is uniform: its class, and the first section that may not be like it. Whole regions go by at once.
    pub(crate) fn uniform(&self, section: u64) -> Option<(ClassByte, u64)> {
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
        let mut bytes = section * MAP_PAGES_PER_SECTION..(section + 1) * MAP_PAGES_PER_SECTION;
        // Acquire, as in `get`. Nothing is set meanwhile if the caller keeps its promise.
        bytes.all(|index| {
            self.bytes.get(index).is_none_or(|byte| byte.load(Ordering::Acquire) == ClassByte::UNSET.0)
        })
    }

    /// Makes the bytes of `map_pages` writable, and the sections and regions around them explicit.
    pub(crate) fn ensure(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        if map_pages.start >= map_pages.end {
            return Ok(());
        }
        if self.are_explicit(&map_pages) {
            return Ok(());
        }
        let sections = sections_of(&map_pages);
        let whole = sections.start * MAP_PAGES_PER_SECTION..sections.end * MAP_PAGES_PER_SECTION;
        self.bytes.materialise(whole)?;
        self.ensure_sections(sections.clone())?;
        for section in sections {
            if let Some(byte) = self.sections.get(section) {
                // AcqRel: who sees the flag may write the bytes.
                byte.fetch_or(EXPLICIT, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Makes the bytes of `sections` writable, and their regions explicit.
    fn ensure_sections(&self, sections: Range<u64>) -> Result<(), OutOfMemory> {
        if sections.start >= sections.end {
            return Ok(());
        }
        let regions = sections.start / SECTIONS_PER_REGION..sections.end.div_ceil(SECTIONS_PER_REGION);
        if regions.clone().all(|region| self.is_explicit_region(region)) {
            return Ok(());
        }
        // Whole regions, which is what the flag stands for.
        self.sections.materialise(regions.start * SECTIONS_PER_REGION..regions.end * SECTIONS_PER_REGION)?;
        self.regions.materialise(regions.clone())?;
        for region in regions {
            if let Some(byte) = self.regions.get(region) {
                // AcqRel: who sees the flag may write the bytes.
                byte.fetch_or(EXPLICIT, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Publishes a class. The caller owns every page of the map page (or, for `Mapped` out of `Unfolding`, one of
    /// them), and its section is explicit: the caller has called [`ensure`](Self::ensure), or found a class there that
    /// only a byte of its own can say.
    #[inline]
    pub(crate) fn set(&self, map_page: MapPage, class: ClassByte) {
        debug_assert!(self.is_explicit(map_page.section()), "{map_page:?} has no class byte of its own");
        if let Some(byte) = self.bytes.get(map_page.0) {
            byte.store(class.0, Ordering::Release);
        }
    }

    /// Publishes `map_pages` as tails of a folio of `order`. Those that have memory keep it for now, and say so. The caller
    /// owns them and has ensured them.
    #[inline]
    pub(crate) fn set_tails(&self, map_pages: Range<u64>, order: Order) {
        debug_assert!(self.are_explicit(&map_pages), "{map_pages:?} have no class bytes of their own");
        for byte in self.bytes.slice(map_pages) {
            // Relaxed: the owner's own byte.
            let backed = byte.load(Ordering::Relaxed) & BACKED;
            byte.store(ClassByte::tail(order).0 | backed, Ordering::Release);
        }
    }

    /// Publishes those of `map_pages` that have no memory as free; `backed` gets the others. The caller owns them and has
    /// ensured them.
    #[inline]
    pub(crate) fn set_free(&self, map_pages: Range<u64>, mut backed: impl FnMut(MapPage)) {
        debug_assert!(self.are_explicit(&map_pages), "{map_pages:?} have no class bytes of their own");
        for (map_page, byte) in (map_pages.start..).zip(self.bytes.slice(map_pages)) {
            if byte.load(Ordering::Relaxed) & BACKED != 0 {
                backed(MapPage(map_page));
            } else {
                byte.store(ClassByte::FREE.0, Ordering::Release);
            }
        }
    }

    /// `Free` → `Unfolding`, for one of the owners of its pages; whether it was this caller who did it.
    pub(crate) fn begin_unfold(&self, map_page: MapPage) -> bool {
        let Some(byte) = self.bytes.get(map_page.0) else { return false };
        let now = byte.load(Ordering::Acquire);
        let is_free = match ClassByte(now) {
            ClassByte::UNSET => self.section_class(map_page.section()) == ClassByte::FREE,
            class => class == ClassByte::FREE,
        };
        let unfolding = ClassByte::UNFOLDING.0;
        // Acquire: pairs with the Release of whoever folded it. Relaxed on failure: the caller looks again.
        is_free && byte.compare_exchange(now, unfolding, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Makes sure that [`fill_uniform`](Self::fill_uniform) of `map_pages`, or of whole sections of it, has all bytes it
    /// may write.
    pub(crate) fn prepare_uniform(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        let (before, sections, after) = parts(map_pages, MAP_PAGES_PER_SECTION);
        let mut next = sections.start;
        self.ensure(before)?;
        self.ensure(after)?;
        while next < sections.end {
            let step = self.uniform_step(next, sections.end);
            match step {
                Step::Region(region) => self.regions.materialise(region..region + 1)?,
                Step::Section(section) => self.ensure_sections(section..section + 1)?,
            }
            next = step.end();
        }
        Ok(())
    }

    /// Gives all of `map_pages`, none of which has memory behind it, the same folded class: whole regions by one byte,
    /// whole sections by one, the rest map page by map page. The caller owns all of it, and nobody else changes classes
    /// there meanwhile. It was prepared: by itself, or as part of a range in whose other part a section is explicit
    /// (then its region is as well).
    pub(crate) fn fill_uniform(&self, map_pages: Range<u64>, class: ClassByte) {
        let (before, sections, after) = parts(map_pages, MAP_PAGES_PER_SECTION);
        for map_page in before.chain(after) {
            self.set(MapPage(map_page), class);
        }
        let mut next = sections.start;
        while next < sections.end {
            let step = self.uniform_step(next, sections.end);
            match step {
                Step::Region(region) => {
                    if let Some(byte) = self.regions.get(region) {
                        byte.store(class.0, Ordering::Release);
                    }
                }
                Step::Section(section) => self.set_section(section, class),
            }
            next = step.end();
        }
    }

    /// `map_pages` in stretches: those in which no map page has memory behind it, as long as they go, and between them
    /// those in which some may have (then each lies in one section, which is explicit). Each comes with whether one has.
    pub(crate) fn stretches(&self, map_pages: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let mut next = map_pages.start;
        let in_section = move |section: u64| {
            let first = section * MAP_PAGES_PER_SECTION;
            first.max(map_pages.start)..(first + MAP_PAGES_PER_SECTION).min(map_pages.end)
        };
        let has_backed = move |part: Range<u64>| {
            self.is_explicit(MapPage(part.start).section())
                && part.map(MapPage).any(|map_page| self.get(map_page).is_backed())
        };
        core::iter::from_fn(move || {
            let start = next;
            while next < map_pages.end {
                let section = MapPage(next).section();
                if let Some((_, after)) = self.uniform(section) {
                    next = (after * MAP_PAGES_PER_SECTION).min(map_pages.end);
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
    fn uniform_step(&self, section: u64, end: u64) -> Step {
        let region = section / SECTIONS_PER_REGION;
        let is_whole =
            section.is_multiple_of(SECTIONS_PER_REGION) && section + SECTIONS_PER_REGION <= end.max(section);
        if is_whole && !self.is_explicit_region(region) {
            Step::Region(region)
        } else {
            Step::Section(section)
        }
    }

    fn set_section(&self, section: u64, class: ClassByte) {
        debug_assert!(
            self.is_explicit_region(section / SECTIONS_PER_REGION),
            "section {section} has no byte of its own"
        );
        let Some(byte) = self.sections.get(section) else { return };
        let bytes = section * MAP_PAGES_PER_SECTION..(section + 1) * MAP_PAGES_PER_SECTION;
        if byte.load(Ordering::Acquire) & EXPLICIT == 0 {
            byte.store(class.0, Ordering::Release);
            return;
        }
        // Every map page says `class` itself, then the section says it for all, then the bytes fall silent. A reader
        // that meets a silent byte (Acquire) sees the section's byte that was stored before it.
        for map_page in bytes.clone() {
            self.set(MapPage(map_page), class);
        }
        // A swap, since others set the folder's hint in the same byte (and loom lets their read-modify-write overtake a
        // plain store). A hint that gets lost here is none: nothing is materialised.
        byte.swap(class.0 | EXPLICIT, Ordering::Release);
        for map_page in bytes {
            self.set(MapPage(map_page), ClassByte::UNSET);
        }
    }

    /// Tells the folder that map pages in the section of `map_page` may have become foldable.
    #[inline]
    pub(crate) fn hint_foldable(&self, map_page: MapPage) {
        self.hint_section(map_page.section());
    }

    /// As [`hint_foldable`](Self::hint_foldable), for all sections that `map_pages` lie in.
    pub(crate) fn hint_foldable_range(&self, map_pages: &Range<u64>) {
        if map_pages.start < map_pages.end {
            sections_of(map_pages).for_each(|section| self.hint_section(section));
        }
    }

    #[inline]
    fn hint_section(&self, section: u64) {
        // A section that is not explicit has nothing materialised, and its byte may have nothing behind it either.
        if let Some(byte) = self.sections.get(section)
            && byte.load(Ordering::Relaxed) & (EXPLICIT | FOLDABLE) == EXPLICIT
        {
            byte.fetch_or(FOLDABLE, Ordering::Release);
        }
    }

    /// Takes the hint of `section`: whether there was one.
    pub(crate) fn take_foldable_hint(&self, section: u64) -> bool {
        self.sections.get(section).is_some_and(|byte| {
            byte.load(Ordering::Relaxed) & FOLDABLE != 0
                && byte.fetch_and(!FOLDABLE, Ordering::Acquire) & FOLDABLE != 0
        })
    }
}

/// The sections that `map_pages` lie in.
fn sections_of(map_pages: &Range<u64>) -> Range<u64> {
    map_pages.start / MAP_PAGES_PER_SECTION..map_pages.end.div_ceil(MAP_PAGES_PER_SECTION)
}

/// A stretch that one byte stands for.
#[derive(Clone, Copy)]
enum Step {
    Region(u64),
    Section(u64),
}

impl Step {
    /// The section after it.
    const fn end(self) -> u64 {
        match self {
            Step::Region(region) => (region + 1) * SECTIONS_PER_REGION,
            Step::Section(section) => section + 1,
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

    #[test]
    fn bytes_and_classes_agree() {
        let order = Order::new(9).unwrap();
        for (byte, class) in [
            (ClassByte::ABSENT, Class::Absent),
            (ClassByte::OFFLINE, Class::Offline),
            (ClassByte::FREE, Class::Free),
            (ClassByte::UNFOLDING, Class::Free),
            (ClassByte::MAPPED, Class::Mapped),
            (ClassByte::tail(order), Class::Tail(order)),
            (ClassByte::tail(order).backed(), Class::Tail(order)),
        ] {
            assert_eq!(byte.class(), class);
            assert_ne!(byte, ClassByte::UNSET);
        }
        assert!(ClassByte::MAPPED.is_backed() && !ClassByte::FREE.is_backed());
        assert_eq!(ClassByte::tail(order).backed().unbacked(), ClassByte::tail(order));
    }
}
