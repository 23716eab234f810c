//! How a node comes to count for the strict kinds of locks, as one client sees to it: events and the time come in, commands
//! go out. Any number of clients may be at it at once.
//!
//! ```text
//!           connected         does not count             after the longest ttl        enough of the others
//!  Unknown ───────────► Asked ───────────────► Waiting ───────────────────────► Seeding ───────────────► Enrolling
//!                         │ counts                ▲  too few of the others count ──┘                        │
//!                         ▼                       │  its memory was lost meanwhile                          │
//!                      Counting ◄─────────────────┴──────────────────────────────────────────────────────────┘
//! ```
//!
//! # Why it waits
//!
//! What the node has forgotten may be a key that an attempt still counts on. Whatever counts on it is over once the longest ttl
//! has passed. The client counts that on its own clock, from when it *heard* that the node is observed. Who finds its nonce still
//! there knows that nothing was forgotten since.
//!
//! # Why the others are asked after the wait, and how many of them
//!
//! A key expires, a counter of fences does not: so the node must learn how far the fences are. A grant may be completed by an
//! answer that the node gave before it forgot; until the wait is over it may not have reached all of its other nodes. After the
//! wait every such grant is complete, and has its fence at a majority. N - q + 1 others leave out q - 2 of them, so they
//! have met one of the q - 1 others at which that fence was accepted.

#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::claim::Action;
use super::command::{Answer, Command, Key, NodeIndex};
use super::fence::{Fence, above_the_clock};
use super::marker::{Nonce, Pact};
use super::quorum::Quorum;
use super::round::{Round, RoundId};
use super::time::{Drift, Instant};

/// What a node that begins to count is told of the fences where too few of the others count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reseed {
    /// Nothing: it does not count until they do. Without a majority of the memories this needs somebody's word.
    Quorum,
    /// If all the others answer, so that nobody can know more: what they know, and what the wall clock says, as below. While
    /// one is silent, nothing.
    QuorumOrAll(u64),
    /// What those know that answer, and what the wall clock says: the order of the fences then rests on it. With what the wall
    /// clock showed, in microseconds since 1970, when the clock of the protocol was at its origin.
    QuorumOrWallClock(u64),
}

/// What becomes of [fences](super::fence::Fence) when so many nodes have lost their memory that the others may not know the last
/// one: when the wall clock stands in.
///
/// Fences are microseconds of wall clocks if nobody knows better, so a clock that did not go back is above all that were
/// granted. One that did is not, and a store would refuse every holder until the clocks have caught up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FencesAfterLoss {
    /// When all other nodes have answered, so that nobody can know more. While one is away that may know, nodes that have
    /// forgotten stay out: it comes back, or an operator [says](crate::Redlock::bootstrap) that it does not.
    #[default]
    WaitForAll,
    /// As soon as those that answer are too few. For deployments in which a node may be lost for good and nobody is there
    /// to say so.
    TrustTheClock,
    /// Never: an operator has to say so.
    WaitForAnOperator,
}

impl FencesAfterLoss {
    /// With what the wall clock showed when the clock of the protocol was at its origin.
    pub(crate) fn of(self, origin: u64) -> Reseed {
        match self {
            FencesAfterLoss::WaitForAll => Reseed::QuorumOrAll(origin),
            FencesAfterLoss::TrustTheClock => Reseed::QuorumOrWallClock(origin),
            FencesAfterLoss::WaitForAnOperator => Reseed::Quorum,
        }
    }
}

/// What one client knows of which nodes count, and does about the others.
#[derive(Clone, Debug, Hash)]
pub struct Enrolment {
    key: Key,
    quorum: Quorum,
    pact: Pact,
    reseed: Reseed,
    /// How long a node waits that may have forgotten something.
    wait: Duration,
    patience: Duration,
    /// Every observation has its own nonce: this client's random number, and how many there were.
    nonces: u128,
    rounds: u32,
    nodes: Box<[Standing]>,
}

#[derive(Clone, Debug, Hash)]
enum Standing {
    /// Not connected, or it did not say.
    Unknown,
    /// Asked whether it counts. What was known before comes back if nothing has changed.
    Asked {
        round: RoundId,
        observed: Option<Observation>,
    },
    Counting,
    Waiting(Observation),
    /// The wait is over: the others say how far the fences are.
    Seeding {
        observed: Observation,
        seeds: Box<Round>,
    },
    Enrolling {
        round: RoundId,
        observed: Observation,
        /// Nobody knew enough of the fences: from now on their order rests on the wall clock.
        by_the_clock: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Observation {
    nonce: Nonce,
    /// When what it may have forgotten is over.
    over_at: Instant,
    /// When the next step is tried.
    due_at: Instant,
    /// How often too few of the others counted, at most [`MOST_DOUBLINGS`].
    in_vain: u32,
}

/// The pause before the others are asked again is doubled so often, at most: one of them may be gone for good, and many clients may
/// be at it.
const MOST_DOUBLINGS: u32 = 6;

impl Enrolment {
    /// Knows nothing yet. `nonces` is random, and no other client has it.
    pub fn new(
        key: Key,
        (quorum, pact, drift): (Quorum, Pact, Drift),
        patience: Duration,
        nonces: u128,
    ) -> Self {
        let wait = pact.max_ttl().as_duration() + drift.allowance(pact.max_ttl());
        let nodes = vec![Standing::Unknown; quorum.nodes()].into();
        let reseed = Reseed::Quorum;
        Enrolment { key, quorum, pact, reseed, wait, patience, nonces, rounds: 0, nodes }
    }

    /// Decides anew what is done where too few of the others count.
    pub fn reseed(&mut self, reseed: Reseed) {
        self.reseed = reseed;
    }

    /// A connection to a node was made, or the node said that it does not count: is it so, and since when?
    pub fn look(&mut self, node: NodeIndex, out: &mut Vec<Action>) {
        let observed = match &self.nodes[node] {
            Standing::Waiting(observed)
            | Standing::Seeding { observed, .. }
            | Standing::Enrolling { observed, .. } => Some(*observed),
            Standing::Asked { observed, .. } => *observed,
            Standing::Unknown | Standing::Counting => None,
        };
        let round = self.next_round();
        self.nodes[node] = Standing::Asked { round, observed };
        self.observe(node, round, out);
    }

    /// A node said in a vote that it does not count. Looks at it if that is news.
    pub fn notice(&mut self, node: NodeIndex, out: &mut Vec<Action>) {
        if matches!(self.nodes[node], Standing::Counting | Standing::Unknown) {
            self.look(node, out);
        }
    }

    /// Takes in what a node said, or that it will not say anything any more.
    pub fn hear(
        &mut self,
        now: Instant,
        id: RoundId,
        node: NodeIndex,
        answer: &Answer,
        out: &mut Vec<Action>,
    ) {
        match &mut self.nodes[node] {
            Standing::Asked { round, observed } if *round == id => {
                let observed = *observed;
                self.nodes[node] = self.standing(now, answer, observed);
            }
            Standing::Enrolling { round, observed, .. } if *round == id => {
                let observed = *observed;
                self.nodes[node] = self.standing(now, answer, Some(observed));
            }
            // What one says of itself when it is asked for another, it is asked again for itself.
            _ => return self.hear_a_seed(now, id, node, answer, out),
        }
        if self.counts(node) {
            self.ask_it_for_the_others(now);
        }
    }

    /// One more counts: those that have waited for long enough need not wait until they would have asked again.
    fn ask_it_for_the_others(&mut self, now: Instant) {
        for standing in &mut self.nodes {
            if let Standing::Waiting(observed) = standing {
                observed.due_at = observed.due_at.min(now.max(observed.over_at));
            }
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, now: Instant, out: &mut Vec<Action>) {
        for node in 0..self.quorum.nodes() {
            match &mut self.nodes[node] {
                Standing::Waiting(observed) if now >= observed.due_at => {
                    let observed = *observed;
                    self.seed(now, node, observed, out);
                }
                Standing::Seeding { seeds, .. } if now >= seeds.deadline() => {
                    seeds.give_up(now);
                    self.judge_seeds(now, node, out);
                }
                _ => {}
            }
        }
    }

    /// When [`pass`](Enrolment::pass) has something to do.
    pub fn wake_at(&self) -> Instant {
        let each = self.nodes.iter().map(|standing| match standing {
            Standing::Waiting(observed) => observed.due_at,
            Standing::Seeding { seeds, .. } => seeds.deadline(),
            _ => Instant::NEVER,
        });
        each.fold(Instant::NEVER, Instant::min)
    }

    /// From when a node is likely to count; [`Instant::NEVER`] if that is not known.
    pub fn counts_from(&self, node: NodeIndex) -> Instant {
        match &self.nodes[node] {
            // If it has waited for long enough, the others are asked again then.
            Standing::Waiting(observed) => observed.over_at.max(observed.due_at),
            Standing::Seeding { observed, .. } | Standing::Enrolling { observed, .. } => observed.over_at,
            Standing::Asked { observed: Some(observed), .. } => observed.over_at,
            Standing::Unknown | Standing::Asked { observed: None, .. } | Standing::Counting => Instant::NEVER,
        }
    }

    /// Whether a node counted when it was last heard of.
    pub fn counts(&self, node: NodeIndex) -> bool {
        matches!(self.nodes[node], Standing::Counting)
    }

    /// Whether a node would count if more of the others did.
    pub fn lacks_others(&self, node: NodeIndex) -> bool {
        matches!(&self.nodes[node], Standing::Waiting(observed) if observed.in_vain > 0)
    }

    /// Whether a node is being told what the wall clock says of the fences, since too few others knew.
    pub fn goes_by_the_clock(&self, node: NodeIndex) -> bool {
        matches!(self.nodes[node], Standing::Enrolling { by_the_clock: true, .. })
    }

    /// What tells two apart that are whosever, for a search in which clients and nodes are alike.
    #[cfg(feature = "sim")]
    pub fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Enrolment { reseed, rounds, nodes, .. } = self;
        (reseed, rounds).hash(all);
        nodes.iter().zip(each).for_each(|(standing, node)| standing.hash(node));
    }

    /// What an answer to a question about a node itself makes of it.
    fn standing(&self, now: Instant, answer: &Answer, before: Option<Observation>) -> Standing {
        match answer {
            Answer::Enrolled(_) => Standing::Counting,
            Answer::Observed(nonce) => {
                Standing::Waiting(match before.filter(|known| known.nonce == *nonce) {
                    Some(known) => Observation { due_at: known.over_at.max(now), ..known },
                    None => {
                        let over_at = now + self.wait;
                        Observation { nonce: *nonce, over_at, due_at: over_at, in_vain: 0 }
                    }
                })
            }
            // Nothing is known of it; what is known of its nonce may be so still.
            _ => match before {
                Some(known) => {
                    Standing::Waiting(Observation { due_at: known.over_at.max(now + self.patience), ..known })
                }
                None => Standing::Unknown,
            },
        }
    }

    /// The wait is over: asks the others how far the fences are.
    fn seed(&mut self, now: Instant, node: NodeIndex, observed: Observation, out: &mut Vec<Action>) {
        let round = self.next_round();
        let mut seeds = Round::to_nobody(round, self.quorum, now);
        seeds.wait_until(now + self.patience);
        for other in self.others(node) {
            seeds.ask(other);
            self.observe(other, round, out);
        }
        self.nodes[node] = Standing::Seeding { observed, seeds: Box::new(seeds) };
        // Where there are no others.
        self.judge_seeds(now, node, out);
    }

    fn hear_a_seed(
        &mut self,
        now: Instant,
        id: RoundId,
        from: NodeIndex,
        answer: &Answer,
        out: &mut Vec<Action>,
    ) {
        let asks =
            |standing: &Standing| matches!(standing, Standing::Seeding { seeds, .. } if seeds.id() == id);
        let Some(node) = self.nodes.iter().position(asks) else { return };
        if let Standing::Seeding { seeds, .. } = &mut self.nodes[node] {
            seeds.hear(from, answer.clone(), now);
        }
        self.judge_seeds(now, node, out);
    }

    fn judge_seeds(&mut self, now: Instant, node: NodeIndex, out: &mut Vec<Action>) {
        let Standing::Seeding { observed, seeds } = &self.nodes[node] else { return };
        let observed = *observed;
        let enough = seeds.count(|answer| matches!(answer, Answer::Enrolled(_))) > self.quorum.spare();
        let open = self.others(node).any(|other| seeds.answer(other).is_none());
        let known = seeds.answers().flatten().filter_map(Answer::counter).fold(Fence::NONE, Fence::max);
        let is_silent = |answer: &Answer| !matches!(answer, Answer::Enrolled(_) | Answer::Observed(_));
        let (floor, by_the_clock) = match self.reseed {
            _ if enough => (known, false),
            _ if open => return,
            Reseed::QuorumOrAll(origin) if seeds.count(is_silent) == 0 => {
                (known.max(above_the_clock(origin, now)), true)
            }
            Reseed::QuorumOrWallClock(origin) => (known.max(above_the_clock(origin, now)), true),
            Reseed::Quorum | Reseed::QuorumOrAll(_) => {
                let due_at = now + self.patience * (1 << observed.in_vain);
                let in_vain = (observed.in_vain + 1).min(MOST_DOUBLINGS);
                self.nodes[node] = Standing::Waiting(Observation { due_at, in_vain, ..observed });
                return;
            }
        };
        let round = self.next_round();
        self.nodes[node] = Standing::Enrolling { round, observed, by_the_clock };
        let (key, pact) = (self.key.clone(), self.pact);
        let anew = self.nonce(node, round);
        let command = Command::Enrol { key, nonce: observed.nonce, anew, floor, pact };
        out.push(Action::Send { node, round, command });
    }

    fn observe(&mut self, node: NodeIndex, round: RoundId, out: &mut Vec<Action>) {
        let nonce = self.nonce(node, round);
        let command = Command::Observe { key: self.key.clone(), nonce, pact: self.pact, overrules: false };
        out.push(Action::Send { node, round, command });
    }

    /// One that nobody has had.
    fn nonce(&self, node: NodeIndex, round: RoundId) -> Nonce {
        Nonce(self.nonces.wrapping_add(u128::from(round.0) * self.quorum.nodes() as u128 + node as u128))
    }

    fn others(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> + use<> {
        (0..self.quorum.nodes()).filter(move |other| *other != node)
    }

    fn next_round(&mut self) -> RoundId {
        let id = RoundId(self.rounds);
        self.rounds += 1;
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::command::Unknown;
    use crate::protocol::time::Ttl;

    const WAIT: u64 = 10_102;
    const PATIENCE: u64 = 200;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// Three nodes, of which the others count.
    struct Stage {
        enrolment: Enrolment,
        out: Vec<Action>,
    }

    impl Stage {
        fn set(nodes: usize) -> Stage {
            let quorum = Quorum::of(nodes);
            let names: Vec<_> = (1..=nodes).map(|node| format!("n{node}").into()).collect();
            let pact = Pact::of(&names, quorum, Ttl::from_millis(10_000));
            let patience = Duration::from_millis(PATIENCE);
            let key = Key::of_lock("ns", b"");
            let enrolment = Enrolment::new(key, (quorum, pact, Drift::DEFAULT), patience, 1_000);
            Stage { enrolment, out: Vec::new() }
        }

        /// What was asked since the last time, and in which round.
        fn asked(&mut self) -> (RoundId, Vec<(NodeIndex, String)>) {
            let mut last = RoundId(0);
            let line = |action| match action {
                Action::Send { node, round, command } => {
                    last = round;
                    let words = match command {
                        Command::Observe { .. } => "observe".to_owned(),
                        Command::Enrol { nonce, floor, .. } => format!("enrol {} {floor}", nonce.0),
                        other => panic!("{other:?}"),
                    };
                    (node, words)
                }
                other => panic!("{other:?}"),
            };
            let lines = self.out.drain(..).map(line).collect();
            (last, lines)
        }

        fn hear(&mut self, time: u64, round: RoundId, node: NodeIndex, answer: &Answer) {
            self.enrolment.hear(at(time), round, node, answer, &mut self.out);
        }

        fn observed(&mut self, time: u64, node: NodeIndex, nonce: u128) {
            self.enrolment.look(node, &mut self.out);
            let (round, asked) = self.asked();
            assert_eq!(asked, [(node, "observe".to_owned())]);
            self.hear(time, round, node, &Answer::Observed(Nonce(nonce)));
        }

        /// Time passes until a moment, and nothing is asked before.
        fn pass(&mut self, time: u64) {
            assert_eq!(self.enrolment.wake_at(), at(time));
            self.enrolment.pass(at(time - 1), &mut self.out);
            assert!(self.out.is_empty(), "{:?}", self.out);
            self.enrolment.pass(at(time), &mut self.out);
        }
    }

    fn to_others() -> Vec<(NodeIndex, String)> {
        vec![(1, "observe".to_owned()), (2, "observe".to_owned())]
    }

    #[test]
    fn a_node_that_counts_is_left_alone() {
        let mut stage = Stage::set(3);
        stage.enrolment.look(0, &mut stage.out);
        let (round, _) = stage.asked();
        stage.hear(1, round, 0, &Answer::Enrolled(Fence::new(5)));
        assert!(stage.enrolment.counts(0));
        assert_eq!(stage.enrolment.wake_at(), Instant::NEVER);
        // Until a vote of it does not.
        stage.enrolment.notice(0, &mut stage.out);
        assert_eq!(stage.asked().1.len(), 1);
        stage.enrolment.notice(0, &mut stage.out);
        assert_eq!(stage.asked().1.len(), 0, "it is looked at already");
    }

    #[test]
    fn one_that_does_not_waits_and_then_learns_from_enough_of_the_others() {
        let mut stage = Stage::set(3);
        stage.observed(5, 0, 7);
        assert_eq!(stage.enrolment.counts_from(0), at(5 + WAIT), "from when it was heard");
        stage.pass(5 + WAIT);
        let (round, asked) = stage.asked();
        assert_eq!(asked, to_others());
        stage.hear(20_000, round, 1, &Answer::Enrolled(Fence::new(33)));
        assert_eq!(stage.asked().1, [], "one of three is not enough");
        stage.hear(20_001, round, 2, &Answer::Enrolled(Fence::new(20)));
        let (round, asked) = stage.asked();
        assert_eq!(asked, [(0, "enrol 7 33".to_owned())]);
        stage.hear(20_002, round, 0, &Answer::Enrolled(Fence::new(33)));
        assert!(stage.enrolment.counts(0));
    }

    #[test]
    fn a_connection_that_is_made_again_does_not_begin_the_wait_again_but_a_lost_memory_does() {
        let mut stage = Stage::set(3);
        stage.observed(5, 0, 7);
        stage.observed(3_000, 0, 7);
        assert_eq!(stage.enrolment.counts_from(0), at(5 + WAIT));
        stage.observed(4_000, 0, 8);
        assert_eq!(stage.enrolment.counts_from(0), at(4_000 + WAIT));
        // Nothing was heard: the nonce may stand all the same, and nothing is done before the wait is over.
        stage.enrolment.look(0, &mut stage.out);
        let (round, _) = stage.asked();
        stage.hear(5_000, round, 0, &Answer::Unknown(Unknown::ConnectionLost));
        stage.pass(4_000 + WAIT);
        let (round, _) = stage.asked();
        for other in [1, 2] {
            stage.hear(20_000, round, other, &Answer::Enrolled(Fence::NONE));
        }
        // It was lost at the last moment.
        let (round, _) = stage.asked();
        stage.hear(20_001, round, 0, &Answer::Observed(Nonce(9)));
        assert_eq!(stage.enrolment.counts_from(0), at(20_001 + WAIT));
    }

    #[test]
    fn with_too_few_of_the_others_it_is_tried_again_or_the_wall_clock_is_taken() {
        let mut stage = Stage::set(3);
        stage.observed(0, 0, 7);
        stage.pass(WAIT);
        let (round, _) = stage.asked();
        stage.hear(11_000, round, 1, &Answer::Observed(Nonce(3)));
        stage.hear(11_000, round, 2, &Answer::Enrolled(Fence::new(33)));
        assert_eq!(stage.asked().1, []);
        assert!(stage.enrolment.lacks_others(0) && !stage.enrolment.lacks_others(1));
        stage.pass(11_000 + PATIENCE);
        assert_eq!(stage.asked().1, to_others());
        // Silent ones are given up, and asked again after twice the pause.
        stage.pass(11_000 + 2 * PATIENCE);
        assert_eq!(stage.asked().1, []);
        assert_eq!(stage.enrolment.counts_from(0), at(11_000 + 4 * PATIENCE));
        stage.enrolment.reseed(Reseed::QuorumOrAll(5));
        stage.pass(11_000 + 4 * PATIENCE);
        let (round, _) = stage.asked();
        stage.hear(11_900, round, 1, &Answer::Unknown(Unknown::NotConnected));
        stage.hear(11_900, round, 2, &Answer::Enrolled(Fence::new(33)));
        assert_eq!(stage.asked().1, [], "a silent one may know more");
        stage.enrolment.reseed(Reseed::QuorumOrWallClock(5));
        stage.pass(11_900 + 4 * PATIENCE);
        let (round, _) = stage.asked();
        stage.hear(12_900, round, 1, &Answer::Unknown(Unknown::NotConnected));
        stage.hear(12_900, round, 2, &Answer::Enrolled(Fence::new(33)));
        assert_eq!(stage.asked().1, [(0, "enrol 7 612900005".to_owned())], "ten minutes ahead of the clock");
        assert!(stage.enrolment.goes_by_the_clock(0));
    }

    #[test]
    fn when_all_have_answered_and_too_few_remember_nobody_can_know_more_than_the_clock() {
        let mut stage = Stage::set(3);
        stage.enrolment.reseed(Reseed::QuorumOrAll(5));
        stage.observed(0, 0, 7);
        stage.pass(WAIT);
        let (round, _) = stage.asked();
        stage.hear(12_000, round, 1, &Answer::Observed(Nonce(3)));
        assert_eq!(stage.asked().1, [], "the last one may know it all");
        stage.hear(12_000, round, 2, &Answer::Enrolled(Fence::new(33)));
        assert_eq!(stage.asked().1, [(0, "enrol 7 612000005".to_owned())]);
        assert!(stage.enrolment.goes_by_the_clock(0));
    }

    #[test]
    fn when_one_more_counts_those_that_have_waited_ask_at_once_and_else_more_and_more_seldom() {
        let mut stage = Stage::set(3);
        stage.observed(0, 0, 7);
        let mut time = WAIT;
        for pause in [1, 2, 4, 8, 16, 32, 64, 64] {
            stage.pass(time);
            let (round, asked) = stage.asked();
            assert_eq!(asked, to_others());
            for other in [1, 2] {
                stage.hear(time, round, other, &Answer::Unknown(Unknown::NotConnected));
            }
            time += pause * PATIENCE;
        }
        stage.enrolment.look(2, &mut stage.out);
        let (round, _) = stage.asked();
        stage.hear(time - 1_000, round, 2, &Answer::Enrolled(Fence::new(33)));
        stage.pass(time - 1_000);
        assert_eq!(stage.asked().1, to_others());
    }

    #[test]
    fn a_single_node_has_no_others() {
        let mut stage = Stage::set(1);
        stage.observed(0, 0, 7);
        stage.pass(WAIT);
        assert_eq!(stage.asked().1, []);
        stage.enrolment.reseed(Reseed::QuorumOrAll(0));
        stage.pass(WAIT + PATIENCE);
        assert_eq!(stage.asked().1, [(0, "enrol 7 610302000".to_owned())]);
    }

    #[test]
    fn every_observation_has_a_nonce_of_its_own() {
        let mut stage = Stage::set(3);
        (0..3).for_each(|node| stage.enrolment.look(node, &mut stage.out));
        (0..3).for_each(|node| stage.enrolment.look(node, &mut stage.out));
        let nonce = |action: &Action| match action {
            Action::Send { command: Command::Observe { nonce, .. }, .. } => *nonce,
            other => panic!("{other:?}"),
        };
        let mut nonces: Vec<_> = stage.out.iter().map(nonce).collect();
        nonces.sort_unstable();
        nonces.dedup();
        assert_eq!(nonces.len(), 6);
    }
}
