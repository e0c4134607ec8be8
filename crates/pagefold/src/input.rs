//! A machine as people have it: a snapshot, files of `/proc` that somebody pasted, what `lsmem --json` or `page-types -l`
//! prints, a directory or an archive of collected files (sosreport). What it is, it tells itself.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use flate2::read::MultiGzDecoder;
use pagefold_machine::host::lsmem;
use pagefold_machine::host::paste::{self, Pasted};
use pagefold_machine::{Machine, page_types, snapshot};

/// Bytes of text that are read, at most.
const MAX_TEXT: u64 = 1 << 30;
/// Bytes of a file in an archive, and of all of them, that are kept, at most.
const MAX_FILE: u64 = 16 << 20;
const MAX_FILES: u64 = 256 << 20;
/// Bytes at the beginning that tell what it is: a tar archive's first block.
const HEAD: u64 = 512;
/// What some systems put before text.
const MARK: char = '\u{feff}';
/// What an input can be, for those that are none of it.
const KNOWN: &str = "a Pagefold snapshot, files of /proc one after the other (zoneinfo, meminfo), what lsmem --json or \
                     page-types -l prints, or a tar archive of collected files";

/// What was found.
pub enum Input {
    /// Pages, one by one.
    Machine(Machine),
    /// Files of a host.
    Files(Pasted),
    /// A directory with a host's files.
    Root(PathBuf),
}

/// The name that stands for stdin.
pub fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// A word for where it comes from.
pub fn origin(path: &Path) -> String {
    if is_stdin(path) { "standard input".into() } else { path.display().to_string() }
}

/// Reads what is at `path`; `-` is stdin.
///
/// # Errors
/// It cannot be read, or is nothing that is known.
pub fn read(path: &Path) -> Result<Input> {
    if is_stdin(path) {
        return read_from(io::stdin().lock()).context("cannot read standard input");
    }
    let failed = || format!("cannot read {}", path.display());
    if path.is_dir() {
        return directory(path).with_context(failed);
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    read_from(file).with_context(failed)
}

fn read_from(mut from: impl Read) -> Result<Input> {
    let mut head = Vec::new();
    from.by_ref().take(HEAD).read_to_end(&mut head)?;
    let is = |magic: &[u8]| head.starts_with(magic);
    let is_tar = head.get(257..262) == Some(b"ustar");
    let (gzip, xz, zstd, bzip2) = (is(b"\x1f\x8b"), is(b"\xfd7zXZ\0"), is(b"\x28\xb5\x2f\xfd"), is(b"BZh"));
    let snapshot = is(b"\x89PGF");
    let whole = BufReader::new(Cursor::new(head).chain(from));
    if snapshot {
        return Ok(Input::Machine(snapshot::read(whole)?));
    }
    if is_tar {
        return archive(whole);
    }
    if gzip {
        return unpacked(MultiGzDecoder::new(whole));
    }
    if xz {
        return unpacked(lzma_rust2::XzReader::new(whole, true));
    }
    if zstd || bzip2 {
        bail!("it is compressed with {}: unpack it first", if zstd { "zstd" } else { "bzip2" });
    }
    text(whole)
}

/// What was compressed: an archive, which has zero bytes in its first block, or text.
fn unpacked(mut from: impl Read) -> Result<Input> {
    let mut head = Vec::new();
    from.by_ref().take(HEAD).read_to_end(&mut head).context("it is damaged, or cut off")?;
    let is_text = !head.contains(&0);
    let whole = Cursor::new(head).chain(from);
    if is_text { text(whole) } else { archive(whole) }
}

fn text(from: impl Read) -> Result<Input> {
    let mut bytes = Vec::new();
    from.take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_TEXT {
        bail!("it is larger than 1 GiB, so it is not a snapshot");
    }
    let text = characters(&bytes);
    if text.contains('\0') {
        bail!("it is not {KNOWN}");
    }
    if text.trim_start().starts_with('{') {
        return Ok(Input::Files(lsmem::parts(&text)?));
    }
    if page_types::is_listing(&text) {
        return Ok(Input::Machine(page_types::parse(&text)?));
    }
    let files = paste::parts(&text);
    if files.is_empty() {
        bail!("it is not {KNOWN}");
    }
    Ok(Input::Files(files))
}

/// Text as other systems write it: UTF-16 where it says so, without byte order marks.
fn characters(bytes: &[u8]) -> Cow<'_, str> {
    let units = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => units(rest, u16::from_le_bytes).into(),
        [0xfe, 0xff, rest @ ..] => units(rest, u16::from_be_bytes).into(),
        _ => String::from_utf8_lossy(bytes),
    };
    // Files one after the other have one each.
    if text.contains(MARK) { text.replace(MARK, "").into() } else { text }
}

/// A directory: a root, one in it (what a sosreport unpacks to), or files of `/proc` side by side.
fn directory(path: &Path) -> Result<Input> {
    let is_root = |path: &Path| path.join("proc").is_dir();
    if is_root(path) {
        return Ok(Input::Root(path.to_owned()));
    }
    let mut roots = Vec::new();
    for entry in path.read_dir()? {
        let path = entry?.path();
        if is_root(&path) {
            roots.push(path);
        }
    }
    match roots.len() {
        0 => {}
        1 => return Ok(Input::Root(roots.remove(0))),
        several => bail!("it has {several} directories with a directory 'proc' in them: name one"),
    }
    let mut files = Pasted::new();
    for name in ["zoneinfo", "meminfo", "vmstat", "buddyinfo", "cmdline", "version"] {
        let path = path.join(name);
        if path.is_file() {
            let mut bytes = Vec::new();
            File::open(&path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
            files.insert(format!("proc/{name}"), bytes);
        }
    }
    if files.is_empty() {
        bail!("it has neither a directory 'proc' nor files as zoneinfo and meminfo in it");
    }
    Ok(Input::Files(files))
}

/// Files of a host that stand in an archive, whatever directory they are in.
fn archive(from: impl Read) -> Result<Input> {
    let mut archive = tar::Archive::new(from);
    let mut hosts: BTreeMap<String, Pasted> = BTreeMap::new();
    let mut kept = 0;
    for entry in archive.entries().context("it is not a tar archive")? {
        // The cause would quote the bytes.
        let mut entry = entry.map_err(|_| anyhow!("it is not a tar archive, or damaged, or cut off"))?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some((host, path)) = wanted(&path) else { continue };
        // Directories and links have no bytes. (A block is told by its directory too.)
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.by_ref().take(MAX_FILE).read_to_end(&mut bytes).context("the archive is cut off")?;
            kept += bytes.len() as u64;
            if kept > MAX_FILES {
                return Err(anyhow!("its files of /proc and /sys are larger than 256 MiB"));
            }
            hosts.entry(host.to_owned()).or_default().insert(path.to_owned(), bytes);
        }
    }
    match hosts.len() {
        0 => bail!("the archive has no files of /proc or /sys in it"),
        1 => Ok(Input::Files(hosts.into_values().next().unwrap_or_default())),
        several => bail!("the archive has files of {several} hosts in it: unpack it, and name one"),
    }
}

/// What of an archive is kept: the directory that a host's files are in, and the path from there.
fn wanted(path: &str) -> Option<(&str, &str)> {
    const FILES: [&str; 8] = [
        "proc/meminfo",
        "proc/zoneinfo",
        "proc/vmstat",
        "proc/buddyinfo",
        "proc/cmdline",
        "proc/version",
        "sos_commands/kernel/uname_-a",
        "proc/iomem",
    ];
    const BELOW: [&str; 6] = [
        "proc/sys/kernel/",
        "proc/sys/vm/",
        "sys/devices/system/",
        "sys/kernel/mm/hugepages/",
        "sys/module/memory_hotplug/",
        "sys/bus/dax/devices/",
    ];
    let path = path.trim_start_matches("./");
    let starts = std::iter::once(0).chain(path.match_indices('/').map(|(at, _)| at + 1));
    for at in starts {
        let (host, rest) = path.split_at(at);
        // sosreport has memory blocks and nodes, CPUs and much else there.
        let is_other = rest.starts_with("sys/devices/system/")
            && !["memory/", "node/"].iter().any(|dir| rest["sys/devices/system/".len()..].starts_with(dir));
        if FILES.contains(&rest) || BELOW.iter().any(|dir| rest.starts_with(dir)) && !is_other {
            return Some((host, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ZONES: &str =
        "Node 0, zone   Normal\n  pages free     500\n        spanned  4096\n        present  4096\n";

    fn packed(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn files(bytes: &[u8]) -> Result<Pasted, String> {
        match read_from(bytes) {
            Ok(Input::Files(files)) => Ok(files),
            Ok(_) => Err("something else".into()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    #[test]
    fn an_archive_has_a_hosts_files() {
        let plain = packed(&[
            ("sosreport-web7/proc/zoneinfo", ZONES),
            ("sosreport-web7/proc/net/dev", "no"),
            ("sosreport-web7/sys/devices/system/cpu/online", "0-3"),
            ("sosreport-web7/sys/devices/system/memory/memory0/state", "online"),
            ("sosreport-web7/sos_commands/kernel/uname_-a", "Linux web7 6.1.0 #1 x86_64"),
        ]);
        let mut gzip = flate2::read::GzEncoder::new(&plain[..], flate2::Compression::fast());
        let mut packed = Vec::new();
        gzip.read_to_end(&mut packed).unwrap();
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        xz.write_all(&plain).unwrap();
        let xz = xz.finish().unwrap();
        for bytes in [&plain, &packed, &xz] {
            let files = files(bytes).unwrap();
            let names: Vec<_> = files.keys().map(String::as_str).collect();
            assert_eq!(
                names,
                ["proc/zoneinfo", "sos_commands/kernel/uname_-a", "sys/devices/system/memory/memory0/state"]
            );
        }
        let cut = &packed[..packed.len() / 2];
        assert!(files(cut).unwrap_err().contains("cut off"), "{:?}", files(cut));
    }

    #[test]
    fn text_is_read_as_other_systems_write_it() {
        let lines = format!("{ZONES}MemTotal: 16384 kB\n").replace('\n', "\r\n");
        let units = |unit: fn(u16) -> [u8; 2]| {
            let marked = format!("\u{feff}{lines}");
            marked.encode_utf16().flat_map(unit).collect::<Vec<u8>>()
        };
        let mut gzip = flate2::read::GzEncoder::new(lines.as_bytes(), flate2::Compression::fast());
        let mut packed = Vec::new();
        gzip.read_to_end(&mut packed).unwrap();
        let marked = lines.replace("MemTotal", "\u{feff}MemTotal").into_bytes();
        let indented: String = lines.lines().map(|line| format!("    {line}\n")).collect();
        for bytes in [units(u16::to_le_bytes), units(u16::to_be_bytes), packed, marked, indented.into_bytes()]
        {
            let files = files(&bytes).unwrap();
            assert_eq!(files["proc/zoneinfo"], ZONES.as_bytes());
            assert_eq!(files["proc/meminfo"], b"MemTotal: 16384 kB\n");
        }
        let no = files(b"\x1f\x8b\x08\0\0").unwrap_err();
        assert!(no.contains("damaged"), "{no}");
    }

    #[test]
    fn archives_of_no_or_several_hosts_are_refused() {
        let two = packed(&[("a/proc/zoneinfo", ZONES), ("b/proc/zoneinfo", ZONES)]);
        assert!(files(&two).unwrap_err().contains("2 hosts"));
        assert!(files(&packed(&[("README", "x")])).unwrap_err().contains("no files of /proc"));
    }

    #[test]
    fn what_is_nothing_known_says_what_would_be() {
        for bytes in
            [&b""[..], b"hello\n", b"\0\0\0\0", b"BZh9", b"{}", b"\x89PGF", b"\x1f\x8bxx", b"\xfd7zXZ\0"]
        {
            assert!(files(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        assert!(files(b"hello\n").unwrap_err().contains("lsmem"));
        assert_eq!(files(ZONES.as_bytes()).unwrap()["proc/zoneinfo"], ZONES.as_bytes());
    }
}
