//! The end of a hold: what the nodes said to the release, read as one outcome. And before it: where a key of ours may
//! stand at all, which is where a release is owed.

use std::fmt;
#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};

use super::command::{Answer, NodeIndex};
use super::quorum::Quorum;
use super::round::Round;

/// What a release came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReleaseOutcome {
    /// A majority of nodes held the key until now, and deleted it.
    Released,
    /// The lock had ended before: the keys had expired, or were deleted by somebody.
    Expired,
    /// The lock had ended before, and another client holds the resource now.
    TakenOver,
    /// Too few nodes answered to say: with those that did not, a majority may have held the key. What is left of the lock ends with its ttl.
    Unknown,
}

impl fmt::Display for ReleaseOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReleaseOutcome::Released => "released",
            ReleaseOutcome::Expired => "had expired before the release",
            ReleaseOutcome::TakenOver => "had been taken over before the release",
            ReleaseOutcome::Unknown => "released as far as nodes could be reached",
        })
    }
}

impl ReleaseOutcome {
    /// Reads a round of releases; `None` while the missing answers can still change the outcome.
    pub fn of(round: &Round, quorum: Quorum) -> Option<ReleaseOutcome> {
        let deleted = round.count(|answer| matches!(answer, Answer::Deleted { .. }));
        let foreign = round.count(|answer| matches!(answer, Answer::Foreign));
        let missing = round.count(|answer| matches!(answer, Answer::Missing));
        let silent = round.count(Answer::is_silence);
        let pending = quorum.nodes() - deleted - foreign - missing - silent;
        // Who is silent may have had the key.
        let may_have_held = |silent| deleted + silent >= quorum.majority() || silent > quorum.spare();

        if deleted >= quorum.majority() {
            Some(ReleaseOutcome::Released)
        } else if foreign > quorum.spare() {
            Some(ReleaseOutcome::TakenOver)
        } else if deleted + pending >= quorum.majority() || foreign + pending > quorum.spare() {
            None
        } else if may_have_held(silent) {
            Some(ReleaseOutcome::Unknown)
        } else if may_have_held(silent + pending) {
            None
        } else {
            Some(ReleaseOutcome::Expired)
        }
    }
}

/// Node by node, whether a key of one attempt may stand there.
///
/// A release is owed wherever that is not ruled out: where the last answer is not a no, where an answer to a write is still
/// to come, and where one never came, because a write that was lost on its way may still be carried out later.
#[derive(Clone, Debug, Hash)]
pub struct Footprint(Box<[Trace]>);

#[derive(Clone, Copy, Debug, Default, Hash)]
struct Trace {
    /// Writes that are not answered.
    open: u32,
    /// The node said that our key stands.
    standing: bool,
    /// A write was lost on its way. No later answer can rule it out: it may come from another connection.
    doubtful: bool,
}

impl Footprint {
    /// Nothing anywhere.
    pub fn none(quorum: Quorum) -> Self {
        Footprint(vec![Trace::default(); quorum.nodes()].into())
    }

    /// A write went out to a node.
    pub fn wrote(&mut self, node: NodeIndex) {
        self.0[node].open += 1;
    }

    /// A node answered a write, or will not answer it any more. Every write comes to this once.
    pub fn heard(&mut self, node: NodeIndex, answer: &Answer) {
        let trace = &mut self.0[node];
        trace.open = trace.open.saturating_sub(1);
        match answer.said() {
            Answer::Granted
            | Answer::Present
            | Answer::Healed
            | Answer::Accepted
            | Answer::Voted(_)
            | Answer::Raised => trace.standing = true,
            Answer::Denied | Answer::Busy(_) | Answer::Missing | Answer::Foreign | Answer::Deleted { .. } => {
                trace.standing = false;
            }
            Answer::Unknown(unknown) => trace.doubtful |= unknown.may_have_run(),
            Answer::Enlisted(_)
            | Answer::Delisted
            | Answer::Enrolled(_)
            | Answer::Observed(_)
            | Answer::Seen(_)
            | Answer::Followed(..)
            | Answer::Proclaimed
            | Answer::Removed(_)
            | Answer::Waiting { .. }
            | Answer::Counting { .. } => {}
        }
    }

    /// What tells two apart, node by node.
    #[cfg(feature = "sim")]
    pub fn hash_by_node<H: Hasher>(&self, each: &mut [H]) {
        self.0.iter().zip(each).for_each(|(trace, node)| trace.hash(node));
    }

    /// Whether a key of ours may stand at a node, now or later.
    pub fn may_stand(&self, node: NodeIndex) -> bool {
        let Trace { open, standing, doubtful } = self.0[node];
        open > 0 || standing || doubtful
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::{prop_assert, prop_assert_eq};
    use proptest::sample::select;

    use super::*;
    use crate::protocol::command::{Refusal, Unknown};
    use crate::protocol::round::RoundId;
    use crate::protocol::time::Instant;
    use crate::random;

    /// One letter a node: `d`eleted, `m`issing, `f`oreign, `?` silent, `.` pending.
    fn outcome(nodes: &str) -> Option<ReleaseOutcome> {
        let quorum = Quorum::of(nodes.len());
        let start = Instant::from_nanos(0);
        let mut round = Round::to_all(RoundId(1), quorum, start, Duration::from_millis(200));
        for (node, letter) in nodes.chars().enumerate() {
            let answer = match letter {
                'd' => Answer::Deleted { others_wait: false },
                'm' => Answer::Missing,
                'f' => Answer::Foreign,
                '?' => Answer::Unknown(Unknown::Timeout),
                _ => continue,
            };
            round.hear(node, answer, start);
        }
        ReleaseOutcome::of(&round, quorum)
    }

    #[test]
    fn an_outcome_is_known_as_soon_as_the_rest_cannot_change_it() {
        use ReleaseOutcome::*;
        for (nodes, expected) in [
            ("d", Some(Released)),
            ("m", Some(Expired)),
            ("f", Some(TakenOver)),
            ("?", Some(Unknown)),
            (".", None),
            ("dd.", Some(Released)),
            ("d?.", None),
            ("d??", Some(Unknown)),
            ("d?m", Some(Unknown)), // two may have had it
            ("m?m", Some(Expired)),
            ("dd?ff", Some(Unknown)),
            ("d?mm.", None), // with the last one, three
            ("?mm..", None),
            ("?mmm.", Some(Expired)),
            ("dm.", None),
            ("mm.", Some(Expired)), // whatever the third says
            ("mmd", Some(Expired)),
            ("ff.", Some(TakenOver)),
            ("fm.", None), // a second foreign key would make it taken over
            ("fmd", Some(Expired)),
            ("mmm..", Some(Expired)),
            ("mmf..", None),
            ("ddf?.", None),
            ("ddff", Some(TakenOver)), // with an even N, half of the nodes already keeps us out
            ("ddd?", Some(Released)),
            ("??..", None), // as many answers as say that it was taken over are still to come
            ("??f.", None),
            ("??d.", Some(Unknown)),
            ("??ff", Some(TakenOver)),
        ] {
            assert_eq!(outcome(nodes), expected, "{nodes}");
        }
    }

    #[test]
    fn an_early_outcome_is_not_contradicted_by_later_answers() {
        random::check(4096, &vec(select(vec!["d", "m", "f", "?"]), 1..8), |answers| {
            let by_all = outcome(&answers.concat());
            prop_assert!(by_all.is_some());
            for heard in 0..answers.len() {
                let nodes = answers[..heard].concat() + &".".repeat(answers.len() - heard);
                prop_assert_eq!(outcome(&nodes).or(by_all), by_all, "{}", nodes);
            }
            Ok(())
        });
    }

    #[test]
    fn a_release_is_owed_wherever_a_key_is_not_ruled_out() {
        let unknown = Answer::Unknown;
        for (writes, answers, owed) in [
            (0, vec![], false),
            (1, vec![], true), // asked, no answer
            (1, vec![Answer::Granted], true),
            (1, vec![Answer::Denied], false),
            (1, vec![unknown(Unknown::Timeout)], true),
            (1, vec![unknown(Unknown::ConnectionLost)], true),
            (1, vec![unknown(Unknown::NotConnected)], false),
            (1, vec![unknown(Unknown::Refused(Refusal::Loading))], false),
            (2, vec![unknown(Unknown::Timeout), Answer::Denied], true), // the first may still arrive
            (2, vec![Answer::Granted, unknown(Unknown::NotConnected)], true),
            (2, vec![Answer::Granted, Answer::Foreign], false),
            (2, vec![Answer::Granted, Answer::Healed], true),
            (2, vec![Answer::Denied], true), // the second is still open
            (2, vec![Answer::Denied, unknown(Unknown::ConnectionLost)], true),
            (3, vec![Answer::Denied, unknown(Unknown::ConnectionLost), Answer::Foreign], true),
        ] {
            let mut footprint = Footprint::none(Quorum::of(1));
            (0..writes).for_each(|_| footprint.wrote(0));
            answers.iter().for_each(|answer| footprint.heard(0, answer));
            assert_eq!(footprint.may_stand(0), owed, "{writes} writes, {answers:?}");
        }
    }
}
