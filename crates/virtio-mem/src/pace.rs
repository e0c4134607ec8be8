//! When the next step is due: at once, later by growing waits, or not before something changes.

use core::time::Duration;

use crate::status::{Next, Shortfall};
use crate::stop::Stop;

/// Steps in a row that a reason may end before the driver waits. (After a NACK, Linux asks for ever.)
const NACKS: u32 = 3;
const CHANGES: u32 = 8;
const QUESTIONS: u32 = 256;

/// The first wait. Linux begins with 50 s, which is long for a host that wants its memory back.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// What earlier steps say of the next one.
pub(crate) struct Pace {
    /// Steps in a row that came to nothing.
    stalls: u32,
    /// The next wait, but for chance.
    wait: Duration,
    random: fastrand::Rng,
}

impl Pace {
    pub(crate) fn new(seed: u64) -> Self {
        Self { stalls: 0, wait: FIRST, random: fastrand::Rng::with_seed(seed) }
    }

    /// Something has changed: waits begin again with the shortest.
    pub(crate) fn reset(&mut self) {
        self.wait = FIRST;
    }

    /// When to step again after a step that did something (true), that had nothing to do, or that was stopped. `in_use` is
    /// the reason where memory in use stopped it.
    pub(crate) fn next(&mut self, done: Result<bool, Stop>, in_use: Shortfall) -> Next {
        let (limit, why) = match done {
            Ok(did) => {
                self.stalls = 0;
                if did {
                    return Next::Again;
                }
                self.reset();
                return Next::Reached;
            }
            Err(Stop::Paused) => (QUESTIONS, Shortfall::NoRoom),
            Err(Stop::Spent) => (QUESTIONS, Shortfall::Malformed),
            Err(Stop::NewWish) => (CHANGES, Shortfall::Unsteady),
            Err(Stop::Nack) => (NACKS, Shortfall::DeviceRefused),
            Err(Stop::InUse { .. }) => (0, in_use),
            Err(Stop::Short(why @ (Shortfall::NoSpace | Shortfall::OfflineLimit))) => {
                return Next::Asleep(why);
            }
            Err(Stop::Short(why)) => (0, why),
        };
        self.stalls += 1;
        if self.stalls < limit {
            return Next::Again;
        }
        self.stalls = 0;
        Next::Later(self.wait(), why)
    }

    /// Waits that double, each up to a quarter longer or shorter by chance, so that the guests of one host do not retry at
    /// the same time.
    fn wait(&mut self) -> Duration {
        let base = self.wait;
        self.wait = (base * 2).min(LONGEST);
        base * self.random.u32(75..=125) / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_again() {
        let mut pace = Pace::new(7);
        let mut base = FIRST;
        for _ in 0..20 {
            let wait = pace.wait();
            assert!(wait >= base * 3 / 4 && wait <= base * 5 / 4, "{wait:?} for {base:?}");
            base = (base * 2).min(LONGEST);
        }
        assert_eq!(base, LONGEST);
        pace.reset();
        assert!(pace.wait() <= FIRST * 5 / 4);
    }

    #[test]
    fn guests_do_not_come_back_together() {
        let waits = |seed| {
            let mut pace = Pace::new(seed);
            core::array::from_fn::<_, 8, _>(|_| pace.wait())
        };
        assert_ne!(waits(1), waits(2));
    }
}
