//! Walkers: code that looks at pages without owning them.

use core::fmt;

use crate::descriptors::head::Head;
use crate::descriptors::seam::{DescriptorMap, Look, Peek};
use crate::engine::{Engine, HeadOf, MapOf};
use crate::folio::Folio;
use crate::geometry::Pfn;
use crate::heap::OutOfMemory;
use crate::page::{MAX_REFS, State};
use crate::platform::Platform;
use crate::poison::{PoisonError, Poisoned};
use crate::protocol::Protocol;
use crate::protocol::class::{ClassEntry, Miss};
use crate::rcu::{ReadSection, Reader};
use crate::sync::Ordering;

/// A walker: a registered RCU reader on one engine. One thread at a time.
///
/// It may move to another thread; two threads cannot use it at once:
///
/// ```
/// # use pagefold_engine::{Pfn, Platform, Walker};
/// # fn kernel<P: Platform>(walker: Walker<'_, P>) where P::Barrier: 'static {
/// std::thread::scope(|scope| {
///     scope.spawn(move || walker.peek(Pfn(0)));
/// });
/// # }
/// ```
/// ```compile_fail,E0277
/// # use pagefold_engine::{Pfn, Platform, Walker};
/// # fn kernel<P: Platform>(walker: Walker<'_, P>) where P::Barrier: 'static {
/// std::thread::scope(|scope| {
///     scope.spawn(|| walker.peek(Pfn(0)));
///     scope.spawn(|| walker.peek(Pfn(0)));
/// });
/// # }
/// ```
pub struct Walker<'e, P: Platform> {
    engine: &'e Engine<P>,
    view: <MapOf<P> as DescriptorMap<P::Mapping, P::Owner>>::View<'e>,
    reader: Reader<'e, P::Barrier>,
}

impl<P: Platform> Engine<P> {
    /// Registers a walker.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn walker(&self) -> Result<Walker<'_, P>, OutOfMemory> {
        Ok(Walker { engine: self, view: self.map.view(), reader: self.rcu.reader()? })
    }
}

impl<'e, P: Platform> Walker<'e, P> {
    /// Takes a reference on the folio that contains `pfn`, if a shared folio does.
    ///
    /// The folio that is returned contained `pfn` at the moment the reference was taken; see [`crate::protocol`] for what is
    /// promised and why. What led the caller to `pfn` (a page table, an index) may have changed meanwhile: look at that
    /// again, and drop the folio if it has.
    ///
    /// Context: any: with interrupts off, inside sections, in interrupt handlers that have a walker of their own.
    ///
    /// # Errors
    /// What the page was instead. Speculation may fail at any time; it is not an error of the caller's.
    #[inline]
    pub fn try_get(&self, pfn: Pfn) -> Result<Folio<'e, P>, Miss> {
        let class = match MapOf::<P>::try_get_fast::<P::Rules, _>(self.view, &self.reader, pfn) {
            Look::Taken(head) => return Ok(Folio::adopt(self.engine, head)),
            Look::Mistaken(head) => {
                drop(Folio::adopt(self.engine, head));
                ClassEntry::MAPPED
            }
            Look::Missed(miss) => return Err(miss),
            Look::Nothing(class) => class,
        };
        if class != ClassEntry::MAPPED
            && let Some(miss) = self.miss_of(pfn, class)
        {
            return Err(miss);
        }
        self.try_get_slow(pfn).map(|head| Folio::adopt(self.engine, head))
    }

    /// Why there is nothing to take at `pfn`, if the class of its map page says so. `class` is its entry, read outside of a section:
    /// it may only say that there is nothing.
    #[inline]
    fn miss_of(&self, pfn: Pfn, class: ClassEntry) -> Option<Miss> {
        let map = &self.engine.map;
        map.classes.said_by(class, map.map_page(pfn)).class().miss()
    }

    /// Slow path: tails, contention, misses. Looks for the descriptor of the folio of `pfn`, takes a reference there, and starts
    /// over for as long as others change the page meanwhile.
    #[inline(never)]
    fn try_get_slow(&self, pfn: Pfn) -> Result<&'e HeadOf<P>, Miss> {
        let map = &self.engine.map;
        let _section = self.reader.section();
        loop {
            let place = map.find::<P::Rules>(pfn)?;
            let Some(head) = map.head_at(place) else { return Err(Miss::Absent) };
            let mut state = State(head.state().load(Ordering::Relaxed));
            while state.refs() != 0 && map.holds(place, state, pfn) {
                if state.refs() >= MAX_REFS {
                    return Err(Miss::Saturated);
                }
                match MapOf::<P>::take::<P::Rules>(head, state) {
                    Ok(()) if MapOf::<P>::RECHECKS && !map.holds(place, state, pfn) => {
                        drop(Folio::adopt(self.engine, head));
                        break;
                    }
                    Ok(()) => return Ok(head),
                    Err(now) => state = now,
                }
                if !P::Rules::WAITS && map.is_folded(place) {
                    return Err(Miss::Stray);
                }
            }
            // The folio does not (or no longer) have this page, or is not shared. If class and descriptor still lead to
            // it, that is the answer: frozen, or on its way in or out. If not, the page has moved on: start over.
            if map.find::<P::Rules>(pfn)? == place {
                let is_frozen = state.refs() == 0 && map.holds(place, state, pfn);
                return Err(if is_frozen { Miss::Frozen } else { Miss::Free });
            }
        }
    }

    /// Enters a section that spans several steps, for callers whose own tables are protected by the same grace periods.
    /// Grace periods wait for it: it must be dropped. One that is forgotten lasts until the walker is dropped, and so do
    /// sections that nest deeper than [`Reader::section`] allows.
    ///
    /// Context: any.
    #[inline]
    pub fn section(&self) -> ReadSection<'_> {
        self.reader.section()
    }

    /// Looks at a page without taking a reference, as `/proc/kpageflags` does. `None` beyond the end of the map.
    ///
    /// Context: any.
    pub fn peek(&self, pfn: Pfn) -> Option<Peek> {
        let _section = self.reader.section();
        (pfn.0 < self.engine.pages()).then(|| self.engine.map.peek(pfn))
    }

    /// Records that the memory of `pfn` is broken. It will not be handed out any more.
    ///
    /// Context: may take frames and change page tables.
    ///
    /// # Errors
    /// [`PoisonError`]; nothing was recorded.
    pub fn poison(&self, pfn: Pfn) -> Result<Poisoned, PoisonError> {
        self.engine.record_poison(pfn, || {
            let _section = self.reader.section();
            self.engine.map.mark_poisoned(pfn);
        })
    }
}

impl<P: Platform> fmt::Debug for Walker<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walker").field("reader", &self.reader).finish()
    }
}
