//! The protocol between walkers and those who fold and unfold descriptors.
//!
//! # What the protocol promises
//!
//! 1. *Never crash*: no write, not even a failing compare-and-swap, and no read reaches a map page that is folded, being
//!    folded or being unfolded.
//! 2. *Never resurrect*: a refcount leaves 0 only by the hand of the one owner of the frozen folio.
//! 3. *Never mistake*: a reference obtained for `pfn` is on the folio that contained `pfn` at the moment it was taken.
//! 4. *Never leak*: every reference is a handle whose drop gives it back; a failed attempt leaves nothing behind.
//! 5. *Never miss*: if one shared folio contains `pfn` during a whole `try_get`, it is found (unless its refcount is
//!    saturated).
//!
//! # Why
//!
//! A walker reads a descriptor only after it read a class that leads there, and writes it only after it read a refcount
//! above zero there, all inside one section. Take the folder of that map page. It owns every page in it, so every head
//! there is frozen (refcount 0) or gone (zero), and no tail in another map page leads there any more, before it publishes
//! the folded class. Then it waits for a grace period:
//!
//! * a walker whose section the grace period waits for may still read, and even run its compare-and-swap: on memory that
//!   is still there, and it fails, because the refcount is 0;
//! * a walker whose section begins later sees the class, or what was published after it, and is not led there.
//!
//! So when the memory goes, no walker is left that could read or write it (1), and none sees what a platform does to the
//! range between then and the next `Mapped`. It may take the range apart and put it together again, as arm64's
//! break-before-make does.
//!
//! What leads to a descriptor is the class `Mapped` of its own map page; or, for the head of a folio that is larger than
//! a map page, `Tail` or a tail's word in another map page of the folio. The head's class need not be asked then. The
//! head was `Mapped` before the first tail that leads to it was published; and the folder of the head's map page got it,
//! or made the head a tail itself, after each of those tails had been published as something else. So the argument above
//! holds for the tail's class (or word) as it does for the head's.
//!
//! A class that was read outside of a section may be old by the time the section begins. It may say that there is
//! nothing to take, but not that there is something to read.
//!
//! The protocols that are there for comparison (see [`Protocol`]) read folded descriptors, as zeros. They need a
//! platform where folding leaves no gap ([`Mapping::HAS_GAP`](crate::platform::Mapping::HAS_GAP)).
//!
//! That memory is behind the head is known from what led there: classes and tails are stored with Release after the
//! head's map page got its memory, and loaded with Acquire.
//!
//! (2) and (3) are the compare-and-swap: it compares the whole state word, in which refcount, head and order stand
//! together. See `State::covers`. What a walker read on its way to the head (a class, a tail) may be as stale as its
//! section allows; it only chooses which word to try.
//!
//! All of this is said of descriptors of 64 bytes ([`Page64`](crate::Page64)). With [`Memdesc`](crate::Memdesc) walkers write to
//! objects, which no map page holds: "descriptor" above is the object, "head" the folio's first page, and what leads to an
//! object is a class entry or a word. Map pages of words are only read. (1) is the same argument, for map pages and for
//! objects: the memory of unused objects goes a grace period after the last of them was freed. (2) is the same swap. For (3)
//! the walker asks the object after the swap where its folio begins; why that suffices is said in the module of `Memdesc`.
//!
//! The questions asked of Linux's protocol in public, answered for this one:
//!
//! * *Who can write concurrently?* Walkers, to the state words of heads that are shared; the owner of a frozen folio, to
//!   all descriptors of its pages; the owner of one free page, to that page's descriptor. Nothing else.
//! * *What orders the refcount check against the type check?* Nothing has to: they are one word.
//! * *What stops a reader that arrives right after the grace period?* It sees the folded class, because that was
//!   published before the grace period began, and it looks at the class again inside its section.
//! * *What serialises try-get against restore?* Unfolding writes whole descriptors with refcount 0 while the class still
//!   says folded, and no walker writes to a refcount of 0.

pub(crate) mod class;
pub(crate) mod classes;
mod rules;
mod uniform;

pub(crate) use rules::reads_folded;
pub use rules::{Delay, Delayed, Fold, NoGracePeriod, Protocol, RefcountFirst, WritableTails};
