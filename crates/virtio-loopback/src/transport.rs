//! The two ends of a loopback: the driver's transport, and the host's handle of the device.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr, Result};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::arena::Arena;
use crate::device::LoopbackDevice;
use crate::interrupt::InterruptLine;

/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;

/// A device, and what a transport keeps for it. Clones are the same device.
pub struct Loopback<D> {
    pub(crate) shared: Arc<Shared<D>>,
}

pub(crate) struct Shared<D> {
    pub(crate) state: Mutex<State<D>>,
    /// Somebody has rung, or the worker is to stop.
    pub(crate) doorbell: Condvar,
    line: InterruptLine,
}

pub(crate) struct State<D> {
    device: D,
    queues: Vec<Queue>,
    /// Queues whose doorbell was rung and that are not served yet.
    pub(crate) rung: Vec<bool>,
    status: DeviceStatus,
    driver_features: u64,
    connected: bool,
    /// Doorbells wake a thread.
    pub(crate) worker: bool,
    pub(crate) stop: bool,
}

/// The device has a driver already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device is connected to a driver already; drop its transport first")]
pub struct AlreadyConnected;

impl<D> Clone for Loopback<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<D: LoopbackDevice> Loopback<D> {
    /// Puts a device on a loopback.
    pub fn new(device: D) -> Self {
        // A queue that no driver can use has size 0; one of 1 that is never ready does for it.
        let queue = |&size: &u16| Queue::new(size).unwrap_or_default();
        let queues: Vec<_> = device.queue_sizes().iter().map(queue).collect();
        let state = State {
            device,
            rung: vec![false; queues.len()],
            queues,
            status: DeviceStatus::empty(),
            driver_features: 0,
            connected: false,
            worker: false,
            stop: false,
        };
        let (doorbell, line) = (Condvar::new(), InterruptLine::default());
        Self { shared: Arc::new(Shared { state: Mutex::new(state), doorbell, line }) }
    }

    /// The driver's end. A device has one driver at a time; one that is dropped leaves the device reset.
    ///
    /// # Errors
    /// [`AlreadyConnected`].
    pub fn connect(&self) -> std::result::Result<LoopbackTransport<D>, AlreadyConnected> {
        let mut state = self.shared.lock();
        if std::mem::replace(&mut state.connected, true) {
            return Err(AlreadyConnected);
        }
        Ok(LoopbackTransport { shared: Arc::clone(&self.shared) })
    }

    /// Does something with the device, and raises interrupts on its line where that is due. Nothing else happens to the
    /// device meanwhile; do not call into this loopback from inside.
    pub fn with<R>(&self, act: impl FnOnce(&mut D, &InterruptLine) -> R) -> R {
        act(&mut self.shared.lock().device, &self.shared.line)
    }

    /// The device's interrupts.
    pub fn interrupt_line(&self) -> InterruptLine {
        self.shared.line.clone()
    }

    /// Resets device, queues and status, as the driver does by writing status 0, and as a machine does that wakes up.
    pub fn reset(&self) {
        let mut state = self.shared.lock();
        self.shared.reset(&mut state);
    }
}

impl<D: LoopbackDevice> Shared<D> {
    fn reset(&self, state: &mut State<D>) {
        state.device.reset();
        state.queues.iter_mut().for_each(Queue::reset);
        state.rung.fill(false);
        state.status = DeviceStatus::empty();
        state.driver_features = 0;
        self.line.take();
    }

    /// A queue may have something: serves it, or lets the worker do so.
    fn ring(&self, state: &mut State<D>, index: usize) {
        let Some(rung) = state.rung.get_mut(index) else { return };
        if state.worker {
            *rung = true;
            self.doorbell.notify_all();
        } else {
            while self.serve(state, index) {}
        }
    }

    /// Serves a queue for a while. Returns whether more may be waiting.
    pub(crate) fn serve(&self, state: &mut State<D>, index: usize) -> bool {
        let Some(arena) = Arena::get() else { return false };
        let Some(queue) = state.queues.get_mut(index) else { return false };
        let signals = state.device.serve(index as u16, queue, arena.memory());
        if signals.interrupt {
            self.line.raise(InterruptStatus::QUEUE_INTERRUPT);
        }
        if signals.needs_reset {
            self.needs_reset(state);
        }
        signals.more
    }

    fn needs_reset(&self, state: &mut State<D>) {
        state.status |= DeviceStatus::DEVICE_NEEDS_RESET;
        self.line.raise_config();
    }
}

impl<D> Shared<D> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<D>> {
        // A device that panicked is the test's or the program's to judge; status and queues are whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The driver's end of a [`Loopback`]: a modern transport. Dropping it resets the device.
pub struct LoopbackTransport<D: LoopbackDevice> {
    shared: Arc<Shared<D>>,
}

impl<D: LoopbackDevice> LoopbackTransport<D> {
    /// The device's interrupts: to look at and to wait for without the transport.
    pub fn interrupt_line(&self) -> InterruptLine {
        self.shared.line.clone()
    }
}

impl<D: LoopbackDevice> Drop for LoopbackTransport<D> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        self.shared.reset(&mut state);
        state.connected = false;
    }
}

impl<D: LoopbackDevice> Transport for LoopbackTransport<D> {
    fn device_type(&self) -> DeviceType {
        self.shared.lock().device.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.shared.lock().device.offered_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.shared.lock().driver_features = driver_features;
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.shared.lock().device.queue_sizes().get(usize::from(queue)).map_or(0, |&size| size.into())
    }

    fn notify(&mut self, queue: u16) {
        let mut state = self.shared.lock();
        self.shared.ring(&mut state, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        self.shared.lock().status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let state = &mut *self.shared.lock();
        if status.is_empty() {
            self.shared.reset(state);
            return;
        }
        let new = status & !state.status;
        let mut status = status | (state.status & DeviceStatus::DEVICE_NEEDS_RESET);
        if new.contains(DeviceStatus::FEATURES_OK) && !state.device.accept_features(state.driver_features) {
            status.remove(DeviceStatus::FEATURES_OK);
        }
        state.status = status;
        if new.contains(DeviceStatus::DRIVER_OK) && status.contains(DeviceStatus::FEATURES_OK) {
            if !state.device.driver_ready(state.driver_features) {
                self.shared.needs_reset(state);
                return;
            }
            for index in 0..state.queues.len() {
                self.shared.ring(state, index);
            }
        }
    }

    /// Only legacy devices want to know.
    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let state = &mut *self.shared.lock();
        let event_idx = state.driver_features & EVENT_IDX != 0;
        let Some(ring) = state.queues.get_mut(usize::from(queue)) else { return };
        ring.reset();
        let set = || {
            ring.try_set_size(u16::try_from(size).unwrap_or(0))?;
            ring.try_set_desc_table_address(GuestAddress(descriptors))?;
            ring.try_set_avail_ring_address(GuestAddress(driver_area))?;
            ring.try_set_used_ring_address(GuestAddress(device_area))?;
            ring.set_event_idx(event_idx);
            ring.set_ready(true);
            Ok::<_, virtio_queue::Error>(())
        };
        if { set }().is_err() {
            self.shared.needs_reset(state);
        }
    }

    fn queue_unset(&mut self, queue: u16) {
        if let Some(ring) = self.shared.lock().queues.get_mut(usize::from(queue)) {
            ring.reset();
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.shared.lock().queues.get(usize::from(queue)).is_some_and(QueueT::ready)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.shared.line.take()
    }

    fn read_config_generation(&self) -> u32 {
        self.shared.lock().device.config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        let read = self.shared.lock().device.read_config(offset, value.as_mut_bytes());
        if read { Ok(value) } else { Err(Error::ConfigSpaceTooSmall) }
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        let bytes = value.as_bytes();
        let state = &mut *self.shared.lock();
        if !state.device.read_config(offset, &mut vec![0; bytes.len()]) {
            return Err(Error::ConfigSpaceTooSmall);
        }
        state.device.write_config(offset, bytes);
        Ok(())
    }
}
