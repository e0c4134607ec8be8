//! Who owns pages: processes that have them mapped, the files that these pages are of, and, where a kernel keeps account of
//! it, who allocated them.

pub mod page_owner;
pub mod processes;

use std::ops::Range;

/// Somebody who owns pages, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageOwner {
    /// In words: a process, or who allocated.
    pub name: String,
    /// What it is to the pages: the file or area that is mapped, or the function that allocated.
    pub what: String,
    /// Pages.
    pub pages: u64,
}

/// A set of page numbers within a range, as bits.
#[derive(Clone, Debug)]
pub struct PageSet {
    range: Range<u64>,
    bits: Vec<u64>,
}

impl PageSet {
    /// None of the pages of `range`. It takes a bit for each of them.
    pub fn new(range: Range<u64>) -> Self {
        let words = range.end.saturating_sub(range.start).div_ceil(64);
        Self { range, bits: vec![0; usize::try_from(words).unwrap_or(0)] }
    }

    /// Adds a page; those outside of the range are left out.
    pub fn add(&mut self, pfn: u64) {
        if self.range.contains(&pfn) {
            let at = (pfn - self.range.start) as usize;
            self.bits[at / 64] |= 1 << (at % 64);
        }
    }

    /// Whether a page is in it.
    pub fn contains(&self, pfn: u64) -> bool {
        self.range.contains(&pfn) && {
            let at = (pfn - self.range.start) as usize;
            self.bits[at / 64] >> (at % 64) & 1 == 1
        }
    }

    /// The pages it can hold.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// How many it holds.
    pub fn len(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|&word| word == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_is_in_its_range() {
        let mut set = PageSet::new(100..230);
        assert!(set.is_empty());
        for pfn in [99, 100, 164, 164, 229, 230] {
            set.add(pfn);
        }
        assert_eq!((set.len(), set.is_empty()), (3, false));
        let held: Vec<u64> = (90..240).filter(|&pfn| set.contains(pfn)).collect();
        assert_eq!(held, [100, 164, 229]);
    }
}
