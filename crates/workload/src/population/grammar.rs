//! One workload on a command line, in the words of scenarios: `page-cache=1G,orders=0:0.2+9:0.8,free=0.5`.

use alloc::vec::Vec;
use core::fmt;

use pagefold_engine::Order;

use super::usage::{Change, Misfit, Use, Workload};
use crate::size::{Exactly, SizeError, number, parse_bytes};

/// A workload as somebody wrote it: `USE=SIZE[,OPTION]...`.
///
/// | part | what it says |
/// |---|---|
/// | `USE` | `page-cache`, `anonymous`, `hugetlb`, `kernel` or `pinned` (see [`Use`]) |
/// | `SIZE` | how far it grows, as in `512M` (see [`parse_bytes`]) |
/// | `orders=9`, `orders=0:0.2+4:0.3+9:0.5` | the orders of its folios, and the share of its memory in each; without it 9 for `hugetlb`, otherwise 0 |
/// | `fragmentation=0.5` | as much of what it takes is given back in between, at random: 0 to 0.99 |
/// | `touch` | it writes to its memory |
/// | `free=0.5` | once it has grown, this part of its folios is freed, at random |
/// | `pin=0.1` | then this part of what is left is pinned, at random; 0 unpins all |
///
/// Each option stands there once at most, in any order. There are no spaces, so that it is one word of a kernel's command
/// line. `Display` writes what [`parse`](Self::parse) reads, options in the order of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadArg {
    /// The workload, with room for its size.
    pub workload: Workload,
    /// Bytes it grows to.
    pub size: u64,
    /// The part that is freed then.
    pub free: Option<f64>,
    /// The part that is pinned then.
    pub pin: Option<f64>,
}

/// What is wrong with a workload on a command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wrong<'a> {
    /// There is no `USE=SIZE` in front.
    NoSize,
    /// No such use.
    Use(&'a str),
    /// No such option.
    Option(&'a str),
    /// The option has no value.
    NoValue(&'a str),
    /// `touch` has one.
    Value,
    /// The option was there before.
    Twice(&'a str),
    /// Not a size.
    Size(SizeError<'a>),
    /// Too small for one folio of this order.
    TooSmall(Order),
    /// Not an order.
    Order(&'a str),
    /// Several orders, and one has no share.
    NoShare(&'a str),
    /// Not a number from 0 to 1.
    Part(&'a str),
    /// The workload cannot be like that.
    Misfit(Misfit),
}

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::NoSize => {
                f.write_str("a workload begins with its use and its size, as in page-cache=512M")
            }
            Wrong::Use(name) => {
                write!(f, "unknown use '{name}'; there are ")?;
                list(f, &Use::NAMES)
            }
            Wrong::Option(name) => {
                write!(f, "unknown option '{name}'; there are ")?;
                list(f, &["orders", "fragmentation", "touch", "free", "pin"])
            }
            Wrong::NoValue("orders") => {
                f.write_str("orders needs a value, as in orders=9 or orders=0:0.2+9:0.8")
            }
            Wrong::NoValue(name) => write!(f, "{name} needs a value, as in {name}=0.5"),
            Wrong::Value => f.write_str("touch has no value"),
            Wrong::Twice(name) => write!(f, "{name} is there twice"),
            Wrong::Size(error) => write!(f, "{error}"),
            Wrong::TooSmall(order) => {
                write!(f, "too small for a folio of {order} ({})", Exactly(order.pages() * 4096))
            }
            Wrong::Order(text) => write!(f, "'{text}' is no order; they go from 0 to {}", Order::MAX.get()),
            Wrong::NoShare(text) => write!(f, "of several orders each has a share, as in {text}:0.5"),
            Wrong::Part(text) => write!(f, "'{text}' is no part; a part goes from 0 to 1"),
            Wrong::Misfit(misfit) => write!(f, "{misfit}"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, names: &[&str]) -> fmt::Result {
    for (at, name) in names.iter().enumerate() {
        let before = match names.len() - at {
            _ if at == 0 => "",
            1 => " and ",
            _ => ", ",
        };
        write!(f, "{before}{name}")?;
    }
    Ok(())
}

/// A mistake in a workload on a command line, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mistake<'a> {
    /// All that was written.
    pub text: &'a str,
    /// The byte of it where the mistake begins.
    pub at: usize,
    /// What is wrong there.
    pub wrong: Wrong<'a>,
}

impl<'a> Mistake<'a> {
    /// `part` is a part of `text`.
    fn new(text: &'a str, part: &'a str, wrong: Wrong<'a>) -> Self {
        Self { text, at: part.as_ptr().addr().saturating_sub(text.as_ptr().addr()), wrong }
    }
}

impl fmt::Display for Mistake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        write!(f, "'{}', character {}: {}", self.text, before.chars().count() + 1, self.wrong)
    }
}
impl core::error::Error for Mistake<'_> {}

impl WorkloadArg {
    /// Reads a workload.
    ///
    /// # Errors
    /// [`Mistake`].
    pub fn parse(text: &str) -> Result<Self, Mistake<'_>> {
        let mistake = |part, wrong| Mistake::new(text, part, wrong);
        let (head, options) = text.split_once(',').map_or((text, None), |(head, rest)| (head, Some(rest)));
        let (name, size_text) = head.split_once('=').ok_or(mistake(head, Wrong::NoSize))?;
        let usage = Use::named(name).ok_or(mistake(name, Wrong::Use(name)))?;
        let size = parse_bytes(size_text).map_err(|error| mistake(size_text, Wrong::Size(error)))?;
        let options = Options::read(text, options)?;
        let mut orders = Vec::new();
        for piece in options.orders.into_iter().flat_map(|orders| orders.split('+')) {
            let is_only = options.orders == Some(piece);
            orders.try_reserve(1).map_err(|_| mistake(piece, Wrong::Misfit(Misfit::OutOfMemory)))?;
            orders.push(order_and_share(piece, is_only).map_err(|(part, wrong)| mistake(part, wrong))?);
        }
        let fragmentation = options.fragmentation.map_or(0.0, |(_, part)| part);
        let made = Workload::new(usage, &orders, fragmentation, options.touch.is_some());
        let mut workload =
            made.map_err(|misfit| mistake(options.blame(misfit).unwrap_or(text), Wrong::Misfit(misfit)))?;
        if let Some(part) = workload.parts().iter().find(|part| part.folios(size) == 0) {
            return Err(mistake(size_text, Wrong::TooSmall(part.order)));
        }
        workload.allow(size);
        let (free, pin) = (options.free.map(|(_, part)| part), options.pin.map(|(_, part)| part));
        Ok(Self { workload, size, free, pin })
    }

    /// What happens to the workload, one after the other.
    pub fn changes(&self) -> impl Iterator<Item = Change> + use<> {
        let (free, pin) = (self.free.map(Change::Free), self.pin.map(Change::Pin));
        [Some(Change::To(self.size)), free, pin].into_iter().flatten()
    }
}

/// The options as they stand there; values with the place they were read from.
#[derive(Default)]
struct Options<'a> {
    orders: Option<&'a str>,
    fragmentation: Option<(&'a str, f64)>,
    touch: Option<()>,
    free: Option<(&'a str, f64)>,
    pin: Option<(&'a str, f64)>,
}

impl<'a> Options<'a> {
    fn read(text: &'a str, options: Option<&'a str>) -> Result<Self, Mistake<'a>> {
        let mut read = Self::default();
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            read.take(option).map_err(|(part, wrong)| Mistake::new(text, part, wrong))?;
        }
        Ok(read)
    }

    fn take(&mut self, option: &'a str) -> Result<(), (&'a str, Wrong<'a>)> {
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let needed = || value.filter(|value| !value.is_empty()).ok_or((option, Wrong::NoValue(name)));
        let part = || needed().and_then(|value| Ok((value, part(value)?)));
        let was_there = match name {
            "orders" => self.orders.replace(needed()?).is_some(),
            "fragmentation" => self.fragmentation.replace(part()?).is_some(),
            "touch" if value.is_some() => return Err((option, Wrong::Value)),
            "touch" => self.touch.replace(()).is_some(),
            "free" => self.free.replace(part()?).is_some(),
            "pin" => self.pin.replace(part()?).is_some(),
            _ => return Err((option, Wrong::Option(name))),
        };
        if was_there { Err((option, Wrong::Twice(name))) } else { Ok(()) }
    }

    /// The text that a workload does not fit because of.
    fn blame(&self, misfit: Misfit) -> Option<&'a str> {
        match misfit {
            Misfit::Share(number) => self.orders.and_then(|orders| orders.split('+').nth(number)),
            Misfit::Sum(_) => self.orders,
            Misfit::Fragmentation => self.fragmentation.map(|(text, _)| text),
            Misfit::OutOfMemory => None,
        }
    }
}

fn part(text: &str) -> Result<f64, (&str, Wrong<'_>)> {
    number(text).filter(|part| (0.0..=1.0).contains(part)).ok_or((text, Wrong::Part(text)))
}

/// `4:0.3`, or just `4` if it is the only one.
fn order_and_share(piece: &str, is_only: bool) -> Result<(Order, f64), (&str, Wrong<'_>)> {
    let (order, share) = match piece.split_once(':') {
        Some((order, share)) => (order, part(share)?),
        None if is_only => (piece, 1.0),
        None => return Err((piece, Wrong::NoShare(piece))),
    };
    let is_plain = order.bytes().all(|byte| byte.is_ascii_digit());
    let read = order.parse().ok().filter(|_| is_plain).and_then(Order::new);
    Ok((read.ok_or((order, Wrong::Order(order)))?, share))
}

impl fmt::Display for WorkloadArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload = &self.workload;
        write!(f, "{}={}", workload.usage().name(), Exactly(self.size))?;
        match workload.parts() {
            [only] if only.share == 1.0 && only.order == workload.usage().order() => {}
            [only] if only.share == 1.0 => write!(f, ",orders={}", only.order.get())?,
            parts => {
                for (at, part) in parts.iter().enumerate() {
                    let before = if at == 0 { ",orders=" } else { "+" };
                    write!(f, "{before}{}:{}", part.order.get(), part.share)?;
                }
            }
        }
        if workload.fragmentation() != 0.0 {
            write!(f, ",fragmentation={}", workload.fragmentation())?;
        }
        if workload.touches() {
            f.write_str(",touch")?;
        }
        for (name, part) in [("free", self.free), ("pin", self.pin)] {
            if let Some(part) = part {
                write!(f, ",{name}={part}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_workload_is_read_as_it_is_written() {
        let text = "page-cache=1536M,orders=0:0.2+4:0.3+9:0.5,fragmentation=0.5,touch,free=0.9,pin=0.1";
        let read = WorkloadArg::parse(text).unwrap();
        assert_eq!((read.size, read.free, read.pin), (1536 << 20, Some(0.9), Some(0.1)));
        let workload = &read.workload;
        assert_eq!((workload.usage(), workload.excess(), workload.touches()), (Use::PageCache, 2.0, true));
        let parts: Vec<_> = workload.parts().iter().map(|part| (part.order.get(), part.share)).collect();
        assert_eq!(parts, [(0, 0.2), (4, 0.3), (9, 0.5)]);
        assert!(workload.most_bytes().abs_diff(3 << 30) < 2 << 20, "as much again is given back in between");
        assert!(read.changes().eq([Change::To(1536 << 20), Change::Free(0.9), Change::Pin(0.1)]));
        assert_eq!(read.to_string(), text);
        for (long, short) in [
            ("hugetlb=1024MiB,orders=9:1", "hugetlb=1G"),
            ("anonymous=4096,orders=0", "anonymous=4K"),
            ("hugetlb=4G,orders=18", "hugetlb=4G,orders=18"),
            ("pinned=1M,pin=0,fragmentation=0.0", "pinned=1M,pin=0"),
        ] {
            assert_eq!(WorkloadArg::parse(long).unwrap().to_string(), short);
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, character, says) in [
            ("", 1, "begins with its use and its size"),
            ("page-cache", 1, "begins with its use and its size"),
            ("pagecache=1G", 1, "there are page-cache, anonymous, hugetlb, kernel and pinned"),
            ("anonymous=", 11, "'' is not a size"),
            ("anonymous=12X", 11, "unknown unit 'X'"),
            ("pinned=64", 8, "too small for a folio of order 0 (4K)"),
            ("anonymous=512K,orders=0:0.5+9:0.5", 11, "too small for a folio of order 9 (2M)"),
            ("anonymous=512M,ordrs=9", 16, "unknown option 'ordrs'; there are orders,"),
            ("anonymous=512M,", 16, "unknown option ''"),
            ("anonymous=512M,orders=19", 23, "they go from 0 to 18"),
            ("anonymous=512M,orders=+9", 23, "of several orders"),
            ("anonymous=512M,orders=9+0", 23, "as in 9:0.5"),
            ("anonymous=512M,orders=0:0.5+9:2", 31, "a part goes from 0 to 1"),
            ("anonymous=512M,orders=0:0.5+0:0.5", 29, "one for each order"),
            ("anonymous=512M,orders=0:0.5+9:0.2", 23, "add up to 0.700"),
            ("anonymous=512M,orders", 16, "orders=0:0.2+9:0.8"),
            ("anonymous=512M,free=", 16, "free needs a value, as in free=0.5"),
            ("anonymous=512M,free=nan", 21, "'nan' is no part"),
            ("anonymous=512M,fragmentation=1", 30, "from 0 to 0.99"),
            ("anonymous=512M,touch=1", 16, "touch has no value"),
            ("anonymous=512M,pin=1,pin=1", 22, "pin is there twice"),
            ("anonymous=1G,ü,=,", 14, "unknown option 'ü'"),
        ] {
            let mistake = WorkloadArg::parse(text).unwrap_err().to_string();
            assert!(mistake.starts_with(&format!("'{text}', character {character}: ")), "{mistake}");
            assert!(mistake.contains(says), "{mistake}");
        }
    }

    /// Any workload that can be written.
    fn any_text() -> impl Strategy<Value = String> {
        let orders = prop::collection::btree_map(0u32..=18, 1u32..1000, 0..6).prop_map(|shares| {
            let sum: u32 = shares.values().sum();
            let part =
                |(order, share): (&u32, &u32)| format!("{order}:{}", f64::from(*share) / f64::from(sum));
            let parts: Vec<_> = shares.iter().map(part).collect();
            if parts.is_empty() { None } else { Some(format!("orders={}", parts.join("+"))) }
        });
        let part = |name| prop::option::of((0.0..=0.99f64).prop_map(move |part| format!("{name}={part}")));
        let options = (orders, part("fragmentation"), prop::bool::ANY, part("free"), part("pin"));
        (prop::sample::select(&Use::NAMES[..]), (1u64 << 42)..1 << 52, options).prop_map(
            |(name, size, (orders, fragmentation, touch, free, pin))| {
                let touch = touch.then(|| "touch".to_string());
                let options = [pin, touch, free, orders, fragmentation];
                let options: Vec<_> =
                    options.into_iter().flatten().map(|option| format!(",{option}")).collect();
                format!("{name}={size}{}", options.concat())
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(text in any_text()) {
            let read = WorkloadArg::parse(&text);
            prop_assert!(read.is_ok(), "{}", read.unwrap_err());
            let read = read.unwrap();
            let printed = read.to_string();
            let again = WorkloadArg::parse(&printed);
            prop_assert_eq!(again.as_ref(), Ok(&read), "{}", printed);
        }

        #[test]
        fn any_text_is_judged_and_its_mistake_lies_in_it(
            text in prop_oneof![any::<String>(), "(page-cache|pinned)=[0-9a-z]{0,9}(,[a-z]{0,4}=?[0-9:+.]{0,5}){0,3}"],
        ) {
            match WorkloadArg::parse(&text) {
                Ok(read) => {
                    let printed = read.to_string();
                    prop_assert_eq!(WorkloadArg::parse(&printed), Ok(read));
                }
                Err(mistake) => {
                    prop_assert!(text.is_char_boundary(mistake.at));
                    prop_assert!(mistake.to_string().contains(&text));
                }
            }
        }
    }
}
