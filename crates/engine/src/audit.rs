//! Every promise between classes, descriptors and allocator, checked while nothing moves.

use core::fmt;
use core::ops::Range;

use crate::descriptors::seam::DescriptorMap;
use crate::engine::Engine;
use crate::frames::check::FrameMisfit;
use crate::geometry::{MapGeometry, MapPage, PAGES_PER_ROW, PAGES_PER_SECTION, Pfn, Row};
use crate::page::PageKind;
use crate::platform::Platform;
use crate::protocol::class::Class;
use crate::zone::Zone;

/// What a sound machine consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Folios, shared and frozen.
    pub folios: u64,
    /// References on all of them.
    pub refs: u64,
    /// Pages of folios by kind, in the order of [`PageKind::ALL`].
    pub pages_by_kind: [u64; PageKind::ALL.len()],
    /// Free pages.
    pub free_pages: u64,
    /// Poisoned pages that were kept back.
    pub withheld_pages: u64,
    /// Pages without memory in partly present map pages.
    pub holes: u64,
    /// Map pages with memory behind them.
    pub materialised: u64,
    /// Of these, those that are published as folded (their folding was not committed, or was refused).
    pub published: u64,
}

/// The first thing that was not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A folio's head and the class or descriptor of one of its pages contradict each other.
    Orphan {
        /// The page.
        pfn: Pfn,
        /// The class of its map page.
        class: Class,
    },
    /// A page is in a folio, but the allocator thinks it is free.
    InUseButFree {
        /// The page.
        pfn: Pfn,
    },
    /// A page is taken from the allocator, but is in no folio, not withheld and no hole: it leaked.
    Leaked {
        /// Pages that leaked, in all.
        pages: u64,
        /// One of them.
        near: Pfn,
    },
    /// A page is marked as kept back because it is broken, but it is not broken, or free, or in a folio, or gone.
    Withheld {
        /// The page.
        pfn: Pfn,
    },
    /// The number of pages that are marked as kept back is not the number of marks.
    WithheldMiscounted {
        /// By the counter.
        counted: u64,
        /// Marks found where memory is.
        found: u64,
    },
    /// A free page has a descriptor that is not zero.
    Dirty {
        /// The page.
        pfn: Pfn,
    },
    /// A section has class bytes that were set before it had memory for them.
    Silent {
        /// Its first page.
        pfn: Pfn,
    },
    /// The count of materialised map pages is not the number of classes that say so.
    Miscounted {
        /// By the counter.
        counted: u64,
        /// By the class table.
        found: u64,
    },
    /// Where descriptors are objects: objects in use are not one a folio.
    Objects {
        /// By their allocator.
        counted: u64,
        /// Folios.
        found: u64,
    },
    /// The allocator contradicts itself.
    Frames(FrameMisfit),
    /// No contradiction: there is no memory to register a reader, and nothing was looked at. Free some and retry.
    OutOfMemory,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Orphan { pfn, class } => {
                write!(f, "{pfn}: class {} and the descriptors contradict each other", class.name())
            }
            Violation::InUseButFree { pfn } => write!(f, "{pfn}: in a folio, but free for the allocator"),
            Violation::Leaked { pages, near } => write!(f, "{pages} pages leaked, one near {near}"),
            Violation::Withheld { pfn } => {
                write!(
                    f,
                    "{pfn}: marked as kept back, but it is not broken, or not the allocator's to keep back"
                )
            }
            Violation::WithheldMiscounted { counted, found } => {
                write!(f, "{counted} pages counted as kept back, {found} found")
            }
            Violation::Dirty { pfn } => write!(f, "{pfn}: free, but its descriptor is not zero"),
            Violation::Silent { pfn } => {
                write!(f, "the section at {pfn} speaks for its pages, but one of them has a class of its own")
            }
            Violation::Miscounted { counted, found } => {
                write!(f, "{counted} map pages counted as materialised, {found} found")
            }
            Violation::Objects { counted, found } => {
                write!(f, "{counted} objects in use for {found} folios")
            }
            Violation::Frames(misfit) => write!(f, "allocator: {misfit:?}"),
            Violation::OutOfMemory => f.write_str("no memory to look at anything: free some and retry"),
        }
    }
}
impl core::error::Error for Violation {}

impl<P: Platform> Engine<P> {
    /// Checks every page. Nothing should move meanwhile: no walker, no folder, no allocation; handles may exist. (If
    /// something does, the answer means nothing, and no more happens.)
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn audit(&self) -> Result<Audit, Violation> {
        let reader = self.rcu.reader().map_err(|_| Violation::OutOfMemory)?;
        for zone in Zone::ALL {
            self.zone(zone).check().map_err(Violation::Frames)?;
        }
        let mut audit = Audit { holes: self.map.holes.pages(), ..Audit::default() };
        // Taken pages that are in no folio, and one of them.
        let (mut leaked, mut near) = (0, Pfn(0));
        let mut section = 0;
        while section < self.map.classes.sections() {
            let per_section = P::Descriptors::MAP_PAGES_PER_SECTION;
            let first = section * per_section;
            if let Some((class, next)) = self.map.classes.uniform(section) {
                let next = next.min(self.map.classes.sections());
                if next == section + 1 && !self.map.classes.is_silent(section) {
                    return Err(Violation::Silent { pfn: self.map.first_pfn(MapPage(first)) });
                }
                let pages = (next - section) * PAGES_PER_SECTION;
                let is_free = class.class() == Class::Free && self.is_free(section..next);
                if is_free || class.class() != Class::Free {
                    audit.free_pages += if is_free { pages } else { 0 };
                    section = next;
                    continue;
                }
            }
            section += 1;
            for map_page in (first..first + per_section).map(MapPage) {
                // Nothing is folded while it is looked at.
                let _section = reader.section();
                let (class, backed) = self.map.class(map_page);
                audit.materialised += u64::from(backed);
                audit.published += u64::from(backed && class != Class::Mapped);
                let is_gone = matches!(class, Class::Absent | Class::Offline);
                for row in Row::covering(&self.map.pages_of(map_page)) {
                    let taken = self.frames(row.first_pfn()).taken_mask(row);
                    let owned = self.audit_row(row, class, taken, &mut audit)?;
                    let withheld = self.map.withheld.mask(row);
                    let nobodys = if is_gone { 0 } else { taken & !owned & self.map.poison.mask(row) };
                    if withheld & !nobodys != 0 {
                        let bit = u64::from((withheld & !nobodys).trailing_zeros());
                        return Err(Violation::Withheld { pfn: row.first_pfn().plus(bit) });
                    }
                    audit.withheld_pages += u64::from(withheld.count_ones());
                    if is_gone {
                        continue;
                    }
                    audit.free_pages += u64::from((!taken & Row::ALL).count_ones());
                    let ownerless = taken & !owned & !self.never_free(row);
                    leaked += u64::from(ownerless.count_ones());
                    if ownerless != 0 {
                        near = row.first_pfn().plus(u64::from(ownerless.trailing_zeros()));
                    }
                }
            }
        }
        if audit.withheld_pages != self.map.withheld.pages() {
            let (counted, found) = (self.map.withheld.pages(), audit.withheld_pages);
            return Err(Violation::WithheldMiscounted { counted, found });
        }
        if leaked != 0 {
            return Err(Violation::Leaked { pages: leaked, near });
        }
        if audit.materialised != self.materialised_map_pages() {
            let (counted, found) = (self.materialised_map_pages(), audit.materialised);
            return Err(Violation::Miscounted { counted, found });
        }
        match self.map.objects() {
            Some(counted) if counted != audit.folios => {
                Err(Violation::Objects { counted, found: audit.folios })
            }
            _ => Ok(audit),
        }
    }

    /// Whether all pages of `sections` are free for their zones' allocators.
    fn is_free(&self, sections: Range<u64>) -> bool {
        // Without memory blocks all of it is the normal zone's, and GiB can be looked at at once.
        let first = |section: u64| Pfn(section * PAGES_PER_SECTION);
        if self.records.is_empty() {
            let pages = (sections.end - sections.start) * PAGES_PER_SECTION;
            return self.zone(Zone::Normal).is_free(first(sections.start), pages);
        }
        sections
            .into_iter()
            .all(|section| self.zone(self.records.zone(section)).is_free(first(section), PAGES_PER_SECTION))
    }

    /// Checks one row of a map page. Returns its pages that are in folios.
    fn audit_row(&self, row: Row, class: Class, taken: u64, audit: &mut Audit) -> Result<u64, Violation> {
        let first = row.first_pfn();
        if class.miss().is_some() {
            return Ok(0);
        }
        let mut owned = 0;
        for bit in 0..PAGES_PER_ROW {
            let pfn = first.plus(bit);
            let folio = self.map.folio_of(pfn, class).map_err(|_| Violation::Orphan { pfn, class })?;
            let Some((head, state)) = folio else {
                if self.map.peek(pfn).state.is_head() {
                    return Err(Violation::Dirty { pfn });
                }
                continue;
            };
            if head == pfn {
                audit.folios += 1;
                audit.refs += u64::from(state.refs());
                if let Some(pages) = audit.pages_by_kind.get_mut(state.kind().index()) {
                    *pages += state.order().pages();
                }
            }
            if taken >> bit & 1 == 0 {
                return Err(Violation::InUseButFree { pfn });
            }
            owned |= 1 << bit;
            if let (Class::Tail(_), true) = (class, head.0 + state.order().pages() >= first.0 + PAGES_PER_ROW)
            {
                // One look is enough where one class speaks for all of the row.
                return match taken {
                    Row::ALL => Ok(Row::ALL),
                    _ => Err(Violation::InUseButFree { pfn }),
                };
            }
        }
        Ok(owned)
    }
}
