//! Workloads: what they use memory for, in folios of which orders, and how they change.

use alloc::vec::Vec;

use pagefold_engine::{Kind, Order};
use thiserror::Error;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// File pages, which move.
    PageCache,
    /// Anonymous pages, which move.
    Anonymous,
    /// Huge pages of a pool, which move.
    Hugetlb,
    /// Kernel memory (slab), which never moves.
    Kernel,
    /// Pages that somebody has pinned, spread evenly over the memory blocks that are online.
    Pinned,
}

impl Use {
    /// All of them.
    pub const ALL: [Use; 5] = [Use::PageCache, Use::Anonymous, Use::Hugetlb, Use::Kernel, Use::Pinned];

    /// Their names, in the same order.
    pub const NAMES: [&'static str; 5] = [
        Use::PageCache.name(),
        Use::Anonymous.name(),
        Use::Hugetlb.name(),
        Use::Kernel.name(),
        Use::Pinned.name(),
    ];

    /// What it is called in scenarios and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Use::PageCache => "page-cache",
            Use::Anonymous => "anonymous",
            Use::Hugetlb => "hugetlb",
            Use::Kernel => "kernel",
            Use::Pinned => "pinned",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|usage| usage.name() == name)
    }

    /// The kind of its folios.
    pub const fn kind(self) -> Kind {
        match self {
            Use::PageCache => Kind::File,
            Use::Anonymous | Use::Pinned => Kind::Anon,
            Use::Hugetlb => Kind::Hugetlb,
            Use::Kernel => Kind::Slab,
        }
    }

    /// The order of its folios if nothing is said: 2 MiB for huge pages, otherwise a page.
    pub const fn order(self) -> Order {
        match self {
            Use::Hugetlb => Order::AREA,
            Use::PageCache | Use::Anonymous | Use::Kernel | Use::Pinned => Order::ZERO,
        }
    }
}

/// The folios of one order of a workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Their order.
    pub order: Order,
    /// Their share of the workload's memory, above 0 and at most 1.
    pub share: f64,
    /// The most of them there can be at once.
    most: u64,
}

impl Part {
    /// Folios of a workload of `bytes`.
    pub fn folios(&self, bytes: u64) -> u64 {
        rounded(bytes as f64 * self.share / (self.order.pages() * PAGE) as f64)
    }
    /// The most folios it has room for.
    pub fn most(&self) -> u64 {
        self.most
    }
}

/// To the nearest whole number, halves away from zero; 0 for what is none. (`f64::round` needs an operating system's
/// mathematics.)
pub(super) fn rounded(value: f64) -> u64 {
    let whole = value as u64;
    whole.saturating_add(u64::from(value - whole as f64 >= 0.5))
}

/// Why a workload cannot be as somebody wants it.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum Misfit {
    /// The share of that number is not above 0 and at most 1, or its order was there before.
    #[error("a share is above 0 and at most 1, one for each order")]
    Share(usize),
    /// The shares add up to this.
    #[error("the shares add up to {0:.3}, not to 1")]
    Sum(f64),
    /// Fragmentation is not from 0 to 0.99.
    #[error("fragmentation goes from 0 to 0.99")]
    Fragmentation,
    /// No memory to note it: free some and retry.
    #[error("no memory to note a workload: free some and retry")]
    OutOfMemory,
}

/// A workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    usage: Use,
    parts: Vec<Part>,
    fragmentation: f64,
    touch: bool,
}

impl Workload {
    /// A workload of `usage`, without room for any memory yet.
    ///
    /// `orders` says which share of it lies in folios of which order; if it is empty, all does in [`Use::order`]. As
    /// much as `fragmentation` of what it takes is given back in between, folio by folio, at random. With `touch` it
    /// writes to its memory, as programs do.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn new(usage: Use, orders: &[(Order, f64)], fragmentation: f64, touch: bool) -> Result<Self, Misfit> {
        if !(0.0..=0.99).contains(&fragmentation) {
            return Err(Misfit::Fragmentation);
        }
        let all = [(usage.order(), 1.0)];
        let orders = if orders.is_empty() { &all } else { orders };
        let mut parts: Vec<Part> = Vec::new();
        for (number, &(order, share)) in orders.iter().enumerate() {
            if !(share > 0.0 && share <= 1.0) || parts.iter().any(|part| part.order == order) {
                return Err(Misfit::Share(number));
            }
            parts.try_reserve(1).map_err(|_| Misfit::OutOfMemory)?;
            parts.push(Part { order, share, most: 0 });
        }
        let sum: f64 = parts.iter().map(|part| part.share).sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Err(Misfit::Sum(sum));
        }
        Ok(Self { usage, parts, fragmentation, touch })
    }

    /// Makes room for its folios when it has grown to `bytes`.
    pub fn allow(&mut self, bytes: u64) {
        let taken = (bytes as f64 * self.excess()) as u64;
        for part in &mut self.parts {
            part.most = part.most.max(part.folios(taken));
        }
    }

    /// What it uses memory for.
    pub fn usage(&self) -> Use {
        self.usage
    }
    /// Its folios, by order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
    /// The share of what it takes that it gives back in between.
    pub fn fragmentation(&self) -> f64 {
        self.fragmentation
    }
    /// Whether it writes to its memory.
    pub fn touches(&self) -> bool {
        self.touch
    }
    /// Folios taken for each that is kept.
    pub fn excess(&self) -> f64 {
        1.0 / (1.0 - self.fragmentation)
    }
    /// The most folios there is room for.
    pub fn most_folios(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.most))
    }
    /// The most bytes there is room for.
    pub fn most_bytes(&self) -> u64 {
        let bytes = |part: &Part| part.most.saturating_mul(part.order.pages() * PAGE);
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(bytes(part)))
    }
}

/// A change of a workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Grow or shrink to so many bytes.
    To(u64),
    /// Free this part of its folios, 0 to 1, at random.
    Free(f64),
    /// Pin this part of its folios, at random; unpin all at 0.
    Pin(f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(order: u32) -> Order {
        Order::new(order).unwrap()
    }

    #[test]
    fn names_lead_back() {
        assert!(Use::ALL.into_iter().zip(Use::NAMES).all(|(usage, name)| Use::named(name) == Some(usage)));
        assert_eq!(Use::named("Page-Cache"), None);
    }

    #[test]
    fn a_mix_that_is_none_is_refused() {
        let new = |orders: &[(u32, f64)], fragmentation| {
            let orders: Vec<_> = orders.iter().map(|&(bits, share)| (order(bits), share)).collect();
            Workload::new(Use::Anonymous, &orders, fragmentation, false).map(|_| ())
        };
        assert_eq!(new(&[(0, 0.5), (4, 0.5)], 0.0), Ok(()));
        assert_eq!(new(&[(0, 0.5), (0, 0.5)], 0.0), Err(Misfit::Share(1)));
        assert_eq!(new(&[(0, f64::NAN)], 0.0), Err(Misfit::Share(0)));
        assert_eq!(new(&[(0, 0.5)], 0.0), Err(Misfit::Sum(0.5)));
        for fragmentation in [-0.1, 1.0, f64::NAN] {
            assert_eq!(new(&[], fragmentation), Err(Misfit::Fragmentation));
        }
    }

    #[test]
    fn room_is_for_what_is_taken_on_the_way() {
        let mut workload =
            Workload::new(Use::PageCache, &[(order(0), 0.5), (order(9), 0.5)], 0.5, true).unwrap();
        assert_eq!(workload.most_folios(), 0);
        workload.allow(64 << 20);
        workload.allow(8 << 20);
        assert_eq!(workload.parts().iter().map(Part::most).collect::<Vec<_>>(), [16384, 32]);
        assert_eq!(workload.most_bytes(), 128 << 20);
        workload.allow(u64::MAX);
        assert!(workload.most_bytes() > 1 << 63, "no overflow");
    }

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for value in [0.0, 0.4, 0.5, 1.5, 2.5, 1e15 + 0.5, 1e300, f64::INFINITY] {
            assert_eq!(rounded(value), value.round() as u64, "{value}");
        }
        assert_eq!((rounded(-3.0), rounded(f64::NAN)), (0, 0));
    }
}
