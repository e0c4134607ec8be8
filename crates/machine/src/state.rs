//! What a page is used for.

use crate::flags::{
    ANON, BUDDY, Flags, HUGE, HWPOISON, LRU, NOPAGE, OFFLINE, OWNER_2, PGTABLE, RESERVED, SLAB, SWAPBACKED,
    SWAPCACHE, UPTODATE,
};

/// What a page is used for, as far as the kernel tells. One state a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PageState {
    /// On the buddy allocator's lists.
    Free,
    /// Free, but the kernel has not written its descriptor yet (deferred initialisation).
    Deferred,
    /// Anonymous memory.
    Anon,
    /// Page cache, shared memory included.
    File,
    /// Slab objects.
    Slab,
    /// Page tables.
    PageTable,
    /// A huge page of a hugetlb pool, in use or not.
    Hugetlb,
    /// In use by the kernel, or on a per-CPU free list: no flag says what for.
    Kernel,
    /// Reserved: firmware, the kernel's image, memory taken at boot.
    Reserved,
    /// Offline pages in an online block: ballooned or unplugged (Linux: `PageOffline`).
    Offline,
    /// Broken memory.
    HwPoison,
    /// A page number without a page.
    NoPage,
}

impl PageState {
    /// All states, in the order of tables.
    pub const ALL: [PageState; 12] = [
        PageState::Free,
        PageState::Deferred,
        PageState::Anon,
        PageState::File,
        PageState::Slab,
        PageState::PageTable,
        PageState::Hugetlb,
        PageState::Kernel,
        PageState::Reserved,
        PageState::Offline,
        PageState::HwPoison,
        PageState::NoPage,
    ];

    /// A short name for tables and scripts.
    pub const fn name(self) -> &'static str {
        match self {
            PageState::Free => "free",
            PageState::Deferred => "free, not initialised",
            PageState::Anon => "anonymous",
            PageState::File => "page cache",
            PageState::Slab => "slab",
            PageState::PageTable => "page tables",
            PageState::Hugetlb => "hugetlb",
            PageState::Kernel => "other kernel",
            PageState::Reserved => "reserved",
            PageState::Offline => "offline",
            PageState::HwPoison => "poisoned",
            PageState::NoPage => "no memory",
        }
    }

    /// Whether the page is free.
    pub const fn is_free(self) -> bool {
        matches!(self, PageState::Free | PageState::Deferred)
    }

    /// The state that flags tell. `Deferred` they cannot: such a page has none (see
    /// [`Machine::extents`](crate::Machine::extents)).
    ///
    /// The order matters: several flags are only bits of a descriptor that mean something else on other pages (on slab
    /// pages "anon" and "ksm" show up, on free ones "uptodate").
    pub fn of(flags: Flags) -> Self {
        let table = [
            (NOPAGE, PageState::NoPage),
            (HWPOISON, PageState::HwPoison),
            (OFFLINE, PageState::Offline),
            (BUDDY, PageState::Free),
            (SLAB, PageState::Slab),
            (PGTABLE, PageState::PageTable),
            (HUGE, PageState::Hugetlb),
            (RESERVED, PageState::Reserved),
            (ANON, PageState::Anon),
            // Page cache: on a list, or has content of a file or of shared memory.
            (LRU | SWAPBACKED | SWAPCACHE | OWNER_2 | UPTODATE, PageState::File),
        ];
        table.into_iter().find(|&(mask, _)| flags.any(mask)).map_or(PageState::Kernel, |(_, state)| state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{COMPOUND_HEAD, COMPOUND_TAIL, KSM, MMAP};

    #[test]
    fn states_of_flags_seen_on_real_machines() {
        for (flags, state) in [
            (0, PageState::Kernel),
            (BUDDY, PageState::Free),
            (BUDDY | UPTODATE, PageState::Free),
            (SLAB | COMPOUND_TAIL, PageState::Slab),
            (SLAB | ANON | KSM | COMPOUND_HEAD, PageState::Slab),
            (UPTODATE | LRU | MMAP | ANON | SWAPBACKED | OWNER_2, PageState::Anon),
            (UPTODATE | LRU | OWNER_2, PageState::File),
            (COMPOUND_HEAD | HUGE | UPTODATE, PageState::Hugetlb),
            (COMPOUND_TAIL, PageState::Kernel),
            (RESERVED, PageState::Reserved),
            (NOPAGE, PageState::NoPage),
            (OFFLINE, PageState::Offline),
            (HWPOISON | BUDDY, PageState::HwPoison),
            (PGTABLE, PageState::PageTable),
        ] {
            assert_eq!(PageState::of(Flags(flags)), state, "{}", Flags(flags));
        }
    }
}
