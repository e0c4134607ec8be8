//! Walkers: each kind does what a kind of walker in Linux does.

use fastrand::Rng;
use pagefold_engine::protocol::Protocol;
use pagefold_engine::{Class, Folio, Kind, Miss, PageKind, Pfn, Platform, Walker};

use crate::index::{Index, WINDOW};
use crate::log::{BrokenPromise, Log};
use crate::stamp::Stamp;
use crate::walker_kind::WalkerKind;

/// What a walker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkerCounts {
    /// Pages looked at.
    pub looks: u64,
    /// References taken (and put).
    pub gets: u64,
    /// References taken, and put at once because what led there had changed.
    pub stale: u64,
}

impl core::ops::AddAssign for WalkerCounts {
    fn add_assign(&mut self, other: Self) {
        self.looks += other.looks;
        self.gets += other.gets;
        self.stale += other.stale;
    }
}

/// The slot of a window that everybody wants; in the middle, so that its folio does not become the head of a huge one.
const HOTTEST: usize = WINDOW / 2 + 5;

/// Page numbers a GUP walker keeps for later.
const STALE: usize = 64;

/// One walker.
pub struct WalkerTask<'a, 'e, P: Platform<Owner = Stamp>> {
    kind: WalkerKind,
    walker: Walker<'e, P>,
    index: &'a Index<'e, P>,
    log: &'a Log,
    rng: Rng,
    cursor: u64,
    old: [Pfn; STALE],
    counts: WalkerCounts,
}

impl<'a, 'e, P: Platform<Owner = Stamp>> WalkerTask<'a, 'e, P> {
    /// A walker; `seed` decides what it looks at.
    ///
    /// # Errors
    /// [`pagefold_engine::OutOfMemory`] when no reader can be registered.
    pub fn new(
        kind: WalkerKind,
        index: &'a Index<'e, P>,
        log: &'a Log,
        seed: u64,
    ) -> Result<Self, pagefold_engine::OutOfMemory> {
        let walker = index.engine().walker()?;
        let mut rng = Rng::with_seed(seed);
        let cursor = rng.u64(0..index.engine().pages().max(1));
        Ok(Self {
            kind,
            walker,
            index,
            log,
            rng,
            cursor,
            old: [Pfn(0); STALE],
            counts: WalkerCounts::default(),
        })
    }

    /// What it imitates.
    pub fn kind(&self) -> WalkerKind {
        self.kind
    }

    /// What it did so far.
    pub fn counts(&self) -> WalkerCounts {
        self.counts
    }

    /// A few hundred looks.
    pub fn step(&mut self) {
        for _ in 0..256 {
            match self.kind {
                WalkerKind::Gup => self.gup(),
                WalkerKind::PageCache => self.page_cache(),
                WalkerKind::Compaction => self.compaction(),
                WalkerKind::Kpageflags => self.kpageflags(),
            }
        }
    }

    fn note(&self, violation: BrokenPromise, pfn: Pfn) {
        self.log.note(violation, pfn, self.kind);
    }

    /// Takes the folio of `pfn`, and checks what it got.
    fn get(&mut self, pfn: Pfn) -> Option<Folio<'e, P>> {
        self.counts.looks += 1;
        match self.walker.try_get(pfn) {
            Ok(folio) => {
                self.counts.gets += 1;
                if !folio.contains(pfn) {
                    self.note(BrokenPromise::NotItsPage, pfn);
                }
                // Classic fake-offline pages have a reference that anyone may add to, and no owner.
                if folio.kind() != PageKind::Offline && !folio.owner().is_of(folio.pfn()) {
                    self.note(BrokenPromise::Resurrected, pfn);
                }
                Some(folio)
            }
            Err(Miss::Stray) => {
                self.note(BrokenPromise::StrayWrite, pfn);
                None
            }
            Err(_) => None,
        }
    }

    /// A slot: every second time one of the hot ones, and mostly the hottest of those. Accesses of real programs are
    /// like that; and a refcount that several CPUs fight for is where a walker spends longest between looking at it and
    /// swapping it.
    fn somewhere(&mut self) -> usize {
        let hot = self.index.hot();
        if hot.is_empty() || self.rng.bool() {
            return self.rng.usize(0..self.index.len());
        }
        let at = self.rng.usize(hot.clone());
        if self.rng.u8(0..4) == 0 { at } else { hot.start + (at - hot.start) / WINDOW * WINDOW + HOTTEST }
    }

    fn gup(&mut self) {
        let at = self.somewhere();
        let Some(entry) = self.index.load(at) else { return };
        let pfn = entry.head().plus(self.rng.u64(0..entry.order().pages()));
        let place = self.rng.usize(0..STALE);
        // One in four uses a page number that was found long ago: nothing leads to it any more.
        let stale = if self.rng.u8(0..4) == 0 { self.old.get(place).copied() } else { None };
        if let Some(old) = self.old.get_mut(place) {
            *old = pfn;
        }
        if let Some(pfn) = stale {
            drop(self.get(pfn));
            return;
        }
        let folio = self.get(pfn);
        // As GUP-fast looks at the page-table entry again: it must still map this page.
        let still = self.index.load(at) == Some(entry);
        match folio {
            Some(_) if !still => self.counts.stale += 1,
            // The entry holds a reference on a folio with this page, and so do we: they are the same folio.
            Some(folio) if folio.pfn() != entry.head() => self.note(BrokenPromise::NotItsPage, pfn),
            Some(_) => {}
            // A folio that nobody moves is always found; but without a class table, not by its folded tails.
            None if self.index.is_pinned(at) && P::Rules::ASKS_CLASS => self.note(BrokenPromise::Missed, pfn),
            None => {}
        }
    }

    fn page_cache(&mut self) {
        let at = self.somewhere();
        for _ in 0..3 {
            let Some(entry) = self.index.load(at) else { return };
            let Some(folio) = self.get(entry.head()) else {
                if self.index.is_pinned(at) {
                    self.note(BrokenPromise::Missed, entry.head());
                }
                return;
            };
            if self.index.load(at) == Some(entry) {
                // Found for good: use it a little, as a read of the page would.
                let _order = folio.order();
                return;
            }
            self.counts.stale += 1;
        }
    }

    fn advance(&mut self) -> Pfn {
        let pages = self.index.engine().pages();
        let pfn = Pfn(self.cursor);
        self.cursor = if self.cursor + 1 >= pages { 0 } else { self.cursor + 1 };
        pfn
    }

    /// Skips what the class table says is empty, a map page or a section at a time, as compaction skips pageblocks.
    fn skip_empty(&mut self, pfn: Pfn) -> bool {
        let (class, _) = self.index.engine().class(pfn);
        let empty = matches!(class, Class::Absent | Class::Offline | Class::Free);
        if empty {
            let next = (pfn.0 | 63) + 1;
            self.cursor = if next >= self.index.engine().pages() { 0 } else { next };
        }
        empty
    }

    fn compaction(&mut self) {
        let pfn = self.advance();
        if self.skip_empty(pfn) {
            // One in sixteen is tried anyway: compaction does not know for sure either.
            if self.rng.u8(0..16) == 0 {
                let within = self.rng.u64(0..64);
                drop(self.get(pfn.plus(within)));
            }
            return;
        }
        let Some(peek) = self.walker.peek(pfn) else { return };
        self.counts.looks += 1;
        let movable = peek
            .head
            .is_some_and(|(_, state)| matches!(state.kind(), PageKind::Owned(Kind::Anon | Kind::File)));
        if movable && let Some(folio) = self.get(pfn) {
            // Isolated: go on behind it.
            let next = folio.pfn().0 + folio.order().pages();
            self.cursor = if next >= self.index.engine().pages() { 0 } else { next };
        }
    }

    fn kpageflags(&mut self) {
        let pfn = self.advance();
        self.counts.looks += 1;
        let Some(peek) = self.walker.peek(pfn) else { return };
        // Torn reads are its lot; but a head is never beside its pages.
        if let Some((head, state)) = peek.head
            && !state.covers(head, pfn)
        {
            self.note(BrokenPromise::NotItsPage, pfn);
        }
    }
}

impl<P: Platform<Owner = Stamp>> core::fmt::Debug for WalkerTask<'_, '_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("WalkerTask")
            .field("kind", &self.kind)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
