//! Who decides how a history goes on. The world offers what may happen next, each with a weight, and a chooser answers; so one
//! seed is one history, a list of steps is the same history again, and a search takes every offer in turn.

use std::collections::VecDeque;

use super::world::Step;
use crate::entropy::SeededEntropy;

/// One thing that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// How likely it is among the others, if it is left to chance.
    pub weight: u32,
    /// What happens.
    pub step: Step,
}

/// Decides what happens next.
pub trait Chooser {
    /// The place of one of the `offers`, or `None` to end the history.
    fn choose(&mut self, offers: &[Offer]) -> Option<usize>;
}

/// Chance, by a seed: the same history with every version.
#[derive(Debug)]
pub struct Seeded(SeededEntropy);

impl Seeded {
    /// The chance of a seed.
    pub fn new(seed: u64) -> Self {
        Seeded(SeededEntropy::new(seed, 0))
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.number()
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let place = usize::try_from(self.below(choices.len() as u64)).unwrap_or(0);
        choices[place]
    }
}

impl Chooser for Seeded {
    fn choose(&mut self, offers: &[Offer]) -> Option<usize> {
        let total: u64 = offers.iter().map(|offer| u64::from(offer.weight)).sum();
        if total == 0 {
            return None;
        }
        let mut left = self.below(total);
        offers.iter().position(|offer| {
            let weight = u64::from(offer.weight);
            let hit = left < weight;
            left = left.saturating_sub(weight);
            hit
        })
    }
}

/// A list of steps again. Those that cannot happen any more, because others were taken out of the list, are passed over.
#[derive(Clone, Debug)]
pub struct Replay(VecDeque<Step>);

impl Replay {
    /// These steps, in order.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Replay(steps.into_iter().collect())
    }
}

impl Chooser for Replay {
    fn choose(&mut self, offers: &[Offer]) -> Option<usize> {
        while let Some(step) = self.0.pop_front() {
            let place = offers.iter().position(|offer| offer.step == step);
            if place.is_some() {
                return place;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(weights: &[u32]) -> Vec<Offer> {
        let offer = |(client, weight): (usize, &u32)| Offer { weight: *weight, step: Step::Wake { client } };
        weights.iter().enumerate().map(offer).collect()
    }

    #[test]
    fn chance_follows_the_weights_and_the_seed() {
        let offers = offers(&[3, 0, 1]);
        let mut counts = [0; 3];
        let (mut one, mut other) = (Seeded::new(7), Seeded::new(7));
        for _ in 0..4_000 {
            let place = one.choose(&offers);
            assert_eq!(place, other.choose(&offers));
            counts[place.expect("an offer")] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((2_800..3_200).contains(&counts[0]), "{counts:?}");
        assert_eq!(Seeded::new(7).choose(&[]), None);
    }

    #[test]
    fn a_replay_passes_over_what_cannot_happen() {
        let [first, _, third] = offers(&[1, 1, 1])[..] else { panic!() };
        let mut replay = Replay::new([third.step, Step::Wake { client: 9 }, first.step]);
        let offers = offers(&[1, 1, 1]);
        assert_eq!(
            [replay.choose(&offers), replay.choose(&offers), replay.choose(&offers)],
            [Some(2), Some(0), None]
        );
    }
}
