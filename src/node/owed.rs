//! The releases that one node has not answered: sent first when the connection is back, for as long as a key may stand.

use std::collections::VecDeque;

use std::time::Duration;

use crate::protocol::command::{Command, Key, Value};
use crate::protocol::time::{Instant, Ttl};

/// What is owed to one node.
///
/// Bounded: beyond that the oldest are let go, which end by themselves first.
#[derive(Default)]
pub(super) struct Owed {
    releases: VecDeque<OwedRelease>,
}

/// A release that was not answered.
pub(super) struct OwedRelease {
    key: Key,
    value: Value,
    /// When the key is gone by itself.
    until: Instant,
}

/// Of a node that is away while thousands of locks a second are released, this many are remembered.
const MOST: usize = 1 << 16;

impl Owed {
    /// Remembers a command that will not be answered, if it is a release that is still owed at `until`.
    pub(super) fn remember(&mut self, command: Command, until: Instant, now: Instant) {
        let Command::Release { key, value, .. } = command else { return };
        if now >= until {
            return;
        }
        if self.releases.len() == MOST {
            self.releases.pop_front();
        }
        self.releases.push_back(OwedRelease { key, value, until });
    }

    /// What is still worth sending, at most `most`, in the order in which it was remembered: the commands, and until when
    /// each is owed.
    pub(super) fn take(&mut self, most: usize, now: Instant) -> Vec<(Command, Instant)> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let Some(OwedRelease { key, value, until }) = self.releases.pop_front() else { break };
            if now < until {
                let command = Command::Release { key, value, linger: Ttl::ZERO, owed_for: Duration::ZERO };
                taken.push((command, until));
            }
        }
        taken
    }

    /// How many are remembered.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(super) fn len(&self) -> usize {
        self.releases.len()
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

/// Until when a command is owed that is submitted now.
pub(super) fn owed_until(command: &Command, now: Instant) -> Instant {
    match command {
        Command::Release { owed_for, .. } => now + *owed_for,
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(number: usize) -> Command {
        let key = Key::of_lock("", number.to_string().as_bytes());
        let value = Value::from_wire(b"v");
        Command::Release { key, value, linger: Ttl::ZERO, owed_for: Duration::ZERO }
    }

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn what_has_expired_is_not_sent_and_nothing_is_sent_twice() {
        let mut owed = Owed::default();
        owed.remember(release(1), at(10), at(0));
        owed.remember(release(2), at(11), at(0));
        owed.remember(release(3), at(5), at(5));
        assert_eq!(owed.take(9, at(10)), [(release(2), at(11))]);
        assert!(owed.take(9, at(0)).is_empty());
    }

    #[test]
    fn it_is_taken_in_pieces_and_is_empty_when_all_has_expired() {
        let mut owed = Owed::default();
        (0..3).for_each(|number| owed.remember(release(number), at(10), at(0)));
        assert_eq!(owed.take(2, at(0)).len(), 2);
        assert!(!owed.is_empty(at(9)));
        assert!(owed.is_empty(at(10)));
    }

    #[test]
    fn only_releases_are_owed() {
        let (key, value) = (Key::of_lock("", b"k"), Value::from_wire(b"v"));
        let ttl = Ttl::from_duration(Duration::from_secs(1));
        let mut owed = Owed::default();
        owed.remember(Command::Acquire { key, value, ttl }, at(10), at(0));
        assert!(owed.take(9, at(0)).is_empty());
    }

    #[test]
    fn the_oldest_are_let_go_beyond_the_bound() {
        let mut owed = Owed::default();
        (0..MOST + 2).for_each(|number| owed.remember(release(number), at(10), at(0)));
        let kept = owed.take(usize::MAX, at(0));
        assert_eq!((kept.len(), &kept[0].0), (MOST, &release(2)));
    }
}
