//! Fences: numbers that rise from grant to grant of a resource, so that a guarded store can refuse a holder that is not the
//! last one. Here are the number and who proposes it; how nodes accept it is in [`store`](super::store), and how a claim gets
//! it accepted by a majority in [`attempt`](super::attempt).
//!
//! # Why a later grant has a larger fence
//!
//! Every node keeps the largest fence that it has accepted for a resource. A grant counts a node only if that node accepted the
//! fence *while the grant's key stood there*. Two grants share a node; there the second key came after the first was gone, and
//! so after the first fence was accepted; and the second fence was accepted there only because it was larger.
//!
//! # Why clocks propose
//!
//! Nobody can know the largest fence without asking. A clock guesses well: whoever comes later proposes more, so the proposal
//! is accepted with the key, in one round trip. No order rests on it: a proposal that is too low costs a second round trip,
//! in which the fence is [raised](super::command::Command::Raise) above all counters that were heard.

use std::fmt;
use std::time::Duration;

use super::time::Instant;

/// A number that is larger with every grant of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

impl Fence {
    /// Below every fence that is granted.
    pub const NONE: Fence = Fence(0);

    /// Above every fence that is granted: a script of a Redis counts exactly up to 2^53. It lies in the year 2255.
    pub(crate) const LAST: Fence = Fence((1 << 53) - 1);

    /// The fence with that number.
    pub const fn new(number: u64) -> Self {
        Fence(number)
    }

    /// The number, to be stored and compared.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The smallest fence above this one. There is none above the last: it is never accepted twice.
    #[must_use]
    pub fn next(self) -> Fence {
        Fence(self.0.saturating_add(1)).min(Fence::LAST)
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// So far ahead of its own clock a node accepts a proposal.
///
/// A client whose clock is a century ahead would make all clocks useless for proposing, for ever.
pub const FURTHEST_AHEAD: Duration = Duration::from_secs(600);

/// So far a client lets itself be led ahead of its wall clock. A little less, or else a client whose own clock is a moment ahead
/// would be turned down by all nodes once it was led so far.
const FURTHEST_LED: Duration = Duration::from_secs(540);

/// The highest fence that a node accepts at its own time as a proposal. The one right above its counter is always fine: it
/// leads nobody astray.
pub fn highest_proposal(time: Instant, counter: Fence) -> Fence {
    Fence(micros(time.as_nanos()).saturating_add(whole_micros(FURTHEST_AHEAD))).max(counter.next())
}

/// Proposes fences: what a client knows of the fences of a resource, and the wall clock led by the fences it has met.
///
/// Microseconds since 1970 stay below 2^53, which is as far as a script of a Redis can count exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer {
    /// What the wall clock showed, in microseconds since 1970, when the clock of the protocol was at its origin. Read once: a
    /// wall clock that is set back does not take back what is proposed.
    origin: u64,
    /// By how many microseconds the fences that were met lead the wall clock.
    ahead: u64,
    /// The largest fence that was met.
    seen: Fence,
}

impl Proposer {
    /// One that has met no fence; `origin` is what the wall clock showed, in microseconds since 1970, when the clock of the
    /// protocol was at its origin.
    pub fn new(origin: u64) -> Self {
        Proposer { origin, ahead: 0, seen: Fence::NONE }
    }

    /// Proposes a fence that is likely to be the largest.
    pub fn propose(&self, now: Instant) -> Fence {
        Fence(self.wall_clock(now).saturating_add(self.ahead)).max(self.seen.next()).min(Fence::LAST)
    }

    /// A node has accepted this fence, for whomever.
    pub fn meet(&mut self, now: Instant, fence: Fence) {
        self.seen = self.seen.max(fence);
        let ahead = fence.0.saturating_sub(self.wall_clock(now));
        self.ahead = self.ahead.max(ahead.min(whole_micros(FURTHEST_LED)));
    }

    fn wall_clock(&self, now: Instant) -> u64 {
        self.origin.saturating_add(micros(now.as_nanos()))
    }
}

/// The fence that a wall clock stands for, and above whatever was proposed by it or ahead of it: the last resort when no node
/// remembers.
pub fn above_the_clock(origin: u64, now: Instant) -> Fence {
    let micros = origin.saturating_add(micros(now.as_nanos())).saturating_add(whole_micros(FURTHEST_AHEAD));
    Fence(micros).min(Fence::LAST)
}

const fn micros(nanos: u64) -> u64 {
    nanos / 1_000
}

fn whole_micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(micros * 1_000)
    }

    #[test]
    fn a_fence_is_its_number() {
        assert!(Fence::new(33) < Fence::new(34));
        assert_eq!(Fence::new(33).next(), Fence::new(34));
        assert_eq!(Fence::LAST.next(), Fence::LAST, "there is none above");
        assert_eq!(Proposer::new(u64::MAX).propose(at(7)), Fence::LAST);
        assert_eq!(above_the_clock(u64::MAX, at(7)), Fence::LAST);
        assert_eq!(Fence::new(1_800_000_000_000_000).to_string(), "1800000000000000");
    }

    #[test]
    fn the_wall_clock_proposes_and_what_was_met_leads_it() {
        let mut proposer = Proposer::new(1_000);
        assert_eq!(proposer.propose(at(5)), Fence::new(1_005));
        // Somebody's clock is 500 µs ahead: from now on this one is, too.
        proposer.meet(at(5), Fence::new(1_505));
        assert_eq!(proposer.propose(at(5)), Fence::new(1_506));
        assert_eq!(proposer.propose(at(25)), Fence::new(1_525));
        proposer.meet(at(25), Fence::new(7));
        assert_eq!(proposer.propose(at(25)), Fence::new(1_525), "what is behind changes nothing");
    }

    #[test]
    fn who_was_led_as_far_as_can_be_is_believed_by_nodes_whose_clocks_are_behind() {
        let (origin, minute) = (1_795_000_000_000_000, 60_000_000);
        let mut proposer = Proposer::new(origin);
        // As where a new deployment begins: by the clock, and ten minutes above it.
        let floor = above_the_clock(origin, at(0));
        proposer.meet(at(0), floor);
        for (later, counter) in [(1, floor), (2 * minute, floor), (20 * minute, Fence::new(origin))] {
            let fence = proposer.propose(at(later));
            let behind = Instant::from_nanos((origin + later - minute) * 1_000);
            assert!(
                fence > counter && fence <= highest_proposal(behind, counter),
                "{later} microseconds later"
            );
        }
    }

    #[test]
    fn nobody_is_led_further_ahead_than_nodes_accept() {
        let bound = whole_micros(FURTHEST_AHEAD);
        let mut proposer = Proposer::new(0);
        proposer.meet(at(0), Fence::new(100 * bound));
        assert_eq!(
            proposer.propose(at(7)),
            Fence::new(100 * bound + 1),
            "above what was met, and no further"
        );
        assert_eq!(highest_proposal(at(7), Fence::NONE), Fence::new(bound + 7));
        assert_eq!(highest_proposal(at(7), Fence::new(100 * bound)), Fence::new(100 * bound + 1));
    }
}
