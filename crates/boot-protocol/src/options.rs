//! The kernel's command line.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

/// How a choice is written on the command line.
macro_rules! words {
    ($Choice:ident { $($choice:ident = $word:literal),+ }) => {
        impl $Choice {
            /// The word for it on the command line.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$choice => $word),+ }
            }

            fn read(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$choice),)+
                    _ => None,
                }
            }
        }
    };
}

words!(ProtocolChoice { Fold = "fold", NoGracePeriod = "no-grace-period" });
words!(DescriptorsChoice { Page = "page", Memdesc = "memdesc" });
words!(LeftoversChoice { Unplug = "unplug", Adopt = "adopt" });
words!(BarrierChoice { Fences = "fences", Interrupts = "interrupts" });
words!(Break {
    Write = "write",
    Stack = "stack",
    DoubleFault = "double-fault",
    Hang = "hang",
    NoFlush = "no-flush",
    LocalFlush = "local-flush"
});

/// Which rules walkers and folders follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum ProtocolChoice {
    /// Publish the class, wait for a grace period, remap: the one to use.
    #[default]
    Fold,
    /// The bug: remap without waiting.
    NoGracePeriod,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DescriptorsChoice {
    /// 64 bytes a page.
    #[default]
    Page,
    /// A word a page and an object a folio.
    Memdesc,
}

/// What a driver does about memory that is plugged already when it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum LeftoversChoice {
    /// Unplugs all of it.
    #[default]
    Unplug,
    /// Asks the device what is plugged, and takes it.
    Adopt,
}

/// How a grace period reaches walkers on other processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum BarrierChoice {
    /// Walkers pay a full fence in each section (default on arm64).
    Fences,
    /// Each grace period interrupts every CPU (default on x86-64).
    Interrupts,
}

/// Something to break on purpose, a while after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Break {
    /// Write to a folded descriptor.
    Write,
    /// Use up a stack.
    Stack,
    /// Cause an exception without a stack to handle it on.
    DoubleFault,
    /// Stop making progress on one CPU, interrupts off.
    Hang,
    /// Flush no TLB from then on.
    NoFlush,
    /// Flush the TLB of the CPU that flushes alone.
    LocalFlush,
}

/// The kernel's options: words of `key=value`, in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which rules to follow (`protocol=fold`).
    pub protocol: ProtocolChoice,
    /// What a descriptor is (`descriptors=page`).
    pub descriptors: DescriptorsChoice,
    /// How grace periods reach walkers (`barrier=fences`, `barrier=interrupts`; what suits the architecture).
    pub barrier: Option<BarrierChoice>,
    /// Walkers; they are spread over all processors (`walkers=N`; one of each kind, and one for each processor at least).
    pub walkers: Option<u16>,
    /// Owners that allocate, free, split and fold all the time (`owners=N`; none).
    pub owners: u16,
    /// Seed of all random choices (`seed=N`; 1).
    pub seed: u64,
    /// Workloads that [`Request::Populate`](crate::Request::Populate) begins, in the grammar of workloads (`work=...`, any
    /// number).
    pub work: Vec<String>,
    /// What to do about memory that is plugged already (`leftovers=unplug`).
    pub leftovers: LeftoversChoice,
    /// Drive virtio-mem in big-block mode (`big-blocks`).
    pub big_blocks: bool,
    /// Seconds without progress on a processor that end it all (`watchdog=N`; 20; 0 for never).
    pub watchdog: u16,
    /// Break something on purpose (`break=write`).
    pub breaks: Option<Break>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            protocol: ProtocolChoice::Fold,
            descriptors: DescriptorsChoice::Page,
            barrier: None,
            walkers: None,
            owners: 0,
            seed: 1,
            work: Vec::new(),
            leftovers: LeftoversChoice::Unplug,
            big_blocks: false,
            watchdog: 20,
            breaks: None,
        }
    }
}

/// A word of the command line that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionsError {
    /// The word.
    pub word: String,
    /// What would make sense there.
    pub expected: &'static str,
}

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' on the kernel's command line: expected {}", self.word, self.expected)
    }
}
impl core::error::Error for OptionsError {}

const KEYS: &str = "protocol=, descriptors=, barrier=, walkers=, owners=, seed=, work=, leftovers=, big-blocks, watchdog= or break=";

impl FromStr for Options {
    type Err = OptionsError;

    fn from_str(line: &str) -> Result<Self, OptionsError> {
        let mut options = Options::default();
        for word in line.split_ascii_whitespace() {
            let wrong = |expected| OptionsError { word: word.to_string(), expected };
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let small = || value.parse::<u16>().map_err(|_| wrong("a number below 65,536"));
            match key {
                "protocol" => {
                    let what = "protocol=fold or protocol=no-grace-period";
                    options.protocol = ProtocolChoice::read(value).ok_or_else(|| wrong(what))?;
                }
                "descriptors" => {
                    let what = "descriptors=page or descriptors=memdesc";
                    options.descriptors = DescriptorsChoice::read(value).ok_or_else(|| wrong(what))?;
                }
                "barrier" => {
                    let what = "barrier=fences or barrier=interrupts";
                    options.barrier = Some(BarrierChoice::read(value).ok_or_else(|| wrong(what))?);
                }
                "walkers" => options.walkers = Some(small()?),
                "owners" => options.owners = small()?,
                "seed" => options.seed = value.parse().map_err(|_| wrong("a number"))?,
                "work" => options.work.push(value.to_string()),
                "leftovers" => {
                    let what = "leftovers=unplug or leftovers=adopt";
                    options.leftovers = LeftoversChoice::read(value).ok_or_else(|| wrong(what))?;
                }
                "big-blocks" if value.is_empty() => options.big_blocks = true,
                "watchdog" => options.watchdog = small()?,
                "break" => {
                    let what = "break=write, stack, double-fault, hang, no-flush or local-flush";
                    options.breaks = Some(Break::read(value).ok_or_else(|| wrong(what))?);
                }
                _ => return Err(wrong(KEYS)),
            }
        }
        Ok(options)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, descriptors, leftovers, owners, seed, watchdog, .. } = self;
        write!(f, "protocol={} descriptors={}", protocol.word(), descriptors.word())?;
        write!(f, " owners={owners} seed={seed} leftovers={} watchdog={watchdog}", leftovers.word())?;
        if let Some(walkers) = self.walkers {
            write!(f, " walkers={walkers}")?;
        }
        if let Some(barrier) = self.barrier {
            write!(f, " barrier={}", barrier.word())?;
        }
        if self.big_blocks {
            f.write_str(" big-blocks")?;
        }
        if let Some(breaks) = self.breaks {
            write!(f, " break={}", breaks.word())?;
        }
        self.work.iter().try_for_each(|work| write!(f, " work={work}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_that_make_no_sense_are_named() {
        for (line, expected) in [
            ("walkers=many", "a number below 65,536"),
            ("owners=4 nonsense", KEYS),
            ("protocol=hope", "protocol=fold or protocol=no-grace-period"),
            ("descriptors=stone", "descriptors=page or descriptors=memdesc"),
            ("big-blocks=yes", KEYS),
            ("barrier=hope", "barrier=fences or barrier=interrupts"),
            ("seed=-1", "a number"),
        ] {
            let error = line.parse::<Options>().unwrap_err();
            assert_eq!(error.expected, expected, "{line}");
            assert!(line.contains(&error.word) && error.to_string().contains(&error.word));
        }
        assert_eq!("".parse::<Options>(), Ok(Options::default()));
        assert_eq!("  \t ".parse::<Options>(), Ok(Options::default()));
    }

    proptest! {
        #[test]
        fn options_come_back(
            flags in any::<(bool, bool, bool, bool)>(),
            numbers in any::<(Option<u16>, u16, u64, u16)>(),
            work in proptest::collection::vec("[a-z=0-9:.GM]{1,20}", 0..3),
            breaks in proptest::option::of(prop_oneof![
                Just(Break::Write), Just(Break::Stack), Just(Break::DoubleFault), Just(Break::Hang),
                Just(Break::NoFlush), Just(Break::LocalFlush)
            ]),
            barrier in proptest::option::of(prop_oneof![
                Just(BarrierChoice::Fences), Just(BarrierChoice::Interrupts)
            ]),
        ) {
            let options = Options {
                protocol: if flags.0 { ProtocolChoice::NoGracePeriod } else { ProtocolChoice::Fold },
                descriptors: if flags.3 { DescriptorsChoice::Memdesc } else { DescriptorsChoice::Page },
                barrier,
                walkers: numbers.0,
                owners: numbers.1,
                seed: numbers.2,
                work,
                leftovers: if flags.1 { LeftoversChoice::Adopt } else { LeftoversChoice::Unplug },
                big_blocks: flags.2,
                watchdog: numbers.3,
                breaks,
            };
            prop_assert_eq!(options.to_string().parse::<Options>(), Ok(options));
        }

        #[test]
        fn any_line_is_read_or_refused(line in ".{0,200}") {
            let _ = line.parse::<Options>();
        }
    }
}
