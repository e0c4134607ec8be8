//! Entries of x86-64, in tables of four levels (Intel SDM volume 3, section 5.5).

use crate::entry::{Access, Entry, Level};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const NO_CACHE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits 52 to 61 are ignored.
const COUNT_SHIFT: u32 = 52;
const COUNT: u64 = 0x3ff << COUNT_SHIFT;

/// Entries of x86-64.
///
/// A processor remembers nothing of an entry whose accessed flag is clear: it sets the flag before it uses the entry, in
/// entries that lead to tables as well (section 5.8; sections 5.10.2 and 5.10.3 for TLBs and paging-structure caches).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct X86Entry;

impl Entry for X86Entry {
    const TABLES_GIVE_WAY: bool = true;

    fn branch(self, table: u64) -> u64 {
        table | PRESENT | WRITABLE
    }
    fn zero(self, frame: u64) -> u64 {
        frame | PRESENT | NO_EXECUTE
    }
    fn leaf(self, physical: u64, access: Access, is_large: bool) -> u64 {
        let large = if is_large { LARGE } else { 0 };
        let bits = match access {
            Access::Code => 0,
            Access::ReadOnly => NO_EXECUTE,
            Access::Data => WRITABLE | NO_EXECUTE,
            Access::Device => WRITABLE | NO_EXECUTE | NO_CACHE | WRITE_THROUGH,
        };
        physical | PRESENT | large | bits
    }

    fn is_present(self, word: u64) -> bool {
        word & PRESENT != 0
    }
    fn is_large(self, word: u64) -> bool {
        word & LARGE != 0
    }
    fn is_writable(self, word: u64) -> bool {
        word & (PRESENT | WRITABLE) == PRESENT | WRITABLE
    }
    fn address(self, word: u64) -> u64 {
        word & ADDRESS
    }
    fn is_unused(self, word: u64, _: Level) -> bool {
        word & ACCESSED == 0
    }
    fn used(self, word: u64, _: Level) -> u64 {
        word | ACCESSED
    }

    fn broken(self, word: u64) -> u64 {
        word & !PRESENT
    }
    fn mended(self, word: u64) -> u64 {
        word | PRESENT
    }

    fn count(self, word: u64) -> u64 {
        (word & COUNT) >> COUNT_SHIFT
    }
    fn with_count(self, word: u64, count: u64) -> u64 {
        word & !COUNT | count << COUNT_SHIFT & COUNT
    }
}
