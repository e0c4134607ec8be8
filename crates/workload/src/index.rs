//! A page cache in miniature: slots that each hold one reference on a folio.

use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use pagefold_engine::{Engine, Folio, Order, Pfn, Platform, RawFolio};

/// An array of slots. A slot is empty (0), or holds the reference of one folio: its head, plus one, and its order above.
pub struct Index<'e, P: Platform> {
    engine: &'e Engine<P>,
    slots: Vec<AtomicU64>,
    pinned: usize,
    windows: usize,
    _references: PhantomData<Folio<'e, P>>,
}

/// Slots in an owner's window.
pub const WINDOW: usize = 64;

const ORDER_SHIFT: u32 = 56;

/// What a slot says: a folio that may be gone by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    fn word(raw: RawFolio, order: Order) -> u64 {
        (raw.0.0 + 1) | (u64::from(order.get()) << ORDER_SHIFT)
    }
    /// The folio's first page.
    pub fn head(self) -> Pfn {
        Pfn((self.0 & ((1 << ORDER_SHIFT) - 1)) - 1)
    }
    /// The folio's order.
    pub fn order(self) -> Order {
        Order::new((self.0 >> ORDER_SHIFT) as u32).unwrap_or(Order::ZERO)
    }
}

impl<'e, P: Platform> Index<'e, P> {
    /// An index of three parts: a slot for each folio of `pinned`, which owners leave alone, so that whoever looks for
    /// one of those must find it; `slots` slots (at least one) for all owners; and `windows` windows of [`WINDOW`] slots
    /// for one owner each. `None` without memory for them.
    pub fn new(
        engine: &'e Engine<P>,
        slots: usize,
        pinned: Vec<Folio<'e, P>>,
        windows: usize,
    ) -> Option<Self> {
        let len = pinned.len() + slots.max(1) + windows * WINDOW;
        let mut all = Vec::new();
        all.try_reserve_exact(len).ok()?;
        all.resize_with(len, || AtomicU64::new(0));
        let index = Self { engine, slots: all, pinned: pinned.len(), windows, _references: PhantomData };
        for (at, folio) in pinned.into_iter().enumerate() {
            drop(index.put(at, folio));
        }
        Some(index)
    }

    /// The slots that all owners may use.
    pub fn shared(&self) -> Range<usize> {
        self.pinned..self.slots.len() - self.windows * WINDOW
    }

    /// The slots of all windows: where folios come and go fastest.
    pub fn hot(&self) -> Range<usize> {
        self.shared().end..self.slots.len()
    }

    /// The slots of owner `number` alone; empty if there are fewer windows.
    pub fn window(&self, number: usize) -> Range<usize> {
        let start = self.shared().end + number * WINDOW;
        if number < self.windows { start..start + WINDOW } else { 0..0 }
    }

    /// Whether owners leave slot `at` alone.
    #[inline]
    pub fn is_pinned(&self, at: usize) -> bool {
        at < self.pinned
    }

    /// The engine whose folios these are.
    pub fn engine(&self) -> &'e Engine<P> {
        self.engine
    }

    /// Slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
    /// Slots that hold a folio; exact while nothing moves.
    pub fn occupied(&self) -> u64 {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count() as u64
    }

    fn slot(&self, at: usize) -> Option<&AtomicU64> {
        self.slots.get(at)
    }

    /// What slot `at` says now.
    #[inline]
    pub fn load(&self, at: usize) -> Option<Entry> {
        // Acquire: pairs with the Release of `put`.
        self.slot(at).map(|slot| slot.load(Ordering::Acquire)).filter(|&word| word != 0).map(Entry)
    }

    /// Puts a folio into slot `at` and returns the one that was there.
    pub fn put(&self, at: usize, folio: Folio<'e, P>) -> Option<Folio<'e, P>> {
        let order = folio.order();
        let Some(slot) = self.slot(at) else { return Some(folio) };
        let word = Entry::word(folio.into_raw(), order);
        self.adopt(slot.swap(word, Ordering::AcqRel))
    }

    /// Puts a folio into slot `at` if that is empty.
    ///
    /// # Errors
    /// The folio, if it is not.
    pub fn put_if_empty(&self, at: usize, folio: Folio<'e, P>) -> Result<(), Folio<'e, P>> {
        let order = folio.order();
        let Some(slot) = self.slot(at) else { return Err(folio) };
        let raw = folio.into_raw();
        let word = Entry::word(raw, order);
        match slot.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            // SAFETY: taken out of its handle just above, and not stored.
            Err(_) => Err(unsafe { self.engine.from_raw(raw) }),
        }
    }

    /// Takes the folio out of slot `at`.
    pub fn take(&self, at: usize) -> Option<Folio<'e, P>> {
        let slot = self.slot(at)?;
        self.adopt(slot.swap(0, Ordering::AcqRel))
    }

    fn adopt(&self, word: u64) -> Option<Folio<'e, P>> {
        if word == 0 {
            return None;
        }
        // SAFETY: the word was swapped out of a slot, so nobody else has it, and it came from a folio's handle.
        Some(unsafe { self.engine.from_raw(RawFolio(Entry(word).head())) })
    }
}

impl<P: Platform> Drop for Index<'_, P> {
    fn drop(&mut self) {
        for at in 0..self.slots.len() {
            drop(self.take(at));
        }
    }
}

impl<P: Platform> core::fmt::Debug for Index<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Index").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}
