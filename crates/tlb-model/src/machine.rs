//! Entries in memory, and what a processor remembers of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pagefold_pagetable::{Entry, HUGE, LARGE, Level, PAGE, Slot};

/// The rules of an architecture, and what its processors may do.
#[derive(Clone, Copy, Debug)]
pub struct Rules<E> {
    /// What entries look like.
    pub format: E,
    /// Two translations of an address must not be remembered at once, unless both are read-only and read the same. (arm64.)
    /// Otherwise it is enough that the old ones are forgotten when the change is over. (x86-64.)
    pub breaks_before_makes: bool,
    /// Hardware sets accessed flags. Otherwise an entry without it is a fault.
    pub sets_flags: bool,
    /// Which walks from before an entry was made may be reported as a fault after that.
    pub reports_late: Late,
    /// What flushing does.
    pub flushes: Flushes,
    /// Flushes once more when entries were made.
    pub flushes_when_made: bool,
}

/// Walks that may be reported as a fault late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// None. (x86-64.)
    None,
    /// Those that found an entry that cannot be written through. (arm64 with FEAT_ETS2.)
    Permission,
    /// Those that found no entry as well. (arm64.)
    All,
}

/// What becomes of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    /// It reaches every processor, and all levels.
    All,
    /// Broken: only the first processor.
    Local,
    /// Broken: pages only, so that processors go on from tables that they remember.
    PagesOnly,
    /// Broken: it does nothing.
    None,
}

/// The table that leads to directories.
pub const TOP: u64 = PAGE;

/// A table or page in memory: the same word everywhere, but for a few.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Frame {
    fill: u64,
    words: BTreeMap<usize, u64>,
    /// It was written as a page, so it need not read as zero.
    is_written: bool,
}

/// What a processor remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Remembered {
    /// Directories by GiB, page tables by 2 MiB, pages: the physical address.
    directories: BTreeMap<u64, u64>,
    tables: BTreeMap<u64, u64>,
    pages: BTreeMap<u64, (u64, bool)>,
    /// Pages for which a walk has failed, and is not reported yet.
    failed: BTreeSet<u64>,
}

/// The machine: a state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    frames: BTreeMap<u64, Frame>,
    free: BTreeSet<u64>,
    processors: Vec<Remembered>,
}

/// Something that hardware does by itself. It may find anew what it remembers already, and then remembers that. Forgetting is
/// left out: a processor that has forgotten is one that remembers less, and no rule is broken by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Reads the entry that leads to the directory, and remembers it.
    FindDirectory(usize, u64),
    /// Reads the entry that leads to the page table, starting from what it remembers if it does, and remembers it.
    FindTable(usize, u64),
    /// Reads the entry of the page, starting from the page table that it remembers, and remembers it.
    FindPage(usize, u64),
    /// Finds that nothing can be written there, and will say so later.
    Fail(usize, u64),
}

/// A rule that was broken.
pub type Broken = String;

fn gib(address: u64) -> u64 {
    address & !(HUGE - 1)
}
fn large(address: u64) -> u64 {
    address & !(LARGE - 1)
}
fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1)) & 511) as usize
}

impl Machine {
    /// With so many processors and frames.
    pub fn new(processors: usize, frames: u64) -> Machine {
        let free = (2..frames + 2).map(|frame| frame * PAGE).collect();
        let processors = vec![Remembered::default(); processors];
        Machine { frames: BTreeMap::from([(TOP, Frame::default())]), free, processors }
    }

    /// Frames that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The word of an entry.
    pub fn word(&self, slot: Slot) -> u64 {
        self.frames.get(&slot.table).map_or(0, |frame| *frame.words.get(&slot.index).unwrap_or(&frame.fill))
    }

    fn set(&mut self, slot: Slot, word: u64) {
        if let Some(frame) = self.frames.get_mut(&slot.table) {
            frame.words.insert(slot.index, word);
            if word == frame.fill {
                frame.words.remove(&slot.index);
            }
        }
    }

    /// Stores an entry.
    ///
    /// # Errors
    /// A processor remembers something that may not be remembered beside it.
    pub fn store<E: Entry>(&mut self, rules: &Rules<E>, slot: Slot, word: u64) -> Result<(), Broken> {
        if !self.frames.contains_key(&slot.table) {
            return Err(format!("entry {slot:x?} of a table that is nobody's"));
        }
        self.set(slot, word);
        if rules.breaks_before_makes { self.check_one_translation(rules) } else { Ok(()) }
    }

    /// Makes all entries of a fresh table the same.
    ///
    /// # Errors
    /// Hardware can reach it.
    pub fn fill<E: Entry>(&mut self, rules: &Rules<E>, table: u64, word: u64) -> Result<(), Broken> {
        if let Some(who) = self.leads_to(rules, table) {
            return Err(format!("table {table:#x} is filled although {who}"));
        }
        self.frames.insert(table, Frame { fill: word, ..Frame::default() });
        Ok(())
    }

    /// So many frames of zeros.
    pub fn take(&mut self, count: u64) -> Option<Vec<u64>> {
        if (self.free.len() as u64) < count {
            return None;
        }
        let taken: Vec<u64> = self.free.iter().take(count as usize).copied().collect();
        for frame in &taken {
            self.free.remove(frame);
            self.frames.insert(*frame, Frame::default());
        }
        Some(taken)
    }

    /// Takes a frame back.
    ///
    /// # Errors
    /// It can be reached still.
    pub fn give<E: Entry>(&mut self, rules: &Rules<E>, frame: u64) -> Result<(), Broken> {
        if let Some(who) = self.leads_to(rules, frame) {
            return Err(format!("frame {frame:#x} is freed although {who}"));
        }
        self.frames.remove(&frame);
        self.free.insert(frame);
        Ok(())
    }

    /// Makes processors forget these ranges; all where there are none.
    pub fn flush<E>(&mut self, rules: &Rules<E>, ranges: Option<&[Range<u64>]>) {
        let has = |from: u64, unit: u64| {
            ranges
                .is_none_or(|ranges| ranges.iter().any(|range| range.start < from + unit && from < range.end))
        };
        let reached = match rules.flushes {
            Flushes::All | Flushes::PagesOnly => self.processors.len(),
            Flushes::Local => 1,
            Flushes::None => 0,
        };
        for processor in self.processors.iter_mut().take(reached) {
            processor.pages.retain(|&page, _| !has(page, PAGE));
            processor.failed.retain(|&page| !has(page, PAGE));
            if rules.flushes != Flushes::PagesOnly {
                processor.tables.retain(|&from, _| !has(from, LARGE));
                processor.directories.retain(|&from, _| !has(from, HUGE));
            }
        }
    }

    /// The owner of a page writes to it, on every processor.
    ///
    /// # Errors
    /// One of them cannot, or writes elsewhere.
    pub fn write<E: Entry>(&mut self, rules: &Rules<E>, page: u64) -> Result<(), Broken> {
        let Some((frame, true)) = self.translation(rules, page) else {
            return Err(format!("page {page:#x} cannot be written"));
        };
        for (number, processor) in self.processors.iter().enumerate() {
            if processor.failed.contains(&page) {
                return Err(format!("processor {number} faults at {page:#x}, by a walk from before"));
            }
            if let Some(&known) = processor.pages.get(&page)
                && known != (frame, true)
            {
                return Err(format!("processor {number} remembers {known:x?} of page {page:#x}"));
            }
        }
        if let Some(frame) = self.frames.get_mut(&frame) {
            frame.is_written = true;
        }
        Ok(())
    }

    /// A change of the tables is over.
    ///
    /// # Errors
    /// A processor remembers what is not so any more.
    pub fn settled<E: Entry>(&self, rules: &Rules<E>) -> Result<(), Broken> {
        self.check_one_translation(rules)?;
        for (number, processor) in self.processors.iter().enumerate() {
            for (&page, &known) in &processor.pages {
                if self.translation(rules, page) != Some(known) {
                    return Err(format!("processor {number} still remembers {known:x?} of page {page:#x}"));
                }
            }
        }
        Ok(())
    }

    /// A page that is folded, or was never anything else, reads as zero, and so does what any processor remembers of it.
    ///
    /// # Errors
    /// It does not.
    pub fn reads_zero<E: Entry>(&self, rules: &Rules<E>, page: u64) -> Result<(), Broken> {
        let now = self.translation(rules, page);
        let known = self.processors.iter().filter_map(|processor| processor.pages.get(&page));
        for (frame, is_writable) in now.iter().chain(known) {
            if *is_writable || self.frames.get(frame).is_none_or(|frame| frame.is_written) {
                return Err(format!("page {page:#x} leads to {frame:#x}, which is no zeroed frame"));
            }
        }
        if now.is_none() { Err(format!("page {page:#x} cannot be read")) } else { Ok(()) }
    }

    /// Whether a walk from memory ends at a page.
    pub fn is_readable<E: Entry>(&self, rules: &Rules<E>, page: u64) -> bool {
        self.translation(rules, page).is_some()
    }

    /// What memory says of a page, if it says something.
    fn translation<E: Entry>(&self, rules: &Rules<E>, page: u64) -> Option<(u64, bool)> {
        let mut table = TOP;
        for level in [3, 2] {
            table = self.next(rules, Slot { table, index: index(page, level) })?;
        }
        let word = self.word(Slot { table, index: index(page, 1) });
        let is_present = rules.format.is_present(word);
        is_present.then(|| (rules.format.address(word), rules.format.is_writable(word)))
    }

    fn next<E: Entry>(&self, rules: &Rules<E>, slot: Slot) -> Option<u64> {
        let word = self.word(slot);
        rules.format.is_present(word).then(|| rules.format.address(word))
    }

    /// No processor remembers another translation than memory has, unless both read the same and cannot be written; nor
    /// another table on the way there.
    fn check_one_translation<E: Entry>(&self, rules: &Rules<E>) -> Result<(), Broken> {
        let reads_zero = |frame: &u64| self.frames.get(frame).is_some_and(|frame| !frame.is_written);
        for (number, processor) in self.processors.iter().enumerate() {
            for (&page, (frame, is_writable)) in &processor.pages {
                let Some((now, now_writable)) = self.translation(rules, page) else { continue };
                let reads_same = !is_writable && !now_writable && reads_zero(frame) && reads_zero(&now);
                if now != *frame && !reads_same {
                    return Err(format!(
                        "page {page:#x} leads to {now:#x}, and processor {number} remembers {frame:#x}"
                    ));
                }
            }
            for (&from, &table) in &processor.directories {
                let now = self.next(rules, Slot { table: TOP, index: index(from, 3) });
                if now.is_some_and(|now| now != table) {
                    return Err(format!("processor {number} remembers another directory at {from:#x}"));
                }
            }
            for (&from, &table) in &processor.tables {
                let directory = self.next(rules, Slot { table: TOP, index: index(from, 3) });
                let now = directory.and_then(|table| self.next(rules, Slot { table, index: index(from, 2) }));
                if now.is_some_and(|now| now != table) {
                    return Err(format!("processor {number} remembers another page table at {from:#x}"));
                }
            }
        }
        Ok(())
    }

    /// Who leads to a frame: an entry that hardware can reach, or what a processor remembers.
    fn leads_to<E: Entry>(&self, rules: &Rules<E>, frame: u64) -> Option<String> {
        let mut tables = vec![(TOP, 3)];
        let mut reached = BTreeSet::new();
        for (number, processor) in self.processors.iter().enumerate() {
            let known = processor.directories.values().chain(processor.tables.values());
            if known.chain(processor.pages.values().map(|(frame, _)| frame)).any(|&known| known == frame) {
                return Some(format!("processor {number} remembers it"));
            }
            tables.extend(processor.directories.values().map(|&table| (table, 2)));
            tables.extend(processor.tables.values().map(|&table| (table, 1)));
        }
        while let Some((table, level)) = tables.pop() {
            if level == 0 || !reached.insert((table, level)) {
                continue;
            }
            let Some(content) = self.frames.get(&table) else { continue };
            for &word in content.words.values().chain([&content.fill]) {
                if rules.format.is_present(word) {
                    let to = rules.format.address(word);
                    if to == frame {
                        return Some(format!("an entry of level {level} leads to it"));
                    }
                    tables.push((to, level - 1));
                }
            }
        }
        None
    }

    /// All that hardware may do with these pages now.
    pub fn acts<E: Entry>(&self, rules: &Rules<E>, pages: &[u64], acts: &mut Vec<Act>) {
        for (number, processor) in self.processors.iter().enumerate() {
            for &page in pages {
                acts.extend([
                    Act::FindDirectory(number, page),
                    Act::FindTable(number, page),
                    Act::FindPage(number, page),
                ]);
                if rules.reports_late != Late::None && !processor.failed.contains(&page) {
                    acts.push(Act::Fail(number, page));
                }
            }
        }
    }

    /// Hardware does something. `None` if that changes nothing.
    ///
    /// # Errors
    /// It finds what it must not find: a frame that is free.
    pub fn act<E: Entry>(&self, rules: &Rules<E>, act: Act) -> Result<Option<Machine>, Broken> {
        let mut next = self.clone();
        let format = rules.format;
        match act {
            Act::FindDirectory(number, page) => {
                let slot = Slot { table: TOP, index: index(page, 3) };
                let Some(directory) = next.use_table(rules, slot) else { return Ok(None) };
                next.processors[number].directories.insert(gib(page), directory);
            }
            Act::FindTable(number, page) => {
                let known = self.processors[number].directories.get(&gib(page)).copied();
                let upper = Slot { table: TOP, index: index(page, 3) };
                let Some(table) = known.or_else(|| next.use_table(rules, upper)) else { return Ok(None) };
                let slot = Slot { table, index: index(page, 2) };
                let Some(table) = next.use_table(rules, slot) else { return Ok(None) };
                next.processors[number].tables.insert(large(page), table);
            }
            Act::FindPage(number, page) => {
                let Some(&table) = self.processors[number].tables.get(&large(page)) else { return Ok(None) };
                if !self.frames.contains_key(&table) {
                    return Err(format!("processor {number} walks through {table:#x}, which is free"));
                }
                let slot = Slot { table, index: index(page, 1) };
                let word = next.word(slot);
                if !format.is_present(word) || (format.is_unused(word, Level::Page) && !rules.sets_flags) {
                    return Ok(None);
                }
                next.set(slot, format.used(word, Level::Page));
                let known = (format.address(word), format.is_writable(word));
                next.processors[number].pages.insert(page, known);
            }
            Act::Fail(number, page) => {
                match self.translation(rules, page) {
                    Some((_, true)) => return Ok(None),
                    None if rules.reports_late == Late::Permission => return Ok(None),
                    _ => {}
                }
                next.processors[number].failed.insert(page);
            }
        }
        Ok((next != *self).then_some(next))
    }

    /// Uses the entry of a table, as hardware does: sets the accessed flag. Where it leads.
    fn use_table<E: Entry>(&mut self, rules: &Rules<E>, slot: Slot) -> Option<u64> {
        let word = self.word(slot);
        if !rules.format.is_present(word) {
            return None;
        }
        self.set(slot, rules.format.used(word, Level::Table));
        Some(rules.format.address(word))
    }
}
