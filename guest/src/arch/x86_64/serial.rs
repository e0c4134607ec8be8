//! Serial ports: a PC's first two.

use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

use super::firmware::Firmware;

/// The port for people, and the port for the host.
const PORTS: [u16; 2] = [0x3f8, 0x2f8];

/// A serial port.
pub struct Port(Uart16550<PioBackend>);

// SAFETY: a port is a number; who holds the lock around it is the only one who uses it.
unsafe impl Send for Port {}

impl Port {
    fn open(number: usize) -> Option<Port> {
        // SAFETY: these ports are a PC's serial ports, and nobody but this module uses them.
        let mut uart = unsafe { Uart16550::new_port(*PORTS.get(number)?) }.ok()?;
        uart.init(Config::default()).is_ok().then_some(Port(uart))
    }

    /// The port for people, from the first moment on.
    pub fn for_people() -> Option<Port> {
        Port::open(0)
    }

    /// The port for the host.
    pub fn for_host(_: &Firmware) -> Option<Port> {
        Port::open(1)
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.send_bytes_exact(bytes);
    }

    /// A byte that has arrived.
    pub fn receive(&mut self) -> Option<u8> {
        self.0.try_receive_byte().ok()
    }
}
