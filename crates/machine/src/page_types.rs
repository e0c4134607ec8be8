//! What `page-types -l` prints (tools/mm/page-types.c): ranges of pages with the same flags. It becomes a machine.
//!
//! Flags stand as letters, one place for each flag in the order of their bits: those of `/proc/kpageflags`, and then some that
//! the tool makes up or that are for kernel developers. Without `--raw` the tool hides those, and which pages are heads and
//! tails but for huge pages of pools. What memory there is, it does not tell: all pages that are not `KPF_NOPAGE` are taken
//! for memory. Map counts stand in front with `--mapcnt` (`-M`).

use crate::flags::{Flags, NOPAGE, RESERVED};
use crate::geometry::{MAX_PAGES, PAGE_BYTES};
use crate::layout::MemoryRange;
use crate::machine::{Header, Machine, Run};

/// Flags that the first places stand for: bits 0 to 26, and then bit 32, `KPF_RESERVED`.
const PLACES: usize = 27;

/// Why a listing is of no use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageTypesError {
    /// A line that is none of a listing's.
    #[error("line {line} is not one of page-types -l: {text}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// How it begins.
        text: String,
    },
    /// Ranges that are not in order, or that no machine has.
    #[error("line {0}: its pages are not behind those of the line before")]
    Order(usize),
    /// No line at all.
    #[error("it has no pages")]
    Empty,
}

/// Whether a text begins as a listing does.
pub fn is_listing(text: &str) -> bool {
    text.lines().find(|line| !line.trim().is_empty()).is_some_and(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        matches!(words[..], ["offset", "len", "flags"] | ["map-cnt", "offset", "len", "flags"])
    })
}

/// The machine that a listing tells of.
///
/// # Errors
/// [`PageTypesError`].
pub fn parse(text: &str) -> Result<Machine, PageTypesError> {
    let mut runs: Vec<Run> = Vec::new();
    let is_header = |line: &str| line.starts_with("offset") || line.starts_with("map-cnt");
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end()));
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty() && !is_header(line)) {
        // Sums of flags follow behind the list.
        if !runs.is_empty() && line.trim_start().starts_with("flags") {
            break;
        }
        let run = range(line).ok_or_else(|| PageTypesError::Line {
            line: number,
            text: line.chars().filter(|c| !c.is_control()).take(40).collect(),
        })?;
        let end = runs.last().map_or(0, Run::end);
        let fits = run.start.checked_add(run.len).is_some_and(|end| end <= MAX_PAGES);
        if run.start < end || run.len == 0 || !fits {
            return Err(PageTypesError::Order(number));
        }
        runs.push(run);
    }
    let mut memory: Vec<MemoryRange> = Vec::new();
    for run in runs.iter().filter(|run| !run.flags.any(NOPAGE)) {
        match memory.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end(),
            _ => memory.push(MemoryRange { start: run.start, end: run.end() }),
        }
    }
    if memory.is_empty() {
        return Err(PageTypesError::Empty);
    }
    let note = "from page-types -l".into();
    Ok(Machine { header: Header { page_size: PAGE_BYTES, memory, note, ..Header::default() }, runs })
}

/// `4a0 3 __RU_lA____M_______________________________`: first page and pages, in hexadecimal, and flags.
fn range(line: &str) -> Option<Run> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (count, [start, len, letters]) = match words[..] {
        [start, len, letters] => (0, [start, len, letters]),
        [count, start, len, letters] => (count.parse().ok()?, [start, len, letters]),
        _ => return None,
    };
    let hex = |word| u64::from_str_radix(word, 16).ok();
    let (start, len) = (hex(start)?, hex(len)?);
    if letters.len() <= PLACES || !letters.is_ascii() {
        return None;
    }
    let is_set = |place: usize| letters.as_bytes().get(place).is_some_and(|&letter| letter != b'_');
    let mut flags = (0..PLACES).filter(|&place| is_set(place)).fold(0, |flags, place| flags | 1u64 << place);
    if is_set(PLACES) {
        flags |= RESERVED;
    }
    Some(Run { start, len, flags: Flags(flags), count })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageState;
    use crate::flags::{ANON, BUDDY, COMPOUND_HEAD, COMPOUND_TAIL, HUGE, LRU};
    use proptest::prelude::*;

    /// Letters of these bits, as the tool prints them.
    fn letters(flags: u64) -> String {
        let names = "LRERUDlASWIBMasbHTGuXnxtozig";
        let names: Vec<char> = names.chars().collect();
        let low = (0..PLACES).map(|bit| if flags >> bit & 1 == 1 { names[bit] } else { '_' });
        low.chain([if flags & RESERVED != 0 { 'r' } else { '_' }]).chain("_____________".chars()).collect()
    }

    #[test]
    fn ranges_become_a_machine() {
        let ranges = [
            (0, 1, RESERVED),
            (0x100, 0x80, BUDDY),
            (0x200, 1, HUGE | COMPOUND_HEAD),
            (0x201, 0x1ff, HUGE | COMPOUND_TAIL),
            (0x400, 3, ANON | LRU),
            (0x500, 16, NOPAGE),
        ];
        let list: String = ranges
            .iter()
            .map(|&(start, len, flags)| format!("{start:x}\t{len:x}\t{}\n", letters(flags)))
            .collect();
        let text =
            format!("offset\tlen\tflags\n{list}\n\n             flags\tpage-count       MB\n0x0 1 0\n");
        assert!(is_listing(&text));
        let machine = parse(&text).unwrap();
        let found: Vec<_> = machine.runs.iter().map(|run| (run.start, run.len, run.flags.0)).collect();
        assert_eq!(found, ranges);
        let states: Vec<_> =
            machine.extents().map(|extent| (extent.start, extent.order, extent.state)).collect();
        assert!(states.contains(&(0x200, 9, PageState::Hugetlb)));
        assert_eq!(machine.pages(), 1 + 0x80 + 0x200 + 3);
    }

    #[test]
    fn map_counts_stand_in_front() {
        let text = format!("map-cnt\toffset\tlen\tflags\n12\ta0\t4\t{}\n", letters(ANON | LRU));
        assert!(is_listing(&text));
        let run = Run { start: 0xa0, len: 4, flags: Flags(ANON | LRU), count: 12 };
        assert_eq!(parse(&text).unwrap().runs, [run]);
    }

    #[test]
    fn mistakes_have_their_line() {
        let line = letters(BUDDY);
        assert!(matches!(parse("offset len flags\n1 2\n"), Err(PageTypesError::Line { line: 2, .. })));
        assert_eq!(parse(&format!("5\t2\t{line}\n6\t1\t{line}\n")), Err(PageTypesError::Order(2)));
        assert_eq!(parse(&format!("ffffffffffffffff\t2\t{line}\n")), Err(PageTypesError::Order(1)));
        assert_eq!(parse("offset\tlen\tflags\n"), Err(PageTypesError::Empty));
        assert!(!is_listing("Node 0, zone Normal\n"));
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "(offset|[0-9a-f]{1,16}|\t| |_|B|\n){0,60}") {
            let _ = parse(&text);
        }
    }
}
