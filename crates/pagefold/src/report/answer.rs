//! The report in a paragraph: what it costs, what of it is what, and what would save it.

use pagefold_machine::host::{Hvo, PageSizeFrom};

use super::model::How;
use super::print::Printer;

impl Printer<'_> {
    /// The paragraph on top.
    pub(super) fn answer(&self) -> String {
        let report = self.report;
        let (bytes, memory) = (report.descriptors.bytes, report.memory.bytes);
        // If the kernel's count does not say, arithmetic leaves it open.
        let cost = match (report.descriptors.how, &report.descriptors_computed) {
            (How::Computed, computed) if !computed.is_exact() => self.range_in_words(computed),
            _ => self.words(bytes),
        };
        let mut text =
            format!("Page metadata costs {cost} of {} ({}) here.", self.words(memory), self.share(bytes));
        text.push_str(&self.certainty());
        text.push_str(&self.excess_answer());
        text.push_str(&self.hvo_answer());
        let folding = &report.folding;
        let left = self.share(folding.total.max);
        if folding.total.is_exact() {
            text.push_str(&format!(
                " Folding would leave {} ({left}), tables included; `pagefold replay` does it and measures.",
                self.words(folding.total.max)
            ));
        } else {
            text.push_str(&format!(
                " Folding would leave at most {} ({left}), tables included; every page's state tells how much exactly.",
                self.words(folding.total.max)
            ));
        }
        text
    }

    /// What all figures rest on, if that is not sure.
    fn certainty(&self) -> String {
        let machine = &self.report.machine;
        let is_page_assumed = machine.page_size_from == PageSizeFrom::Assumed;
        let is_descriptor_assumed =
            !machine.descriptor_size_known && (machine.arch.is_empty() || machine.descriptor_size < 64);
        let page = format!("pages of {}", self.units.size(machine.page_size));
        let descriptor = format!("descriptors of {} bytes", machine.descriptor_size);
        match (is_page_assumed, is_descriptor_assumed) {
            (false, false) => String::new(),
            (true, false) => format!(" This rests on {page}, which nothing here tells."),
            (false, true) => format!(" This rests on {descriptor}, which nothing here tells."),
            (true, true) => format!(" This rests on {page} and {descriptor}, which nothing here tells."),
        }
    }

    /// What of it is something else than descriptors of memory, and what stays open.
    fn excess_answer(&self) -> String {
        let report = self.report;
        let excess = &report.descriptors_excess;
        let parts = [
            (&excess.page_ext, "are page extensions (page_ext)"),
            (&excess.device, "are descriptors of device memory"),
            (&excess.unexplained, "are unexplained: the kernel counts them, arithmetic does not"),
        ];
        let mut text = String::new();
        for (part, what) in parts.into_iter().filter(|(part, _)| part.max > 0) {
            text.push_str(&format!(" {} of it {what}.", self.range_in_words(part)));
        }
        if let Some(counted) =
            report.descriptors_counted.as_ref().filter(|_| report.descriptors.how == How::Computed)
        {
            let computed = &report.descriptors_computed;
            text.push_str(&format!(
                " The kernel counts {}, {} less, which is unexplained.",
                self.words(counted.bytes),
                self.words(computed.min.saturating_sub(counted.bytes))
            ));
        }
        text
    }

    fn hvo_answer(&self) -> String {
        let hvo = &self.report.hvo;
        let by_flags = self.report.huge_pages.iter().any(|row| row.optimised.is_some());
        let has_huge_pages = self.report.huge_pages.iter().any(|row| row.pages > 0);
        if hvo.state == Hvo::Unsupported && hvo.saved.max == 0 && has_huge_pages {
            return " This kernel has no HVO.".into();
        }
        if hvo.saved.max == 0 && hvo.left.max == 0 {
            return " There are no huge pages that HVO could save on.".into();
        }
        if hvo.state == Hvo::Unknown && !hvo.saved.is_exact() {
            return format!(
                " HVO can save {} on the huge pages there are, if this kernel has it; nothing tells how much it saves \
                 already.",
                self.words(hvo.saved.max.max(hvo.left.max))
            );
        }
        let saved = match (hvo.state, hvo.saved.max) {
            (Hvo::Off | Hvo::Unsupported | Hvo::Unknown, 0) => String::new(),
            _ => format!(" HVO saves {} of it now.", self.range_in_words(&hvo.saved)),
        };
        let left = match (hvo.state, hvo.left.max) {
            (_, 0) => String::new(),
            (Hvo::On, _) => format!(" Up to {} are left for it to save.", self.words(hvo.left.max)),
            (Hvo::Off, max) => {
                let more = if hvo.saved.max > 0 { " more" } else { "" };
                format!(" HVO is off and would save {}{more}.", self.words(max))
            }
            (Hvo::Unsupported, _) => String::new(),
            (Hvo::Unknown, max) => {
                let more = if hvo.saved.max > 0 { " more" } else { "" };
                let condition = if by_flags { "" } else { ", if this kernel has it" };
                format!(" HVO would save {}{more}{condition}.", self.words(max))
            }
        };
        format!("{saved}{left}")
    }
}
