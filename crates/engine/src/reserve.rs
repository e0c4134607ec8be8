//! The tables of a machine, reserved.

use core::fmt;

use crate::geometry::{MAX_PAGES, MapShape, pages_of_machine};
use crate::mapping::{Mapping, TableKind};
use crate::table::{Table, TableEntry};

/// Why an engine could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewError<E> {
    /// More pages than page numbers have bits for; at most [`MAX_PAGES`].
    TooLarge,
    /// The platform could not reserve address space for a table.
    Reserve {
        /// Which one.
        kind: TableKind,
        /// How many bytes it needs.
        bytes: u64,
        /// What the platform said.
        error: E,
    },
    /// The platform reserved less than was asked for.
    Short(TableKind),
    /// The platform gave a range for this table that was made for another one:
    /// [`Platform::reserve`](crate::Platform::reserve) must pass the kind on.
    OtherTable(TableKind),
}

impl<E: fmt::Display> fmt::Display for NewError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NewError::TooLarge => write!(f, "more than {MAX_PAGES} pages: no page number has that many bits"),
            NewError::Reserve { kind, error, .. } => write!(f, "the {kind:?} table: {error}"),
            NewError::Short(kind) => write!(f, "the platform reserved too little for the {kind:?} table"),
            NewError::OtherTable(kind) => {
                write!(f, "the platform's range for the {kind:?} table was made for another table")
            }
        }
    }
}
impl<E: fmt::Debug + fmt::Display> core::error::Error for NewError<E> {}

/// What reserves the tables of one machine.
pub struct Tables<R> {
    reserve: R,
    pages: u64,
    shape: MapShape,
}

impl<R> Tables<R> {
    /// For page numbers up to `pages` (rounded up to whole sections), and descriptors of that `shape`. `reserve` makes a
    /// range of so many bytes.
    pub(crate) fn new<E>(reserve: R, pages: u64, shape: MapShape) -> Result<Self, NewError<E>> {
        let pages = pages_of_machine(pages).ok_or(NewError::TooLarge)?;
        Ok(Self { reserve, pages, shape })
    }

    /// Pages of the machine.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// The table of that kind.
    pub(crate) fn table<T: TableEntry, M: Mapping, E>(
        &self,
        kind: TableKind,
    ) -> Result<Table<T, M>, NewError<E>>
    where
        R: Fn(TableKind, u64) -> Result<M, E>,
    {
        #[cfg(not(loom))]
        debug_assert_eq!(
            kind.entry_bytes(self.shape),
            size_of::<T>() as u64,
            "an entry of the {kind:?} table"
        );
        let bytes = kind.bytes(self.pages, self.shape).ok_or(NewError::TooLarge)?;
        let mapping =
            (self.reserve)(kind, bytes).map_err(|error| NewError::Reserve { kind, bytes, error })?;
        if mapping.made_for().is_some_and(|other| other != kind) {
            return Err(NewError::OtherTable(kind));
        }
        Table::new(mapping, kind.entries(self.pages, self.shape)).ok_or(NewError::Short(kind))
    }
}
