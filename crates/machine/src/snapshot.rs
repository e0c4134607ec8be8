//! Snapshot files: a machine's pages, recorded.
//!
//! # Format, version 1
//!
//! All numbers are little-endian. A *varint* has seven bits a byte, lowest first, and the top bit set in all bytes but
//! the last.
//!
//! ```text
//! file    = magic header block* end
//! magic   = 89 'P' 'G' 'F' 0D 0A 1A 0A          (as PNG's: a text-mode transfer breaks it visibly)
//! header  = u16 version = 1, u32 length, length bytes of JSON (machine::Header), u32 crc
//! block   = u32 packed (above 0), u32 plain, u32 runs, packed bytes, u32 crc
//! end     = u32 0, u64 runs, u64 pages, u32 crc
//! ```
//!
//! Each crc is the CRC-32 (IEEE) of everything in its part before it. A block's bytes are DEFLATE; inflated they are
//! `plain` bytes and hold `runs` runs:
//!
//! ```text
//! run     = varint gap        pages between the end of the last run of the file and the start of this one
//!           varint len        pages, above 0
//!           varint flags      index into this block's table of flags; the table's length to add one:
//!             [varint word]     then the new flags follow
//!           varint count      map count
//! ```

use std::collections::HashMap;
use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use crate::flags::Flags;
use crate::geometry::{MAX_PAGES, PAGE_BYTES};
use crate::machine::{Header, Machine, Run};

const MAGIC: [u8; 8] = *b"\x89PGF\r\n\x1a\n";
const VERSION: u16 = 1;
/// Runs in a block.
const BLOCK: usize = 1 << 16;
/// Limits of what is believed: a header, a block.
const MAX_HEADER: u32 = 1 << 20;
const MAX_BLOCK: u32 = 1 << 24;

/// Why a snapshot could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not a snapshot at all.
    #[error("not a Pagefold snapshot (it does not begin as one)")]
    NotASnapshot,
    /// Written by a newer version.
    #[error("snapshot version {0}; this program reads version {VERSION}: use a newer one")]
    Version(u16),
    /// It ends too early.
    #[error("the snapshot is cut off {0}: copy it again")]
    Truncated(&'static str),
    /// Its bytes have changed.
    #[error("the snapshot is damaged {0} (checksum): copy it again")]
    Damaged(&'static str),
    /// The bytes are as written, but make no sense.
    #[error("the snapshot contradicts itself: {0}")]
    Malformed(&'static str),
    /// A machine this program cannot replay.
    #[error("the snapshot is of a machine with pages of {0} bytes; only 4096 are supported")]
    PageSize(u64),
    /// Its pages do not fit.
    #[error("there is too little memory for the snapshot's pages: free some, or raise the limit (ulimit -v)")]
    NoMemory,
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes a machine.
///
/// # Errors
/// [`SnapshotError::Io`], and [`SnapshotError::Malformed`] for runs out of order.
pub fn write(machine: &Machine, mut to: impl Write) -> Result<(), SnapshotError> {
    to.write_all(&MAGIC)?;
    let json = serde_json::to_vec(&machine.header).map_err(io::Error::from)?;
    let length = u32::try_from(json.len()).ok().filter(|&length| length <= MAX_HEADER);
    let mut part = Vec::new();
    part.extend(VERSION.to_le_bytes());
    part.extend(length.ok_or(SnapshotError::Malformed("the header is too long"))?.to_le_bytes());
    part.extend(json);
    write_part(&mut to, &part)?;

    let mut at = 0;
    let mut pages = 0u64;
    for runs in machine.runs.chunks(BLOCK) {
        let mut plain = Vec::new();
        let mut table = HashMap::new();
        for run in runs {
            let gap = run.start.checked_sub(at).ok_or(SnapshotError::Malformed("runs out of order"))?;
            varint(&mut plain, gap);
            varint(&mut plain, run.len);
            let known = table.len() as u64;
            let index = *table.entry(run.flags).or_insert(known);
            varint(&mut plain, index);
            if index == known {
                varint(&mut plain, run.flags.0);
            }
            varint(&mut plain, run.count);
            at = run.end();
            pages += run.len;
        }
        let mut packer = DeflateEncoder::new(Vec::new(), Compression::best());
        packer.write_all(&plain)?;
        let packed = packer.finish()?;
        let mut part = Vec::with_capacity(packed.len() + 12);
        part.extend((packed.len() as u32).to_le_bytes());
        part.extend((plain.len() as u32).to_le_bytes());
        part.extend((runs.len() as u32).to_le_bytes());
        part.extend(packed);
        write_part(&mut to, &part)?;
    }

    let mut end = 0u32.to_le_bytes().to_vec();
    end.extend((machine.runs.len() as u64).to_le_bytes());
    end.extend(pages.to_le_bytes());
    write_part(&mut to, &end)?;
    to.flush()?;
    Ok(())
}

fn write_part(to: &mut impl Write, part: &[u8]) -> io::Result<()> {
    to.write_all(part)?;
    to.write_all(&crc32fast::hash(part).to_le_bytes())
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Reads a machine.
///
/// # Errors
/// [`SnapshotError`]: which part is wrong, and how.
pub fn read(from: impl Read) -> Result<Machine, SnapshotError> {
    let mut parts = SnapshotParts { from, sum: crc32fast::Hasher::new() };
    let mut magic = [0; MAGIC.len()];
    match parts.from.read_exact(&mut magic) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(SnapshotError::NotASnapshot);
        }
        other => other?,
    }
    if magic != MAGIC {
        return Err(SnapshotError::NotASnapshot);
    }
    let header = read_header(&mut parts)?;
    let mut machine = Machine { header, runs: Vec::new() };
    let mut at = 0;
    let mut pages = 0;
    loop {
        let packed = parts.u32("in a block")?;
        if packed == 0 {
            break;
        }
        read_block(&mut parts, packed, &mut machine.runs, &mut at, &mut pages)?;
    }
    let (runs, all_pages) = (parts.u64("at its end")?, parts.u64("at its end")?);
    parts.check("at its end")?;
    if (runs, all_pages) != (machine.runs.len() as u64, pages) {
        return Err(SnapshotError::Malformed("it has other runs than its end says"));
    }
    Ok(machine)
}

fn read_header(parts: &mut SnapshotParts<impl Read>) -> Result<Header, SnapshotError> {
    const PLACE: &str = "in its header";
    let version = u16::from_le_bytes(parts.array(PLACE)?);
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let length = parts.u32(PLACE)?;
    if length > MAX_HEADER {
        return Err(SnapshotError::Malformed("its header is too long"));
    }
    let json = parts.bytes(length as usize, PLACE)?;
    parts.check(PLACE)?;
    let header: Header =
        serde_json::from_slice(&json).map_err(|_| SnapshotError::Malformed("its header is no valid JSON"))?;
    if header.page_size != PAGE_BYTES {
        return Err(SnapshotError::PageSize(header.page_size));
    }
    let mut last = 0;
    for range in &header.memory {
        if range.start < last || range.end <= range.start || range.end > MAX_PAGES {
            return Err(SnapshotError::Malformed("its memory ranges overlap or are absurd"));
        }
        last = range.end;
    }
    Ok(header)
}

fn read_block(
    parts: &mut SnapshotParts<impl Read>,
    packed: u32,
    runs: &mut Vec<Run>,
    at: &mut u64,
    pages: &mut u64,
) -> Result<(), SnapshotError> {
    const PLACE: &str = "in a block";
    let (plain, count) = (parts.u32(PLACE)?, parts.u32(PLACE)?);
    // A run has at least four bytes.
    if packed > MAX_BLOCK || plain > MAX_BLOCK || count > plain / 4 || count as usize > BLOCK {
        return Err(SnapshotError::Malformed("a block has an absurd size"));
    }
    let packed = parts.bytes(packed as usize, PLACE)?;
    parts.check(PLACE)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(plain as usize).map_err(|_| SnapshotError::NoMemory)?;
    // One byte more than it should have, to see whether it has more.
    DeflateDecoder::new(packed.as_slice())
        .take(u64::from(plain) + 1)
        .read_to_end(&mut bytes)
        .map_err(|_| SnapshotError::Malformed("a block cannot be unpacked"))?;
    if bytes.len() != plain as usize {
        return Err(SnapshotError::Malformed("a block has another size than it says"));
    }
    let mut bytes = bytes.as_slice();
    let mut table = Vec::new();
    runs.try_reserve(count as usize).map_err(|_| SnapshotError::NoMemory)?;
    for _ in 0..count {
        let start = at.checked_add(take_varint(&mut bytes)?);
        let len = take_varint(&mut bytes)?;
        let end = start.and_then(|start| start.checked_add(len)).filter(|&end| end <= MAX_PAGES && len > 0);
        let index = take_varint(&mut bytes)?;
        if index == table.len() as u64 {
            table.push(Flags(take_varint(&mut bytes)?));
        }
        let flags = usize::try_from(index).ok().and_then(|index| table.get(index)).copied();
        let (Some(start), Some(end), Some(flags)) = (start, end, flags) else {
            return Err(SnapshotError::Malformed("a run is absurd"));
        };
        runs.push(Run { start, len, flags, count: take_varint(&mut bytes)? });
        *at = end;
        *pages += len;
    }
    if bytes.is_empty() { Ok(()) } else { Err(SnapshotError::Malformed("a block has bytes to spare")) }
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, SnapshotError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) =
            bytes.split_first().ok_or(SnapshotError::Malformed("a block ends in a number"))?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            break;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(SnapshotError::Malformed("a number is too long"))
}

/// Reads parts and sums them up.
struct SnapshotParts<R> {
    from: R,
    sum: crc32fast::Hasher,
}

impl<R: Read> SnapshotParts<R> {
    fn array<const N: usize>(&mut self, place: &'static str) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, place)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn u32(&mut self, place: &'static str) -> Result<u32, SnapshotError> {
        Ok(u32::from_le_bytes(self.array(place)?))
    }

    fn u64(&mut self, place: &'static str) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(self.array(place)?))
    }

    fn bytes(&mut self, length: usize, place: &'static str) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::new();
        // Grows with what is there, not with what is promised.
        (&mut self.from).take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() < length {
            return Err(SnapshotError::Truncated(place));
        }
        self.sum.update(&bytes);
        Ok(bytes)
    }

    /// Compares the sum of the part with what the file says, and begins the next part.
    fn check(&mut self, place: &'static str) -> Result<(), SnapshotError> {
        let sum = std::mem::take(&mut self.sum).finalize();
        let mut bytes = [0; 4];
        self.fill(&mut bytes, place)?;
        if u32::from_le_bytes(bytes) == sum { Ok(()) } else { Err(SnapshotError::Damaged(place)) }
    }

    fn fill(&mut self, bytes: &mut [u8], place: &'static str) -> Result<(), SnapshotError> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SnapshotError::Truncated(place),
            _ => error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{MemoryRange, ZoneRecord};
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            page_size: 4096,
            kernel: "6.12.1".into(),
            memory: vec![MemoryRange { start: 1, end: 1 << 20 }],
            zones: vec![ZoneRecord { name: "Normal".into(), ..ZoneRecord::default() }],
            memmap_pages: Some(17),
            ..Header::default()
        }
    }

    fn written(machine: &Machine) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(machine, &mut bytes).unwrap();
        bytes
    }

    fn small() -> Machine {
        let run = |start, flags| Run { start, len: 3, flags: Flags(flags), count: start };
        Machine { header: header(), runs: (0..1000).map(|n| run(n * 5, n % 7)).collect() }
    }

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        prop::collection::vec((0u64..1000, 1u64..100_000, any::<u64>(), any::<u64>()), 0..300).prop_map(
            |parts| {
                let mut at = 0;
                parts
                    .into_iter()
                    .map(|(gap, len, flags, count)| {
                        let run = Run { start: at + gap, len, flags: Flags(flags & 3), count };
                        at = run.end();
                        run
                    })
                    .collect()
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(runs in runs()) {
            let machine = Machine { header: header(), runs };
            prop_assert_eq!(read(written(&machine).as_slice()).unwrap(), machine);
        }

        #[test]
        fn any_bytes_are_an_error_or_a_machine(mut bytes in prop::collection::vec(any::<u8>(), 0..400), real: bool) {
            if real {
                bytes.splice(0..0, MAGIC);
            }
            let _ = read(bytes.as_slice());
        }
    }

    #[test]
    fn many_blocks() {
        let run = |n| Run { start: n * 2, len: 1, flags: Flags(n % 3), count: 0 };
        let machine = Machine { header: header(), runs: (0..3 * BLOCK as u64 + 5).map(run).collect() };
        assert_eq!(read(written(&machine).as_slice()).unwrap(), machine);
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = written(&small());
        for length in 0..bytes.len() {
            let error = read(&bytes[..length]).unwrap_err();
            let expected = matches!(error, SnapshotError::NotASnapshot | SnapshotError::Truncated(_));
            assert!(expected, "{length}: {error}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = written(&small());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(read(damaged.as_slice()).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn foreign_machines_are_refused() {
        let mut machine = small();
        machine.header.page_size = 65536;
        assert!(matches!(read(written(&machine).as_slice()), Err(SnapshotError::PageSize(65536))));
        let mut bytes = written(&small());
        bytes[8] = 2;
        assert!(matches!(read(bytes.as_slice()), Err(SnapshotError::Version(2))));
        assert!(matches!(read(&b"#!/bin/sh\n"[..]), Err(SnapshotError::NotASnapshot)));
    }

    #[test]
    fn absurd_ranges_are_refused() {
        for (start, end) in [(5, 5), (9, 2), (0, u64::MAX)] {
            let mut machine = small();
            machine.header.memory.push(MemoryRange { start: start + (1 << 21), end });
            assert!(matches!(read(written(&machine).as_slice()), Err(SnapshotError::Malformed(_))));
        }
    }
}
