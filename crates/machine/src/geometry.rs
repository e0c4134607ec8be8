//! Linux's geometry on the machines whose pages are read one by one: x86-64 with pages of 4 KiB.
//!
//! Other page sizes occur only in what a host says of itself ([`Host`](crate::Host)), in bytes.

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// Pages in a section (128 MiB, `SECTION_SIZE_BITS`): descriptors exist for whole sections.
pub const PAGES_PER_SECTION: u64 = 1 << 15;
/// Pages whose descriptors of 64 bytes fill one page: a map page.
pub const PAGES_PER_MAP_PAGE: u64 = 64;
/// The largest order of a folio: 1 GiB.
pub const MAX_ORDER: u32 = 18;
/// Orders that a folio may have.
pub const ORDERS: usize = MAX_ORDER as usize + 1;
/// Page numbers end here: they have at most 40 bits, since x86-64 and arm64 have at most 52 bits of physical address.
pub const MAX_PAGES: u64 = 1 << 40;

/// Bytes in a section of an architecture (as `uname -m` says) with pages of `page_bytes` (`SECTION_SIZE_BITS` in its
/// `sparsemem.h`); 128 MiB where the architecture is not known.
pub fn section_bytes(arch: &str, page_bytes: u64) -> u64 {
    match (arch, page_bytes) {
        ("aarch64" | "arm64", 65536) | ("loongarch64", _) => 512 << 20,
        ("s390x", _) => 256 << 20,
        ("ppc64" | "ppc64le", _) => 16 << 20,
        _ => PAGES_PER_SECTION * PAGE_BYTES,
    }
}
