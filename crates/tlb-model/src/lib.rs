//! Page tables under processors that remember whatever they may: what no emulator shows.
//!
//! Two models, both explored completely with [`stateright`].
//!
//! [`replay`] runs the *real* code of `pagefold-pagetable`: each of its accesses to an entry, each flush and each frame is one
//! step, and between any two steps a processor may walk the tables (part of the way, starting from what it remembers),
//! remember what it finds, set accessed flags, or keep a fault that it will report later. The machine
//! ([`machine`]) has the rules of an architecture, and says which of them a step breaks.
//!
//! [`orders`] is about the protocol around that code: walkers in sections, writes that arrive late, classes, grace periods. Its
//! steps are a list, and it is run with the steps of fold, unfold, replacing a table and removal in *all* orders: the safe
//! ones are few, and a test holds that the order of the code is one of them.
//!
//! Both are sequentially consistent but for the writes of walkers, which arrive late. Weak memory is the litmus tests' part.

pub mod machine;
pub mod orders;
pub mod replay;
