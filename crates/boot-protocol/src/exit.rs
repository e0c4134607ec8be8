//! How a guest ends.

/// What a guest writes to QEMU's `isa-debug-exit` device as it ends. QEMU then exits with twice that number and one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GuestExit {
    /// It was asked to stop.
    Stopped = 0x10,
    /// It noticed a broken promise: an invariant of its own, or of the engine.
    Panic = 0x11,
    /// Somebody wrote to a folded descriptor.
    StrayWrite = 0x12,
    /// Somebody looked at a descriptor while its map page was being folded.
    StrayRead = 0x13,
    /// Another exception, which the kernel does not expect.
    Exception = 0x14,
    /// An exception while one was being delivered.
    DoubleFault = 0x15,
    /// A stack ran into its guard page.
    StackOverflow = 0x16,
    /// A processor made no progress.
    Hang = 0x17,
    /// The command line makes no sense.
    Usage = 0x18,
    /// The machine lacks something that the kernel needs.
    Unsupported = 0x19,
    /// The host, which sent [`PULSE`](crate::PULSE)s, sends none any more.
    HostGone = 0x1a,
}

impl GuestExit {
    /// All of them.
    pub const ALL: [GuestExit; 11] = [
        GuestExit::Stopped,
        GuestExit::Panic,
        GuestExit::StrayWrite,
        GuestExit::StrayRead,
        GuestExit::Exception,
        GuestExit::DoubleFault,
        GuestExit::StackOverflow,
        GuestExit::Hang,
        GuestExit::Usage,
        GuestExit::Unsupported,
        GuestExit::HostGone,
    ];

    /// QEMU's exit code for it.
    pub const fn qemu_code(self) -> i32 {
        (self as i32) << 1 | 1
    }

    /// What QEMU's exit code means; `None` if it was not the guest that ended it.
    pub fn from_qemu_code(code: i32) -> Option<GuestExit> {
        Self::ALL.into_iter().find(|exit| exit.qemu_code() == code)
    }

    /// In a few words.
    pub const fn meaning(self) -> &'static str {
        match self {
            GuestExit::Stopped => "it was asked to stop",
            GuestExit::Panic => "the kernel noticed a broken promise and stopped",
            GuestExit::StrayWrite => "somebody wrote to a folded descriptor",
            GuestExit::StrayRead => "somebody looked at a descriptor while it was being folded",
            GuestExit::Exception => "an unexpected exception",
            GuestExit::DoubleFault => "a double fault",
            GuestExit::StackOverflow => "a stack ran into its guard page",
            GuestExit::Hang => "a processor made no progress",
            GuestExit::Usage => "its command line makes no sense",
            GuestExit::Unsupported => "the machine lacks something that the kernel needs",
            GuestExit::HostGone => "the other end of the host's port is gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_odd_apart_and_come_back() {
        for exit in GuestExit::ALL {
            assert_eq!(GuestExit::from_qemu_code(exit.qemu_code()), Some(exit));
        }
        // What QEMU itself exits with.
        assert_eq!((GuestExit::from_qemu_code(0), GuestExit::from_qemu_code(1)), (None, None));
    }
}
