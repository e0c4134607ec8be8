//! A walker that is interrupted after each of its instructions, by owners that change the page in two steps.
#![cfg(target_arch = "x86_64")]

use std::cell::RefCell;

use pagefold_engine::protocol::Fold;
use pagefold_engine::{Config, Engine, Kind, Layout, Memdesc, Order, Pfn};
use pagefold_linux::{Linux, Membarrier};

type Machine = Engine<Linux<Membarrier, [u64; 6], Fold, Memdesc>>;

thread_local! {
    /// What runs after each instruction.
    static STEP: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

extern "C" fn trapped(_: libc::c_int) {
    STEP.with_borrow_mut(|step| step.as_mut().map(|step| step()));
}

/// Sets or clears the trap flag of this thread: with it the kernel sends SIGTRAP after each instruction. A handler runs without.
fn trap(is_on: bool) {
    // SAFETY: the flag is the only thing that changes; the red zone below the stack pointer is left alone.
    unsafe {
        if is_on {
            core::arch::asm!("sub rsp, 128", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "add rsp, 128");
        } else {
            core::arch::asm!("sub rsp, 128", "pushfq", "and qword ptr [rsp], -257", "popfq", "add rsp, 128");
        }
    }
}

/// Runs `walk`, and `step` after each instruction of it.
fn stepped<T>(step: impl FnMut(), walk: impl FnOnce() -> T) -> T {
    // SAFETY: the box is gone before this returns, and with it everything that `step` borrows.
    let step =
        unsafe { std::mem::transmute::<Box<dyn FnMut() + '_>, Box<dyn FnMut() + 'static>>(Box::new(step)) };
    STEP.set(Some(step));
    // SAFETY: the handler is a function of this program; it runs between two instructions of `walk`, which neither allocates
    // nor holds a lock, so it may do both.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = trapped as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut());
    }
    trap(true);
    let result = walk();
    trap(false);
    STEP.set(None);
    result
}

fn order(order: u32) -> Order {
    Order::new(order).unwrap()
}

#[test]
fn a_second_look_reads_the_class_before_the_word() {
    let host = Linux::new(Membarrier::register().unwrap()).unwrap();
    let mut engine: Machine = Engine::new(host, Config::new(1 << 14)).unwrap();
    engine.online(0..1 << 14).unwrap();
    let walker = engine.walker().unwrap();
    let (pfn, page) = (Pfn(1024), Pfn(2047));
    // Instructions of one look, at most; less once that is known.
    let mut last = 400;
    let mut gaps = 0;
    for first in 0..400 {
        for second in first + 1..=400 {
            if first >= last || second > last {
                continue;
            }
            // Words, written flat, whose class says something else in a moment.
            engine.set_layout(Layout::Flat);
            let mut whole = Some(engine.alloc_at(pfn, order(10), Kind::Anon).unwrap().share());
            engine.set_layout(Layout::Folded);
            let mut batch = engine.fold_batch(2).unwrap();
            let mut pieces = Vec::with_capacity(2);
            let mut instruction = 0;
            let step = || {
                if instruction == first {
                    match whole.take().map(|whole| whole.freeze()) {
                        Some(Ok(frozen)) => {
                            batch.push(frozen).unwrap();
                            let frozen = batch.drain().next().unwrap();
                            pieces.extend(frozen.split(order(9)).unwrap().map(|piece| piece.share()));
                        }
                        // The walker has it.
                        Some(Err(same)) => whole = Some(same),
                        None => {}
                    }
                } else if instruction == second && pieces.len() == 2 {
                    match pieces.pop().map(|piece| piece.freeze()) {
                        Some(Ok(mut frozen)) => {
                            frozen.unfold().unwrap();
                            pieces.push(frozen.share());
                        }
                        Some(Err(same)) => pieces.push(same),
                        None => {}
                    }
                    gaps += 1;
                }
                instruction += 1;
            };
            let got = stepped(step, || walker.try_get(page));
            if let Ok(folio) = &got {
                assert!(folio.contains(page), "after {first} and {second}: {} for {page}", folio.pfn());
            }
            last = last.min(instruction + 20);
            drop((got, whole, pieces));
        }
    }
    assert!(gaps > 100, "{gaps}: the owner never came in between");
    engine.audit().unwrap();
}
