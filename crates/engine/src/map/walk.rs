//! The walker's way to a folio.

use crate::geometry::{MapPage, Pfn};
use crate::map::MemoryMap;
use crate::page::{MAX_REFS, POISON, Page, State};
use crate::platform::{Mapping, Owner};
use crate::protocol::Protocol;
use crate::protocol::class::{Class, ClassByte, Miss};
use crate::sync::{AtomicU8, Ordering};
use crate::table::View;

/// The descriptor of a page, and the class byte of its map page.
pub(crate) struct PageEntry<'m, O> {
    pub(crate) page: &'m Page<O>,
    class: &'m AtomicU8,
}

impl<O> PageEntry<'_, O> {
    /// The class byte of the map page; `Mapped` if the rules do not ask. Read inside a section, `Mapped` stands until the
    /// section ends, as far as reading the descriptor goes.
    #[inline]
    pub(crate) fn class<R: Protocol>(&self) -> ClassByte {
        if R::ASKS_CLASS { ClassByte(self.class.load(Ordering::Acquire)) } else { ClassByte::MAPPED }
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
    pub(crate) fn entry(self, pfn: Pfn) -> Option<PageEntry<'m, O>> {
        let page = self.pages.get(pfn.0)?;
        // SAFETY: the class table covers every page of the map (`Engine::new`), and this page is one.
        let class = unsafe { self.classes.get_unchecked(pfn.map_page().0) };
        Some(PageEntry { page, class })
    }
}

impl<M: Mapping, O: Owner> MemoryMap<M, O> {
    /// The walker's common case: takes a reference on the folio whose head's descriptor is `page`, if that is a head and
    /// one compare-and-swap does it. The caller is inside a section, and has asked for the class there.
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

    /// One attempt to take a reference at a head that was seen as `state`.
    #[inline]
    pub(crate) fn take<R: Protocol>(page: &Page<O>, state: State) -> Result<(), State> {
        R::between_look_and_swap();
        // Acquire: pairs with the Release of the thaw, so that the owner's data is seen. Relaxed on failure: the caller
        // looks again.
        page.state
            .compare_exchange(state.0, state.0 + 1, Ordering::Acquire, Ordering::Relaxed)
            .map(|_| ())
            .map_err(State)
    }

    /// Where the head of `pfn` is: `class`, that of its map page, says it, or leaves it to the page's own `word`. Both may be
    /// stale; the head's word has the last say (see `State::covers`).
    pub(crate) fn resolve(class: Class, pfn: Pfn, word: impl FnOnce() -> State) -> Result<Pfn, Miss> {
        match (class.miss(), class) {
            (Some(miss), _) => Err(miss),
            (None, Class::Tail(order)) => Ok(pfn.head(order)),
            (None, _) => Ok(word().head_of(pfn)),
        }
    }

    /// As [`resolve`](Self::resolve), as things are now: without the class where the rules do not ask. The caller is inside
    /// a section.
    pub(crate) fn head_of<R: Protocol>(&self, pfn: Pfn) -> Result<Pfn, Miss> {
        let class = if R::ASKS_CLASS { self.classes.get(pfn.map_page()).class() } else { Class::Mapped };
        // Acquire: pairs with the Release of a tail, so that memory is behind the head it leads to.
        let word = |page: &Page<O>| State(page.state.load(Ordering::Acquire));
        Self::resolve(class, pfn, || self.pages.get(pfn.0).map_or(State::ZERO, word))
    }

    /// For the protocols that do not wait: a compare-and-swap at `head` has failed. Did it land on a folded map page?
    #[inline]
    pub(crate) fn is_stray<R: Protocol>(&self, head: Pfn) -> bool {
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
            // seen inside a section), and it changes a bit that nothing else depends on.
            page.state.fetch_or(POISON, Ordering::Relaxed);
        }
    }
}
