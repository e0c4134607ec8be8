//! The bits of `/proc/kpageflags` (include/uapi/linux/kernel-page-flags.h and include/linux/kernel-page-flags.h).

use std::fmt;

/// The flags of one page, as the kernel tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flags(pub u64);

macro_rules! bits {
    ($($name:ident = $bit:literal),* $(,)?) => {
        $(
            #[doc = concat!("`KPF_", stringify!($name), "`, bit ", stringify!($bit), ".")]
            pub const $name: u64 = 1 << $bit;
        )*
        /// Names of the known bits, by bit number.
        pub const NAMES: &[(u32, &str)] = &[$(($bit, stringify!($name))),*];
    };
}

bits! {
    LOCKED = 0, ERROR = 1, REFERENCED = 2, UPTODATE = 3, DIRTY = 4, LRU = 5, ACTIVE = 6, SLAB = 7, WRITEBACK = 8,
    RECLAIM = 9, BUDDY = 10, MMAP = 11, ANON = 12, SWAPCACHE = 13, SWAPBACKED = 14, COMPOUND_HEAD = 15,
    COMPOUND_TAIL = 16, HUGE = 17, UNEVICTABLE = 18, HWPOISON = 19, NOPAGE = 20, KSM = 21, THP = 22, OFFLINE = 23,
    ZERO_PAGE = 24, IDLE = 25, PGTABLE = 26,
    // "Kernel hacking assistances": not stable, but long unchanged.
    RESERVED = 32, MLOCKED = 33, OWNER_2 = 34, PRIVATE = 35, PRIVATE_2 = 36, OWNER_PRIVATE = 37, ARCH = 38,
    UNCACHED = 39, SOFTDIRTY = 40, ARCH_2 = 41, ARCH_3 = 42,
}

impl Flags {
    /// Whether any bit of `mask` is set.
    pub const fn any(self, mask: u64) -> bool {
        self.0 & mask != 0
    }
}

impl fmt::Display for Flags {
    /// The names of the bits, joined by commas; bits without a known name as `bitN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for bit in (0..64).filter(|bit| self.0 >> bit & 1 != 0) {
            if !first {
                f.write_str(",")?;
            }
            first = false;
            match NAMES.iter().find(|(known, _)| *known == bit) {
                Some((_, name)) => f.write_str(&name.to_ascii_lowercase())?,
                None => write!(f, "bit{bit}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bits_have_names_and_others_numbers() {
        assert_eq!(Flags(LRU | ANON | 1 << 50).to_string(), "lru,anon,bit50");
        assert_eq!(Flags(0).to_string(), "");
    }
}
