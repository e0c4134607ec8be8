//! What the command shows of a guest.

use std::io::Write;
use std::process::{Command, Stdio};

use pagefold_lab::Arch;
use serde_json::Value;

use crate::Pagefold;
use crate::ends::ends;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a command came to.
pub struct Came {
    pub code: i32,
    pub json: Value,
    pub stderr: String,
}

impl Pagefold {
    /// `pagefold boot --json` with more, and lines for it to read.
    pub fn boot(&self, arguments: &str, script: &str) -> Came {
        let mut child = Command::new(&self.program)
            .args(["boot", "--json", "--arch", self.arch.name()])
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr).into_owned());
        let json = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        Came { code: output.status.code().unwrap(), json, stderr }
    }

    /// The same, which goes well.
    pub fn boots(&self, arguments: &str, script: &str) -> Value {
        let Came { code, json, stderr } = self.boot(arguments, script);
        assert_eq!(code, 0, "{arguments}: {stderr}\n{}\n{}", json["broken"], json["ending"]["dump"]);
        assert_eq!(json["ending"]["how"], "stopped");
        assert_eq!(json["broken"].as_array().unwrap().len(), 0);
        json
    }
}

/// Row `number` of a result.
pub fn row(json: &Value, number: usize) -> &Value {
    let row = &json["rows"][number];
    assert!(row.is_object(), "there is no row {number}: {}", json["rows"]);
    row
}

/// The number at a path.
pub fn number(value: &Value, path: &str) -> u64 {
    let found = path.split('.').fold(value, |value, key| match key.parse::<usize>() {
        Ok(at) => &value[at],
        Err(_) => &value[key],
    });
    found.as_u64().unwrap_or_else(|| panic!("no number at {path}: {value}"))
}

/// Bytes of all metadata, as the page tables have it.
pub fn metadata(row: &Value) -> u64 {
    let tables = row["report"]["tables"].as_array().unwrap();
    tables.iter().map(|table| number(table, "measured")).sum::<u64>() + number(row, "report.page_tables")
}

/// Bytes of the memory map, as the page tables have it.
fn map(row: &Value) -> u64 {
    let tables = row["report"]["tables"].as_array().unwrap();
    number(tables.iter().find(|table| table["name"] == "Map").unwrap(), "measured")
}

pub fn grows_a_thousandfold(pagefold: &Pagefold) {
    let json = pagefold.boots("--memory 64M --cpus 2 --device 64G --resize 64G,0 --touch", "");
    let grown = row(&json, 1);
    assert_eq!(number(grown, "report.memory.plugged"), 64 * GIB);
    assert_eq!(number(grown, "report.memory.blocks"), 512);
    // Nothing of the new memory is used: no descriptor, and the tables of 64 GiB in less than half a MiB.
    assert_eq!(map(grown), 0);
    assert!(metadata(grown) < MIB / 2, "{}", metadata(grown));
    // 2 MiB of every block.
    let touched = row(&json, 2);
    assert!(number(touched, "touched") >= GIB, "{}", touched["touched"]);
    assert!(metadata(touched) < 8 * MIB, "{}", metadata(touched));
    let shrunk = row(&json, 3);
    assert_eq!(number(shrunk, "report.memory.plugged"), 0);
}

/// Ten thousand folios folded and unfolded under walkers.
pub const CYCLES: &str = "--memory 128M --cpus 4 --walkers 4 --device 1G --resize 256M --cycle 10000";

pub fn cycles_lose_nothing(pagefold: &Pagefold) {
    let json = pagefold.boots(CYCLES, "");
    let cycled = row(&json, 2);
    assert!(number(cycled, "cycles.folded") >= 7 * 10_000 * 9 / 10);
    // Walkers ask for the class: nobody has looked at what is unfolded.
    nothing_is_lost_in_cycles(cycled);
}

/// What [`CYCLES`] must come to, on any architecture.
pub fn nothing_is_lost_in_cycles(cycled: &Value) {
    assert!(number(cycled, "cycles.cycles") >= 10_000);
    assert_eq!((number(cycled, "cycles.lost_frames"), number(cycled, "cycles.no_memory")), (0, 0));
    assert!(number(cycled, "cycles.looks") > 0 && number(cycled, "report.walks.gets") > 0);
    let (flushed, spared) =
        (number(cycled, "report.flushes.unfolds"), number(cycled, "report.flushes.spared"));
    assert!(flushed < 100 && spared >= 10_000, "{flushed} {spared}");
    // One flush a round, whatever it folds.
    assert!(number(cycled, "report.flushes.folds") <= number(cycled, "cycles.rounds") + 10);
}

pub fn memdesc_loses_nothing(pagefold: &Pagefold) {
    let arguments = "--memory 128M --cpus 4 --walkers 4 --owners 4 --device 4G --resize 1G --cycle 2000 \
                     --descriptors memdesc";
    let json = pagefold.boots(arguments, "");
    assert_eq!(json["descriptors"], "memdesc");
    let cycled = row(&json, 2);
    // Of a folio of 2 MiB the one map page of its words folds, and its object stays.
    assert!(number(cycled, "cycles.cycles") >= 2000 && number(cycled, "cycles.folded") >= 2000 * 9 / 10);
    assert_eq!((number(cycled, "cycles.lost_frames"), number(cycled, "report.walks.violations")), (0, 0));
    assert!(number(cycled, "report.walks.gets") > 0);
    let tables = cycled["report"]["tables"].as_array().unwrap();
    let objects = tables.iter().find(|table| table["name"] == "Objects").unwrap();
    assert!(number(objects, "counted") > 0 && objects["counted"] == objects["measured"], "{objects}");
}

pub fn the_bug_traps(pagefold: &Pagefold) {
    let arguments = "--memory 128M --cpus 4 --walkers 8 --device 1G --resize 256M --cycle 1000000 \
                     --protocol no-grace-period";
    let registers = match pagefold.arch {
        Arch::X86_64 => "processor 3  rip",
        Arch::Aarch64 => "processor 3  pc",
    };
    let (how, dump) = ends(pagefold, arguments);
    assert!(["stray-write", "stray-read"].contains(&&*how), "{how}: {dump}");
    // Which page, which class, where: and how every processor stood, with names.
    for word in ["pfn 0x", "map page 0x", "class ", "on processor ", registers, "pagefold_engine"] {
        assert!(dump.contains(word), "no '{word}' in\n{dump}");
    }
}

pub fn pins_stay(pagefold: &Pagefold) {
    let json = pagefold.boots(
        "--memory 256M --cpus 2 --walkers 4 --device 8G --resize 4G,0 \
         --work page-cache=256M,orders=0:0.3+4:0.3+9:0.4,fragmentation=0.3,touch --work pinned=128K",
        "",
    );
    let (grown, populated, shrunk) = (row(&json, 1), row(&json, 2), row(&json, 3));
    assert_eq!(number(grown, "report.memory.plugged"), 4 * GIB);
    // Parts of it are whole folios.
    assert!(number(populated, "report.folios.bytes") >= 250 * MIB);
    // 32 pinned pages, one a block: 2 MiB stay of each such block, and what they do not need goes.
    let left = number(shrunk, "report.memory.plugged");
    assert!(left > 0, "the pinned pages hold something");
    // The page cache has to be somewhere: with the boot memory there is room for it.
    assert!(left <= 4 * GIB / 10, "{left} of 4 GiB stay plugged: {}", shrunk["short"]);
    assert_eq!(number(shrunk, "report.folios.lost"), 0);
    assert!(shrunk["short"].as_str().unwrap().contains("pinned"), "{}", shrunk["short"]);
    // Linux keeps 2 MiB of descriptors for every block that stays.
    let blocks = number(shrunk, "report.memory.partial_blocks");
    assert!(blocks > 0 && map(shrunk) < number(shrunk, "report.memory.described") / 64);
}

pub fn processors_come_up(pagefold: &Pagefold) {
    for cpus in [1, 2, 3, 8] {
        let json = pagefold
            .boots(&format!("--memory 128M --cpus {cpus} --device 1G --resize 512M,0 --owners 2"), "");
        assert_eq!(number(&json, "hello.cpus"), cpus);
    }
}

pub fn several_devices(pagefold: &Pagefold) {
    let json = pagefold
        .boots("--memory 256M --cpus 2 --device 4G --device 4G,node=1 --resize 0:1G+1:2G,0:0+1:64M,1:0", "");
    assert_eq!(number(&json, "hello.cpus"), 2);
    assert!(number(&json, "hello.boot_memory") <= 256 * MIB);
    let hello = &json["hello"]["devices"];
    assert_eq!((number(hello, "0.node"), number(hello, "1.node")), (0, 1));
    assert_eq!(number(row(&json, 1), "report.memory.plugged"), 3 * GIB);
    assert_eq!(number(row(&json, 2), "report.memory.plugged"), 64 * MIB);
    assert_eq!(number(row(&json, 2), "report.memory.partial_blocks"), 1);
    for arguments in ["--device 8G,block=256M", "--device 8G --big-blocks"] {
        let json = pagefold.boots(&format!("--memory 128M --cpus 2 {arguments} --resize 2G,512M,0"), "");
        assert_eq!(json["hello"]["devices"][0]["is_big"], true);
        let sizes: Vec<_> = (1..4).map(|at| number(row(&json, at), "report.memory.plugged")).collect();
        assert_eq!(sizes, [2 * GIB, 512 * MIB, 0]);
    }
}

pub fn pages_are_those_of_any_machine(pagefold: &Pagefold) {
    let dir = tempfile::tempdir().unwrap();
    let (pages, picture) = (dir.path().join("guest.pgf"), dir.path().join("guest.svg"));
    let (pages, picture) = (pages.to_str().unwrap(), picture.to_str().unwrap());
    let json = pagefold.boots(
        &format!(
            "--memory 128M --cpus 2 --device 1G --resize 512M --work page-cache=64M,touch --work hugetlb=64M \
             --snapshot {pages}"
        ),
        "",
    );
    let row = row(&json, 2);
    let run = |arguments: &[&str]| {
        let output = Command::new(&pagefold.program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    run(&["map", pages, "--svg", picture]);
    assert!(std::fs::read_to_string(picture).unwrap().contains("</svg>"));
    let cells: Value = serde_json::from_slice(&run(&["map", pages, "--json"])).unwrap();
    let of = |name: &str| -> u64 {
        let categories = cells["categories"].as_array().unwrap();
        let found = categories.iter().filter(|category| category["name"].as_str().unwrap().contains(name));
        found.map(|category| number(category, "pages")).sum()
    };
    assert_eq!(of("hugetlb") * 4096, 64 * MIB, "{cells}");
    assert_eq!(of("page cache") * 4096, 64 * MIB, "{cells}");
    // What folding leaves by the rules is what the guest's page tables have.
    let replayed: Value =
        serde_json::from_slice(&run(&["replay", "--snapshot", pages, "--seconds", "0", "--json"])).unwrap();
    let (have, left) = (map(row), number(&replayed, "folded.map.counted"));
    assert!(have.abs_diff(left) <= have / 8 + 64 * 4096, "{have} bytes in the guest, {left} by a replay");
}

pub fn scripts(pagefold: &Pagefold) {
    let script =
        "# grows\nresize 512M\npopulate\n\nfree 50%\npin 10%\naudit\ncycle 100\nlive 0.1\nresize 0\nstop\n";
    let json = pagefold
        .boots("--memory 128M --cpus 2 --device 1G --work page-cache=32M,touch --interactive", script);
    let steps: Vec<_> =
        json["rows"].as_array().unwrap().iter().map(|row| row["step"].as_str().unwrap()).collect();
    let wanted = [
        "boot",
        "vmem0 512 MiB",
        "populate",
        "free 50.0 %",
        "pin 10.0 %",
        "cycle 100",
        "live 0.1 s",
        "vmem0 0 B",
    ];
    assert_eq!(steps, wanted);
    let held = |at| number(row(&json, at), "report.folios.held");
    assert_eq!((held(2), held(3)), (8192, 4096));
    let Came { code, json, stderr } =
        pagefold.boot("--memory 128M --cpus 1 --interactive", "resize 1G\ndance\n");
    assert_eq!((code, json["rows"].as_array().unwrap().len()), (2, 2));
    assert_eq!(stderr.trim(), "pagefold: 'dance' is none of the commands; 'help' lists them");
}
