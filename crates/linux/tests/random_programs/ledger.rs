//! What programs know themselves of pages and folios, to hold against what the engine says.
//!
//! Every folio has a number here, and every page the number of the last folio that had it. A folio is *alive* while
//! somebody has a handle on it; the handles are counted before a reference is put and after one was taken, so a page that
//! the engine hands out belongs to no folio that is alive. Owners seal their folios: the number, and what the folio is,
//! stand in the owner's data, where whoever finds the folio can check them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use pagefold_engine::{Folio, Frozen, Kind, Order, Pfn};

use crate::failing::{Failing, Owner};

/// What is wrong, if something is.
pub type Outcome<T = ()> = Result<T, String>;

pub type Shared<'e> = Folio<'e, Failing>;
pub type Whole<'e> = Frozen<'e, Failing>;

/// The number of a folio; 0 is none.
pub type Number = u32;

/// Folios that one program may have, one after the other.
const FOLIOS: usize = 1 << 14;
/// The folio that everything belongs to that was leaked without a handle.
const LEAKED: Number = 1;

/// Fails with a text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
pub(crate) use ensure;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Frozen,
    Shared,
}

#[derive(Default)]
struct Entry {
    /// Handles.
    alive: AtomicU32,
    head: AtomicU64,
    /// Order, kind and status, a byte each.
    shape: AtomicU64,
}

/// A page whose memory is broken.
#[derive(Clone, Copy, Debug)]
struct Broken {
    /// When that was known.
    at: u64,
    /// It was free then, so that nobody can have it.
    is_withheld: bool,
}

pub struct Ledger {
    owners: Vec<AtomicU32>,
    folios: Vec<Entry>,
    next: AtomicU32,
    broken: Mutex<BTreeMap<u64, Broken>>,
    clock: AtomicU64,
}

impl Ledger {
    pub fn new(pages: u64) -> Self {
        let mut owners = Vec::new();
        owners.resize_with(pages as usize, AtomicU32::default);
        let mut folios = Vec::new();
        folios.resize_with(FOLIOS, Entry::default);
        let ledger = Self {
            owners,
            folios,
            next: AtomicU32::new(LEAKED + 1),
            broken: Mutex::default(),
            clock: AtomicU64::new(0),
        };
        ledger.entry(LEAKED).alive.store(1, SeqCst);
        ledger
    }

    pub fn pages(&self) -> u64 {
        self.owners.len() as u64
    }

    fn entry(&self, number: Number) -> &Entry {
        &self.folios[number as usize]
    }

    /// A moment: what happened before is known at it.
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    /// The folio that `pfn` belongs to, if one that is alive does.
    pub fn owner(&self, pfn: u64) -> Option<Number> {
        let number = self.owners.get(pfn as usize)?.load(SeqCst);
        (number != 0 && self.entry(number).alive.load(SeqCst) > 0).then_some(number)
    }

    /// The first page in `pages` that belongs to a folio that is alive.
    pub fn owned_in(&self, pages: Range<u64>) -> Option<(u64, Number)> {
        pages.into_iter().find_map(|pfn| Some((pfn, self.owner(pfn)?)))
    }

    /// Head and order of the folio that `pfn` belongs to, unless it was leaked as a part of something.
    pub fn folio(&self, pfn: u64) -> Option<(u64, Order)> {
        let number = self.owner(pfn).filter(|&number| number != LEAKED)?;
        Some((self.head(number), self.order(number)))
    }

    pub fn order(&self, number: Number) -> Order {
        Order::new(self.entry(number).shape.load(SeqCst) as u32 & 0xff).unwrap()
    }
    pub fn head(&self, number: Number) -> u64 {
        self.entry(number).head.load(SeqCst)
    }
    pub fn status(&self, number: Number) -> Status {
        if self.entry(number).shape.load(SeqCst) >> 16 & 1 == 0 { Status::Frozen } else { Status::Shared }
    }
    pub fn set_status(&self, number: Number, status: Status) {
        let shape = &self.entry(number).shape;
        match status {
            Status::Frozen => shape.fetch_and(!(1 << 16), SeqCst),
            Status::Shared => shape.fetch_or(1 << 16, SeqCst),
        };
    }
    /// Handles on it.
    pub fn alive(&self, number: Number) -> u32 {
        self.entry(number).alive.load(SeqCst)
    }

    /// Folios that are alive; not those that were leaked as a part of something.
    pub fn living(&self) -> impl Iterator<Item = Number> {
        (LEAKED + 1..self.next.load(SeqCst)).filter(|&number| self.alive(number) > 0)
    }
    /// References on all of them.
    pub fn references(&self) -> u64 {
        self.living()
            .filter(|&number| self.status(number) == Status::Shared)
            .map(|number| u64::from(self.alive(number)))
            .sum()
    }

    /// A reference was taken.
    pub fn take(&self, number: Number) {
        self.entry(number).alive.fetch_add(1, SeqCst);
    }
    /// A reference is about to be put, or a frozen folio to be freed or reshaped.
    pub fn put(&self, number: Number) {
        self.entry(number).alive.fetch_sub(1, SeqCst);
    }

    /// A folio that the engine has just handed out, asked for at the moment `asked`: nobody has its pages, and none of them
    /// is broken.
    pub fn begin(&self, folio: &mut Whole<'_>, asked: u64) -> Outcome<Number> {
        ensure!(*folio.owner() == [0; 7], "{folio:?} is born with data: {:x?}", folio.owner());
        let pages = folio.pfn().0..folio.pfn().0 + folio.order().pages();
        if let Some((&pfn, broken)) = self
            .broken
            .lock()
            .unwrap()
            .range(pages.clone())
            .find(|(_, broken)| broken.is_withheld || broken.at < asked)
        {
            return Err(format!(
                "{folio:?} was handed out with page {pfn:#x}, which is poisoned: {broken:?}"
            ));
        }
        if let Some((pfn, number)) = self.owned_in(pages) {
            let (head, order) = (self.head(number), self.order(number));
            return Err(format!(
                "{folio:?} was handed out with page {pfn:#x} of the folio at {head:#x}, {order}"
            ));
        }
        self.reshaped(folio)
    }

    /// A folio out of pages that were its owner's before.
    pub fn reshaped(&self, folio: &mut Whole<'_>) -> Outcome<Number> {
        let number = self.next.fetch_add(1, SeqCst);
        ensure!((number as usize) < FOLIOS, "the program has more folios than are counted");
        let (head, order, kind) = (folio.pfn().0, folio.order(), folio.kind());
        let entry = self.entry(number);
        entry.alive.store(1, SeqCst);
        entry.head.store(head, SeqCst);
        entry.shape.store(u64::from(order.get()) | (kind as u64) << 8, SeqCst);
        for page in &self.owners[head as usize..(head + order.pages()) as usize] {
            page.store(number, SeqCst);
        }
        *folio.owner_mut() = seal(number, head, order, kind);
        Ok(number)
    }

    /// `folio` has another kind.
    pub fn set_kind(&self, number: Number, folio: &mut Whole<'_>, kind: Kind) {
        folio.set_kind(kind);
        self.entry(number).shape.store(u64::from(folio.order().get()) | (kind as u64) << 8, SeqCst);
        *folio.owner_mut() = seal(number, folio.pfn().0, folio.order(), kind);
    }

    /// What nobody has a handle on any more, and yet was never freed.
    pub fn leak(&self, pages: Range<u64>) {
        for page in &self.owners[pages.start as usize..pages.end as usize] {
            page.store(LEAKED, SeqCst);
        }
    }

    /// Checks a folio that is held, and returns its number.
    pub fn check(&self, folio: &Shared<'_>) -> Outcome<Number> {
        let Some(kind) = folio.kind().owned() else { return Err(format!("{folio:?} is no owner's")) };
        let number = check_seal(folio.owner(), folio.pfn(), folio.order(), kind)?;
        ensure!(folio.refs() > 0, "{folio:?} is held, and has no reference");
        Ok(number)
    }

    /// Checks a frozen folio.
    pub fn check_frozen(&self, folio: &Whole<'_>, number: Number) -> Outcome {
        let found = check_seal(folio.owner(), folio.pfn(), folio.order(), folio.kind())?;
        ensure!(found == number, "{folio:?} has the data of folio {found}, not of {number}");
        Ok(())
    }

    // ---- broken memory -----------------------------------------------------------------------------------------

    /// `pfn` is known to be broken.
    pub fn poisoned(&self, pfn: u64, is_withheld: bool) {
        let at = self.now();
        self.broken.lock().unwrap().insert(pfn, Broken { at, is_withheld });
    }
    pub fn is_poisoned(&self, pfn: u64) -> bool {
        self.broken.lock().unwrap().contains_key(&pfn)
    }
    /// All that is known to be.
    pub fn all_poisoned(&self) -> Vec<u64> {
        self.broken.lock().unwrap().keys().copied().collect()
    }
}

const SALT: u64 = 0x5061_6765_666f_6c64;

/// The owner's data of a folio.
fn seal(number: Number, head: u64, order: Order, kind: Kind) -> Owner {
    let shape = u64::from(order.get()) | (kind as u64) << 8;
    let number = u64::from(number);
    [number, head, shape, number ^ head ^ shape ^ SALT, !number, head.rotate_left(32), number]
}

fn check_seal(data: &Owner, pfn: Pfn, order: Order, kind: Kind) -> Outcome<Number> {
    let number = data[0] as Number;
    ensure!(
        *data == seal(number, pfn.0, order, kind) && number != 0,
        "the data of {pfn}, {order}, {kind:?} is not its owner's: {data:x?}"
    );
    Ok(number)
}
