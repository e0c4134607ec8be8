//! Handles on folios: shared or frozen, and never a page number that pretends to be one.
//!
//! [`Folio`] is one reference; dropping it puts it, and the last put frees the folio. [`Frozen`] is the whole folio,
//! refcount 0, nobody else on it: only it can be folded, unfolded, split, collapsed, given another kind, or have its
//! owner's data changed in place. Dropping it frees it. The one becomes the other by [`Folio::freeze`] and
//! [`Frozen::share`].

use alloc::vec::Vec;
use core::fmt;
use core::mem::ManuallyDrop;

use crate::descriptors::head::Head;
use crate::descriptors::seam::DescriptorMap;
use crate::engine::{Engine, HeadOf};
use crate::errors::{error_texts, from_out_of_memory};
use crate::geometry::{Order, Pfn};
use crate::heap::OutOfMemory;
use crate::page::{ASKED, Kind, MAX_REFS, PageKind, State};
use crate::platform::Platform;
use crate::stock::Source;
use crate::sync::{Ordering, fence};

/// A folio has [`MAX_REFS`] references: no more can be taken until some are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saturated;

impl fmt::Display for Saturated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the folio has the largest number of references: put some first")
    }
}
impl core::error::Error for Saturated {}

/// A reference that was taken out of the handles, to be stored as a number. It must come back by
/// [`Engine::from_raw`] exactly once, or the folio is never freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the reference is leaked unless it is given back to the engine"]
pub struct RawFolio(pub Pfn);

/// A counted reference on a folio.
#[must_use = "dropping it puts the reference"]
pub struct Folio<'e, P: Platform> {
    engine: &'e Engine<P>,
    /// The folio's descriptor. (The page number follows from it; putting needs only this.)
    head: &'e HeadOf<P>,
}

impl<'e, P: Platform> Folio<'e, P> {
    /// `head` is the descriptor of a folio of the engine's, on which the caller has a reference, which now is the handle's.
    #[inline]
    pub(crate) fn adopt(engine: &'e Engine<P>, head: &'e HeadOf<P>) -> Self {
        head.owner().may_read();
        Self { engine, head }
    }

    /// The engine it belongs to.
    pub fn engine(&self) -> &'e Engine<P> {
        self.engine
    }

    /// The state word now. Order and kind stand as long as the reference does; the refcount may change at any time.
    #[inline]
    pub fn state(&self) -> State {
        State(self.head.state().load(Ordering::Relaxed))
    }
    /// The first page.
    #[inline]
    pub fn pfn(&self) -> Pfn {
        self.engine.map.pfn_of(self.head)
    }
    /// The order; it cannot change while a reference is held.
    #[inline]
    pub fn order(&self) -> Order {
        self.state().order()
    }
    /// The kind; it cannot change while a reference is held. That of a folio that a walker found may be
    /// [`PageKind::Offline`]: then the engine alone keeps the page, and it means nothing.
    pub fn kind(&self) -> PageKind {
        self.state().kind()
    }
    /// References now, this one included.
    pub fn refs(&self) -> u32 {
        self.state().refs()
    }
    /// Whether `pfn` is one of its pages.
    #[inline]
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.state().covers(self.pfn(), pfn)
    }

    /// The owner's data in the folio's descriptor.
    #[inline]
    pub fn owner(&self) -> &P::Owner {
        // SAFETY: a reference keeps the folio shared; shared access hands out `&Owner` only, and `Owner: Sync`.
        unsafe { &*self.head.owner().get() }
    }

    /// Another reference.
    ///
    /// Context: any.
    ///
    /// # Errors
    /// [`Saturated`].
    pub fn get(&self) -> Result<Self, Saturated> {
        // Relaxed: a reference is held, so the folio cannot go away.
        let before = State(self.head.state().fetch_add(1, Ordering::Relaxed));
        if before.refs() >= MAX_REFS {
            // Undone before anyone could have used it; the counter has room for all CPUs at once.
            self.head.state().fetch_sub(1, Ordering::Relaxed);
            return Err(Saturated);
        }
        Ok(Self { engine: self.engine, head: self.head })
    }

    /// Marks the folio: its owner is asked to move it. The mark ends with the folio, also where it is split or collapsed, so
    /// [`State::is_asked`] tells whether a folio that looks the same is the same.
    ///
    /// Context: any.
    pub fn mark_asked(&self) {
        // Relaxed: the mark stands for itself.
        self.head.state().fetch_or(ASKED, Ordering::Relaxed);
    }

    /// Makes this, if it is the only reference, the frozen folio. From then on walkers get nothing.
    ///
    /// Context: any.
    ///
    /// # Errors
    /// The reference itself, when there are others.
    pub fn freeze(self) -> Result<Frozen<'e, P>, Self> {
        let mut state = self.state();
        while state.refs() == 1 {
            let frozen = state.with_refs(0);
            // Acquire: pairs with the Release of every put, so that all former holders are done. Release: the frozen
            // word before whatever its owner publishes next.
            match self.head.state().compare_exchange(state.0, frozen.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.head.owner().may_write();
                    let this = ManuallyDrop::new(self);
                    return Ok(Frozen { engine: this.engine, head: this.head, order: frozen.order() });
                }
                // A walker came, or its poison mark.
                Err(now) => state = State(now),
            }
        }
        Err(self)
    }

    /// Takes the reference out of the handle.
    pub fn into_raw(self) -> RawFolio {
        self.head.owner().may_read();
        RawFolio(ManuallyDrop::new(self).pfn())
    }
}

impl<P: Platform> Drop for Folio<'_, P> {
    #[inline]
    fn drop(&mut self) {
        self.head.owner().may_read();
        // Release: what this holder did happens before the folio is freed or frozen.
        let before = State(self.head.state().fetch_sub(1, Ordering::Release));
        if before.refs() == 1 {
            self.free(before.order());
        }
    }
}

impl<P: Platform> Folio<'_, P> {
    /// Frees it: the last reference is gone. A function of its own, because every put would save the registers that it needs.
    #[inline(never)]
    fn free(&self, order: Order) {
        // Acquire: pairs with the Release of the other holders' puts.
        fence(Ordering::Acquire);
        self.engine.free_block(self.head, order);
    }
}

impl<P: Platform> fmt::Debug for Folio<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Folio {} {:?}", self.pfn(), self.state())
    }
}

/// A folio that nothing else can reach. See the module's text.
#[must_use = "dropping it frees the folio"]
pub struct Frozen<'e, P: Platform> {
    engine: &'e Engine<P>,
    head: &'e HeadOf<P>,
    order: Order,
}

/// Why a frozen folio could not be split or collapsed. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReshapeError {
    /// The new order is not smaller (split).
    NotSmaller,
    /// The folios are not adjacent, in ascending order, or do not fill one aligned block of a valid order (collapse).
    NotABlock,
    /// The folios lie in different zones (collapse): a folio belongs to one zone's allocator.
    TwoZones,
    /// No memory for the descriptors that would be needed: free some and retry.
    OutOfMemory,
}

from_out_of_memory!(ReshapeError);

error_texts!(ReshapeError {
    NotSmaller => "split to a smaller order than the folio has",
    NotABlock => "collapse adjacent folios that fill one aligned block",
    TwoZones => "collapse folios of one zone: a folio cannot lie in two",
    OutOfMemory => "no memory for the new descriptors: free some and retry",
});

impl<'e, P: Platform> Frozen<'e, P> {
    /// The block whose descriptor is `head` is a frozen folio that the caller owns; the handle owns it now.
    pub(crate) fn adopt(engine: &'e Engine<P>, head: &'e HeadOf<P>, order: Order) -> Self {
        head.owner().may_write();
        Self { engine, head, order }
    }
    /// The engine it belongs to.
    pub fn engine(&self) -> &'e Engine<P> {
        self.engine
    }
    /// The first page.
    pub fn pfn(&self) -> Pfn {
        self.engine.map.pfn_of(self.head)
    }
    /// The order.
    pub fn order(&self) -> Order {
        self.order
    }
    /// The kind. Always an owner's: a fake-offline page has a reference of the engine's, and cannot be frozen.
    pub fn kind(&self) -> Kind {
        State(self.head.state().load(Ordering::Relaxed)).kind().owned().unwrap_or(Kind::Kernel)
    }
    /// Gives it another kind.
    pub fn set_kind(&mut self, kind: Kind) {
        let state = State(self.head.state().load(Ordering::Relaxed)).with_kind(kind.into());
        self.head.state().store(state.0, Ordering::Release);
    }
    /// The owner's data in the folio's descriptor.
    pub fn owner(&self) -> &P::Owner {
        // SAFETY: the handle is the only way to a frozen folio's data, and it is borrowed.
        unsafe { &*self.head.owner().get() }
    }
    /// The owner's data, to change.
    pub fn owner_mut(&mut self) -> &mut P::Owner {
        // SAFETY: as `owner`, and the handle is borrowed mutably: nobody else has `&Owner` or `&mut Owner`.
        unsafe { &mut *self.head.owner().get_mut() }
    }

    /// Shares it: refcount 1, walkers may find it from here on.
    ///
    /// Context: any.
    #[inline]
    pub fn share(self) -> Folio<'e, P> {
        let this = ManuallyDrop::new(self);
        this.head.owner().may_write();
        let state = State(this.head.state().load(Ordering::Relaxed)).with_refs(1);
        // Release: the owner's data, and the tails, before a walker can get a reference. A plain store: nobody else
        // writes to a head with refcount 0, but for a poison mark, which is only a hint.
        this.head.state().store(state.0, Ordering::Release);
        Folio { engine: this.engine, head: this.head }
    }

    /// Whether some of its map pages describe only tails and have memory that a fold would give back.
    pub fn has_unfolded_tails(&self) -> bool {
        self.engine.backed_tails(self.pfn(), self.order).next().is_some()
    }

    /// Materialises and writes every descriptor of the folio: what Linux does before it hands a huge page back.
    ///
    /// Context: takes frames and changes page tables.
    ///
    /// # Errors
    /// [`OutOfMemory`]; the folio is as it was.
    pub fn unfold(&mut self) -> Result<(), OutOfMemory> {
        self.engine.map.unfold(self.pfn(), self.order, &mut Source::Machine)
    }

    /// Makes it frozen folios of order `to`. The first piece keeps the owner's data, the others begin with zeros; all
    /// keep the kind.
    ///
    /// Context: may take frames and change page tables.
    ///
    /// # Errors
    /// The folio as it was, and why.
    #[allow(clippy::type_complexity)]
    pub fn split(self, to: Order) -> Result<Pieces<'e, P>, (Self, ReshapeError)> {
        self.split_from(to, &mut Source::Machine)
    }

    /// The same, with memory from that source.
    #[allow(clippy::type_complexity)]
    pub(crate) fn split_from(
        self,
        to: Order,
        source: &mut Source<'_>,
    ) -> Result<Pieces<'e, P>, (Self, ReshapeError)> {
        if to >= self.order {
            return Err((self, ReshapeError::NotSmaller));
        }
        if let Err(out_of_memory) = self.engine.split_block(self.pfn(), self.order, to, source) {
            return Err((self, out_of_memory.into()));
        }
        let this = ManuallyDrop::new(self);
        let head = this.pfn().0;
        Ok(Pieces { engine: this.engine, next: head, end: head + this.order.pages(), order: to })
    }

    /// Makes frozen folios one. They must be in ascending order, adjacent, fill a naturally aligned block of some order,
    /// and lie in one zone. The owner's data and the kind are those of the first.
    ///
    /// Context: any that may free heap memory.
    ///
    /// # Errors
    /// The folios as they were, and why.
    #[allow(clippy::type_complexity)]
    pub fn collapse(folios: Vec<Self>) -> Result<Self, (Vec<Self>, ReshapeError)> {
        let Some(first) = folios.first() else { return Err((folios, ReshapeError::NotABlock)) };
        let (engine, head, pfn, kind) = (first.engine, first.head, first.pfn(), first.kind());
        let mut end = pfn.0;
        let is_adjacent = folios.iter().all(|folio| {
            let fits = folio.pfn().0 == end && core::ptr::eq(folio.engine, engine);
            end += folio.order.pages();
            fits
        });
        let pages = end - pfn.0;
        let order = Order::fitting(pfn, pages);
        if !is_adjacent || order.pages() != pages {
            return Err((folios, ReshapeError::NotABlock));
        }
        // Each lies in one zone as a whole, since it was allocated there.
        let zone = engine.zone_of(pfn);
        if folios.iter().any(|folio| engine.zone_of(folio.pfn()) != zone) {
            return Err((folios, ReshapeError::TwoZones));
        }
        if folios.len() > 1 {
            engine.collapse_block(head, pfn, order, kind);
        }
        for folio in folios {
            let _owned_by_the_whole = ManuallyDrop::new(folio);
        }
        Ok(Self { engine, head, order })
    }
}

impl<P: Platform> Drop for Frozen<'_, P> {
    fn drop(&mut self) {
        self.engine.free_block(self.head, self.order);
    }
}

impl<P: Platform> fmt::Debug for Frozen<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frozen {} {}", self.pfn(), self.order)
    }
}

/// The pieces of a split folio, ascending. Those not taken are freed when this is dropped.
#[must_use = "dropping it frees the pieces that were not taken"]
pub struct Pieces<'e, P: Platform> {
    engine: &'e Engine<P>,
    next: u64,
    end: u64,
    order: Order,
}

impl<'e, P: Platform> Iterator for Pieces<'e, P> {
    type Item = Frozen<'e, P>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let head = self.engine.map.head(Pfn(self.next))?;
        self.next += self.order.pages();
        Some(Frozen::adopt(self.engine, head, self.order))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = ((self.end - self.next) >> self.order.get()) as usize;
        (left, Some(left))
    }
}

impl<P: Platform> ExactSizeIterator for Pieces<'_, P> {}

impl<P: Platform> Drop for Pieces<'_, P> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl<P: Platform> fmt::Debug for Pieces<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pieces {} .. {} of {}", Pfn(self.next), Pfn(self.end), self.order)
    }
}
