//! Why there is no population.

use alloc::collections::TryReserveError;

use thiserror::Error;

/// Why there is no population.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PopulationError {
    /// The index has fewer slots for owners than there may be folios (see [`slots`](super::slots())), or more than 2^32 in all.
    #[error(
        "the workloads may have {needed} folios, and the index has room for {available}: choose larger orders"
    )]
    FewSlots {
        /// Slots the workloads may need.
        needed: usize,
        /// Slots there are.
        available: usize,
    },
    /// No memory to note where folios are kept: free some and retry.
    #[error("no memory to note where the workloads' folios are kept: free some and retry")]
    OutOfMemory,
}

impl From<TryReserveError> for PopulationError {
    fn from(_: TryReserveError) -> Self {
        PopulationError::OutOfMemory
    }
}
