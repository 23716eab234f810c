//! A clock that is more or less right: it runs at a rate of its own, and can be set.

use std::time::Duration;

use crate::protocol::time::Instant;

/// What a clock shows, as a function of the world's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dial {
    /// At this moment of the world ...
    set_at: Instant,
    /// ... it showed this.
    shown: Instant,
    /// How many parts per million it is too fast.
    parts_per_million: i32,
}

const MILLION: i128 = 1_000_000;

impl Dial {
    /// A clock that is right at a moment and runs too fast by so many parts per million.
    pub fn new(right_at: Instant, parts_per_million: i32) -> Self {
        Dial { set_at: right_at, shown: right_at, parts_per_million }
    }

    /// What it shows.
    pub fn read(&self, now: Instant) -> Instant {
        let span = i64::try_from(now.since(self.set_at).as_nanos()).unwrap_or(i64::MAX);
        // Millionths first: the product of nanoseconds and parts would not fit after some hours.
        let ppm = i64::from(self.parts_per_million);
        let ahead = span / 1_000_000 * ppm + span % 1_000_000 * ppm / 1_000_000;
        Instant::from_nanos(self.shown.as_nanos().saturating_add_signed(span.saturating_add(ahead)))
    }

    /// When it will show `moment` or more; [`Instant::NEVER`] for never.
    pub fn when(&self, moment: Instant) -> Instant {
        if moment == Instant::NEVER {
            return Instant::NEVER;
        }
        let span = i128::from(moment.as_nanos()) - i128::from(self.shown.as_nanos());
        let rate = MILLION + i128::from(self.parts_per_million);
        // One nanosecond on top for what the division in `read` cuts off.
        let span = if span <= 0 { 0 } else { (span * MILLION + rate - 1) / rate + 1 };
        self.set_at + Duration::from_nanos(u64::try_from(span).unwrap_or(u64::MAX))
    }

    /// Sets it forward.
    pub fn set_forward(&mut self, by: Duration) {
        self.shown = self.shown + by;
    }

    /// Sets it back.
    pub fn set_back(&mut self, by: Duration) {
        self.shown = self.shown - by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn it_runs_at_its_rate_from_where_it_was_right() {
        for (ppm, shown) in [(0, 20_000), (10_000, 20_100), (-10_000, 19_900)] {
            let dial = Dial::new(at(10_000), ppm);
            assert_eq!(dial.read(at(20_000)), at(shown), "{ppm} ppm");
        }
    }

    #[test]
    fn when_it_shows_a_moment_it_has_shown_it() {
        for ppm in [-9_999, -4_900, 0, 3, 4_900, 200_000] {
            let dial = Dial::new(at(1_000), ppm);
            for nanos in (0..3_000_000_000).step_by(7_777_777) {
                let moment = at(1_000) + Duration::from_nanos(nanos);
                let when = dial.when(moment);
                assert!(dial.read(when) >= moment, "{ppm} ppm, {nanos} ns");
                let before = when - Duration::from_nanos(10);
                assert!(before <= at(1_000) || dial.read(before) < moment, "{ppm} ppm, {nanos} ns: too late");
            }
        }
        assert_eq!(Dial::new(at(0), 5).when(Instant::NEVER), Instant::NEVER);
    }

    #[test]
    fn it_can_be_set() {
        let mut dial = Dial::new(at(1_000), 0);
        dial.set_forward(Duration::from_millis(500));
        assert_eq!(dial.read(at(2_000)), at(2_500));
        dial.set_back(Duration::from_millis(700));
        assert_eq!(dial.read(at(2_000)), at(1_800));
    }
}
