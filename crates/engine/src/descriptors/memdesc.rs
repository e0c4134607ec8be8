//! A word of 8 bytes for every page, which names the folio's object: Linux's plan for its memory map ("memdesc").
//!
//! # Words and classes
//!
//! All pages of a folio have the same word. So a map page of 512 words says one thing where one folio fills it, and its class
//! says it instead: `Tail`, with the object's number in the same entry. Folios of 2 MiB and more have no words, their own
//! first map page included; words exist where small folios do.
//!
//! # Why a walker never keeps a wrong reference
//!
//! Walkers write objects and never words. An object is in a table of objects, and what is freed there may be another folio's
//! at once, with the same state. The walker reads the class entry, the word, and the object's state, and swaps the state for
//! one with a reference more. *Then it asks the object whether its folio has the page*: where the folio begins stands in the
//! object, and how large it is in the state that was swapped. However the walker came to the object, that answer is right:
//!
//! 1. With the reference held, the object's folio can be neither freed, nor frozen, nor split: it begins where it began, and is
//!    as large, until the reference is put.
//! 2. What is read is not the page number of an earlier folio of that object. The owner stores it before it stores a state with
//!    references (Release); the swap (Acquire) has read that state or one that followed it.
//! 3. Nor of a later one: that is stored after the reference was put.
//!
//! If the page is another folio's, the walker puts the reference again, as any holder would: if it is the last one, the walker
//! frees that folio. An owner may therefore find one reference more than it knows of for a moment, and freezing fails, as it
//! does with walkers of its own pages.
//!
//! # Why a walker does not miss a folio
//!
//! An owner that gives pages to another object, or to none, renames them first and changes the states afterwards (Release). So the
//! page no longer names an object that can be had and does not have it, and the walker starts over. Words under the class of a
//! tail may be old; an unfold writes them before it says `Mapped` (Release), and the walker reads the entry (Acquire) before the
//! word.

use core::ops::{Deref, Range};

use super::head::Owner;
use super::objects::{Emptied, Object, Objects};
use super::seam::{DescriptorMap, Descriptors, Look, ObjectFolder, Orphan, Peek};
use super::word::Word;
use crate::barrier::Barrier;
use crate::geometry::{AREA_ORDER, MapGeometry, MapPage, MapShape, Order, Pfn};
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
use crate::sync::{AtomicU64, Ordering};
use crate::table::View;

/// A word of 8 bytes for every page, and an object for every folio: 16 bytes and the owner's data.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memdesc;

impl MapGeometry for Memdesc {
    const MAP_PAGE_ORDER: u32 = AREA_ORDER;
    // One class entry stands for all words of a map page.
    const KEPT_MAP_PAGES: u64 = 0;
    const MIN_FOLD_ORDER: u32 = Self::MAP_PAGE_ORDER;
}

impl Classed for Memdesc {
    type Cell = AtomicU64;
}

impl Descriptors for Memdesc {
    const NAME: &'static str = "memdesc";
    type Head<O: Owner> = Object<O>;
    type Map<M: Mapping, O: Owner> = MemdescMap<M, O>;

    fn shape<O: Owner>() -> MapShape {
        MapShape {
            map_page_order: Self::MAP_PAGE_ORDER,
            entry_bytes: 8,
            class_bytes: 8,
            object_bytes: size_of::<Object<O>>() as u64,
        }
    }
}

/// Words under classes, and the objects that they name.
pub struct MemdescMap<M, O> {
    map: MemoryMap<Memdesc, Word, M>,
    objects: Objects<M, O>,
}

impl<M, O> Deref for MemdescMap<M, O> {
    type Target = MemoryMap<Memdesc, Word, M>;
    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

/// The words, class entries and objects of a map.
pub struct MemdescView<'m, O> {
    words: View<'m, Word>,
    classes: View<'m, AtomicU64>,
    objects: View<'m, Object<O>>,
}

impl<O> Clone for MemdescView<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<O> Copy for MemdescView<'_, O> {}

/// The object that `entry` names, or leaves it to `word` to name.
#[inline]
fn named(entry: ClassEntry, word: &Word, order: Ordering) -> Option<u64> {
    match entry.tail_order() {
        Some(_) => Some(entry.object()),
        None if entry == ClassEntry::MAPPED => word.object(order),
        None => None,
    }
}

impl<M: Mapping, O: Owner> MemdescMap<M, O> {
    /// The object of the folio that has `pfn`, for its owner.
    fn object_of(&self, pfn: Pfn) -> Option<(u64, &Object<O>)> {
        let number = named(self.classes.get(self.map_page(pfn)), self.pages.get(pfn.0)?, Ordering::Acquire)?;
        Some((number, self.objects.get(number)?))
    }

    /// Whether the pages of the folio at `pfn` have words, rather than their map pages a class that names its object.
    fn has_words(&self, pfn: Pfn) -> bool {
        self.classes.is_mapped(self.map_page(pfn))
    }

    fn write_words(&self, pfn: Pfn, order: Order, object: u64) {
        for word in self.pages.slice(pfn.0..pfn.0 + order.pages()) {
            word.name(object);
        }
    }

    /// Makes an object that of a frozen folio.
    fn begin(&self, object: &Object<O>, pfn: Pfn, order: Order, kind: Kind) {
        // Relaxed: the state and the names are stored after it, and who relies on it has seen one of those.
        object.pfn.store(pfn.0, Ordering::Relaxed);
        object.state.store(State::head(order, kind.into()).0, Ordering::Release);
    }

    /// An object that no folio has.
    fn object_from(&self, cpu: usize, source: &mut Source<'_>) -> Result<(u64, &Object<O>), OutOfMemory> {
        match source {
            Source::Machine => self.objects.alloc(cpu),
            Source::Stock(stock) => {
                stock.objects.pop().ok_or(OutOfMemory).and_then(|number| self.objects.take_aside(number))
            }
        }
    }

    /// Names `object` for the block at `pfn`: by words, or by class.
    fn name(&self, by_words: bool, pfn: Pfn, order: Order, object: u64) {
        if by_words {
            self.write_words(pfn, order, object);
        } else {
            self.classes.set_tails(self.map_pages(pfn, order), ClassEntry::tail_of(order, object));
        }
    }

    /// Gives each piece of order `to` of the frozen folio but the first an object of its own, by words or by class. On an
    /// error each is the whole folio's again.
    fn name_pieces(
        &self,
        (pfn, order, of_whole): (Pfn, Order, u64),
        (to, kind): (Order, Kind),
        by_words: bool,
        cpu: usize,
        source: &mut Source<'_>,
    ) -> Result<(), OutOfMemory> {
        let pieces = || (pfn.0..pfn.0 + order.pages()).step_by(to.pages() as usize).skip(1).map(Pfn);
        for (done, piece) in pieces().enumerate() {
            let Ok((number, object)) = self.object_from(cpu, source) else {
                for piece in pieces().take(done) {
                    let number = match by_words {
                        true => self.pages.get(piece.0).and_then(|word| word.object(Ordering::Relaxed)),
                        false => Some(self.classes.get(self.map_page(piece)).object()),
                    };
                    match by_words {
                        true => self.write_words(piece, to, of_whole),
                        false => {
                            let tail = ClassEntry::tail_of(order, of_whole);
                            self.classes.set_tails(self.map_pages(piece, to), tail);
                        }
                    }
                    if let Some((number, object)) = number.and_then(|n| Some((n, self.objects.get(n)?))) {
                        self.objects.free(number, object);
                    }
                }
                return Err(OutOfMemory);
            };
            self.begin(object, piece, to, kind);
            self.name(by_words, piece, to, number);
        }
        Ok(())
    }
}

impl<M: Mapping, O: Owner> DescriptorMap<M, O> for MemdescMap<M, O> {
    type Kind = Memdesc;
    type Entry = Word;
    type Head = Object<O>;
    /// The object's number.
    type Place = u64;
    type View<'m>
        = MemdescView<'m, O>
    where
        Self: 'm;
    type ObjectFolder = Emptied;

    const RECHECKS: bool = true;

    fn new<E, R: Fn(TableKind, u64) -> Result<M, E>>(
        map: MemoryMap<Memdesc, Word, M>,
        tables: &Tables<R>,
    ) -> Result<Self, NewError<E>> {
        Ok(Self { map, objects: Objects::new(tables)? })
    }

    fn object_tables<'m>(&'m self) -> impl Iterator<Item = (TableKind, &'m M)>
    where
        M: 'm,
    {
        self.objects.tables()
    }

    fn view(&self) -> MemdescView<'_, O> {
        MemdescView { words: self.pages.view(), classes: self.classes.view(), objects: self.objects.view() }
    }

    #[inline]
    fn try_get_fast<'m, R: Protocol, B: Barrier>(
        view: MemdescView<'m, O>,
        reader: &Reader<'_, B>,
        pfn: Pfn,
    ) -> Look<'m, Object<O>>
    where
        Self: 'm,
    {
        let Some(word) = view.words.get(pfn.0) else { return Look::Nothing(ClassEntry::ABSENT) };
        // SAFETY: the class table covers every page of the map (`MemoryMap::new`), and this page is one.
        let cell = unsafe { view.classes.get_unchecked(Memdesc::map_page(pfn).0) };
        let entry = || match R::ASKS_CLASS {
            true => ClassEntry(cell.load(Ordering::Acquire)),
            false => ClassEntry::MAPPED,
        };
        let seen = entry();
        if !R::WAITS || seen != ClassEntry::MAPPED && seen.tail_order().is_none() {
            return Look::Nothing(seen);
        }
        let mut taken = None;
        // Whether that is an answer: the right folio was taken, or there is none.
        let is_answer = reader.within(|| {
            // A folio that has had the page since before the look began has had it named since before, too.
            let Some(number) = named(entry(), word, Ordering::Acquire) else { return true };
            let Some(object) = view.objects.get(number) else { return false };
            // Relaxed: the swap confirms it.
            let state = State(object.state.load(Ordering::Relaxed));
            // Frozen, saturated, contended, or given to another folio by now.
            if !state.is_takeable() || Self::take::<R>(object, state).is_err() {
                return false;
            }
            taken = Some(object);
            // See the module's text: after the swap, this is what makes it the right folio. Relaxed: the swap's Acquire.
            state.reaches(Pfn(object.pfn.load(Ordering::Relaxed)), pfn)
        });
        match (taken, is_answer) {
            (Some(object), true) => Look::Taken(object),
            (Some(object), false) => Look::Mistaken(object),
            (None, true) => Look::Missed(Miss::Free),
            (None, false) => Look::Nothing(seen),
        }
    }

    fn find<R: Protocol>(&self, pfn: Pfn) -> Result<u64, Miss> {
        let entry = if R::ASKS_CLASS { self.classes.get(self.map_page(pfn)) } else { ClassEntry::MAPPED };
        if let Some(miss) = entry.class().miss() {
            return Err(miss);
        }
        let Some(word) = self.pages.get(pfn.0) else { return Err(Miss::Absent) };
        named(entry, word, Ordering::Acquire).ok_or(Miss::Free)
    }

    fn head_at(&self, place: u64) -> Option<&Object<O>> {
        self.objects.get(place)
    }

    #[inline]
    fn holds(&self, place: u64, state: State, pfn: Pfn) -> bool {
        self.objects.get(place).is_some_and(|object| state.covers(self.pfn_of(object), pfn))
    }

    fn is_folded(&self, place: u64) -> bool {
        self.objects.is_folded(place)
    }

    #[inline]
    fn pfn_of(&self, head: &Object<O>) -> Pfn {
        // Relaxed: with a reference it stands; without one it is a guess.
        Pfn(head.pfn.load(Ordering::Relaxed))
    }

    fn head(&self, pfn: Pfn) -> Option<&Object<O>> {
        Some(self.object_of(pfn)?.1)
    }

    fn claim(&self, pfn: Pfn, order: Order, kind: Kind, cpu: usize) -> Result<&Object<O>, OutOfMemory> {
        let all = self.map_pages(pfn, order);
        let (number, object) = self.objects.alloc(cpu)?;
        let by_words = !Memdesc::is_foldable(order) || self.layout() == Layout::Flat;
        let prepared = match (by_words, Memdesc::is_foldable(order)) {
            (false, _) => self.classes.ensure(all),
            (true, true) => self.unfold_free(all),
            (true, false) => {
                self.classes.ensure(all.clone()).and_then(|()| self.ensure_mapped(MapPage(all.start)))
            }
        };
        if let Err(out_of_memory) = prepared {
            self.objects.free(number, object);
            return Err(out_of_memory);
        }
        self.begin(object, pfn, order, kind);
        // Map pages that are still materialised stay so for now: their folding can wait for a batch.
        self.name(by_words, pfn, order, number);
        Ok(object)
    }

    fn release(&self, head: &Object<O>, pfn: Pfn, order: Order, cpu: usize) {
        if Memdesc::is_foldable(order) {
            self.classes.set_free(self.map_pages(pfn, order), |map_page| {
                self.clear_map_page(map_page);
                self.classes.set_mapped(map_page);
            });
        } else {
            (pfn.0..pfn.0 + order.pages()).for_each(|page| self.clear(Pfn(page)));
        }
        // Last: nothing names it any more.
        self.objects.free_near(self.objects.number_of(head), head, cpu);
    }

    fn unfold(&self, pfn: Pfn, order: Order, source: &mut Source<'_>) -> Result<(), OutOfMemory> {
        if self.has_words(pfn) {
            return Ok(());
        }
        let all = self.map_pages(pfn, order);
        let Some((number, _)) = self.object_of(pfn) else { return Ok(()) };
        self.materialise_missing(all.clone(), source)?;
        // While the class says folded no walker looks at the words, and when it says `Mapped` they are whole.
        self.write_words(pfn, order, number);
        all.for_each(|map_page| self.classes.set_mapped(MapPage(map_page)));
        Ok(())
    }

    fn foldable(&self, pfn: Pfn, order: Order) -> Range<u64> {
        if Memdesc::is_foldable(order) { self.map_pages(pfn, order) } else { 0..0 }
    }

    fn publish_tails(&self, pfn: Pfn, order: Order) -> Range<u64> {
        let all = self.foldable(pfn, order);
        if let Some((number, _)) = self.object_of(pfn) {
            self.classes.set_tails(all.clone(), ClassEntry::tail_of(order, number));
        }
        all
    }

    fn objects_for(pieces: u64) -> u64 {
        // The first piece keeps the folio's.
        pieces.saturating_sub(1)
    }
    fn take_object(&self, cpu: usize) -> Result<u64, OutOfMemory> {
        self.objects.set_aside(cpu)
    }
    fn give_object(&self, number: u64) {
        if let Ok((number, object)) = self.objects.take_aside(number) {
            self.objects.free(number, object);
        }
    }

    fn split(
        &self,
        pfn: Pfn,
        order: Order,
        to: Order,
        cpu: usize,
        source: &mut Source<'_>,
    ) -> Result<(), OutOfMemory> {
        let Some((number, object)) = self.object_of(pfn) else { return Err(OutOfMemory) };
        let kind = State(object.state.load(Ordering::Relaxed)).kind().owned().unwrap_or(Kind::Kernel);
        let (all, had_words) = (self.map_pages(pfn, order), self.has_words(pfn));
        let by_words = had_words || !Memdesc::is_foldable(to);
        if by_words && !had_words {
            self.materialise_missing(all.clone(), source)?;
        }
        if let Err(out_of_memory) = self.name_pieces((pfn, order, number), (to, kind), by_words, cpu, source)
        {
            if by_words && !had_words {
                self.fold_missing(all);
            }
            return Err(out_of_memory);
        }
        self.name(by_words, pfn, to, number);
        object.state.store(State::head(to, kind.into()).0, Ordering::Release);
        if by_words && !had_words {
            all.for_each(|map_page| self.classes.set_mapped(MapPage(map_page)));
        }
        Ok(())
    }

    fn collapse(&self, head: &Object<O>, pfn: Pfn, order: Order, kind: Kind) {
        let of_whole = self.objects.number_of(head);
        let mut next = pfn;
        while next.0 < pfn.0 + order.pages()
            && let Some((number, object)) = self.object_of(next)
        {
            let piece = State(object.state.load(Ordering::Relaxed)).order();
            if number != of_whole {
                self.name(self.has_words(next), next, piece, of_whole);
                self.objects.free(number, object);
            }
            next = next.plus(piece.pages());
        }
        let all = self.foldable(pfn, order);
        let is_backed = all.clone().all(|map_page| self.classes.get(MapPage(map_page)).is_backed());
        if self.layout() == Layout::Flat && is_backed {
            self.write_words(pfn, order, of_whole);
            all.for_each(|map_page| self.classes.set_mapped(MapPage(map_page)));
        } else {
            self.classes.set_tails(all, ClassEntry::tail_of(order, of_whole));
        }
        head.state.store(State::head(order, kind.into()).0, Ordering::Release);
    }

    fn peek(&self, pfn: Pfn) -> Peek {
        let entry = self.classes.get(self.map_page(pfn));
        let number = self.pages.get(pfn.0).and_then(|word| named(entry, word, Ordering::Acquire));
        let head = number
            .and_then(|number| self.objects.get(number))
            .map(|object| (self.pfn_of(object), State(object.state.load(Ordering::Acquire))))
            .filter(|&(head, state)| state.covers(head, pfn));
        let state = match head {
            Some((head, state)) if head == pfn => state,
            Some((_, state)) if entry == ClassEntry::MAPPED => State::tail(state.order()),
            _ => State::ZERO,
        };
        let is_marked = entry == ClassEntry::MAPPED && self.is_poisoned(pfn);
        let state = if is_marked { State(state.0 | POISON) } else { state };
        Peek { class: entry.class(), backed: entry.is_backed(), state, head }
    }

    fn folio_of(&self, pfn: Pfn, _: Class) -> Result<Option<(Pfn, State)>, Orphan> {
        let Some((_, object)) = self.object_of(pfn) else { return Ok(None) };
        let (head, state) = (self.pfn_of(object), State(object.state.load(Ordering::Acquire)));
        let is_sound = state.covers(head, pfn) && head.is_aligned(state.order());
        if is_sound { Ok(Some((head, state))) } else { Err(Orphan) }
    }

    fn objects(&self) -> Option<u64> {
        Some(self.objects.in_use())
    }
}

impl<M: Mapping, O: Owner> ObjectFolder<MemdescMap<M, O>> for Emptied {
    fn new(batch: usize) -> Result<Self, OutOfMemory> {
        Emptied::with_room_for(batch)
    }
    fn collect(&mut self, map: &MemdescMap<M, O>) -> bool {
        self.collect_from(&map.objects)
    }
    fn finish(&mut self, map: &MemdescMap<M, O>) -> u64 {
        self.finish_in(&map.objects)
    }
}
