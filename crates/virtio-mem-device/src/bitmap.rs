//! Which blocks are plugged: one bit a block, read and written a word at a time.

use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    len: u64,
}

impl Bitmap {
    /// `len` blocks, all unplugged. The words come zeroed from the system: a large bitmap costs memory where bits were set.
    pub(crate) fn new(len: u64) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len }
    }

    /// Every word that `range` touches, with a mask of the range's bits in it.
    fn words_of(&self, range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
        debug_assert!(range.start <= range.end && range.end <= self.len);
        let Range { start, end } = range.clone();
        (start / 64..end.div_ceil(64)).map(move |word| {
            let first = start.saturating_sub(word * 64);
            let after = (end - word * 64).min(64);
            ((word as usize), (!0 << first) & (!0 >> (64 - after)))
        })
    }

    pub(crate) fn all(&self, range: &Range<u64>) -> bool {
        self.words_of(range).all(|(word, mask)| self.words[word] & mask == mask)
    }

    pub(crate) fn none(&self, range: &Range<u64>) -> bool {
        self.words_of(range).all(|(word, mask)| self.words[word] & mask == 0)
    }

    pub(crate) fn set(&mut self, range: &Range<u64>) {
        for (word, mask) in self.words_of(range) {
            self.words[word] |= mask;
        }
    }

    pub(crate) fn clear(&mut self, range: &Range<u64>) {
        for (word, mask) in self.words_of(range) {
            self.words[word] &= !mask;
        }
    }

    /// Maximal runs of plugged blocks, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true)?;
            at = self.next(start, false).unwrap_or(self.len);
            Some(start..at)
        })
    }

    /// The first block from `at` on that is plugged, or not.
    fn next(&self, at: u64, plugged: bool) -> Option<u64> {
        let turn = if plugged { 0 } else { !0 };
        let mut mask = !0 << (at % 64);
        for word in (at / 64) as usize..self.words.len() {
            let found = (self.words[word] ^ turn) & mask;
            if found != 0 {
                let block = word as u64 * 64 + u64::from(found.trailing_zeros());
                return (block < self.len).then_some(block);
            }
            mask = !0;
        }
        None
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_vector_at_every_edge_of_words() {
        for len in [1u64, 63, 64, 65, 130, 192] {
            for start in (0..len).step_by(7) {
                for end in start + 1..=len {
                    let mut bitmap = Bitmap::new(len);
                    bitmap.set(&(start..end));
                    let bits: Vec<bool> = (0..len).map(|block| bitmap.all(&(block..block + 1))).collect();
                    assert!((0..len).all(|block| bits[block as usize] == (start..end).contains(&block)));
                    assert!(bitmap.runs().eq(std::iter::once(start..end)));
                    assert!(bitmap.all(&(start..end)) && !bitmap.none(&(start..end)));
                    assert!(start == 0 || bitmap.none(&(0..start)));
                    assert!(end == len || !bitmap.all(&(start..end + 1)) && bitmap.none(&(end..len)));
                    bitmap.clear(&(start..end));
                    assert_eq!(bitmap, Bitmap::new(len));
                }
            }
        }
    }

    #[test]
    fn runs_are_maximal_and_in_order() {
        let mut bitmap = Bitmap::new(300);
        for range in [0..1, 62..130, 130..131, 299..300] {
            bitmap.set(&range);
        }
        assert_eq!(bitmap.runs().collect::<Vec<_>>(), [0..1, 62..131, 299..300]);
    }
}
