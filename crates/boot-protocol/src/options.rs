//! The kernel's command line.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

/// Which rules walkers and folders follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProtocolChoice {
    /// Publish, wait for a grace period, remap.
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
pub enum LeftoversChoice {
    /// Unplugs all of it.
    #[default]
    Unplug,
    /// Asks the device what is plugged, and takes it.
    Adopt,
}

/// How a grace period reaches walkers on other processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierChoice {
    /// Walkers pay a full fence in each section, and nobody is interrupted.
    Fences,
    /// Walkers pay nothing, and each grace period interrupts every processor.
    Interrupts,
}

/// Something to break on purpose, a while after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Write to a folded descriptor.
    Write,
    /// Use up a stack.
    Stack,
    /// Cause an exception without a stack to handle it on.
    DoubleFault,
    /// Stop making progress on one processor, interrupts off.
    Hang,
    /// From now on flush no TLB.
    NoFlush,
    /// From now on flush the TLB of the processor that flushes alone.
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
                    options.protocol = match value {
                        "fold" => ProtocolChoice::Fold,
                        "no-grace-period" => ProtocolChoice::NoGracePeriod,
                        _ => return Err(wrong("protocol=fold or protocol=no-grace-period")),
                    }
                }
                "descriptors" => {
                    options.descriptors = match value {
                        "page" => DescriptorsChoice::Page,
                        "memdesc" => DescriptorsChoice::Memdesc,
                        _ => return Err(wrong("descriptors=page or descriptors=memdesc")),
                    }
                }
                "barrier" => {
                    options.barrier = Some(match value {
                        "fences" => BarrierChoice::Fences,
                        "interrupts" => BarrierChoice::Interrupts,
                        _ => return Err(wrong("barrier=fences or barrier=interrupts")),
                    })
                }
                "walkers" => options.walkers = Some(small()?),
                "owners" => options.owners = small()?,
                "seed" => options.seed = value.parse().map_err(|_| wrong("a number"))?,
                "work" => options.work.push(value.to_string()),
                "leftovers" => {
                    options.leftovers = match value {
                        "unplug" => LeftoversChoice::Unplug,
                        "adopt" => LeftoversChoice::Adopt,
                        _ => return Err(wrong("leftovers=unplug or leftovers=adopt")),
                    }
                }
                "big-blocks" if value.is_empty() => options.big_blocks = true,
                "watchdog" => options.watchdog = small()?,
                "break" => {
                    options.breaks = Some(match value {
                        "write" => Break::Write,
                        "stack" => Break::Stack,
                        "double-fault" => Break::DoubleFault,
                        "hang" => Break::Hang,
                        "no-flush" => Break::NoFlush,
                        "local-flush" => Break::LocalFlush,
                        _ => {
                            return Err(wrong(
                                "break=write, stack, double-fault, hang, no-flush or local-flush",
                            ));
                        }
                    })
                }
                _ => return Err(wrong(KEYS)),
            }
        }
        Ok(options)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            ProtocolChoice::Fold => "fold",
            ProtocolChoice::NoGracePeriod => "no-grace-period",
        };
        let descriptors = match self.descriptors {
            DescriptorsChoice::Page => "page",
            DescriptorsChoice::Memdesc => "memdesc",
        };
        let leftovers = match self.leftovers {
            LeftoversChoice::Unplug => "unplug",
            LeftoversChoice::Adopt => "adopt",
        };
        write!(f, "protocol={protocol} descriptors={descriptors} owners={} seed={}", self.owners, self.seed)?;
        write!(f, " leftovers={leftovers} watchdog={}", self.watchdog)?;
        if let Some(walkers) = self.walkers {
            write!(f, " walkers={walkers}")?;
        }
        match self.barrier {
            Some(BarrierChoice::Fences) => f.write_str(" barrier=fences")?,
            Some(BarrierChoice::Interrupts) => f.write_str(" barrier=interrupts")?,
            None => {}
        }
        if self.big_blocks {
            f.write_str(" big-blocks")?;
        }
        if let Some(breaks) = self.breaks {
            f.write_str(match breaks {
                Break::Write => " break=write",
                Break::Stack => " break=stack",
                Break::DoubleFault => " break=double-fault",
                Break::Hang => " break=hang",
                Break::NoFlush => " break=no-flush",
                Break::LocalFlush => " break=local-flush",
            })?;
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
