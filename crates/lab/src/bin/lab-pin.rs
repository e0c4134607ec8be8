//! Runs in a guest: pins one page in each memory block of a range of physical memory, and holds them until it is killed.
//!
//! `lab-pin <first byte> <end> <bytes of a block>`, in hexadecimal. It touches memory until it has a page in every block,
//! asks the kernel where its pages are (`/proc/self/pagemap`, which takes root), moves the chosen ones into pipes, which
//! hold them where they are (`vmsplice`), and gives the rest back. Then it prints how many it holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::{env, thread};

use anyhow::{Context, Result, bail};
use memmap2::{Advice, MmapMut};
use rustix::pipe::{IoSliceRaw, SpliceFlags, pipe, vmsplice};

const PAGE: u64 = 4096;
/// Touched at a time.
const CHUNK: usize = 32 << 20;
/// Pages that a pipe holds (its default size).
const PIPE: usize = 16;

fn main() -> Result<()> {
    let numbers: Vec<u64> =
        env::args().skip(1).map(|word| u64::from_str_radix(&word, 16)).collect::<Result<_, _>>()?;
    let [start, end, block] = numbers[..] else {
        bail!("lab-pin <first byte> <end> <block>, in hexadecimal")
    };
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut chunks = Vec::new();
    // A page of ours for each block: which chunk, and where in it.
    let mut chosen = BTreeMap::new();
    while (chosen.len() as u64) < (end - start) / block {
        let mut chunk = MmapMut::map_anon(CHUNK).context("no more memory, and blocks without a page")?;
        // A huge page would be pinned as a whole.
        chunk.advise(Advice::NoHugePage)?;
        for at in (0..CHUNK).step_by(PAGE as usize) {
            chunk[at] = 1;
        }
        let mut entries = vec![0; CHUNK / PAGE as usize * 8];
        pagemap.read_exact_at(&mut entries, chunk.as_ptr() as u64 / PAGE * 8)?;
        for (at, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into()?);
            // Bit 63: present; bits 0 to 54: the page's number (Documentation/admin-guide/mm/pagemap.rst).
            let address = (entry & ((1 << 55) - 1)) * PAGE;
            if entry >> 63 == 1 && (start..end).contains(&address) {
                chosen.entry((address - start) / block).or_insert((chunks.len(), at * PAGE as usize));
            }
        }
        chunks.push(chunk);
    }
    let pages: Vec<&[u8]> =
        chosen.values().map(|&(chunk, at)| &chunks[chunk][at..at + PAGE as usize]).collect();
    let pipes = pages.chunks(PIPE).map(hold).collect::<Result<Vec<_>>>()?;
    let held = pages.len();
    drop(chunks);
    println!("{held}");
    loop {
        // The pipes hold them as long as they are open.
        let _held = &pipes;
        thread::park();
    }
}

/// Moves pages into a pipe.
fn hold(pages: &[&[u8]]) -> Result<(OwnedFd, OwnedFd)> {
    let (from, to) = pipe()?;
    let slices: Vec<_> = pages.iter().map(|page| IoSliceRaw::from_slice(page)).collect();
    // SAFETY: the kernel only reads these pages, through the pipe, and the pipe is never read; they are plain memory of this process.
    let moved = unsafe { vmsplice(&to, &slices, SpliceFlags::empty()) }?;
    if moved != pages.len() * PAGE as usize {
        bail!("the pipe takes {moved} bytes of {} pages", pages.len());
    }
    Ok((from, to))
}
