//! Message-signalled interrupts (MSI-X) of virtio devices: a device writes a number to an address when its configuration
//! changes, and an interrupt of its own comes. Where the architecture has addresses for that and the device takes them; all
//! others are on PCI's lines.

use core::ptr::NonNull;

use virtio_drivers::transport::pci::bus::{
    ConfigurationAccess, DeviceFunction, MmioCam, PCI_CAP_ID_VNDR, PciRoot,
};
use virtio_drivers::transport::pci::{PciTransport, VIRTIO_PCI_CAP_COMMON_CFG};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::arch::messages;
use crate::paging;

/// The capability of MSI-X (PCI 3.0, 6.8.2); where its control word, and its table's place, stand.
const MSIX: u8 = 0x11;
const ENABLE: u32 = 1 << 31;
const MASK_ALL: u32 = 1 << 30;
const TABLE: u8 = 4;
/// Where `bar` and `offset` stand in a `virtio_pci_cap` (virtio 1.2, 4.1.4).
const CAP_BAR: u8 = 4;
const CAP_OFFSET: u8 = 8;
/// `config_msix_vector` in the common configuration (virtio 1.2, 4.1.4.3).
const CONFIG_VECTOR: u64 = 16;
const BARS: u8 = 6;
/// Capabilities looked at, so that a list that leads in a circle ends.
const MOST_CAPABILITIES: usize = 48;

/// A device's register that says which vector its configuration interrupt is.
#[derive(Clone, Copy, Debug)]
pub struct Vector(NonNull<u16>);

// SAFETY: the address of a register; who has the device's transport is the only one who uses it.
unsafe impl Send for Vector {}
// SAFETY: as above.
unsafe impl Sync for Vector {}

impl Vector {
    /// Says that it is vector 0. Whether the device has taken it.
    fn set(self) -> bool {
        // SAFETY: a register of the device, mapped by `enable`.
        unsafe {
            self.0.write_volatile(0);
            self.0.read_volatile() == 0
        }
    }
}

/// Has the device `number` send messages: its first vector, to this processor. `None` where it has no MSI-X, or messages reach
/// nobody here; it is on its line then. Its BARs have addresses.
pub fn enable(
    space: &mut MmioCam<'_>,
    root: &mut PciRoot<MmioCam<'_>>,
    function: DeviceFunction,
    number: u8,
) -> Option<Vector> {
    let capabilities = || root.capabilities(function).take(MOST_CAPABILITIES);
    let msix = capabilities().find(|capability| capability.id == MSIX)?.offset;
    let is_common =
        |id, header: u16| id == PCI_CAP_ID_VNDR && (header >> 8) as u8 == VIRTIO_PCI_CAP_COMMON_CFG;
    let common = capabilities().find(|it| is_common(it.id, it.private_header))?.offset;

    let table = space.read_word(function, msix.checked_add(TABLE)?);
    let (bar, offset) = (
        space.read_word(function, common.checked_add(CAP_BAR)?) as u8,
        space.read_word(function, common.checked_add(CAP_OFFSET)?),
    );
    // An entry has 16 bytes.
    let table = map(root, function, (table & 7) as u8, u64::from(table & !7), 16)? as *mut u32;
    let vector = map(root, function, bar, u64::from(offset) + CONFIG_VECTOR, 2)? as *mut u16;

    let (address, data) = messages::of(function, number)?;
    let control = space.read_word(function, msix);
    space.write_word(function, msix, control | ENABLE | MASK_ALL);
    // SAFETY: the table's first entry, mapped for this: an address in two words, what is written there, and not masked.
    unsafe {
        table.write_volatile(address as u32);
        table.add(1).write_volatile((address >> 32) as u32);
        table.add(2).write_volatile(data);
        table.add(3).write_volatile(0);
    }
    space.write_word(function, msix, (control | ENABLE) & !MASK_ALL);
    Some(Vector(NonNull::new(vector)?))
}

/// Maps some bytes of a BAR.
fn map(
    root: &mut PciRoot<MmioCam<'_>>,
    function: DeviceFunction,
    bar: u8,
    offset: u64,
    bytes: u64,
) -> Option<u64> {
    let info = if bar < BARS { root.bar_info(function, bar).ok()?? } else { return None };
    let (address, size) = info.memory_address_size()?;
    let is_inside = address != 0 && offset.checked_add(bytes)? <= size;
    is_inside.then(|| paging::map_device(address.checked_add(offset)?, bytes).ok())?
}

/// A device's transport, which says anew after each reset which vector is which: a reset forgets it.
pub struct Messaged {
    inner: PciTransport,
    vector: Option<Vector>,
}

impl Messaged {
    /// Without a vector, the transport as it is.
    pub fn new(inner: PciTransport, vector: Option<Vector>) -> Self {
        Self { inner, vector }
    }
}

impl Transport for Messaged {
    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.inner.write_driver_features(features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.inner.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        // Before the device is alive: it would send no message until then.
        if let Some(vector) = self.vector.filter(|_| status.contains(DeviceStatus::DRIVER_OK))
            && !vector.set()
        {
            say!("virtio-mem: a device has no vector for changes of its configuration");
        }
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, bytes: u32) {
        self.inner.set_guest_page_size(bytes);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.inner.queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.inner.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.inner.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        self.inner.write_config_space(offset, value)
    }
}
