//! Kinds of walkers.

/// What a walker imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WalkerKind {
    /// GUP-fast: finds a page through a page table, takes the folio, looks at the page table again. Some of its page
    /// numbers are stale on purpose, as after a long interrupt.
    Gup = 0,
    /// The page cache: finds a folio in an index, takes it, looks at the index again.
    PageCache = 1,
    /// Compaction: goes through physical memory, takes whatever may be moved.
    Compaction = 2,
    /// `/proc/kpageflags`: goes through physical memory and only looks.
    Kpageflags = 3,
}

impl WalkerKind {
    /// All kinds.
    pub const ALL: [WalkerKind; 4] =
        [WalkerKind::Gup, WalkerKind::PageCache, WalkerKind::Compaction, WalkerKind::Kpageflags];

    /// A short name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            WalkerKind::Gup => "gup",
            WalkerKind::PageCache => "page cache",
            WalkerKind::Compaction => "compaction",
            WalkerKind::Kpageflags => "kpageflags",
        }
    }
}
