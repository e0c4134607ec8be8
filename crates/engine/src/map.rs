//! The memory map: descriptors under classes, and the protocol between walkers and those who fold and unfold.
//!
//! # What the protocol promises
//!
//! 1. *Never crash*: no write, not even a failing compare-and-swap, and no read reaches a map page that is folded, being
//!    folded or being unfolded.
//! 2. *Never resurrect*: a refcount leaves 0 only by the hand of the one owner of the frozen folio.
//! 3. *Never mistake*: a reference obtained for `pfn` is on the folio that contained `pfn` at the moment it was taken.
//! 4. *Never leak*: every reference is a handle whose drop gives it back; a failed attempt leaves nothing behind.
//! 5. *Never miss*: if one shared folio contains `pfn` during a whole `try_get`, it is found (unless its refcount is
//!    saturated).
//!
//! # Why
//!
//! A walker reads a descriptor only after it read a class that leads there, and writes it only after it read a refcount
//! above zero there, all inside one section. Take the folder of that map page. It owns every page in it, so every head
//! there is frozen (refcount 0) or gone (zero), and no tail in another map page leads there any more, before it publishes
//! the folded class. Then it waits for a grace period:
//!
//! * a walker whose section the grace period waits for may still read, and even run its compare-and-swap: on memory that
//!   is still there, and it fails, because the refcount is 0;
//! * a walker whose section begins later sees the class, or what was published after it, and is not led there.
//!
//! So when the memory goes, nobody is left who could read or write (1): what a platform does to the range between then
//! and the next `Mapped` is seen by nobody. It may take the range apart and put it together again, as arm64's
//! break-before-make does.
//!
//! What leads to a descriptor is the class `Mapped` of its own map page; or, for the head of a folio that is larger than
//! a map page, `Tail` or a tail's word in another map page of the folio. The head's class need not be asked then. The
//! head was `Mapped` before the first tail that leads to it was published; and whoever folds the head's map page got it,
//! or made the head a tail itself, after each of those tails had been published as something else. So the argument above
//! holds for the tail's class (or word) as it does for the head's.
//!
//! A class that was read outside of a section may be old by the time the section begins. It may say that there is
//! nothing to take, but not that there is something to read.
//!
//! The protocols that are there for comparison (see [`crate::protocol`]) read folded descriptors, as zeros. They need a
//! platform where folding leaves no gap ([`Mapping::HAS_GAP`]).
//!
//! That memory is behind the head is known from what led there: classes and tails are stored with Release after the
//! head's map page got its memory, and loaded with Acquire.
//!
//! (2) and (3) are the compare-and-swap: it compares the whole state word, in which refcount, head and order stand
//! together. See `State::covers`. What a walker read on its way to the head (a class, a tail) may be as stale as its
//! section allows; it only chooses which word to try.
//!
//! The questions asked of Linux's protocol in public, answered for this one:
//!
//! * *Who can write concurrently?* Walkers, to the state words of heads that are shared; the owner of a frozen folio, to
//!   all descriptors of its pages; the owner of one free page, to that page's descriptor. Nobody else.
//! * *What orders the refcount check against the type check?* Nothing has to: they are one word.
//! * *What stops a reader that arrives right after the grace period?* It sees the folded class, because that was
//!   published before the grace period began, and it looks at the class again inside its section.
//! * *What serialises try-get against restore?* Unfolding writes whole descriptors with refcount 0 while the class still
//!   says folded, and nobody writes to a refcount of 0.

mod offline;

use core::ops::Range;

use crate::class::{Class, ClassByte, Classes};
use crate::geometry::{MAP_PAGE_ORDER, MapPage, Order, PAGES_PER_MAP_PAGE, Pfn};
use crate::heap::OutOfMemory;
use crate::marks::Marks;
use crate::page::{Kind, MAX_REFS, POISON, Page, State, fresh_owner};
use crate::platform::{FoldRange, Mapping, Owner};
use crate::protocol::Protocol;
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Ordering, spin_loop};
use crate::table::{Table, View};

/// Why a walker got nothing. Speculation may fail; each reason says what the page was at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Miss {
    /// No memory at that page number, or beyond the end of the map.
    Absent,
    /// Memory that is not ours: unplugged or fake-offline.
    Offline,
    /// The page is free, or just being allocated or freed.
    Free,
    /// The folio's owner has frozen it. It may be back soon, as the same folio or another.
    Frozen,
    /// The folio has [`MAX_REFS`] references already.
    Saturated,
    /// The walker wrote to a folded descriptor. Only a protocol that does not wait for walkers can get here.
    Stray,
}

/// The descriptor of a page, and the class byte of its map page.
pub(crate) struct Entry<'m, O> {
    pub(crate) page: &'m Page<O>,
    class: &'m AtomicU8,
}

impl<O> Entry<'_, O> {
    /// Whether the map page is `Mapped` (or the protocol does not ask). Inside a section that stands, as far as reading
    /// the descriptor goes, until the section ends.
    #[inline]
    pub(crate) fn is_mapped<R: Protocol>(&self) -> bool {
        !R::ASKS_CLASS || self.class.load(Ordering::Acquire) == ClassByte::MAPPED.0
    }
}

/// The descriptors and class bytes of a map.
pub(crate) struct MapView<'m, O> {
    pages: View<'m, Page<O>>,
    classes: View<'m, AtomicU8>,
}

impl<O> Clone for MapView<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<O> Copy for MapView<'_, O> {}

impl<'m, O: Owner> MapView<'m, O> {
    /// Descriptor and class byte of `pfn`; neither has been read yet.
    #[inline]
    pub(crate) fn entry(self, pfn: Pfn) -> Option<Entry<'m, O>> {
        let page = self.pages.get(pfn.0)?;
        // SAFETY: the class table covers every page of the map (`Engine::new`), and this page is one.
        let class = unsafe { self.classes.get_unchecked(pfn.map_page().0) };
        Some(Entry { page, class })
    }
}

/// Whether large folios are born folded, or with every descriptor written as Linux does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Map pages that only describe tails are folded. The default.
    #[default]
    Folded,
    /// Every page has a written descriptor. For comparison.
    Flat,
}

pub(crate) struct MemoryMap<M, O> {
    pages: Table<Page<O>, M>,
    pub(crate) classes: Classes<M>,
    pub(crate) poison: Marks<M>,
    pub(crate) holes: Marks<M>,
    pub(crate) withheld: Marks<M>,
    /// Map pages that have memory behind them: the number of class bytes with the `BACKED` bit.
    materialised: AtomicU64,
    /// Whether large folios are written flat from now on.
    flat: AtomicBool,
}

impl<M: Mapping, O: Owner> MemoryMap<M, O> {
    pub(crate) fn new(
        pages: Table<Page<O>, M>,
        classes: Classes<M>,
        [poison, holes, withheld]: [Marks<M>; 3],
        layout: Layout,
    ) -> Self {
        #[cfg(not(loom))]
        let () = Page::<O>::SIZE_CHECK;
        debug_assert!(pages.len() <= classes.len() * PAGES_PER_MAP_PAGE, "a class for every map page");
        Self {
            pages,
            classes,
            poison,
            holes,
            withheld,
            materialised: AtomicU64::new(0),
            flat: AtomicBool::new(layout == Layout::Flat),
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages.len()
    }

    pub(crate) fn mapping(&self) -> &M {
        self.pages.mapping()
    }

    pub(crate) fn materialised(&self) -> u64 {
        self.materialised.load(Ordering::Relaxed)
    }

    pub(crate) fn layout(&self) -> Layout {
        // Relaxed: both layouts are valid at any time, folio by folio.
        if self.flat.load(Ordering::Relaxed) { Layout::Flat } else { Layout::Folded }
    }

    pub(crate) fn set_layout(&self, layout: Layout) {
        self.flat.store(layout == Layout::Flat, Ordering::Relaxed);
    }

    // ---- walkers -----------------------------------------------------------------------------------------------

    /// The walker's common case: takes a reference on the folio whose head's descriptor is `page`, if that is a head and
    /// one compare-and-swap does it. The caller is inside a section, and has asked for the class there. Everything else, and every surprise, is for
    /// [`try_get_slowly`](Self::try_get_slowly).
    #[inline]
    pub(crate) fn try_get_head<R: Protocol>(page: &Page<O>) -> bool {
        // Relaxed, here and at every look at a state word that a compare-and-swap confirms.
        let state = State(page.state.load(Ordering::Relaxed));
        // A refcount above 0 stands only at heads, and a head covers itself.
        state.refs().wrapping_sub(1) < MAX_REFS - 1 && Self::take::<R>(page, state).is_ok()
    }

    /// What a walker keeps of the map.
    pub(crate) fn view(&self) -> MapView<'_, O> {
        MapView { pages: self.pages.view(), classes: self.classes.view() }
    }

    /// What the class of `pfn` alone says: why there is nothing to take, if so. No section is needed for that.
    pub(crate) fn miss_by_class(&self, pfn: Pfn) -> Option<Miss> {
        match self.classes.get(pfn.map_page()).class() {
            Class::Absent => Some(Miss::Absent),
            Class::Offline => Some(Miss::Offline),
            Class::Free => Some(Miss::Free),
            Class::Tail(_) | Class::Mapped => None,
        }
    }

    /// One attempt to take a reference at a head that was seen as `state`.
    #[inline]
    fn take<R: Protocol>(page: &Page<O>, state: State) -> Result<(), State> {
        R::between_look_and_swap();
        // Acquire: pairs with the Release of the thaw, so that the owner's data is seen. Relaxed on failure: the caller
        // looks again.
        page.state
            .compare_exchange(state.0, state.0 + 1, Ordering::Acquire, Ordering::Relaxed)
            .map(|_| ())
            .map_err(State)
    }

    /// Takes a reference on the folio that contains `pfn` and returns the descriptor of its head: looks for the head, takes the reference
    /// there, and starts over for as long as others change the page under us. The caller is inside a section.
    #[cold]
    pub(crate) fn try_get_slowly<R: Protocol>(&self, pfn: Pfn) -> Result<&Page<O>, Miss> {
        loop {
            let head = self.head_of::<R>(pfn)?;
            let Some(page) = self.pages.get(head.0) else { return Err(Miss::Absent) };
            let mut state = State(page.state.load(Ordering::Relaxed));
            while state.refs() != 0 && state.covers(head, pfn) {
                if state.refs() >= MAX_REFS {
                    return Err(Miss::Saturated);
                }
                match Self::take::<R>(page, state) {
                    Ok(()) => return Ok(page),
                    Err(now) => state = now,
                }
                if self.is_stray::<R>(head) {
                    return Err(Miss::Stray);
                }
            }
            // The head does not (or no longer) have this page, or is not shared. If class and descriptor still lead to
            // it, that is the answer: frozen, or on its way in or out. If not, the page has moved on: start over.
            if self.head_of::<R>(pfn)? == head {
                let is_frozen = state.refs() == 0 && state.covers(head, pfn);
                return Err(if is_frozen { Miss::Frozen } else { Miss::Free });
            }
        }
    }

    /// Where class and descriptor of `pfn` say its head is. It may be stale.
    fn head_of<R: Protocol>(&self, pfn: Pfn) -> Result<Pfn, Miss> {
        if R::ASKS_CLASS {
            match self.classes.get(pfn.map_page()).class() {
                Class::Absent => return Err(Miss::Absent),
                Class::Offline => return Err(Miss::Offline),
                Class::Free => return Err(Miss::Free),
                Class::Tail(order) => return Ok(pfn.head(order)),
                Class::Mapped => {}
            }
        }
        let Some(page) = self.pages.get(pfn.0) else { return Err(Miss::Absent) };
        // Acquire: pairs with the Release of a tail, so that memory is behind the head it leads to.
        let state = State(page.state.load(Ordering::Acquire));
        Ok(if state.is_head() {
            pfn
        } else if state.is_tail() {
            pfn.head(state.order())
        } else {
            // Not written: the first descriptor of the map page stands for all of it.
            pfn.head(Order::MAP_PAGE)
        })
    }

    /// For the protocols that do not wait: a compare-and-swap at `head` has failed. Did it land on a folded map page?
    #[inline]
    fn is_stray<R: Protocol>(&self, head: Pfn) -> bool {
        !R::WAITS && !self.classes.get(head.map_page()).is_backed()
    }

    /// The class, and whether memory is behind it.
    pub(crate) fn class(&self, map_page: MapPage) -> (Class, bool) {
        let byte = self.classes.get(map_page);
        (byte.class(), byte.is_backed())
    }

    /// The state word of `pfn` as it is now; zero where the class is not `Mapped`. The caller is inside a section, or
    /// nothing moves.
    pub(crate) fn state(&self, pfn: Pfn) -> State {
        if self.classes.get(pfn.map_page()) != ClassByte::MAPPED {
            return State::ZERO;
        }
        self.pages.get(pfn.0).map_or(State::ZERO, |page| State(page.state.load(Ordering::Acquire)))
    }

    /// The descriptor at `pfn`, for the handles.
    pub(crate) fn page(&self, pfn: Pfn) -> Option<&Page<O>> {
        self.pages.get(pfn.0)
    }

    /// The page number of a descriptor of this map.
    #[inline]
    pub(crate) fn pfn_of(&self, page: &Page<O>) -> Pfn {
        Pfn(self.pages.index_of(page))
    }

    /// Sets the poison mark of `pfn` if its descriptor is materialised. The caller is inside a section.
    pub(crate) fn mark_poisoned(&self, pfn: Pfn) {
        if self.classes.get(pfn.map_page()) == ClassByte::MAPPED
            && let Some(page) = self.pages.get(pfn.0)
        {
            // A write without ownership: it is safe for the same reason as a walker's compare-and-swap (class `Mapped`
            // seen inside a section), and it changes a bit that nobody else decides by.
            page.state.fetch_or(POISON, Ordering::Relaxed);
        }
    }

    // ---- owners: unfolding -------------------------------------------------------------------------------------

    fn store(&self, pfn: Pfn, state: State, order: Ordering) {
        if let Some(page) = self.pages.get(pfn.0) {
            page.state.store(state.0, order);
        }
    }

    /// Ends the life of the descriptor at `pfn`: zero again, owner's data included. The caller owns the page.
    fn clear(&self, pfn: Pfn) {
        if let Some(page) = self.pages.get(pfn.0) {
            // SAFETY: the caller owns the page, and no folio is alive there, so nobody else reaches its owner's data.
            unsafe {
                page.owner.get_mut().write(fresh_owner());
            }
            let mark = if self.is_poisoned(pfn) { POISON } else { 0 };
            // Release: a CPU that sees the zero also sees that the folio is over.
            page.state.store(mark, Ordering::Release);
        }
    }

    /// Whether `pfn` has been recorded as poisoned.
    pub(crate) fn is_poisoned(&self, pfn: Pfn) -> bool {
        self.poison.contains(pfn)
    }

    /// `state` with the poison mark of `pfn`.
    fn marked(&self, pfn: Pfn, state: State) -> State {
        if self.is_poisoned(pfn) { State(state.0 | POISON) } else { state }
    }

    /// Puts the poison marks back into a map page that was just materialised.
    fn reapply_poison(&self, map_page: MapPage) {
        let mut mask = self.poison.mask(map_page);
        while mask != 0 {
            let pfn = map_page.first_pfn().plus(u64::from(mask.trailing_zeros()));
            self.store(pfn, State(POISON), Ordering::Relaxed);
            mask &= mask - 1;
        }
    }

    /// Memory behind `map_pages`, all of them folded and the caller's alone. Nothing is changed on an error.
    fn materialise(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        let entries = map_pages.start * PAGES_PER_MAP_PAGE..map_pages.end * PAGES_PER_MAP_PAGE;
        self.pages.materialise(entries)?;
        self.materialised.fetch_add(map_pages.end - map_pages.start, Ordering::Relaxed);
        for map_page in map_pages {
            self.reapply_poison(MapPage(map_page));
        }
        Ok(())
    }

    /// Memory behind those of `map_pages` that have none, run by run. On an error those that were added are folded
    /// again: nothing is changed. The caller owns them all, and their classes stay as they are.
    fn materialise_missing(&self, map_pages: impl Iterator<Item = u64> + Clone) -> Result<(), OutOfMemory> {
        let missing =
            || map_pages.clone().filter(|&map_page| !self.classes.get(MapPage(map_page)).is_backed());
        for run in runs(missing()) {
            if let Err(out_of_memory) = self.materialise(run.clone()) {
                for done in self::runs(missing()).take_while(|done| done.start < run.start) {
                    self.fold_unpublished(done);
                }
                return Err(out_of_memory);
            }
        }
        Ok(())
    }

    /// Takes back memory that was materialised but never published.
    fn fold_unpublished(&self, map_pages: Range<u64>) {
        let entries = map_pages.start * PAGES_PER_MAP_PAGE..map_pages.end * PAGES_PER_MAP_PAGE;
        let range =
            FoldRange { bytes: self.pages.bytes_of(entries), backed: map_pages.end - map_pages.start };
        // SAFETY: the class has said folded since before the grace period of the last fold, so no walker is led here,
        // and the caller owns the range.
        let folded = unsafe { self.pages.fold(&[range]) };
        if folded == 1 {
            self.materialised.fetch_sub(map_pages.end - map_pages.start, Ordering::Relaxed);
        } else {
            map_pages.for_each(|map_page| self.stay_backed(MapPage(map_page)));
        }
    }

    /// The platform did not take the memory behind a folded map page: the class says so, and a free map page is simply
    /// `Mapped` again. The caller owns it.
    pub(crate) fn stay_backed(&self, map_page: MapPage) {
        let class = match self.classes.get(map_page) {
            class if class.unbacked() == ClassByte::FREE => ClassByte::MAPPED,
            class => class.backed(),
        };
        self.classes.set(map_page, class);
    }

    /// Unfolds one map page of which the caller owns at least one page. Owners of other pages of it may do the same at
    /// the same time. Nothing is changed on an error.
    pub(crate) fn ensure_mapped(&self, map_page: MapPage) -> Result<(), OutOfMemory> {
        loop {
            match self.classes.get(map_page) {
                ClassByte::MAPPED => return Ok(()),
                // Another owner of a page here is at it, and will end it either way.
                ClassByte::UNFOLDING => spin_loop(),
                ClassByte::FREE => {
                    self.classes.ensure(map_page.0..map_page.0 + 1)?;
                    if self.classes.begin_unfold(map_page) {
                        let done = self.materialise(map_page.0..map_page.0 + 1);
                        let class = if done.is_ok() { ClassByte::MAPPED } else { ClassByte::FREE };
                        self.classes.set(map_page, class);
                        return done;
                    }
                }
                // Nobody can own a page here: the allocator has none to give. Should it happen all the same, waiting
                // would not end, and refusing changes nothing.
                _ => return Err(OutOfMemory),
            }
        }
    }

    // ---- owners: a folio's life --------------------------------------------------------------------------------

    /// Makes the free block at `pfn` a frozen folio. The caller owns its pages. Nothing is changed on an error.
    pub(crate) fn claim(&self, pfn: Pfn, order: Order, kind: Kind) -> Result<(), OutOfMemory> {
        let first = pfn.map_page();
        match self.layout() {
            Layout::Folded => {
                self.classes.ensure(first.0..first.0 + order.map_pages())?;
                self.ensure_mapped(first)?;
                // A map page that is still materialised stays so for now: its folding can wait for a batch.
                self.classes.set_tails(first.0 + 1..first.0 + order.map_pages(), order);
                if order.get() < MAP_PAGE_ORDER {
                    self.write_tails(pfn, order);
                }
            }
            Layout::Flat => {
                if order.is_foldable() {
                    let all = first.0..first.0 + order.map_pages();
                    self.classes.ensure(all.clone())?;
                    self.materialise_missing(all.clone())?;
                    all.for_each(|map_page| self.classes.set(MapPage(map_page), ClassByte::MAPPED));
                } else {
                    self.ensure_mapped(first)?;
                }
                self.write_tails(pfn, order);
            }
        }
        // Release: tails and classes before the head.
        self.store(pfn, self.marked(pfn, State::head(order, kind.into())), Ordering::Release);
        Ok(())
    }

    fn write_tails(&self, pfn: Pfn, order: Order) {
        for tail in pfn.0 + 1..pfn.0 + order.pages() {
            // Release: the class of the tail's map page may be an old one, and not say that memory is behind the head's.
            // This does.
            self.store(Pfn(tail), self.marked(Pfn(tail), State::tail(order)), Ordering::Release);
        }
    }

    /// Whether every descriptor of the (frozen or freshly made) folio is written, rather than only its head's.
    fn is_flat(&self, pfn: Pfn, order: Order) -> bool {
        order.get() > 0
            && self
                .pages
                .get(pfn.0 + 1)
                .is_some_and(|page| State(page.state.load(Ordering::Relaxed)).is_tail())
    }

    /// Makes the frozen folio at `pfn` free memory. Allocates nothing, cannot fail. The caller keeps owning the pages
    /// and gives them to the allocator next.
    pub(crate) fn release(&self, pfn: Pfn, order: Order) {
        let is_flat = self.is_flat(pfn, order);
        let first = pfn.map_page();
        if is_flat && order.get() <= MAP_PAGE_ORDER {
            (pfn.0 + 1..pfn.0 + order.pages()).for_each(|tail| self.clear(Pfn(tail)));
        } else if is_flat {
            (first.first_pfn().0 + 1..first.first_pfn().0 + PAGES_PER_MAP_PAGE)
                .for_each(|tail| self.clear(Pfn(tail)));
        }
        self.clear(pfn);
        // Folded to folded: no grace period. A walker that still believes in the tail looks at the head, and the head's
        // word speaks for itself.
        self.classes.set_free(first.0 + 1..first.0 + order.map_pages(), |tail| {
            self.clear_map_page(tail);
            self.classes.set(tail, ClassByte::MAPPED);
        });
    }

    fn clear_map_page(&self, map_page: MapPage) {
        let first = map_page.first_pfn().0;
        (first..first + PAGES_PER_MAP_PAGE).for_each(|pfn| self.clear(Pfn(pfn)));
    }

    /// Materialises every descriptor of a frozen folio and writes its tails (Linux: restoring the vmemmap). Nothing is
    /// changed on an error.
    pub(crate) fn unfold(&self, pfn: Pfn, order: Order) -> Result<(), OutOfMemory> {
        if !order.is_foldable() {
            return Ok(());
        }
        let first = pfn.map_page().0;
        let tails = first + 1..first + order.map_pages();
        self.materialise_missing(tails.clone())?;
        // While the class says folded nobody looks at these words, and when it says `Mapped` they are whole.
        self.write_tails(pfn, order);
        tails.for_each(|tail| self.classes.set(MapPage(tail), ClassByte::MAPPED));
        Ok(())
    }

    /// Publishes the tails of a frozen folio as folded, ahead of taking their memory away. Returns the map pages whose
    /// memory is to go after a grace period: pass them to [`fold`](Self::fold).
    pub(crate) fn publish_tails(&self, pfn: Pfn, order: Order) -> Range<u64> {
        let first = pfn.map_page().0;
        let tails = first + 1..first + order.map_pages();
        if order.get() >= MAP_PAGE_ORDER && self.is_flat(pfn, order) {
            // The head's own map page: back to the head standing for it.
            (pfn.0 + 1..pfn.0 + PAGES_PER_MAP_PAGE).for_each(|tail| self.clear(Pfn(tail)));
        }
        self.classes.set_tails(tails.clone(), order);
        tails
    }

    /// Publishes a free map page as folded, ahead of taking its memory away; whether there is memory to take. The
    /// caller owns all its pages, but for those that are nobody's (withheld ones and holes).
    pub(crate) fn publish_free(&self, map_page: MapPage) -> bool {
        if self.classes.get(map_page) != ClassByte::MAPPED {
            return false;
        }
        self.classes.set(map_page, ClassByte::FREE.backed());
        true
    }

    /// The memory of `map_pages`, as [`fold`](Self::fold) wants it, in runs of those that have memory.
    pub(crate) fn backed_runs(&self, map_pages: Range<u64>) -> impl Iterator<Item = FoldRange> {
        runs(map_pages.filter(|&map_page| self.classes.get(MapPage(map_page)).is_backed()))
            .map(|run| FoldRange { backed: run.end - run.start, bytes: self.bytes_of(run) })
    }

    /// Takes the memory behind `ranges` (from [`backed_runs`](Self::backed_runs)) away and notes it in the classes.
    /// Returns map pages folded; what the platform could not fold stays backed.
    ///
    /// # Safety
    /// All ranges were published as folded by their owner, who still owns them; and a grace period has passed since (or
    /// the protocol is one of those that are wrong on purpose).
    pub(crate) unsafe fn fold(&self, ranges: &[FoldRange]) -> u64 {
        // SAFETY: the caller's promise is what the mapping asks for; see the module's text for why nobody reads or
        // writes.
        let done = unsafe { self.pages.fold(ranges) };
        let bytes_per_map_page = self.bytes_of(0..1).end;
        let mut folded = 0;
        for range in ranges.iter().take(done) {
            let Range { start, end } = range.bytes;
            for map_page in (start / bytes_per_map_page..end / bytes_per_map_page).map(MapPage) {
                let class = self.classes.get(map_page);
                if class.is_backed() {
                    self.classes.set(map_page, class.unbacked());
                    folded += 1;
                }
            }
        }
        self.materialised.fetch_sub(folded, Ordering::Relaxed);
        folded
    }

    /// Makes a frozen folio into frozen folios of order `to`. Nothing is changed on an error.
    pub(crate) fn split(&self, pfn: Pfn, order: Order, to: Order) -> Result<(), OutOfMemory> {
        let kind = State(self.pages.get(pfn.0).map_or(0, |page| page.state.load(Ordering::Relaxed))).kind();
        let first = pfn.map_page().0;
        let all = first..first + order.map_pages();
        let is_flat = self.is_flat(pfn, order) && order.get() >= MAP_PAGE_ORDER;
        let stride = if is_flat { 1 } else { to.map_pages() };
        self.materialise_missing(all.clone().step_by(stride as usize))?;
        for leftover in all.clone().map(MapPage) {
            // Folded in class, but its memory has not gone yet: it may hold old words.
            let now = self.classes.get(leftover);
            if now.tail_order().is_some() && now.is_backed() {
                self.clear_map_page(leftover);
            }
        }
        if is_flat || to.get() < MAP_PAGE_ORDER {
            // Every descriptor is, or will be, written.
            for piece in (pfn.0..pfn.0 + order.pages()).step_by(to.pages() as usize) {
                self.write_tails(Pfn(piece), to);
            }
        }
        for piece in (pfn.0..pfn.0 + order.pages()).step_by(to.pages() as usize).map(Pfn) {
            self.store(piece, self.marked(piece, State::head(to, kind)), Ordering::Release);
        }
        for map_page in all {
            let has_head = (map_page - first).is_multiple_of(to.map_pages());
            let now = self.classes.get(MapPage(map_page));
            let class = match (has_head || is_flat, now.is_backed()) {
                (true, _) => ClassByte::MAPPED,
                (false, true) => ClassByte::tail(to).backed(),
                (false, false) => ClassByte::tail(to),
            };
            self.classes.set(MapPage(map_page), class);
        }
        Ok(())
    }

    /// Makes adjacent frozen folios that fill the block of `order` at `pfn` one frozen folio of `kind`. Cannot fail.
    pub(crate) fn collapse(&self, pfn: Pfn, order: Order, kind: Kind) {
        let first = pfn.map_page();
        if order.get() <= MAP_PAGE_ORDER {
            (pfn.0 + 1..pfn.0 + order.pages()).for_each(|tail| self.clear(Pfn(tail)));
        } else {
            let first_pfn = first.first_pfn().0;
            (first_pfn + 1..first_pfn + PAGES_PER_MAP_PAGE).for_each(|tail| self.clear(Pfn(tail)));
        }
        for tail in (first.0 + 1..first.0 + order.map_pages()).map(MapPage) {
            if self.classes.is_mapped(tail) {
                self.clear_map_page(tail);
            }
        }
        self.classes.set_tails(first.0 + 1..first.0 + order.map_pages(), order);
        let tails = first.0 + 1..first.0 + order.map_pages();
        let is_backed = tails.clone().all(|tail| self.classes.get(MapPage(tail)).is_backed());
        if order.get() < MAP_PAGE_ORDER || (self.layout() == Layout::Flat && is_backed) {
            self.write_tails(pfn, order);
            tails.for_each(|tail| self.classes.set(MapPage(tail), ClassByte::MAPPED));
        }
        self.store(pfn, self.marked(pfn, State::head(order, kind.into())), Ordering::Release);
    }

    /// Materialises the descriptors of free memory, as a flat memory map has them. The caller owns every page, so nobody
    /// else is unfolding any of it. Nothing is changed on an error.
    pub(crate) fn unfold_free(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        self.classes.ensure(map_pages.clone())?;
        self.materialise_missing(map_pages.clone())?;
        map_pages.for_each(|map_page| self.classes.set(MapPage(map_page), ClassByte::MAPPED));
        Ok(())
    }

    /// Where map pages lie in the mapping of the map, in bytes.
    pub(crate) fn bytes_of(&self, map_pages: Range<u64>) -> Range<u64> {
        self.pages.bytes_of(map_pages.start * PAGES_PER_MAP_PAGE..map_pages.end * PAGES_PER_MAP_PAGE)
    }
}

/// Adjacent numbers of an ascending sequence, joined.
fn runs(numbers: impl Iterator<Item = u64>) -> impl Iterator<Item = Range<u64>> {
    let mut numbers = numbers.peekable();
    core::iter::from_fn(move || {
        let start = numbers.next()?;
        let mut end = start + 1;
        while numbers.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}
