//! Pools of huge pages: `/sys/kernel/mm/hugepages`, and each node's. Whether HVO is on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::files::Files;

/// The pool of one size of huge pages, of the host or of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pool {
    /// Bytes in a huge page.
    pub size: u64,
    /// Huge pages, surplus ones included.
    pub pages: u64,
    /// Those nobody uses.
    pub free: u64,
    /// Those above what was asked for, made on demand.
    pub surplus: u64,
}

impl Pool {
    /// Bytes in the pool.
    pub fn bytes(&self) -> u64 {
        self.pages.saturating_mul(self.size)
    }
}

/// Whether the kernel gives back the descriptors of huge pages' tails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hvo {
    /// Pages that are added to a pool are optimised.
    On,
    /// They are not.
    Off,
    /// This kernel cannot.
    Unsupported,
    /// Nothing tells.
    #[default]
    Unknown,
}

/// The size in `hugepages-NkB`.
pub fn parse_dir(name: &str) -> Option<u64> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    kib.checked_mul(1024).filter(|size| size.is_power_of_two())
}

/// The pools in a directory; `sys/kernel/mm/hugepages`, or a node's.
pub fn read_pools(files: &mut Files, dir: &str) -> Vec<Pool> {
    const TELLS: &str = "pools of huge pages";
    let names = files.names(dir, TELLS);
    let mut pools: Vec<Pool> = names
        .iter()
        .filter_map(|name| {
            let size = parse_dir(name)?;
            let mut count =
                |file: &str| files.number(&format!("{dir}/{name}/{file}"), TELLS, |text| text.parse().ok());
            let pages = count("nr_hugepages")?;
            let (free, surplus) = (count("free_hugepages")?, count("surplus_hugepages")?);
            Some(Pool { size, pages, free, surplus })
        })
        .collect();
    pools.sort_by_key(|pool| pool.size);
    pools
}

/// What `/proc/sys/vm/hugetlb_optimize_vmemmap` says. Kernels that cannot (or whose descriptors have no size that HVO
/// works with) do not have the file.
pub fn read_hvo(files: &mut Files) -> Hvo {
    const PATH: &str = "proc/sys/vm/hugetlb_optimize_vmemmap";
    const TELLS: &str = "whether HVO is on";
    match files.optional_text(PATH, TELLS) {
        Some(text) => match text.trim() {
            "0" => Hvo::Off,
            "1" => Hvo::On,
            _ => {
                files.malformed(PATH, TELLS, &text);
                Hvo::Unknown
            }
        },
        // Where sysctls are, this one would be.
        None if files.exists("proc/sys/vm/min_free_kbytes") => Hvo::Unsupported,
        None => Hvo::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn directories_name_sizes() {
        assert_eq!(parse_dir("hugepages-2048kB"), Some(2 << 20));
        assert_eq!(parse_dir("hugepages-1048576kB"), Some(1 << 30));
        for name in ["hugepages-kB", "hugepages-3kB", "hugepages-18446744073709551615kB", "demote", ""] {
            assert_eq!(parse_dir(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_read(name in "(hugepages-)?[0-9]{0,22}(kB)?|.{0,30}") {
            let _ = parse_dir(&name);
        }
    }
}
