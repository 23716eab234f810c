//! The end of a hold: what the nodes said to the release, read as one outcome. And before it: where a key of ours may
//! stand at all, which is where a release is owed.

use std::fmt;

use super::command::{Answer, NodeIndex};
use super::quorum::Quorum;
use super::round::Round;

/// What a release came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReleaseOutcome {
    /// A majority of nodes held the key until now, and deleted it.
    Released,
    /// The lock had ended before: the keys had expired, or were deleted by somebody.
    Expired,
    /// The lock had ended before, and another client holds the resource now.
    TakenOver,
    /// Too few nodes answered to say. What is left of the lock ends with its ttl.
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
        let deleted = round.count(|answer| *answer == Answer::Deleted);
        let foreign = round.count(|answer| *answer == Answer::Foreign);
        let missing = round.count(|answer| *answer == Answer::Missing);
        let silent = round.count(|answer| matches!(answer, Answer::Unknown(_)));
        let answered = deleted + foreign + missing;
        let pending = quorum.nodes() - answered - silent;

        if deleted >= quorum.majority() {
            Some(ReleaseOutcome::Released)
        } else if foreign > quorum.spare() {
            Some(ReleaseOutcome::TakenOver)
        } else if silent > quorum.spare() {
            Some(ReleaseOutcome::Unknown)
        } else if pending == 0
            || (deleted + pending < quorum.majority()
                && foreign + pending <= quorum.spare()
                && answered >= quorum.majority())
        {
            Some(ReleaseOutcome::Expired)
        } else {
            None
        }
    }
}

/// Node by node, whether a key of one attempt may stand there.
///
/// A release is owed wherever that is not ruled out: where the last answer is not a no, and where a write went out and no
/// answer came, because a write that timed out may still be carried out later.
#[derive(Clone, Debug)]
pub struct Footprint(Box<[Trace]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trace {
    /// Nothing of ours stands here or is on its way.
    Clean,
    /// A write is on its way; the answer will tell.
    Asked,
    /// The node said that our key stands.
    Standing,
    /// A write was lost on its way. No later answer can rule it out: it may come from another connection.
    Doubtful,
}

impl Footprint {
    /// Nothing anywhere.
    pub fn none(quorum: Quorum) -> Self {
        Footprint(vec![Trace::Clean; quorum.nodes()].into())
    }

    /// A write went out to a node.
    pub fn wrote(&mut self, node: NodeIndex) {
        let trace = &mut self.0[node];
        if *trace == Trace::Clean {
            *trace = Trace::Asked;
        }
    }

    /// A node answered a write.
    pub fn heard(&mut self, node: NodeIndex, answer: &Answer) {
        let trace = &mut self.0[node];
        *trace = match (*trace, answer) {
            (Trace::Doubtful, _) => Trace::Doubtful,
            (_, Answer::Granted | Answer::Present | Answer::Healed) => Trace::Standing,
            (_, Answer::Denied | Answer::Missing | Answer::Foreign | Answer::Deleted) => Trace::Clean,
            (Trace::Asked, Answer::Unknown(unknown)) if unknown.may_have_run() => Trace::Doubtful,
            (Trace::Asked, Answer::Unknown(_)) => Trace::Clean,
            (trace, Answer::Unknown(_) | Answer::Seen(_) | Answer::Removed(_)) => trace,
        };
    }

    /// Whether a key of ours may stand at a node, now or later.
    pub fn may_stand(&self, node: NodeIndex) -> bool {
        self.0[node] != Trace::Clean
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::command::{Refusal, Unknown};
    use crate::protocol::round::RoundId;
    use crate::protocol::time::Instant;

    /// One letter a node: `d`eleted, `m`issing, `f`oreign, `?` silent, `.` pending.
    fn outcome(nodes: &str) -> Option<ReleaseOutcome> {
        let quorum = Quorum::of(nodes.len());
        let start = Instant::from_nanos(0);
        let mut round = Round::to_all(RoundId(1), quorum, start, Duration::from_millis(200));
        for (node, letter) in nodes.chars().enumerate() {
            let answer = match letter {
                'd' => Answer::Deleted,
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
            ("d?m", Some(Expired)),
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
        ] {
            assert_eq!(outcome(nodes), expected, "{nodes}");
        }
    }

    #[test]
    fn a_release_is_owed_wherever_a_key_is_not_ruled_out() {
        let unknown = Answer::Unknown;
        for (answers, owed) in [
            (vec![], true), // asked, no answer
            (vec![Answer::Granted], true),
            (vec![Answer::Denied], false),
            (vec![unknown(Unknown::Timeout)], true),
            (vec![unknown(Unknown::ConnectionLost)], true),
            (vec![unknown(Unknown::NotConnected)], false),
            (vec![unknown(Unknown::Refused(Refusal::Loading))], false),
            (vec![unknown(Unknown::Timeout), Answer::Denied], true), // the first may still arrive
            (vec![Answer::Granted, unknown(Unknown::NotConnected)], true),
            (vec![Answer::Granted, Answer::Foreign], false),
            (vec![Answer::Granted, Answer::Healed], true),
        ] {
            let mut footprint = Footprint::none(Quorum::of(1));
            footprint.wrote(0);
            answers.iter().for_each(|answer| footprint.heard(0, answer));
            assert_eq!(footprint.may_stand(0), owed, "{answers:?}");
        }
        assert!(!Footprint::none(Quorum::of(1)).may_stand(0));
    }
}
