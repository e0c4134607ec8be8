//! The tables that tell what is proved how: made from the list, put into the documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::list::{Binary, Mutant, Verdict};

/// Ways to prove something, as columns of the table, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Means {
    /// A test beside the code.
    Unit,
    /// All interleavings and weak-memory outcomes of a small machine.
    Loom,
    /// A test on the real platform.
    Host,
    /// Random operations beside a plain model.
    Proptest,
    /// Random programs over the public calls.
    Programs,
    /// Many threads, for a while.
    Stress,
    /// A litmus test in the architecture's own memory model.
    Litmus,
    /// Nothing to notice.
    Equivalent,
}

impl Means {
    fn name(self) -> &'static str {
        match self {
            Means::Unit => "unit test",
            Means::Loom => "loom",
            Means::Host => "real platform",
            Means::Proptest => "proptest",
            Means::Programs => "random programs",
            Means::Stress => "stress",
            Means::Litmus => "litmus",
            Means::Equivalent => "equivalent",
        }
    }

    fn of(binary: &Binary) -> Means {
        match (binary.package_and_feature().0, binary.target.as_str()) {
            ("pagefold-model", _) => Means::Loom,
            (_, "lib") => Means::Unit,
            (_, "reference_model") => Means::Proptest,
            (_, "programs" | "random_programs") => Means::Programs,
            (_, "stress") => Means::Stress,
            _ => Means::Host,
        }
    }

    fn of_mutant(mutant: &Mutant) -> Means {
        match &mutant.verdict {
            Verdict::Killed(test) => Means::of(&test.binary),
            Verdict::Equivalent(_) => Means::Equivalent,
            Verdict::Litmus(_) => Means::Litmus,
        }
    }
}

/// Mutants by subject and by what notices them, as a Markdown table.
pub fn by_subject(mutants: &[Mutant]) -> String {
    let mut counts: BTreeMap<(&str, Means), usize> = BTreeMap::new();
    let mut subjects: Vec<&str> = Vec::new();
    for mutant in mutants {
        if !subjects.contains(&mutant.subject.as_str()) {
            subjects.push(&mutant.subject);
        }
        *counts.entry((&mutant.subject, Means::of_mutant(mutant))).or_default() += 1;
    }
    let columns: BTreeSet<Means> = counts.keys().map(|&(_, means)| means).collect();
    let mut table = String::from("| subject | mutants |");
    columns.iter().for_each(|means| _ = write!(table, " {} |", means.name()));
    table.push_str("\n|---|---:|");
    columns.iter().for_each(|_| table.push_str("---:|"));
    table.push('\n');
    let mut row = |name: &str, count: &dyn Fn(Means) -> usize| {
        let all: usize = columns.iter().copied().map(count).sum();
        _ = write!(table, "| {name} | {all} |");
        for &means in &columns {
            match count(means) {
                0 => table.push_str(" |"),
                n => _ = write!(table, " {n} |"),
            }
        }
        table.push('\n');
    };
    for &subject in &subjects {
        row(subject, &|means| counts.get(&(subject, means)).copied().unwrap_or(0));
    }
    row("all", &|means| counts.iter().filter(|((_, by), _)| *by == means).map(|(_, n)| n).sum());
    table
}

/// Mutants that no test can notice, and why, as a Markdown table.
pub fn argued(mutants: &[Mutant]) -> String {
    let mut table = String::from("| mutant | why it is equivalent, or its litmus test |\n|---|---|\n");
    for mutant in mutants {
        let why = match &mutant.verdict {
            Verdict::Killed(_) => continue,
            Verdict::Equivalent(why) => why.clone(),
            Verdict::Litmus(name) => format!("litmus test `{name}`: {}", mutant.breaks),
        };
        _ = writeln!(table, "| `{}` | {} |", mutant.id, why.trim().replace('\n', " ").replace('|', "\\|"));
    }
    table
}

/// Both, as they stand in the documentation.
pub fn documentation(mutants: &[Mutant]) -> String {
    format!("{}\n{}", by_subject(mutants), argued(mutants))
}

/// The markers between which the tables stand.
const BEGIN: &str = "<!-- The tables from here on are made by `pagefold-mutants --docs`. -->\n";
const END: &str = "<!-- Up to here. -->";

/// `text` with the tables between its markers replaced; `None` if it has no markers.
pub fn put_into(text: &str, tables: &str) -> Option<String> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text[begin..].find(END)?;
    Some([&text[..begin], "\n", tables, "\n", &text[end..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "
subject = 'grace periods'
file = 'f'
[[mutant]]
id = 'a'
old = 'a'
new = 'b'
breaks = 'x'
killed-by = 'pagefold-model rcu t'
[[mutant]]
id = 'b'
old = 'a'
new = 'b'
breaks = 'x'
equivalent = 'the sum | is the same'
";

    #[test]
    fn the_tables_count_every_mutant_once() {
        let mutants = crate::list::parse(LIST).unwrap();
        let table = by_subject(&mutants);
        assert!(table.contains("| subject | mutants | loom | equivalent |\n"), "{table}");
        assert!(table.contains("| grace periods | 2 | 1 | 1 |\n"), "{table}");
        assert!(table.ends_with("| all | 2 | 1 | 1 |\n"), "{table}");
        assert!(argued(&mutants).ends_with("| `b` | the sum \\| is the same |\n"));
    }

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let text = format!("before\n{BEGIN}old\n{END}\nafter\n");
        let replaced = put_into(&text, "new\n").unwrap();
        assert_eq!(replaced, format!("before\n{BEGIN}\nnew\n\n{END}\nafter\n"));
        assert_eq!(put_into(&replaced, "new\n").as_ref(), Some(&replaced));
        assert_eq!(put_into("no markers", "new"), None);
    }
}
