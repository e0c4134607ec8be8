//! Atomics that remember their readers, so that the checker tries each write before each load.
//!
//! Loom keeps *one* last access of an atomic, and two loads do not count against each other. When thread A has loaded a
//! word, and thread B loads it and then writes it, the last access that loom sees at B's write is B's own load. So it
//! never asks what happens when B's write comes before A's load: a test of "A looks, B looks and changes" explored one
//! interleaving and passed. [`Readers`] makes up for it. (Loom 0.7.3, `rt/atomic.rs`, `last_dependent_access`.)

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use std::sync::{Mutex, PoisonError};

use loom::sync::{Condvar, atomic};
use loom::thread::{ThreadId, current};

use super::Ordering;

/// Who loaded an atomic since the last write of it.
///
/// A load leaves an access to an object that belongs to its thread and this atomic. A write that loom would compare with
/// a load of its own thread accesses those objects of all others first; there loom finds the race, and goes back to it.
/// The objects are condition variables on which nobody waits: loom counts their notifications as accesses, and they
/// order nothing in the code under test. In a box: engines are moved about on the checker's small stacks.
#[derive(Debug, Default)]
struct Readers(Box<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    seen: Vec<(ThreadId, Arc<Condvar>)>,
    /// The last access was a load by this thread.
    last: Option<ThreadId>,
}

impl Readers {
    fn state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The current thread loads. No lock is held in `load`, nor at the access before: other threads run there.
    fn load<T>(&self, load: impl FnOnce() -> T) -> T {
        let thread = current().id();
        let known = self.state(|state| state.seen.iter().find(|(reader, _)| *reader == thread).cloned());
        let (_, accessed) = known.unwrap_or_else(|| (thread, Arc::default()));
        accessed.notify_all();
        let value = load();
        self.state(|state| {
            state.last = Some(thread);
            state.seen.retain(|(reader, _)| *reader != thread);
            state.seen.push((thread, accessed));
        });
        value
    }

    /// The current thread writes, or reads and writes.
    fn write<T>(&self, write: impl FnOnce() -> T) -> T {
        let thread = current().id();
        let hides = self.state(|state| state.last == Some(thread));
        let hidden = self.state(|state| if hides { core::mem::take(&mut state.seen) } else { Vec::new() });
        for (_, accessed) in hidden.iter().filter(|(reader, _)| *reader != thread) {
            accessed.notify_all();
        }
        let value = write();
        self.state(|state| *state = State::default());
        value
    }
}

macro_rules! remembering {
    ($name:ident$(<$t:ident>)?: $value:ty $(, $fetch:ident)*) => {
        /// An atomic that remembers its readers.
        #[derive(Debug)]
        pub(crate) struct $name$(<$t>)? {
            word: atomic::$name$(<$t>)?,
            readers: Readers,
        }

        #[allow(dead_code)]
        impl$(<$t>)? $name$(<$t>)? {
            pub(crate) fn new(value: $value) -> Self {
                Self { word: atomic::$name::new(value), readers: Readers::default() }
            }
            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.readers.load(|| self.word.load(order))
            }
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.readers.write(|| self.word.store(value, order));
            }
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                self.readers.write(|| self.word.swap(value, order))
            }
            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.readers.write(|| self.word.compare_exchange(current, new, success, failure))
            }
            $(
                pub(crate) fn $fetch(&self, value: $value, order: Ordering) -> $value {
                    self.readers.write(|| self.word.$fetch(value, order))
                }
            )*
        }
    };
}
remembering!(AtomicBool: bool);
remembering!(AtomicPtr<T>: *mut T);
remembering!(AtomicU8: u8, fetch_add, fetch_sub, fetch_or, fetch_and);
remembering!(AtomicU32: u32, fetch_add, fetch_sub, fetch_or, fetch_and);
remembering!(AtomicU64: u64, fetch_add, fetch_sub, fetch_or, fetch_and);
