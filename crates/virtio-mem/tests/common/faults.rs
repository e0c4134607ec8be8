//! Things that go wrong: heap memory that runs out, answers that are not given, and answers that are not true.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;

use pagefold_virtio_mem::{Channel, ChannelError};
use pagefold_virtio_mem_spec::{ConfigSpace, Features, Request, RequestType, Response};

thread_local! {
    /// Allocations of this thread that still succeed; `None` for all.
    static ALLOCATIONS: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The system's allocator, but for allocations that are to fail.
pub struct Scarce;

// SAFETY: the system's allocator in every respect; a null pointer is what an allocator answers that has no memory.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let left = ALLOCATIONS.try_with(Cell::get).unwrap_or(None);
        match left {
            Some(0) => std::ptr::null_mut(),
            left => {
                let _ = ALLOCATIONS.try_with(|cell| cell.set(left.map(|left| left - 1)));
                // SAFETY: the caller's promise.
                unsafe { System.alloc(layout) }
            }
        }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Runs `f` with only `left` more allocations of this thread.
pub fn with_allocations<T>(left: Option<u32>, f: impl FnOnce() -> T) -> T {
    let before = ALLOCATIONS.replace(left);
    let done = f();
    ALLOCATIONS.set(before);
    done
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device does not get it; the driver reads this type in the answer.
    Instead(u16),
    /// The device does it; the driver reads this type in the answer.
    Afterwards(u16),
    /// The device does not get it, and there is no answer.
    Lost,
    /// The device does it, and the answer is lost.
    Unanswered,
    /// The device does it, and writes half an answer.
    Short,
}

/// Faults to come: one for each request, `None` for those that go well. When they run out everything goes well.
pub type Plan = Rc<Cell<Vec<Option<Fault>>>>;

/// A channel with faults.
pub struct Faulty<C> {
    pub inner: C,
    pub plan: Plan,
}

impl<C: Channel> Channel for Faulty<C> {
    fn features(&self) -> Features {
        self.inner.features()
    }
    fn config(&mut self) -> Result<ConfigSpace, ChannelError> {
        with_allocations(None, || self.inner.config())
    }
    fn config_changed(&mut self) -> bool {
        self.inner.config_changed()
    }
    fn request(&mut self, request: Request) -> Result<Response, ChannelError> {
        with_allocations(None, || {
            let mut plan = self.plan.take();
            let fault = plan.pop().flatten();
            self.plan.set(plan);
            let answer = |kind: u16| Response { kind: kind.into(), ..Response::default() };
            // A lie about the state would not be found out by anyone.
            let is_state = request.kind.get() == RequestType::State as u16;
            match fault {
                None => self.inner.request(request),
                Some(Fault::Instead(0) | Fault::Afterwards(0)) => self.inner.request(request),
                Some(Fault::Instead(kind)) => Ok(answer(kind)),
                Some(Fault::Afterwards(kind)) => {
                    let done = self.inner.request(request)?;
                    // "Not now" and "too much" are believed; a device that says so has done nothing.
                    let is_lie = matches!(kind, 1 | 2) || is_state;
                    Ok(if is_lie { done } else { answer(kind) })
                }
                Some(Fault::Lost) => Err(ChannelError::NoAnswer),
                Some(Fault::Unanswered) => self.inner.request(request).and(Err(ChannelError::NoAnswer)),
                Some(Fault::Short) => self.inner.request(request).and(Err(ChannelError::Short(3))),
            }
        })
    }
}
