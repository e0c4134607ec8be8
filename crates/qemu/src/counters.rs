//! What a guest has executed, in memory that QEMU and its host share.

use std::fs::File;
use std::io;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

/// How much a guest has executed: counted, not estimated. `plugin/lib.rs` says what exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// Instructions, without repeated string instructions.
    pub instructions: u64,
    /// Iterations of repeated string instructions, such as bytes of `rep stosb`, and one for each such instruction.
    pub repetitions: u64,
}

impl Executed {
    /// Both together.
    pub fn total(self) -> u64 {
        self.instructions + self.repetitions
    }
}

impl Sub for Executed {
    type Output = Executed;

    fn sub(self, before: Executed) -> Executed {
        Executed {
            instructions: self.instructions - before.instructions,
            repetitions: self.repetitions - before.repetitions,
        }
    }
}

/// One CPU's counters; in a cache line of its own, since only that CPU writes there.
#[repr(C, align(64))]
#[derive(Default)]
struct CpuCounter {
    instructions: AtomicU64,
    repetitions: AtomicU64,
}

/// The counters of all CPUs, in a file that any number of processes have mapped.
pub struct InstructionCounters {
    map: MmapRaw,
}

impl InstructionCounters {
    /// A file for the counters of so many CPUs, in memory only, which cannot become shorter.
    ///
    /// # Errors
    /// The system has none for us.
    pub fn file(cpus: usize) -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("pagefold-counters", flags)?);
        file.set_len((cpus * size_of::<CpuCounter>()) as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        Ok(file)
    }

    /// The counters in such a file.
    ///
    /// # Errors
    /// It is none of [`file`](Self::file), or cannot be mapped.
    pub fn map(file: &File) -> io::Result<InstructionCounters> {
        // Of any other file we might lose the memory while we use it.
        let is_sealed =
            rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        let bytes = file.metadata()?.len();
        if !is_sealed || bytes == 0 || bytes % size_of::<CpuCounter>() as u64 != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file of counters"));
        }
        Ok(InstructionCounters { map: MmapOptions::new().map_raw(file)? })
    }

    /// How many CPUs they count.
    pub fn cpus(&self) -> usize {
        self.map.len() / size_of::<CpuCounter>()
    }

    fn all(&self) -> &[CpuCounter] {
        // SAFETY: the mapping is page-aligned, readable and writable, and lives as long as `self`; its file cannot shrink
        // under it. Atomics are valid whatever their bytes are, and no code in either process accesses them otherwise.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<CpuCounter>(), self.cpus()) }
    }

    /// A CPU has executed more. To be called by one thread at a time for a CPU; a CPU that there is not is not counted.
    pub fn add(&self, cpu: usize, instructions: u64, repetitions: u64) {
        let Some(cpu) = self.all().get(cpu) else { return };
        // With one writer, this is an addition, and cheaper than an atomic one.
        cpu.instructions.store(cpu.instructions.load(Relaxed) + instructions, Relaxed);
        if repetitions > 0 {
            cpu.repetitions.store(cpu.repetitions.load(Relaxed) + repetitions, Relaxed);
        }
    }

    /// What all CPUs have executed so far. Of CPUs that run meanwhile, a little more or less.
    pub fn read(&self) -> Executed {
        let sum = |counter: fn(&CpuCounter) -> &AtomicU64| {
            self.all().iter().map(|cpu| counter(cpu).load(Relaxed)).sum()
        };
        Executed { instructions: sum(|cpu| &cpu.instructions), repetitions: sum(|cpu| &cpu.repetitions) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_are_one() {
        let file = InstructionCounters::file(2).unwrap();
        let (ours, theirs) =
            (InstructionCounters::map(&file).unwrap(), InstructionCounters::map(&file).unwrap());
        assert_eq!(ours.cpus(), 2);
        theirs.add(0, 5, 0);
        theirs.add(1, 7, 3);
        theirs.add(1, 1, 0);
        theirs.add(2, 100, 100);
        let executed = ours.read();
        assert_eq!(executed, Executed { instructions: 13, repetitions: 3 });
        ours.add(0, 1, 1);
        assert_eq!(theirs.read() - executed, Executed { instructions: 1, repetitions: 1 });
    }

    #[test]
    fn only_its_own_files() {
        let dir = tempfile::tempdir().unwrap();
        let file =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("file")).unwrap();
        file.set_len(64).unwrap();
        assert!(InstructionCounters::map(&file).is_err());
        assert!(InstructionCounters::map(&InstructionCounters::file(0).unwrap()).is_err());
    }
}
