//! The entropy door: where the random numbers of an attempt come from.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::claim::Draw;
use crate::protocol::command::LeaseId;

/// Draws random numbers.
pub trait Entropy: Send + Sync + 'static {
    /// A LeaseId that nobody ever had, and a uniform jitter.
    fn draw(&self) -> Draw;
}

/// The operating system's generator for the LeaseId, asked anew at each attempt, so that a forked process shares nothing.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn draw(&self) -> Draw {
        Draw { lease_id: LeaseId(uuid::Uuid::new_v4().as_u128()), jitter: rand::random() }
    }
}

/// Numbers that a seed determines, on every machine and in every version alike: SplitMix64, for in-memory nodes and their
/// faults. Whoever knows a few of them knows the rest, so they name no lease on a server.
#[derive(Debug)]
pub struct SeededEntropy {
    state: AtomicU64,
}

impl SeededEntropy {
    /// One of the streams of a seed; what is drawn from one does not depend on what was drawn from another.
    pub fn new(seed: u64, stream: u64) -> Self {
        SeededEntropy { state: AtomicU64::new(scrambled(seed ^ scrambled(stream.wrapping_add(STEP)))) }
    }

    /// Uniform.
    pub fn number(&self) -> u64 {
        scrambled(self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
    }

    /// Uniform below `bound`, and zero if that is zero.
    pub fn below(&self, bound: u64) -> u64 {
        let scaled = (u128::from(self.number()) * u128::from(bound)) >> 64;
        u64::try_from(scaled).expect("less than the bound")
    }
}

impl Entropy for SeededEntropy {
    fn draw(&self) -> Draw {
        let lease_id = LeaseId((u128::from(self.number()) << 64) | u128::from(self.number()));
        Draw { lease_id, jitter: self.number() }
    }
}

/// The step of SplitMix64: 2^64 divided by the golden ratio, and odd.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64.
fn scrambled(state: u64) -> u64 {
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_numbers_of_each_stream() {
        // The first numbers of SplitMix64 from the state 0, as published with it.
        let from_zero = SeededEntropy { state: AtomicU64::new(0) };
        let first = [from_zero.number(), from_zero.number(), from_zero.number()];
        assert_eq!(first, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);

        let draws = |seed, stream| {
            let entropy = SeededEntropy::new(seed, stream);
            [entropy.draw(), entropy.draw()]
        };
        assert_eq!(draws(1, 2), draws(1, 2));
        let [first, second] = draws(1, 2);
        for other in [second, draws(1, 3)[0], draws(2, 2)[0], draws(2, 1)[0]] {
            assert_ne!(first.lease_id, other.lease_id);
            assert_ne!(first.jitter, other.jitter);
        }
    }

    #[test]
    fn a_bounded_number_stays_below_its_bound() {
        let entropy = SeededEntropy::new(0, 0);
        let mut seen = [0; 3];
        (0..300).for_each(|_| seen[entropy.below(3) as usize] += 1);
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
        assert_eq!((entropy.below(1), entropy.below(0)), (0, 0));
    }
}
