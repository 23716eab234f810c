//! One attempt to win a majority, under one LeaseId and one starting moment: at all nodes at once, or in node order.
//!
//! What it is to win decides what the nodes are asked and what counts as a yes: the key, or the key and a fence. A fence is
//! proposed with the key. Where a majority grants the key but not the fence, the fence is raised above all counters that were
//! heard, at the nodes at which the key stands: as long as it does, nobody else can move the counters there, so there is no
//! third round trip.

#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::claim::{Action, Draw};
use super::command::{Answer, Command, Key, NodeIndex, Signature, Value, Wake};
use super::evidence::Evidence;
use super::fence::Fence;
use super::marker::{Nonce, Pact, Rules};
use super::quorum::{Decision, Tally, Vote};
use super::release::Footprint;
use super::round::{Round, RoundId, vote};
use super::settings::Terms;
use super::time::{Instant, Ttl};

/// How the nodes are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Manner {
    /// All at once: one round trip when nobody contends.
    Parallel,
    /// This node first, and only who gets it asks the others: of the contenders in a split vote exactly one goes on.
    InOrder(NodeIndex),
}

/// What is to be won.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prize {
    /// The key at a majority.
    Key,
    /// The key at a majority of nodes whose markers agree to the pact, and there this fence.
    Fenced(Pact, Fence),
}

impl Prize {
    /// By which rules nodes count.
    pub fn rules(self) -> Rules {
        match self {
            Prize::Key => Rules::Plain,
            Prize::Fenced(pact, _) => Rules::Strict(pact),
        }
    }

    /// What there is to be shown of it.
    fn evidence(self, terms: &Terms) -> Option<Box<Evidence>> {
        match self {
            Prize::Key => None,
            Prize::Fenced(..) => Some(Box::new(Evidence::new(terms.quorum.nodes(), terms.quorum.majority()))),
        }
    }

    /// The fence.
    pub fn fence(self) -> Option<Fence> {
        match self {
            Prize::Key => None,
            Prize::Fenced(_, fence) => Some(fence),
        }
    }
}

/// How often a node that says no is asked again in an ordered attempt, until the losers' releases have landed.
const ASKS: u32 = 8;

/// An attempt under way.
#[derive(Clone, Debug, Hash)]
pub struct Attempt {
    pub(super) value: Value,
    pub(super) jitter: u64,
    pub(super) round: Round,
    pub(super) footprint: Footprint,
    pub(super) prize: Prize,
    /// Of a lock that can be proven to have been exclusive.
    pub(super) evidence: Option<Box<Evidence>>,
    stage: Stage,
    order: Option<Box<Order>>,
}

/// What is asked of the nodes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The key, and with it whether the fence that was proposed will do.
    Asking,
    /// The key stands at a majority; a higher fence is to be accepted there.
    Raising,
}

/// What an ordered attempt knows beside the votes.
#[derive(Clone, Debug, Hash)]
struct Order {
    first: NodeIndex,
    /// How long to leave a node alone after it said no: half a round trip.
    pause: Duration,
    asked: Box<[Asked]>,
}

#[derive(Clone, Copy, Debug, Hash)]
struct Asked {
    times: u32,
    /// When the node, having said no, is asked again.
    again_at: Option<Instant>,
}

impl Attempt {
    /// Sends `SET key value NX PX ttl`, with the fence if there is one, to all nodes, or to the first in order. `now` was read
    /// before anything was sent.
    pub fn begin(
        (key, signature, terms): (&Key, &Signature, &Terms),
        (manner, prize): (Manner, Prize),
        (id, draw, round_trip): (RoundId, Draw, Duration),
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Self {
        let patience = terms.node_timeout;
        let (round, order) = match manner {
            Manner::Parallel => (Round::to_all(id, terms.quorum, now, patience), None),
            Manner::InOrder(first) => {
                let asked = vec![Asked { times: 0, again_at: None }; terms.quorum.nodes()].into();
                let round = Round::to_one(id, terms.quorum, first, now, patience);
                (round, Some(Box::new(Order { first, pause: round_trip / 2, asked })))
            }
        };
        let value = Value::new(draw.lease_id, signature);
        let footprint = Footprint::none(terms.quorum);
        let evidence = prize.evidence(terms);
        let (jitter, stage) = (draw.jitter, Stage::Asking);
        let mut attempt = Attempt { value, jitter, round, footprint, prize, evidence, stage, order };
        match manner {
            Manner::Parallel => {
                (0..terms.quorum.nodes()).for_each(|node| attempt.ask(node, key, terms.ttl, out));
            }
            Manner::InOrder(first) => attempt.ask(first, key, terms.ttl, out),
        }
        attempt
    }

    /// Takes in what a node said.
    pub fn hear(
        &mut self,
        (key, terms): (&Key, &Terms),
        now: Instant,
        node: NodeIndex,
        (answer, incarnation): (Answer, Option<Nonce>),
        out: &mut Vec<Action>,
    ) {
        self.footprint.heard(node, &answer);
        if let Some(evidence) = &mut self.evidence {
            evidence.heard(node, self.round.id(), &answer, incarnation);
        }
        let (granted, denied) = (vote(&answer) == Vote::Granted, vote(&answer) == Vote::Denied);
        if !self.round.hear(node, answer, now) {
            return;
        }
        self.go_on_in_order((key, terms), now, node, (granted, denied), out);
        self.see_to_the_fence((key, terms), now, node, out);
    }

    fn go_on_in_order(
        &mut self,
        (key, terms): (&Key, &Terms),
        now: Instant,
        node: NodeIndex,
        (granted, denied): (bool, bool),
        out: &mut Vec<Action>,
    ) {
        let Some(order) = &mut self.order else { return };
        if node == order.first && granted {
            // One moment still counts for all: the validity goes on from before the first node was asked.
            self.round.wait_until(now + terms.node_timeout);
            let others = (0..terms.quorum.nodes()).filter(|other| *other != node);
            others.for_each(|other| self.ask(other, key, terms.ttl, out));
        } else if node != order.first && denied && order.asked[node].times < ASKS {
            // Asked again only after a no: after a silence the first command may still be on its way.
            order.asked[node].again_at = Some(now + order.pause);
        }
    }

    /// Raises the fence once a majority has granted the key but has not accepted the proposal; and then at whoever grants the
    /// key later.
    fn see_to_the_fence(
        &mut self,
        (key, terms): (&Key, &Terms),
        now: Instant,
        node: NodeIndex,
        out: &mut Vec<Action>,
    ) {
        match self.stage {
            Stage::Raising => self.raise(node, key, out),
            Stage::Asking => {
                let won = terms.quorum.decide(self.tally()) == Decision::Won;
                if !won || self.is_accepted(terms) {
                    return;
                }
                let Prize::Fenced(pact, proposal) = self.prize else { return };
                // A proposal that was accepted nowhere is left out: the clock that it came from may be a century ahead, and
                // what is raised is not bounded by the clocks of the nodes.
                let counters = self.round.answers().flatten().filter_map(|answer| match answer {
                    Answer::Accepted => Some(proposal),
                    answer => answer.counter(),
                });
                let fence = counters.fold(Fence::NONE, Fence::max).next();
                self.prize = Prize::Fenced(pact, fence);
                self.stage = Stage::Raising;
                // Who said no is not asked again: a majority has said yes.
                self.order = None;
                // One moment still counts for all: the validity goes on from before the first node was asked.
                self.round.wait_until(now + terms.node_timeout);
                (0..terms.quorum.nodes()).for_each(|node| self.raise(node, key, out));
            }
        }
    }

    /// Asks a node at which the key stands to accept the fence. Where it does not stand, another's may, whose fence nobody knows.
    fn raise(&mut self, node: NodeIndex, key: &Key, out: &mut Vec<Action>) {
        let Prize::Fenced(pact, fence) = self.prize else { return };
        let may_accept = match self.round.answer(node) {
            Some(Answer::Accepted) => true,
            Some(Answer::Voted(counter)) => fence > *counter,
            _ => false,
        };
        if may_accept {
            self.round.ask(node);
            self.footprint.wrote(node);
            let command = Command::Raise { key: key.clone(), value: self.value.clone(), fence, pact };
            out.push(Action::Send { node, round: self.round.id(), command });
        }
    }

    /// Whether a majority has accepted the proposal with the key.
    fn is_accepted(&self, terms: &Terms) -> bool {
        match self.prize {
            Prize::Key => true,
            Prize::Fenced(..) => {
                self.round.count(|answer| *answer == Answer::Accepted) >= terms.quorum.majority()
            }
        }
    }

    /// Lets time pass: asks again where a pause is over, gives up at the deadline.
    pub fn pass(&mut self, (key, terms): (&Key, &Terms), now: Instant, out: &mut Vec<Action>) {
        if now >= self.round.deadline() {
            return self.give_up(now);
        }
        for node in self.due(now) {
            self.ask(node, key, terms.ttl, out);
        }
    }

    /// A node that said no, and was silent only when asked again, said no. It may yet carry out what it was asked last, so
    /// a release is owed to it all the same.
    fn give_up(&mut self, now: Instant) {
        if let Some(order) = &mut self.order {
            for (node, asked) in order.asked.iter_mut().enumerate() {
                asked.again_at = None;
                if asked.times > 1 {
                    self.round.hear(node, Answer::Denied, now);
                }
            }
        }
        self.round.give_up(now);
    }

    fn due(&self, now: Instant) -> Vec<NodeIndex> {
        let asked = self.order.iter().flat_map(|order| order.asked.iter().enumerate());
        asked.filter(|(_, asked)| asked.again_at.is_some_and(|at| now >= at)).map(|(node, _)| node).collect()
    }

    fn ask(&mut self, node: NodeIndex, key: &Key, ttl: Ttl, out: &mut Vec<Action>) {
        if let Some(order) = &mut self.order {
            order.asked[node] = Asked { times: order.asked[node].times + 1, again_at: None };
        }
        self.round.ask(node);
        self.footprint.wrote(node);
        if let Some(evidence) = &mut self.evidence {
            evidence.wrote(node, self.round.id());
        }
        let (key, value) = (key.clone(), self.value.clone());
        let command = match self.prize {
            Prize::Key => Command::Acquire { key, value, ttl },
            Prize::Fenced(pact, fence) => Command::Propose { key, value, ttl, fence, pact },
        };
        out.push(Action::Send { node, round: self.round.id(), command });
    }

    /// What tells two attempts apart that have the same value, node by node.
    #[cfg(feature = "sim")]
    pub fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Attempt { value: _, jitter, round, footprint, prize, evidence, stage, order } = self;
        (jitter, prize, stage, order).hash(all);
        round.hash_by_node(all, each);
        footprint.hash_by_node(each);
        evidence.iter().for_each(|evidence| evidence.hash_by_node(all, each));
    }

    /// Whether the nodes are asked one after the other.
    #[cfg(feature = "sim")]
    pub fn is_in_order(&self) -> bool {
        self.order.is_some()
    }

    /// Whether a higher fence is asked for than was proposed.
    #[cfg(feature = "sim")]
    pub fn is_raising(&self) -> bool {
        self.stage == Stage::Raising
    }

    /// When [`pass`](Attempt::pass) has something to do.
    pub fn wake_at(&self) -> Instant {
        let again = self.order.iter().flat_map(|order| order.asked.iter().filter_map(|asked| asked.again_at));
        again.fold(self.round.deadline(), Instant::min)
    }

    /// Where the vote stands.
    pub fn decision(&self, terms: &Terms) -> Decision {
        match &self.order {
            Some(order) if self.round.answer(order.first).map(vote) != Some(Vote::Granted) => {
                // Alone at the first node: its word decides whether there is more to ask.
                if self.round.answer(order.first).is_some() { Decision::Failed } else { Decision::Pending }
            }
            _ => terms.quorum.decide(self.tally()),
        }
    }

    /// The votes; a node that will be asked again has not voted yet.
    pub fn tally(&self) -> Tally {
        let again =
            |node: NodeIndex| self.order.as_ref().is_some_and(|order| order.asked[node].again_at.is_some());
        let answers = self.round.answers().enumerate().filter(|(node, _)| !again(*node));
        answers.filter_map(|(_, answer)| answer).map(|answer| self.vote(answer)).collect()
    }

    fn vote(&self, answer: &Answer) -> Vote {
        match (self.stage, answer) {
            // It has the key, but its counter is above the fence.
            (Stage::Raising, Answer::Accepted | Answer::Voted(_)) => Vote::Denied,
            _ => vote(answer),
        }
    }

    /// How long the slowest node took that answered, if all were asked at once, and once.
    pub fn round_trip(&self) -> Option<Duration> {
        let once = self.order.is_none() && self.stage == Stage::Asking;
        once.then(|| self.round.slowest_answer()).flatten()
    }

    /// Undoes the attempt: a release wherever a key of it may stand, behind the SET on the same connection.
    ///
    /// Somebody may have seen it on a majority, and wait for its end, unless so many nodes denied it that it never stood on one.
    pub fn roll_back(&self, (key, terms): (&Key, &Terms), out: &mut Vec<Action>) {
        let never_stood = self.stage == Stage::Asking && self.tally().denied > terms.quorum.spare();
        let wake = if never_stood { Wake::Nobody } else { Wake::Next };
        for node in (0..terms.quorum.nodes()).filter(|node| self.footprint.may_stand(*node)) {
            let (key, value) = (key.clone(), self.value.clone());
            let (owed_for, rules) = (terms.longest_life(terms.ttl), self.prize.rules());
            let command = Command::Release { key, value, linger: Ttl::ZERO, owed_for, wake, rules };
            out.push(Action::Send { node, round: self.round.id(), command });
        }
    }
}
