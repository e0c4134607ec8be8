//! What the workload keeps in a descriptor: a stamp that says which folio it is, so that a mistaken identity shows.

use pagefold_engine::Pfn;
use zerocopy::FromZeros;

/// The owner's data of every folio of the workload.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Stamp {
    seal: u64,
    /// References by page tables, as the machine had them (`/proc/kpagecount`); carried along, not acted on.
    pub mapcount: u64,
    /// Where the owner keeps its reference, so that whoever finds the folio finds the way back (Linux: the index in the
    /// page cache).
    pub slot: u64,
    /// About what a folio's owner keeps besides: a list, a mapping, an index.
    spare: [u64; 3],
}

/// Makes a seal that neither zeros nor another head's seal can be mistaken for.
const SALT: u64 = 0x5061_6765_666f_6c64;

impl Stamp {
    /// Seals the descriptor as that of the folio at `head`.
    pub fn seal(&mut self, head: Pfn) {
        self.seal = head.0 ^ SALT;
    }

    /// Whether this is the descriptor of the live folio at `head`.
    pub fn is_of(&self, head: Pfn) -> bool {
        self.seal == head.0 ^ SALT
    }
}
