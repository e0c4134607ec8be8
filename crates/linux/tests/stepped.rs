//! A walker that is interrupted after each of its instructions, by owners that change the page in two steps.
#![cfg(target_arch = "x86_64")]

mod common;

use std::cell::RefCell;

use common::{MachineOf, machine_of, order};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Descriptors, Folio, Frozen, Kind, Layout, Memdesc, Order, Page64, Pfn};
use pagefold_linux::{Linux, Membarrier};

type Shared<'e, D> = Folio<'e, Linux<Membarrier, [u64; 6], Fold, D>>;
type Owned<'e, D> = Frozen<'e, Linux<Membarrier, [u64; 6], Fold, D>>;

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

fn machine<D: Descriptors>() -> MachineOf<D> {
    machine_of(1 << 14)
}

#[test]
fn words_that_are_old_under_a_tails_class_are_not_believed() {
    let engine = machine::<Memdesc>();
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

/// Instructions of one look, at most; less once that is known.
const LOOK: usize = 600;

/// The folio goes, and its descriptor may be another folio's, at every instruction of a look. It is frozen until an instruction
/// `thaws` of that look: late enough, and the look has to begin again, with what it finds then.
fn goes_under_a_walker<D: Descriptors>(size: Order, other: Pfn, thaws: usize) -> [u64; 2] {
    let engine = machine::<D>();
    let walker = engine.walker().unwrap();
    let (pfn, page) = (Pfn(1024), Pfn(1024 + size.pages() - 1));
    let mut last = LOOK;
    let mut found = [0, 0];
    for at in thaws..LOOK {
        if at >= last {
            break;
        }
        let mut frozen = Some(engine.alloc_at(pfn, size, Kind::Anon).unwrap());
        let mut whole: Option<Shared<'_, D>> = None;
        let mut stranger = None;
        let mut instruction = 0;
        let mut step = || {
            if instruction == thaws {
                whole = frozen.take().map(Frozen::share);
            }
            if instruction == at {
                drop(whole.take());
                // The same size and as many references: the state is the same as the walker may have read.
                stranger = Some(engine.alloc_at(other, size, Kind::Anon).unwrap().share());
            }
            instruction += 1;
        };
        // Before the look's first instruction.
        step();
        let got = stepped(&mut step, || walker.try_get(page));
        if got.is_ok() {
            last = last.min(instruction);
        }
        found[usize::from(got.is_ok())] += 1;
        if let Ok(folio) = &got {
            assert!(folio.contains(page), "{thaws}, {at}: {} for {page}", folio.pfn());
        }
        assert_eq!(stranger.as_ref().map_or(1, |folio| folio.refs()), 1, "{thaws}, {at}");
    }
    engine.audit().unwrap();
    found
}

#[test]
fn a_folio_that_goes_is_not_mistaken_for_another() {
    for (size, other) in [(0, 1025), (0, 4096), (3, 1032), (3, 4096), (9, 1536), (10, 4096)] {
        let found = [
            goes_under_a_walker::<Memdesc>(order(size), Pfn(other), 0),
            goes_under_a_walker::<Page64>(order(size), Pfn(other), 0),
        ];
        assert!(
            found.as_flattened().iter().all(|&looks| looks > 0),
            "{found:?}: the owner never came in between"
        );
    }
}

#[test]
fn nor_is_it_by_a_look_that_begins_again() {
    let mut found = [0, 0];
    for thaws in (20..120).step_by(5) {
        found[0] += goes_under_a_walker::<Page64>(Order::ZERO, Pfn(4096), thaws)[1];
        found[1] += goes_under_a_walker::<Memdesc>(Order::ZERO, Pfn(4096), thaws)[1];
    }
    assert!(found.iter().all(|&looks| looks > 0), "{found:?}: nothing thawed in time");
}

fn split<'e, D: Descriptors>(whole: Shared<'e, D>, to: Order) -> Result<Vec<Shared<'e, D>>, Shared<'e, D>> {
    Ok(whole.freeze()?.split(to).unwrap().map(|piece| piece.share()).collect())
}

/// The page's folio is split at one of a look's instructions, and whole again at another.
fn is_reshaped_under_a_walker<D: Descriptors>(whole: Order, to: Order, layout: Layout) {
    let engine = machine::<D>();
    engine.set_layout(layout);
    let walker = engine.walker().unwrap();
    let (pfn, page) = (Pfn(1024), Pfn(1024 + whole.pages() - 1));
    let mut last = LOOK;
    let (mut both, mut found) = (0, 0);
    for first in (0..LOOK).step_by(5) {
        for second in (first + 1..=LOOK).step_by(4) {
            if first >= last || second > last {
                continue;
            }
            let mut held = vec![engine.alloc_at(pfn, whole, Kind::Anon).unwrap().share()];
            let mut instruction = 0;
            let step = || {
                if instruction == first && held.len() == 1 {
                    match split(held.pop().unwrap(), to) {
                        Ok(pieces) => held = pieces,
                        // The walker has it.
                        Err(same) => held.push(same),
                    }
                } else if instruction == second && held.len() > 1 {
                    let pieces: Vec<Result<Owned<'_, D>, Shared<'_, D>>> =
                        held.drain(..).map(Folio::freeze).collect();
                    if pieces.iter().all(Result::is_ok) {
                        let pieces = pieces.into_iter().flatten().collect::<Vec<_>>();
                        held.push(Frozen::collapse(pieces).ok().unwrap().share());
                        both += 1;
                    } else {
                        held.extend(
                            pieces.into_iter().map(|piece| piece.map_or_else(|same| same, Frozen::share)),
                        );
                    }
                }
                instruction += 1;
            };
            let got = stepped(step, || walker.try_get(page));
            last = last.min(instruction + 50);
            // No one folio has the page all the time, so it may be missed.
            if let Ok(folio) = &got {
                assert!(folio.contains(page), "after {first} and {second}: {} for {page}", folio.pfn());
                found += 1;
            }
        }
    }
    assert!(both > 20 && found > 20, "{both}, {found}: the owner never came in between");
    engine.audit().unwrap();
}

#[test]
fn the_folio_that_is_found_has_the_page_whatever_becomes_of_it() {
    for layout in [Layout::Folded, Layout::Flat] {
        for (whole, to) in [(1, 0), (7, 6), (9, 8), (10, 9)] {
            is_reshaped_under_a_walker::<Memdesc>(order(whole), order(to), layout);
            is_reshaped_under_a_walker::<Page64>(order(whole), order(to), layout);
        }
    }
}
