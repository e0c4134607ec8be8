//! Why there is no population.

use alloc::collections::TryReserveError;
use core::fmt;

/// Why there is no population.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopulationError {
    /// The index has fewer slots for owners than there may be folios (see [`slots`](super::slots())), or more than 2^32 in all.
    FewSlots {
        /// Slots the workloads may need.
        needed: usize,
        /// Slots there are.
        available: usize,
    },
    /// No memory to note where folios are kept: free some and retry.
    NoMemory,
}

impl From<TryReserveError> for PopulationError {
    fn from(_: TryReserveError) -> Self {
        PopulationError::NoMemory
    }
}

impl fmt::Display for PopulationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PopulationError::FewSlots { needed, available } => write!(
                f,
                "the workloads may have {needed} folios, and the index has room for {available}: choose larger orders"
            ),
            PopulationError::NoMemory => {
                f.write_str("no memory to note where the workloads' folios are kept: free some and retry")
            }
        }
    }
}
impl core::error::Error for PopulationError {}
