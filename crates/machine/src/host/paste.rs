//! Files of `/proc` that somebody pasted one after the other, told apart line by line.

use std::collections::BTreeMap;

/// Files by their path from the root.
pub type Pasted = BTreeMap<String, Vec<u8>>;

/// What a line is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Zoneinfo,
    Buddyinfo,
    Meminfo,
    Vmstat,
}

impl Of {
    const fn path(self) -> &'static str {
        match self {
            Of::Zoneinfo => "proc/zoneinfo",
            Of::Buddyinfo => "proc/buddyinfo",
            Of::Meminfo => "proc/meminfo",
            Of::Vmstat => "proc/vmstat",
        }
    }
}

/// The files that are in `text`: `/proc/zoneinfo`, `meminfo`, `vmstat`, `buddyinfo`, `cmdline` and the kernel's release, in
/// any order, with anything in between (prompts, commands, empty lines). Empty if it is none of them.
pub fn parts(text: &str) -> Pasted {
    let mut files = Pasted::new();
    // Spaces at the beginning of lines may have been lost on the way here.
    let is_indented = |line: &str| line.starts_with([' ', '\t']);
    // Or there are more of them than there were, as in a quotation.
    let indents = text.lines().filter(|line| !line.trim().is_empty());
    let more = indents.map(|line| line.len() - line.trim_start_matches(' ').len()).min().unwrap_or(0);
    let keeps_indents = text.lines().any(|line| line.get(more..).is_some_and(is_indented));
    let mut in_zone = false;
    for line in text.lines() {
        let line = line.get(more..).unwrap_or_default().trim_end();
        if let Some((release, arch)) = uname(line) {
            files.insert("proc/sys/kernel/osrelease".into(), release.into());
            if let Some(arch) = arch {
                files.insert("proc/sys/kernel/arch".into(), arch.into());
            }
            continue;
        }
        if is_cmdline(line) {
            files.insert("proc/cmdline".into(), line.trim().into());
            continue;
        }
        let of = match zone_line(line) {
            Some(of) => Some(of),
            None if in_zone && (is_indented(line) || !keeps_indents && !is_meminfo(line)) => {
                Some(Of::Zoneinfo)
            }
            None if is_meminfo(line) => Some(Of::Meminfo),
            None if is_counter(line) => Some(Of::Vmstat),
            None => None,
        };
        let Some(of) = of else {
            in_zone &= line.is_empty();
            continue;
        };
        in_zone = of == Of::Zoneinfo;
        let file = files.entry(of.path().to_owned()).or_default();
        file.extend_from_slice(line.as_bytes());
        file.push(b'\n');
    }
    files
}

/// `Node 0, zone   Normal` begins a zone; with numbers behind, it is a line of buddyinfo.
fn zone_line(line: &str) -> Option<Of> {
    let rest = line.trim_start().strip_prefix("Node ")?;
    let (node, rest) = rest.split_once(", zone")?;
    node.trim().parse::<u32>().ok()?;
    let mut words = rest.split_ascii_whitespace();
    words.next()?;
    let mut numbers = words.peekable();
    if numbers.peek().is_none() {
        return Some(Of::Zoneinfo);
    }
    numbers.all(|word| word.parse::<u64>().is_ok()).then_some(Of::Buddyinfo)
}

/// `MemTotal:       16316412 kB`
fn is_meminfo(line: &str) -> bool {
    let Some((name, value)) = line.trim_start().split_once(':') else { return false };
    let mut words = value.split_ascii_whitespace();
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '(' | ')'))
        && words.next().is_some_and(|word| word.parse::<u64>().is_ok())
        && matches!(words.next(), None | Some("kB"))
}

/// `nr_free_pages 12345`
fn is_counter(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    let (Some(name), Some(value), None) = (words.next(), words.next(), words.next()) else { return false };
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && value.parse::<i64>().is_ok()
}

/// `uname -a`, or `/proc/version`: the release, and the architecture.
pub(super) fn uname(line: &str) -> Option<(&str, Option<&str>)> {
    let rest = line.trim_start().strip_prefix("Linux ")?;
    let looks_so = |word: &&str| super::release::release(word).is_some() && word.contains('.');
    if let Some(version) = rest.strip_prefix("version ") {
        return Some((version.split_ascii_whitespace().next().filter(looks_so)?, None));
    }
    let mut words = rest.split_ascii_whitespace();
    let release = words.nth(1).filter(looks_so)?;
    let known = ["x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "loongarch64", "i686", "armv7l"];
    Some((release, words.find(|word| known.contains(word))))
}

fn is_cmdline(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("BOOT_IMAGE=") || line.starts_with("root=") && line.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::parse_zoneinfo;
    use proptest::prelude::*;

    const ZONES: &str = "Node 0, zone   Normal\n  per-node stats\n      nr_inactive_anon 12\n  pages free     500\n        \
                         spanned  4096\n        present  4096\n        managed  4000\n      nr_free_pages 500\n  pagesets\n    \
                         cpu: 0\n              count: 4\n  start_pfn:           4096\n";
    const MEMORY: &str = "MemTotal:       16316412 kB\nActive(anon):    100 kB\nHugePages_Total:    7\n";

    fn text<'a>(files: &'a Pasted, path: &str) -> &'a str {
        files.get(path).map_or("", |bytes| std::str::from_utf8(bytes).unwrap())
    }

    #[test]
    fn files_are_told_apart() {
        let buddies = "Node 0, zone   Normal      5      3      1\n";
        let pasted = format!(
            "$ uname -a\nLinux web7 6.1.0-13-amd64 #1 SMP Debian 6.1.55-1 x86_64 GNU/Linux\n$ cat /proc/zoneinfo\n{ZONES}\
             $ cat /proc/buddyinfo /proc/meminfo\n{buddies}{MEMORY}\n# cat /proc/vmstat\nnr_free_pages 500\n\
             nr_memmap_boot_pages 64\n$ cat /proc/cmdline\nBOOT_IMAGE=/vmlinuz root=/dev/sda1 page_owner=on\n"
        );
        let files = parts(&pasted);
        assert_eq!(text(&files, "proc/zoneinfo"), ZONES);
        assert_eq!(text(&files, "proc/buddyinfo"), buddies);
        assert_eq!(text(&files, "proc/meminfo"), MEMORY);
        assert_eq!(text(&files, "proc/vmstat"), "nr_free_pages 500\nnr_memmap_boot_pages 64\n");
        assert_eq!(text(&files, "proc/sys/kernel/osrelease"), "6.1.0-13-amd64");
        assert_eq!(text(&files, "proc/sys/kernel/arch"), "x86_64");
        assert!(text(&files, "proc/cmdline").ends_with("page_owner=on"));
    }

    #[test]
    fn spaces_that_were_lost_are_not_missed() {
        let lost: String = ZONES.lines().map(|line| format!("{}\n", line.trim_start())).collect();
        let files = parts(&format!("{lost}{MEMORY}"));
        assert_eq!(parse_zoneinfo(text(&files, "proc/zoneinfo")), parse_zoneinfo(ZONES));
        assert_eq!(text(&files, "proc/meminfo"), MEMORY);
    }

    #[test]
    fn other_text_is_nothing() {
        assert!(parts("Dear all,\n\nplease find attached: nothing\n").is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(Node|MemTotal|nr_free|Linux|[ :,0-9a-z\n])*") {
            parts(&text);
        }
    }
}
