//! Fake heads: what `/proc/kpageflags` shows of huge pages that HVO has optimised, on kernels of about 6.16 to 7.0.
//!
//! HVO keeps the first page of a huge page's descriptors and maps it again, read-only, in place of all the others. So every
//! 64th descriptor of the huge page reads as its head. Inside of the kernel such a *fake head* is recognised. Kernels from
//! about 6.16 to 7.0 copy a descriptor before they tell its flags (`snapshot_page`), and the copy is taken for a head. Later
//! kernels share pages that hold tails only.
//!
//! So an optimised huge page of 2 MiB looks like eight folios of 64 pages in a row. No kernel with pages of 4 KiB has huge
//! pages of 256 KiB (x86-64: 2 MiB and 1 GiB; arm64 and riscv: 64 KiB as well; arm64: 32 MiB), so nothing else looks like it.
//! And it tells *which* pages are optimised, which no other file does.
//!
//! What it does not tell is an optimised page of 1 GiB from 512 optimised pages of 2 MiB side by side. How many of the first
//! kind there are follows from the pools, or from the kernel's count of descriptors.

use std::iter::Peekable;

use crate::cost::Shape;
use crate::flags::{COMPOUND_HEAD, COMPOUND_TAIL, HUGE};
use crate::geometry::{MAX_ORDER, PAGE_BYTES, PAGES_PER_MAP_PAGE};
use crate::host::release;
use crate::machine::{Machine, Run};

/// Pages from one fake head to the next: the descriptors in a page of them.
const PIECE: u64 = PAGES_PER_MAP_PAGE;
/// Pages in the huge pages that HVO optimises most: 2 MiB and 1 GiB.
const LARGE: u64 = 1 << 9;
const GIGANTIC: u64 = 1 << MAX_ORDER;

/// Whether `head` with its tails, `pages` in all, may begin an optimised huge page.
pub(crate) fn begins(head: &Run, pages: u64) -> bool {
    pages == PIECE && head.flags.any(HUGE) && head.start.is_multiple_of(LARGE)
}

/// Pages of the optimised huge page that begins at `head`, if there is one. `runs` are those behind its first 64 pages;
/// `gigantic`: it may be one of 1 GiB.
pub(crate) fn huge_page(head: &Run, runs: impl Iterator<Item = Run>, gigantic: bool) -> Option<u64> {
    let most = if gigantic && head.start.is_multiple_of(GIGANTIC) { GIGANTIC } else { LARGE };
    let pages = alike(head, &mut runs.peekable(), most);
    [GIGANTIC, LARGE].into_iter().find(|&size| size <= pages)
}

/// Pages from `head` on that look as an optimised huge page does, up to `most`. The first 64 do.
fn alike(head: &Run, runs: &mut Peekable<impl Iterator<Item = Run>>, most: u64) -> u64 {
    let mut pages = PIECE;
    while pages < most {
        let next = head.start + pages;
        let is_head = |run: &Run| run.start == next && run.len == 1 && run.flags == head.flags;
        if runs.next_if(is_head).is_none() || tails(next + 1, runs) != PIECE - 1 {
            break;
        }
        pages += PIECE;
    }
    pages
}

/// Pages of the tails that stand at `start`, one run or several (map counts may differ); takes no more of them than a huge
/// page's piece has.
fn tails(start: u64, runs: &mut Peekable<impl Iterator<Item = Run>>) -> u64 {
    let mut pages = 0;
    while pages < PIECE - 1
        && let Some(run) = runs.next_if(|run| run.start == start + pages && run.flags.any(COMPOUND_TAIL))
    {
        pages += run.len;
    }
    pages
}

/// Whether this machine's page flags tell which huge pages are optimised: some are seen to be, or its kernel is one of those
/// that would show it.
pub fn are_shown(machine: &Machine) -> bool {
    const FIRST: (u64, u64) = (6, 16);
    const LAST: (u64, u64) = (7, 0);
    let header = &machine.header;
    let is_such = header.arch == "x86_64"
        && release(&header.kernel).is_some_and(|release| (FIRST..=LAST).contains(&release));
    is_such || stretches(machine).next().is_some()
}

/// How many of the optimised huge pages are of 1 GiB.
pub(crate) fn gigantic_pages(machine: &Machine) -> u64 {
    let header = &machine.header;
    // Nothing would tell them, or there are none: no reason to look at every page.
    let is_told = match header.pools[..] {
        [] => header.memmap_pages.is_some(),
        _ => header.pools.iter().any(|pool| pool.size == GIGANTIC * PAGE_BYTES && pool.pages > 0),
    };
    if !is_told {
        return 0;
    }
    let (mut large, mut candidates) = (0, 0);
    // Pieces of a GiB that goes on from the last stretch.
    let mut row = 0u64..0;
    for (start, pages) in stretches(machine) {
        large += pages / LARGE;
        row = if row.end == start { row.start..start + pages } else { start..start + pages };
        if row.end.is_multiple_of(GIGANTIC) && row.end - row.start >= GIGANTIC {
            candidates += 1;
        }
    }
    if candidates == 0 {
        return 0;
    }
    let known = if header.pools.is_empty() { by_count(machine, large) } else { by_pools(machine) };
    known.unwrap_or(0).min(candidates)
}

/// Optimised huge pages as if all were of 2 MiB: first page and pages, in ascending order.
fn stretches(machine: &Machine) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut runs = machine.clipped().peekable();
    std::iter::from_fn(move || {
        loop {
            let run = runs.next()?;
            let is_head = run.len == 1 && run.flags.any(COMPOUND_HEAD) && run.flags.any(HUGE);
            if !is_head || !run.start.is_multiple_of(LARGE) {
                continue;
            }
            if !begins(&run, tails(run.start + 1, &mut runs) + 1) {
                continue;
            }
            if alike(&run, &mut runs, LARGE) == LARGE {
                return Some((run.start, LARGE));
            }
        }
    })
}

/// By the pools: those of 1 GiB that do not look like one folio.
fn by_pools(machine: &Machine) -> Option<u64> {
    let pool = machine.header.pools.iter().find(|pool| pool.size == GIGANTIC * PAGE_BYTES)?;
    Some(pool.pages.saturating_sub(whole(machine)))
}

/// Pages of 1 GiB that look like one folio.
fn whole(machine: &Machine) -> u64 {
    // The end of the folio so far, if one of 1 GiB began and goes on.
    let (mut whole, mut end, mut pages) = (0, 0, 0);
    for run in machine.clipped() {
        let is_head = run.len == 1 && run.flags.any(COMPOUND_HEAD) && run.flags.any(HUGE);
        if is_head && run.start.is_multiple_of(GIGANTIC) {
            (end, pages) = (run.end(), 1);
        } else if pages > 0 && run.start == end && run.flags.any(COMPOUND_TAIL) {
            (end, pages) = (run.end(), pages + run.len);
        } else {
            pages = 0;
        }
        if pages == GIGANTIC {
            (whole, pages) = (whole + 1, 0);
        }
    }
    whole
}

/// By the kernel's count of descriptors. Taking 512 pages of 2 MiB for one of 1 GiB makes a difference of 511 pages.
fn by_count(machine: &Machine, large: u64) -> Option<u64> {
    let header = &machine.header;
    let shape = Shape {
        page: PAGE_BYTES,
        descriptor: if header.descriptor_size > 0 { header.descriptor_size } else { 64 },
    };
    let full = shape.descriptors(machine.described_pages().saturating_mul(PAGE_BYTES)) / PAGE_BYTES;
    let saved = full.checked_sub(header.memmap_pages?)?;
    let more = saved.checked_sub(large.saturating_mul(shape.hvo_saves(LARGE * PAGE_BYTES) / PAGE_BYTES))?;
    let each = shape.hvo_saves(GIGANTIC * PAGE_BYTES) / PAGE_BYTES;
    let each = each
        .checked_sub(GIGANTIC / LARGE * (shape.hvo_saves(LARGE * PAGE_BYTES) / PAGE_BYTES))
        .filter(|&each| each > 0)?;
    // Rounded: the count may be off by a few pages.
    Some(more.saturating_add(each / 2) / each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Pool;
    use crate::machine::Header;
    use crate::{Flags, MemoryRange, PageState};

    /// Runs of a huge page of `pages` from `start` on, optimised or not.
    fn huge(start: u64, pages: u64, optimised: bool) -> Vec<Run> {
        let piece = if optimised { PIECE } else { pages };
        let run = |start, len, role| Run { start, len, flags: Flags(HUGE | role), count: 0 };
        let pieces = (start..start + pages).step_by(piece as usize);
        pieces.flat_map(|at| [run(at, 1, COMPOUND_HEAD), run(at + 1, piece - 1, COMPOUND_TAIL)]).collect()
    }

    fn machine(runs: Vec<Run>) -> Machine {
        let memory = vec![MemoryRange { start: 0, end: 8 << 18 }];
        let header = Header { memory, kernel: "6.18.44".into(), arch: "x86_64".into(), ..Header::default() };
        Machine { header, runs }
    }

    /// First page, pages, order, optimised.
    fn huge_pages(machine: &Machine) -> Vec<(u64, u64, u32, bool)> {
        let extents = machine.extents().filter(|extent| extent.state == PageState::Hugetlb);
        extents.map(|extent| (extent.start, extent.pages, extent.order, extent.optimised)).collect()
    }

    #[test]
    fn an_optimised_huge_page_is_one_folio() {
        let runs = [huge(512, 512, true), huge(1024, 512, false), huge(2048, 1024, true)].concat();
        let machine = machine(runs);
        assert!(are_shown(&machine));
        assert_eq!(huge_pages(&machine), [(512, 512, 9, true), (1024, 512, 9, false), (2048, 1024, 9, true)]);
    }

    #[test]
    fn tails_may_differ_in_their_counts() {
        let mut runs = huge(512, 512, true);
        // The first tails of the second piece are told with another count.
        let split = runs[3];
        runs[3].len = 2;
        runs.insert(4, Run { start: split.start + 2, len: split.len - 2, count: 1, ..split });
        assert_eq!(huge_pages(&machine(runs)), [(512, 512, 9, true)]);
    }

    #[test]
    fn what_is_torn_is_no_huge_page() {
        let mut runs = huge(512, 512, true);
        runs.truncate(14);
        let machine = machine(runs);
        assert_eq!(huge_pages(&machine), [(512, 448, 6, false)]);
    }

    #[test]
    fn pages_of_a_gigabyte_are_told_by_pools() {
        let gib = 1 << 18;
        let runs = [huge(gib, gib, true), huge(2 * gib, gib, true), huge(3 * gib, gib, false)].concat();
        let mut machine = machine(runs);
        machine.header.pools = vec![
            Pool { size: 1 << 30, pages: 2, free: 0, surplus: 0 },
            Pool { size: 2 << 20, pages: 512, free: 0, surplus: 0 },
        ];
        assert_eq!(
            huge_pages(&machine),
            [(gib, gib, 18, true), (2 * gib, gib, 9, true), (3 * gib, gib, 18, false)]
        );
    }

    #[test]
    fn pages_of_a_gigabyte_are_told_by_the_kernels_count() {
        let gib = 1 << 18;
        let mut machine = machine([huge(gib, gib, true), huge(2 * gib, gib, true)].concat());
        let full = 8 * 4096;
        for (gigantic, saved) in [(0, 2 * 512 * 7), (1, 512 * 7 + 4095), (2, 2 * 4095)] {
            machine.header.memmap_pages = Some(full - saved);
            let found = huge_pages(&machine);
            let pages: u64 = found.iter().filter(|page| page.2 == 18).map(|page| page.1 / gib).sum();
            assert_eq!(pages, gigantic, "{found:?}");
        }
        // Nothing tells.
        machine.header.memmap_pages = None;
        assert!(huge_pages(&machine).iter().all(|page| page.2 == 9));
    }

    #[test]
    fn kernels_that_would_show_it_are_known() {
        let mut machine = machine(huge(512, 512, false));
        for (kernel, shown) in [("6.15.9", false), ("6.16.0", true), ("7.0.3", true), ("7.1.0", false)] {
            machine.header.kernel = kernel.into();
            assert_eq!(are_shown(&machine), shown, "{kernel}");
        }
    }
}
