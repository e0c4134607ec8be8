//! What the engine asks of the machine: ranges that are backed on demand, a barrier that reaches every reader, and a few
//! types.

use crate::descriptors::seam::Descriptors;
use crate::heap::OutOfMemory;
use crate::protocol::Protocol;

pub use crate::barrier::{Barrier, Fences};
pub use crate::descriptors::head::Owner;
pub use crate::mapping::{FoldRange, Mapping, TableKind};

/// A machine the engine can run on.
///
/// Not `unsafe`: whatever these calls answer, memory is safe. What has to be upheld for that is upheld by the types that
/// they hand out, [`Mapping`] (each value has a range of its own) and [`Barrier`]. A mapping that is too short is refused; a
/// call that panics does so before anything was changed.
pub trait Platform: Send + Sync {
    /// Its ranges.
    type Mapping: Mapping;
    /// Its barriers.
    type Barrier: Barrier;
    /// What owners keep in a descriptor; `()` for nothing.
    type Owner: Owner;
    /// What a descriptor is: [`Page64`](crate::Page64), or [`Memdesc`](crate::Memdesc).
    type Descriptors: Descriptors;
    /// By which rules walkers and folders meet: [`Fold`](crate::protocol::Fold). Other rules are for comparison and for
    /// tests, and make an engine by [`Engine::with_rules`](crate::Engine::with_rules) only.
    type Rules: Protocol;
    /// Why a range could not be reserved.
    type Error: core::fmt::Debug;

    /// Reserves `bytes` of address space for a table, folded.
    ///
    /// # Errors
    /// Whatever the machine says.
    fn reserve(&self, kind: TableKind, bytes: u64) -> Result<Self::Mapping, Self::Error>;

    /// The barrier that reaches all of this machine's readers.
    fn barrier(&self) -> Self::Barrier;

    /// Sets frames aside, from which [`Mapping::materialise_set_aside`] takes what cannot fail. A platform that refuses, as
    /// here, has no [`SetAside`](crate::SetAside).
    ///
    /// # Errors
    /// [`OutOfMemory`]: there are not so many.
    fn set_aside(&self, frames: u64) -> Result<(), OutOfMemory> {
        let _ = frames;
        Err(OutOfMemory)
    }

    /// Ends that for so many of the frames that are set aside and were not used. Cannot fail.
    fn end_set_aside(&self, frames: u64) {
        let _ = frames;
    }

    /// A hint where the caller runs: threads that run at the same time should get different numbers. Any number is
    /// correct; equal ones only contend.
    fn cpu(&self) -> usize;
}
