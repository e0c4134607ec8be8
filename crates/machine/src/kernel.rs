//! What a kernel can do, by its architecture, its release and the size of its pages: for questions about kernels that are not
//! here.
//!
//! Releases are mainline's. Distributions take features into older ones, so a kernel that can be looked at tells more than its
//! number ([`crate::Host`]).

use serde::Serialize;

use crate::geometry::section_bytes;
use crate::host::Hvo;
use crate::host::hugetlb::hvo_without_sysctl;
use crate::host::release::release;

/// A kernel, as far as its name tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Architecture, as `uname -m` says; empty if nothing tells.
    pub arch: String,
    /// Release, as `uname -r` says; empty if nothing tells.
    pub release: String,
    /// Bytes in a page.
    pub page: u64,
}

/// Whether a kernel has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Has {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Nothing tells.
    Unknown,
}

impl Has {
    /// A word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Has::Yes => "yes",
            Has::No => "no",
            Has::Unknown => "not known",
        }
    }
}

/// Something that matters for descriptors, and whether a kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ability {
    /// A name.
    pub name: &'static str,
    /// Whether it has it.
    pub has: Has,
    /// Since when, and what there is to know.
    pub note: &'static str,
}

/// Architectures whose page sizes are known: their names, and bytes in a page, the usual size first.
const ARCHS: [(&str, &[u64]); 8] = [
    ("x86_64", &[4 << 10]),
    ("aarch64", &[4 << 10, 16 << 10, 64 << 10]),
    ("riscv64", &[4 << 10]),
    ("s390x", &[4 << 10]),
    ("ppc64le", &[64 << 10, 4 << 10]),
    ("loongarch64", &[16 << 10, 4 << 10, 64 << 10]),
    ("i686", &[4 << 10]),
    ("armv7l", &[4 << 10]),
];

/// The name that `uname -m` has for an architecture; `None` if nothing is known of it.
pub fn arch(name: &str) -> Option<&'static str> {
    let name = match name {
        "amd64" | "x86-64" => "x86_64",
        "arm64" => "aarch64",
        "ppc64el" => "ppc64le",
        other => other,
    };
    ARCHS.iter().find(|(arch, _)| *arch == name).map(|(arch, _)| *arch)
}

/// The architecture that a kernel's release ends with: `6.12.0-55.el10.aarch64`, `6.1.0-13-amd64`.
pub fn arch_of_release(release: &str) -> Option<&'static str> {
    arch(release.rsplit(['.', '-', '+']).next()?)
}

/// Names of the architectures that are known.
pub fn archs() -> impl Iterator<Item = &'static str> {
    ARCHS.iter().map(|(arch, _)| *arch)
}

/// Bytes in a page that kernels of an architecture can be built for, the usual size first; none if nothing is known of it.
pub fn page_sizes(arch: &str) -> &'static [u64] {
    ARCHS.iter().find(|(known, _)| *known == arch).map_or(&[], |(_, sizes)| sizes)
}

impl Kernel {
    fn number(&self) -> Option<(u64, u64)> {
        release(&self.release)
    }

    fn since(&self, first: (u64, u64)) -> Has {
        match self.number() {
            Some(number) if number >= first => Has::Yes,
            Some(_) => Has::No,
            None => Has::Unknown,
        }
    }

    /// Whether it is at least of this release; `false` if nothing tells.
    pub fn is_since(&self, first: (u64, u64)) -> bool {
        self.since(first) == Has::Yes
    }

    /// Whether it is older than this release; `false` if nothing tells.
    pub fn is_before(&self, first: (u64, u64)) -> bool {
        self.since(first) == Has::No
    }

    /// Bytes of memory that an entry of the second level of page tables maps: 2 MiB with pages of 4 KiB, 32 MiB with 16 KiB,
    /// 512 MiB with 64 KiB. It is the size of a page block too, and so the least that virtio-mem can take away.
    pub fn page_block(&self) -> u64 {
        self.page.saturating_mul(self.page / 8).max(2 << 20)
    }

    /// Bytes in a section, which is the smallest memory block; on arm64 1 GiB until Linux 5.12 (commit f0b13ee23241).
    pub fn section(&self) -> u64 {
        if self.arch == "aarch64" && self.is_before((5, 12)) {
            return 1 << 30;
        }
        section_bytes(&self.arch, self.page)
    }

    /// Whether it has HVO, by its name alone: never [`Hvo::On`] or [`Hvo::Off`].
    pub fn hvo(&self) -> Hvo {
        hvo_without_sysctl(&self.arch, &self.release)
    }

    /// Pages of descriptors that HVO keeps of each huge page: one, and two until Linux 5.18 (commit e7d324850bfc). Of kernels
    /// that distributions go on developing the number says nothing.
    pub fn hvo_keeps(&self) -> u64 {
        if !self.is_developed_on() && self.is_before((5, 18)) { 2 } else { 1 }
    }

    /// Whether its distribution takes much of later releases into it, so that its number only says what it has at least:
    /// Enterprise Linux (`5.14.0-503.el9.x86_64`; ELRepo's are plain) and SUSE's (`5.14.21-150500.55.7-default`).
    fn is_developed_on(&self) -> bool {
        let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let is_rhel = self.release.split(".el").skip(1).any(is_number);
        let is_suse = self.release.split('-').nth(1).is_some_and(|build| {
            build.split('.').next().is_some_and(|first| first.len() == 6 && first.starts_with("15"))
        });
        (is_rhel && !self.release.contains(".elrepo")) || is_suse
    }

    /// As [`since`](Self::since), of what a distribution may have taken into an older kernel.
    fn brought(&self, first: (u64, u64)) -> Has {
        match self.since(first) {
            Has::No if self.is_developed_on() => Has::Unknown,
            has => has,
        }
    }

    /// What matters for descriptors, and whether this kernel has it.
    pub fn abilities(&self) -> Vec<Ability> {
        let hvo = match self.hvo() {
            Hvo::Unsupported => Has::No,
            _ if self.arch == "x86_64" => self.brought((5, 14)),
            _ => Has::Unknown,
        };
        let hvo_note = match (hvo, self.number()) {
            (Has::No, _) if self.arch == "aarch64" => {
                "off on arm64: a live kernel mapping changes by break-before-make only"
            }
            (Has::Yes, Some(number)) if number < (5, 18) => {
                "hugetlb_free_vmemmap=on at boot; it keeps two pages of descriptors"
            }
            (Has::Yes, Some(number)) if number < (5, 19) => "hugetlb_free_vmemmap=on at boot",
            (Has::Yes, Some(number)) if number < (6, 7) => "a TLB flush on all CPUs for each huge page",
            (Has::Yes, Some(number)) if number < (7, 1) => "a TLB flush on all CPUs for each batch",
            (Has::Yes, _) => "a TLB flush for each batch; tails are shared, so there is no grace period",
            _ => "x86-64: since 5.14; some other architectures later",
        };
        let shows = match self.number() {
            Some(number) if ((6, 16)..(7, 1)).contains(&number) => Has::Yes,
            Some(_) if !self.is_developed_on() => Has::No,
            _ => Has::Unknown,
        };
        let on_memory = match self.brought((5, 13)) {
            // On other architectures it came later, if at all.
            Has::Yes if self.arch != "x86_64" => Has::Unknown,
            has => has,
        };
        let virtio_mem = match self.brought((5, 8)) {
            Has::Yes if self.arch != "x86_64" => Has::Unknown,
            has => has,
        };
        let ability = |name, has, note| Ability { name, has, note };
        vec![
            ability("HVO", hvo, hvo_note),
            ability(
                "page flags that show what HVO has taken",
                if hvo == Has::No { Has::No } else { shows },
                "6.16 to 7.0",
            ),
            ability("a count of descriptors", self.brought((6, 12)), "nr_memmap_pages in vmstat, since 6.12"),
            ability("virtio-mem", virtio_mem, "x86-64: since 5.8; other architectures later"),
            ability("memmap_on_memory", on_memory, "x86-64: since 5.13; other architectures later"),
            ability("memmap_on_memory for DAX and CXL", self.brought((6, 8)), "since 6.8, for each device"),
            ability(
                "online_policy and auto_movable_ratio",
                self.brought((5, 15)),
                "since 5.15; before, added memory goes to a kernel zone",
            ),
            ability(
                "shared descriptors of device DAX",
                if self.arch == "x86_64" { self.brought((5, 17)) } else { Has::Unknown },
                "x86-64: since 5.17, of devices aligned to huge pages",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kernel(arch: &str, release: &str, page: u64) -> Kernel {
        Kernel { arch: arch.into(), release: release.into(), page }
    }

    fn has(kernel: &Kernel, name: &str) -> Has {
        kernel.abilities().into_iter().find(|ability| ability.name.starts_with(name)).unwrap().has
    }

    #[test]
    fn releases_bring_what_they_brought() {
        for (release, hvo, count, shows, policy) in [
            ("5.10", Has::No, Has::No, Has::No, Has::No),
            ("5.15.0-91-generic", Has::Yes, Has::No, Has::No, Has::Yes),
            ("6.12.43", Has::Yes, Has::Yes, Has::No, Has::Yes),
            ("6.18", Has::Yes, Has::Yes, Has::Yes, Has::Yes),
            ("7.3", Has::Yes, Has::Yes, Has::No, Has::Yes),
            ("", Has::Unknown, Has::Unknown, Has::Unknown, Has::Unknown),
        ] {
            let kernel = kernel("x86_64", release, 4096);
            assert_eq!(has(&kernel, "HVO"), hvo, "{release}");
            assert_eq!(has(&kernel, "a count"), count, "{release}");
            assert_eq!(has(&kernel, "page flags"), shows, "{release}");
            assert_eq!(has(&kernel, "online_policy"), policy, "{release}");
        }
        let arm = kernel("aarch64", "6.18", 65536);
        assert_eq!((has(&arm, "HVO"), has(&arm, "page flags")), (Has::No, Has::No));
    }

    #[test]
    fn the_first_hvo_kept_two_pages() {
        let keeps = |release| kernel("x86_64", release, 4096).hvo_keeps();
        assert_eq!((keeps("5.15.0"), keeps("5.18"), keeps("")), (2, 1, 1));
        // The number is that of its base; what was taken into it since, nothing tells.
        assert_eq!(keeps("5.14.0-503.el9.x86_64"), 1);
    }

    #[test]
    fn a_number_says_little_of_kernels_that_distributions_develop() {
        // RHEL 8 has virtio-mem; which other features it has, its number does not say. It never got HVO.
        for release in ["4.18.0-553.el8_10.x86_64", "5.3.18-150300.59.93-default"] {
            let kernel = kernel("x86_64", release, 4096);
            let all =
                ["virtio-mem", "memmap_on_memory", "online_policy", "a count"].map(|name| has(&kernel, name));
            assert_eq!(all, [Has::Unknown; 4], "{release}");
            assert_eq!(has(&kernel, "HVO"), Has::No);
        }
        for release in ["5.4.0-91-generic", "5.4.1-1.el8.elrepo.x86_64", "4.19.0-27-amd64", "5.4.17-2136.el"]
        {
            assert_eq!(has(&kernel("x86_64", release, 4096), "virtio-mem"), Has::No, "{release}");
        }
        assert_eq!(has(&kernel("x86_64", "5.14.0-503.el9.x86_64", 4096), "virtio-mem"), Has::Yes);
    }

    #[test]
    fn pages_make_sections_and_page_blocks() {
        let sizes = |page| {
            let kernel = kernel("aarch64", "6.8", page);
            (kernel.section(), kernel.page_block())
        };
        assert_eq!(sizes(4 << 10), (128 << 20, 2 << 20));
        assert_eq!(sizes(16 << 10), (128 << 20, 32 << 20));
        assert_eq!(sizes(64 << 10), (512 << 20, 512 << 20));
        let section = |arch, release| kernel(arch, release, page_sizes(arch)[0]).section();
        assert_eq!((section("aarch64", "5.4"), section("aarch64", "5.12")), (1 << 30, 128 << 20));
        assert_eq!(section("ppc64le", ""), 16 << 20);
        assert_eq!((section("s390x", ""), section("loongarch64", "")), (256 << 20, 512 << 20));
    }

    #[test]
    fn architectures_have_several_names() {
        assert_eq!((arch("arm64"), arch("aarch64")), (Some("aarch64"), Some("aarch64")));
        assert_eq!((arch("amd64"), arch("vax")), (Some("x86_64"), None));
        assert!(archs().all(|name| arch(name) == Some(name) && !page_sizes(name).is_empty()));
        assert!(page_sizes("vax").is_empty());
        assert_eq!(arch_of_release("6.12.0-55.el10.aarch64"), Some("aarch64"));
        assert_eq!(arch_of_release("4.18.0-553.el8_10.x86_64"), Some("x86_64"));
        assert_eq!(arch_of_release("6.12.117+deb12-cloud-amd64"), Some("x86_64"));
        assert_eq!((arch_of_release("6.12.1"), arch_of_release("")), (None, None));
    }

    proptest! {
        #[test]
        fn any_name_is_a_kernel(arch in ".{0,8}", release in "[0-9.]{0,12}.{0,8}", page: u64) {
            let kernel = Kernel { arch, release, page };
            let _ = (kernel.abilities(), kernel.hvo_keeps(), kernel.page_block(), kernel.section());
        }
    }
}
