//! Any machine can be summed up, and nothing is counted that is not there.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefold_machine::{Flags, Header, Machine, MemoryRange, Run, Tally, ZoneRecord};

fuzz_target!(|input: (Vec<(u32, u32)>, Vec<(u16, u32, u64, u8)>, u64, u64)| {
    let (memory, runs, free, mem_free) = input;
    let mut at = 0;
    let memory = memory.into_iter().map(|(gap, len)| {
        let start = at + u64::from(gap);
        at = start + u64::from(len) + 1;
        MemoryRange { start, end: at }
    });
    let memory: Vec<MemoryRange> = memory.take(64).collect();
    let mut at = 0;
    let runs = runs.into_iter().map(|(gap, len, flags, count)| {
        let start = at + u64::from(gap);
        at = start + u64::from(len) + 1;
        Run { start, len: u64::from(len) + 1, flags: Flags(flags), count: u64::from(count) }
    });
    let runs: Vec<Run> = runs.collect();
    let header = Header {
        memory,
        mem_free,
        zones: vec![ZoneRecord { free, ..ZoneRecord::default() }; 2],
        ..Header::default()
    };
    let machine = Machine { header, runs };
    let tally = Tally::of(&machine);
    assert_eq!(tally.states.iter().map(|state| state.pages).sum::<u64>(), machine.pages());
    // A map page of words describes 512 pages, and one of descriptors of 64 bytes 64.
    for (left, pages) in [(tally.page, 64), (tally.memdesc, 512)] {
        assert!(left.map_pages <= machine.end().div_ceil(pages) && left.page_tables <= left.map_pages);
    }
    assert!(tally.memdesc.folios <= machine.end());
});
