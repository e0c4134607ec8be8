//! Which kernel a plan is for: the machine's own, or another one (`--arch`, `--kernel`, `--page-size`).

use anyhow::Result;
use clap::Args;
use pagefold_machine::Host;
use pagefold_machine::cost::Shape;
use pagefold_machine::host::Hvo;
use pagefold_machine::host::release::release;
use pagefold_machine::kernel::{self, Ability, Kernel};
use serde::Serialize;

use crate::exit::usage;
use crate::size::parse_bytes;

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Another kernel")]
pub struct KernelArgs {
    /// As with pages of this size: 4K, 16K or 64K
    #[arg(long, value_name = "SIZE", value_parser = parse_page)]
    pub page_size: Option<u64>,

    /// As on this architecture, named as uname -m does (x86_64, aarch64)
    #[arg(long, value_name = "ARCH", value_parser = parse_arch)]
    pub arch: Option<&'static str>,

    /// As with a kernel of this release (6.12): what it can do, and what HVO costs there
    #[arg(long, value_name = "VERSION", value_parser = parse_release)]
    pub kernel: Option<String>,
}

/// A kernel that was asked for, and what it can do.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KernelReport {
    /// Architecture.
    pub arch: String,
    /// Release; empty if nobody said.
    pub release: String,
    /// Bytes in a page.
    pub page_size: u64,
    /// Bytes in a section, the smallest memory block.
    pub section: u64,
    /// What matters for descriptors, and whether this kernel has it.
    pub abilities: Vec<Ability>,
}

impl KernelReport {
    pub fn of(kernel: &Kernel) -> Self {
        Self {
            arch: kernel.arch.clone(),
            release: kernel.release.clone(),
            page_size: kernel.page,
            section: kernel.section(),
            abilities: kernel.abilities(),
        }
    }
}

/// The kernel that a plan is for.
#[derive(Clone, Debug)]
pub struct PlannedKernel {
    pub kernel: Kernel,
    /// Whether somebody asked for another one than the machine's.
    pub is_asked: bool,
    /// Bytes of a descriptor there.
    pub descriptor: u64,
    /// Whether it has HVO.
    pub hvo: Hvo,
}

impl PlannedKernel {
    pub fn shape(&self) -> Shape {
        Shape { page: self.kernel.page, descriptor: self.descriptor }
    }
}

impl KernelArgs {
    fn is_asked(&self) -> bool {
        self.page_size.is_some() || self.arch.is_some() || self.kernel.is_some()
    }

    /// The kernel, of a machine or (`None`) of sizes alone: those are of x86-64, unless pages say otherwise.
    ///
    /// # Errors
    /// No such kernel can be.
    pub fn planned(&self, host: Option<&Host>) -> Result<PlannedKernel> {
        let own = host.map_or("x86_64", |host| host.arch.as_str());
        let named = self.kernel.as_deref().and_then(kernel::arch_of_release);
        if let (Some(asked), Some(named)) = (self.arch, named)
            && asked != named
        {
            return Err(usage(format!("the kernel is one for {named} (--kernel), not for {asked} (--arch)")));
        }
        let asked = self.arch.or(named);
        let arch = match (asked, self.page_size) {
            (Some(arch), _) => arch,
            // An architecture that has such pages.
            (None, Some(page)) if !kernel::page_sizes(own).contains(&page) => "aarch64",
            _ => own,
        };
        let own_page = host.map_or(4096, |host| host.page_size.bytes);
        let known = kernel::page_sizes(arch);
        let page = match self.page_size {
            Some(page) => page,
            None if known.is_empty()
                || known.contains(&own_page) && asked.is_none_or(|asked| asked == own) =>
            {
                own_page
            }
            None => known.first().copied().unwrap_or(own_page),
        };
        if !known.is_empty() && !known.contains(&page) {
            let sizes: Vec<String> = known.iter().map(|size| format!("{}K", size >> 10)).collect();
            return Err(usage(format!(
                "{arch} has no pages of {} KiB (--page-size); it has {}",
                page >> 10,
                sizes.join(", ")
            )));
        }
        // Another architecture's release is not this machine's.
        let own_release = host.filter(|_| arch == own).map_or("", |host| host.kernel.as_str());
        let kernel = Kernel {
            arch: arch.to_owned(),
            release: self.kernel.clone().unwrap_or_else(|| own_release.to_owned()),
            page,
        };
        let is_asked = self.is_asked();
        let hvo = match host {
            Some(host) if !is_asked => host.hvo,
            _ => kernel.hvo(),
        };
        // What BTF says of the machine's own kernel does not say it of another.
        let descriptor = match host {
            Some(host) if self.kernel.is_none() && arch == own => host.descriptor_size(),
            _ => Host { arch: arch.to_owned(), ..Host::default() }.descriptor_size(),
        };
        Ok(PlannedKernel { kernel, is_asked, descriptor, hvo })
    }
}

fn parse_page(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        bytes @ (0x1000 | 0x4000 | 0x1_0000) => Ok(bytes),
        _ => Err("pages of Linux have 4K, 16K or 64K".into()),
    }
}

fn parse_arch(text: &str) -> Result<&'static str, String> {
    kernel::arch(text).ok_or_else(|| {
        let known: Vec<_> = kernel::archs().collect();
        format!("'{text}' is not known; known are {}", known.join(", "))
    })
}

fn parse_release(text: &str) -> Result<String, String> {
    let is_plain = text.chars().all(|c| c.is_ascii_graphic());
    if release(text).is_some() && is_plain && text.starts_with(|c: char| c.is_ascii_digit()) {
        Ok(text.to_owned())
    } else {
        Err("a release begins with two numbers, as 6.12".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::host::{PageSize, PageSizeFrom};

    fn host() -> Host {
        Host {
            arch: "x86_64".into(),
            kernel: "6.12.1".into(),
            hvo: Hvo::On,
            page_size: PageSize { bytes: 4096, from: PageSizeFrom::System },
            ..Host::default()
        }
    }

    #[test]
    fn a_machine_is_its_own_kernel_unless_asked() {
        let own = KernelArgs::default().planned(Some(&host())).unwrap();
        assert_eq!((own.is_asked, own.hvo, own.kernel.release.as_str()), (false, Hvo::On, "6.12.1"));
        let args = KernelArgs { arch: Some("aarch64"), ..KernelArgs::default() };
        let arm = args.planned(Some(&host())).unwrap();
        assert_eq!((arm.hvo, arm.kernel.page, arm.kernel.release.as_str()), (Hvo::Unsupported, 4096, ""));
        let old = KernelArgs { kernel: Some("5.10".into()), ..KernelArgs::default() };
        assert_eq!(old.planned(Some(&host())).unwrap().hvo, Hvo::Unsupported);
    }

    #[test]
    fn pages_name_an_architecture() {
        let args = |page_size, arch| KernelArgs { page_size: Some(page_size), arch, kernel: None };
        assert_eq!(args(65536, None).planned(None).unwrap().kernel.arch, "aarch64");
        assert_eq!(args(4096, None).planned(None).unwrap().kernel.arch, "x86_64");
        assert!(args(65536, Some("x86_64")).planned(None).is_err());
        // So does a release.
        let named = KernelArgs { kernel: Some("6.12.0-55.el10.aarch64".into()), ..KernelArgs::default() };
        assert_eq!(named.planned(Some(&host())).unwrap().hvo, Hvo::Unsupported);
        let both = KernelArgs { arch: Some("x86_64"), ..named };
        assert!(both.planned(None).unwrap_err().to_string().contains("not for x86_64"));
        let power = KernelArgs { arch: Some("ppc64le"), ..KernelArgs::default() };
        assert_eq!(power.planned(None).unwrap().kernel.page, 65536);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(parse_page("8K").is_err() && parse_page("2M").is_err());
        assert!(parse_arch("vax").unwrap_err().contains("aarch64"));
        assert!(
            parse_release("6").is_err() && parse_release("v6.1").is_err() && parse_release("new").is_err()
        );
        assert_eq!(parse_release("6.12-rc1").unwrap(), "6.12-rc1");
    }
}
