//! Why pages are not taken, or not given back.

use crate::errors::{error_texts, from_out_of_memory};

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

from_out_of_memory!(AllocError);

error_texts!(AllocError {
    NoBlock => "no free block of that order: free something or ask for less",
    Busy => "the block is not free",
    Absent => "no memory at that page number",
    Misaligned => "the page number is not a multiple of the block's size",
    OutOfMemory => "no memory for the descriptor of the block: free some and retry",
});

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

error_texts!(FreeError {
    Free => "some of the pages are free already",
    Absent => "no memory was ever added at some of the pages",
    Misaligned => "the page number is not a multiple of the block's size",
});
