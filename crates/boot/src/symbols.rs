//! Functions' names for the addresses of a dump.

use std::fmt::Write as _;
use std::path::Path;

use addr2line::Context;
use addr2line::gimli::{Dwarf, EndianSlice, NativeEndian, SectionId};
use object::{File, Object, ObjectSection, ObjectSymbol};

/// `dump` of a program, with lines below each that has addresses of code: one for each function that was there. A file
/// without symbols, or none at all, names nothing.
pub fn name_all(program: &Path, dump: &str) -> String {
    let contents = std::fs::read(program).unwrap_or_default();
    let symbols = Symbols::of(&contents);
    let mut named = String::new();
    for line in dump.lines() {
        let _ = writeln!(named, "{line}");
        for (address, is_return) in addresses(line) {
            for place in symbols.iter().flat_map(|symbols| symbols.places(address, is_return)) {
                let _ = writeln!(named, "    {address:#x} {place}");
            }
        }
    }
    named.truncate(named.trim_end().len());
    named
}

/// The functions of a program, as far as its file tells.
struct Symbols<'f> {
    /// What its debug information tells: functions that were inlined, files and lines.
    lines: Option<Context<EndianSlice<'f, NativeEndian>>>,
    /// Where each symbol begins, in the order of addresses.
    begins: Vec<(u64, &'f str)>,
}

impl<'f> Symbols<'f> {
    /// `None`: not a program.
    fn of(contents: &'f [u8]) -> Option<Symbols<'f>> {
        let file = File::parse(contents).ok()?;
        let section = |id: SectionId| {
            let data = file.section_by_name(id.name()).and_then(|section| section.data().ok());
            Ok::<_, addr2line::gimli::Error>(EndianSlice::new(data.unwrap_or_default(), NativeEndian))
        };
        let lines = Dwarf::load(section).and_then(Context::from_dwarf).ok();
        let symbols = file.symbols().chain(file.dynamic_symbols());
        let code = symbols.filter(|symbol| symbol.is_definition());
        let mut begins: Vec<_> =
            code.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?))).collect();
        begins.sort_unstable();
        Some(Symbols { lines, begins })
    }

    /// Where an address is: the function it is in and, where that was inlined, those around it.
    fn places(&self, address: u64, is_return: bool) -> Vec<String> {
        // A return address is behind the call, which may have been the last of its function.
        let inside = address - u64::from(is_return);
        let mut places = Vec::new();
        if let Some(Ok(mut frames)) =
            self.lines.as_ref().map(|lines| lines.find_frames(inside).skip_all_loads())
        {
            while let Ok(Some(frame)) = frames.next() {
                let Some(function) = &frame.function else { continue };
                let name = function.demangle().map(|name| without_hash(&name));
                let mut place = name.map_or_else(|_| "?".into(), |name| without_arguments(&name));
                if let Some(location) = frame.location
                    && let (Some(file), Some(line)) = (location.file, location.line)
                {
                    let _ = write!(place, " ({}:{line})", shortened(file));
                }
                places.push(place);
            }
        }
        if places.is_empty()
            && let Some(symbol) = self.symbol(inside)
        {
            places.push(without_hash(&addr2line::demangle_auto(symbol.into(), None)));
        }
        places
    }

    /// The symbol that begins at an address, or next before it.
    fn symbol(&self, address: u64) -> Option<&'f str> {
        let before = self.begins.partition_point(|&(begins, _)| begins <= address);
        self.begins.get(before.checked_sub(1)?).map(|&(_, name)| name)
    }
}

/// Addresses of code in a line of a dump: where a processor was, and where it came from.
fn addresses(line: &str) -> Vec<(u64, bool)> {
    let hex =
        |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok().filter(|&address| address > 0);
    let mut words = line.split_ascii_whitespace();
    let at = words.find(|&word| ["rip", "pc"].contains(&word)).and_then(|_| words.next()).and_then(hex);
    let from = line.split_once("called from").map_or("", |(_, addresses)| addresses);
    let from = from.split_ascii_whitespace().map_while(hex);
    at.map(|address| (address, false)).into_iter().chain(from.map(|address| (address, true))).collect()
}

/// A path's end: enough to find the file.
fn shortened(file: &str) -> String {
    let parts: Vec<&str> = file.split('/').filter(|part| !part.is_empty()).collect();
    parts[parts.len().saturating_sub(3)..].join("/")
}

/// A Rust function's name without the hash of its crate's version.
fn without_hash(name: &str) -> String {
    match name.rsplit_once("::h") {
        Some((front, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            front.into()
        }
        _ => name.into(),
    }
}

/// A Rust function's name without its generic arguments, which fill lines.
fn without_arguments(name: &str) -> String {
    let (mut short, mut depth, mut before) = (String::new(), 0u32, ' ');
    for c in name.chars() {
        // `<` after a name begins arguments; elsewhere it begins a type, as in `<T as Trait>::function`.
        if c == '<' && (depth > 0 || before == ':' || before.is_alphanumeric() || before == '_') {
            depth += 1;
        } else if c == '>' && depth > 0 && before != '-' {
            depth -= 1;
        } else if depth == 0 {
            short.push(c);
        }
        before = c;
    }
    short.replace("::::", "::").trim_end_matches("::").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_where_a_dump_has_them() {
        assert_eq!(addresses("processor 0  rip 0x0000000000212345  rflags 0x2"), [(0x212345, false)]);
        let line = "  cr2 00000000deadbeef  cr3 1000  called from 0x201000 0x202000";
        assert_eq!(addresses(line), [(0x201000, true), (0x202000, true)]);
        assert_eq!(addresses("processor 1  pc 0x0000000040212345  pstate 0x4"), [(0x40212345, false)]);
        assert_eq!(addresses("  rax 0000000000000001  rip"), []);
        assert_eq!(addresses("a write at 0xffff: called from 0x0"), []);
    }

    #[test]
    fn functions_of_a_program_are_found() {
        // This test's own program is stripped; the C library that it uses exports names.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let library = maps.split_whitespace().find(|word| word.contains("/libc.so")).unwrap();
        let contents = std::fs::read(library).unwrap();
        let symbols = Symbols::of(&contents).unwrap();
        let &(malloc, _) = symbols.begins.iter().find(|(_, name)| *name == "malloc").unwrap();
        let named = name_all(Path::new(library), &format!("rip {:#x}", malloc + 1));
        assert!(named.ends_with("malloc"), "{named}");
        assert_eq!(symbols.symbol(0), None);
        assert_eq!(name_all(Path::new("/nowhere"), "rip 0x201000"), "rip 0x201000");
    }

    #[test]
    fn names_lose_their_arguments() {
        assert_eq!(without_arguments("<a::Map<X, Y<Z>>>::take::<P<Q>>"), "<a::Map>::take");
        assert_eq!(without_arguments("<T as Fn<(usize,)>>::call"), "<T as Fn>::call");
        assert_eq!(without_arguments("a::b::{closure#0}"), "a::b::{closure#0}");
        assert_eq!(without_arguments("a::b::<fn() -> C>::d"), "a::b::d");
    }

    #[test]
    fn names_lose_their_hash() {
        assert_eq!(without_hash("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(without_hash("a::home"), "a::home");
        assert_eq!(shortened("/x/y/crates/engine/src/map.rs"), "engine/src/map.rs");
    }
}
