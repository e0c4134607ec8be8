//! Descriptors of arm64's stage 1, with a granule of 4 KiB and four levels (Arm ARM DDI 0487, section D8.3).

use crate::entry::{Access, Entry, Level};

const VALID: u64 = 1 << 0;
/// A table above level 3, a page at level 3; without it a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Index into MAIR_EL1: bits 2 to 4.
const ATTRIBUTES_SHIFT: u32 = 2;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
const NOT_AT_EL1: u64 = 1 << 53;
const NOT_AT_EL0: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// In descriptors of tables bits 2 to 9 and 51 to 58 are ignored; bit 10 is not, with FEAT_HAFT.
const LOW_SHIFT: u32 = 2;
const LOW: u64 = 0xff << LOW_SHIFT;
const HIGH_SHIFT: u32 = 55;
const HIGH: u64 = 3 << HIGH_SHIFT;

/// What [`ArmEntry`]'s attribute indices mean: the value that MAIR_EL1 has to have. Index 0: memory, cached write-back, also
/// on allocation. Index 1: Device-nGnRE.
pub const MAIR: u64 = 0x04_ff;
const MEMORY: u64 = 0 << ATTRIBUTES_SHIFT | INNER_SHAREABLE;
const DEVICE: u64 = 1 << ATTRIBUTES_SHIFT;

/// Descriptors of arm64.
///
/// No TLB may hold what a descriptor with a clear access flag says (rule of section D8.5: "hardware management of the access
/// flag"). With FEAT_HAFDBS hardware sets the flag when it uses the descriptor; without, the access is a fault, and
/// whoever handles it sets the flag ([`Shared::note_access`](crate::Shared::note_access)). Descriptors of tables have no flag
/// but with FEAT_HAFT, which is not used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArmEntry;

impl Entry for ArmEntry {
    const TABLES_GIVE_WAY: bool = false;

    fn branch(self, table: u64) -> u64 {
        table | VALID | TABLE_OR_PAGE
    }
    fn zero(self, frame: u64) -> u64 {
        self.leaf(frame, Access::ReadOnly, false) & !ACCESS_FLAG
    }
    fn leaf(self, physical: u64, access: Access, is_large: bool) -> u64 {
        let kind = if is_large { VALID } else { VALID | TABLE_OR_PAGE };
        let bits = match access {
            Access::Code => MEMORY | READ_ONLY,
            Access::ReadOnly => MEMORY | READ_ONLY | NOT_AT_EL1,
            Access::Data => MEMORY | NOT_AT_EL1,
            Access::Device => DEVICE | NOT_AT_EL1,
        };
        physical | kind | bits | NOT_AT_EL0 | ACCESS_FLAG
    }

    fn is_present(self, word: u64) -> bool {
        word & VALID != 0
    }
    fn is_large(self, word: u64) -> bool {
        word & TABLE_OR_PAGE == 0
    }
    fn is_writable(self, word: u64) -> bool {
        word & (VALID | READ_ONLY) == VALID
    }
    fn address(self, word: u64) -> u64 {
        word & ADDRESS
    }
    fn is_unused(self, word: u64, level: Level) -> bool {
        level == Level::Page && word & ACCESS_FLAG == 0
    }
    fn used(self, word: u64, level: Level) -> u64 {
        if level == Level::Page { word | ACCESS_FLAG } else { word }
    }

    fn broken(self, word: u64) -> u64 {
        word & !VALID
    }
    fn mended(self, word: u64) -> u64 {
        word | VALID
    }

    fn count(self, word: u64) -> u64 {
        (word & LOW) >> LOW_SHIFT | (word & HIGH) >> HIGH_SHIFT << 8
    }
    fn with_count(self, word: u64, count: u64) -> u64 {
        word & !(LOW | HIGH) | count << LOW_SHIFT & LOW | count >> 8 << HIGH_SHIFT & HIGH
    }
}
