//! What the checker knows of memory that hardware would know: what is folded, what is writable, and who may touch an
//! owner's data. All of it only exists under loom.
//!
//! * [`MapWord`], the state word of a descriptor, knows whether its map page is folded. *Any* write to a folded word, a
//!   failing compare-and-swap included, ends the model with a report. That is what the hardware does (a fault, or a
//!   re-materialised page), and what every protocol must avoid. On a platform without a gap a folded word reads as zero.
//!   On one with a gap any *read* ends the model too: in the gap it would fault, and a protocol that may run there has
//!   no business with folded words at any other time either. There the memory is a checked cell as well: folding and
//!   materialising write it, every access to the word reads it. So it is not enough that no access *came* too late or
//!   too early; each must be ordered against them.
//! * [`OwnerCell`], the owner's data in a descriptor, is a checked cell: two accesses that no hand-over orders, one of
//!   them a write, end the model. Folding and materialising a descriptor write it too. A handle's whole life counts as an
//!   access, since its holder may use it at any time: a reference's as reading, a frozen folio's as writing.
//! * [`AtomicU8`], [`AtomicU32`] and [`AtomicU64`] as entries of a table read as zero and may not be written before they
//!   were materialised. It is not enough that they *were*: the writer must know, that is, some call that made the entry
//!   writable must happen before the write. ("After `materialise` has returned, every CPU can write" says nothing about
//!   a CPU for which nothing comes after it.) See [`Backing`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Ordering, remembering};
use loom::cell::UnsafeCell;
use loom::sync::Condvar;
use loom::thread::{ThreadId, current};

/// Whether an entry of a table may be written, and by whom.
///
/// The checker's own cells know what happens before what. So each call that makes the entry writable leaves a cell, which
/// counts as written there, and a writer reads one of them. Nothing of it orders anything in the code under test. The
/// first call and a thread's first write are two steps, which the checker tries in both orders.
#[derive(Debug, Default)]
struct Backing {
    calls: Mutex<Calls>,
    /// Nobody waits on it; notifying it is an access, and orders nothing.
    step: Condvar,
}

#[derive(Debug, Default)]
struct Calls {
    /// One for each thread that asked for memory without knowing that it was there.
    made: Vec<UnsafeCell<()>>,
    /// Threads that know that the entry is writable.
    knowing: Vec<ThreadId>,
}

impl Backing {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn materialise(&self) {
        let caller = current().id();
        let is_first = self.calls().made.is_empty();
        if is_first {
            self.step.notify_all();
        }
        let mut calls = self.calls();
        if !calls.knowing.contains(&caller) {
            calls.made.push(UnsafeCell::new(()));
            calls.knowing.push(caller);
        }
    }

    /// Whether the current thread may write: a call to [`materialise`](Self::materialise) happened before.
    fn is_writable(&self) -> bool {
        let writer = current().id();
        let knows = self.calls().knowing.contains(&writer);
        if knows {
            return true;
        }
        self.step.notify_all();
        let mut calls = self.calls();
        // A read that nothing orders after the call is a panic of the cell's, and the answer.
        let knows =
            calls.made.iter().any(|call| catch_unwind(AssertUnwindSafe(|| call.with(|_| ()))).is_ok());
        if knows {
            calls.knowing.push(writer);
        }
        knows
    }
}

macro_rules! entries {
    ($($name:ident: $value:ty),*) => {$(
        /// An atomic integer; as an entry of a table it knows whether it may be written.
        #[derive(Debug)]
        pub struct $name {
            word: remembering::$name,
            /// `None` for what is no entry of a table.
            backing: Option<Box<Backing>>,
        }

        #[allow(dead_code)]
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Self { word: remembering::$name::new(value), backing: None }
            }
            /// An entry of a table with no memory behind it.
            pub(crate) fn unbacked() -> Self {
                Self { word: remembering::$name::new(0), backing: Some(Box::default()) }
            }
            /// The platform puts memory behind the entry. What is there already keeps its content.
            pub(crate) fn materialise(&self) {
                if let Some(backing) = &self.backing {
                    backing.materialise();
                }
            }
            #[track_caller]
            fn written(&self) -> &remembering::$name {
                if let Some(backing) = &self.backing {
                    assert!(backing.is_writable(), "stray write: an entry of a table was not made writable before");
                }
                &self.word
            }
            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.word.load(order)
            }
            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.written().store(value, order);
            }
            #[track_caller]
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                self.written().swap(value, order)
            }
            #[track_caller]
            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.written().compare_exchange(current, new, success, failure)
            }
            #[track_caller]
            pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                self.written().fetch_add(value, order)
            }
            #[track_caller]
            pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                self.written().fetch_sub(value, order)
            }
            #[track_caller]
            pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                self.written().fetch_or(value, order)
            }
            #[track_caller]
            pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                self.written().fetch_and(value, order)
            }
        }
    )*};
}
entries!(AtomicU8: u8, AtomicU32: u32, AtomicU64: u64);

/// The owner's data of a descriptor. See the module's text.
pub struct OwnerCell<O>(UnsafeCell<O>);

impl<O> OwnerCell<O> {
    pub(crate) fn new(data: O) -> Self {
        Self(UnsafeCell::new(data))
    }
    #[track_caller]
    pub(crate) fn get(&self) -> *const O {
        self.0.with(|data| data)
    }
    #[track_caller]
    pub(crate) fn get_mut(&self) -> *mut O {
        self.0.with_mut(|data| data)
    }
    #[track_caller]
    pub(crate) fn may_read(&self) {
        self.0.with(|_| ());
    }
    #[track_caller]
    pub(crate) fn may_write(&self) {
        self.0.with_mut(|_| ());
    }
}

/// The state word of a descriptor. See the module's text.
#[derive(Debug)]
pub struct MapWord {
    word: remembering::AtomicU64,
    /// Where folding has a gap: the memory behind the word. Who loads or writes the word reads the memory, the platform
    /// writes it.
    memory: Option<UnsafeCell<()>>,
}

// SAFETY: the cell stands for memory that any thread may reach, and checks each access itself.
unsafe impl Sync for MapWord {}

impl MapWord {
    /// What stands in a word whose map page is folded. No state word can have this value.
    const FOLDED: u64 = u64::MAX;
    /// The same, where folding has a gap.
    const GONE: u64 = u64::MAX - 1;

    pub(crate) fn folded(has_gap: bool) -> Self {
        Self {
            word: remembering::AtomicU64::new(if has_gap { Self::GONE } else { Self::FOLDED }),
            memory: has_gap.then(UnsafeCell::default),
        }
    }
    /// The platform takes the memory away. One atomic swap stands for "clear the entry, flush": no access can be
    /// half before and half after it.
    #[track_caller]
    pub(crate) fn fold(&self, has_gap: bool) {
        self.remap();
        self.word.swap(if has_gap { Self::GONE } else { Self::FOLDED }, Ordering::Relaxed);
    }
    /// The platform puts zeroed memory behind the word; whether there was none. Memory that is there already keeps its
    /// content.
    #[track_caller]
    pub(crate) fn materialise(&self) -> bool {
        let is_new = [Self::FOLDED, Self::GONE].into_iter().any(|folded| {
            self.word.compare_exchange(folded, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        if is_new {
            self.remap();
        }
        is_new
    }
    #[track_caller]
    fn remap(&self) {
        if let Some(memory) = &self.memory {
            memory.with_mut(|_| ());
        }
    }
    /// The word, to be loaded or written.
    #[track_caller]
    fn access(&self) -> &remembering::AtomicU64 {
        if let Some(memory) = &self.memory {
            memory.with(|_| ());
        }
        &self.word
    }
    #[track_caller]
    fn written(old: u64) -> u64 {
        assert!(old != Self::FOLDED && old != Self::GONE, "stray write: a write reached a folded descriptor");
        old
    }
    #[track_caller]
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        let word = self.access().load(order);
        assert!(
            word != Self::GONE,
            "stray read: a read reached a folded descriptor on a platform with a gap"
        );
        if word == Self::FOLDED { 0 } else { word }
    }
    #[track_caller]
    pub(crate) fn store(&self, value: u64, order: Ordering) {
        // A swap, so that the model sees what the store landed on.
        Self::written(self.access().swap(value, order));
    }
    #[track_caller]
    pub(crate) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.access().compare_exchange(current, new, success, failure).map_err(Self::written)
    }
    #[track_caller]
    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        Self::written(self.access().fetch_add(value, order))
    }
    #[track_caller]
    pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        Self::written(self.access().fetch_sub(value, order))
    }
    #[track_caller]
    pub(crate) fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        Self::written(self.access().fetch_or(value, order))
    }
}
