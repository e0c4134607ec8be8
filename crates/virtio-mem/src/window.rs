//! How much of what is plugged one step of unplugging looks at, and how it takes memory back.

/// Pages that a window of unplugging spans at most, 64 GiB, or one sub-block (big block).
const WINDOW_PAGES: u64 = 1 << 24;
/// Runs that unplugging gives back in one step at most, each with a request.
pub(crate) const STEP_REQUESTS: usize = 512;

/// Sub-blocks (big blocks) of `pages` pages that the next window spans, where `wanted` are to go. A window costs what it
/// spans, so the first one is no larger than what is wanted; each one after it, of which something stayed, is twice as large.
pub(crate) fn window_span(twice_the_last: u64, wanted: u64, pages: u64) -> u64 {
    twice_the_last.max(wanted).min(WINDOW_PAGES / pages).max(1)
}

/// How memory is taken back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is not in use at all.
    Offline,
    /// Only what is free.
    Free,
    /// Owners are asked.
    Asking,
}
