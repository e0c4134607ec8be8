//! The serial ports: one for people, one for the host.

use core::fmt::{self, Write};

use spin::Mutex;

use crate::arch::firmware::Firmware;
use crate::arch::interrupts;
use crate::arch::serial::Port;

/// A serial port, if there is one.
pub struct Serial(Option<Port>);

impl Serial {
    /// Sends all of `bytes`; nowhere, if there is no port.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Some(port) = &mut self.0 {
            port.send(bytes);
        }
    }

    /// A byte that has arrived.
    pub fn receive(&mut self) -> Option<u8> {
        self.0.as_mut()?.receive()
    }
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.send(text.as_bytes());
        Ok(())
    }
}

static CONSOLE: Mutex<Serial> = Mutex::new(Serial(None));
/// The host's port.
pub static HOST: Mutex<Serial> = Mutex::new(Serial(None));

/// Opens the port for people. A port that is not there swallows what it is sent.
pub fn init() {
    *CONSOLE.lock() = Serial(Port::for_people());
}

/// Opens the port for the host, once there are page tables.
pub fn init_host(firmware: &Firmware) {
    *HOST.lock() = Serial(Port::for_host(firmware));
}

/// Prints without the console and its lock, while nothing runs but this.
pub fn print_alone(text: fmt::Arguments<'_>) {
    let _ = Serial(Port::for_people()).write_fmt(text);
}

#[doc(hidden)]
pub fn print(text: fmt::Arguments<'_>) {
    // An interrupt handler that wants to print as well would wait for its own processor for ever.
    interrupts::without(|| {
        let _ = CONSOLE.lock().write_fmt(text);
    });
}

/// A line for people.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints although somebody may hold the console for ever: for dumps, when all else has stopped.
pub fn print_anyway(text: fmt::Arguments<'_>) {
    for _ in 0..1_000_000 {
        if let Some(mut console) = CONSOLE.try_lock() {
            let _ = console.write_fmt(text);
            return;
        }
        core::hint::spin_loop();
    }
    // SAFETY: the holder of the lock has stopped, or is printing; at worst lines mix.
    unsafe { CONSOLE.force_unlock() };
    let _ = CONSOLE.lock().write_fmt(text);
}
