//! How long a claim keeps trying, and how long it rests between two attempts. Jitter comes in as an argument.

use std::time::Duration;

use super::time::Instant;

/// For how long a claim tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// `try_acquire`: until it is clear whether somebody holds the resource. Split votes are settled.
    Once,
    /// `acquire`: until this moment.
    Until(Instant),
}

impl Patience {
    /// The moment at which the claim gives up, whatever it is doing.
    pub fn ends_at(self) -> Instant {
        match self {
            Patience::Once => Instant::NEVER,
            Patience::Until(moment) => moment,
        }
    }
}

/// How long to rest after a failed attempt: a random time between zero and a bound that doubles with each failure.
///
/// Full jitter, because contenders that failed together must not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub(crate) shortest: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// From 10 milliseconds to one second.
    pub const DEFAULT: Backoff =
        Backoff { shortest: Duration::from_millis(10), longest: Duration::from_secs(1) };

    /// The first rest is at most `shortest`, each following one at most twice the one before, none more than `longest`.
    ///
    /// The values are checked when the mutex is used: both above zero, and in this order.
    pub fn exponential(shortest: Duration, longest: Duration) -> Self {
        Backoff { shortest, longest }
    }

    /// The rest after the `failures`-th failed attempt in a row (from 1).
    pub(crate) fn delay(self, failures: u32, jitter: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(32);
        let bound = self.shortest.saturating_mul(1 << doublings.min(31)).min(self.longest);
        fraction(bound, jitter)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::DEFAULT
    }
}

/// `span` times `jitter / 2^64`: uniform between zero and `span` for a uniform jitter.
pub(crate) fn fraction(span: Duration, jitter: u64) -> Duration {
    let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let scaled = (u128::from(nanos) * u128::from(jitter)) >> 64;
    Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_longest() {
        let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_millis(100));
        let nearly = |bound: u64| Duration::from_millis(bound) - Duration::from_nanos(1);
        for (failures, bound) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 100), (40, 100), (u32::MAX, 100)] {
            assert_eq!(backoff.delay(failures, u64::MAX), nearly(bound), "after {failures}");
            assert_eq!(backoff.delay(failures, 0), Duration::ZERO);
            assert_eq!(backoff.delay(failures, u64::MAX / 2 + 1), Duration::from_millis(bound) / 2);
        }
    }
}
