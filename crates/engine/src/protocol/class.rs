//! What a map page holds, in one entry of the class table.
//!
//! The low byte says it. An entry of 0 means "ask above": a map page asks its section's byte, and that its region's, where 0
//! means `Absent`. So memory that is all alike has no entries, and a petabyte of it is 16 KiB of region bytes.
//!
//! # States of an entry
//!
//! | class | backed | its pages | a walker gets |
//! |---|---|---|---|
//! | 0 | | ask above | |
//! | `Absent` | no | no memory was ever added, or it was removed | nothing |
//! | `Offline` | no | memory that is not ours now (unplugged, fake-offline) | nothing |
//! | `Free` | no | all free | nothing |
//! | `Unfolding` | in the making | being unfolded by the owner of one of its pages | nothing |
//! | `Mapped` | yes | what the descriptors say | what the descriptors say |
//! | `Tail(order)` | no | all in the folio at the page number rounded down to `order` | that folio |
//!
//! With descriptors of 64 bytes an entry is that byte, and `Tail` is said of map pages that have no head. With descriptors that
//! are objects ([`Memdesc`](crate::Memdesc)) it has 7 bytes more, `Tail` is also said of the head's own map page, and those
//! bytes are the number of the folio's object.
//!
//! A folded class may carry [`BACKED`]: it has been published, but its descriptors' memory has not been taken away yet.
//! Walkers do not care. Counting the bit over the table counts the materialised map pages.

use crate::geometry::Order;

/// What a map page holds, as tools and tests see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No memory here: never added, or removed.
    Absent,
    /// Memory exists but is not ours: unplugged, fake-offline.
    Offline,
    /// Free; only the allocator knows.
    Free,
    /// Tails of the folio whose head is the page number rounded down to the order.
    Tail(Order),
    /// Materialised: each descriptor speaks for itself.
    Mapped,
}

impl Class {
    /// Why there is nothing to take in a map page of this class, if that is so.
    pub(crate) const fn miss(self) -> Option<Miss> {
        match self {
            Class::Absent => Some(Miss::Absent),
            Class::Offline => Some(Miss::Offline),
            Class::Free => Some(Miss::Free),
            Class::Tail(_) | Class::Mapped => None,
        }
    }

    /// A short name for tables and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Absent => "Absent",
            Class::Offline => "Offline",
            Class::Free => "Free",
            Class::Tail(_) => "Tail",
            Class::Mapped => "Mapped",
        }
    }
}

/// Why a walker got nothing. Speculation may fail; each reason says what the page was at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Miss {
    /// No memory at that page number, or beyond the end of the map.
    Absent,
    /// Memory that is not ours: unplugged or fake-offline.
    Offline,
    /// The page is free, or just being allocated or freed.
    Free,
    /// The folio's owner has frozen it. It may be back soon, as the same folio or another.
    Frozen,
    /// The folio has [`MAX_REFS`](crate::MAX_REFS) references already.
    Saturated,
    /// The walker wrote to a folded descriptor. Only a protocol that does not wait for walkers can get here.
    Stray,
}

/// An entry of the class table, zero-extended where it is a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassEntry(pub(crate) u64);

/// Memory is behind the map page.
pub(crate) const BACKED: u64 = 0x20;
const TAIL: u64 = 0x80;
/// Where the number of the folio's object begins.
const OBJECT_SHIFT: u32 = 8;

impl ClassEntry {
    /// Not set: the section's byte stands for it.
    pub(crate) const UNSET: ClassEntry = ClassEntry(0);
    pub(crate) const ABSENT: ClassEntry = ClassEntry(1);
    pub(crate) const OFFLINE: ClassEntry = ClassEntry(2);
    pub(crate) const FREE: ClassEntry = ClassEntry(3);
    pub(crate) const UNFOLDING: ClassEntry = ClassEntry(4);
    pub(crate) const MAPPED: ClassEntry = ClassEntry(5 | BACKED);

    pub(crate) const fn tail(order: Order) -> ClassEntry {
        ClassEntry(TAIL | order.get() as u64)
    }
    /// As [`tail`](Self::tail), of the folio whose object has that number (below 2^56).
    pub(crate) const fn tail_of(order: Order, object: u64) -> ClassEntry {
        ClassEntry(ClassEntry::tail(order).0 | object << OBJECT_SHIFT)
    }
    /// The number of the folio's object; meaningful for `Tail` where descriptors are objects.
    #[inline]
    pub(crate) const fn object(self) -> u64 {
        self.0 >> OBJECT_SHIFT
    }
    #[inline]
    pub(crate) const fn is_backed(self) -> bool {
        self.0 & BACKED != 0
    }
    pub(crate) const fn backed(self) -> ClassEntry {
        ClassEntry(self.0 | BACKED)
    }
    pub(crate) const fn unbacked(self) -> ClassEntry {
        ClassEntry(self.0 & !BACKED)
    }
    /// The order, if this is `Tail`.
    #[inline]
    pub(crate) const fn tail_order(self) -> Option<Order> {
        if self.0 & TAIL != 0 { Some(Order::from_bits(self.0)) } else { None }
    }
    /// The class, with `Unfolding` shown as the `Free` it still is to everyone else.
    pub(crate) const fn class(self) -> Class {
        if let Some(order) = self.tail_order() {
            return Class::Tail(order);
        }
        match self.unbacked().0 {
            2 => Class::Offline,
            3 | 4 => Class::Free,
            5 => Class::Mapped,
            _ => Class::Absent,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn entries_and_classes_agree() {
        let order = Order::new(9).unwrap();
        for (entry, class) in [
            (ClassEntry::ABSENT, Class::Absent),
            (ClassEntry::OFFLINE, Class::Offline),
            (ClassEntry::FREE, Class::Free),
            (ClassEntry::UNFOLDING, Class::Free),
            (ClassEntry::MAPPED, Class::Mapped),
            (ClassEntry::tail(order), Class::Tail(order)),
            (ClassEntry::tail(order).backed(), Class::Tail(order)),
        ] {
            assert_eq!(entry.class(), class);
            assert_ne!(entry, ClassEntry::UNSET);
        }
        assert!(ClassEntry::MAPPED.is_backed() && !ClassEntry::FREE.is_backed());
        assert_eq!(ClassEntry::tail(order).backed().unbacked(), ClassEntry::tail(order));
        let whole = ClassEntry::tail_of(order, 1 << 39).backed();
        assert_eq!((whole.object(), whole.class(), whole.is_backed()), (1 << 39, Class::Tail(order), true));
    }
}
