//! Points in time, the ttl that a node is asked for, and the allowance for clocks that run at different rates.
//!
//! Nothing here reads a clock: every point in time comes in as an argument. Arithmetic is on integers, saturates,
//! and rounds to the side on which a lock ends too early rather than too late.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the time line of the clock door: nanoseconds since an origin that only this process knows.
///
/// Addition saturates at [`Instant::NEVER`], so `Duration::MAX` means "never" wherever a length of time is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Later than every moment that will be reached.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// The moment `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this moment, zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, span: Duration) -> Instant {
        Instant(self.0.saturating_add(whole_nanos(span)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, span: Duration) -> Instant {
        Instant(self.0.saturating_sub(whole_nanos(span)))
    }
}

fn whole_nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The time to live of a key, in the whole milliseconds that `PX` takes.
///
/// A length of time is rounded *down* to milliseconds once, here. The node and the client then count the same number;
/// were only the node's share rounded, the client would believe in a fraction of a millisecond that no key backs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u64);

impl Ttl {
    /// The whole milliseconds of `span`.
    pub fn from_duration(span: Duration) -> Self {
        Ttl(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Ttl(millis)
    }

    /// No time at all.
    pub const ZERO: Ttl = Ttl(0);

    /// What `PX` is given.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The same length as a duration.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl fmt::Debug for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// How far the clock of a node and the clock of a client may move apart while a key lives.
///
/// The allowance for a ttl `T` is `ceil(T * parts_per_million / 10^6) + constant`: the rate difference that we tolerate,
/// and a constant for the whole milliseconds in which a server expires keys (the `clock_drift` of the Redlock description,
/// which has the same two terms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Drift {
    /// Tolerated difference of rates; 10 000 is one percent.
    pub parts_per_million: u32,
    /// Added whatever the ttl.
    pub constant: Duration,
}

impl Drift {
    /// One percent plus two milliseconds.
    pub const DEFAULT: Drift = Drift { parts_per_million: 10_000, constant: Duration::from_millis(2) };

    /// What is taken off the validity of a key that lives for `ttl`.
    pub fn allowance(self, ttl: Ttl) -> Duration {
        let scaled = ttl.as_duration().as_nanos() * u128::from(self.parts_per_million);
        let rate = u64::try_from(scaled.div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Duration::from_nanos(rate).saturating_add(self.constant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_rounded_down_to_what_px_can_say() {
        for (span, millis) in [
            (Duration::ZERO, 0),
            (Duration::from_micros(999), 0),
            (Duration::from_micros(1_999), 1),
            (Duration::from_secs(10), 10_000),
            (Duration::MAX, u64::MAX),
        ] {
            assert_eq!(Ttl::from_duration(span).as_millis(), millis, "{span:?}");
        }
    }

    #[test]
    fn the_allowance_is_rounded_up() {
        for (ppm, constant_ms, ttl_ms, nanos) in [
            (10_000, 2, 10_000, 102_000_000),
            (0, 2, 10_000, 2_000_000),
            (1, 0, 1, 1), // a billionth of a second is not nothing
            (333_333, 0, 1, 333_333),
            (1_000_000, 0, 5, 5_000_000),
        ] {
            let drift = Drift { parts_per_million: ppm, constant: Duration::from_millis(constant_ms) };
            let allowance = drift.allowance(Ttl::from_duration(Duration::from_millis(ttl_ms)));
            assert_eq!(allowance, Duration::from_nanos(nanos), "{ppm} ppm + {constant_ms} ms of {ttl_ms} ms");
        }
        let odd = Drift { parts_per_million: 1, constant: Duration::ZERO };
        assert_eq!(odd.allowance(Ttl(1)), Duration::from_nanos(1));
        assert_eq!(Drift { parts_per_million: 3, ..odd }.allowance(Ttl(1)), Duration::from_nanos(3));
        assert_eq!(
            Drift::DEFAULT.allowance(Ttl(u64::MAX)),
            Duration::from_nanos(u64::MAX) + Drift::DEFAULT.constant
        );
    }

    #[test]
    fn moments_saturate_on_both_ends() {
        let moment = Instant::from_nanos(5);
        assert_eq!(moment + Duration::MAX, Instant::NEVER);
        assert_eq!(moment - Duration::MAX, Instant::from_nanos(0));
        assert_eq!(moment.since(Instant::NEVER), Duration::ZERO);
        assert_eq!((moment + Duration::from_nanos(7)).since(moment), Duration::from_nanos(7));
    }
}
