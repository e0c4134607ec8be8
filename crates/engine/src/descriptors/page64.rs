//! A descriptor of 64 bytes for every page, 64 of them in a map page. A folio's state stands in the descriptor of its first page,
//! its *head*; tails are written inside small folios only.

use core::ops::{Deref, Range};

use super::head::Owner;
use super::page::Page;
use super::seam::{DescriptorMap, Descriptors, Look, Orphan, Peek};
use crate::barrier::Barrier;
use crate::geometry::{MapGeometry, MapPage, MapShape, Order, Pfn};
use crate::heap::OutOfMemory;
use crate::map::{Layout, MemoryMap};
use crate::mapping::{Mapping, TableKind};
use crate::page::{Kind, POISON, State};
use crate::protocol::Protocol;
use crate::protocol::class::{Class, ClassEntry, Miss};
use crate::protocol::classes::Classed;
use crate::rcu::Reader;
use crate::reserve::{NewError, Tables};
use crate::stock::Source;
use crate::sync::{AtomicU8, Ordering};
use crate::table::View;

/// A descriptor of 64 bytes for every page, with up to 56 bytes of the owner's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page64;

impl MapGeometry for Page64 {
    const MAP_PAGE_ORDER: u32 = if cfg!(loom) { 1 } else { 6 };
    // The head's.
    const KEPT_MAP_PAGES: u64 = 1;
    const MIN_FOLD_ORDER: u32 = Self::MAP_PAGE_ORDER + 1;
}

impl Classed for Page64 {
    type Cell = AtomicU8;
}

impl Descriptors for Page64 {
    const NAME: &'static str = "page";
    type Head<O: Owner> = Page<O>;
    type Map<M: Mapping, O: Owner> = PageMap<M, O>;

    fn shape<O: Owner>() -> MapShape {
        MapShape { map_page_order: Self::MAP_PAGE_ORDER, entry_bytes: 64, class_bytes: 1, object_bytes: 0 }
    }
}

/// Exactly one map page.
const MAP_PAGE: Order = Order::of(Page64::MAP_PAGE_ORDER);

/// Descriptors of 64 bytes, under classes.
pub struct PageMap<M, O>(MemoryMap<Page64, Page<O>, M>);

impl<M, O> Deref for PageMap<M, O> {
    type Target = MemoryMap<Page64, Page<O>, M>;
    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// The descriptors and class bytes of a map.
pub struct PageView<'m, O> {
    pages: View<'m, Page<O>>,
    classes: View<'m, AtomicU8>,
}

impl<O> Clone for PageView<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<O> Copy for PageView<'_, O> {}

/// The class byte; `Mapped` if the rules do not ask. Read inside a section, `Mapped` stands until the section ends, as far as
/// reading the descriptor goes.
#[inline]
fn class<R: Protocol>(byte: &AtomicU8) -> ClassEntry {
    if R::ASKS_CLASS { ClassEntry(byte.load(Ordering::Acquire).into()) } else { ClassEntry::MAPPED }
}

/// What a walker's one look at a descriptor has come to.
enum OneLook {
    Taken,
    Free,
    /// A tail, frozen, saturated, contended, or folded by now.
    Unclear,
}

/// Where the folio of `pfn` starts, as `state` says, which stands at `pfn` in a materialised map page.
#[inline]
const fn head_of(state: State, pfn: Pfn) -> Pfn {
    if state.is_head() {
        pfn
    } else if state.is_tail() {
        pfn.head(state.order())
    } else {
        // Not written: the first descriptor of the map page stands for all of it.
        pfn.head(MAP_PAGE)
    }
}

impl<M: Mapping, O: Owner> PageMap<M, O> {
    /// Where the class `seen` says which folio has the page: one look at its head, one compare-and-swap. It was read from `byte`,
    /// outside of a section.
    #[inline]
    fn try_get_by_class<'m, R: Protocol, B: Barrier>(
        view: PageView<'m, O>,
        reader: &Reader<'_, B>,
        byte: &AtomicU8,
        seen: ClassEntry,
        pfn: Pfn,
    ) -> Option<&'m Page<O>> {
        let order = seen.tail_order()?;
        let head = view.pages.get(pfn.head(order).0)?;
        let is_taken = reader.within(|| {
            // The class first, inside the section: it is what makes the head safe to read.
            if class::<R>(byte) != seen {
                return false;
            }
            let state = State(head.state.load(Ordering::Relaxed));
            state.is_head_of(order) && state.is_takeable() && Self::take::<R>(head, state).is_ok()
        });
        is_taken.then_some(head)
    }

    /// Where the head of `pfn` is: `class`, that of its map page, says it, or leaves it to the page's own `word`. Both may be
    /// stale; the head's word has the last say (see `State::covers`).
    #[inline]
    fn resolve(class: Class, pfn: Pfn, word: impl FnOnce() -> State) -> Result<Pfn, Miss> {
        match (class.miss(), class) {
            (Some(miss), _) => Err(miss),
            (None, Class::Tail(order)) => Ok(pfn.head(order)),
            (None, _) => Ok(head_of(word(), pfn)),
        }
    }

    /// `state` with the poison mark of `pfn`.
    pub(super) fn marked(&self, pfn: Pfn, state: State) -> State {
        if self.is_poisoned(pfn) { State(state.0 | POISON) } else { state }
    }

    pub(super) fn store(&self, pfn: Pfn, state: State, order: Ordering) {
        if let Some(page) = self.pages.get(pfn.0) {
            page.state.store(state.0, order);
        }
    }

    /// The state word at `pfn`, whatever the class says.
    #[inline]
    pub(super) fn word(&self, pfn: Pfn, order: Ordering) -> State {
        self.pages.get(pfn.0).map_or(State::ZERO, |page| State(page.state.load(order)))
    }

    /// The state word of `pfn` as it is now; zero where the class is not `Mapped`. The caller is inside a section, or
    /// nothing moves.
    pub(super) fn state(&self, pfn: Pfn) -> State {
        match self.classes.get(self.map_page(pfn)) {
            ClassEntry::MAPPED => self.word(pfn, Ordering::Acquire),
            _ => State::ZERO,
        }
    }

    fn write_tails(&self, pfn: Pfn, order: Order) {
        for tail in pfn.0 + 1..pfn.0 + order.pages() {
            // Release: says that memory is behind the head's map page, which an old class of the tail's does not.
            self.store(Pfn(tail), self.marked(Pfn(tail), State::tail(order)), Ordering::Release);
        }
    }

    /// Whether the tails in the head's own map page are written. The caller owns the folio.
    fn has_written_tails(&self, pfn: Pfn, order: Order) -> bool {
        order.get() > 0 && self.word(pfn.plus(1), Ordering::Relaxed).is_tail()
    }

    /// Whether every descriptor of the folio, of a map page or more, is written. (A folded one may have written tails too,
    /// those of the head's own map page.) The caller owns the folio.
    fn is_flat(&self, pfn: Pfn, order: Order) -> bool {
        order >= MAP_PAGE
            && self.has_written_tails(pfn, order)
            && self.foldable(pfn, order).all(|tail| self.classes.is_mapped(MapPage(tail)))
    }

    /// Clears the written tails of the head's own map page.
    fn clear_tails(&self, pfn: Pfn, order: Order) {
        let pages = order.pages().min(Page64::PAGES_PER_MAP_PAGE);
        (pfn.0 + 1..pfn.0 + pages).for_each(|tail| self.clear(Pfn(tail)));
    }
}

impl<M: Mapping, O: Owner> DescriptorMap<M, O> for PageMap<M, O> {
    type Kind = Page64;
    type Entry = Page<O>;
    type Head = Page<O>;
    /// The head's page number.
    type Place = Pfn;
    type View<'m>
        = PageView<'m, O>
    where
        Self: 'm;
    type ObjectFolder = ();

    // Refcount, order and head stand in one word at the head's own place.
    const RECHECKS: bool = false;

    fn new<E, R: Fn(TableKind, u64) -> Result<M, E>>(
        base: MemoryMap<Page64, Page<O>, M>,
        _: &Tables<R>,
    ) -> Result<Self, NewError<E>> {
        #[cfg(not(loom))]
        let () = Page::<O>::SIZE_CHECK;
        Ok(Self(base))
    }

    fn object_tables<'m>(&'m self) -> impl Iterator<Item = (TableKind, &'m M)>
    where
        M: 'm,
    {
        core::iter::empty()
    }

    fn view(&self) -> PageView<'_, O> {
        PageView { pages: self.pages.view(), classes: self.classes.view() }
    }

    #[inline]
    fn try_get_fast<'m, R: Protocol, B: Barrier>(
        view: PageView<'m, O>,
        reader: &Reader<'_, B>,
        pfn: Pfn,
    ) -> Look<'m, Page<O>>
    where
        Self: 'm,
    {
        let Some(page) = view.pages.get(pfn.0) else { return Look::Nothing(ClassEntry::ABSENT) };
        // SAFETY: the class table covers every page of the map (`MemoryMap::new`), and this page is one.
        let byte = unsafe { view.classes.get_unchecked(Page64::map_page(pfn).0) };
        // The class is asked twice. Outside of the section it spares folded pages the section; inside it is what makes
        // the descriptor safe to read. What comes out of the section is one byte on purpose: more would travel through
        // memory. (Protocols that do not wait take the other way, which notices where a failed swap has landed.)
        let seen = class::<R>(byte);
        if !R::WAITS {
            return Look::Nothing(seen);
        }
        if seen != ClassEntry::MAPPED {
            let head = Self::try_get_by_class::<R, B>(view, reader, byte, seen, pfn);
            return head.map_or(Look::Nothing(seen), Look::Taken);
        }
        let look = reader.within(|| {
            if class::<R>(byte) != ClassEntry::MAPPED {
                return OneLook::Unclear;
            }
            // Relaxed, here and at every look at a state word that a compare-and-swap confirms.
            let state = State(page.state.load(Ordering::Relaxed));
            // A refcount above 0 stands only at heads, and a head covers itself.
            if state.is_takeable() {
                return if Self::take::<R>(page, state).is_ok() { OneLook::Taken } else { OneLook::Unclear };
            }
            if state.is_head() || state.is_tail() {
                return OneLook::Unclear;
            }
            // Not written: the page is in the folio of the map page's first descriptor, or in none. A folio that has had
            // it since before the look began has had its head written since before, too.
            let first = pfn.head(MAP_PAGE);
            match view.pages.get(first.0) {
                Some(page) if !State(page.state.load(Ordering::Relaxed)).covers(first, pfn) => OneLook::Free,
                _ => OneLook::Unclear,
            }
        });
        match look {
            OneLook::Taken => Look::Taken(page),
            OneLook::Free => Look::Missed(Miss::Free),
            OneLook::Unclear => Look::Nothing(seen),
        }
    }

    #[inline]
    fn find<R: Protocol>(&self, pfn: Pfn) -> Result<Pfn, Miss> {
        let class = if R::ASKS_CLASS { self.classes.get(self.map_page(pfn)).class() } else { Class::Mapped };
        // Acquire: pairs with the Release of a tail, so that memory is behind the head it leads to.
        Self::resolve(class, pfn, || self.word(pfn, Ordering::Acquire))
    }

    fn head_at(&self, place: Pfn) -> Option<&Page<O>> {
        self.pages.get(place.0)
    }

    #[inline]
    fn holds(&self, place: Pfn, state: State, pfn: Pfn) -> bool {
        state.covers(place, pfn)
    }

    fn is_folded(&self, place: Pfn) -> bool {
        !self.classes.get(self.map_page(place)).is_backed()
    }

    #[inline]
    fn pfn_of(&self, head: &Page<O>) -> Pfn {
        Pfn(self.pages.index_of(head))
    }

    fn head(&self, pfn: Pfn) -> Option<&Page<O>> {
        self.pages.get(pfn.0)
    }

    fn claim(&self, pfn: Pfn, order: Order, kind: Kind, _: usize) -> Result<&Page<O>, OutOfMemory> {
        // A head can be had where it is: what could be missing is found before anything is changed.
        let head = self.pages.get(pfn.0).ok_or(OutOfMemory)?;
        let all = self.map_pages(pfn, order);
        match self.layout() {
            Layout::Folded if Page64::is_foldable(order) => {
                self.classes.ensure(all.clone())?;
                self.ensure_mapped(MapPage(all.start))?;
                // A map page that is still materialised stays so for now: its folding can wait for a batch.
                self.classes.set_tails(all.start + 1..all.end, ClassEntry::tail(order));
            }
            Layout::Folded => {
                // One map page: unfolding it makes its class writable.
                self.ensure_mapped(MapPage(all.start))?;
                if order < MAP_PAGE {
                    self.write_tails(pfn, order);
                }
            }
            Layout::Flat => {
                if Page64::is_foldable(order) {
                    self.unfold_free(all)?;
                } else {
                    self.ensure_mapped(MapPage(all.start))?;
                }
                self.write_tails(pfn, order);
            }
        }
        // Release: tails and classes before the head.
        head.state.store(self.marked(pfn, State::head(order, kind.into())).0, Ordering::Release);
        Ok(head)
    }

    fn release(&self, _: &Page<O>, pfn: Pfn, order: Order, _: usize) {
        if self.has_written_tails(pfn, order) {
            self.clear_tails(pfn, order);
        }
        self.clear(pfn);
        // Folded to folded: no grace period. A walker that still believes in the tail looks at the head, and the head's
        // word speaks for itself.
        let all = self.map_pages(pfn, order);
        self.classes.set_free(all.start + 1..all.end, |tail| {
            self.clear_map_page(tail);
            self.classes.set_mapped(tail);
        });
    }

    fn unfold(&self, pfn: Pfn, order: Order, source: &mut Source<'_>) -> Result<(), OutOfMemory> {
        if !Page64::is_foldable(order) {
            return Ok(());
        }
        let tails = self.foldable(pfn, order);
        self.materialise_missing(tails.clone(), source)?;
        // While the class says folded no walker looks at these words, and when it says `Mapped` they are whole.
        self.write_tails(pfn, order);
        tails.for_each(|tail| self.classes.set_mapped(MapPage(tail)));
        Ok(())
    }

    fn foldable(&self, pfn: Pfn, order: Order) -> Range<u64> {
        let all = self.map_pages(pfn, order);
        all.start + 1..all.end
    }

    fn publish_tails(&self, pfn: Pfn, order: Order) -> Range<u64> {
        // Written tails in the head's own map page may stay: they name the same head. Freeing, splitting and collapsing clear
        // them.
        let tails = self.foldable(pfn, order);
        self.classes.set_tails(tails.clone(), ClassEntry::tail(order));
        tails
    }

    fn objects_for(_: u64) -> u64 {
        0
    }
    fn take_object(&self, _: usize) -> Result<u64, OutOfMemory> {
        Err(OutOfMemory)
    }
    fn give_object(&self, _: u64) {}

    fn split(
        &self,
        pfn: Pfn,
        order: Order,
        to: Order,
        _: usize,
        source: &mut Source<'_>,
    ) -> Result<(), OutOfMemory> {
        let kind = self.word(pfn, Ordering::Relaxed).kind();
        let all = self.map_pages(pfn, order);
        let first = all.start;
        let map_pages_of_piece = self.map_pages(pfn, to).count() as u64;
        let is_flat = self.is_flat(pfn, order);
        let stride = if is_flat { 1 } else { map_pages_of_piece };
        self.materialise_missing(all.clone().step_by(stride as usize), source)?;
        for leftover in all.clone().map(MapPage) {
            // Folded in class, but its memory has not gone yet: it may hold old words.
            let now = self.classes.get(leftover);
            if now.tail_order().is_some() && now.is_backed() {
                self.clear_map_page(leftover);
            }
        }
        let pieces = (pfn.0..pfn.0 + order.pages()).step_by(to.pages() as usize).map(Pfn);
        if is_flat || to < MAP_PAGE {
            // Every descriptor is, or will be, written.
            pieces.clone().for_each(|piece| self.write_tails(piece, to));
        } else if self.has_written_tails(pfn, order) {
            // The head stands for its map page again.
            self.clear_tails(pfn, order);
        }
        for piece in pieces {
            self.store(piece, self.marked(piece, State::head(to, kind)), Ordering::Release);
        }
        for map_page in all {
            let has_head = (map_page - first).is_multiple_of(map_pages_of_piece);
            let now = self.classes.get(MapPage(map_page));
            let class = match (has_head || is_flat, now.is_backed()) {
                (true, _) => ClassEntry::MAPPED,
                (false, true) => ClassEntry::tail(to).backed(),
                (false, false) => ClassEntry::tail(to),
            };
            self.classes.set(MapPage(map_page), class);
        }
        Ok(())
    }

    fn collapse(&self, _: &Page<O>, pfn: Pfn, order: Order, kind: Kind) {
        self.clear_tails(pfn, order);
        let tails = self.foldable(pfn, order);
        for tail in tails.clone().map(MapPage) {
            if self.classes.is_mapped(tail) {
                self.clear_map_page(tail);
            }
        }
        self.classes.set_tails(tails.clone(), ClassEntry::tail(order));
        let is_backed = tails.clone().all(|tail| self.classes.get(MapPage(tail)).is_backed());
        if order < MAP_PAGE || (self.layout() == Layout::Flat && is_backed) {
            self.write_tails(pfn, order);
            tails.for_each(|tail| self.classes.set_mapped(MapPage(tail)));
        }
        self.store(pfn, self.marked(pfn, State::head(order, kind.into())), Ordering::Release);
    }

    fn peek(&self, pfn: Pfn) -> Peek {
        let (class, backed) = self.class(self.map_page(pfn));
        let state = self.state(pfn);
        let head = Self::resolve(class, pfn, || state)
            .ok()
            .map(|head| (head, if head == pfn { state } else { self.state(head) }))
            .filter(|&(head, state)| state.covers(head, pfn));
        Peek { class, backed, state, head }
    }

    fn folio_of(&self, pfn: Pfn, class: Class) -> Result<Option<(Pfn, State)>, Orphan> {
        let own = self.state(pfn);
        let Ok(head) = Self::resolve(class, pfn, || own) else { return Ok(None) };
        let state = self.state(head);
        let is_in_folio = state.covers(head, pfn);
        let is_orphan = if let Class::Tail(_) = class {
            // A map page of tails has no head.
            head == pfn || !is_in_folio
        } else {
            let is_misplaced_head = own.is_head() && !pfn.is_aligned(own.order());
            let is_lost_tail = own.is_tail() && (!is_in_folio || state.order() != own.order());
            // Inside small folios every tail is written.
            let is_unwritten = !own.is_head() && !own.is_tail();
            is_misplaced_head || is_lost_tail || is_unwritten && is_in_folio && state.order() < MAP_PAGE
        };
        match is_orphan {
            true => Err(Orphan),
            false => Ok(is_in_folio.then_some((head, state))),
        }
    }

    fn objects(&self) -> Option<u64> {
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_map_page_is_one_page_of_descriptors() {
        assert_eq!(
            Page64::PAGES_PER_MAP_PAGE * Page64::shape::<()>().entry_bytes,
            crate::geometry::PAGE_SIZE
        );
    }
}
