//! A thread of the device's own.

use std::io;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

use crate::device::LoopbackDevice;
use crate::transport::{Loopback, Shared};

/// The thread that serves a device's queues. Dropping it serves what was rung for, ends the thread, and has doorbells serve
/// at once again.
pub struct Worker {
    stop: Box<dyn Fn() + Send>,
    thread: Option<JoinHandle<()>>,
}

impl<D: LoopbackDevice + 'static> Loopback<D> {
    /// Starts a thread that serves the device's queues from now on.
    ///
    /// # Errors
    /// Where the system has no thread, or the device has a worker already.
    pub fn start_worker(&self) -> io::Result<Worker> {
        {
            let mut state = self.shared.lock();
            if state.worker {
                return Err(io::Error::other("the device has a worker already"));
            }
            (state.worker, state.stop) = (true, false);
        }
        let shared = Arc::clone(&self.shared);
        match thread::Builder::new().name("virtio device".into()).spawn(move || work(&shared)) {
            Ok(thread) => {
                let shared = Arc::clone(&self.shared);
                let stop = move || {
                    shared.lock().stop = true;
                    shared.doorbell.notify_all();
                };
                Ok(Worker { stop: Box::new(stop), thread: Some(thread) })
            }
            Err(error) => {
                self.shared.lock().worker = false;
                Err(error)
            }
        }
    }
}

fn work<D: LoopbackDevice>(shared: &Shared<D>) {
    let mut state = shared.lock();
    loop {
        if let Some(index) = state.rung.iter().position(|rung| *rung) {
            state.rung[index] = shared.serve(&mut state, index);
        } else if state.stop {
            state.worker = false;
            return;
        } else {
            state = shared.doorbell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        (self.stop)();
        if let Some(thread) = self.thread.take() {
            // A device that panicked there has said so on stderr.
            let _ = thread.join();
        }
    }
}
