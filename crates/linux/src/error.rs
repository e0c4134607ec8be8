//! What the machine would not do for us, and what to do about it.

use std::fmt;
use std::fs;
use std::io;

use pagefold_engine::platform::TableKind;

/// Why the host cannot be a platform, or cannot reserve a table.
#[derive(Debug)]
pub enum LinuxError {
    /// Pages are not 4 KiB; a map page must be one page.
    PageSize(usize),
    /// The kernel has no `MADV_POPULATE_WRITE` (Linux 5.14): running out of memory would be a signal, not an error.
    NoPopulate(io::Error),
    /// No userfaultfd with write protection of unpopulated pages (Linux 6.4), or not for us.
    NoStrict(io::Error),
    /// A table is too large to be watched page by page in strict mode.
    StrictTooLarge {
        /// Bytes of the memory map.
        bytes: u64,
        /// The most that strict mode watches.
        limit: u64,
    },
    /// No address space for a table.
    NoAddressSpace {
        /// The table.
        kind: TableKind,
        /// Its bytes.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
        /// The limit that most likely said no.
        limit: Limit,
    },
}

/// Which limit stands in the way of a large reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `RLIMIT_AS`, in bytes.
    AddressSpace(u64),
    /// `vm.overcommit_memory` is 2, so that reserving counts as using.
    Overcommit,
    /// The process has as many mappings as `vm.max_map_count` allows.
    MapCount(u64),
    /// The 47 bits of user address space, or something unknown.
    Unknown,
}

impl Limit {
    /// Looks for the limit that a reservation of `bytes` has run into.
    pub(crate) fn find(bytes: u64) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::As);
        if let Some(soft) = limit.current
            && soft < bytes.saturating_add(used_address_space())
        {
            return Limit::AddressSpace(soft);
        }
        let maximum = number("/proc/sys/vm/max_map_count");
        if let Some(maximum) = maximum
            && let Ok(maps) = fs::read("/proc/self/maps")
            && maps.iter().filter(|&&byte| byte == b'\n').count() as u64 + 16 > maximum
        {
            return Limit::MapCount(maximum);
        }
        if number("/proc/sys/vm/overcommit_memory") == Some(2) {
            return Limit::Overcommit;
        }
        Limit::Unknown
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Bytes of address space this process uses already.
fn used_address_space() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Bytes in the largest binary unit that leaves a whole number of at least 8.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0, 0);
        while value >= 8 << 10 && unit < 5 {
            (value, unit) = (value >> 10, unit + 1);
        }
        write!(f, "{value} {}", ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit])
    }
}

impl fmt::Display for LinuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinuxError::PageSize(bytes) => {
                write!(f, "this machine has pages of {bytes} bytes; only 4096 are supported")
            }
            LinuxError::NoPopulate(source) => {
                write!(
                    f,
                    "the kernel cannot report a lack of memory as an error (MADV_POPULATE_WRITE, Linux 5.14): {source}"
                )
            }
            LinuxError::NoStrict(source) => write!(
                f,
                "strict mode needs userfaultfd with write protection of empty pages (Linux 6.4, and not forbidden here): {source}"
            ),
            LinuxError::StrictTooLarge { bytes, limit } => write!(
                f,
                "strict mode watches a memory map of up to {}, this one has {}: choose a smaller machine",
                Size(*limit),
                Size(*bytes)
            ),
            LinuxError::NoAddressSpace { bytes, source, limit, .. } => {
                write!(f, "cannot reserve {} of address space ({source}): ", Size(*bytes))?;
                match limit {
                    Limit::AddressSpace(soft) => {
                        write!(f, "the limit is {}; raise it (ulimit -v) or choose a smaller machine", Size(*soft))
                    }
                    Limit::Overcommit => f.write_str(
                        "vm.overcommit_memory=2 counts reservations as use; set it to 0 or choose a smaller machine",
                    ),
                    Limit::MapCount(maximum) => write!(
                        f,
                        "the process has all the mappings that vm.max_map_count={maximum} allows; raise it"
                    ),
                    Limit::Unknown => f.write_str("choose a smaller machine"),
                }
            }
        }
    }
}

// What the kernel said is part of the text, so it is no source besides.
impl std::error::Error for LinuxError {}
