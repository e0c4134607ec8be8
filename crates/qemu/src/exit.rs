//! How QEMU ended.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How QEMU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest turned the machine off or reset it, or QEMU was told to quit.
    Off,
    /// The guest wrote this number, 1 to 127, to the port of [`QemuBuilder::debug_exit`](crate::QemuBuilder::debug_exit).
    Guest(u8),
    /// QEMU gave up: its last lines say why. (A guest that writes 0 to the port looks the same, so none should.)
    Failed(u8),
    /// A signal ended QEMU.
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    /// The debug-exit device ends QEMU with the written number times two plus one (QEMU, `hw/misc/debugexit.c`); of that,
    /// 8 bits are left.
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) => Exit::Off,
            (Some(code), _) if code > 1 && code % 2 == 1 => Exit::Guest((code / 2) as u8),
            (Some(code), _) => Exit::Failed(code as u8),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let exit = |code: i32| Exit::from(ExitStatus::from_raw(code << 8));
        assert_eq!(exit(0), Exit::Off);
        assert_eq!(exit(1), Exit::Failed(1));
        assert_eq!(exit(2), Exit::Failed(2));
        assert_eq!(exit(3), Exit::Guest(1));
        assert_eq!(exit(255), Exit::Guest(127));
        assert_eq!(Exit::from(ExitStatus::from_raw(9)), Exit::Signal(9));
    }
}
