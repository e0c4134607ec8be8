//! What a descriptor says: the state word, and what pages are used for.

use crate::geometry::{Order, Pfn};

/// What an owner may ask pages for, and what they are used for. The engine gives meaning only to the fact that a page is in
/// use; the kinds are for owners, reports and tools, and follow what `/proc/kpageflags` can tell apart.
///
/// What a descriptor says is a [`PageKind`], which is wider: fake-offline pages have descriptors too, and only the engine
/// makes those. They cannot be asked for:
///
/// ```
/// # use pagefold_engine::{AllocError, Engine, Kind, Order, Platform};
/// # fn kernel<P: Platform>(engine: &Engine<P>) -> Result<(), AllocError> {
/// let page = engine.alloc(Order::ZERO, Kind::Reserved)?;
/// # Ok(()) }
/// ```
/// ```compile_fail,E0599
/// # use pagefold_engine::{AllocError, Engine, Kind, Order, Platform};
/// # fn kernel<P: Platform>(engine: &Engine<P>) -> Result<(), AllocError> {
/// let page = engine.alloc(Order::ZERO, Kind::Offline)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// In use by the kernel without a more precise kind.
    Kernel = 0,
    /// Anonymous memory.
    Anon = 1,
    /// Page cache, shared memory included.
    File = 2,
    /// Slab objects.
    Slab = 3,
    /// Page tables.
    PageTable = 4,
    /// A huge page of a hugetlb pool.
    Hugetlb = 5,
    /// Reserved: firmware, the kernel's image, boot memory.
    Reserved = 6,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 7] =
        [Kind::Kernel, Kind::Anon, Kind::File, Kind::Slab, Kind::PageTable, Kind::Hugetlb, Kind::Reserved];

    /// A short name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Kernel => "kernel",
            Kind::Anon => "anonymous",
            Kind::File => "page cache",
            Kind::Slab => "slab",
            Kind::PageTable => "page tables",
            Kind::Hugetlb => "hugetlb",
            Kind::Reserved => "reserved",
        }
    }
}

/// What a descriptor says of its page: what its owner asked for, or that it is fake-offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// An owner has it, for this.
    Owned(Kind),
    /// In use on paper, but its memory is not there (Linux's `PageOffline` with a reference). Made by
    /// [`FakeOffline::Classic`](crate::hotplug::FakeOffline::Classic) alone. A walker may hold a reference on such a page;
    /// the one that keeps it is the engine's.
    Offline,
}

impl PageKind {
    /// All of them, in the order of [`index`](Self::index).
    pub const ALL: [PageKind; 8] = [
        PageKind::Owned(Kind::Kernel),
        PageKind::Owned(Kind::Anon),
        PageKind::Owned(Kind::File),
        PageKind::Owned(Kind::Slab),
        PageKind::Owned(Kind::PageTable),
        PageKind::Owned(Kind::Hugetlb),
        PageKind::Owned(Kind::Reserved),
        PageKind::Offline,
    ];

    /// A number below the length of [`ALL`](Self::ALL), for tables.
    pub const fn index(self) -> usize {
        self.bits() as usize
    }

    /// What an owner asked for; `None` where there is no owner.
    pub const fn owned(self) -> Option<Kind> {
        match self {
            PageKind::Owned(kind) => Some(kind),
            PageKind::Offline => None,
        }
    }

    /// A short name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            PageKind::Owned(kind) => kind.name(),
            PageKind::Offline => "offline",
        }
    }

    const fn bits(self) -> u64 {
        match self {
            PageKind::Owned(kind) => kind as u64,
            PageKind::Offline => 7,
        }
    }

    const fn from_bits(bits: u64) -> PageKind {
        PageKind::Owned(match bits & 0xff {
            1 => Kind::Anon,
            2 => Kind::File,
            3 => Kind::Slab,
            4 => Kind::PageTable,
            5 => Kind::Hugetlb,
            6 => Kind::Reserved,
            7 => return PageKind::Offline,
            _ => Kind::Kernel,
        })
    }
}

impl From<Kind> for PageKind {
    fn from(kind: Kind) -> Self {
        PageKind::Owned(kind)
    }
}

impl PartialEq<Kind> for PageKind {
    fn eq(&self, kind: &Kind) -> bool {
        *self == PageKind::Owned(*kind)
    }
}

/// A value of the state word.
///
/// | bits | meaning |
/// |---|---|
/// | 0-31 | refcount |
/// | 32-36 | order of the folio (head and written tails) |
/// | 37 | head: a folio of that order starts here |
/// | 38 | tail: the folio starts at this page number rounded down to the order |
/// | 39 | poisoned: a hint for dumps, the truth is in the poison table |
/// | 40-47 | kind (head) |
/// | 48 | asked: the folio's owner has been asked to move it (head) |
///
/// Zero is the zero descriptor. The refcount of anything but a head is 0 for ever, so no reference can be taken there.
/// A head whose refcount is 0 is *frozen*: one [`Frozen`](crate::folio::Frozen) owns it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct State(pub(crate) u64);

const REFS_MASK: u64 = 0xffff_ffff;
const ORDER_SHIFT: u32 = 32;
const HEAD: u64 = 1 << 37;
const TAIL: u64 = 1 << 38;
pub(crate) const POISON: u64 = 1 << 39;
const KIND_SHIFT: u32 = 40;
pub(crate) const ASKED: u64 = 1 << 48;

/// References a folio can have. The counter has room for as many again, so that increments in flight on other CPUs can
/// never carry into the order.
///
/// Under loom it is small, so that the checker gets there.
pub const MAX_REFS: u32 = if cfg!(loom) { 3 } else { 1 << 31 };

impl State {
    /// The zero descriptor.
    pub(crate) const ZERO: State = State(0);

    /// A frozen head.
    pub(crate) const fn head(order: Order, kind: PageKind) -> State {
        State(HEAD | (order.get() as u64) << ORDER_SHIFT | kind.bits() << KIND_SHIFT)
    }
    /// A written tail.
    pub(crate) const fn tail(order: Order) -> State {
        State(TAIL | (order.get() as u64) << ORDER_SHIFT)
    }
    /// The same head with `refs` references.
    pub(crate) const fn with_refs(self, refs: u32) -> State {
        State(self.0 & !REFS_MASK | refs as u64)
    }
    /// The same head with another kind.
    pub(crate) const fn with_kind(self, kind: PageKind) -> State {
        State(self.0 & !(0xff << KIND_SHIFT) | kind.bits() << KIND_SHIFT)
    }
    /// References held; 0 for everything that is not a shared folio's head.
    #[inline]
    pub const fn refs(self) -> u32 {
        (self.0 & REFS_MASK) as u32
    }
    /// Whether a folio starts here, shared or frozen.
    #[inline]
    pub const fn is_head(self) -> bool {
        self.0 & HEAD != 0
    }
    /// Whether this is a written tail.
    #[inline]
    pub const fn is_tail(self) -> bool {
        self.0 & TAIL != 0
    }
    /// Order of the folio; meaningful for heads and tails.
    #[inline]
    pub const fn order(self) -> Order {
        Order::from_bits(self.0 >> ORDER_SHIFT)
    }
    /// Kind of the folio; meaningful for heads.
    #[inline]
    pub const fn kind(self) -> PageKind {
        PageKind::from_bits(self.0 >> KIND_SHIFT)
    }
    /// Whether this is a fake-offline page's own descriptor.
    #[inline]
    pub(crate) const fn is_offline(self) -> bool {
        self.is_head() && matches!(self.kind(), PageKind::Offline)
    }
    /// Whether the page carries the poison mark.
    pub const fn is_poison_marked(self) -> bool {
        self.0 & POISON != 0
    }
    /// Whether this folio, and not an earlier one at this place, was [marked as asked about](crate::Folio::mark_asked).
    pub const fn is_asked(self) -> bool {
        self.0 & ASKED != 0
    }
    /// Whether a walker may take another reference here: there is one, and there is room for one more.
    #[inline]
    pub(crate) const fn is_takeable(self) -> bool {
        self.refs().wrapping_sub(1) < MAX_REFS - 1
    }
    /// Whether this is the head of a folio of `order`.
    #[inline]
    pub(crate) const fn is_head_of(self, order: Order) -> bool {
        self.0 >> ORDER_SHIFT & (HEAD >> ORDER_SHIFT | Order::BITS)
            == HEAD >> ORDER_SHIFT | order.get() as u64
    }
    /// Whether this word, standing at `head`, is a folio's head whose folio contains `pfn`.
    #[inline]
    pub const fn covers(self, head: Pfn, pfn: Pfn) -> bool {
        self.is_head() && self.reaches(head, pfn)
    }
    /// Whether a folio that begins at `head` contains `pfn`, if this word is its head's.
    #[inline]
    pub(crate) const fn reaches(self, head: Pfn, pfn: Pfn) -> bool {
        // The field itself: that it may be no order (`order` would cut it off) costs every look, and makes no difference here.
        let order = self.0 >> ORDER_SHIFT & Order::BITS;
        pfn.0.wrapping_sub(head.0) >> order == 0
    }
}

impl core::fmt::Debug for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let role = match (self.is_head(), self.is_tail()) {
            (true, _) => "head",
            (_, true) => "tail",
            _ => "zero",
        };
        write!(f, "{role} {} refs {} {}", self.order(), self.refs(), self.kind().name())?;
        if self.is_poison_marked() { f.write_str(" poisoned") } else { Ok(()) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn order(order: u32) -> Order {
        Order::new(order).unwrap()
    }

    #[test]
    fn kinds_are_told_apart_and_numbered() {
        for (index, kind) in PageKind::ALL.into_iter().enumerate() {
            assert_eq!((kind.index(), PageKind::from_bits(kind.bits())), (index, kind));
            assert_eq!(kind.owned(), Kind::ALL.get(index).copied());
        }
    }

    #[test]
    fn every_field_survives_every_other() {
        for order_bits in 0..=crate::geometry::MAX_ORDER {
            for kind in PageKind::ALL {
                for refs in [0, 1, MAX_REFS] {
                    let state = State::head(order(order_bits), kind).with_refs(refs);
                    assert!(state.is_head() && !state.is_tail());
                    assert_eq!((state.order(), state.kind(), state.refs()), (order(order_bits), kind, refs));
                    let other = State(state.0 | POISON).with_kind(Kind::Slab.into()).with_refs(7);
                    assert!(other.is_poison_marked());
                    assert_eq!(
                        (other.order(), other.kind(), other.refs()),
                        (order(order_bits), Kind::Slab.into(), 7)
                    );
                }
            }
        }
    }

    #[test]
    fn a_head_covers_its_pages_and_no_others() {
        let head = State::head(order(9), Kind::Anon.into());
        assert!(head.covers(Pfn(512), Pfn(512)) && head.covers(Pfn(512), Pfn(1023)));
        assert!(!head.covers(Pfn(512), Pfn(1024)) && !head.covers(Pfn(512), Pfn(511)));
        assert!(!State::ZERO.covers(Pfn(512), Pfn(512)) && !State::tail(order(9)).covers(Pfn(512), Pfn(512)));
    }

    #[test]
    fn references_in_flight_cannot_reach_the_order() {
        let full = State::head(order(3), Kind::File.into()).with_refs(MAX_REFS);
        assert_eq!(State(full.0 + u64::from(MAX_REFS) - 1).order(), order(3));
    }
}
