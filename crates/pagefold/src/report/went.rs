//! Where memory went: from what is installed to what the kernel has in all (MemTotal), and from there to what is free.
//!
//! Every figure has its source. What is left over between two stages is a row of its own, and named so: nothing is spread
//! over rows that it may not belong to.

use pagefold_machine::{Host, PageState};

use super::accounts::Accounts;
use super::model::{Figure, How, WentPart, WentStage};
use crate::survey::Survey;

/// Less than this is no stage of its own: parts of pages, and what lies below 1 MiB.
const SMALL: u64 = 1 << 20;

/// All stages that this machine tells of.
pub fn went(survey: &Survey, accounts: &Accounts) -> Vec<WentStage> {
    let host = &survey.host;
    let mut stages = before_the_kernel(host);
    stages.extend(system_ram(survey, accounts));
    let total = host.meminfo.get("MemTotal").filter(|&bytes| bytes > 0);
    if let Some(bytes) = total {
        let memory = Figure::counted(bytes, "/proc/meminfo MemTotal");
        stages.push(stage("mem_total", "MemTotal", memory, uses(host, accounts)));
    }
    // What is left over between a stage and the next.
    for at in 0..stages.len() {
        let next = stages.get(at + 1).map_or(0, |next| next.memory.bytes);
        let (title, is_last) = match stages[at].stage {
            "installed" => ("firmware, devices, unknown", false),
            "blocks" => ("holes, and what firmware keeps", false),
            "firmware_map" => ("not used (mem=, parts of pages)", false),
            "system_ram" => ("other, reserved at boot", false),
            _ => ("drivers and others, uncounted", true),
        };
        let stage = &mut stages[at];
        // Of a machine that tells nothing of its uses, nothing can be left over.
        if is_last && stage.parts.len() < 3 || !is_last && next == 0 {
            continue;
        }
        let told = stage.parts.iter().fold(next, |sum, part| sum.saturating_add(part.bytes.bytes));
        let rest = stage.memory.bytes.saturating_sub(told);
        if rest > 0 {
            let bytes = Figure::computed(rest, "what is left over");
            stage.parts.push(WentPart { name: "rest", title: title.into(), bytes });
        }
    }
    if let Some(bytes) = host.meminfo.get("MemAvailable") {
        let memory = Figure::counted(bytes, "/proc/meminfo MemAvailable: an estimate");
        stages.push(stage("mem_available", "MemAvailable", memory, Vec::new()));
    }
    stages
}

fn stage(stage: &'static str, title: &str, memory: Figure, parts: Vec<WentPart>) -> WentStage {
    WentStage { stage, title: title.into(), memory, parts }
}

/// Rows of what is not nothing.
fn parts<const N: usize>(parts: [(&'static str, &str, Option<Figure>); N]) -> Vec<WentPart> {
    let known = parts.into_iter().filter_map(|(name, title, bytes)| Some((name, title, bytes?)));
    let some = known.filter(|(_, _, figure)| figure.bytes > 0);
    some.map(|(name, title, bytes)| WentPart { name, title: title.into(), bytes }).collect()
}

/// What the firmware tells: modules, and its map. Without modules, memory blocks tell how much there is at most.
fn before_the_kernel(host: &Host) -> Vec<WentStage> {
    let firmware = &host.firmware;
    let of_kind = |kind: &str| {
        firmware.of_kind(kind).map(|bytes| Figure::counted(bytes, format!("/sys/firmware/memmap {kind}")))
    };
    let mut stages = Vec::new();
    if let Some(modules) = firmware.modules {
        let plural = if modules.count == 1 { "" } else { "s" };
        let memory = Figure::counted(modules.bytes, format!("DMI: {} module{plural}", modules.count));
        let parts = parts([
            ("acpi_tables", "ACPI tables", of_kind("ACPI Tables")),
            ("acpi_storage", "ACPI storage", of_kind("ACPI Non-volatile Storage")),
            ("soft_reserved", "for special purposes", of_kind("Soft Reserved")),
            ("persistent", "persistent memory", of_kind("Persistent Memory")),
        ]);
        stages.push(stage("installed", "installed", memory, parts));
    } else if let Some(blocks) = host.blocks.as_ref().filter(|blocks| !blocks.list.is_empty()) {
        let online =
            blocks.list.iter().filter(|block| block.state == pagefold_machine::host::OnlineState::Online);
        let bytes = blocks.size.saturating_mul(online.count() as u64);
        let memory = Figure::computed(bytes, "memory blocks that are online: at most");
        if bytes > present(host).saturating_add(SMALL) {
            stages.push(stage("blocks", "installed, at most", memory, Vec::new()));
        }
    }
    let present = present(host);
    let differs = |memory: &Figure| memory.bytes > present.saturating_add(SMALL) && present > 0;
    if let Some(memory) = of_kind("System RAM").filter(differs) {
        // Blocks that were added later are in no firmware's map.
        stages.retain(|stage| stage.memory.bytes >= memory.bytes);
        stages.push(stage("firmware_map", "RAM in the firmware's map", memory, Vec::new()));
    }
    stages
}

/// Bytes of pages that zones have.
fn present(host: &Host) -> u64 {
    let zones = host.zones.iter().filter(|zone| !zone.is_device());
    zones.fold(0u64, |sum, zone| sum.saturating_add(zone.present)).saturating_mul(host.page_size.bytes)
}

/// What the kernel has pages for, and what of it is never handed out.
fn system_ram(survey: &Survey, accounts: &Accounts) -> Option<WentStage> {
    let host = &survey.host;
    let bytes = present(host);
    if bytes == 0 {
        return None;
    }
    let firmware = &host.firmware;
    let page = accounts.shape.page;
    let page_ext = &accounts.excess.page_ext;
    let page_ext = (page_ext.max > 0).then(|| Figure::computed(page_ext.min, page_ext.from.clone()));
    let at_boot = match host.memmap.and_then(|memmap| memmap.boot_pages) {
        Some(pages) => {
            let besides = page_ext.as_ref().map_or(0, |figure| figure.bytes);
            let bytes = pages.saturating_mul(page).saturating_sub(besides);
            Figure::counted(bytes, "vmstat nr_memmap_boot_pages")
        }
        None => {
            Figure::computed(accounts.descriptors.bytes, "all of them, as this kernel does not tell when")
        }
    };
    let image =
        firmware.kernel_image.map(|bytes| Figure::counted(bytes, "/proc/iomem, or the kernel's messages"));
    let crash = firmware.crash_kernel.map(|bytes| Figure::counted(bytes, "kexec_crash_size, or /proc/iomem"));
    let kasan = firmware.kasan.map(|part| {
        Figure::computed(bytes / part, format!("one part in {part}: the kernel's configuration has KASAN"))
    });
    let offline = survey.pages.as_ref().map(|pages| {
        let pages = pages.tally.state(PageState::Offline).pages;
        Figure::counted(pages.saturating_mul(page), "page flags: KPF_OFFLINE")
    });
    // A balloon's pages may still be counted in MemTotal.
    let offline = offline
        .filter(|figure| figure.bytes <= bytes.saturating_sub(host.meminfo.get("MemTotal").unwrap_or(bytes)));
    let parts = parts([
        ("kernel_image", "the kernel's code and data", image),
        ("crash_kernel", "crash kernel", crash),
        ("descriptors_at_boot", "descriptors made at boot", Some(at_boot)),
        ("page_ext", "page extensions (page_ext)", page_ext),
        ("kasan", "KASAN's shadow", kasan),
        ("offline", "unplugged, or in a balloon", offline),
    ]);
    let memory = Figure::counted(bytes, "/proc/zoneinfo present");
    Some(stage("system_ram", "pages of the kernel (present)", memory, parts))
}

/// What memory that is handed out is used for.
fn uses(host: &Host, accounts: &Accounts) -> Vec<WentPart> {
    let get = |name: &str| host.meminfo.get(name);
    let counted = |name: &str| get(name).map(|bytes| Figure::counted(bytes, format!("/proc/meminfo {name}")));
    // Differences are not more exact than what they are of.
    let less = |name: &str, others: &[&str], from: &str| {
        let taken = others.iter().filter_map(|name| get(name)).fold(0u64, u64::saturating_add);
        get(name).map(|bytes| Figure {
            bytes: bytes.saturating_sub(taken),
            how: How::Computed,
            from: from.into(),
        })
    };
    let later = host.memmap.and_then(|memmap| memmap.pages.checked_sub(memmap.boot_pages?));
    let later = later
        .map(|pages| Figure::counted(pages.saturating_mul(accounts.shape.page), "vmstat nr_memmap_pages"));
    let pools = host.pools.iter().fold(0u64, |sum, pool| sum.saturating_add(pool.bytes()));
    let hugetlb =
        counted("Hugetlb").or_else(|| (pools > 0).then(|| Figure::counted(pools, "pools of huge pages")));
    let cache = get("Cached").map(|cached| {
        let bytes =
            cached.saturating_add(get("Buffers").unwrap_or(0)).saturating_sub(get("Shmem").unwrap_or(0));
        Figure::computed(bytes, "/proc/meminfo Cached + Buffers - Shmem")
    });
    parts([
        ("hugetlb", "pools of huge pages", hugetlb),
        ("anonymous", "anonymous (of processes)", counted("AnonPages")),
        ("shared", "shared memory and tmpfs", counted("Shmem")),
        ("page_cache", "page cache", cache),
        ("slab_reclaimable", "slab, reclaimable", counted("SReclaimable")),
        ("slab", "slab", counted("SUnreclaim")),
        ("descriptors_later", "descriptors made later", later),
        ("page_tables", "page tables", counted("PageTables")),
        ("secondary_page_tables", "page tables of guests, IOMMUs", counted("SecPageTables")),
        ("stacks", "kernel stacks", counted("KernelStack")),
        // Stacks are mapped there as well.
        (
            "vmalloc",
            "vmalloc, but for stacks",
            less("VmallocUsed", &["KernelStack"], "/proc/meminfo VmallocUsed - KernelStack"),
        ),
        ("per_cpu", "per-CPU data", counted("Percpu")),
        ("zswap", "compressed swap (zswap)", counted("Zswap")),
        ("balloon", "in a balloon", counted("Balloon")),
        ("poisoned", "broken (hwpoison)", counted("HardwareCorrupted")),
        ("unaccepted", "not accepted yet", counted("Unaccepted")),
        ("free", "free", counted("MemFree")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::ZoneRecord;
    use pagefold_machine::host::firmware::{Firmware, FirmwareKind, Modules};
    use pagefold_machine::host::{Counters, Memmap};

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn survey(host: Host) -> Survey {
        Survey { origin: String::new(), host, pages: None }
    }

    fn went_of(host: Host) -> Vec<WentStage> {
        let survey = survey(host);
        went(&survey, &Accounts::of(&survey))
    }

    fn part(stages: &[WentStage], stage: &str, name: &str) -> Option<u64> {
        let stage = stages.iter().find(|row| row.stage == stage)?;
        stage.parts.iter().find(|part| part.name == name).map(|part| part.bytes.bytes)
    }

    /// 128 GiB of modules that show as 123.5 GiB.
    fn host() -> Host {
        Host {
            arch: "x86_64".into(),
            zones: vec![ZoneRecord {
                name: "Normal".into(),
                present: (127 * GIB - 256 * MIB) / 4096,
                spanned: (127 * GIB - 256 * MIB) / 4096,
                ..ZoneRecord::default()
            }],
            memmap: Some(Memmap { pages: (2028 + 12) * 256, boot_pages: Some(2028 * 256) }),
            meminfo: Counters::from([
                ("MemTotal", 123 * GIB + 512 * MIB),
                ("MemFree", 100 * GIB),
                ("MemAvailable", 118 * GIB),
                ("AnonPages", 3 * GIB),
                ("Cached", 15 * GIB),
                ("Shmem", GIB),
                ("VmallocUsed", 300 * MIB),
                ("KernelStack", 20 * MIB),
            ]),
            firmware: Firmware {
                modules: Some(Modules { count: 8, bytes: 128 * GIB }),
                map: vec![
                    FirmwareKind { kind: "System RAM".into(), bytes: 127 * GIB },
                    FirmwareKind { kind: "ACPI Tables".into(), bytes: 60 * MIB },
                ],
                kernel_image: Some(50 * MIB),
                crash_kernel: Some(512 * MIB),
                kasan: None,
            },
            ..Host::default()
        }
    }

    #[test]
    fn every_step_from_modules_to_what_is_free_is_told() {
        let stages = went_of(host());
        let names: Vec<_> = stages.iter().map(|stage| stage.stage).collect();
        assert_eq!(names, ["installed", "firmware_map", "system_ram", "mem_total", "mem_available"]);
        assert_eq!(part(&stages, "installed", "acpi_tables"), Some(60 * MIB));
        assert_eq!(part(&stages, "installed", "rest"), Some(GIB - 60 * MIB));
        assert_eq!(part(&stages, "firmware_map", "rest"), Some(256 * MIB));
        assert_eq!(part(&stages, "system_ram", "descriptors_at_boot"), Some(2028 * MIB));
        assert_eq!(part(&stages, "system_ram", "crash_kernel"), Some(512 * MIB));
        // 126.75 GiB less 123.5 GiB: what is not the image, the crash kernel or descriptors.
        let rest = 3328 * MIB - (50 + 512 + 2028) * MIB;
        assert_eq!(part(&stages, "system_ram", "rest"), Some(rest));
        assert_eq!(part(&stages, "mem_total", "page_cache"), Some(14 * GIB));
        assert_eq!(part(&stages, "mem_total", "vmalloc"), Some(280 * MIB));
        assert_eq!(part(&stages, "mem_total", "descriptors_later"), Some(12 * MIB));
        // Parts and the next stage are the stage, exactly.
        for (at, stage) in stages.iter().enumerate().take(3) {
            let parts: u64 = stage.parts.iter().map(|part| part.bytes.bytes).sum();
            assert_eq!(parts + stages[at + 1].memory.bytes, stage.memory.bytes, "{}", stage.stage);
        }
        let total: u64 = stages[3].parts.iter().map(|part| part.bytes.bytes).sum();
        assert_eq!(total, stages[3].memory.bytes);
    }

    #[test]
    fn page_extensions_and_kasan_are_rows() {
        let mut host = host();
        host.boot.page_ext.push("page_owner".into());
        host.memmap = Some(Memmap { pages: 3000 * 256, boot_pages: Some(3000 * 256) });
        host.firmware.kasan = Some(8);
        let stages = went_of(host);
        let page_ext = part(&stages, "system_ram", "page_ext").unwrap();
        assert!(page_ext > 900 * MIB, "{page_ext}");
        assert_eq!(part(&stages, "system_ram", "descriptors_at_boot"), Some(3000 * MIB - page_ext));
        assert_eq!(part(&stages, "system_ram", "kasan"), Some((127 * GIB - 256 * MIB) / 8));
    }

    #[test]
    fn little_is_told_of_little() {
        assert!(went_of(Host::default()).is_empty());
        let stages = went_of(Host { meminfo: Counters::from([("MemTotal", GIB)]), ..Host::default() });
        assert_eq!((stages.len(), stages[0].parts.len()), (1, 0));
        // Numbers that contradict each other leave nothing over.
        let mut odd = host();
        odd.meminfo =
            Counters::from([("MemTotal", GIB), ("MemFree", 2 * GIB), ("AnonPages", GIB), ("Cached", GIB)]);
        assert_eq!(part(&went_of(odd), "mem_total", "rest"), None);
    }
}
