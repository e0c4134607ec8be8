//! What the descriptor of a folio has, whatever kind of descriptor it is.

use zerocopy::FromZeros;

use crate::sync::{MapWord, OwnerCell};

/// What an owner of memory may keep in a folio's descriptor: up to 56 bytes with [`Page64`](crate::Page64), any number with
/// [`Memdesc`](crate::Memdesc).
///
/// Zero bytes must be a valid value, because a descriptor is born as zeros. The type is the same for all folios of an
/// engine; what it means by kind is the owner's to encode. It is not dropped.
pub trait Owner: FromZeros + Send + Sync + 'static {}
impl<T: FromZeros + Send + Sync + 'static> Owner for T {}

/// The descriptor of a folio: that of its head, or its object.
pub trait Head<O>: Sync {
    /// The word that says order, kind and refcount (see [`State`](crate::State)).
    fn state(&self) -> &MapWord;
    /// The owner's data: valid for as long as the folio lives.
    fn owner(&self) -> &OwnerCell<O>;
}

/// `O` as it is in a fresh descriptor.
pub(crate) fn fresh_owner<O: FromZeros>() -> O {
    O::new_zeroed()
}
