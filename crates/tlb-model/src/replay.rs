//! The real code of `pagefold-pagetable`, one step at a time.
//!
//! A call of it is run from its beginning with the answers that its steps had so far; at the first step without an answer it
//! is stopped by unwinding, and that step is what the model does next. So the model has no second description of the code.
//! What a call leaves behind stands in the machine's entries alone, so calls before need not be run again.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::hash::Hash;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pagefold_pagetable::{Entry, Flush, Gap, HUGE, LARGE, Mmu, PAGE, Reservation, Shared, Slot};
use stateright::{Checker, Model, Property};

use crate::machine::{Act, Broken, Machine, Rules, TOP};

/// A step of a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CallStep {
    /// Reads an entry.
    Load(Slot),
    /// Stores one.
    Swap(Slot, u64),
    /// Stores one, if it is the first word still.
    CompareExchange(Slot, u64, u64),
    /// Fills a fresh table.
    Fill(u64, u64),
    /// Flushes ranges, or everything.
    Flush(Option<Vec<Range<u64>>>),
    /// Entries were made.
    Made(Range<u64>),
    /// Takes frames.
    Take(u64),
    /// Gives one back.
    Give(u64),
}

/// What holds after a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// The page is written to.
    Written(u64),
    /// The page reads as zero.
    Zero(u64),
    /// So many frames are free.
    Free(usize),
    /// No processor remembers what is not so.
    Settled,
}

/// What a step was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Word(u64),
    Exchanged(Result<(), u64>),
    Frames(Option<Vec<u64>>),
    Done,
}

/// Stops a call where it has no answer.
struct Stop;

/// What the code sees of the machine.
#[derive(Debug)]
struct Replay<'h, E> {
    format: E,
    answers: &'h [Answer],
    at: Cell<usize>,
    next: RefCell<Option<CallStep>>,
}

impl<E: Entry> Replay<'_, E> {
    fn step(&self, step: CallStep) -> Answer {
        let at = self.at.get();
        let Some(answer) = self.answers.get(at) else {
            *self.next.borrow_mut() = Some(step);
            // Not a panic: no message, and nobody is told.
            resume_unwind(Box::new(Stop));
        };
        self.at.set(at + 1);
        answer.clone()
    }
}

// SAFETY: a machine of the model; nothing is mapped.
unsafe impl<E: Entry> Mmu for &Replay<'_, E> {
    type Entry = E;
    type Frames = std::vec::IntoIter<u64>;

    fn format(&self) -> E {
        self.format
    }
    fn upper(&self, address: u64) -> Slot {
        Slot { table: TOP, index: (address / HUGE % 512) as usize }
    }
    fn load(&self, slot: Slot) -> u64 {
        match self.step(CallStep::Load(slot)) {
            Answer::Word(word) => word,
            _ => 0,
        }
    }
    fn swap(&self, slot: Slot, word: u64) -> u64 {
        match self.step(CallStep::Swap(slot, word)) {
            Answer::Word(word) => word,
            _ => 0,
        }
    }
    fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        match self.step(CallStep::CompareExchange(slot, old, new)) {
            Answer::Exchanged(result) => result,
            _ => Ok(()),
        }
    }
    fn fill(&self, table: u64, word: u64) {
        self.step(CallStep::Fill(table, word));
    }
    fn flush(&self, what: Flush<'_>) {
        self.step(CallStep::Flush(match what {
            Flush::Ranges(ranges) => Some(ranges.to_vec()),
            Flush::All => None,
        }));
    }
    fn made(&self, range: Range<u64>) {
        self.step(CallStep::Made(range));
    }
    fn take(&self, count: u64) -> Option<Self::Frames> {
        match self.step(CallStep::Take(count)) {
            Answer::Frames(frames) => frames.map(Vec::into_iter),
            _ => None,
        }
    }
    unsafe fn give(&self, frame: u64) {
        self.step(CallStep::Give(frame));
    }
}

/// A call of the real code, or what must hold between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Materialises bytes.
    Materialise(Range<u64>),
    /// Folds a batch.
    Fold(Vec<Range<u64>>),
    /// Checks, on every processor.
    Expect(Expect),
}

/// Calls on a machine, with hardware that looks at some pages.
#[derive(Clone, Debug)]
pub struct Replayed<E> {
    rules: Rules<E>,
    gap: Gap,
    calls: Vec<Call>,
    pages: Vec<u64>,
    /// After the reservation was made, and what its steps were answered.
    fresh: Machine,
    made: Vec<Answer>,
}

/// A state: the machine, how far the calls are, and what was broken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    machine: Machine,
    call: usize,
    answers: Vec<Answer>,
    broken: Option<Broken>,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEvent {
    /// The code's next step.
    Code,
    /// Hardware.
    Hardware(Act),
}

/// What came out of an exploration.
#[derive(Clone, Debug)]
pub struct Found {
    /// States.
    pub states: usize,
    /// Whether the last call ended in some of them.
    pub has_ended: bool,
    /// The first rule that was found broken.
    pub broken: Option<Broken>,
}

impl<E: Entry + Debug + 'static> Replayed<E> {
    /// `calls` on a reservation that may or may not have a gap, while `processors` look at `pages`.
    ///
    /// # Panics
    /// The reservation cannot be made: fewer frames than it takes.
    pub fn new(rules: Rules<E>, gap: Gap, processors: usize, pages: &[u64], calls: Vec<Call>) -> Self {
        let fresh = Machine::new(processors, FRAMES);
        let mut model =
            Replayed { rules, gap, calls, pages: pages.to_vec(), fresh: fresh.clone(), made: Vec::new() };
        let mut moment = Moment { machine: fresh, call: usize::MAX, answers: Vec::new(), broken: None };
        while let Some(step) = model.next_step(usize::MAX, &moment.answers) {
            let answer = model.apply(&mut moment.machine, step);
            moment.answers.push(answer.unwrap_or_else(|broken| panic!("a fresh machine: {broken}")));
        }
        (model.fresh, model.made) = (moment.machine, moment.answers);
        model
    }

    /// The next step of a call, given the answers so far; none at its end. No call is the making of the reservation.
    fn next_step(&self, call: usize, answers: &[Answer]) -> Option<CallStep> {
        let answers: Vec<Answer> = self.made.iter().chain(answers).cloned().collect();
        let format = self.rules.format;
        let replay = Replay { format, answers: &answers, at: Cell::new(0), next: RefCell::new(None) };
        let run = || {
            let Ok(shared) = Shared::new(&replay) else { return };
            // SAFETY: nothing is mapped; the model says what would have happened.
            let reservation = unsafe { Reservation::new(&shared, BASE, LENGTH, self.gap) };
            let Ok(reservation) = reservation else { return };
            match self.calls.get(call) {
                Some(Call::Materialise(bytes)) => {
                    // SAFETY: as above, and the checks of the model are about just this.
                    let _ = unsafe { reservation.materialise(bytes.clone()) };
                }
                // SAFETY: as above.
                Some(Call::Fold(ranges)) => unsafe { reservation.fold(ranges.iter().cloned()) },
                Some(Call::Expect(_)) | None => {}
            }
        };
        // What the call has in its hands is made anew by the next run.
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(()) => None,
            Err(payload) if payload.is::<Stop>() => replay.next.into_inner(),
            Err(payload) => resume_unwind(payload),
        }
    }

    fn apply(&self, machine: &mut Machine, step: CallStep) -> Result<Answer, Broken> {
        let rules = &self.rules;
        Ok(match step {
            CallStep::Load(slot) => Answer::Word(machine.word(slot)),
            CallStep::Swap(slot, word) => {
                let old = machine.word(slot);
                machine.store(rules, slot, word)?;
                Answer::Word(old)
            }
            CallStep::CompareExchange(slot, old, new) => match machine.word(slot) {
                word if word == old => {
                    machine.store(rules, slot, new)?;
                    Answer::Exchanged(Ok(()))
                }
                word => Answer::Exchanged(Err(word)),
            },
            CallStep::Fill(table, word) => {
                machine.fill(rules, table, word)?;
                Answer::Done
            }
            CallStep::Flush(ranges) => {
                machine.flush(rules, ranges.as_deref());
                Answer::Done
            }
            CallStep::Made(range) => {
                if rules.flushes_when_made && !range.is_empty() {
                    machine.flush(rules, Some(&[range]));
                }
                Answer::Done
            }
            CallStep::Take(count) => Answer::Frames(machine.take(count)),
            CallStep::Give(frame) => {
                machine.give(rules, frame)?;
                Answer::Done
            }
        })
    }

    fn check(&self, machine: &mut Machine, expect: &Expect) -> Result<(), Broken> {
        match expect {
            Expect::Written(page) => machine.write(&self.rules, *page),
            Expect::Zero(page) => machine.reads_zero(&self.rules, *page),
            Expect::Settled => machine.settled(&self.rules),
            Expect::Free(frames) if machine.free() == *frames => Ok(()),
            Expect::Free(frames) => Err(format!("{} frames are free, not {frames}", machine.free())),
        }
    }

    /// Where there may be no gap, every page can be read after every step.
    fn check_readable(&self, machine: &Machine) -> Result<(), Broken> {
        let unreadable = |page: &&u64| self.gap == Gap::Never && !machine.is_readable(&self.rules, **page);
        match self.pages.iter().find(unreadable) {
            Some(page) => Err(format!("page {page:#x} cannot be read in between")),
            None => Ok(()),
        }
    }

    fn advance(&self, mut moment: Moment) -> Moment {
        let done = match &self.calls[moment.call] {
            Call::Expect(expect) => {
                let done = self.check(&mut moment.machine, expect);
                moment.call += 1;
                done
            }
            _ => match self.next_step(moment.call, &moment.answers) {
                Some(step) => self.apply(&mut moment.machine, step).and_then(|answer| {
                    moment.answers.push(answer);
                    self.check_readable(&moment.machine)
                }),
                None => {
                    moment.call += 1;
                    moment.answers.clear();
                    Ok(())
                }
            },
        };
        moment.broken = done.err();
        moment
    }

    /// Explores everything.
    pub fn explore(self) -> Found {
        let checker = self.checker().spawn_bfs().join();
        let broken = checker.discovery("no rule is broken");
        Found {
            states: checker.unique_state_count(),
            has_ended: checker.discovery("the calls end").is_some(),
            broken: broken.and_then(|path| path.last_state().broken.clone()),
        }
    }
}

impl<E: Entry + Debug + 'static> Model for Replayed<E> {
    type State = Moment;
    type Action = CallEvent;

    fn init_states(&self) -> Vec<Moment> {
        vec![Moment { machine: self.fresh.clone(), call: 0, answers: Vec::new(), broken: None }]
    }

    fn actions(&self, moment: &Moment, events: &mut Vec<CallEvent>) {
        if moment.call == self.calls.len() || moment.broken.is_some() {
            return;
        }
        events.push(CallEvent::Code);
        let mut acts = Vec::new();
        moment.machine.acts(&self.rules, &self.pages, &mut acts);
        events.extend(acts.into_iter().map(CallEvent::Hardware));
    }

    fn next_state(&self, moment: &Moment, event: CallEvent) -> Option<Moment> {
        match event {
            CallEvent::Code => Some(self.advance(moment.clone())),
            CallEvent::Hardware(act) => match moment.machine.act(&self.rules, act) {
                Ok(machine) => machine.map(|machine| Moment { machine, ..moment.clone() }),
                Err(broken) => Some(Moment { broken: Some(broken), ..moment.clone() }),
            },
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken", |_, moment: &Moment| moment.broken.is_none()),
            Property::sometimes("the calls end", |model: &Self, moment: &Moment| {
                moment.call == model.calls.len() && moment.broken.is_none()
            }),
        ]
    }
}

/// Where the reservation is: two page tables' worth of addresses, in one directory.
pub const BASE: u64 = 64 * HUGE;
const LENGTH: u64 = 2 * LARGE;
/// Frames of the machine.
const FRAMES: u64 = 12;
/// Pages of the reservation: two under the first table, one under the second.
pub const PAGES: [u64; 3] = [BASE, BASE + PAGE, BASE + LARGE];
