//! Page numbers, orders and the units they come in. All shifts of the engine are here.
//!
//! Under loom the same code runs with a tiny geometry (two pages a map page, two map pages an area), because the
//! checker keeps state for every atomic. Nothing but these constants differs.

use core::fmt;
use core::ops::Range;

/// log2 of the page size in bytes: 4 KiB.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// log2 of the pages in a row of the allocator: one 64-bit word, a bit a page.
pub(crate) const ROW_ORDER: u32 = if cfg!(loom) { 1 } else { 6 };
/// log2 of the pages in an area: 2 MiB.
pub const AREA_ORDER: u32 = if cfg!(loom) { 2 } else { 9 };
/// log2 of the pages in a section: 128 MiB, Linux's `SECTION_SIZE_BITS` 27 on x86-64.
pub const SECTION_ORDER: u32 = if cfg!(loom) { 3 } else { 15 };
/// log2 of the pages in a region: 64 GiB.
pub(crate) const REGION_ORDER: u32 = if cfg!(loom) { 4 } else { 24 };
/// log2 of the pages in a tree of the allocator: 1 GiB.
pub(crate) const TREE_ORDER: u32 = if cfg!(loom) { 3 } else { 18 };
/// The largest order of a folio: 1 GiB.
pub const MAX_ORDER: u32 = TREE_ORDER;

/// Pages in a row.
pub(crate) const PAGES_PER_ROW: u64 = 1 << ROW_ORDER;
/// Rows in an area.
pub(crate) const ROWS_PER_AREA: u64 = 1 << (AREA_ORDER - ROW_ORDER);
/// Sections in a region.
pub const SECTIONS_PER_REGION: u64 = 1 << (REGION_ORDER - SECTION_ORDER);
/// Pages in a section.
pub const PAGES_PER_SECTION: u64 = 1 << SECTION_ORDER;
/// Areas in a tree.
pub const AREAS_PER_TREE: u64 = 1 << (TREE_ORDER - AREA_ORDER);

/// Words of four bytes in the table of trees for each of `trees`, of which it uses the first. Where trees are few each has a
/// cache line to itself; where they are many CPUs begin many lines apart, and a petabyte of them stays small.
pub(crate) const fn words_per_tree(trees: u64) -> u64 {
    const PADDED: u64 = 1 << 14;
    const LINE: u64 = 16;
    let room = if cfg!(loom) || trees == 0 { 1 } else { PADDED / trees };
    match room.checked_ilog2() {
        None => 1,
        Some(order) if 1 << order > LINE => LINE,
        Some(order) => 1 << order,
    }
}

/// Objects that get their memory together: any size that is a multiple of 16 bytes makes whole pages of 4 KiB.
pub(crate) const OBJECTS_PER_GROUP: u64 = if cfg!(loom) { 2 } else { 256 };

/// Page numbers must fit here: 52 bits of physical address.
pub const MAX_PAGES: u64 = 1 << (52 - PAGE_SHIFT);

/// The pages of a machine whose page numbers end at `pages`: whole sections. `None` if page numbers have too few bits.
pub(crate) const fn pages_of_machine(pages: u64) -> Option<u64> {
    match pages.checked_next_multiple_of(PAGES_PER_SECTION) {
        Some(pages) if pages <= MAX_PAGES => Some(pages),
        _ => None,
    }
}

/// A page frame number: physical address divided by 4 KiB. It may be stale or point at nothing; it is only a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u64);

impl Pfn {
    /// The row of the allocator that has this page's bit.
    #[inline]
    pub(crate) const fn row(self) -> Row {
        Row(self.0 >> ROW_ORDER)
    }
    /// This page's bit in its row.
    #[inline]
    pub(crate) const fn bit(self) -> u64 {
        1 << (self.0 % PAGES_PER_ROW)
    }
    /// The section this page lies in.
    #[inline]
    pub const fn section(self) -> u64 {
        self.0 >> SECTION_ORDER
    }
    /// The first page of the naturally aligned block of `order` that this page lies in.
    #[inline]
    pub const fn head(self, order: Order) -> Pfn {
        Pfn(self.0 & !(order.pages() - 1))
    }
    /// Whether a folio of `order` may start here.
    #[inline]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.pages() - 1) == 0
    }
    /// The page `pages` further on, saturating (page numbers are checked where they are used).
    #[inline]
    pub const fn plus(self, pages: u64) -> Pfn {
        Pfn(self.0.saturating_add(pages))
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

/// Sizes of a memory map's parts, in bytes. They depend on what a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// log2 of the pages described by one map page.
    pub map_page_order: u32,
    /// What stands for a page by itself.
    pub entry_bytes: u64,
    /// The class of a map page.
    pub class_bytes: u64,
    /// A folio's object; 0 where descriptors are no objects.
    pub object_bytes: u64,
}

/// The units that depend on how many pages a map page describes.
pub trait MapGeometry {
    /// log2 of the pages described by one map page.
    const MAP_PAGE_ORDER: u32;
    /// Map pages that stay of every folio that has map pages which fold.
    const KEPT_MAP_PAGES: u64;
    /// The smallest order of folios with map pages that fold.
    const MIN_FOLD_ORDER: u32;
    /// Pages described by one map page.
    const PAGES_PER_MAP_PAGE: u64 = 1 << Self::MAP_PAGE_ORDER;
    /// Map pages in a section.
    const MAP_PAGES_PER_SECTION: u64 = 1 << (SECTION_ORDER - Self::MAP_PAGE_ORDER);

    /// The map page that describes `pfn`.
    #[inline]
    fn map_page(pfn: Pfn) -> MapPage {
        MapPage(pfn.0 >> Self::MAP_PAGE_ORDER)
    }
    /// The first page that `map_page` describes.
    #[inline]
    fn first_pfn(map_page: MapPage) -> Pfn {
        Pfn(map_page.0 << Self::MAP_PAGE_ORDER)
    }
    /// The pages that `map_page` describes.
    #[inline]
    fn pages_of(map_page: MapPage) -> Range<u64> {
        map_page.0 << Self::MAP_PAGE_ORDER..(map_page.0 + 1) << Self::MAP_PAGE_ORDER
    }
    /// The section whose byte stands for `map_page` while it has no class of its own.
    #[inline]
    fn section_of(map_page: MapPage) -> u64 {
        map_page.0 >> (SECTION_ORDER - Self::MAP_PAGE_ORDER)
    }
    /// The map pages that `pages` lie in.
    fn map_pages_of(pages: &Range<u64>) -> Range<u64> {
        pages.start / Self::PAGES_PER_MAP_PAGE..pages.end.div_ceil(Self::PAGES_PER_MAP_PAGE)
    }
    /// The map pages that the block of `order` at `pfn` spans; one, where it shares that with others.
    #[inline]
    fn map_pages(pfn: Pfn, order: Order) -> Range<u64> {
        let first = Self::map_page(pfn).0;
        first..first + (order.pages() >> Self::MAP_PAGE_ORDER).max(1)
    }
    /// How many map pages of a folio of `order` fold.
    fn folding_map_pages(order: Order) -> u64 {
        match Self::is_foldable(order) {
            true => (order.pages() >> Self::MAP_PAGE_ORDER) - Self::KEPT_MAP_PAGES,
            false => 0,
        }
    }
    /// Whether a folio of `order` has map pages that fold.
    #[inline]
    fn is_foldable(order: Order) -> bool {
        order.get() >= Self::MIN_FOLD_ORDER
    }
}

/// The index of a map page: page number divided by the pages that one describes (see [`MapGeometry`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapPage(pub u64);

/// The index of a row of the allocator: page number divided by 64. Sets of pages ([marks](crate::Engine::is_poisoned)) have
/// rows of the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Row(pub(crate) u64);

impl Row {
    /// All its pages, as a mask.
    pub(crate) const ALL: u64 = if ROW_ORDER == 6 { u64::MAX } else { (1 << PAGES_PER_ROW) - 1 };

    /// Its first page.
    #[inline]
    pub(crate) const fn first_pfn(self) -> Pfn {
        Pfn(self.0 << ROW_ORDER)
    }
    /// Those of `pages` that lie in it, as a mask.
    pub(crate) fn mask_of(self, pages: &Range<u64>) -> u64 {
        let first = self.first_pfn().0;
        let below = |page: u64| match page.saturating_sub(first) {
            bits if bits < PAGES_PER_ROW => (1 << bits) - 1,
            _ => Row::ALL,
        };
        below(pages.end) & !below(pages.start)
    }
    /// The rows that `pages` lie in.
    pub(crate) fn covering(pages: &Range<u64>) -> impl Iterator<Item = Row> + Clone + use<> {
        (pages.start / PAGES_PER_ROW..pages.end.div_ceil(PAGES_PER_ROW)).map(Row)
    }
}

/// The areas of `pages`, by number.
pub(crate) fn areas_of(pages: &Range<u64>) -> Range<u64> {
    pages.start >> AREA_ORDER..pages.end >> AREA_ORDER
}

/// The order of a folio: it spans `2^order` pages. At most [`MAX_ORDER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Order = Order(0);
    /// An area: 2 MiB.
    pub const AREA: Order = Order(AREA_ORDER as u8);
    /// The largest: 1 GiB.
    pub const MAX: Order = Order(MAX_ORDER as u8);

    /// `None` above [`MAX_ORDER`].
    #[inline]
    pub const fn new(order: u32) -> Option<Order> {
        if order <= MAX_ORDER { Some(Order(order as u8)) } else { None }
    }
    /// The largest order where `order` is too large.
    pub(crate) const fn of(order: u32) -> Order {
        match Order::new(order) {
            Some(order) => order,
            None => Order::MAX,
        }
    }
    /// As a shift.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0 as u32
    }
    /// Pages in a folio of this order.
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }
    /// Rows a block of this order spans; 1 where it shares one with others.
    #[inline]
    pub(crate) const fn rows(self) -> u64 {
        if self.0 as u32 > ROW_ORDER { 1 << (self.0 as u32 - ROW_ORDER) } else { 1 }
    }
    /// The bits that an order takes in a state word or class entry.
    pub(crate) const BITS: u64 = 0x1f;
    /// Order read from five bits of a state word or class entry; garbage becomes the largest order, never more.
    #[inline]
    pub(crate) const fn from_bits(bits: u64) -> Order {
        let bits = (bits & Self::BITS) as u32;
        if bits <= MAX_ORDER { Order(bits as u8) } else { Order::MAX }
    }
    /// The largest order whose naturally aligned block starts at `pfn` and holds at most `pages` (above 0) pages.
    pub fn fitting(pfn: Pfn, pages: u64) -> Order {
        let by_align = pfn.0.trailing_zeros();
        let by_length = pages.max(1).ilog2();
        Order(by_align.min(by_length).min(MAX_ORDER) as u8)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {}", self.0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn heads_are_rounded_down() {
        let order = Order::new(9).unwrap();
        assert_eq!(Pfn(0x3ff).head(order), Pfn(0x200));
        assert!(Pfn(0x200).is_aligned(order) && !Pfn(0x201).is_aligned(order));
        assert_eq!(Order::new(MAX_ORDER + 1), None);
    }

    #[test]
    fn fitting_respects_alignment_and_length() {
        assert_eq!(Order::fitting(Pfn(0), 512).get(), 9);
        assert_eq!(Order::fitting(Pfn(512), 1 << 30).get(), 9);
        assert_eq!(Order::fitting(Pfn(3), 512).get(), 0);
        assert_eq!(Order::fitting(Pfn(0), 1 << 30), Order::MAX);
        assert_eq!(Order::fitting(Pfn(0), 0).get(), 0);
    }

    #[test]
    fn garbage_bits_never_make_an_order_too_large() {
        assert!((0..=u64::from(u8::MAX)).all(|bits| Order::from_bits(bits).get() <= MAX_ORDER));
    }
}
