//! What is in the machine's memory: sparse files, written to where a workload touches its pages.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use pagefold_engine::{Folio, Frozen, Order, Pfn, Platform};
use pagefold_workload::Contents;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// Bytes written at once.
const CHUNK: usize = 256 << 10;

/// The memory behind page numbers.
#[derive(Debug, Default)]
pub struct SparseMemory {
    files: Vec<(Range<u64>, File)>,
    /// What is copied through. Kept: for memory of its own each copy of 2 MiB would take 64 page faults.
    chunk: Mutex<Vec<u8>>,
}

impl SparseMemory {
    /// Boot memory: `bytes` from address 0 up.
    pub fn boot(bytes: u64) -> io::Result<Self> {
        let file = memfd_create("boot memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, bytes)?;
        let mut memory = Self::default();
        memory.add(0, bytes, file.into());
        Ok(memory)
    }

    /// The memory of a device.
    pub fn add(&mut self, addr: u64, bytes: u64, file: File) {
        self.files.push((addr..addr + bytes, file));
    }

    fn file(&self, addr: u64) -> io::Result<(&File, u64)> {
        let found = self.files.iter().find(|(range, _)| range.contains(&addr));
        found.map(|(range, file)| (file, addr - range.start)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Fills a folio with `mark`.
    fn write(&self, folio: Pfn, order: Order, mark: u64) -> io::Result<()> {
        let (file, offset) = self.file(folio.0 * 4096)?;
        let len = (order.pages() * 4096) as usize;
        let chunk = mark.to_ne_bytes().repeat(len.min(CHUNK) / 8);
        (0..len).step_by(CHUNK).try_for_each(|at| file.write_all_at(&chunk, offset + at as u64))
    }

    /// Whether the first and the last word of a folio still say `mark`.
    fn reads(&self, folio: Pfn, order: Order, mark: u64) -> io::Result<bool> {
        let (file, offset) = self.file(folio.0 * 4096)?;
        let mut word = [0; 8];
        for at in [0, order.pages() * 4096 - 8] {
            file.read_exact_at(&mut word, offset + at)?;
            if word != mark.to_ne_bytes() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies what a folio holds to another of the same order. Whether its first and its last word say `mark`.
    fn transfer(&self, from: Pfn, to: Pfn, order: Order, mark: u64) -> io::Result<bool> {
        let (source, from) = self.file(from.0 * 4096)?;
        let (target, to) = self.file(to.0 * 4096)?;
        let len = (order.pages() * 4096) as usize;
        let mut chunk = self.chunk.lock().unwrap_or_else(PoisonError::into_inner);
        chunk.resize(CHUNK, 0);
        let chunk = &mut chunk[..len.min(CHUNK)];
        let mut holds = true;
        for at in (0..len).step_by(CHUNK) {
            source.read_exact_at(chunk, from + at as u64)?;
            target.write_all_at(chunk, to + at as u64)?;
            let mark = mark.to_ne_bytes();
            holds &= (at > 0 || chunk.starts_with(&mark)) && (at + CHUNK < len || chunk.ends_with(&mark));
        }
        Ok(holds)
    }
}

impl<P: Platform> Contents<P> for SparseMemory {
    type Error = io::Error;

    fn mark(&self, folio: &mut Frozen<'_, P>, mark: u64) -> io::Result<()> {
        self.write(folio.pfn(), folio.order(), mark)
    }

    fn holds(&self, folio: &Folio<'_, P>, mark: u64) -> io::Result<bool> {
        self.reads(folio.pfn(), folio.order(), mark)
    }

    fn copy(&self, from: &Folio<'_, P>, to: &mut Frozen<'_, P>, mark: u64) -> io::Result<bool> {
        self.transfer(from.pfn(), to.pfn(), from.order(), mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folio_carries_its_mark_along() {
        let mut memory = SparseMemory::boot(4 << 20).unwrap();
        let device = SparseMemory::boot(4 << 20).unwrap().files.remove(0).1;
        memory.add(8 << 20, 4 << 20, device);
        let (order, old, new) = (Order::AREA, Pfn(512), Pfn((8 << 20) / 4096));
        memory.write(old, order, 7).unwrap();
        assert!(memory.reads(old, order, 7).unwrap());
        assert!(!memory.reads(new, order, 7).unwrap());
        assert!(!memory.transfer(old, new, order, 8).unwrap());
        assert!(memory.transfer(old, new, order, 7).unwrap());
        assert!(memory.reads(new, order, 7).unwrap());
        assert!(memory.write(Pfn((6 << 20) / 4096), Order::ZERO, 1).is_err(), "no memory there");
    }
}
