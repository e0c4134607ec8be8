//! Where things are: the kernel's address space.
//!
//! | from | what |
//! |---|---|
//! | 2 MiB | the kernel's image, at its physical addresses |
//! | [`DIRECT`] | all memory, at its physical address plus this |
//! | [`TABLES`] | the engine's tables, each in a range of its own, folded where nothing was written |
//! | [`DEVICES`] | device registers, uncached |
//! | [`STACKS`] | stacks, each with a page without access below |

/// The direct map.
pub const DIRECT: u64 = 0xffff_8000_0000_0000;
/// The engine's tables.
pub const TABLES: u64 = 0xffff_c000_0000_0000;
/// Device registers.
pub const DEVICES: u64 = 0xffff_e000_0000_0000;
/// Stacks.
pub const STACKS: u64 = 0xffff_f000_0000_0000;
/// Bytes of address space for one stack, guard page and all.
pub const STACK_STRIDE: u64 = 1 << 20;
/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Physical addresses end here: the direct map is that long.
pub const MAX_PHYSICAL: u64 = 1 << 46;

/// Where a physical address is in the direct map.
pub fn direct<T>(physical: u64) -> *mut T {
    debug_assert!(physical < MAX_PHYSICAL);
    (DIRECT + physical) as *mut T
}

/// The image, in bytes: where it begins, where text ends, where read-only data ends, where it ends.
pub fn image() -> [u64; 4] {
    unsafe extern "C" {
        static image_start: u8;
        static text_end: u8;
        static rodata_end: u8;
        static image_end: u8;
    }
    [&raw const image_start, &raw const text_end, &raw const rodata_end, &raw const image_end]
        .map(|at| at as u64)
}
