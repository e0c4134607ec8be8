//! `pagefold report --block N`: why can this memory block not be taken offline?
//!
//! Linux takes a block offline if it can move or free every page in it, and refuses blocks with holes and blocks in several
//! zones (`offline_pages` in mm/memory_hotplug.c, `has_unmovable_pages` in mm/page_isolation.c). Page flags tell what pages are
//! used for; a reference that somebody holds for long (pinned memory) they do not tell.

pub mod model;
mod print;

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;

use anyhow::Result;
use pagefold_machine::host::{Block, OnlineState};
use pagefold_machine::kernel::Has;
use pagefold_machine::owners::{PageOwner, PageSet, page_owner, processes};
use pagefold_machine::{Extent, Header, Host, Machine, MemoryRange, PageState, live};

use self::model::{BlockAnswer, OwnerRow, SCHEMA, StateInBlock, Stuck};
use super::args::ReportArgs;
use crate::covered::Covered;
use crate::exit::{self, usage};
use crate::lines::Lines;
use crate::survey::{PagesAt, Subject};
use crate::{deliver, survey};

/// Ranges and owners that are listed.
const LISTED: usize = 20;
/// Bytes in a block where nothing tells: a section.
const SECTION: u64 = 128 << 20;
/// A huge page of this order (1 GiB) or more has to find another in one piece.
const GIGANTIC: u32 = 18;

pub fn run(args: &ReportArgs, block: u64) -> Result<ExitCode> {
    let answer = answer(&args.survey.subject()?, block)?;
    let print = |to: &mut _| print::print(&answer, args.units.units(), &mut Lines::new(to));
    deliver::result(&answer, args.json, print)?;
    Ok(exit::code(answer.partial, false))
}

fn answer(subject: &Subject, block: u64) -> Result<BlockAnswer> {
    let host = &subject.host;
    let page = host.page_size.bytes.max(1);
    let size = host.blocks.as_ref().map(|blocks| blocks.size);
    let known = known_block(host, block)?;
    let bytes = size.unwrap_or(SECTION);
    let pages = match block.checked_mul(bytes / page) {
        Some(first) if first < 1 << 40 => first..first + bytes / page,
        _ => return Err(usage(format!("no machine has a memory block {block} (--block)"))),
    };
    if let Some(last) = last_page(host)
        && host.blocks.is_none()
        && pages.start > last
    {
        let last = last / (bytes / page);
        return Err(usage(format!(
            "no zone of the machine has block {block} (--block): they end in block {last}"
        )));
    }
    let mut answer = BlockAnswer {
        schema: SCHEMA,
        origin: subject.origin.clone(),
        block,
        size: bytes,
        size_known: size.is_some(),
        address: pages.start * page,
        state: known.map(|known| known.state),
        zone: known.and_then(|known| known.zone.clone()),
        node: host.nodes.iter().find(|node| node.blocks.contains(&block)).map(|node| node.id),
        can: Has::Unknown,
        reasons: Vec::new(),
        states: Vec::new(),
        stuck: Vec::new(),
        stuck_ranges: 0,
        mapped: Vec::new(),
        allocated: Vec::new(),
        unmapped: None,
        not_found: Vec::new(),
        partial: false,
    };
    if answer.state == Some(OnlineState::Offline) {
        answer.reasons.push("It is offline already: its pages are not in use.".into());
        return Ok(answer);
    }
    match extents(subject, &pages) {
        Ok(Some(extents)) => of_extents(&mut answer, &extents, pages.clone(), page),
        Ok(None) => answer.not_found.push("what its pages are used for: no file here tells".into()),
        Err(error) => {
            answer.partial = true;
            answer.not_found.push(format!("what its pages are used for: {}", survey::chain(&error)));
        }
    }
    if !answer.states.is_empty() {
        owners(&mut answer, subject, pages, page);
    }
    judge(&mut answer, known);
    Ok(answer)
}

/// The last page of the machine's zones, where these are known.
fn last_page(host: &Host) -> Option<u64> {
    let zones = host.zones.iter().filter(|zone| zone.spanned > 0);
    zones.map(|zone| zone.start.saturating_add(zone.spanned - 1)).max()
}

/// The block, where blocks are known.
fn known_block(host: &Host, block: u64) -> Result<Option<&Block>> {
    let Some(blocks) = &host.blocks else { return Ok(None) };
    let found = blocks.list.iter().find(|known| known.id == block);
    if found.is_none() {
        let numbers = match (blocks.list.first(), blocks.list.last()) {
            (Some(first), Some(last)) => {
                format!("it has {} from {} to {}", blocks.list.len(), first.id, last.id)
            }
            _ => "it has none".into(),
        };
        return Err(usage(format!("the machine has no memory block {block} (--block): {numbers}")));
    }
    Ok(found)
}

/// What the block's pages are used for; `None` where no file tells.
fn extents(subject: &Subject, pages: &Range<u64>) -> Result<Option<Vec<Extent>>, live::LiveError> {
    let host = &subject.host;
    let mem = |name| host.meminfo.get(name).unwrap_or(0);
    let memory = vec![MemoryRange { start: pages.start, end: pages.end }];
    let machine = match &subject.pages {
        PagesAt::Nowhere => return Ok(None),
        PagesAt::Machine(machine) => {
            let header = Header { memory, ..machine.header.clone() };
            Machine { header, runs: machine.runs.clone() }
        }
        PagesAt::Root(root) => {
            let runs = match live::read_pages(root, pages.clone()) {
                Err(error) if error.is_missing() => return Ok(None),
                runs => runs?,
            };
            let header = Header {
                page_size: 4096,
                memory,
                zones: host.zones.clone(),
                mem_total: mem("MemTotal"),
                mem_free: mem("MemFree"),
                pools: host.pools.clone(),
                ..Header::default()
            };
            Machine { header, runs }
        }
    };
    // What no page is said of is none.
    let covered = Covered::new(std::iter::once(pages.clone()), machine.extents());
    Ok(Some(covered.with_rest(PageState::NoPage).collect()))
}

/// Whether pages in a state can move, or need not.
fn can_move(extent: &Extent) -> Has {
    match extent.state {
        PageState::Free | PageState::Anon | PageState::File | PageState::HwPoison => Has::Yes,
        PageState::Hugetlb if extent.order < GIGANTIC => Has::Yes,
        PageState::Hugetlb | PageState::Offline | PageState::Deferred => Has::Unknown,
        PageState::Slab
        | PageState::PageTable
        | PageState::Kernel
        | PageState::Reserved
        | PageState::NoPage => Has::No,
    }
}

fn of_extents(answer: &mut BlockAnswer, extents: &[Extent], pages: Range<u64>, page: u64) {
    let mut sums: BTreeMap<(PageState, u8), StateInBlock> = BTreeMap::new();
    let mut stuck: Vec<Stuck> = Vec::new();
    for extent in extents {
        let can_move = can_move(extent);
        let row = sums.entry((extent.state, can_move as u8)).or_insert(StateInBlock {
            state: extent.state,
            pages: 0,
            memory: 0,
            can_move,
        });
        row.pages += extent.pages;
        row.memory += extent.pages * page;
        if can_move == Has::No {
            match stuck.last_mut() {
                Some(last) if last.pfn + last.pages == extent.start && last.state == extent.state.name() => {
                    last.pages += extent.pages;
                }
                _ => stuck.push(Stuck { pfn: extent.start, pages: extent.pages, state: extent.state.name() }),
            }
        }
    }
    debug_assert_eq!(sums.values().map(|row| row.pages).sum::<u64>(), pages.end - pages.start);
    answer.states = sums.into_values().collect();
    answer.stuck_ranges = stuck.len() as u64;
    stuck.sort_by(|a, b| b.pages.cmp(&a.pages).then(a.pfn.cmp(&b.pfn)));
    answer.stuck = stuck;
}

/// Who owns the pages, where that can be found out.
fn owners(answer: &mut BlockAnswer, subject: &Subject, pages: Range<u64>, page: u64) {
    let row = |owner: PageOwner| OwnerRow {
        owner: owner.name,
        what: owner.what,
        pages: owner.pages,
        memory: owner.pages * page,
    };
    let stuck_pages: u64 = answer.stuck.iter().map(|stuck| stuck.pages).sum();
    let mut stuck = PageSet::new(pages.clone());
    for range in &answer.stuck {
        (range.pfn..range.pfn + range.pages).for_each(|pfn| stuck.add(pfn));
    }
    answer.stuck.truncate(LISTED);
    let PagesAt::Root(root) = &subject.pages else {
        answer.not_found.push("which processes and files own its pages: only a live machine tells".into());
        return;
    };
    let in_use: u64 = (answer.states.iter())
        .filter(|row| matches!(row.state, PageState::Anon | PageState::File | PageState::Hugetlb))
        .map(|row| row.pages)
        .sum();
    if in_use > 0 {
        let found = processes::mapped(&root.join("proc"), pages.clone(), page);
        answer.unmapped = Some(in_use.saturating_sub(found.pages.len()));
        answer.mapped = found.owners.into_iter().take(LISTED).map(row).collect();
        if found.denied > 0 {
            // As root there may be a few that nobody may look at.
            answer.partial |= found.looked_at == 0;
            answer
                .not_found
                .push(format!("what is mapped by processes that may not be looked at: {}", found.denied));
        }
        if found.left_out > 0 {
            answer.not_found.push(format!(
                "what is mapped in {} areas of more than 64 GiB of address space: they were left out",
                found.left_out
            ));
        }
        if answer.unmapped.is_some_and(|pages| pages > 0) {
            answer.not_found.push(
                "which files the pages are of that no process has mapped: Linux does not tell (page-types -f FILE does, of a \
                 file that you suspect)"
                    .into(),
            );
        }
    }
    if stuck_pages > 0 {
        match page_owner::allocated(root, pages, |pfn| stuck.contains(pfn)) {
            Ok(owners) => answer.allocated = owners.into_iter().take(LISTED).map(row).collect(),
            Err(error) => answer.not_found.push(format!(
                "who allocated the pages that cannot move: /{} ({error}); it takes page_owner=on at boot, debugfs and root",
                page_owner::PATH
            )),
        }
    }
}

/// Whether it can be taken offline, and why.
fn judge(answer: &mut BlockAnswer, known: Option<&Block>) {
    let mut reasons = Vec::new();
    let mut can = if answer.states.is_empty() { Has::Unknown } else { Has::Yes };
    if known.is_some_and(|known| known.has_no_zone) {
        reasons.push("It is in several zones: such a block stays online.".into());
        can = Has::No;
    }
    for row in answer.states.iter().filter(|row| row.can_move == Has::No) {
        let pages = row.pages;
        reasons.push(match row.state {
            PageState::NoPage => format!("It has a hole of {pages} pages: Linux takes no block with holes offline."),
            PageState::Reserved => format!(
                "{pages} pages were reserved at boot (firmware, the kernel's image, descriptors): they never move."
            ),
            PageState::Kernel => format!(
                "{pages} pages are the kernel's own, or on a per-CPU list of free pages; only the latter can go."
            ),
            PageState::PageTable => format!("{pages} pages are page tables: they do not move."),
            state => {
                format!("{pages} pages are {}: they do not move; some of it can be reclaimed.", state.name())
            }
        });
        can = Has::No;
    }
    for row in answer.states.iter().filter(|row| row.can_move == Has::Unknown) {
        let pages = row.pages;
        reasons.push(match row.state {
            PageState::Offline => {
                format!("{pages} pages are offline already: the driver that took them decides.")
            }
            PageState::Hugetlb => {
                format!("{pages} pages are of 1 GiB huge pages: each has to find another 1 GiB in one piece.")
            }
            state => format!("Of {pages} pages ({}) it is not known.", state.name()),
        });
        can = if can == Has::No { Has::No } else { Has::Unknown };
    }
    if can == Has::Yes {
        reasons.push(
            "Nothing that page flags show keeps it online: every page is free or can move, if there is room elsewhere.".into(),
        );
        if answer.zone.as_deref() != Some("Movable") {
            reasons.push("It is in a kernel zone: that may change at any time.".into());
        }
    }
    if !answer.states.is_empty() {
        answer
            .not_found
            .push("which pages are pinned (DMA, RDMA, a guest's memory): page flags do not tell".into());
    }
    answer.can = can;
    answer.reasons = reasons;
}
