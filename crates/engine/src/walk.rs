//! Walkers: code that looks at pages without owning them.

use core::fmt;

use crate::engine::Engine;
use crate::folio::Folio;
use crate::geometry::Pfn;
use crate::heap::OutOfMemory;
use crate::map::MemoryMap;
use crate::map::walk::MapView;
use crate::page::{MAX_REFS, Page, State};
use crate::platform::Platform;
use crate::poison::{PoisonError, Poisoned};
use crate::protocol::Protocol;
use crate::protocol::class::{Class, ClassByte, Miss};
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
    view: MapView<'e, P::Owner>,
    reader: Reader<'e, P::Barrier>,
}

/// What a page looked like at one moment, without a reference. It may be different by now, and even at that moment the
/// parts were read one after the other; no decision that matters may rest on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// The class of its map page.
    pub class: Class,
    /// Whether memory was behind the map page.
    pub backed: bool,
    /// The page's own state word; zero where the class is not `Mapped`.
    pub state: State,
    /// The head of its folio and the head's state word, if it belonged to one.
    pub head: Option<(Pfn, State)>,
}

impl<P: Platform> Engine<P> {
    /// Registers a walker.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn walker(&self) -> Result<Walker<'_, P>, OutOfMemory> {
        Ok(Walker::new(self, self.rcu.reader()?))
    }

    /// See [`Walker::peek`]; the caller is inside a section or nothing moves.
    pub(crate) fn peek(&self, pfn: Pfn) -> Option<Peek> {
        if pfn.0 >= self.pages() {
            return None;
        }
        let (class, backed) = self.map.class(pfn.map_page());
        let state = self.map.state(pfn);
        let head = MemoryMap::<P::Mapping, P::Owner>::resolve(class, pfn, || state)
            .ok()
            .map(|head| (head, if head == pfn { state } else { self.map.state(head) }))
            .filter(|&(head, state)| state.covers(head, pfn));
        Some(Peek { class, backed, state, head })
    }
}

impl<'e, P: Platform> Walker<'e, P> {
    pub(crate) fn new(engine: &'e Engine<P>, reader: Reader<'e, P::Barrier>) -> Self {
        Self { engine, view: engine.map.view(), reader }
    }

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
        let Some(entry) = self.view.entry(pfn) else { return Err(Miss::Absent) };
        // The class is asked twice. Outside of the section it spares folded pages the section; inside it is what makes
        // the descriptor safe to read. What comes out of the section is one bit on purpose: more would travel through
        // memory. (Protocols that do not wait take the other way, which notices where a failed swap has landed.)
        let class = entry.class::<P::Rules>();
        if P::Rules::WAITS
            && class == ClassByte::MAPPED
            && self.reader.within(|| {
                entry.class::<P::Rules>() == ClassByte::MAPPED
                    && MemoryMap::<P::Mapping, P::Owner>::try_get_head::<P::Rules>(entry.page)
            })
        {
            return Ok(Folio::adopt(self.engine, entry.page));
        }
        self.try_get_slow(pfn, class).map(|page| Folio::adopt(self.engine, page))
    }

    /// Slow path: tails, contention, misses. Looks for the head of `pfn`, takes a reference there, and starts over for as
    /// long as others change the page meanwhile. `class` was read outside of a section: it may only say that there is
    /// nothing to read.
    #[inline(never)]
    fn try_get_slow(&self, pfn: Pfn, class: ClassByte) -> Result<&'e Page<P::Owner>, Miss> {
        let map = &self.engine.map;
        if let Some(miss) = map.classes.said_by(class, pfn.map_page()).class().miss() {
            return Err(miss);
        }
        let _section = self.reader.section();
        loop {
            let head = map.head_of::<P::Rules>(pfn)?;
            let Some(page) = map.page(head) else { return Err(Miss::Absent) };
            let mut state = State(page.state.load(Ordering::Relaxed));
            while state.refs() != 0 && state.covers(head, pfn) {
                if state.refs() >= MAX_REFS {
                    return Err(Miss::Saturated);
                }
                match MemoryMap::<P::Mapping, P::Owner>::take::<P::Rules>(page, state) {
                    Ok(()) => return Ok(page),
                    Err(now) => state = now,
                }
                if map.is_stray::<P::Rules>(head) {
                    return Err(Miss::Stray);
                }
            }
            // The head does not (or no longer) have this page, or is not shared. If class and descriptor still lead to
            // it, that is the answer: frozen, or on its way in or out. If not, the page has moved on: start over.
            if map.head_of::<P::Rules>(pfn)? == head {
                let is_frozen = state.refs() == 0 && state.covers(head, pfn);
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
        self.engine.peek(pfn)
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
