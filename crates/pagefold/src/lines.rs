//! Lines for people: as long as the terminal is wide, and in characters that it can show.

use std::env;
use std::io::{self, Write};
use std::sync::OnceLock;

/// Columns of running text, where nothing says how many there are.
const TEXT: usize = 100;
/// Fewer columns are not taken into account.
const LEAST: usize = 40;

/// Columns of the terminal that stdout is, or of what `COLUMNS` says; `None` where neither says so.
pub fn width() -> Option<usize> {
    static WIDTH: OnceLock<Option<usize>> = OnceLock::new();
    *WIDTH.get_or_init(|| {
        let terminal = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
        let said = || env::var("COLUMNS").ok()?.trim().parse().ok();
        terminal.or_else(said).filter(|&width: &usize| width > 0).map(|width| width.max(LEAST))
    })
}

/// Columns of running text.
pub fn text_width() -> usize {
    width().map_or(TEXT, |width| width.min(TEXT))
}

/// Whether people can read more than ASCII here: what `LC_ALL`, `LC_CTYPE` and `LANG` say, the first of them that is set. If
/// none is, they can.
pub fn is_utf8() -> bool {
    static UTF8: OnceLock<bool> = OnceLock::new();
    *UTF8.get_or_init(|| {
        let names = ["LC_ALL", "LC_CTYPE", "LANG"];
        says_utf8(
            names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty())).as_deref(),
        )
    })
}

fn says_utf8(locale: Option<&str>) -> bool {
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Breaks a paragraph into lines of at most `width` characters.
pub fn wrap(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// Breaks lines that are longer than the terminal is wide. What follows a name and two spaces or more goes on below itself.
pub struct Lines<W: Write> {
    to: W,
    width: Option<usize>,
    line: Vec<u8>,
}

impl<W: Write> Lines<W> {
    /// As wide as the terminal.
    pub fn new(to: W) -> Self {
        Self { to, width: width(), line: Vec::new() }
    }

    fn put(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        match self.width.filter(|&width| text.trim_end_matches('\n').chars().count() > width) {
            None => self.to.write_all(&line),
            Some(width) => writeln!(self.to, "{}", broken(text.trim_end_matches('\n'), width)),
        }
    }
}

/// A line in several, of `width` characters at most where words allow it.
fn broken(line: &str, width: usize) -> String {
    // What begins far to the right cannot go on there.
    let indent = Some(indent(line)).filter(|&indent| indent <= width / 2).unwrap_or(0);
    let (label, rest) = line.split_at(line.char_indices().nth(indent).map_or(0, |(at, _)| at));
    let rest = wrap(rest, width.saturating_sub(indent).max(LEAST / 2));
    let rest = rest.replace('\n', &format!("\n{:indent$}", ""));
    format!("{label}{rest}")
}

/// Where the text begins: behind leading spaces, or behind a name and two spaces or more.
fn indent(line: &str) -> usize {
    let leading = line.chars().take_while(|&c| c == ' ').count();
    let gap = line.char_indices().skip(leading).take(12).find(|&(at, _)| line[at..].starts_with("  "));
    match gap {
        Some((at, _)) if leading < 2 => {
            let name = line[..at].chars().count();
            name + line[at..].chars().take_while(|&c| c == ' ').count()
        }
        _ => leading,
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.put()?;
            }
        }
        Ok(bytes.len())
    }

    /// What has no line's end yet waits for it.
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_say_what_can_be_read() {
        for (locale, utf8) in [
            (None, true),
            (Some("C"), false),
            (Some("POSIX"), false),
            (Some("de_DE.UTF-8"), true),
            (Some("C.utf8"), true),
        ] {
            assert_eq!(says_utf8(locale), utf8, "{locale:?}");
        }
    }

    #[test]
    fn long_lines_go_on_below_their_text() {
        let broken = |text: &str, width| {
            let mut lines = Lines { to: Vec::new(), width, line: Vec::new() };
            write!(lines, "{text}").unwrap();
            String::from_utf8(lines.to).unwrap()
        };
        let long = "machine   one two three four five six seven eight nine ten eleven\nshort\n";
        assert_eq!(broken(long, None), long);
        assert_eq!(
            broken(long, Some(40)),
            "machine   one two three four five six\n          seven eight nine ten eleven\nshort\n"
        );
        assert_eq!(
            broken("  note: one two three four five six seven eight\n", Some(40)),
            "  note: one two three four five six\n  seven eight\n"
        );
        assert_eq!(
            broken("words without a name that are longer than this\n", Some(40)),
            "words without a name that are longer\nthan this\n"
        );
    }

    #[test]
    fn paragraphs_are_wrapped() {
        assert_eq!(wrap("a bb  ccc\ndddd", 5), "a bb\nccc\ndddd");
        assert_eq!(wrap("", 5), "");
        assert_eq!(wrap("longerthanthat a", 5), "longerthanthat\na");
    }
}
