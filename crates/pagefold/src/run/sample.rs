//! The curves: how memory and metadata change within each step.

use serde::Serialize;

/// One moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Moment {
    /// The step it lies in.
    pub step: usize,
    /// Seconds of that step gone.
    pub seconds: f64,
    /// Bytes that the host wants plugged, and that are.
    pub requested: u64,
    pub plugged: u64,
    /// Bytes in use in each zone: normal, movable.
    pub in_use: [u64; 2],
    /// All metadata: tables counted, their page tables measured (`VmPTE`).
    pub metadata: u64,
    /// What Linux needs for the same state, computed.
    pub linux: u64,
}

/// Moments of a step that are kept at most.
const MOST: usize = 240;

/// Keeps moments evenly, however many there turn out to be.
#[derive(Debug, Default)]
pub struct Curves {
    moments: Vec<Moment>,
    /// Where the current step begins.
    begin: usize,
    /// Of so many chances one is taken.
    stride: u64,
    chances: u64,
}

impl Curves {
    /// A new step.
    pub fn begin(&mut self, moment: Moment) {
        self.begin = self.moments.len();
        self.stride = 1;
        self.chances = 0;
        self.moments.push(moment);
    }

    /// Another moment of the step, if it is time for one.
    pub fn offer(&mut self, moment: impl FnOnce() -> Moment) {
        self.chances += 1;
        if !self.chances.is_multiple_of(self.stride.max(1)) {
            return;
        }
        self.moments.push(moment());
        if self.moments.len() - self.begin > MOST {
            // Every other one goes; the first stays.
            let mut at = 0;
            let begin = self.begin;
            self.moments.retain(|_| {
                at += 1;
                at <= begin || (at - begin) % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// The step's last moment.
    pub fn end(&mut self, moment: Moment) {
        self.moments.push(moment);
    }

    /// All of them.
    pub fn into_moments(self) -> Vec<Moment> {
        self.moments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_chances_leaves_a_bounded_number_of_moments() {
        let mut curves = Curves::default();
        for (step, chances) in [(0, 3), (1, 100_000)] {
            curves.begin(Moment { step, ..Moment::default() });
            for chance in 1..=chances {
                curves.offer(|| Moment { step, plugged: chance, ..Moment::default() });
            }
            curves.end(Moment { step, plugged: chances, ..Moment::default() });
        }
        let moments = curves.into_moments();
        let of = |step| moments.iter().filter(move |moment| moment.step == step).collect::<Vec<_>>();
        assert_eq!(of(0).len(), 5);
        assert!((MOST / 3..=MOST + 2).contains(&of(1).len()), "{}", of(1).len());
        assert!(of(1).windows(2).all(|pair| pair[0].plugged <= pair[1].plugged));
        assert_eq!(of(1)[0].plugged, 0);
    }
}
