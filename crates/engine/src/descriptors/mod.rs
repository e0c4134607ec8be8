//! What a descriptor is. Two kinds under the same classes and the same protocol:
//!
//! | | [`Page64`](crate::Page64) | [`Memdesc`](crate::Memdesc) |
//! |---|---|---|
//! | a page by itself has | 64 bytes, its descriptor | 8 bytes, a *word* that names the folio's object |
//! | a folio's state and owner's data stand | in its head's descriptor | in its *object*, allocated with it |
//! | a map page describes | 64 pages, 256 KiB | 512 pages, 2 MiB |
//! | of a folio of 2 MiB there stays | its head's map page, 4 KiB | its object |
//! | walkers write | the head's descriptor | the object, never a word |
//!
//! An engine has one of them, which its [`Platform`](crate::Platform) names. Everything that depends on it is behind
//! [`DescriptorMap`]; what is the same for both stands in [`crate::map`].

pub(crate) mod head;
pub(crate) mod memdesc;
mod objects;
mod offline;
mod page;
pub(crate) mod page64;
pub(crate) mod seam;
mod word;
