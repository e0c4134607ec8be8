//! The seam between the engine and a kind of descriptors.

use core::fmt;
use core::ops::{Deref, Range};

use super::head::{Head, Owner};
use crate::barrier::Barrier;
use crate::geometry::{MapPage, MapShape, Order, Pfn};
use crate::heap::OutOfMemory;
use crate::map::{MapEntry, MemoryMap};
use crate::mapping::{Mapping, TableKind};
use crate::page::{Kind, State};
use crate::protocol::Protocol;
use crate::protocol::class::{Class, ClassEntry, Miss};
use crate::protocol::classes::Classed;
use crate::rcu::Reader;
use crate::reserve::{NewError, Tables};
use crate::stock::Source;
use crate::sync::Ordering;

/// A kind of descriptors: [`Page64`](crate::Page64) or [`Memdesc`](crate::Memdesc).
pub trait Descriptors: Classed + Copy + fmt::Debug + Default + Send + Sync + 'static {
    /// As the command line spells it.
    const NAME: &'static str;
    /// The descriptor of a folio.
    #[doc(hidden)]
    type Head<O: Owner>: Head<O>;
    /// The memory map made of them.
    #[doc(hidden)]
    type Map<M: Mapping, O: Owner>: DescriptorMap<M, O, Kind = Self, Head = Self::Head<O>>;

    /// Sizes of the memory map's parts, with owners that keep an `O` in a folio's descriptor.
    fn shape<O: Owner>() -> MapShape;
}

/// What a page looked like at one moment, without a reference. It may be different by now, and even at that moment the
/// parts were read one after the other; no decision that matters may rest on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// The class of its map page.
    pub class: Class,
    /// Whether memory was behind the map page.
    pub backed: bool,
    /// What stands at the page itself: its folio's state at the first page, a tail's at others; zero where the class is not
    /// `Mapped`.
    pub state: State,
    /// The head of its folio and the head's state word, if it belonged to one.
    pub head: Option<(Pfn, State)>,
}

/// Two answers to "which folio is this page in?" contradict each other. For the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan;

/// What came of a walker's one look.
pub enum Look<'m, H> {
    /// A reference was taken on the folio that has the page.
    Taken(&'m H),
    /// A reference was taken, on a folio that may not have the page: it is to be put again.
    Mistaken(&'m H),
    /// The page is in no folio, or just on its way in or out of one.
    Missed(Miss),
    /// Nothing was taken, or found out. The class was read outside of the section, and may only be used to say that there is nothing.
    Nothing(ClassEntry),
}

/// A memory map made of one kind of descriptors: a folio's life, and the way to it. The caller of what changes something owns
/// the pages.
pub trait DescriptorMap<M: Mapping, O: Owner>:
    OfflinePages + Deref<Target = MemoryMap<Self::Kind, Self::Entry, M>> + Send + Sync + Sized
{
    /// Whose map it is.
    type Kind: Classed;
    /// What stands for a page by itself.
    type Entry: MapEntry;
    /// The descriptor of a folio.
    type Head: Head<O>;
    /// Where the class and the page's own entry lead: to a folio's descriptor, perhaps.
    type Place: Copy + PartialEq;
    /// What a walker keeps of the map.
    type View<'m>: Copy + Send + Sync
    where
        Self: 'm;
    /// What folds descriptors that are no part of the map.
    type ObjectFolder: ObjectFolder<Self>;

    /// Whether a place may have another folio's descriptor by the time a reference is taken there, in spite of an equal state:
    /// [`holds`](Self::holds) is asked again then, with the reference held. If not, the word that was swapped says it all.
    const RECHECKS: bool;

    /// The map over `base`, with whatever tables it has besides.
    ///
    /// # Errors
    /// [`NewError`].
    fn new<E, R: Fn(TableKind, u64) -> Result<M, E>>(
        base: MemoryMap<Self::Kind, Self::Entry, M>,
        tables: &Tables<R>,
    ) -> Result<Self, NewError<E>>;

    /// The tables it has besides the map and its classes.
    fn object_tables<'m>(&'m self) -> impl Iterator<Item = (TableKind, &'m M)>
    where
        M: 'm;

    // Walking. The caller is inside a section, but for `view`.

    /// What a walker keeps of the map.
    fn view(&self) -> Self::View<'_>;
    /// The walker's common case: one look, one compare-and-swap, in a section of its own.
    fn try_get_fast<'m, R: Protocol, B: Barrier>(
        view: Self::View<'m>,
        reader: &Reader<'_, B>,
        pfn: Pfn,
    ) -> Look<'m, Self::Head>
    where
        Self: 'm;
    /// Where class and entry of `pfn` lead, as things are now: without the class where the rules do not ask.
    fn find<R: Protocol>(&self, pfn: Pfn) -> Result<Self::Place, Miss>;
    /// The descriptor at a place. It may not be a folio's, or another's by now.
    fn head_at(&self, place: Self::Place) -> Option<&Self::Head>;
    /// Whether the folio of `state`, which was seen at `place`, contains `pfn`.
    fn holds(&self, place: Self::Place, state: State, pfn: Pfn) -> bool;
    /// For the protocols that do not wait: whether a compare-and-swap at `place` lands on what is folded.
    fn is_folded(&self, place: Self::Place) -> bool;

    // A folio's life.

    /// The first page of a folio, by its descriptor.
    fn pfn_of(&self, head: &Self::Head) -> Pfn;
    /// The descriptor of the folio that begins at `pfn`. The caller owns it, or has a reference.
    fn head(&self, pfn: Pfn) -> Option<&Self::Head>;
    /// Makes the free block at `pfn` a frozen folio. Nothing is changed on an error. `cpu` is the caller's, as
    /// [`Platform::cpu`](crate::Platform::cpu) says it.
    fn claim(&self, pfn: Pfn, order: Order, kind: Kind, cpu: usize) -> Result<&Self::Head, OutOfMemory>;
    /// Makes the frozen folio at `pfn` free memory. Allocates nothing, cannot fail. The caller keeps owning the pages
    /// and gives them to the allocator next. `cpu` as in `claim`.
    fn release(&self, head: &Self::Head, pfn: Pfn, order: Order, cpu: usize);
    /// Materialises and writes everything that stands for single pages of a frozen folio (Linux: restoring the vmemmap).
    /// Nothing is changed on an error.
    fn unfold(&self, pfn: Pfn, order: Order, source: &mut Source<'_>) -> Result<(), OutOfMemory>;
    /// The map pages of a frozen folio that fold.
    fn foldable(&self, pfn: Pfn, order: Order) -> Range<u64>;
    /// Publishes those as folded, ahead of taking their memory away, which is to go after a grace period.
    fn publish_tails(&self, pfn: Pfn, order: Order) -> Range<u64>;
    /// Makes a frozen folio into frozen folios of order `to`. Nothing is changed on an error.
    fn split(
        &self,
        pfn: Pfn,
        order: Order,
        to: Order,
        cpu: usize,
        source: &mut Source<'_>,
    ) -> Result<(), OutOfMemory>;
    /// Objects that a split into `pieces` takes.
    fn objects_for(pieces: u64) -> u64;
    /// Takes an object that no folio has, for [`Stock::objects`](crate::stock::Stock): its number.
    fn take_object(&self, cpu: usize) -> Result<u64, OutOfMemory>;
    /// Gives such an object back.
    fn give_object(&self, number: u64);
    /// Makes adjacent frozen folios that fill the block of `order` at `pfn` one frozen folio of `kind`, with the descriptor of
    /// the first. Cannot fail.
    fn collapse(&self, head: &Self::Head, pfn: Pfn, order: Order, kind: Kind);

    // Looking, for tools and the audit.

    /// A page of the map as it is now. The caller is inside a section, or nothing moves.
    fn peek(&self, pfn: Pfn) -> Peek;
    /// The folio that `pfn` is in: its first page and its state. Nothing moves.
    ///
    /// # Errors
    /// [`Orphan`].
    fn folio_of(&self, pfn: Pfn, class: Class) -> Result<Option<(Pfn, State)>, Orphan>;
    /// Objects in use, where descriptors are objects.
    fn objects(&self) -> Option<u64>;

    /// One attempt to take a reference at a descriptor that was seen as `state`.
    #[inline]
    fn take<R: Protocol>(head: &Self::Head, state: State) -> Result<(), State> {
        R::between_look_and_swap();
        // Acquire: pairs with the Release of the thaw, so that the owner's data is seen. Relaxed on failure: the caller
        // looks again.
        head.state()
            .compare_exchange(state.0, state.0 + 1, Ordering::Acquire, Ordering::Relaxed)
            .map(|_| ())
            .map_err(State)
    }
}

/// Fake-offline pages with descriptors of their own.
pub trait OfflinePages {
    /// Whether there are such pages, so that there is a reference to drop. If not, all else here is never called, but for
    /// [`is_given_up`](Self::is_given_up).
    const DESCRIBES_OFFLINE: bool;

    /// Writes the descriptors of those of `map_pages` that are `Offline`: each page a folio of its own, of kind
    /// `Offline`, with one reference. They have been materialised.
    fn describe_offline(&self, map_pages: Range<u64>);
    /// As [`describe_offline`](Self::describe_offline), for one map page of whatever class, whose pages are free.
    fn write_offline(&self, map_page: MapPage);
    /// Whether `pfn` is fake-offline with a descriptor, hidden or not. Only the one who changes memory blocks makes such
    /// pages and ends them. The caller is inside a section.
    fn is_held_offline(&self, pfn: Pfn) -> bool;
    /// Drops the one reference of a fake-offline page, if it is the only one; what was found if not.
    fn drop_offline(&self, pfn: Pfn) -> Result<(), State>;
    /// Takes the reference of a fake-offline page again, if it was dropped.
    fn retake_offline(&self, pfn: Pfn);
    /// Tells walkers by the class that the fake-offline pages of `map_page` are nothing to take, or that they are there
    /// again.
    fn hide_offline(&self, map_page: MapPage, is_hidden: bool);
    /// Whether `pfn` is left to the driver alone: fake-offline, with no reference that could be dropped. The caller is inside
    /// a section.
    fn is_given_up(&self, pfn: Pfn) -> bool;
    /// Ends fake-offline pages: what stands for them is as for free pages again. Their references have been dropped.
    fn end_offline(&self, map_page: MapPage);
}

/// Folds descriptors that are no part of the map: in two steps, with the grace period of the map pages in between.
pub trait ObjectFolder<Map>: Sized {
    /// For up to about `batch` map pages' worth.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn new(batch: usize) -> Result<Self, OutOfMemory>;
    /// Takes what is free, and publishes it as folded. Whether there is anything.
    fn collect(&mut self, map: &Map) -> bool;
    /// Takes the memory of that away; 4 KiB pages given back. A grace period has passed (or the protocol is wrong on purpose).
    fn finish(&mut self, map: &Map) -> u64;
}

impl<Map> ObjectFolder<Map> for () {
    fn new(_: usize) -> Result<Self, OutOfMemory> {
        Ok(())
    }
    fn collect(&mut self, _: &Map) -> bool {
        false
    }
    fn finish(&mut self, _: &Map) -> u64 {
        0
    }
}
