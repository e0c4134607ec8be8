//! Walkers: code that looks at pages without owning them.

use core::fmt;

use crate::class::Class;
use crate::engine::Engine;
use crate::folio::Folio;
use crate::geometry::Pfn;
use crate::heap::OutOfMemory;
use crate::map::{MapView, MemoryMap, Miss};
use crate::page::{Page, State};
use crate::platform::Platform;
use crate::protocol::Protocol;
use crate::rcu::{Reader, Section};

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

/// What [`Walker::poison`] did with a broken page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poisoned {
    /// It was free and will never be handed out.
    Withheld,
    /// It is in use (or memory that is not ours). When its folio is freed, this page is kept back.
    InUse,
    /// It was known already.
    Known,
}

/// Why a broken page could not be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoisonError {
    /// There is no memory at that page number.
    Absent,
    /// The record needs memory and there is none: free some and retry.
    OutOfMemory,
}

impl From<OutOfMemory> for PoisonError {
    fn from(_: OutOfMemory) -> Self {
        PoisonError::OutOfMemory
    }
}

impl fmt::Display for PoisonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PoisonError::Absent => "no memory at that page number",
            PoisonError::OutOfMemory => "no memory to record the poisoned page: free some and retry",
        })
    }
}
impl core::error::Error for PoisonError {}

impl<'e, P: Platform> Walker<'e, P> {
    pub(crate) fn new(engine: &'e Engine<P>, reader: Reader<'e, P::Barrier>) -> Self {
        Self { engine, view: engine.map.view(), reader }
    }

    /// Takes a reference on the folio that contains `pfn`, if a shared folio does.
    ///
    /// The folio that is returned contained `pfn` at the moment the reference was taken; see [`crate::map`] for what is
    /// promised and why. What led the caller to `pfn` (a page table, an index) may have changed meanwhile: look at that
    /// again, and drop the folio if it has.
    ///
    /// # Errors
    /// What the page was instead. Speculation may fail at any time; it is not an error of the caller's.
    #[inline]
    pub fn try_get(&self, pfn: Pfn) -> Result<Folio<'e, P>, Miss> {
        // The class is asked twice. Outside of the section it spares folded pages the section; inside it is what makes
        // the descriptor safe to read. What comes out of the section is one bit on purpose: more would travel through
        // memory. (Protocols that do not wait take the other way, which notices where a failed swap has landed.)
        if P::Rules::WAITS
            && let Some(entry) = self.view.entry(pfn)
            && entry.is_mapped::<P::Rules>()
            && self.reader.within(|| {
                entry.is_mapped::<P::Rules>()
                    && MemoryMap::<P::Mapping, P::Owner>::try_get_head::<P::Rules>(entry.page)
            })
        {
            return Ok(Folio::adopt(self.engine, entry.page));
        }
        self.try_get_slowly(pfn).map(|page| Folio::adopt(self.engine, page))
    }

    /// Slow path: tails, contention, misses. (Without a section the class may only say that there is nothing to read.)
    #[inline(never)]
    fn try_get_slowly(&self, pfn: Pfn) -> Result<&'e Page<P::Owner>, Miss> {
        if P::Rules::ASKS_CLASS
            && let Some(miss) = self.engine.map.miss_by_class(pfn)
        {
            return Err(miss);
        }
        let _section = self.reader.section();
        self.engine.map.try_get_slowly::<P::Rules>(pfn)
    }

    /// Enters a section that spans several steps, for callers whose own tables are protected by the same grace periods.
    /// Grace periods wait for it: it must be dropped. One that is forgotten lasts until the walker is dropped, and so do
    /// sections that nest deeper than [`Reader::section`] allows.
    #[inline]
    pub fn section(&self) -> Section<'_> {
        self.reader.section()
    }

    /// Looks at a page without taking a reference, as `/proc/kpageflags` does. `None` beyond the end of the map.
    pub fn peek(&self, pfn: Pfn) -> Option<Peek> {
        let _section = self.reader.section();
        self.engine.peek(pfn)
    }

    /// Records that the memory of `pfn` is broken. It will not be handed out any more.
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
