//! What is in the pages of a population's folios.

use core::fmt;

use pagefold_engine::{Folio, Frozen, Platform};

/// The memory that page numbers stand for: sparse files in a process, the direct map in a kernel.
///
/// Each touched folio carries a mark that only it has. It is looked at again when the folio is moved or freed: memory that
/// was lost in between would show.
///
/// Folios are named by their handles, because these are what gives the right to their pages. Who holds one frozen is alone
/// with it and may write; who holds a shared one may read, and nobody writes meanwhile, since a population writes to
/// frozen folios only.
pub trait Contents<P: Platform> {
    /// Why memory could not be reached; a host may have none left for it.
    type Error: fmt::Debug;

    /// Fills a folio with `mark`.
    ///
    /// # Errors
    /// The folio is not marked; it may be in part.
    fn mark(&self, folio: &mut Frozen<'_, P>, mark: u64) -> Result<(), Self::Error>;

    /// Whether the first and the last word of a folio, at least, say `mark`.
    ///
    /// # Errors
    /// That cannot be told.
    fn holds(&self, folio: &Folio<'_, P>, mark: u64) -> Result<bool, Self::Error>;

    /// Copies what one folio holds to another of the same order. Whether that [holds](Self::holds) `mark`.
    ///
    /// # Errors
    /// It is not copied; it may be in part.
    fn copy(&self, from: &Folio<'_, P>, to: &mut Frozen<'_, P>, mark: u64) -> Result<bool, Self::Error>;
}
