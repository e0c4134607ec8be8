//! What the firmware and the boot tell of memory before the kernel counts it: memory modules, the firmware's map, the kernel's
//! own image, and what was set aside for a crash kernel.

use serde::{Deserialize, Serialize};

use super::files::Files;
use crate::layout::resources;

const TELLS: &str = "where memory went before MemTotal";

/// Memory as the firmware and the boot tell of it. Numbers are bytes; `None` where nothing tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Firmware {
    /// Memory modules, as the firmware lists them (DMI, type 17): how many have a size, and the sum of their sizes.
    pub modules: Option<Modules>,
    /// The firmware's map (e820 on x86): ranges by their kind.
    pub map: Vec<FirmwareKind>,
    /// The kernel's code and data, from `/proc/iomem` or its first messages.
    pub kernel_image: Option<u64>,
    /// What is set aside for a crash kernel.
    pub crash_kernel: Option<u64>,
    /// One part in so many of memory is KASAN's shadow: 8, or 16 with tags in software.
    pub kasan: Option<u64>,
}

/// Memory modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Modules {
    /// How many.
    pub count: u64,
    /// Bytes in all of them.
    pub bytes: u64,
}

impl Modules {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// Ranges of the firmware's map that are of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FirmwareKind {
    /// As the kernel calls it: `System RAM`, `Reserved`, `ACPI Tables`.
    pub kind: String,
    /// Bytes in all ranges of it.
    pub bytes: u64,
}

impl Firmware {
    /// Reads what there is. Most of it takes root, or is not there in a virtual machine: none of it is a gap.
    pub(super) fn read(files: &mut Files, kernel: &str) -> Self {
        let iomem = files.text_if_any("proc/iomem").unwrap_or_default();
        let config = config(files, kernel);
        // On this host they may be of another boot.
        let messages = ["sos_commands/kernel/dmesg", "var/log/dmesg"];
        let messages =
            messages.iter().filter(|_| !files.is_this_host()).find_map(|path| files.text_if_any(path));
        let messages = messages.unwrap_or_default();
        let crash = files.text_if_any("sys/kernel/kexec_crash_size");
        let crash = crash.and_then(|text| text.trim().parse().ok());
        Self {
            modules: modules(files),
            map: map(files),
            kernel_image: resource(&iomem, "Kernel ").or_else(|| image_by_messages(&messages)),
            crash_kernel: crash.or_else(|| resource(&iomem, "Crash kernel")),
            kasan: config.as_deref().and_then(kasan),
        }
    }

    /// Bytes of a kind of the firmware's map; `None` without a map.
    pub fn of_kind(&self, kind: &str) -> Option<u64> {
        let of = self.map.iter().filter(|range| range.kind == kind);
        (!self.map.is_empty()).then(|| of.fold(0u64, |sum, range| sum.saturating_add(range.bytes)))
    }
}

fn modules(files: &Files) -> Option<Modules> {
    if let Some(table) = files.bytes_if_any("sys/firmware/dmi/tables/DMI") {
        return in_dmi(&table);
    }
    let text =
        ["sos_commands/hardware/dmidecode", "dmidecode"].iter().find_map(|path| files.text_if_any(path))?;
    in_dmidecode(&text)
}

/// Memory devices (type 17) in an SMBIOS table.
fn in_dmi(mut table: &[u8]) -> Option<Modules> {
    let mut found = Modules { count: 0, bytes: 0 };
    while let [kind, length, ..] = *table {
        let formatted = table.get(..usize::from(length)).filter(|formatted| formatted.len() >= 4)?;
        if kind == 17
            && let Some(bytes) = module(formatted)
        {
            found.add(bytes);
        }
        // Texts follow, each with a zero byte behind it, and one more at the end.
        let texts = table.get(formatted.len()..)?;
        let Some(end) = texts.windows(2).position(|pair| pair == [0, 0]) else { break };
        table = &texts[end + 2..];
        if kind == 127 {
            break;
        }
    }
    (found.count > 0).then_some(found)
}

/// Bytes of a memory device; none if its slot is empty.
fn module(formatted: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u16::from_le_bytes(formatted.get(at..at + 2)?.try_into().ok()?));
    match word(0x0c)? {
        0 | 0xffff => None,
        // More than a word holds: megabytes stand further down.
        0x7fff => {
            let more = u32::from_le_bytes(formatted.get(0x1c..0x20)?.try_into().ok()?);
            Some(u64::from(more & 0x7fff_ffff) << 20)
        }
        size if size & 0x8000 != 0 => Some(u64::from(size & 0x7fff) << 10),
        size => Some(u64::from(size) << 20),
    }
}

/// Memory devices in what `dmidecode` prints.
fn in_dmidecode(text: &str) -> Option<Modules> {
    let mut found = Modules { count: 0, bytes: 0 };
    let mut is_module = false;
    for line in text.lines() {
        if !line.starts_with([' ', '\t']) {
            is_module = line.trim() == "Memory Device";
            continue;
        }
        let Some(size) = line.trim().strip_prefix("Size: ").filter(|_| is_module) else { continue };
        let mut words = size.split_ascii_whitespace();
        let (Some(number), Some(unit)) = (words.next(), words.next()) else { continue };
        let shift = match unit {
            "kB" | "KB" => 10,
            "MB" => 20,
            "GB" => 30,
            "TB" => 40,
            _ => continue,
        };
        if let Ok(number) = number.parse::<u64>() {
            found.add(number.saturating_mul(1 << shift));
        }
    }
    (found.count > 0).then_some(found)
}

/// `/sys/firmware/memmap`: a directory for each range.
fn map(files: &mut Files) -> Vec<FirmwareKind> {
    const DIR: &str = "sys/firmware/memmap";
    let mut kinds: Vec<FirmwareKind> = Vec::new();
    if !files.exists(DIR) {
        return kinds;
    }
    for range in files.numbered(DIR, "", TELLS) {
        let read = |name: &str| files.text_if_any(&format!("{DIR}/{range}/{name}"));
        let (Some(start), Some(end), Some(kind)) = (read("start"), read("end"), read("type")) else {
            continue;
        };
        let number = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
        let (Some(start), Some(end)) = (number(&start), number(&end)) else { continue };
        let bytes = end.saturating_sub(start).saturating_add(1);
        let kind = kind.trim();
        match kinds.iter_mut().find(|known| known.kind == kind) {
            Some(known) => known.bytes = known.bytes.saturating_add(bytes),
            None => kinds.push(FirmwareKind { kind: kind.to_owned(), bytes }),
        }
    }
    kinds
}

/// Bytes of all resources of `/proc/iomem` whose names begin so; `None` if there are none, or addresses are hidden.
fn resource(iomem: &str, name: &str) -> Option<u64> {
    let wanted = resources(iomem)
        .filter(|(addresses, resource)| resource.starts_with(name) && addresses.end() > addresses.start());
    let bytes = wanted.map(|(addresses, _)| (addresses.end() - addresses.start()).saturating_add(1));
    Some(bytes.fold(0u64, u64::saturating_add)).filter(|&bytes| bytes > 0)
}

/// `Memory: 16250932K/16776696K available (14336K kernel code, 2400K rwdata, ...`: code, data and bss.
fn image_by_messages(messages: &str) -> Option<u64> {
    let line = messages.lines().find(|line| line.contains("Memory: ") && line.contains("K kernel code"))?;
    let parts = line.split_once('(')?.1.split(',');
    let image = ["kernel code", "rwdata", "rodata", "bss"];
    let bytes = parts.filter_map(|part| {
        let (number, name) = part.trim().split_once("K ")?;
        image.contains(&name.trim_end_matches(')')).then(|| number.parse::<u64>().ok())?
    });
    Some(bytes.fold(0u64, u64::saturating_add).saturating_mul(1024)).filter(|&bytes| bytes > 0)
}

/// The kernel's configuration, as distributions install it.
fn config(files: &Files, kernel: &str) -> Option<String> {
    // A name from a file must not lead elsewhere.
    if kernel.is_empty() || kernel.contains('/') {
        return None;
    }
    files.text_if_any(&format!("boot/config-{kernel}"))
}

/// KASAN's shadow has a byte for eight bytes of memory; with tags in software, for sixteen.
fn kasan(config: &str) -> Option<u64> {
    let is_set = |name: &str| config.lines().any(|line| line == name);
    match () {
        () if is_set("CONFIG_KASAN_GENERIC=y") => Some(8),
        () if is_set("CONFIG_KASAN_SW_TAGS=y") => Some(16),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A structure of an SMBIOS table.
    fn structure(kind: u8, length: u8, fields: &[(usize, &[u8])], texts: &str) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(length)];
        (bytes[0], bytes[1]) = (kind, length);
        for &(at, field) in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
        }
        bytes.extend_from_slice(texts.as_bytes());
        bytes.extend_from_slice(if texts.is_empty() { b"\0\0" } else { b"\0" });
        bytes
    }

    #[test]
    fn modules_are_counted() {
        let module = |size: u16, more: u32| {
            structure(
                17,
                0x22,
                &[(0x0c, &size.to_le_bytes()), (0x1c, &more.to_le_bytes())],
                "DIMM A\0Bank 0\0",
            )
        };
        let table = [
            structure(1, 27, &[], "Maker\0"),
            module(16 << 10, 0),
            module(0, 0),
            module(0x7fff, 64 << 10),
            module(0x8000 | 512, 0),
            structure(127, 4, &[], ""),
            module(1, 0),
        ]
        .concat();
        let bytes = (16 << 30) + (64 << 30) + (512 << 10);
        assert_eq!(in_dmi(&table), Some(Modules { count: 3, bytes }));
        let text = "Handle 0x0011, DMI type 17, 92 bytes\nMemory Device\n\tTotal Width: 72 bits\n\tSize: 32 GB\n\n\
                    Handle 0x0012, DMI type 17, 92 bytes\nMemory Device\n\tSize: No Module Installed\n\n\
                    Handle 0x0013, DMI type 17, 92 bytes\nMemory Device\n\tSize: 32768 MB\n\tVolatile Size: 32 GB\n\n\
                    Handle 0x0014, DMI type 7\nCache Information\n\tSize: 99 GB\n";
        assert_eq!(in_dmidecode(text), Some(Modules { count: 2, bytes: 64 << 30 }));
    }

    #[test]
    fn resources_and_messages_tell_the_kernels_size() {
        let iomem = "00100000-bfffffff : System RAM\n  01000000-021fffff : Kernel code\n  02400000-025fffff : Kernel data\n  \
                     2f000000-3effffff : Crash kernel\n";
        assert_eq!(resource(iomem, "Kernel "), Some(20 << 20));
        assert_eq!(resource(iomem, "Crash kernel"), Some(256 << 20));
        assert_eq!(resource("00000000-00000000 : Kernel code\n", "Kernel "), None);
        let line = "[    0.05] Memory: 16250932K/16776696K available (14336K kernel code, 2400K rwdata, 5000K rodata, 2800K \
                    init, 5900K bss, 525508K reserved, 0K cma-reserved)\n";
        assert_eq!(image_by_messages(line), Some((14_336 + 2400 + 5000 + 5900) << 10));
        assert_eq!(kasan("# CONFIG_KASAN is not set\nCONFIG_KASAN_GENERIC=y\n"), Some(8));
        assert_eq!(kasan("CONFIG_HAVE_ARCH_KASAN=y\n"), None);
    }

    proptest! {
        #[test]
        fn any_table_and_text_is_read(table in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
            let _ = (in_dmi(&table), in_dmidecode(&text), resource(&text, ""), image_by_messages(&text), kasan(&text));
        }
    }
}
