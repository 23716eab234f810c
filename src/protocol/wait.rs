//! How long a claim keeps trying, how it learns that a holder is done, and how long it rests between two attempts. Jitter comes
//! in as an argument.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::settings::SettingsError;
use super::time::Instant;

/// For how long a claim tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patience {
    /// `try_acquire`: until it is clear whether somebody holds the resource. Split votes are settled.
    Once,
    /// `acquire`: until this moment.
    Until(Instant),
    /// `acquire` by a caller who did not say for how long.
    UntilWithout {
        /// Until this moment, and as much longer as it rests only because nodes wait after a restart.
        end: Instant,
        /// But longer by no more than this: a node that is restarted again and again must not make it a wait without end.
        spare: Duration,
    },
}

impl Patience {
    /// The moment at which the claim gives up, whatever it is doing.
    pub fn ends_at(self) -> Instant {
        match self {
            Patience::Once => Instant::NEVER,
            Patience::Until(end) | Patience::UntilWithout { end, .. } => end,
        }
    }

    /// The moment at which it gives up at the latest, however long it rests because nodes wait.
    #[cfg(feature = "sim")]
    pub fn ends_at_latest(self) -> Instant {
        match self {
            Patience::UntilWithout { end, spare } => end + spare,
            Patience::Once | Patience::Until(_) => self.ends_at(),
        }
    }

    /// A rest of this length is taken only because nodes wait after a restart.
    pub fn rest_for_restarts(&mut self, rest: Duration) {
        if let Patience::UntilWithout { end, spare } = self {
            let more = rest.min(*spare);
            (*end, *spare) = (*end + more, *spare - more);
        }
    }
}

/// How whoever waits for a holder learns that it is done.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::{MemoryNodes, WakeBy};
///
/// let nodes = MemoryNodes::new(3);
/// let redlock = nodes.builder().wake_by(WakeBy::Poll(Duration::from_millis(50))).connect().await?;
/// let guard = redlock.mutex("invoices/42").acquire().await?;
/// # drop(guard);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WakeBy {
    /// By a message: the nodes keep a list of those who wait, and a release wakes the first on it. Besides, whoever waits looks
    /// again by itself at least once a second, and when the holder's keys run out; so a message that is lost costs
    /// that long at most. Where nodes cannot send messages, or may not, it asks again after the rests of the
    /// [`Backoff`].
    #[default]
    Message,
    /// By asking again, after a random rest of at least half of this and at most this: at least 1 ms. Nothing is kept at the
    /// nodes for it. Nobody knows of one who polls, so nobody lets it pass: among clients that want the lock all the time it
    /// may wait for long.
    Poll(Duration),
}

impl WakeBy {
    /// Refuses to ask without a pause.
    pub(crate) fn check(self) -> Result<(), SettingsError> {
        const SHORTEST: Duration = Duration::from_millis(1);
        match self {
            WakeBy::Poll(pause) if pause < SHORTEST => {
                Err(SettingsError::new("wake_by", pause, format_args!("at least {SHORTEST:?}")))
            }
            WakeBy::Poll(_) | WakeBy::Message => Ok(()),
        }
    }
}

/// For how long a wait list is kept after the last one has entered it, or said that it still waits.
pub const LIST_LIVES: Duration = Duration::from_secs(3);

/// Whoever waits for a message looks again by itself after so long at most.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Somewhere in the second half of a span, so that those who came together do not stay together.
pub(crate) fn second_half(span: Duration, jitter: u64) -> Duration {
    span / 2 + fraction(span / 2, jitter)
}

/// How long to rest after a failed attempt, and when to give up.
///
/// A rest is random between zero and a bound (*full jitter*), because contenders that failed together must not come back
/// together. Where the holder's keys run out earlier than that, the rest ends with them.
///
/// ```
/// use std::time::Duration;
/// use redlock_quorum::Backoff;
///
/// let patient = Backoff::exponential(Duration::from_millis(10), Duration::from_secs(1));
/// let thrice = Backoff::constant(Duration::from_millis(100)).attempts(3);
/// let linear = Backoff::custom(|failures| (failures < 5).then(|| Duration::from_millis(50) * failures));
/// # let _ = (patient, thrice, linear);
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    rests: Rests,
    attempts: u32,
}

#[derive(Clone)]
enum Rests {
    Exponential { shortest: Duration, longest: Duration },
    Constant(Duration),
    Custom(Arc<dyn Fn(u32) -> Option<Duration> + Send + Sync>),
}

impl Backoff {
    /// From 10 milliseconds to one second.
    pub const DEFAULT: Backoff = Backoff {
        rests: Rests::Exponential { shortest: Duration::from_millis(10), longest: Duration::from_secs(1) },
        attempts: u32::MAX,
    };

    /// The first rest is at most `shortest`, each following one at most twice the one before, none more than `longest`.
    ///
    /// The values are checked when the mutex is used: both above zero, and in this order.
    pub const fn exponential(shortest: Duration, longest: Duration) -> Self {
        Backoff { rests: Rests::Exponential { shortest, longest }, attempts: u32::MAX }
    }

    /// Every rest is at most `longest`, which must be above zero.
    pub const fn constant(longest: Duration) -> Self {
        Backoff { rests: Rests::Constant(longest), attempts: u32::MAX }
    }

    /// The rest after so many failed attempts (from 1), taken as it is, without jitter, also by whoever waits for a message: `None` gives up. A rest of less
    /// than a millisecond is one of a millisecond, so that the nodes are not asked without a pause. A panic gives up, too.
    pub fn custom(rest: impl Fn(u32) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Backoff { rests: Rests::Custom(Arc::new(rest)), attempts: u32::MAX }
    }

    /// Gives up after so many failed attempts, of which there must be at least 1, even if the wait is not over. Finding the
    /// resource held counts as one, also where a message is waited for between two of them.
    #[must_use]
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// The rest after the `failures`-th failed attempt in a row (from 1); `None` gives up.
    pub(crate) fn delay(&self, failures: u32, jitter: u64) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        match &self.rests {
            Rests::Constant(longest) => Some(fraction(*longest, jitter)),
            Rests::Custom(rest) => {
                // It is the user's code, and runs wherever the last answer was heard: its panic must not reach further.
                let rest = catch_unwind(AssertUnwindSafe(|| rest(failures))).unwrap_or(None);
                rest.map(|rest| rest.max(Duration::from_millis(1)))
            }
            Rests::Exponential { shortest, longest } => {
                let doublings = failures.saturating_sub(1).min(31);
                Some(fraction(shortest.saturating_mul(1 << doublings).min(*longest), jitter))
            }
        }
    }

    /// Whether it may end the wait, so that its rests are to be taken as they are.
    pub(crate) fn is_counted(&self) -> bool {
        self.attempts < u32::MAX || matches!(self.rests, Rests::Custom(_))
    }

    /// Spreads those who wait for the same holder's keys to run out.
    pub(crate) fn spread(&self, jitter: u64) -> Duration {
        match &self.rests {
            Rests::Exponential { shortest, .. } => fraction(*shortest, jitter),
            Rests::Constant(longest) => fraction(*longest, jitter),
            Rests::Custom(_) => Duration::ZERO,
        }
    }

    /// Refuses what would never rest, or never try.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        if self.attempts == 0 {
            return Err(SettingsError::new("attempts", "0", format_args!("at least 1")));
        }
        match &self.rests {
            Rests::Exponential { shortest: rest, .. } | Rests::Constant(rest) if rest.is_zero() => {
                Err(SettingsError::new("backoff", *rest, format_args!("above zero")))
            }
            Rests::Exponential { shortest, longest } if longest < shortest => {
                let bound = format_args!("the longest rest, at least the shortest of {shortest:?}");
                Err(SettingsError::new("backoff", *longest, bound))
            }
            Rests::Exponential { .. } | Rests::Constant(_) | Rests::Custom(_) => Ok(()),
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::DEFAULT
    }
}

impl fmt::Debug for Rests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rests::Exponential { shortest, longest } => write!(f, "{shortest:?} to {longest:?}"),
            Rests::Constant(longest) => write!(f, "{longest:?}"),
            Rests::Custom(_) => f.write_str("custom"),
        }
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

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_bound_doubles_up_to_the_longest() {
        let backoff = Backoff::exponential(ms(10), ms(100));
        for (failures, bound) in
            [(1, 10), (2, 20), (3, 40), (4, 80), (5, 100), (40, 100), (u32::MAX - 1, 100)]
        {
            let nearly = ms(bound) - Duration::from_nanos(1);
            assert_eq!(backoff.delay(failures, u64::MAX), Some(nearly), "after {failures}");
            assert_eq!(backoff.delay(failures, 0), Some(Duration::ZERO));
            assert_eq!(backoff.delay(failures, u64::MAX / 2 + 1), Some(ms(bound) / 2));
        }
    }

    #[test]
    fn a_constant_rest_does_not_grow_and_a_custom_one_is_taken_as_it_is() {
        let constant = Backoff::constant(ms(10));
        assert_eq!(constant.delay(1, u64::MAX / 2 + 1), Some(ms(5)));
        assert_eq!(constant.delay(9, u64::MAX / 2 + 1), Some(ms(5)));
        let custom = Backoff::custom(|failures| (failures < 3).then(|| ms(7) * (failures - 1)));
        assert_eq!(custom.delay(1, 0), Some(ms(1)), "never without a pause");
        assert_eq!(custom.delay(2, 0), Some(ms(7)));
        assert_eq!(custom.delay(3, 0), None);
    }

    #[test]
    fn the_attempts_are_counted() {
        let backoff = Backoff::DEFAULT.attempts(3);
        assert!(backoff.delay(2, 0).is_some());
        assert!(backoff.delay(3, 0).is_none());
    }
}
