//! The serial ports: one for people, one for the host.

use core::fmt::{self, Write};

use pagefold_boot_protocol::GuestExit;
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};
use x86_64::instructions::{hlt, interrupts, port::Port};

/// The port for people, and the port for the host.
const PORTS: [u16; 2] = [0x3f8, 0x2f8];
/// QEMU's `isa-debug-exit`.
const EXIT_PORT: u16 = 0xf4;

/// A serial port, if there is one.
pub struct Serial(Option<Uart16550<PioBackend>>);

// SAFETY: a port is a number; who holds the lock around it is the only one who uses it.
unsafe impl Send for Serial {}

impl Serial {
    /// Sends all of `bytes`; nowhere, if there is no port.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Some(uart) = &mut self.0 {
            uart.send_bytes_exact(bytes);
        }
    }

    /// A byte that has arrived.
    pub fn receive(&mut self) -> Option<u8> {
        self.0.as_mut()?.try_receive_byte().ok()
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

/// Opens both ports. A port that is not there swallows what it is sent.
pub fn init() {
    for (serial, port) in [&CONSOLE, &HOST].into_iter().zip(PORTS) {
        // SAFETY: these ports are a PC's serial ports, and nobody but this module uses them.
        let uart = unsafe { Uart16550::new_port(port) }.ok();
        let uart = uart.and_then(|mut uart| uart.init(Config::default()).is_ok().then_some(uart));
        *serial.lock() = Serial(uart);
    }
}

#[doc(hidden)]
pub fn print(text: fmt::Arguments<'_>) {
    // An interrupt handler that wants to print as well would wait for its own processor for ever.
    interrupts::without_interrupts(|| {
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

/// Ends the machine.
pub fn exit(how: GuestExit) -> ! {
    interrupts::disable();
    // SAFETY: the port is QEMU's debug exit device or nothing.
    unsafe { Port::<u32>::new(EXIT_PORT).write(how as u32) };
    // Not QEMU, or not asked for.
    loop {
        hlt();
    }
}
