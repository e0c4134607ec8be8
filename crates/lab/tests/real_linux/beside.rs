//! The rows that a table of guests side by side has of Linux.

use std::time::Duration;

use pagefold_lab::beside::{Account, Linux, ResizeFigures, ResizeOutcome, Source, Step, play};
use pagefold_lab::{GIB, Kernel, MIB};

const PATIENCE: Duration = Duration::from_secs(600);
/// Descriptors of 1 GiB: 262,144 of 64 bytes.
const DESCRIPTORS: u64 = 16 * MIB;

fn linux(kernel: &Kernel) -> Linux {
    let command_line = "memhp_default_state=online_movable init_on_alloc=0 init_on_free=0";
    Linux { command_line: command_line.into(), device: 2 * GIB, ..Linux::new(kernel) }
}

fn settled(row: &ResizeOutcome) -> ResizeFigures {
    row.settled.unwrap()
}

fn account(row: &ResizeOutcome) -> Account {
    row.account.clone().unwrap()
}

/// Two machines that do the same execute the same, but for timers.
pub fn counts_repeat(kernel: &Kernel) {
    let steps = [Step::Resize(GIB), Step::Resize(2 * GIB), Step::Resize(GIB)];
    let [one, two] = [(); 2].map(|()| play(&mut linux(kernel).boot().unwrap(), &steps, PATIENCE).unwrap());
    for (one, two) in one.iter().zip(&two) {
        let [one, two] = [one, two].map(|row| settled(row).executed.instructions as f64 / 1e6);
        assert!((one / two - 1.0).abs() < 0.1, "{one} and {two} million instructions");
    }
    let [plug, again, unplug] = &one[..] else { panic!("{} rows", one.len()) };
    let million = |row: &ResizeOutcome| settled(row).executed.instructions / 1_000_000;
    // Linux writes 262,144 descriptors, and looks at each several times to take them away.
    assert!(million(plug) > 5 && million(unplug) > million(again) * 2, "{one:?}");
    for (row, gib) in one.iter().zip([1, 2, 1]) {
        assert_eq!(settled(row).plugged, gib * GIB);
        assert_eq!(account(row).descriptors, account(plug).descriptors + (gib - 1) * DESCRIPTORS);
        assert_eq!(account(row).total, account(plug).total + (gib - 1) * GIB);
        assert!(account(row).free < account(row).total);
    }
    let counted = if kernel.version() >= (6, 10) { Source::Counted } else { Source::Computed };
    assert_eq!(account(plug).source, counted);
}

/// A pinned page keeps 2 MiB plugged, and the descriptors of its block.
pub fn pins_stay(kernel: &Kernel) {
    let steps = [
        Step::Resize(GIB),
        Step::Pin,
        Step::Resize(0),
        Step::Unpin,
        // The driver tries again at a new request.
        Step::Resize(128 * MIB),
        Step::Resize(0),
    ];
    let mut guest = Linux { pins: true, ..linux(kernel) }.boot().unwrap();
    let rows = play(&mut guest, &steps, PATIENCE).unwrap();
    let [plugged, pinned, _, unpinned] = &rows[..] else { panic!("{} rows", rows.len()) };
    assert_eq!((plugged.pins, pinned.pins, unpinned.pins), (0, 8, 0));
    assert_eq!(settled(pinned).plugged, 8 * 2 * MIB);
    assert_eq!(account(pinned).descriptors, account(plugged).descriptors);
    assert_eq!(settled(unpinned).plugged, 0);
    assert_eq!(account(unpinned).descriptors, account(plugged).descriptors - DESCRIPTORS);
}

/// A machine that panics has a last row that says so.
pub fn a_panic_is_a_row(kernel: &Kernel) {
    let mut guest = linux(kernel).boot().unwrap();
    // As soon as there is one memory block more.
    let blocks = "$(ls -d /sys/devices/system/memory/memory* | wc -l)";
    let panic = format!("while [ {blocks} = $blocks ]; do sleep 0.1; done; echo c >/proc/sysrq-trigger");
    guest.machine().run(&format!("blocks={blocks}; ({panic}) >/dev/null 2>&1 &")).unwrap();
    let rows = play(&mut guest, &[Step::Resize(GIB), Step::Resize(0)], PATIENCE).unwrap();
    assert_eq!(rows.len(), 1);
    let reason = rows[0].account.as_ref().unwrap_err();
    assert!(reason.contains("kernel panic") && reason.contains("sysrq triggered crash"), "{reason}");
}
