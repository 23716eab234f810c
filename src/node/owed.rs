//! The releases that one node has not answered: sent first when the connection is back, for as long as a key may stand.

use std::collections::VecDeque;
#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};

use crate::protocol::command::{Command, Key, Value, Wake};
use crate::protocol::marker::Rules;
use crate::protocol::time::{Instant, Ttl};

/// What is owed to one node.
///
/// Bounded: beyond that the oldest are let go, which end by themselves first.
#[derive(Clone, Default, Hash)]
pub(crate) struct Owed {
    releases: VecDeque<OwedRelease>,
}

/// A release that was not carried out.
#[derive(Clone, Hash)]
struct OwedRelease {
    key: Key,
    value: Value,
    /// Until then the key shall go on to exclude others.
    linger_until: Instant,
    /// When the key is gone by itself.
    until: Instant,
    wake: Wake,
}

/// Of a node that is away while thousands of locks a second are released, this many are remembered.
const MOST: usize = 1 << 16;

impl Owed {
    /// Remembers a command that was sent at `since`, or never, and will not be carried out, if it is a release that is still owed.
    pub(crate) fn remember(&mut self, command: Command, since: Instant, now: Instant) {
        let Command::Release { key, value, linger, owed_for, wake, rules: _ } = command else { return };
        let (linger_until, until) = (since + linger.as_duration(), since + owed_for);
        if now >= until {
            return;
        }
        if self.releases.len() == MOST {
            self.releases.pop_front();
        }
        self.releases.push_back(OwedRelease { key, value, linger_until, until, wake });
    }

    /// What is still worth sending, at most `most`, in the order in which it was remembered.
    pub(crate) fn take(&mut self, most: usize, now: Instant) -> Vec<Command> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let Some(OwedRelease { key, value, linger_until, until, wake }) = self.releases.pop_front()
            else {
                break;
            };
            if now < until {
                let linger = Ttl::from_duration(linger_until.since(now));
                // Nobody hears what comes of it, so nobody asks whether it counts.
                let (owed_for, rules) = (until.since(now), Rules::Plain);
                taken.push(Command::Release { key, value, linger, owed_for, wake, rules });
            }
        }
        taken
    }

    /// How many are remembered.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(super) fn len(&self) -> usize {
        self.releases.len()
    }

    /// What tells two apart that owe the releases of one value.
    #[cfg(feature = "sim")]
    pub(crate) fn hash_whosever(&self, hasher: &mut impl Hasher) {
        for OwedRelease { key: _, value: _, linger_until, until, wake } in &self.releases {
            (linger_until, until, wake).hash(hasher);
        }
    }

    /// Whether nothing is remembered, be it worth sending or not.
    #[cfg(feature = "sim")]
    pub(crate) fn has_nothing(&self) -> bool {
        self.releases.is_empty()
    }

    /// Whether nothing is owed any more.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(super) fn is_empty(&mut self, now: Instant) -> bool {
        while self.releases.front().is_some_and(|release| now >= release.until) {
            self.releases.pop_front();
        }
        self.releases.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A release with its number in the key, that is owed for so many milliseconds and lingers for so many.
    fn release(number: usize, owed: u64, linger: u64) -> Command {
        let key = Key::of_lock("", number.to_string().as_bytes());
        let linger = Ttl::from_duration(Duration::from_millis(linger));
        let (value, owed_for) = (Value::from_wire(b"v"), Duration::from_millis(owed));
        Command::Release { key, value, linger, owed_for, wake: Wake::Next, rules: Rules::Plain }
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn what_has_expired_is_not_sent_and_nothing_is_sent_twice() {
        let mut owed = Owed::default();
        owed.remember(release(1, 10, 0), at(0), at(0));
        owed.remember(release(2, 11, 0), at(0), at(0));
        owed.remember(release(3, 5, 0), at(0), at(5));
        assert_eq!(owed.take(9, at(10)), [release(2, 1, 0)]);
        assert!(owed.take(9, at(0)).is_empty());
    }

    #[test]
    fn what_lingers_lingers_for_the_rest_of_its_time_and_is_deleted_after_it() {
        for (now, linger) in [(1, 4), (4, 1), (5, 0), (9, 0)] {
            let mut owed = Owed::default();
            owed.remember(release(1, 10, 5), at(0), at(0));
            assert_eq!(owed.take(9, at(now)), [release(1, 10 - now, linger)], "at {now} ms");
        }
    }

    #[test]
    fn it_is_taken_in_pieces_and_is_empty_when_all_has_expired() {
        let mut owed = Owed::default();
        (0..3).for_each(|number| owed.remember(release(number, 10, 0), at(0), at(0)));
        assert_eq!(owed.take(2, at(0)).len(), 2);
        assert!(!owed.is_empty(at(9)));
        assert!(owed.is_empty(at(10)));
    }

    #[test]
    fn only_releases_are_owed() {
        let (key, value) = (Key::of_lock("", b"k"), Value::from_wire(b"v"));
        let ttl = Ttl::from_duration(Duration::from_secs(1));
        let mut owed = Owed::default();
        owed.remember(Command::Acquire { key, value, ttl }, at(0), at(0));
        assert!(owed.take(9, at(0)).is_empty());
    }

    #[test]
    fn the_oldest_are_let_go_beyond_the_bound() {
        let mut owed = Owed::default();
        (0..MOST + 2).for_each(|number| owed.remember(release(number, 10, 0), at(0), at(0)));
        let kept = owed.take(usize::MAX, at(0));
        assert_eq!((kept.len(), &kept[0]), (MOST, &release(2, 10, 0)));
    }
}
