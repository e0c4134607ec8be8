//! A machine of plain memory, for tests: frames, one processor whose TLB keeps what it has seen until it is flushed, and
//! hardware that sets accessed flags.

extern crate std;

mod flat;

use core::ops::Range;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

use crate::entry::{Entry, Level};
use crate::mmu::{Flush, Mmu, Slot};
use crate::part::index;
use crate::{ENTRIES, PAGE};

pub use flat::against_flat;

/// The machine. `&Simulated` is an [`Mmu`].
#[derive(Debug)]
pub struct Simulated<E> {
    format: E,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Contents by frame number; frame 0 is not there, and frame 1 is the table of directories.
    frames: Vec<[u64; ENTRIES]>,
    free: Vec<u64>,
    /// What the processor remembers: pages to frames, and whether they can be written.
    tlb: BTreeMap<u64, (u64, bool)>,
    flushes: u64,
}

/// An access that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is mapped there.
    NotPresent,
    /// It is read-only.
    ReadOnly,
}

impl<E: Entry> Simulated<E> {
    /// With so many frames to give.
    pub fn new(format: E, frames: u64) -> Self {
        let state = State {
            frames: std::vec![[0; ENTRIES]; frames as usize + 2],
            free: (2..frames + 2).rev().map(|frame| frame * PAGE).collect(),
            tlb: BTreeMap::new(),
            flushes: 0,
        };
        Simulated { format, state: Mutex::new(state) }
    }

    /// Frames that are free.
    pub fn free(&self) -> u64 {
        self.state().free.len() as u64
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// Reads the word at an address, a multiple of 8.
    ///
    /// # Errors
    /// The access faults.
    pub fn read(&self, address: u64) -> Result<u64, Fault> {
        let mut state = self.state();
        let (frame, _) = state.translate(self.format, address)?;
        Ok(state.word(frame, address))
    }

    /// Writes it.
    ///
    /// # Errors
    /// The access faults.
    pub fn write(&self, address: u64, word: u64) -> Result<(), Fault> {
        let mut state = self.state();
        let (frame, is_writable) = state.translate(self.format, address)?;
        if !is_writable {
            return Err(Fault::ReadOnly);
        }
        state.frames[(frame / PAGE) as usize][(address % PAGE / 8) as usize] = word;
        Ok(())
    }

    /// Forgets one page, as a TLB may at any time.
    pub fn evict(&self, address: u64) {
        self.state().tlb.remove(&(address & !(PAGE - 1)));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn entry(&mut self, slot: Slot) -> &mut u64 {
        &mut self.frames[(slot.table / PAGE) as usize][slot.index]
    }

    fn word(&self, frame: u64, address: u64) -> u64 {
        self.frames[(frame / PAGE) as usize][(address % PAGE / 8) as usize]
    }

    fn translate<E: Entry>(&mut self, format: E, address: u64) -> Result<(u64, bool), Fault> {
        let page = address & !(PAGE - 1);
        if let Some(&known) = self.tlb.get(&page) {
            return Ok(known);
        }
        let mut table = PAGE;
        for level in [3, 2, 1] {
            let kind = if level == 1 { Level::Page } else { Level::Table };
            let entry = self.entry(Slot { table, index: index(address, level) });
            if !format.is_present(*entry) {
                return Err(Fault::NotPresent);
            }
            *entry = format.used(*entry, kind);
            table = format.address(*entry);
            if level == 1 {
                let known = (table, format.is_writable(*entry));
                self.tlb.insert(page, known);
                return Ok(known);
            }
        }
        Err(Fault::NotPresent)
    }
}

/// Frames that were taken together.
#[derive(Debug)]
pub struct Frames<'m, E> {
    machine: &'m Simulated<E>,
    frames: Vec<u64>,
}

impl<E: Entry> Iterator for Frames<'_, E> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let frame = self.frames.pop()?;
        self.machine.state().frames[(frame / PAGE) as usize] = [0; ENTRIES];
        Some(frame)
    }
}

impl<E> Drop for Frames<'_, E> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.machine.state.lock() {
            state.free.append(&mut self.frames);
        }
    }
}

// SAFETY: one lock around everything makes every call atomic, and there is one TLB, which `flush` empties of what it is told.
// Frames that `take` hands out are out of the list of those that are free.
unsafe impl<'m, E: Entry> Mmu for &'m Simulated<E> {
    type Entry = E;
    type Frames = Frames<'m, E>;

    fn format(&self) -> E {
        self.format
    }
    fn upper(&self, address: u64) -> Slot {
        Slot { table: PAGE, index: index(address, 3) }
    }

    fn load(&self, slot: Slot) -> u64 {
        *self.state().entry(slot)
    }
    fn swap(&self, slot: Slot, word: u64) -> u64 {
        core::mem::replace(self.state().entry(slot), word)
    }
    fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        let mut state = self.state();
        let entry = state.entry(slot);
        if *entry != old {
            return Err(*entry);
        }
        *entry = new;
        Ok(())
    }
    fn fill(&self, table: u64, word: u64) {
        self.state().frames[(table / PAGE) as usize] = [word; ENTRIES];
    }

    fn flush(&self, what: Flush<'_>) {
        let mut state = self.state();
        state.flushes += 1;
        match what {
            Flush::All => state.tlb.clear(),
            Flush::Ranges(ranges) => {
                state.tlb.retain(|page, _| !ranges.iter().any(|range| range.contains(page)));
            }
        }
    }
    fn made(&self, _: Range<u64>) {}

    fn take(&self, count: u64) -> Option<Frames<'m, E>> {
        let mut state = self.state();
        let rest = (state.free.len() as u64).checked_sub(count)?;
        let frames = state.free.split_off(rest as usize);
        Some(Frames { machine: self, frames })
    }
    unsafe fn give(&self, frame: u64) {
        let mut state = self.state();
        assert!(!state.free.contains(&frame), "frame {frame:#x} is free already");
        let known = state.tlb.iter().find(|(_, (known, _))| *known == frame);
        assert!(known.is_none(), "frame {frame:#x} is freed and remembered: {known:x?}");
        // What was there must not be read by anybody as what it was.
        state.frames[(frame / PAGE) as usize] = [0xdead_beef_dead_beef; ENTRIES];
        state.free.push(frame);
    }
}
