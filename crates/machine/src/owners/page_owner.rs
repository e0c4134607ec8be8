//! Who allocated pages: `/sys/kernel/debug/page_owner`, where the kernel was booted with `page_owner=on`
//! (Documentation/mm/page_owner.rst). It takes root, and debugfs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::PageOwner;
use crate::host::files::plain;

/// Where it is, below a root.
pub const PATH: &str = "sys/kernel/debug/page_owner";

/// Functions that only pass a request on, at the top of each stack.
const PASSING: [&str; 22] = [
    "get_page_from_freelist",
    "prep_new_page",
    "post_alloc_hook",
    "__alloc_pages",
    "__alloc_frozen_pages",
    "alloc_pages",
    "alloc_frozen_pages",
    "__folio_alloc",
    "folio_alloc",
    "vma_alloc_folio",
    "alloc_slab_page",
    "allocate_slab",
    "new_slab",
    "___slab_alloc",
    "__slab_alloc",
    "kmem_cache_alloc",
    "__kmalloc",
    "__kmem_cache_alloc",
    "kmalloc",
    "register_early_stack",
    "stack_trace_save",
    "set_page_owner",
];

/// One allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    pfn: u64,
    order: u32,
    /// `comm (tgid)`, where the kernel tells (5.18 and newer).
    task: String,
    /// The function that wanted it.
    function: String,
}

/// Who allocated the pages of `pages` that `wanted` picks, the most pages first.
///
/// # Errors
/// The file cannot be read.
pub fn allocated(root: &Path, pages: Range<u64>, wanted: impl Fn(u64) -> bool) -> io::Result<Vec<PageOwner>> {
    let mut file = File::open(root.join(PATH))?;
    // In debugfs its size is 0, and the offset is a page number; a copy is an ordinary file.
    if file.metadata()?.len() == 0 {
        file.seek(SeekFrom::Start(pages.start))?;
    }
    allocated_in(BufReader::with_capacity(1 << 16, file), pages, wanted)
}

fn allocated_in(
    from: impl BufRead,
    pages: Range<u64>,
    wanted: impl Fn(u64) -> bool,
) -> io::Result<Vec<PageOwner>> {
    let mut sums: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut text = Vec::new();
    for line in from.split(b'\n') {
        let line = plain(&String::from_utf8_lossy(&line?));
        if !line.trim().is_empty() {
            text.push(line);
            continue;
        }
        let Some(record) = record(&text) else {
            text.clear();
            continue;
        };
        text.clear();
        if record.pfn >= pages.end {
            break;
        }
        let end = record.pfn.saturating_add(1 << record.order.min(30));
        let inside = record.pfn.max(pages.start)..end.min(pages.end);
        let count = inside.filter(|&pfn| wanted(pfn)).count() as u64;
        if count > 0 {
            *sums.entry((record.task, record.function)).or_default() += count;
        }
    }
    let owners = sums.into_iter().map(|((name, what), pages)| PageOwner { name, what, pages });
    let mut owners: Vec<PageOwner> = owners.collect();
    owners.sort_by(|a, b| b.pages.cmp(&a.pages).then_with(|| a.name.cmp(&b.name)));
    Ok(owners)
}

/// `Page allocated via order 0, ... pid 1, tgid 1 (swapper/0), ts 5 ns`, `PFN 0x1000 type ...`, and a stack.
fn record(lines: &[String]) -> Option<Record> {
    let first = lines.iter().find(|line| line.starts_with("Page allocated via order "))?;
    let order = first.trim_start_matches("Page allocated via order ").split(',').next()?.trim();
    let task = match (first.find("tgid "), first.find("), ts")) {
        (Some(at), Some(end)) if at < end => {
            let (tgid, comm) = first[at + 5..end].split_once(" (")?;
            format!("{comm} ({tgid})")
        }
        _ => match first.find("pid ") {
            Some(at) => format!("pid {}", first[at + 4..].split(',').next()?.trim()),
            None => "not told".to_owned(),
        },
    };
    let pfn = lines.iter().find_map(|line| line.strip_prefix("PFN "))?.split_ascii_whitespace().next()?;
    let pfn = match pfn.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => pfn.parse().ok()?,
    };
    let stack = lines.iter().filter_map(|line| line.strip_prefix(' '));
    let functions: Vec<&str> = stack
        .filter_map(|line| line.trim().split(['+', '.']).next())
        .filter(|name| !name.is_empty())
        .collect();
    let passes = |name: &&&str| PASSING.iter().any(|passing| name.starts_with(passing));
    let function = functions.iter().find(|name| !passes(name)).or(functions.first()).copied();
    let function = function.unwrap_or("not told").to_owned();
    Some(Record { pfn, order: order.parse().ok()?, task, function })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Linux 6.12 prints it.
    const TEXT: &str = "\
Page allocated via order 0, mask 0x500cc2(GFP_HIGHUSER|__GFP_ACCOUNT), pid 55, tgid 55 (my daemon), ts 992 ns
PFN 0x1001 type Unmovable Block 8 type Unmovable Flags 0x200(workingset|node=0|zone=1)
 get_page_from_freelist+0x1a3/0x5c0
 __alloc_pages_noprof+0x184/0x340
 alloc_pages_mpol_noprof+0x92/0x160
 pipe_write+0x394/0x660
 vfs_write+0x39f/0x440

Page allocated via order 2, mask 0xd20c0(__GFP_IO|__GFP_FS), pid 1, tgid 1 (swapper/0), ts 5 ns
PFN 4100 type Unmovable Block 8 type Unmovable Flags 0x0()
 post_alloc_hook+0x60/0x90
 allocate_slab+0x2e7/0x4a0
 ___slab_alloc+0x415/0x7d0
 kmem_cache_alloc_noprof+0x1f0/0x270
 __d_alloc+0x2c/0x1e0

Page allocated via order 0, mask 0x0, pid 9, ts 5 ns, free_ts 4 ns
PFN 4104 type Movable Block 8 type Movable Flags 0x0()
 do_anonymous_page+0x60/0x90

Page allocated via order 0, mask 0x0, pid 9, tgid 9 (late), ts 5 ns
PFN 8192 type Movable Block 8 type Movable Flags 0x0()
 do_anonymous_page+0x60/0x90

";

    #[test]
    fn allocations_are_summed_by_who_wanted_them() {
        let owners = allocated_in(TEXT.as_bytes(), 0x1000..0x1100, |pfn| pfn != 0x1007).unwrap();
        let owner = |name: &str, what: &str, pages| PageOwner { name: name.into(), what: what.into(), pages };
        assert_eq!(
            owners,
            [
                owner("swapper/0 (1)", "__d_alloc", 3),
                owner("my daemon (55)", "pipe_write", 1),
                owner("pid 9", "do_anonymous_page", 1),
            ]
        );
    }

    #[test]
    fn a_copy_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PATH);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, TEXT).unwrap();
        assert_eq!(allocated(dir.path(), 0x1000..0x1100, |_| true).unwrap().len(), 3);
        assert_eq!(allocated(dir.path(), 8192..8200, |_| true).unwrap().len(), 1);
        assert!(allocated(Path::new("/nowhere"), 0..1, |_| true).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read(
            text in "((Page allocated via order [0-9]{1,12}|PFN [0-9x]{1,18}| [a-z_+]{0,9}|tgid 1 \\(|\\), ts)\n?|.{0,20}\n|\n){0,12}",
        ) {
            let _ = allocated_in(text.as_bytes(), 0..1000, |_| true);
        }
    }
}
