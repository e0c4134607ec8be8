//! Why pages are not taken, or not given back.

use core::fmt;

use crate::heap::OutOfMemory;

/// Why memory could not be allocated. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// No free block of that order: free something, or ask for a smaller order.
    NoBlock,
    /// The block asked for is not all free.
    Busy,
    /// There is no memory at that page number.
    Absent,
    /// The page number is not a multiple of the block's size.
    Misaligned,
    /// The block is free, but there is no memory for its descriptor or the allocator's tables: free some and retry.
    OutOfMemory,
}

impl From<OutOfMemory> for AllocError {
    fn from(_: OutOfMemory) -> Self {
        AllocError::OutOfMemory
    }
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AllocError::NoBlock => "no free block of that order: free something or ask for less",
            AllocError::Busy => "the block is not free",
            AllocError::Absent => "no memory at that page number",
            AllocError::Misaligned => "the page number is not a multiple of the block's size",
            AllocError::OutOfMemory => "no memory for the descriptor of the block: free some and retry",
        })
    }
}
impl core::error::Error for AllocError {}

/// Pages that were given back are not taken. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotOwned;

/// Why pages were not given back. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// Some of them are free already: they were given back twice, or never taken.
    Free,
    /// No memory was ever added at some of them.
    Absent,
    /// The page number is not a multiple of the block's size.
    Misaligned,
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FreeError::Free => "some of the pages are free already",
            FreeError::Absent => "no memory was ever added at some of the pages",
            FreeError::Misaligned => "the page number is not a multiple of the block's size",
        })
    }
}
impl core::error::Error for FreeError {}
