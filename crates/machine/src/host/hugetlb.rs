//! Pools of huge pages: `/sys/kernel/mm/hugepages`, and each node's. Whether HVO is on.

use serde::{Deserialize, Serialize};

use super::counters::Counters;
use super::files::Files;
use super::release::release;

/// The pool of one size of huge pages, of the host or of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pool {
    /// Bytes in a huge page.
    pub size: u64,
    /// Huge pages, surplus ones included.
    pub pages: u64,
    /// Those that are not in use.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// The pool of the default size, from `/proc/meminfo`: where nothing else tells of pools.
pub fn default_pool(meminfo: &Counters) -> Option<Pool> {
    let size = meminfo.get("Hugepagesize").filter(|size| size.is_power_of_two())?;
    let count = |name| meminfo.get(name);
    let pages = count("HugePages_Total").filter(|&pages| pages > 0)?;
    let (free, surplus) = (count("HugePages_Free").unwrap_or(0), count("HugePages_Surp").unwrap_or(0));
    Some(Pool { size, pages, free, surplus })
}

/// What architecture and kernel release alone say of HVO.
///
/// It came with Linux 5.14 for x86-64. arm64 had it for a while and gave it up, since a live kernel mapping may only change
/// there by break-before-make (commit 060a2c92d1b6). Of other architectures some have it; nothing is said of those.
pub fn hvo_without_sysctl(arch: &str, kernel: &str) -> Hvo {
    const FIRST: (u64, u64) = (5, 14);
    let never = ["aarch64", "arm64", "ppc64", "ppc64le", "i386", "i486", "i586", "i686"];
    if never.contains(&arch) || arch.starts_with("armv") {
        return Hvo::Unsupported;
    }
    match release(kernel) {
        Some(release) if release < FIRST => Hvo::Unsupported,
        _ => Hvo::Unknown,
    }
}

/// What `/proc/sys/vm/hugetlb_optimize_vmemmap` says. Kernels that cannot (or whose descriptors have no size that HVO
/// works with) do not have the file. Kernels from 5.14 to 5.18 have HVO without it.
pub fn read_hvo(files: &mut Files, arch: &str, kernel: &str) -> Hvo {
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
        None => match hvo_without_sysctl(arch, kernel) {
            // Where sysctls are, this one would be: from 5.19 on.
            Hvo::Unknown
                if files.exists("proc/sys/vm/min_free_kbytes")
                    && release(kernel).is_none_or(|release| release >= (5, 19)) =>
            {
                Hvo::Unsupported
            }
            hvo => hvo,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn meminfo_alone_tells_of_the_default_pool() {
        let meminfo = Counters::parse(
            "HugePages_Total:    6000\nHugePages_Free:        5\nHugepagesize:       2048 kB\n",
        );
        let pool = Pool { size: 2 << 20, pages: 6000, free: 5, surplus: 0 };
        assert_eq!(default_pool(&meminfo), Some(pool));
        assert_eq!(default_pool(&Counters::parse("HugePages_Total: 0\nHugepagesize: 2048 kB\n")), None);
        assert_eq!(default_pool(&Counters::parse("HugePages_Total: 7\n")), None);
    }

    #[test]
    fn architecture_and_release_tell_where_hvo_cannot_be() {
        for (arch, kernel) in [("aarch64", "6.8.0"), ("x86_64", "4.18.0-553.el8"), ("x86_64", "5.13.19")] {
            assert_eq!(hvo_without_sysctl(arch, kernel), Hvo::Unsupported, "{arch} {kernel}");
        }
        for (arch, kernel) in [("x86_64", "5.14.0-70.el9"), ("x86_64", "6.1.0"), ("x86_64", ""), ("", "6.8")]
        {
            assert_eq!(hvo_without_sysctl(arch, kernel), Hvo::Unknown, "{arch} {kernel}");
        }
        assert_eq!(release("6.12.43+deb13-amd64"), Some((6, 12)));
        assert_eq!(release("unknown"), None);
    }

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
