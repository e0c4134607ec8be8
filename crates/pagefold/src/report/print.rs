//! The report for people: one paragraph that answers, then tables.

use std::io::{self, Write};

use comfy_table::ColumnConstraint;
use pagefold_machine::host::{Hvo, PageSizeFrom};
use pagefold_picture::amount::{Units, Whole};

use super::model::{Figure, Interval, NodeUses, Report, percent};
use crate::lines::{text_width, wrap};
use crate::table::{add, fit, table, words};

pub fn print(report: &Report, units: Units, each_block: bool, to: &mut impl Write) -> io::Result<()> {
    let printer = Printer { report, units };
    writeln!(to, "{}\n", wrap(&printer.answer(), text_width()))?;
    printer.machine(to)?;
    printer.descriptors(to)?;
    printer.savings(to)?;
    printer.went(to)?;
    printer.nodes(to)?;
    printer.zones(to)?;
    printer.blocks(each_block, to)?;
    printer.huge_pages(to)?;
    printer.states(to)?;
    printer.other_costs(to)?;
    printer.checks(to)?;
    printer.gaps(to)
}

/// A report, and how amounts are written.
pub(super) struct Printer<'a> {
    pub(super) report: &'a Report,
    pub(super) units: Units,
}

impl Printer<'_> {
    pub(super) fn words(&self, bytes: u64) -> String {
        self.units.words(bytes)
    }

    fn show(&self, bytes: u64) -> String {
        self.units.show(bytes)
    }

    fn range(&self, interval: &Interval) -> String {
        let (min, max) = (self.show(interval.min), self.show(interval.max));
        if min == max { max } else { format!("{min} to {max}") }
    }

    pub(super) fn range_in_words(&self, interval: &Interval) -> String {
        match self.units {
            Units::Bytes => format!("{} bytes", self.range(interval)),
            _ => self.range(interval),
        }
    }

    pub(super) fn share(&self, bytes: u64) -> String {
        format!("{:.2} %", percent(bytes, self.report.memory.bytes))
    }

    fn machine(&self, to: &mut impl Write) -> io::Result<()> {
        let machine = &self.report.machine;
        let known = |text: &str, prefix: &str| {
            if text.is_empty() { String::new() } else { format!(", {prefix}{text}") }
        };
        let page = match machine.page_size_from {
            PageSizeFrom::Assumed => " (assumed)",
            PageSizeFrom::Counters => " (by its counters)",
            PageSizeFrom::System | PageSizeFrom::Snapshot => "",
        };
        let descriptor = match (machine.descriptor_size_known, machine.descriptor_size) {
            (true, _) => "",
            (false, ..64) => " (assumed: 32 to 44, by its kernel's options)",
            (false, _) if machine.arch.is_empty() => " (assumed, as its architecture is not known)",
            (false, _) => " (assumed: as is usual there)",
        };
        writeln!(
            to,
            "machine   {}{}{}, pages of {}{page}, descriptors of {} bytes{descriptor}",
            machine.origin,
            known(&machine.kernel, "Linux "),
            known(&machine.arch, ""),
            self.units.size(machine.page_size),
            machine.descriptor_size,
        )?;
        let read = if machine.scanned {
            "counters and every page's state"
        } else {
            "counters; as root, every page's state as well"
        };
        writeln!(to, "read      {read}\n")
    }

    fn descriptors(&self, to: &mut impl Write) -> io::Result<()> {
        let report = self.report;
        let mut table = table(&["descriptors", "bytes", "of memory", "how", "from"]);
        words(&mut table, &[3, 4]);
        let row = |name: String, interval: Interval| {
            [
                name,
                self.range(&interval),
                self.share(interval.max),
                interval.how.name().to_owned(),
                interval.from.clone(),
            ]
        };
        add(&mut table, row("all".into(), report.descriptors.clone().into()));
        for place in report.places.iter().filter(|place| place.place != "unknown") {
            let name = match place.place {
                "boot" => "  made at boot",
                "runtime" => "  made later (buddy allocator)",
                "block" => "  on the blocks they describe",
                _ => "  made later, or on the block",
            };
            add(&mut table, row(name.into(), place.descriptors.clone().into()));
        }
        if report.nodes.len() > 1 {
            for node in &report.nodes {
                add(&mut table, row(format!("  node {}", node.node), node.descriptors.clone()));
            }
        }
        add(&mut table, row("all, by arithmetic".into(), report.descriptors_computed.clone()));
        writeln!(to, "{}\n", fit(&mut table))
    }

    fn went(&self, to: &mut impl Write) -> io::Result<()> {
        let stages = &self.report.memory_went;
        let Some(first) = stages.first().filter(|_| stages.len() > 1) else { return Ok(()) };
        let all = first.memory.bytes;
        let mut table = table(&["where memory went", "bytes", "of all", "how", "from"]);
        words(&mut table, &[3, 4]);
        let mut row = |title: String, figure: &Figure| {
            let share = format!("{:.1} %", percent(figure.bytes, all));
            add(
                &mut table,
                [title, self.show(figure.bytes), share, figure.how.name().into(), figure.from.clone()],
            );
        };
        for stage in stages {
            row(stage.title.clone(), &stage.memory);
            for part in &stage.parts {
                row(format!("  {}", part.title), &part.bytes);
            }
        }
        writeln!(to, "{}\n", fit(&mut table))
    }

    /// One line a node, where there are several.
    fn nodes(&self, to: &mut impl Write) -> io::Result<()> {
        let nodes = &self.report.nodes;
        if nodes.len() < 2 || nodes.iter().all(|node| node.uses.is_none()) {
            return Ok(());
        }
        let mut table = table(&[
            "nodes",
            "memory",
            "free",
            "anonymous",
            "page cache",
            "slab",
            "huge pages",
            "page tables",
            "descriptors",
        ]);
        for node in nodes {
            let use_of = |of: fn(&NodeUses) -> u64| {
                node.uses.as_ref().map_or_else(String::new, |uses| self.show(of(uses)))
            };
            let page_tables =
                node.page_tables.as_ref().map_or_else(String::new, |figure| self.show(figure.bytes));
            add(
                &mut table,
                [
                    format!("node {}", node.node),
                    use_of(|uses| uses.total),
                    use_of(|uses| uses.free),
                    use_of(|uses| uses.anonymous),
                    use_of(|uses| uses.page_cache),
                    use_of(|uses| uses.slab),
                    use_of(|uses| uses.huge_pages),
                    page_tables,
                    self.range(&node.descriptors),
                ],
            );
        }
        writeln!(to, "{}", fit(&mut table))?;
        writeln!(to, "Counted (each node's meminfo); descriptors as above.\n")
    }

    fn zones(&self, to: &mut impl Write) -> io::Result<()> {
        if self.report.zones.is_empty() {
            return Ok(());
        }
        let mut table = table(&["zones", "memory", "managed", "free", "descriptors"]);
        for zone in &self.report.zones {
            add(
                &mut table,
                [
                    format!("node {} {}", zone.node, zone.zone),
                    self.show(zone.present),
                    self.show(zone.managed),
                    self.show(zone.free),
                    self.show(zone.descriptors.bytes),
                ],
            );
        }
        writeln!(to, "{}", fit(&mut table))?;
        writeln!(
            to,
            "Memory, managed, free: counted (zoneinfo). Descriptors: computed, of present pages, without HVO.\n"
        )
    }

    fn blocks(&self, each: bool, to: &mut impl Write) -> io::Result<()> {
        let Some(blocks) = self.report.blocks.as_ref().filter(|blocks| !blocks.groups.is_empty()) else {
            return Ok(());
        };
        let scanned = self.report.machine.scanned;
        let title = format!("memory blocks of {}", self.units.size(blocks.size));
        let mut table =
            table(&[&title, "blocks", "memory", "descriptors", "offline inside", "their descriptors"]);
        let state = |state: &'static str, zone: &Option<String>, has_no_zone: bool| match zone {
            Some(zone) => format!("{state}, {zone}"),
            None if has_no_zone => format!("{state}, several zones"),
            None => state.into(),
        };
        let offline = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| self.show(bytes));
        for group in &blocks.groups {
            let share = group.memory.checked_div(group.descriptors.bytes).unwrap_or(1).max(1);
            add(
                &mut table,
                [
                    state(group.state.name(), &group.zone, group.has_no_zone),
                    Whole(group.blocks).to_string(),
                    self.show(group.memory),
                    self.show(group.descriptors.bytes),
                    offline(group.offline),
                    offline(group.offline.map(|bytes| bytes / share)),
                ],
            );
        }
        if each {
            for row in &blocks.list {
                let node = row.node.map_or_else(String::new, |node| format!(", node {node}"));
                add(
                    &mut table,
                    [
                        format!(
                            "  {} ({}{node})",
                            row.block,
                            state(row.state.name(), &row.zone, row.has_no_zone)
                        ),
                        String::new(),
                        self.units.size(blocks.size),
                        self.show(row.descriptors),
                        offline(row.offline),
                        offline(row.offline_descriptors),
                    ],
                );
            }
        }
        let has_offline = blocks.groups.iter().any(|group| group.offline.is_some_and(|bytes| bytes > 0));
        for column in [4, 5] {
            if let Some(column) = table.column_mut(column).filter(|_| !has_offline) {
                column.set_constraint(ColumnConstraint::Hidden);
            }
        }
        writeln!(to, "{}", fit(&mut table))?;
        let offline = match (scanned, has_offline) {
            (false, _) => "",
            (true, false) => " No page in them is offline.",
            (true, true) => "\nOffline inside: fake-offline or ballooned, counted page by page.",
        };
        writeln!(to, "Blocks: counted. Descriptors: computed, of whole blocks, without HVO.{offline}\n")
    }

    fn huge_pages(&self, to: &mut impl Write) -> io::Result<()> {
        let rows: Vec<_> = self.report.huge_pages.iter().filter(|row| row.pages > 0).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let mut table =
            table(&["huge pages", "pages", "free", "optimised", "memory", "descriptors", "with HVO"]);
        let by_flags = rows.iter().any(|row| row.optimised.is_some());
        if let Some(column) = table.column_mut(3).filter(|_| !by_flags) {
            column.set_constraint(ColumnConstraint::Hidden);
        }
        for row in rows {
            add(
                &mut table,
                [
                    self.units.size(row.size),
                    Whole(row.pages).to_string(),
                    row.free.map_or_else(String::new, |free| Whole(free).to_string()),
                    row.optimised.map_or_else(String::new, |pages| Whole(pages).to_string()),
                    self.show(row.size.saturating_mul(row.pages)),
                    self.show(row.descriptors.bytes),
                    self.show(row.with_hvo.bytes),
                ],
            );
        }
        writeln!(to, "{}", fit(&mut table))?;
        let optimised = if by_flags { " Optimised by HVO: counted, by page flags." } else { "" };
        writeln!(
            to,
            "Pages: counted. Descriptors: computed, without HVO, and with it on all of them.{optimised}\n"
        )
    }

    fn states(&self, to: &mut impl Write) -> io::Result<()> {
        let rows = &self.report.states;
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = table(&["page states", "pages", "memory", "descriptors", "with HVO", "folded"]);
        let mut sums = [0u64; 5];
        for row in rows {
            let numbers = [row.pages, row.memory, row.descriptors, row.with_hvo, row.folded];
            sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum = sum.saturating_add(number));
            add(&mut table, self.state(row.state, numbers));
        }
        add(&mut table, self.state("total", sums));
        writeln!(to, "{}", fit(&mut table))?;
        writeln!(
            to,
            "Pages: counted one by one. Descriptors: computed, as Linux has them; with HVO on all huge pages;\n\
             and what folding would leave, where 64 pages keep or lose their descriptors together.\n"
        )
    }

    fn state(&self, name: &str, [pages, memory, descriptors, with_hvo, folded]: [u64; 5]) -> [String; 6] {
        [
            name.to_owned(),
            Whole(pages).to_string(),
            self.show(memory),
            self.show(descriptors),
            self.show(with_hvo),
            self.show(folded),
        ]
    }

    fn savings(&self, to: &mut impl Write) -> io::Result<()> {
        let report = self.report;
        let mut table = table(&["savings", "now", "left", "how", ""]);
        words(&mut table, &[3, 4]);
        let (state, available) = match report.hvo.state {
            Hvo::On => ("HVO (on)", "in Linux: huge pages of pools only"),
            Hvo::Off => ("HVO (off)", "vm.hugetlb_optimize_vmemmap=1, for new huge pages"),
            Hvo::Unsupported => ("HVO", "not in this kernel"),
            Hvo::Unknown if report.huge_pages.iter().any(|row| row.optimised.is_some()) => {
                ("HVO", "page flags tell which huge pages are optimised")
            }
            Hvo::Unknown => ("HVO", "nothing tells whether it is on"),
        };
        let how = |interval: &Interval| interval.how.name().to_owned();
        add(
            &mut table,
            [
                state.into(),
                self.range(&report.hvo.saved),
                self.range(&report.hvo.left),
                how(&report.hvo.left),
                available.into(),
            ],
        );
        let of = report.descriptors.bytes;
        let folding = &report.folding;
        for (name, cost, what) in [
            ("folding", &folding.total, "not in Linux today: Pagefold's engine"),
            (
                "folding, memdesc",
                &folding.memdesc.total,
                "not in Linux today: a word a page, an object a folio",
            ),
        ] {
            let saved = Interval {
                min: of.saturating_sub(cost.max),
                max: of.saturating_sub(cost.min),
                ..cost.clone()
            };
            add(&mut table, [name.into(), self.show(0), self.range(&saved), how(&saved), what.into()]);
        }
        if let Some(offline) = report.offline.as_ref().filter(|offline| offline.memory.bytes > 0) {
            add(
                &mut table,
                [
                    "  of it, offline pages".into(),
                    self.show(0),
                    self.show(offline.descriptors.bytes),
                    offline.descriptors.how.name().into(),
                    format!(
                        "{} fake-offline or ballooned, blocks: {}",
                        self.show(offline.memory.bytes),
                        Whole(offline.blocks)
                    ),
                ],
            );
        }
        writeln!(to, "{}\n", fit(&mut table))
    }

    fn other_costs(&self, to: &mut impl Write) -> io::Result<()> {
        let mut table = table(&["other costs by the page", "bytes", "how", "what for"]);
        words(&mut table, &[2, 3]);
        for cost in &self.report.other_costs {
            let (bytes, how) = match &cost.cost {
                Some(interval) => (self.range(interval), interval.how.name()),
                None => ("unknown".into(), ""),
            };
            add(&mut table, [cost.title.to_owned(), bytes, how.to_owned(), cost.note.clone()]);
        }
        writeln!(to, "{}\n", fit(&mut table))
    }

    fn checks(&self, to: &mut impl Write) -> io::Result<()> {
        let checks = &self.report.checks;
        let agreeing = checks.iter().filter(|check| check.agrees).count();
        if checks.is_empty() {
            return Ok(());
        }
        writeln!(to, "cross-checks: {agreeing} of {} agree", checks.len())?;
        for check in checks.iter().filter(|check| !check.agrees) {
            writeln!(
                to,
                "  {}: {} and {}, {} apart",
                check.what,
                self.range(&check.left),
                self.range(&check.right),
                self.show(check.difference)
            )?;
            for line in wrap(&check.note, text_width() - 4).lines() {
                writeln!(to, "    {line}")?;
            }
        }
        Ok(())
    }

    fn gaps(&self, to: &mut impl Write) -> io::Result<()> {
        let gaps = &self.report.gaps;
        if gaps.is_empty() {
            return Ok(());
        }
        writeln!(to, "\nnot read")?;
        const SHOWN: usize = 12;
        for gap in gaps.iter().take(SHOWN) {
            let mark = if gap.kind.is_partial() { "!" } else { " " };
            writeln!(to, "{mark} {} ({}): {}", gap.path, gap.tells, gap.why)?;
        }
        if gaps.len() > SHOWN {
            writeln!(to, "  ... and {} more (--json lists them)", gaps.len() - SHOWN)?;
        }
        Ok(())
    }
}
