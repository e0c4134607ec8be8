//! The arithmetic of descriptors: bytes of memory in, bytes of descriptors out. No result here is measured.

use crate::geometry::PAGE_BYTES;

/// How a kernel describes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes in a page.
    pub page: u64,
    /// Bytes in a descriptor.
    pub descriptor: u64,
}

impl Shape {
    /// x86-64: 64 bytes for each 4 KiB.
    pub const USUAL: Shape = Shape { page: PAGE_BYTES, descriptor: 64 };

    /// Bytes of descriptors for `memory` bytes.
    pub fn descriptors(self, memory: u64) -> u64 {
        (u128::from(memory) * u128::from(self.descriptor) / u128::from(self.page.max(1)))
            .try_into()
            .unwrap_or(u64::MAX)
    }

    /// Bytes of memory that a page of descriptors (a map page) describes.
    pub fn described_by_map_page(self) -> u64 {
        (self.page / self.descriptor.max(1)).max(1).saturating_mul(self.page)
    }

    /// Bytes that HVO gives back for one huge page of `huge` bytes: all pages of descriptors but the first. Nothing where
    /// there is only one, or where descriptors have no power of two as their size and so straddle pages
    /// (`hugetlb_vmemmap_optimizable_size` in `mm/hugetlb_vmemmap.h`).
    pub fn hvo_saves(self, huge: u64) -> u64 {
        if !self.descriptor.is_power_of_two() {
            return 0;
        }
        self.descriptors(huge).saturating_sub(self.page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_documents() {
        // Documentation/mm/vmemmap_dedup.rst: 7 of 8 pages for 2 MiB, 4095 of 4096 for 1 GiB.
        assert_eq!(Shape::USUAL.hvo_saves(2 << 20), 7 * 4096);
        assert_eq!(Shape::USUAL.hvo_saves(1 << 30), 4095 * 4096);
        assert_eq!(Shape::USUAL.descriptors(1 << 40), 16 << 30);
        assert_eq!(Shape::USUAL.described_by_map_page(), 256 << 10);
        // 64 KiB pages: 0.1 %.
        let large = Shape { page: 65536, descriptor: 64 };
        assert_eq!(large.descriptors(1 << 40), 1 << 30);
        assert_eq!(large.hvo_saves(2 << 20), 0);
        assert_eq!(large.hvo_saves(512 << 20), 7 * 65536);
        // 8-byte memdescs: a 2 MiB page has one page of them.
        let memdesc = Shape { page: 4096, descriptor: 8 };
        assert_eq!(memdesc.hvo_saves(2 << 20), 0);
        assert_eq!(memdesc.hvo_saves(1 << 30), 511 * 4096);
        assert_eq!(Shape { page: 4096, descriptor: 72 }.hvo_saves(2 << 20), 0);
    }

    #[test]
    fn nothing_overflows() {
        let absurd = Shape { page: 1, descriptor: u64::MAX };
        assert_eq!(absurd.descriptors(u64::MAX), u64::MAX);
        let zero = Shape { page: 0, descriptor: 0 };
        assert_eq!((zero.descriptors(1), zero.described_by_map_page(), zero.hvo_saves(1)), (0, 0, 0));
    }
}
