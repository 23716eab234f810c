//! One question to the nodes, and their answers as they come in. It keeps what each node said; what that means is
//! decided by whoever asked.

#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::command::{Answer, NodeIndex, Unknown};
use super::quorum::{Decision, Quorum, Tally, Vote};
use super::report::{NodeReport, Report, Said};
use super::settings::Terms;
use super::time::Instant;

/// Tells the answers of one round from the late answers of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoundId(pub u32);

/// One fan-out: when it went out, until when it is waited for, and what each node said.
#[derive(Clone, Debug, Hash)]
pub struct Round {
    id: RoundId,
    /// The clock before the first byte: every validity that comes out of this round counts from here.
    asked_at: Instant,
    deadline: Instant,
    heard: Box<[Heard]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Heard {
    /// Nothing was sent to this node in this round.
    NotAsked,
    /// Asked, and not heard yet.
    Silent,
    Answer(Answer, Duration),
}

impl Round {
    /// A round that asks every node now.
    pub fn to_all(id: RoundId, quorum: Quorum, asked_at: Instant, patience: Duration) -> Self {
        let heard = (0..quorum.nodes()).map(|_| Heard::Silent).collect();
        Round { id, asked_at, deadline: asked_at + patience, heard }
    }

    /// A round that asks one node now; others may be [asked](Round::ask) in the course of it.
    pub fn to_one(
        id: RoundId,
        quorum: Quorum,
        node: NodeIndex,
        asked_at: Instant,
        patience: Duration,
    ) -> Self {
        let mut round = Round::to_nobody(id, quorum, asked_at);
        round.heard[node] = Heard::Silent;
        round.deadline = asked_at + patience;
        round
    }

    /// A round in which nobody was asked.
    pub fn to_nobody(id: RoundId, quorum: Quorum, now: Instant) -> Self {
        let heard = (0..quorum.nodes()).map(|_| Heard::NotAsked).collect();
        Round { id, asked_at: now, deadline: now, heard }
    }

    /// Which round this is.
    pub fn id(&self) -> RoundId {
        self.id
    }

    /// The clock before the first byte.
    pub fn asked_at(&self) -> Instant {
        self.asked_at
    }

    /// When the nodes that have not answered are given up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits until `deadline` instead.
    pub fn wait_until(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Asks a node (again) in this round.
    pub fn ask(&mut self, node: NodeIndex) {
        self.heard[node] = Heard::Silent;
    }

    /// Takes in an answer that was heard now. False if nothing was asked: a second answer changes nothing.
    pub fn hear(&mut self, node: NodeIndex, answer: Answer, now: Instant) -> bool {
        let expected = matches!(self.heard[node], Heard::Silent);
        if expected {
            self.heard[node] = Heard::Answer(answer, now.since(self.asked_at));
        }
        expected
    }

    /// Gives up on the nodes that have not answered: they are unknown, not a no.
    pub fn give_up(&mut self, now: Instant) {
        let after = now.since(self.asked_at);
        for heard in self.heard.iter_mut().filter(|heard| matches!(heard, Heard::Silent)) {
            *heard = Heard::Answer(Answer::Unknown(Unknown::Timeout), after);
        }
    }

    /// Node by node: `None` where nothing was heard yet.
    pub fn answers(&self) -> impl Iterator<Item = Option<&Answer>> {
        self.heard.iter().map(|heard| match heard {
            Heard::Answer(answer, _) => Some(answer),
            Heard::NotAsked | Heard::Silent => None,
        })
    }

    /// What one node said.
    pub fn answer(&self, node: NodeIndex) -> Option<&Answer> {
        self.answers().nth(node).flatten()
    }

    /// How long the slowest node took that did answer.
    pub fn slowest_answer(&self) -> Option<Duration> {
        let answered = self.heard.iter().filter_map(|heard| match heard {
            Heard::Answer(Answer::Unknown(_), _) | Heard::NotAsked | Heard::Silent => None,
            Heard::Answer(_, after) => Some(*after),
        });
        answered.max()
    }

    /// How many nodes satisfy `what`.
    pub fn count(&self, what: impl Fn(&Answer) -> bool) -> usize {
        self.answers().flatten().filter(|answer| what(answer)).count()
    }

    /// The answers read as votes. Nodes that were not heard are pending.
    pub fn tally(&self) -> Tally {
        self.answers().flatten().map(vote).collect()
    }

    /// When nodes that wait will vote, so that no more than `spare` are without a vote; `None` if they do not make that
    /// difference.
    pub fn ready_at(&self, spare: usize) -> Option<Instant> {
        let missing = self.tally().unknown.checked_sub(spare + 1)?;
        let waiting = self.answers().flatten().filter_map(|answer| match answer {
            Answer::Waiting { counts_from, .. } => Some(*counts_from),
            _ => None,
        });
        let mut waiting: Vec<Instant> = waiting.collect();
        waiting.sort_unstable();
        waiting.get(missing).copied()
    }

    /// Where the vote stands.
    pub fn decision(&self, quorum: Quorum) -> Decision {
        quorum.decide(self.tally())
    }

    /// What tells two rounds apart, node by node, for a search in which the nodes are alike. How long answers took is left out:
    /// it matters to nothing but reports, and to how long the next attempt rests.
    #[cfg(feature = "sim")]
    pub fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Round { id, asked_at, deadline, heard } = self;
        (id, asked_at, deadline).hash(all);
        for (heard, node) in heard.iter().zip(each) {
            std::mem::discriminant(heard).hash(node);
            if let Heard::Answer(answer, _) = heard {
                answer.hash(node);
            }
        }
    }

    /// The same for people.
    pub fn report(&self, terms: &Terms) -> Report {
        let nodes = terms.nodes.iter().zip(&self.heard).map(|(name, heard)| match heard {
            Heard::Answer(answer, after) => NodeReport::new(name, self.asked_at, answer, *after),
            Heard::Silent => NodeReport::unheard(name, Said::NothingYet),
            Heard::NotAsked => NodeReport::unheard(name, Said::NotAsked),
        });
        Report::new(terms.quorum, nodes.collect())
    }
}

/// An answer as a vote on "is it mine?".
///
/// A healed key is a no: it proves that the key had been gone, and somebody may have held the resource meanwhile.
pub fn vote(answer: &Answer) -> Vote {
    match answer {
        Answer::Granted | Answer::Present => Vote::Granted,
        // The key is ours. Whether the fence is, too, is another question.
        Answer::Accepted | Answer::Voted(_) | Answer::Raised => Vote::Granted,
        Answer::Busy(_) => Vote::Denied,
        Answer::Denied | Answer::Healed | Answer::Missing | Answer::Foreign => Vote::Denied,
        Answer::Unknown(_) | Answer::Waiting { .. } => Vote::Unknown,
        Answer::Counting { said, .. } => vote(said),
        // No answers to that question.
        Answer::Deleted { .. }
        | Answer::Enlisted(_)
        | Answer::Delisted
        | Answer::Enrolled(_)
        | Answer::Observed(_)
        | Answer::Seen(_)
        | Answer::Followed(..)
        | Answer::Proclaimed
        | Answer::Removed(_) => Vote::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn the_first_answer_of_a_node_stands() {
        let quorum = Quorum::of(3);
        let mut round = Round::to_all(RoundId(1), quorum, at(0), Duration::from_millis(200));
        assert!(round.hear(0, Answer::Denied, at(1)));
        assert!(!round.hear(0, Answer::Granted, at(2)), "a second answer is not counted");
        assert_eq!(round.tally(), Tally { granted: 0, denied: 1, unknown: 0 });
    }

    #[test]
    fn a_node_that_is_given_up_is_unknown_and_may_not_answer_any_more() {
        let quorum = Quorum::of(3);
        let mut round = Round::to_all(RoundId(1), quorum, at(0), Duration::from_millis(200));
        round.hear(0, Answer::Granted, at(1));
        round.give_up(at(200));
        assert_eq!(round.tally(), Tally { granted: 1, denied: 0, unknown: 2 });
        assert!(!round.hear(1, Answer::Granted, at(201)));
        assert_eq!(round.decision(quorum), Decision::Failed);
    }

    #[test]
    fn a_healed_key_is_no_vote() {
        assert_eq!(vote(&Answer::Healed), Vote::Denied);
        assert_eq!(vote(&Answer::Present), Vote::Granted);
    }
}
