//! What tables really cost, asked of the system.
//!
//! A page of a table is *private* when the process has memory of its own there. The kernel's zero page, which reads of
//! folded parts leave behind, is not.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;

use linux_raw_sys::general::{PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, page_region, pm_scan_arg};

const PAGE: u64 = 4096;

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`, include/uapi/linux/fs.h (Linux 6.7).
const PAGEMAP_SCAN: libc::c_ulong = 0xc000_6610 | (size_of::<pm_scan_arg>() as libc::c_ulong) << 16;

/// Which pages a scan is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Those with memory of their own, in memory or swapped out.
    Private,
    /// Those with memory of their own that are in memory. Under userfaultfd write protection empty pages look swapped
    /// out.
    PrivateResident,
    /// Those with a page-table entry: private ones and zero pages.
    Present,
}

/// The largest range that is read page by page where the kernel has no `PAGEMAP_SCAN`.
const LARGEST_READ: u64 = 64 << 30;

/// Calls `each` for every run of such pages in `addresses`: by `PAGEMAP_SCAN`, or where the kernel does not have it by
/// reading `/proc/self/pagemap`.
///
/// # Errors
/// When neither works; [`io::ErrorKind::Unsupported`] where the range is too large to be read.
pub fn scan(addresses: Range<u64>, pages: Pages, each: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
    match scan_pagemap(addresses.clone(), pages, each) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            read_pagemap(addresses, pages, each)
        }
        done => done,
    }
}

/// As [`scan`], by `PAGEMAP_SCAN` alone.
pub(crate) fn scan_pagemap(
    addresses: Range<u64>,
    pages: Pages,
    each: &mut dyn FnMut(Range<u64>),
) -> io::Result<()> {
    let (not, any) = match pages {
        Pages::Private => (PAGE_IS_PFNZERO, PAGE_IS_PRESENT | PAGE_IS_SWAPPED),
        Pages::PrivateResident => (PAGE_IS_PFNZERO, PAGE_IS_PRESENT),
        Pages::Present => (0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED),
    };
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut found = [page_region { start: 0, end: 0, categories: 0 }; 512];
    let mut start = addresses.start;
    while start < addresses.end {
        let mut arg = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: 0,
            start,
            end: addresses.end,
            walk_end: 0,
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            max_pages: 0,
            category_inverted: not.into(),
            category_mask: not.into(),
            category_anyof_mask: any.into(),
            return_mask: PAGE_IS_PRESENT.into(),
        };
        // SAFETY: the argument and the vector it points to outlive the call and have the sizes they claim.
        let regions = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        let regions = usize::try_from(regions).map_err(|_| io::Error::last_os_error())?;
        for region in found.iter().take(regions) {
            each(region.start..region.end);
        }
        if arg.walk_end <= start {
            break;
        }
        start = arg.walk_end;
    }
    Ok(())
}

fn read_pagemap(addresses: Range<u64>, pages: Pages, each: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
    // Documentation/admin-guide/mm/pagemap.rst: bit 63 present, 62 swapped, 56 exclusively mapped. The zero page is not
    // exclusive.
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const EXCLUSIVE: u64 = 1 << 56;
    let is_wanted = |entry: u64| {
        let is_private = entry & (PRESENT | EXCLUSIVE) == PRESENT | EXCLUSIVE;
        match pages {
            Pages::Private => is_private || entry & SWAPPED != 0,
            Pages::PrivateResident => is_private,
            Pages::Present => entry & (PRESENT | SWAPPED) != 0,
        }
    };
    if addresses.end - addresses.start > LARGEST_READ {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut pagemap = File::open("/proc/self/pagemap")?;
    let mut buffer = vec![0u8; 1 << 16];
    let mut run: Option<Range<u64>> = None;
    let mut page = addresses.start / PAGE;
    pagemap.seek(SeekFrom::Start(page * 8))?;
    while page < addresses.end / PAGE {
        let wanted = ((addresses.end / PAGE - page) * 8).min(buffer.len() as u64) as usize;
        let bytes = buffer.get_mut(..wanted).unwrap_or_default();
        pagemap.read_exact(bytes)?;
        for entry in bytes.chunks_exact(8) {
            let at = page * PAGE;
            if is_wanted(u64::from_ne_bytes(entry.try_into().unwrap_or_default())) {
                match &mut run {
                    Some(run) => run.end = at + PAGE,
                    None => run = Some(at..at + PAGE),
                }
            } else if let Some(run) = run.take() {
                each(run);
            }
            page += 1;
        }
    }
    if let Some(run) = run {
        each(run);
    }
    Ok(())
}

/// Bytes of private anonymous memory in `addresses`, by `/proc/self/smaps`.
///
/// # Errors
/// When smaps cannot be read or makes no sense.
pub fn smaps_anonymous(addresses: &Range<u64>) -> io::Result<u64> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "/proc/self/smaps is not as expected");
    let mut inside = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            inside = start >= addresses.start && end <= addresses.end;
        } else if inside && matches!(first, "Anonymous:" | "Swap:") {
            let kib = line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
            bytes += kib.ok_or_else(bad)? * 1024;
        }
    }
    Ok(bytes)
}

/// Bytes of page tables of this process (`VmPTE`; Linux counts upper levels in it since 4.15).
///
/// # Errors
/// When `/proc/self/status` cannot be read or has no such line.
pub fn page_table_bytes() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no VmPTE in /proc/self/status"))
}

/// Page tables that `ranges` need at least, in bytes: the tables, of every level, above pages that are present. Ranges
/// that lie in the same table share it.
///
/// # Errors
/// As [`scan`].
pub fn page_tables_of(ranges: &[Range<u64>]) -> io::Result<u64> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| range.start);
    // A table of one level spans 2 MiB, 1 GiB, 512 GiB. The level above those is shared with everything else.
    let mut tables = 0;
    let mut last = [None; 3];
    for range in sorted {
        scan(range, Pages::Present, &mut |run| {
            for (shift, last) in [21, 30, 39].into_iter().zip(&mut last) {
                let first = run.start >> shift;
                let end = (run.end - 1) >> shift;
                let known = u64::from(*last == Some(first));
                tables += end - first + 1 - known;
                *last = Some(end);
            }
        })?;
    }
    Ok(tables * PAGE)
}

/// Page tables that everything in this process but `ranges` needs at least, in bytes.
///
/// # Errors
/// As [`scan`], or when `/proc/self/maps` cannot be read.
pub fn page_tables_outside(ranges: &[Range<u64>]) -> io::Result<u64> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut others = Vec::new();
    for line in maps.lines() {
        let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) else {
            continue;
        };
        let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)) else {
            continue;
        };
        let is_ours = ranges.iter().any(|range| range.start < end && start < range.end);
        // vsyscall lies in the kernel's half.
        if !is_ours && end < 1 << 47 {
            others.push(start..end);
        }
    }
    page_tables_of(&others)
}
