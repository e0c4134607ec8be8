//! How long to wait before the next attempt.

use core::time::Duration;

/// The first wait. Linux begins with 50 s; a host that wants memory back should not have to.
pub const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(60);

/// Waits that double, each up to a quarter longer or shorter by chance, so that many guests of one host do not come back
/// at the same time.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    pub(crate) fn new(seed: u64) -> Self {
        Self { next: FIRST, random: fastrand::Rng::with_seed(seed) }
    }

    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    pub(crate) fn wait(&mut self) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(LONGEST);
        base * self.random.u32(75..=125) / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_again() {
        let mut backoff = Backoff::new(7);
        let mut base = FIRST;
        for _ in 0..20 {
            let wait = backoff.wait();
            assert!(wait >= base * 3 / 4 && wait <= base * 5 / 4, "{wait:?} for {base:?}");
            base = (base * 2).min(LONGEST);
        }
        assert_eq!(base, LONGEST);
        backoff.reset();
        assert!(backoff.wait() <= FIRST * 5 / 4);
    }

    #[test]
    fn guests_do_not_come_back_together() {
        let waits = |seed| {
            let mut backoff = Backoff::new(seed);
            core::array::from_fn::<_, 8, _>(|_| backoff.wait())
        };
        assert_ne!(waits(1), waits(2));
    }
}
