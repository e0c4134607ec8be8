//! The protocol around page tables, with its steps in every order.
//!
//! One map page, under one page table. Walkers enter a section, ask for the class, and where it says `Mapped` read the
//! descriptor and write to it; their writes arrive late, but before they are seen to have left the section. Their processors
//! remember pages and tables at any moment. Somebody changes what is mapped, step by step, in an order that is tried.

use stateright::{Checker, Model, Property};

use crate::machine::Late;

/// A step of who folds, unfolds or removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FolderStep {
    /// Publishes that the map page is folded.
    PublishFolded,
    /// Waits for all sections that have begun.
    Grace,
    /// Makes the page's entry not present.
    BreakPage,
    /// Makes the entry that leads to the page table not present.
    BreakTable,
    /// Every processor forgets.
    Flush,
    /// The page's entry leads to the zeroed frame.
    MakeZero,
    /// The page's entry leads to its frame.
    MakePage,
    /// The same by compare-and-swap from an entry of the zeroed frame that no hardware has used; nothing follows if that
    /// fails.
    SwapPage,
    /// Fills a fresh page table with entries of the zeroed frame.
    FillTable,
    /// The upper entry leads to the page table of its own.
    LinkTable,
    /// The upper entry leads to the shared page table.
    LinkShared,
    /// Gives the page's frame to somebody else.
    FreePage,
    /// Gives the page table's frame to somebody else.
    FreeTable,
    /// Publishes that the map page is mapped.
    PublishMapped,
}

/// Where the page's entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaf {
    /// Whatever was in the frame before: the table was not filled.
    Garbage,
    /// Nowhere.
    Broken,
    /// To the zeroed frame, and whether hardware has used it.
    Zero(bool),
    /// To the page's frame.
    Page,
}

/// Where the upper entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Upper {
    /// To the page table of its own.
    Own,
    /// To the shared one, where every page is the zeroed frame.
    Shared,
    /// Nowhere.
    Broken,
}

/// What the architecture and the walkers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Walkers, each on a processor of its own.
    pub walkers: usize,
    /// Sections of each.
    pub rounds: u8,
    /// Which walks from before may be reported as a fault later.
    pub reports_late: Late,
    /// Leaving a section waits for the walker's writes (the Release of leaving).
    pub leaves_with_release: bool,
}

/// Where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The class says `Mapped`.
    pub is_mapped: bool,
    /// The page's entry, in the table of its own.
    pub leaf: Leaf,
    /// The upper entry.
    pub upper: Upper,
}

/// Mapped, as before a fold.
pub const MAPPED: Start = Start { is_mapped: true, leaf: Leaf::Page, upper: Upper::Own };
/// Folded, under a page table of its own; looked at by hardware.
pub const FOLDED: Start = Start { is_mapped: false, leaf: Leaf::Zero(true), upper: Upper::Own };
/// Folded, and never looked at.
pub const UNUSED: Start = Start { is_mapped: false, leaf: Leaf::Zero(false), upper: Upper::Own };
/// Folded, under the shared page table; there is a frame for one of its own.
pub const SHARED: Start = Start { is_mapped: false, leaf: Leaf::Garbage, upper: Upper::Shared };

/// Where a walker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Place {
    #[default]
    Outside,
    Entered,
    SawMapped,
    HasRead,
    HasWritten,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Walker {
    place: Place,
    rounds: u8,
    /// A grace period waits for this one.
    is_waited_for: bool,
    /// A write that has not arrived.
    has_late_write: bool,
    /// What its processor remembers: the page table (`Own` or `Shared`), the page, and a walk that failed.
    table: Option<Upper>,
    page: Option<Target>,
    has_failed: bool,
}

/// What a page's address was found to lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Target {
    Zero,
    Page,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    at: usize,
    has_stopped: bool,
    is_mapped: bool,
    leaf: Leaf,
    upper: Upper,
    is_page_free: bool,
    is_table_free: bool,
    walkers: Vec<Walker>,
    broken: Option<&'static str>,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CourseEvent {
    /// The next step of the order.
    Step,
    /// A walker goes on.
    Walk(usize),
    /// A late write arrives.
    Arrive(usize),
    /// A processor remembers the page table, or the page.
    FindTable(usize),
    /// See above.
    FindPage(usize),
    /// A walk finds nothing that it may write to, and is reported later.
    Fail(usize),
    /// A processor forgets the page, or all of it.
    ForgetPage(usize),
    /// See above.
    Forget(usize),
}

/// One order, to be explored.
#[derive(Clone, Debug)]
pub struct Course {
    /// How it is.
    pub setting: Setting,
    /// How it begins.
    pub start: Start,
    /// The steps.
    pub steps: Vec<FolderStep>,
}

impl State {
    /// What memory says of the page.
    fn target(&self) -> Option<Target> {
        match self.upper {
            Upper::Own => self.leaf_target(),
            Upper::Shared => Some(Target::Zero),
            Upper::Broken => None,
        }
    }

    fn leaf_target(&self) -> Option<Target> {
        match self.leaf {
            Leaf::Zero(_) => Some(Target::Zero),
            Leaf::Page => Some(Target::Page),
            Leaf::Broken => None,
            // Where it leads nobody knows; to the page, for once.
            Leaf::Garbage => Some(Target::Page),
        }
    }

    fn check(&mut self) {
        for walker in &self.walkers {
            // One of any two different ones can be written through.
            if let (Some(now), Some(known)) = (self.target(), walker.page)
                && now != known
            {
                self.broken = Some("two translations of the page may be remembered");
            }
            if let Some(known) = walker.table
                && self.upper != Upper::Broken
                && known != self.upper
            {
                self.broken = Some("two page tables may be remembered");
            }
        }
    }

    fn is_page_reachable(&self) -> bool {
        let known = |walker: &Walker| {
            walker.page == Some(Target::Page) || (walker.table == Some(Upper::Own) && self.leaf == Leaf::Page)
        };
        (self.upper == Upper::Own && self.leaf == Leaf::Page) || self.walkers.iter().any(known)
    }

    fn is_table_reachable(&self) -> bool {
        self.upper == Upper::Own || self.walkers.iter().any(|walker| walker.table == Some(Upper::Own))
    }

    /// The next step, if it need not wait.
    fn step(&self, step: FolderStep) -> Option<State> {
        let mut next = self.clone();
        next.at += 1;
        match step {
            FolderStep::PublishFolded => next.is_mapped = false,
            FolderStep::PublishMapped => next.is_mapped = true,
            FolderStep::Grace => return self.grace(),
            FolderStep::BreakPage => next.leaf = Leaf::Broken,
            FolderStep::BreakTable => next.upper = Upper::Broken,
            FolderStep::Flush => {
                for walker in &mut next.walkers {
                    (walker.table, walker.page, walker.has_failed) = (None, None, false);
                }
            }
            FolderStep::MakeZero => next.leaf = Leaf::Zero(false),
            FolderStep::MakePage => next.leaf = Leaf::Page,
            FolderStep::SwapPage if self.leaf == Leaf::Zero(false) => next.leaf = Leaf::Page,
            FolderStep::SwapPage if self.leaf == Leaf::Zero(true) => next.has_stopped = true,
            FolderStep::SwapPage => next.broken = Some("what is swapped is no entry of the zeroed frame"),
            FolderStep::FillTable if self.is_table_reachable() => {
                next.broken = Some("a table in use is filled")
            }
            FolderStep::FillTable => next.leaf = Leaf::Zero(false),
            FolderStep::LinkTable if self.leaf == Leaf::Garbage => {
                next.broken = Some("a table of garbage is linked")
            }
            FolderStep::LinkTable => next.upper = Upper::Own,
            FolderStep::LinkShared => next.upper = Upper::Shared,
            FolderStep::FreePage => {
                next.is_page_free = true;
                if self.is_page_reachable() {
                    next.broken = Some("the frame is freed and can be reached");
                }
            }
            FolderStep::FreeTable => {
                next.is_table_free = true;
                if self.is_table_reachable() {
                    next.broken = Some("the page table is freed and can be reached");
                }
            }
        }
        next.check();
        Some(next)
    }

    /// Begins to wait; ends when nobody is waited for.
    fn grace(&self) -> Option<State> {
        let mut next = self.clone();
        let is_inside = |walker: &Walker| walker.place != Place::Outside;
        if !self.walkers.iter().any(is_inside) {
            next.at += 1;
            return Some(next);
        }
        if self.walkers.iter().any(|walker| walker.is_waited_for) {
            return None;
        }
        for walker in &mut next.walkers {
            walker.is_waited_for = is_inside(walker);
        }
        Some(next)
    }

    /// A walker's next move, if it has one.
    fn walk(&self, setting: &Setting, number: usize) -> Option<State> {
        let mut next = self.clone();
        let walker = &mut next.walkers[number];
        match walker.place {
            Place::Outside if walker.rounds == 0 => return None,
            Place::Outside => {
                walker.rounds -= 1;
                walker.place = Place::Entered;
            }
            Place::Entered if self.is_mapped => walker.place = Place::SawMapped,
            Place::SawMapped | Place::HasRead => {
                let found = walker.page.or_else(|| match walker.table {
                    Some(Upper::Own) => self.leaf_target(),
                    Some(Upper::Shared) => Some(Target::Zero),
                    Some(Upper::Broken) | None => self.target(),
                });
                let is_write = walker.place == Place::HasRead;
                next.broken = match found {
                    _ if walker.has_failed => Some("a walker faults by a walk from before"),
                    None => Some("a walker faults where the class said Mapped"),
                    Some(Target::Zero) => Some("a walker finds the zeroed frame where the class said Mapped"),
                    Some(Target::Page) if self.is_page_free => {
                        Some("a walker is led to a frame that is free")
                    }
                    Some(Target::Page) => self.broken,
                };
                walker.place = if is_write { Place::HasWritten } else { Place::HasRead };
                walker.has_late_write |= is_write;
            }
            Place::Entered | Place::HasWritten => {
                if walker.has_late_write && setting.leaves_with_release {
                    return None;
                }
                walker.place = Place::Outside;
                if std::mem::take(&mut walker.is_waited_for)
                    && !next.walkers.iter().any(|walker| walker.is_waited_for)
                {
                    // The last one that the grace period waited for.
                    next.at += 1;
                }
            }
        }
        Some(next)
    }

    fn hardware(&self, setting: &Setting, event: CourseEvent) -> Option<State> {
        let mut next = self.clone();
        match event {
            CourseEvent::Arrive(number) => {
                if !std::mem::take(&mut next.walkers[number].has_late_write) {
                    return None;
                }
                if self.is_page_free {
                    next.broken = Some("a late write reaches a frame that is free");
                }
            }
            CourseEvent::FindTable(number) => {
                next.walkers[number].table = (self.upper != Upper::Broken).then_some(self.upper);
            }
            CourseEvent::FindPage(number) => {
                let table = self.walkers[number].table?;
                let found = if table == Upper::Own { self.leaf_target() } else { Some(Target::Zero) };
                next.walkers[number].page = Some(found?);
                if table == Upper::Own && self.leaf == Leaf::Zero(false) {
                    next.leaf = Leaf::Zero(true);
                }
                if table == Upper::Own && self.is_table_free {
                    next.broken = Some("a processor walks through a page table that is free");
                }
            }
            CourseEvent::Fail(number) => {
                match (setting.reports_late, self.target()) {
                    (Late::None, _) | (_, Some(Target::Page)) | (Late::Permission, None) => return None,
                    _ => {}
                }
                next.walkers[number].has_failed = true;
            }
            CourseEvent::ForgetPage(number) => next.walkers[number].page = None,
            CourseEvent::Forget(number) => {
                (next.walkers[number].table, next.walkers[number].page) = (None, None);
            }
            CourseEvent::Step | CourseEvent::Walk(_) => return None,
        }
        Some(next)
    }
}

impl Model for Course {
    type State = State;
    type Action = CourseEvent;

    fn init_states(&self) -> Vec<State> {
        let walker = Walker { rounds: self.setting.rounds, ..Walker::default() };
        vec![State {
            at: 0,
            has_stopped: false,
            is_mapped: self.start.is_mapped,
            leaf: self.start.leaf,
            upper: self.start.upper,
            is_page_free: false,
            is_table_free: false,
            walkers: vec![walker; self.setting.walkers],
            broken: None,
        }]
    }

    fn actions(&self, state: &State, events: &mut Vec<CourseEvent>) {
        if state.broken.is_some() {
            return;
        }
        events.push(CourseEvent::Step);
        for number in 0..state.walkers.len() {
            events.extend([
                CourseEvent::Walk(number),
                CourseEvent::Arrive(number),
                CourseEvent::FindTable(number),
                CourseEvent::FindPage(number),
                CourseEvent::Fail(number),
                CourseEvent::ForgetPage(number),
                CourseEvent::Forget(number),
            ]);
        }
    }

    fn next_state(&self, state: &State, event: CourseEvent) -> Option<State> {
        let next = match event {
            CourseEvent::Step if state.has_stopped => None,
            CourseEvent::Step => state.step(*self.steps.get(state.at)?),
            CourseEvent::Walk(number) => state.walk(&self.setting, number),
            hardware => state.hardware(&self.setting, hardware),
        };
        next.filter(|next| next != state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("no rule is broken", |_, state: &State| state.broken.is_none())]
    }
}

impl Course {
    /// The first rule that was found broken; none if the order is safe.
    pub fn explore(self) -> Option<&'static str> {
        let checker = self.checker().spawn_bfs().join();
        checker.discovery("no rule is broken").and_then(|path| path.last_state().broken)
    }
}

/// All orders of `steps` that are safe. An order that breaks a rule on its way does so however it goes on, so those are not
/// tried one by one.
pub fn safe_orders(setting: Setting, start: Start, steps: &[FolderStep]) -> Vec<Vec<FolderStep>> {
    let mut safe = Vec::new();
    extend(setting, start, Vec::new(), steps.to_vec(), &mut safe);
    safe
}

fn extend(
    setting: Setting,
    start: Start,
    before: Vec<FolderStep>,
    left: Vec<FolderStep>,
    safe: &mut Vec<Vec<FolderStep>>,
) {
    if (Course { setting, start, steps: before.clone() }).explore().is_some() {
        return;
    }
    if left.is_empty() {
        safe.push(before);
        return;
    }
    let mut tried = Vec::new();
    for (at, &step) in left.iter().enumerate() {
        // The same step twice makes the same order twice.
        if tried.contains(&step) {
            continue;
        }
        tried.push(step);
        let (mut before, mut left) = (before.clone(), left.clone());
        before.push(step);
        left.remove(at);
        extend(setting, start, before, left, safe);
    }
}
