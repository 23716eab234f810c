//! How long a majority may be relied on. This is the arithmetic on which the promise of the lock rests.

use std::time::Duration;

use super::time::{Drift, Instant, Ttl};

/// A majority that was won, and until when it certainly stands.
///
/// Every key of the majority was set after `asked_at`, the client's clock before the first byte went out, and lives for
/// `ttl` on its node's clock. However the clocks run within the drift allowance, none of them is gone before
///
/// ```text
/// valid_until = asked_at + ttl - drift(ttl)
/// ```
///
/// so until then no other client can find a majority free. (Redlock's `MIN_VALIDITY = TTL - (T2 - T1) - CLOCK_DRIFT`, counted
/// from T2, is the same moment; as a point in time it cannot underflow and needs no second clock reading.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    valid_until: Instant,
    /// `hold_at_most`: no extension goes beyond.
    cap: Instant,
}

impl Lease {
    /// The lease of an acquisition whose first byte went out after `asked_at`, held for at most `hold_at_most`.
    pub fn new(asked_at: Instant, ttl: Ttl, drift: Drift, hold_at_most: Duration) -> Self {
        let cap = asked_at + hold_at_most;
        Lease { valid_until: certain_until(asked_at, ttl, drift).min(cap), cap }
    }

    /// Extends by a round that a majority confirmed and whose first byte went out after `asked_at`. Never shortens.
    pub fn extend(&mut self, asked_at: Instant, ttl: Ttl, drift: Drift) {
        self.valid_until = self.valid_until.max(certain_until(asked_at, ttl, drift).min(self.cap));
    }

    /// Ends the lease now, if it has not ended yet.
    pub fn end(&mut self, now: Instant) {
        self.valid_until = self.valid_until.min(now);
    }

    /// The moment at which the holder must have stopped.
    pub fn valid_until(&self) -> Instant {
        self.valid_until
    }

    /// Whether that moment has come.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.valid_until
    }

    /// Whether `hold_at_most` is reached, so that an extension would bring nothing.
    pub fn is_capped(&self) -> bool {
        self.valid_until == self.cap
    }
}

fn certain_until(asked_at: Instant, ttl: Ttl, drift: Drift) -> Instant {
    // Subtracted from the ttl, not from the sum: a sum that saturated must not lose its drift.
    asked_at + ttl.as_duration().saturating_sub(drift.allowance(ttl))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIFT: Drift = Drift::DEFAULT;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn ttl(millis: u64) -> Ttl {
        Ttl::from_duration(Duration::from_millis(millis))
    }

    #[test]
    fn validity_counts_from_before_the_first_byte() {
        for (asked_ms, ttl_ms, until_ms) in [(0, 10_000, 9_898), (500, 1_000, 1_488), (7, 100, 104)] {
            let lease = Lease::new(at(asked_ms), ttl(ttl_ms), DRIFT, Duration::MAX);
            assert_eq!(lease.valid_until(), at(until_ms));
            assert!(!lease.is_over(at(until_ms - 1)));
            assert!(lease.is_over(at(until_ms)), "the last moment is already outside");
        }
    }

    #[test]
    fn a_ttl_within_the_drift_gives_no_validity_instead_of_wrapping() {
        let lease = Lease::new(at(50), ttl(1), DRIFT, Duration::MAX);
        assert!(lease.is_over(at(50)));
    }

    #[test]
    fn an_extension_never_shortens() {
        let mut lease = Lease::new(at(0), ttl(10_000), DRIFT, Duration::MAX);
        lease.extend(at(1_000), ttl(1_000), DRIFT);
        assert_eq!(lease.valid_until(), at(9_898));
        lease.extend(at(1_000), ttl(10_000), DRIFT);
        assert_eq!(lease.valid_until(), at(10_898));
    }

    #[test]
    fn hold_at_most_caps_the_acquisition_and_every_extension() {
        let mut lease = Lease::new(at(0), ttl(1_000), DRIFT, Duration::from_millis(1_500));
        assert!(!lease.is_capped());
        lease.extend(at(900), ttl(1_000), DRIFT);
        assert_eq!(lease.valid_until(), at(1_500));
        assert!(lease.is_capped());
        assert_eq!(Lease::new(at(0), ttl(1_000), DRIFT, Duration::from_millis(10)).valid_until(), at(10));
    }

    #[test]
    fn an_end_is_not_undone_by_ending_again_later() {
        let mut lease = Lease::new(at(0), ttl(10_000), DRIFT, Duration::MAX);
        lease.end(at(100));
        lease.end(at(200));
        assert_eq!(lease.valid_until(), at(100));
    }
}
