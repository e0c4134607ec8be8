//! What a guest can be made to do.

use std::fmt;

use pagefold_boot_protocol::{Request, Restart};

use crate::size::{parse_bytes, parse_percent, parse_seconds};
use pagefold_picture::amount::{Units, Whole};

/// Bytes that devices are asked to have plugged, all at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes(pub Vec<(usize, u64)>);

impl Wishes {
    /// Reads `4G`, `1:4G`, or `0:4G+1:2G`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut wishes: Vec<(usize, u64)> = Vec::new();
        for part in text.split('+') {
            let (device, size) = match part.split_once(':') {
                Some((device, size)) => {
                    (device.parse().map_err(|_| format!("'{device}' is no device's number"))?, size)
                }
                None => (0, part),
            };
            if size.is_empty() {
                return Err("a size is missing: write SIZE, N:SIZE or N:SIZE+N:SIZE".into());
            }
            if wishes.iter().any(|&(other, _)| other == device) {
                return Err(format!("two sizes for device {device} in one step: write N:SIZE+N:SIZE"));
            }
            wishes.push((device, parse_bytes(size)?));
        }
        Ok(Wishes(wishes))
    }
}

impl fmt::Display for Wishes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, &(device, bytes)) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}vmem{device} {}", Units::Iec.size(bytes))?;
        }
        Ok(())
    }
}

/// Something that a guest is made to do, after which everything is measured.
#[derive(Clone, Debug, PartialEq)]
pub enum BootStep {
    /// Nothing: it has just come up.
    Boot,
    /// Plug or unplug.
    Resize(Wishes),
    /// What one request does.
    Ask(Request),
    /// Live on for so many seconds.
    Live(f64),
    /// The machine's reset button.
    Reset,
}

impl BootStep {
    /// Reads a line of a script.
    pub fn parse(line: &str) -> Result<BootStep, String> {
        let mut words = line.split_ascii_whitespace();
        let command = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let one = |what: &str| match rest[..] {
            [word] => Ok(word),
            _ => Err(format!("{command} takes {what}")),
        };
        let device = |word: &str| word.parse().map_err(|_| format!("'{word}' is no device's number"));
        let share = |word: &str| parse_percent(word).map(|percent| (percent * 10.0).round() as u16);
        match command {
            "resize" => one("a size, as in 4G or 0:4G+1:2G").and_then(Wishes::parse).map(BootStep::Resize),
            "populate" if rest.is_empty() => Ok(BootStep::Ask(Request::Populate)),
            "free" => one("a share, as in 50%").and_then(share).map(Request::Free).map(BootStep::Ask),
            "pin" => one("a share, as in 10%").and_then(share).map(Request::Pin).map(BootStep::Ask),
            "touch" if rest.is_empty() => Ok(BootStep::Ask(Request::Touch)),
            "cycle" => {
                let number = one("a number of folios")?;
                let rounds = number.parse().map_err(|_| format!("'{number}' is no number"))?;
                Ok(BootStep::Ask(Request::Cycle(rounds)))
            }
            "restart" | "forget" => {
                let device = one("a device's number").and_then(device)?;
                let restart = Restart { device, forget: command == "forget" };
                Ok(BootStep::Ask(Request::RestartDriver(restart)))
            }
            "live" => one("seconds").and_then(parse_seconds).map(BootStep::Live),
            "reset" if rest.is_empty() => Ok(BootStep::Reset),
            _ => Err(format!("'{line}' is none of the commands; 'help' lists them")),
        }
    }
}

impl fmt::Display for BootStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootStep::Boot => f.write_str("boot"),
            BootStep::Resize(wishes) => write!(f, "{wishes}"),
            BootStep::Ask(request) => match request {
                Request::Free(share) => write!(f, "free {:.1} %", f64::from(*share) / 10.0),
                Request::Pin(share) => write!(f, "pin {:.1} %", f64::from(*share) / 10.0),
                Request::Cycle(rounds) => write!(f, "cycle {}", Whole(*rounds)),
                Request::RestartDriver(Restart { device, forget: false }) => {
                    write!(f, "restart vmem{device}")
                }
                Request::RestartDriver(Restart { device, .. }) => write!(f, "forget vmem{device}"),
                Request::Populate => f.write_str("populate"),
                Request::Touch => f.write_str("touch"),
                // No step is one of these.
                other => write!(f, "{other:?}"),
            },
            BootStep::Live(seconds) => write!(f, "live {seconds} s"),
            BootStep::Reset => f.write_str("reset"),
        }
    }
}

/// What a script may say.
pub const HELP: &str = "\
resize SIZE     plug or unplug: 4G for device 0, 1:4G for device 1, 0:4G+1:2G for both at once
populate        let the workloads of --work grow to their sizes
free SHARE      free a share of their folios (50%)
pin SHARE       pin a share of their folios, and no others
touch           take memory from all over, write to it, read it back, free it
cycle N         fold and unfold N folios of 2 MiB while walkers look
restart N       drop the driver of device N, and probe the device anew
forget N        the same, but the new driver finds memory that is plugged already
live SECONDS    wait, while walkers and owners go on
reset           press the machine's reset button
report          what everything costs now, table by table
audit           hold all promises against each other
snapshot FILE   record all pages
map             all pages as a picture
help            this
stop            end (also: the end of the script)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_or_refused() {
        assert_eq!(BootStep::parse("resize 1:2G"), Ok(BootStep::Resize(Wishes(vec![(1, 2 << 30)]))));
        assert_eq!(BootStep::parse("  free  12.5% "), Ok(BootStep::Ask(Request::Free(125))));
        let forget = Request::RestartDriver(Restart { device: 1, forget: true });
        assert_eq!(BootStep::parse("forget 1"), Ok(BootStep::Ask(forget)));
        for line in
            ["", "resize", "resize 1G 2G", "cycle many", "pin 200%", "restart -1", "touch it", "dance"]
        {
            assert!(BootStep::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn wishes_are_read_or_refused() {
        const GIB: u64 = 1 << 30;
        let wishes = |list: &[(usize, u64)]| Ok(Wishes(list.to_vec()));
        assert_eq!(Wishes::parse("4G"), wishes(&[(0, 4 * GIB)]));
        assert_eq!(Wishes::parse("0"), wishes(&[(0, 0)]));
        assert_eq!(Wishes::parse("1:2G"), wishes(&[(1, 2 * GIB)]));
        assert_eq!(Wishes::parse("0:4G+1:2G"), wishes(&[(0, 4 * GIB), (1, 2 * GIB)]));
        for text in ["", "+", "4G+", "x:4G", "-1:4G", "4G+2G", "1:1G+1:2G", "1:", "4X"] {
            assert!(Wishes::parse(text).is_err(), "{text}");
        }
        assert_eq!(Wishes::parse("0:4G+1:2G").unwrap().to_string(), "vmem0 4 GiB, vmem1 2 GiB");
    }
}
