//! The class table: an entry a map page, and bytes for sections (128 MiB) and regions (64 GiB) that are uniform.
//!
//! # Explicit sections and regions
//!
//! The tables are backed on demand, so a byte may be written only where memory is known to be behind it. Two flags say
//! where that is:
//!
//! * An *explicit* section: all its map pages' entries are writable. In a section that is not, every map page's entry is 0:
//!   the section is *uniform*.
//! * An *explicit* region: all its sections' bytes are writable. In a region that is not, every section's byte is 0.
//!
//! Nothing takes a flag away again. So code that changes the classes of a range looks at the flags where it writes,
//! section by section: [`Classes::fill_uniform`] does for folded classes, and [`Classes::stretches`] tells those stretches
//! apart in which something is materialised (which only explicit sections can have). Everyone else who sets an entry has
//! called [`Classes::ensure`] for it, or has found it to be one of an explicit section.
//!
//! # Ordering
//!
//! Classes are stored with Release and loaded with Acquire: a CPU that sees `Mapped` also sees that memory is behind the
//! map page, and one that sees `Tail` sees it behind the head's.

use core::ops::Range;

use crate::geometry::{MapGeometry, MapPage, SECTIONS_PER_REGION};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::protocol::class::{BACKED, ClassEntry};
use crate::sync::{AtomicU8, AtomicU64, Ordering};
use crate::table::{Table, TableEntry, View};

/// Bits of a section's or region's byte: a class for everything below that says none itself (0: ask above), and
/// whether anything below may say one.
const UNIFORM_CLASS: u8 = 0x0f;
pub(super) const EXPLICIT: u8 = 0x80;
/// Of a section: a map page may have become foldable. A hint for the folder.
const FOLDABLE: u8 = 0x40;

/// Where a class is kept: one byte, or eight.
pub trait ClassCell: TableEntry {
    /// The entry, zero-extended.
    fn load(&self, order: Ordering) -> u64;
    /// Stores an entry that fits.
    fn store(&self, entry: u64, order: Ordering);
    /// Whether `current` was there, and `new` is now.
    fn swap_if(&self, current: u64, new: u64, success: Ordering) -> bool;
}

macro_rules! class_cells {
    ($($atomic:ty: $value:ty),*) => {$(
        impl ClassCell for $atomic {
            #[inline]
            fn load(&self, order: Ordering) -> u64 {
                <$atomic>::load(self, order).into()
            }
            #[inline]
            fn store(&self, entry: u64, order: Ordering) {
                <$atomic>::store(self, entry as $value, order);
            }
            #[inline]
            fn swap_if(&self, current: u64, new: u64, success: Ordering) -> bool {
                // Relaxed on failure: the caller looks again.
                self.compare_exchange(current as $value, new as $value, success, Ordering::Relaxed).is_ok()
            }
        }
    )*};
}
class_cells!(AtomicU8: u8, AtomicU64: u64);

/// How the classes of a kind of descriptors are kept.
pub trait Classed: MapGeometry {
    /// An entry of the class table.
    type Cell: ClassCell;
}

/// The class table: an entry a map page, a byte a section, a byte a region.
pub(crate) struct Classes<D: Classed, M> {
    pub(super) entries: Table<D::Cell, M>,
    pub(super) sections: Table<AtomicU8, M>,
    pub(super) regions: Table<AtomicU8, M>,
}

impl<D: Classed, M: Mapping> Classes<D, M> {
    pub(crate) fn new(
        entries: Table<D::Cell, M>,
        sections: Table<AtomicU8, M>,
        regions: Table<AtomicU8, M>,
    ) -> Self {
        Self { entries, sections, regions }
    }

    /// Map pages covered.
    pub(crate) fn len(&self) -> u64 {
        self.entries.len()
    }

    pub(crate) fn sections(&self) -> u64 {
        self.sections.len()
    }

    pub(crate) fn mappings(&self) -> [&M; 3] {
        [self.entries.mapping(), self.sections.mapping(), self.regions.mapping()]
    }

    /// The entry of `map_page`; absent beyond the end.
    #[inline]
    pub(crate) fn get(&self, map_page: MapPage) -> ClassEntry {
        match self.entries.get(map_page.0) {
            Some(entry) => self.said_by(ClassEntry(entry.load(Ordering::Acquire)), map_page),
            None => ClassEntry::ABSENT,
        }
    }

    /// What `entry`, which was read at `map_page`, says: where it is not set, the section's byte does.
    #[inline]
    pub(crate) fn said_by(&self, entry: ClassEntry, map_page: MapPage) -> ClassEntry {
        if entry == ClassEntry::UNSET { self.section_class(D::section_of(map_page)) } else { entry }
    }

    /// Whether `map_page` is `Mapped`.
    pub(crate) fn is_mapped(&self, map_page: MapPage) -> bool {
        self.entries
            .get(map_page.0)
            .is_some_and(|entry| entry.load(Ordering::Acquire) == ClassEntry::MAPPED.0)
    }

    /// The entries, for walkers to keep.
    pub(crate) fn view(&self) -> View<'_, D::Cell> {
        self.entries.view()
    }

    /// The class of every map page of `section` that has no entry of its own.
    pub(super) fn section_class(&self, section: u64) -> ClassEntry {
        for (table, index) in [(&self.sections, section), (&self.regions, section / SECTIONS_PER_REGION)] {
            let byte = table.get(index).map_or(0, |byte| byte.load(Ordering::Acquire));
            if byte & UNIFORM_CLASS != 0 {
                return ClassEntry(u64::from(byte & UNIFORM_CLASS));
            }
        }
        ClassEntry::ABSENT
    }

    /// Whether entries may be set in `section`. If not, it is uniform.
    pub(crate) fn is_explicit(&self, section: u64) -> bool {
        self.sections.get(section).is_some_and(|byte| byte.load(Ordering::Acquire) & EXPLICIT != 0)
    }

    /// Whether entries may be set in all of `map_pages`.
    fn are_explicit(&self, map_pages: &Range<u64>) -> bool {
        sections_of::<D>(map_pages).all(|section| self.is_explicit(section))
    }

    pub(super) fn is_explicit_region(&self, region: u64) -> bool {
        self.regions.get(region).is_some_and(|byte| byte.load(Ordering::Acquire) & EXPLICIT != 0)
    }

    /// Makes the entries of `map_pages` writable, and the sections and regions around them explicit.
    pub(crate) fn ensure(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        if map_pages.start >= map_pages.end {
            return Ok(());
        }
        if self.are_explicit(&map_pages) {
            return Ok(());
        }
        let sections = sections_of::<D>(&map_pages);
        let whole = sections.start * D::MAP_PAGES_PER_SECTION..sections.end * D::MAP_PAGES_PER_SECTION;
        self.entries.materialise(whole)?;
        self.ensure_sections(sections.clone())?;
        for section in sections {
            if let Some(byte) = self.sections.get(section) {
                // AcqRel: a CPU that sees the flag may write the entries.
                byte.fetch_or(EXPLICIT, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Makes the bytes of `sections` writable, and their regions explicit.
    pub(super) fn ensure_sections(&self, sections: Range<u64>) -> Result<(), OutOfMemory> {
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
    /// only an entry of its own can say.
    #[inline]
    pub(crate) fn set(&self, map_page: MapPage, class: ClassEntry) {
        debug_assert!(self.is_explicit(D::section_of(map_page)), "{map_page:?} has no entry of its own");
        if let Some(entry) = self.entries.get(map_page.0) {
            entry.store(class.0, Ordering::Release);
        }
    }

    /// Publishes `Mapped`, as [`set`](Self::set) does.
    pub(crate) fn set_mapped(&self, map_page: MapPage) {
        self.set(map_page, ClassEntry::MAPPED);
        if let Some(byte) = self.sections.get(D::section_of(map_page)) {
            // Changes nothing. AcqRel: a folder that takes the section's hint after this sees the class; one that took it
            // before has taken it for `hint_freed` too, when the pages are freed.
            byte.fetch_or(0, Ordering::AcqRel);
        }
    }

    /// Publishes `map_pages` as those of a folio: `tail` is its class. Those that have memory keep it for now, and say so.
    /// The caller owns them and has ensured them.
    #[inline]
    pub(crate) fn set_tails(&self, map_pages: Range<u64>, tail: ClassEntry) {
        debug_assert!(self.are_explicit(&map_pages), "{map_pages:?} have no entries of their own");
        for entry in self.entries.slice(map_pages) {
            // Relaxed: the owner's own entry.
            let backed = entry.load(Ordering::Relaxed) & BACKED;
            entry.store(tail.0 | backed, Ordering::Release);
        }
    }

    /// Publishes those of `map_pages` that have no memory as free; `backed` gets the others. The caller owns them and has
    /// ensured them.
    #[inline]
    pub(crate) fn set_free(&self, map_pages: Range<u64>, mut backed: impl FnMut(MapPage)) {
        debug_assert!(self.are_explicit(&map_pages), "{map_pages:?} have no entries of their own");
        for (map_page, entry) in (map_pages.start..).zip(self.entries.slice(map_pages)) {
            if entry.load(Ordering::Relaxed) & BACKED != 0 {
                backed(MapPage(map_page));
            } else {
                entry.store(ClassEntry::FREE.0, Ordering::Release);
            }
        }
    }

    /// `Free` → `Unfolding`, for one of the owners of its pages; whether it was this caller who did it.
    pub(crate) fn begin_unfold(&self, map_page: MapPage) -> bool {
        let Some(entry) = self.entries.get(map_page.0) else { return false };
        let now = entry.load(Ordering::Acquire);
        // Acquire: pairs with the Release of the folder (`set`).
        self.said_by(ClassEntry(now), map_page) == ClassEntry::FREE
            && entry.swap_if(now, ClassEntry::UNFOLDING.0, Ordering::Acquire)
    }

    // A section's hint says that there may be something to fold. It is set after the pages have become free, never before: a
    // folder takes the hint first and looks then, and what it finds taken it leaves to the next hint.

    /// Tells folders that the map page may have become foldable, whose page the caller has just given to the allocator. The
    /// usual path of every free: where the hint is there already, nothing is written.
    #[inline]
    pub(crate) fn hint_freed(&self, map_page: MapPage) {
        // A section that is not explicit has nothing materialised, and its byte may have nothing behind it either.
        if let Some(byte) = self.sections.get(D::section_of(map_page))
            // Relaxed suffices. A folder that took the hint and then found the page taken wrote its row or lane
            // (`Frames::is_owned`). The free has read that, so this load sees that the hint is gone.
            && byte.load(Ordering::Relaxed) & (EXPLICIT | FOLDABLE) == EXPLICIT
        {
            byte.fetch_or(FOLDABLE, Ordering::Release);
        }
    }

    /// Tells folders that some of `map_pages` may have become foldable, in whichever way.
    pub(crate) fn hint_foldable(&self, map_pages: &Range<u64>) {
        let sections = if map_pages.is_empty() { 0..0 } else { sections_of::<D>(map_pages) };
        for byte in sections.filter_map(|section| self.sections.get(section)) {
            if byte.load(Ordering::Relaxed) & EXPLICIT != 0 {
                // Release: pairs with `take_foldable_hint`. Written even where the hint is there: a folder that takes it sees
                // what was done before.
                byte.fetch_or(FOLDABLE, Ordering::Release);
            }
        }
    }

    /// Takes the hint of `section`: whether there was one.
    pub(crate) fn take_foldable_hint(&self, section: u64) -> bool {
        self.sections.get(section).is_some_and(|byte| {
            // Acquire: pairs with the Release of those who set it.
            byte.load(Ordering::Relaxed) & FOLDABLE != 0
                && byte.fetch_and(!FOLDABLE, Ordering::Acquire) & FOLDABLE != 0
        })
    }
}

/// The sections that `map_pages` lie in.
fn sections_of<D: Classed>(map_pages: &Range<u64>) -> Range<u64> {
    map_pages.start / D::MAP_PAGES_PER_SECTION..map_pages.end.div_ceil(D::MAP_PAGES_PER_SECTION)
}
