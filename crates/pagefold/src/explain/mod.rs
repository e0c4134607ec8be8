//! `pagefold explain`: the ideas behind the numbers, a screenful each.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{deliver, exit};

/// What HVO, fake-offline, memmap_on_memory, folding and the rest are, a screenful each
///
/// Without a topic, lists them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold explain
  pagefold explain hvo
")]
pub struct ExplainArgs {
    /// What to explain
    #[arg(value_name = "TOPIC")]
    pub topic: Option<String>,
}

struct Topic {
    name: &'static str,
    /// Other words for it.
    aliases: &'static [&'static str],
    text: &'static str,
}

macro_rules! topics {
    ($($name:literal: $($alias:literal),*;)*) => {
        &[$(Topic {
            name: $name,
            aliases: &[$($alias),*],
            text: include_str!(concat!("topics/", $name, ".txt")),
        }),*]
    };
}

const TOPICS: &[Topic] = topics! {
    "struct-page": "page", "vmemmap", "memmap", "descriptor", "descriptors", "memory-map";
    "hvo": "hugetlb", "huge-pages", "hugetlb_optimize_vmemmap";
    "fake-offline": "offline", "pageoffline", "virtio-mem", "balloon";
    "memmap_on_memory": "altmap";
    "folding": "fold", "unfold", "map-page", "class";
    "hotplug": "hot-plug", "plug", "memory-block", "blocks";
    "memdesc": "memdescs";
    "counters": "nr_memmap", "measured", "counted", "computed", "how";
};

pub fn run(args: &ExplainArgs) -> Result<ExitCode> {
    let mut stdout = deliver::stdout();
    match &args.topic {
        None => {
            for topic in TOPICS {
                let title = topic.text.lines().next().unwrap_or_default();
                writeln!(stdout, "{:<18}{title}", topic.name)?;
            }
        }
        Some(name) => match find(name) {
            Some(topic) => stdout.write_all(topic.text.as_bytes())?,
            None => {
                let names: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
                let line = format!("no topic '{}'; there are {}", name.escape_debug(), names.join(", "));
                return Err(exit::usage(line));
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Upper and lower case, hyphens and underscores are all the same.
fn find(name: &str) -> Option<&'static Topic> {
    let plain = |text: &str| text.to_lowercase().replace(['_', ' '], "-");
    let wanted = plain(name);
    TOPICS
        .iter()
        .find(|topic| plain(topic.name) == wanted || topic.aliases.iter().any(|alias| plain(alias) == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_a_screenful() {
        for topic in TOPICS {
            assert!(topic.text.lines().count() <= 28, "{}: {}", topic.name, topic.text.lines().count());
            for line in topic.text.lines() {
                assert!(line.chars().count() <= 104, "{}: {line}", topic.name);
            }
        }
    }

    #[test]
    fn topics_are_found_by_other_words() {
        for (word, name) in [
            ("HVO", "hvo"),
            ("vmemmap", "struct-page"),
            ("memmap-on-memory", "memmap_on_memory"),
            ("PageOffline", "fake-offline"),
        ] {
            assert_eq!(find(word).map(|topic| topic.name), Some(name), "{word}");
        }
        assert!(find("").is_none() && find("everything").is_none());
    }

    #[test]
    fn no_word_means_two_topics() {
        let mut words: Vec<&str> =
            TOPICS.iter().flat_map(|topic| topic.aliases.iter().copied().chain([topic.name])).collect();
        let all = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all);
    }
}
