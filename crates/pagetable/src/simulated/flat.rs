//! A reservation against a flat array, driven by bytes: for a fuzzer.

extern crate std;

use core::ops::Range;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::{Fault, Simulated};
use crate::entry::Entry;
use crate::reservation::{Gap, Reservation};
use crate::shared::Shared;
use crate::{LARGE, PAGE, SHARED_FRAMES};

const BASE: u64 = 0x4000_0000_0000;
const LEN: u64 = 3 * LARGE;
const FRAMES: u64 = 40;

/// Does what the bytes say, and panics where a reservation reads otherwise than a flat array would, or loses a frame.
pub fn against_flat<E: Entry>(format: E, gap: Gap, bytes: &[u8]) {
    let machine = Simulated::new(format, FRAMES);
    let Ok(shared) = Shared::new(&machine) else { return };
    // SAFETY: the only reservation of a fresh machine.
    let Ok(table) = (unsafe { Reservation::new(&shared, BASE, LEN, gap) }) else { return };
    let mut flat: BTreeMap<u64, u64> = BTreeMap::new();
    for call in bytes.chunks_exact(4) {
        let &[what, high, low, count] = call else { continue };
        let page = u64::from(u16::from_be_bytes([high, low])) % (LEN / PAGE);
        let pages = page..(page + u64::from(count % 16) + 1).min(LEN / PAGE);
        let address = BASE + page * PAGE;
        match what % 5 {
            0 => {
                // SAFETY: nobody else reads.
                if unsafe { table.materialise(to_bytes(&pages)) }.is_ok() {
                    pages.for_each(|page| {
                        flat.entry(page).or_insert(0);
                    });
                }
            }
            1 => {
                // Two ranges, the second elsewhere.
                let other = (pages.start + 600) % (LEN / PAGE)..LEN / PAGE;
                let ranges: Vec<Range<u64>> = [&pages, &other].into_iter().map(to_bytes).collect();
                // SAFETY: as above.
                unsafe { table.fold(ranges.iter().cloned()) };
                if gap == Gap::Allowed {
                    flat.retain(|page, _| !pages.contains(page) && !other.contains(page));
                }
            }
            2 => assert_eq!(machine.read(address), Ok(flat.get(&page).copied().unwrap_or(0))),
            3 => match (machine.write(address, u64::from(count)), flat.get_mut(&page)) {
                (Ok(()), Some(word)) => *word = u64::from(count),
                (Err(Fault::ReadOnly), None) => {}
                other => panic!("page {page}: {other:?}"),
            },
            _ => machine.evict(address),
        }
        let behind = table.counted();
        assert_eq!(behind.pages, flat.len() as u64);
        assert_eq!(machine.free() + SHARED_FRAMES + behind.pages + behind.tables, FRAMES);
    }
    assert_eq!(table.counted(), table.measured());
}

fn to_bytes(pages: &Range<u64>) -> Range<u64> {
    pages.start * PAGE..pages.end * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::ArmEntry;
    use crate::x86_64::X86Entry;

    #[test]
    fn bytes_are_calls() {
        let bytes: Vec<u8> = (0..40_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for gap in [Gap::Allowed, Gap::Never] {
            against_flat(X86Entry, gap, &bytes);
            against_flat(ArmEntry, gap, &bytes);
        }
    }
}
