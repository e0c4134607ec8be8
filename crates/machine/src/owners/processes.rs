//! Which processes have pages mapped: `/proc/*/maps` and `/proc/*/pagemap` (Documentation/admin-guide/mm/pagemap.rst). Page
//! numbers in it take root (CAP_SYS_ADMIN).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{PageOwner, PageSet};
use crate::host::files::plain;

/// Pages of address space that are looked at in one area, at most: 64 GiB of 4 KiB. Larger ones are reservations mostly.
const MOST_PAGES: u64 = 1 << 24;
/// Words read at once.
const WORDS: usize = 1 << 13;
/// A page that is present, and where its number stands (pagemap.rst).
const PRESENT: u64 = 1 << 63;
const PFN: u64 = (1 << 55) - 1;

/// What was found.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// Processes and what they have mapped, the most pages first. A page that several have mapped counts for each.
    pub owners: Vec<PageOwner>,
    /// The pages that somebody has mapped.
    pub pages: PageSet,
    /// Processes that were looked at, and those that could not be.
    pub looked_at: u64,
    /// Those that may not be looked at.
    pub denied: u64,
    /// Areas of address space that were too large to be looked at.
    pub left_out: u64,
}

/// An area of a process's address space, from `/proc/PID/maps`.
struct Area {
    addresses: Range<u64>,
    name: String,
}

/// Which processes have which pages of `pages` mapped. `proc` is `/proc`, or another directory; `page` is the bytes in a page.
pub fn mapped(proc: &Path, pages: Range<u64>, page: u64) -> Mapped {
    let mut found =
        Mapped { owners: Vec::new(), pages: PageSet::new(pages), looked_at: 0, denied: 0, left_out: 0 };
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut pids: Vec<u64> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    for pid in pids {
        match process(&proc.join(pid.to_string()), page, &mut found) {
            Ok(counts) => {
                found.looked_at += 1;
                let comm = fs::read_to_string(proc.join(format!("{pid}/comm"))).unwrap_or_default();
                let name = format!("{} ({pid})", plain(comm.trim()));
                found.owners.extend(counts.into_iter().map(|(what, pages)| PageOwner {
                    name: name.clone(),
                    what,
                    pages,
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found.denied += 1,
            // It has gone, or is the kernel's own.
            Err(_) => {}
        }
    }
    found.owners.sort_by(|a, b| b.pages.cmp(&a.pages).then_with(|| a.name.cmp(&b.name)));
    found
}

/// Pages of one process, by what is mapped there.
fn process(dir: &Path, page: u64, found: &mut Mapped) -> io::Result<BTreeMap<String, u64>> {
    let maps = fs::read(dir.join("maps"))?;
    let maps = plain(&String::from_utf8_lossy(&maps));
    let mut counts = BTreeMap::new();
    if maps.is_empty() {
        return Ok(counts);
    }
    let pagemap = File::open(dir.join("pagemap"))?;
    let mut words = vec![0u64; WORDS];
    for area in maps.lines().filter_map(area) {
        let (first, end) = (area.addresses.start / page, area.addresses.end / page);
        if end.saturating_sub(first) > MOST_PAGES {
            found.left_out += 1;
            continue;
        }
        let (mut at, mut held) = (first, 0u64);
        while at < end {
            let wanted = words.len().min((end - at) as usize);
            let read = pagemap.read_at(bytemuck::cast_slice_mut(&mut words[..wanted]), at * 8)? / 8;
            if read == 0 {
                break;
            }
            for word in &words[..read] {
                let pfn = word & PFN;
                if word & PRESENT != 0 && found.pages.range().contains(&pfn) {
                    found.pages.add(pfn);
                    held += 1;
                }
            }
            at += read as u64;
        }
        if held > 0 {
            *counts.entry(area.name).or_default() += held;
        }
    }
    Ok(counts)
}

/// A line of `maps`: addresses, rights, offset, device, inode, name.
fn area(line: &str) -> Option<Area> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let addresses = number(start)?..number(end)?;
    let name = words.skip(4).collect::<Vec<_>>().join(" ");
    let name = if name.is_empty() { "anonymous memory".to_owned() } else { name };
    Some(Area { addresses, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_process(proc: &Path, pid: u64, comm: &str, maps: &str, words: &[(u64, u64)]) {
        let dir = proc.join(pid.to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(dir.join("maps"), maps).unwrap();
        let pagemap = File::create(dir.join("pagemap")).unwrap();
        for &(page, word) in words {
            pagemap.write_all_at(&word.to_ne_bytes(), page * 8).unwrap();
        }
        pagemap.set_len(1 << 20).unwrap();
    }

    #[test]
    fn processes_are_named_with_what_they_have_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let file = "00010000-00013000 r--p 00000000 fe:00 7   /usr/lib/a b.so\n";
        let anonymous = "00020000-00022000 rw-p 00000000 00:00 0 \n";
        let huge = "100000000-7f0000000000 ---p 00000000 00:00 0 \n";
        let maps = format!("{file}{anonymous}{huge}broken\n");
        // Two pages of the file, one of them outside of the range; one page not present, but swapped.
        let words =
            [(0x10, PRESENT | 500), (0x11, PRESENT | 9), (0x20, PRESENT | 501), (0x21, 1 << 62 | 502)];
        write_process(dir.path(), 12, "worker", &maps, &words);
        write_process(dir.path(), 13, "other", file, &[(0x12, PRESENT | 500)]);
        write_process(dir.path(), 2, "kthreadd", "", &[]);
        fs::create_dir(dir.path().join("sys")).unwrap();
        let found = mapped(dir.path(), 500..600, 4096);
        let owner = |name: &str, what: &str, pages| PageOwner { name: name.into(), what: what.into(), pages };
        let mut owners = found.owners;
        owners.sort_by(|a, b| (&a.name, &a.what).cmp(&(&b.name, &b.what)));
        assert_eq!(
            owners,
            [
                owner("other (13)", "/usr/lib/a b.so", 1),
                owner("worker (12)", "/usr/lib/a b.so", 1),
                owner("worker (12)", "anonymous memory", 1),
            ]
        );
        assert_eq!((found.pages.len(), found.looked_at, found.left_out), (2, 3, 1));
    }

    #[test]
    fn this_process_has_pages() {
        let found = mapped(Path::new("/proc"), 0..1 << 24, 4096);
        assert!(found.looked_at > 0);
        // Without root, page numbers are zero.
        let is_root = found.pages.len() > 1;
        assert_eq!(is_root, found.owners.iter().any(|owner| owner.pages > 1));
    }
}
