//! PCI's line interrupts (INTx): the interrupt handler's share of a device.

use core::ptr::NonNull;

use virtio_drivers::Hal;
use virtio_drivers::transport::InterruptStatus;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PCI_CAP_ID_VNDR, PciRoot};
use virtio_drivers::transport::pci::{VIRTIO_PCI_CAP_ISR_CFG, VirtioPciError};

use crate::virtio::ConfigInterrupt;

/// Where `bar` and `offset` stand in a `virtio_pci_cap` (virtio 1.2, 4.1.4), and the number of BARs.
const CAP_BAR: u8 = 4;
const CAP_OFFSET: u8 = 8;
const BARS: u8 = 6;
/// Capabilities looked at, so that a list that leads in a circle ends. Configuration space has room for no more.
const MOST_CAPABILITIES: usize = 48;

/// The ISR status of a virtio device on PCI, for the handler of its interrupt line.
///
/// A channel owns the device's transport, and an interrupt handler cannot have it at the same time. But a line stays raised
/// until the ISR status has been read, and the first read clears it (virtio 1.2, 4.1.4.5.1). So the handler reads it here,
/// and tells the channel:
///
/// ```
/// use pagefold_virtio_mem::{Intx, VirtioChannel};
/// use virtio_drivers::Hal;
/// use virtio_drivers::transport::pci::PciTransport;
/// use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
///
/// fn connect<H: Hal, C: ConfigurationAccess>(
///     space: &C,
///     root: &mut PciRoot<C>,
///     function: DeviceFunction,
/// ) -> Result<(VirtioChannel<H, PciTransport>, Intx), Box<dyn std::error::Error>> {
///     let intx = Intx::find::<H, C>(space, root, function)?;
///     let channel = VirtioChannel::new(PciTransport::new::<H, C>(root, function)?, u64::MAX)?
///         .with_config_interrupt(intx.config_interrupt());
///     Ok((channel, intx))
/// }
///
/// /// The handler of the line: whether the interrupt was for this device. Then a step of its driver is due.
/// fn interrupted(intx: &Intx) -> bool {
///     !intx.handle().is_empty()
/// }
/// ```
#[derive(Debug)]
pub struct Intx {
    isr: NonNull<u8>,
    changed: ConfigInterrupt,
}

// SAFETY: a device register may be read from any CPU, and a config interrupt may be raised from any.
unsafe impl Send for Intx {}
// SAFETY: as above; each read of the register is one access, and clears it for all.
unsafe impl Sync for Intx {}

impl Intx {
    /// Finds the ISR status of the device at `function`, and maps it by [`Hal::mmio_phys_to_virt`], for good. Its BARs must
    /// have addresses. `space` reads the same configuration space as `root`: a
    /// [clone](ConfigurationAccess::unsafe_clone) of the access that `root` was made of. Call it where
    /// `PciTransport::new` is called; like that it sizes a BAR, for which address decoding is off for a moment.
    ///
    /// Context: takes heap memory, and what `mmio_phys_to_virt` takes.
    ///
    /// # Errors
    /// [`VirtioPciError`]: the device has no such register, or it does not lie in a memory BAR with an address. As with
    /// `PciTransport::new`, correct the host or the assignment of BARs; without this register the device cannot use INTx.
    pub fn find<H: Hal, C: ConfigurationAccess>(
        space: &C,
        root: &mut PciRoot<C>,
        function: DeviceFunction,
    ) -> Result<Self, VirtioPciError> {
        let is_isr = |id, header: u16| id == PCI_CAP_ID_VNDR && (header >> 8) as u8 == VIRTIO_PCI_CAP_ISR_CFG;
        let mut places = root
            .capabilities(function)
            .take(MOST_CAPABILITIES)
            .filter(|capability| is_isr(capability.id, capability.private_header))
            .filter_map(|capability| {
                let bar = space.read_word(function, capability.offset.checked_add(CAP_BAR)?) as u8;
                let offset = space.read_word(function, capability.offset.checked_add(CAP_OFFSET)?);
                // Other numbers of a BAR are reserved: such a capability is to be ignored.
                (bar < BARS).then_some((bar, u64::from(offset)))
            });
        let (bar, offset) = places.next().ok_or(VirtioPciError::MissingIsrConfig)?;
        drop(places);
        let info = root.bar_info(function, bar)?.ok_or(VirtioPciError::BarNotAllocated(bar))?;
        let (address, size) = info.memory_address_size().ok_or(VirtioPciError::UnexpectedIoBar)?;
        if address == 0 {
            return Err(VirtioPciError::BarNotAllocated(bar));
        }
        if offset >= size {
            return Err(VirtioPciError::BarOffsetOutOfRange);
        }
        // SAFETY: one byte of a BAR of the device, by what the PCI bus says.
        let isr = unsafe { H::mmio_phys_to_virt(address + offset, 1) };
        Ok(Self { isr, changed: ConfigInterrupt::default() })
    }

    /// What the handler tells of config changes, for [`VirtioChannel::with_config_interrupt`](crate::VirtioChannel).
    pub fn config_interrupt(&self) -> ConfigInterrupt {
        self.changed.clone()
    }

    /// Reads the ISR status, which clears it and lowers the line, and tells the channel of a config change. Returns what
    /// the device has signalled: nothing if the interrupt was for another device of a shared line.
    ///
    /// Context: any; made for interrupt handlers. One read of a device register.
    pub fn handle(&self) -> InterruptStatus {
        // SAFETY: a mapped register by `find`. The transport has a pointer to it as well, which only `ack_interrupt` uses;
        // that is one read, as this is.
        let status = InterruptStatus::from_bits_truncate(unsafe { self.isr.read_volatile() }.into());
        if status.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            self.changed.raise();
        }
        status
    }
}
