//! One wish to hold a resource, from the first attempt to the last release: events in, actions out.
//!
//! This file tells the story; the chapters are in [`attempt`](super::attempt) (winning a majority), [`look`](super::look)
//! (who holds it instead), [`hold`](super::hold) and [`lease`](super::lease) (keeping it), [`release`](super::release)
//! (giving it back). It performs nothing itself, reads no clock and draws no random number.
//!
//! ```text
//!            draw             majority in time
//!  Resting ───────► Attempting ──────────────► Held ──────────► Releasing ──► Ended
//!     ▲ ▲               │                       │    release        ▲
//!     │ │ pause         │ no majority:          │ validity over,    │ release
//!     │ │               ▼ roll back             ▼ or taken over     │
//!     │ └─────────── Looking                   Lost ────────────────┘
//!     │ woken, or      │ somebody holds: enter the wait lists
//!     │ look again     ▼
//!     └──────────── Waiting
//! ```
//!
//! Whoever drops the wish before it is won sends [`Event::Abandon`]: a resting claim just ends, an attempt is rolled back, and
//! who is on wait lists leaves them.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::attempt::{Attempt, Manner, Prize};
use super::command::{Answer, Command, Key, LeaseId, NodeIndex, Signature, Value, Wake};
use super::fence::{Fence, Proposer};
use super::hold::{Hold, Request, Verdict};
use super::lease::Lease;
use super::look::Look;
use super::marker::Pact;
use super::quorum::Decision;
use super::release::ReleaseOutcome;
use super::report::Report;
use super::round::{Round, RoundId};
use super::settings::Terms;
use super::time::{Instant, Ttl};
use super::wait::{LONGEST_SLEEP, Patience, WakeBy, fraction, second_half};

/// How many ordered attempts settle a split vote before the claim rests like one that met a holder.
const SPLITS: u32 = 8;

/// So many of them in a row begin at the same node. There may stand a key that nobody holds by: of a client that died, or whose
/// release was lost.
const SPLITS_AT_A_NODE: u32 = 3;

/// How soon a claim that leaves others a moment tries or looks again: then, or after a round trip where that is longer.
const SHORTEST_GRACE: Duration = Duration::from_millis(2);

/// What happens to a claim. Time passes with every event; [`Tick`](Event::Tick) is nothing but time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time has passed: sent at [`Claim::wake_at`], and harmless at any other moment.
    Tick,
    /// The answer to [`Action::Draw`].
    Attempt(Draw),
    /// A node answered, or will not answer any more.
    Answer {
        /// The round in which it was asked.
        round: RoundId,
        /// The node.
        node: NodeIndex,
        /// What it said.
        answer: Answer,
    },
    /// The holder wants a lease of this length from now.
    Extend {
        /// Comes back with the result.
        ticket: Ticket,
        /// The length.
        ttl: Ttl,
    },
    /// The holder wants to know whether the lock was exclusive up to now. Changes nothing: neither lease nor keys.
    Verify {
        /// Comes back with the result.
        ticket: Ticket,
    },
    /// Somebody else changed a key, or may have: look whether the lock still stands. Says nothing by itself.
    Alarm,
    /// A node says that the resource is free there, and that it is this claim's turn. It may be neither: a reason to try or
    /// to look, never an answer.
    Woken {
        /// The node.
        node: NodeIndex,
    },
    /// A node may have passed this claim over, or forgotten that it waits: it was away. Says nothing of the resource.
    LookAgain,
    /// The holder is done: release what is held, roll back what is tried.
    Release,
    /// As [`Release`](Event::Release), but another claim of this client comes right behind, so nobody else is woken.
    HandOver,
    /// Whoever wished is gone before having the lock in hand: nothing of it shall stay, not even for `hold_at_least`.
    Abandon,
}

/// What the world is asked to do. Commands to one node are carried out in the order of the actions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Draw a new LeaseId and a jitter, and hand them back at once as [`Event::Attempt`].
    Draw,
    /// Send a command to a node; its answer comes back with the round.
    Send {
        /// The node.
        node: NodeIndex,
        /// Handed back with the answer.
        round: RoundId,
        /// What is asked.
        command: Command,
    },
    /// Tell whoever waits.
    Tell(Notice),
}

/// What whoever waits for the claim is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The resource is held.
    Won,
    /// The claim gave up. Nothing is held; what was set is rolled back.
    Failed(Failure),
    /// An extension by hand is decided.
    Extended(Ticket, Result<(), ExtensionFailure>),
    /// Whether the lock is proven to have been exclusive from when it was won to when the nodes were asked; `None` for a kind that can
    /// prove nothing. Or why nothing is known.
    Verified(Ticket, Result<Option<bool>, ExtensionFailure>),
    /// What was held is lost, for good: the holder must stop now.
    Lost(Loss),
    /// The release is decided.
    Released {
        /// What it came to.
        outcome: ReleaseOutcome,
        /// Whether the lock is proven to have been exclusive, from when it was won to when the release was sent; `None` for a
        /// kind that can prove nothing.
        proven: Option<bool>,
        /// What each node said.
        report: Report,
        /// A node says that somebody else waits for the resource, or was woken.
        others_wait: bool,
    },
    /// The resource has been held for ten minutes, and nothing bounds the hold.
    HeldLong,
}

/// The randomness of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Draw {
    /// Written into the keys of this attempt, and of no other.
    pub lease_id: LeaseId,
    /// Spreads the next rest, and the renewals of the hold.
    pub jitter: u64,
}

/// Tells apart what a holder asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Why a claim gave up, by its last attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Failure {
    /// The reason.
    pub why: Why,
    /// What each node said.
    pub report: Report,
}

/// The reasons for which an attempt fails.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Another holds the resource, or the votes were split until the end.
    Held {
        /// The holder's value, if a majority shows it.
        by: Option<Value>,
    },
    /// More than N - q nodes gave no answer.
    NoQuorum,
    /// More than N - q nodes gave no answer that counts, and it would be enough if those did that wait after a restart.
    NotReady {
        /// From when enough of them vote.
        at: Instant,
    },
    /// A majority was won, but its validity was over when it was heard.
    TooLate,
}

/// Why an extension by hand brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ExtensionFailure {
    /// The lock is lost.
    Lost,
    /// Too few nodes answered. The old lease stands.
    NoQuorum(Report),
    /// The lease reaches to the end of `hold_at_most` already.
    Capped,
}

/// How a held lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// No majority confirmed an extension before the validity ended.
    Expired,
    /// So many nodes lost the key, or hold another's, that no majority is left.
    KeysGone,
}

/// What a claim is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The lock.
    Plain,
    /// The lock, and a fence with it, by nodes that agree to the pact.
    Fenced(Pact, Box<Proposer>),
}

impl Kind {
    /// What an attempt that begins now is to win.
    fn prize(&self, now: Instant) -> Prize {
        match self {
            Kind::Plain => Prize::Key,
            Kind::Fenced(pact, proposer) => Prize::Fenced(*pact, proposer.propose(now)),
        }
    }

    /// A fence was accepted somewhere, for whomever: the next proposal is above it.
    fn meet(&mut self, now: Instant, fence: Option<Fence>) {
        if let (Kind::Fenced(_, proposer), Some(fence)) = (self, fence) {
            proposer.meet(now, fence);
        }
    }
}

/// One wish to hold one resource.
#[derive(Clone, Debug)]
pub struct Claim {
    kind: Kind,
    key: Key,
    signature: Signature,
    terms: Arc<Terms>,
    patience: Patience,
    state: State,
    rounds: u32,
    /// Failed attempts in a row.
    failures: u32,
    /// Ordered attempts since somebody was last seen to hold.
    splits: u32,
    /// When it began to compete.
    since: Option<Instant>,
    /// It may stand on wait lists.
    is_listed: bool,
    /// Others are let pass before it tries.
    is_polite: bool,
    /// A look that is taken earlier does not count as a failure.
    counts_again_at: Instant,
    /// The nodes that have woken it since it last asked them.
    woken_by: Vec<NodeIndex>,
    /// It was woken, tried, and others had the resource: from then on one message is not enough.
    was_woken_in_vain: bool,
    /// What the last failed attempt found.
    last_failure: Option<Box<(Why, Round)>>,
    /// How long the nodes took to answer the last attempt that asked them all at once.
    round_trip: Duration,
}

/// What tells two claims under the same terms apart, for a search that must not visit the same one twice.
impl Hash for Claim {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Claim { kind, key, signature, terms: _, patience, state, .. } = self;
        let counters = (self.rounds, self.failures, self.splits, self.round_trip);
        let waiting = (
            &self.woken_by,
            self.was_woken_in_vain,
            self.since,
            self.is_listed,
            self.is_polite,
            self.counts_again_at,
        );
        (kind, key, signature, patience, state, counters, waiting, &self.last_failure).hash(hasher);
    }
}

#[derive(Clone, Debug, Hash)]
enum State {
    /// Nothing of ours stands anywhere, or a release is on its way behind it.
    Resting {
        until: Instant,
        next: Next,
    },
    /// Somebody holds, and the nodes will say when it is done. Until then, or until a moment at which it looks for itself.
    Waiting {
        until: Instant,
    },
    /// The rest is over, and a draw was asked for.
    Drawing {
        next: Next,
    },
    Attempting(Attempt),
    /// A round tells who holds: after an attempt that failed against others, or after a wait.
    Looking {
        round: Round,
        failed: Option<Box<Round>>,
        jitter: u64,
    },
    Held(Hold),
    /// The loss was told. Until the lease is over its holder may still be about to stop; then the keys are released.
    Lost {
        hold: Hold,
        released: bool,
    },
    Releasing {
        round: Round,
        hold: Hold,
    },
    /// With what was held, for those who still look at it.
    Ended(Option<Hold>),
}

/// What comes after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Attempt(Manner),
    Look,
}

/// Where a claim stands, for those who look from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not won yet.
    Claiming,
    /// Held.
    Held,
    /// Was held, and is lost.
    Lost,
    /// Over, or nearly: the release went out.
    Over,
}

impl Claim {
    /// A wish for `key` that nobody has acted on yet: the first [`Tick`](Event::Tick) begins it.
    pub fn new(key: Key, signature: Signature, terms: Arc<Terms>, patience: Patience) -> Self {
        Claim {
            kind: Kind::Plain,
            key,
            signature,
            terms,
            patience,
            state: State::Resting { until: Instant::from_nanos(0), next: Next::Attempt(Manner::Parallel) },
            rounds: 0,
            failures: 0,
            splits: 0,
            since: None,
            is_listed: false,
            is_polite: false,
            counts_again_at: Instant::from_nanos(0),
            woken_by: Vec::new(),
            was_woken_in_vain: false,
            last_failure: None,
            round_trip: Duration::ZERO,
        }
    }

    /// The same for a lock of another kind.
    #[must_use]
    pub fn of_kind(self, kind: Kind) -> Self {
        Claim { kind, ..self }
    }

    /// A claim of a client that has just had the resource, while others wait for it: it looks first, and lets them pass.
    #[must_use]
    pub fn letting_others_pass(mut self) -> Self {
        self.is_polite = self.waits_for_messages();
        if self.is_polite {
            self.state = State::Resting { until: Instant::from_nanos(0), next: Next::Look };
        }
        self
    }

    /// Takes in an event that happened `now`. What is to be done is appended to `out`, in order.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        // First the clock, then the event: an answer that comes after the end of a lease finds it ended.
        self.pass_time(now, out);
        match event {
            Event::Tick => {}
            Event::Attempt(draw) => self.attempt(now, draw, out),
            Event::Answer { round, node, answer } => self.hear(now, round, node, answer, out),
            Event::Extend { ticket, ttl } => self.extend(now, ticket, ttl, out),
            Event::Verify { ticket } => self.verify(now, ticket, out),
            Event::Alarm => self.look_after_keys(now, out),
            Event::Woken { node } => self.wake(now, node, out),
            Event::LookAgain => self.look_soon(now),
            Event::Release => self.release(now, Parting::Done, out),
            Event::HandOver => self.release(now, Parting::HandOver, out),
            Event::Abandon => self.release(now, Parting::Abandoned, out),
        }
    }

    /// When the claim wants to hear [`Event::Tick`] at the latest.
    pub fn wake_at(&self) -> Instant {
        let give_up = self.patience.ends_at();
        match &self.state {
            State::Resting { until, .. } | State::Waiting { until } => (*until).min(give_up),
            State::Drawing { .. } => give_up,
            State::Attempting(attempt) => attempt.wake_at().min(give_up),
            State::Looking { round, .. } => round.deadline().min(give_up),
            State::Held(hold) => hold.wake_at(&self.terms),
            State::Lost { hold, released: false } => hold.lease.valid_until(),
            State::Lost { released: true, .. } => Instant::NEVER,
            State::Releasing { round, .. } => round.deadline(),
            State::Ended(_) => Instant::NEVER,
        }
    }

    /// The name of the state, for those who want to see all of them: finer than the [phase](Claim::phase).
    #[cfg(feature = "sim")]
    pub fn state(&self) -> &'static str {
        match &self.state {
            State::Resting { .. } => "Resting",
            State::Waiting { .. } => "Waiting",
            State::Drawing { .. } => "Drawing",
            State::Attempting(attempt) if attempt.is_raising() => "Raising",
            State::Attempting(attempt) if attempt.is_in_order() => "Attempting in order",
            State::Attempting(_) => "Attempting",
            State::Looking { .. } => "Looking",
            State::Held(hold) if hold.is_extending() => "Extending",
            State::Held(_) => "Held",
            State::Lost { released: false, .. } => "Lost",
            State::Lost { .. } => "Lost, released",
            State::Releasing { .. } => "Releasing",
            State::Ended(_) => "Ended",
        }
    }

    /// What tells two claims of one attempt apart, under the same terms and whosever they are: into `all` what concerns no node
    /// alone, and into `each` what concerns that node. For a search in which clients and nodes are alike.
    #[cfg(feature = "sim")]
    pub fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Claim { kind, patience, state, rounds, failures, splits, last_failure, .. } = self;
        (kind, patience, rounds, failures, splits).hash(all);
        (self.since, self.is_listed, self.is_polite, self.counts_again_at, self.was_woken_in_vain).hash(all);
        self.woken_by.iter().for_each(|node| "woken".hash(&mut each[*node]));
        std::mem::discriminant(state).hash(all);
        match state {
            State::Resting { until, next } => (until, next).hash(all),
            State::Waiting { until } => until.hash(all),
            State::Drawing { next } => next.hash(all),
            State::Attempting(attempt) => attempt.hash_by_node(all, each),
            State::Looking { round, failed, jitter } => {
                jitter.hash(all);
                round.hash_by_node(all, each);
                failed.is_some().hash(all);
                failed.iter().for_each(|failed| failed.hash_by_node(all, each));
            }
            State::Held(hold) => hold.hash_by_node(all, each),
            State::Lost { hold, released } => {
                released.hash(all);
                hold.hash_by_node(all, each);
            }
            State::Releasing { round, hold } => {
                round.hash_by_node(all, each);
                hold.hash_by_node(all, each);
            }
            State::Ended(hold) => {
                hold.is_some().hash(all);
                hold.iter().for_each(|hold| hold.hash_by_node(all, each));
            }
        }
        last_failure.is_some().hash(all);
        if let Some((why, votes)) = last_failure.as_deref() {
            why.hash(all);
            votes.hash_by_node(all, each);
        }
    }

    /// Where the claim stands.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Resting { .. }
            | State::Waiting { .. }
            | State::Drawing { .. }
            | State::Attempting(_)
            | State::Looking { .. } => Phase::Claiming,
            State::Held(_) => Phase::Held,
            State::Lost { .. } => Phase::Lost,
            State::Releasing { .. } | State::Ended(_) => Phase::Over,
        }
    }

    /// Until when the resource is held; `None` if it never was, or was released.
    pub fn valid_until(&self) -> Option<Instant> {
        match &self.state {
            State::Held(hold) | State::Lost { hold, .. } => Some(hold.lease.valid_until()),
            _ => None,
        }
    }

    /// What stands in the keys of what is or was held; `None` if nothing was.
    pub fn value(&self) -> Option<&Value> {
        self.hold().map(|hold| &hold.value)
    }

    /// The fence of what is or was held, if it is of a kind that has one.
    pub fn fence(&self) -> Option<Fence> {
        self.hold().and_then(|hold| hold.prize.fence())
    }

    /// What the claim is for, with all that it has learned of fences: the next claim of this client proposes better for it.
    #[cfg(feature = "sim")]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What the nodes said to the attempt that won, stragglers included; `None` if none has won.
    pub fn votes(&self) -> Option<Report> {
        self.hold().map(|hold| hold.votes.report(&self.terms))
    }

    /// What the nodes said last: to an extension, or else to the attempt that won; `None` if none has won.
    pub fn last_answers(&self) -> Option<Report> {
        self.hold().map(|hold| hold.last_round().report(&self.terms))
    }

    fn hold(&self) -> Option<&Hold> {
        match &self.state {
            State::Held(hold) | State::Lost { hold, .. } | State::Releasing { hold, .. } => Some(hold),
            State::Ended(hold) => hold.as_ref(),
            _ => None,
        }
    }

    fn pass_time(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.phase() == Phase::Claiming && now >= self.patience.ends_at() {
            return self.give_up(now, out);
        }
        match &mut self.state {
            State::Resting { until, next } if now >= *until => {
                let next = *next;
                self.draw_for(next, out);
            }
            State::Waiting { until } if now >= *until => self.draw_for(Next::Look, out),
            State::Attempting(attempt) => {
                attempt.pass((&self.key, &self.terms), now, out);
                self.judge_attempt(now, out);
            }
            State::Looking { round, .. } if now >= round.deadline() => {
                round.give_up(now);
                self.judge_look(now, out);
            }
            State::Held(hold) if now >= hold.lost_at(&self.terms) => self.lose(now, Loss::Expired, out),
            State::Held(hold) => {
                let verdict = hold.pass(&self.terms, now);
                self.judge_extension(now, verdict, out);
            }
            State::Lost { hold, released: false } if hold.lease.is_over(now) => {
                self.release_what_is_lost(out);
            }
            State::Releasing { round, .. } if now >= round.deadline() => {
                round.give_up(now);
                self.judge_release(out);
            }
            _ => {}
        }
    }

    fn hear(&mut self, now: Instant, id: RoundId, node: NodeIndex, answer: Answer, out: &mut Vec<Action>) {
        let (answer, incarnation) = answer.and_incarnation();
        self.kind.meet(now, answer.said().counter());
        match &mut self.state {
            State::Attempting(attempt) if attempt.round.id() == id => {
                attempt.hear((&self.key, &self.terms), now, node, (answer, incarnation), out);
                self.judge_attempt(now, out);
            }
            State::Looking { round, .. } if round.id() == id => {
                round.hear(node, answer, now);
                self.judge_look(now, out);
            }
            // What comes in late about an attempt that failed changes nothing, but completes its report.
            State::Looking { failed: Some(failed), .. } if failed.id() == id => {
                failed.hear(node, answer, now);
            }
            State::Resting { .. } | State::Waiting { .. } => {
                let last = self.last_failure.as_deref_mut();
                if let Some((_, failed)) = last.filter(|(_, failed)| failed.id() == id) {
                    failed.hear(node, answer, now);
                }
            }
            State::Held(hold) => {
                let verdict = hold.hear(&self.terms, now, id, node, (answer, incarnation));
                self.judge_extension(now, verdict, out);
            }
            State::Lost { hold, .. } => hold.hear_of_the_past(id, node, &answer, incarnation),
            State::Releasing { round, hold } => {
                hold.hear_of_the_past(id, node, &answer, incarnation);
                if round.id() == id {
                    round.hear(node, answer, now);
                }
                self.judge_release(out);
            }
            // The answer to a question that nobody asks any more: whatever it says, a release went out behind it.
            _ => {}
        }
    }

    // ── winning a majority ──────────────────────────────────────────────────────────────────────────────────────────

    fn draw_for(&mut self, next: Next, out: &mut Vec<Action>) {
        self.state = State::Drawing { next };
        out.push(Action::Draw);
    }

    fn attempt(&mut self, now: Instant, draw: Draw, out: &mut Vec<Action>) {
        let State::Drawing { next } = self.state else { return };
        if self.waits_for_messages() {
            self.since.get_or_insert(now);
        }
        let next = match next {
            Next::Attempt(manner) => manner,
            Next::Look => return self.look(now, None, draw.jitter, out),
        };
        let id = self.next_round();
        let wish = (&self.key, &self.signature, &*self.terms);
        let prize = self.kind.prize(now);
        let attempt = Attempt::begin(wish, (next, prize), (id, draw, self.round_trip), now, out);
        self.state = State::Attempting(attempt);
    }

    fn judge_attempt(&mut self, now: Instant, out: &mut Vec<Action>) {
        let State::Attempting(attempt) = &self.state else { return };
        let decision = attempt.decision(&self.terms);
        if decision == Decision::Pending {
            return;
        }
        let State::Attempting(attempt) = std::mem::replace(&mut self.state, State::Ended(None)) else {
            return;
        };
        self.round_trip = attempt.round_trip().unwrap_or(self.round_trip);
        match decision {
            Decision::Won => self.won(now, attempt, out),
            Decision::Failed | Decision::Pending => self.failed(now, attempt, out),
        }
    }

    fn won(&mut self, now: Instant, attempt: Attempt, out: &mut Vec<Action>) {
        let terms = &self.terms;
        let lease = Lease::new(attempt.round.asked_at(), terms.ttl, terms.drift, terms.hold_at_most);
        if now >= lease.valid_until() - terms.margin {
            attempt.roll_back((&self.key, terms), out);
            self.failures = self.failures.saturating_add(1);
            self.last_failure = Some(Box::new((Why::TooLate, attempt.round)));
            return self.rest(now, attempt.jitter, None, out);
        }
        self.kind.meet(now, attempt.prize.fence());
        self.state = State::Held(Hold::new(attempt, lease, terms, now));
        out.push(Action::Tell(Notice::Won));
    }

    /// No majority: undo it at once, then find out whether somebody holds. The look travels behind the releases on the
    /// same connections, so it never sees our own keys.
    fn failed(&mut self, now: Instant, attempt: Attempt, out: &mut Vec<Action>) {
        attempt.roll_back((&self.key, &self.terms), out);
        self.count_a_failure(now);
        self.was_woken_in_vain |= !self.woken_by.is_empty();
        if attempt.tally().unknown > self.terms.quorum.spare() {
            return self.rest_without_quorum(now, attempt.round, attempt.jitter, out);
        }
        self.look(now, Some(Box::new(attempt.round)), attempt.jitter, out);
    }

    /// Asks who holds; and, if a holder is waited for, to be woken when it is done.
    fn look(&mut self, now: Instant, failed: Option<Box<Round>>, jitter: u64, out: &mut Vec<Action>) {
        let round = Round::to_all(self.next_round(), self.terms.quorum, now, self.terms.node_timeout);
        let enlists = self.waits_for_messages();
        let waited = now.since(self.since.unwrap_or(now));
        for node in 0..self.terms.quorum.nodes() {
            let key = self.key.clone();
            let command = if enlists { Command::Enlist { key, waited } } else { Command::Inspect { key } };
            out.push(Action::Send { node, round: round.id(), command });
        }
        self.is_listed |= enlists;
        self.woken_by.clear();
        self.state = State::Looking { round, failed, jitter };
    }

    fn waits_for_messages(&self) -> bool {
        self.patience != Patience::Once && self.terms.wake_by == WakeBy::Message
    }

    fn judge_look(&mut self, now: Instant, out: &mut Vec<Action>) {
        let State::Looking { round, .. } = &self.state else { return };
        let look = Look::of(round, self.terms.quorum);
        if look == Look::Pending {
            return;
        }
        let State::Looking { round, failed, jitter } = std::mem::replace(&mut self.state, State::Ended(None))
        else {
            return;
        };
        let is_polite = std::mem::take(&mut self.is_polite);
        if is_polite {
            self.round_trip = round.slowest_answer().unwrap_or_default();
        }
        match look {
            Look::Busy { value, free_in } => {
                self.splits = 0;
                let counts = now >= self.counts_again_at;
                if failed.is_none() {
                    // An attempt that would be in vain is not made, but it counts.
                    self.count_a_failure(now);
                }
                // Whoever writes other values releases in another way, and wakes nobody.
                let is_ours = value.holder().is_some();
                self.remember(Why::Held { by: Some(value) }, failed, &round);
                if is_ours
                    && round.count(|answer| matches!(answer.said(), Answer::Enlisted(_)))
                        >= self.terms.quorum.majority()
                {
                    self.wait(now, jitter, free_in, counts, out);
                } else {
                    self.rest(now, jitter, free_in, out);
                }
            }
            Look::Split if is_polite => {
                self.remember(Why::Held { by: None }, failed, &round);
                self.state = State::Waiting { until: now + self.grace() };
            }
            Look::Split if self.splits < SPLITS => {
                self.splits += 1;
                self.remember(Why::Held { by: None }, failed, &round);
                let next = first_to_ask(&round, self.splits).map_or(Manner::Parallel, Manner::InOrder);
                let until = now + fraction(self.round_trip, jitter);
                self.state = State::Resting { until, next: Next::Attempt(next) };
            }
            Look::Split | Look::Pending => {
                self.splits = 0;
                self.remember(Why::Held { by: None }, failed, &round);
                self.rest(now, jitter, None, out);
            }
            Look::Unknown => {
                let why = self.why_silent(&round);
                self.remember(why, failed, &round);
                self.rest(now, jitter, None, out);
            }
        }
    }

    /// A back-off that is counted goes by its own times, whatever wakes the claim in between.
    fn count_a_failure(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(u32::from(now >= self.counts_again_at));
    }

    /// What the last attempt found; if there was none since, what the nodes show.
    fn remember(&mut self, why: Why, failed: Option<Box<Round>>, look: &Round) {
        let failed = failed.map(|failed| *failed);
        let before = self.last_failure.take().map(|before| before.1);
        self.last_failure = Some(Box::new((why, failed.or(before).unwrap_or_else(|| look.clone()))));
    }

    // ── waiting for a holder ────────────────────────────────────────────────────────────────────────────────────────

    /// Sleeps until a message wakes it; and, since messages may be lost and a holder may die, at most until its keys run
    /// out, or for a second. A back-off that is counted goes on as it would without messages.
    fn wait(
        &mut self,
        now: Instant,
        jitter: u64,
        free_in: Option<Duration>,
        counts: bool,
        out: &mut Vec<Action>,
    ) {
        let backoff = &self.terms.backoff;
        if counts {
            let Some(pause) = backoff.delay(self.failures, jitter) else { return self.give_up(now, out) };
            self.counts_again_at = if backoff.is_counted() { now + pause } else { now };
        }
        let mut sleep = second_half(LONGEST_SLEEP, jitter);
        if backoff.is_counted() {
            sleep = sleep.min(self.counts_again_at.since(now));
        }
        let freed = free_in.map_or(Duration::MAX, |free_in| free_in + backoff.spread(jitter));
        self.state = State::Waiting { until: now + sleep.min(freed) };
        self.heed_messages(now, out);
    }

    fn wake(&mut self, now: Instant, node: NodeIndex, out: &mut Vec<Action>) {
        if !self.woken_by.contains(&node) {
            self.woken_by.push(node);
        }
        self.heed_messages(now, out);
    }

    /// Ends a wait or a rest before long.
    fn look_soon(&mut self, now: Instant) {
        let soon = now + self.grace();
        if let State::Waiting { until } | State::Resting { until, .. } = &mut self.state {
            *until = soon.min(*until);
        }
    }

    /// With the first message it tries: the node that sent it is free, and the release that freed it went to all at once.
    ///
    /// The lists may differ from node to node, and a node may be free that has forgotten the holder's key, or never got it.
    /// So whoever has tried in vain believes no fewer than a majority from then on, and looks after a moment if fewer wake it;
    /// else those who wait would wake each other, by undoing what they got, for as long as the lock is held.
    fn heed_messages(&mut self, now: Instant, out: &mut Vec<Action>) {
        let enough = if self.was_woken_in_vain { self.terms.quorum.majority() } else { 1 };
        if matches!(self.state, State::Waiting { .. }) && self.woken_by.len() >= enough {
            self.draw_for(Next::Attempt(Manner::Parallel), out);
        } else if !self.woken_by.is_empty() {
            self.look_soon(now);
        }
    }

    fn grace(&self) -> Duration {
        self.round_trip.max(SHORTEST_GRACE)
    }

    // ── resting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Too few votes: tries again after the back-off, or as soon as enough of the nodes that wait after a restart do vote.
    fn rest_without_quorum(&mut self, now: Instant, votes: Round, jitter: u64, out: &mut Vec<Action>) {
        let why = self.why_silent(&votes);
        let ready_in = match why {
            Why::NotReady { at } => Some(at.since(now)),
            _ => None,
        };
        self.last_failure = Some(Box::new((why, votes)));
        self.rest(now, jitter, ready_in, out);
        if let (Some(_), State::Resting { until, .. }) = (ready_in, &self.state) {
            self.patience.rest_for_restarts(until.since(now));
        }
    }

    fn why_silent(&self, votes: &Round) -> Why {
        votes.ready_at(self.terms.quorum.spare()).map_or(Why::NoQuorum, |at| Why::NotReady { at })
    }

    /// Rests before the next attempt, or gives up if this was the only one. A holder whose keys run out earlier is not
    /// waited for longer than that, plus a little so that those who wait do not all come at once.
    fn rest(&mut self, now: Instant, jitter: u64, free_in: Option<Duration>, out: &mut Vec<Action>) {
        if self.patience == Patience::Once {
            return self.give_up(now, out);
        }
        let backoff = &self.terms.backoff;
        let Some(pause) = backoff.delay(self.failures, jitter) else { return self.give_up(now, out) };
        let pause = match self.terms.wake_by {
            WakeBy::Poll(longest) => second_half(longest, jitter),
            WakeBy::Message => pause,
        };
        let freed = free_in.map_or(Duration::MAX, |free_in| free_in + backoff.spread(jitter));
        let next = Next::Attempt(Manner::Parallel);
        self.state = State::Resting { until: now + pause.min(freed), next };
    }

    fn give_up(&mut self, now: Instant, out: &mut Vec<Action>) {
        let last = self.last_failure.take();
        self.leave_the_lists(out);
        let unfinished = match std::mem::replace(&mut self.state, State::Ended(None)) {
            State::Attempting(mut attempt) => {
                attempt.roll_back((&self.key, &self.terms), out);
                attempt.round.give_up(now);
                Some(attempt.round)
            }
            State::Looking { failed, .. } => failed.map(|failed| *failed),
            _ => None,
        };
        // A decided attempt says more than one that was cut off.
        let (why, votes) = match last {
            Some(last) => *last,
            None => self.why_unfinished(now, unfinished),
        };
        let report = votes.report(&self.terms);
        out.push(Action::Tell(Notice::Failed(Failure { why, report })));
    }

    /// Who does not want the resource any more must not be waited for, and if it was woken, another has to be.
    fn leave_the_lists(&mut self, out: &mut Vec<Action>) {
        if !std::mem::take(&mut self.is_listed) {
            return;
        }
        let round = self.next_round();
        for node in 0..self.terms.quorum.nodes() {
            let command = Command::Delist { key: self.key.clone() };
            out.push(Action::Send { node, round, command });
        }
    }

    fn why_unfinished(&mut self, now: Instant, unfinished: Option<Round>) -> (Why, Round) {
        let quorum = self.terms.quorum;
        let votes = unfinished.unwrap_or_else(|| Round::to_nobody(self.next_round(), quorum, now));
        let silent = votes.tally().unknown > quorum.spare();
        (if silent { self.why_silent(&votes) } else { Why::Held { by: None } }, votes)
    }

    // ── keeping it ──────────────────────────────────────────────────────────────────────────────────────────────────

    fn extend(&mut self, now: Instant, ticket: Ticket, ttl: Ttl, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Held(hold) if hold.lease.is_capped() => {
                out.push(Action::Tell(Notice::Extended(ticket, Err(ExtensionFailure::Capped))));
            }
            State::Held(hold) => {
                hold.ask(ticket, Request::Extend(ttl));
                self.judge_extension(now, Verdict::Open, out);
            }
            _ => out.push(Action::Tell(Notice::Extended(ticket, Err(ExtensionFailure::Lost)))),
        }
    }

    fn verify(&mut self, now: Instant, ticket: Ticket, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Held(hold) => {
                hold.ask(ticket, Request::Verify);
                self.judge_extension(now, Verdict::Open, out);
            }
            _ => out.push(Action::Tell(Request::Verify.refused(ticket))),
        }
    }

    fn look_after_keys(&mut self, now: Instant, out: &mut Vec<Action>) {
        if let State::Held(hold) = &mut self.state {
            hold.look(&self.terms, now);
            self.judge_extension(now, Verdict::Open, out);
        }
    }

    fn judge_extension(&mut self, now: Instant, verdict: Verdict, out: &mut Vec<Action>) {
        let State::Held(hold) = &mut self.state else { return };
        match verdict {
            Verdict::Open | Verdict::Extended(None) | Verdict::Verified(None) | Verdict::NoQuorum(None) => {}
            Verdict::Extended(Some(ticket)) => out.push(Action::Tell(Notice::Extended(ticket, Ok(())))),
            Verdict::Verified(Some(ticket)) => {
                out.push(Action::Tell(Notice::Verified(ticket, Ok(hold.is_proven()))));
            }
            Verdict::NoQuorum(Some((ticket, request))) => {
                let report = hold.last_round().report(&self.terms);
                let failure = ExtensionFailure::NoQuorum(report);
                out.push(Action::Tell(match request {
                    Request::Extend(_) => Notice::Extended(ticket, Err(failure)),
                    Request::Verify => Notice::Verified(ticket, Err(failure)),
                }));
            }
            Verdict::Lost => {
                hold.lease.end(now);
                return self.lose(now, Loss::KeysGone, out);
            }
        }
        let id = RoundId(self.rounds);
        if hold.extend_if_due(&self.key, &self.terms, id, now, out) {
            self.rounds += 1;
        }
        if hold.is_suspiciously_long(now) {
            out.push(Action::Tell(Notice::HeldLong));
        }
    }

    /// Terminal: nothing that is heard later brings a lost lock back. The keys are released once the lease is over, not
    /// before: until then the holder, who was told a margin early, may still be stopping.
    fn lose(&mut self, now: Instant, loss: Loss, out: &mut Vec<Action>) {
        let State::Held(mut hold) = std::mem::replace(&mut self.state, State::Ended(None)) else { return };
        refuse_requests(&mut hold, out);
        let over = hold.lease.is_over(now);
        self.state = State::Lost { hold, released: false };
        out.push(Action::Tell(Notice::Lost(loss)));
        if over {
            self.release_what_is_lost(out);
        }
    }

    // ── giving it back ──────────────────────────────────────────────────────────────────────────────────────────────

    fn release(&mut self, now: Instant, parting: Parting, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.state, State::Ended(None)) {
            State::Resting { .. } | State::Waiting { .. } | State::Drawing { .. } | State::Looking { .. } => {
                self.leave_the_lists(out);
            }
            State::Attempting(attempt) => {
                attempt.roll_back((&self.key, &self.terms), out);
                self.leave_the_lists(out);
            }
            State::Held(hold) => {
                let linger = match parting {
                    Parting::Done | Parting::HandOver => hold.linger(&self.terms, now),
                    Parting::Abandoned => Ttl::ZERO,
                };
                let wake = if parting == Parting::HandOver { Wake::NobodyYet } else { Wake::Next };
                self.release_everywhere(now, hold, (linger, wake), out);
            }
            State::Lost { hold, .. } => self.release_everywhere(now, hold, (Ttl::ZERO, Wake::Next), out),
            over @ (State::Releasing { .. } | State::Ended(_)) => self.state = over,
        }
    }

    fn release_everywhere(&mut self, now: Instant, mut hold: Hold, how: (Ttl, Wake), out: &mut Vec<Action>) {
        refuse_requests(&mut hold, out);
        let round = Round::to_all(self.next_round(), self.terms.quorum, now, self.terms.node_timeout);
        hold.end(round.id());
        self.send_releases(round.id(), &hold, how, out);
        self.state = State::Releasing { round, hold };
    }

    fn release_what_is_lost(&mut self, out: &mut Vec<Action>) {
        let id = self.next_round();
        if let State::Lost { mut hold, released } = std::mem::replace(&mut self.state, State::Ended(None)) {
            if !released {
                hold.end_unproven();
                self.send_releases(id, &hold, (Ttl::ZERO, Wake::Next), out);
            }
            self.state = State::Lost { hold, released: true };
        }
    }

    /// To all nodes, whatever they said last; owed where a key may stand.
    fn send_releases(&self, round: RoundId, hold: &Hold, (linger, wake): (Ttl, Wake), out: &mut Vec<Action>) {
        for node in 0..self.terms.quorum.nodes() {
            let stands = hold.footprint.may_stand(node);
            let owed_for = if stands { self.terms.longest_life(hold.longest) } else { Duration::ZERO };
            let (key, value) = (self.key.clone(), hold.value.clone());
            let rules = hold.prize.rules();
            let command = Command::Release { key, value, linger, owed_for, wake, rules };
            out.push(Action::Send { node, round, command });
        }
    }

    fn judge_release(&mut self, out: &mut Vec<Action>) {
        let State::Releasing { round, hold } = &self.state else { return };
        let Some(outcome) = ReleaseOutcome::of(round, self.terms.quorum) else { return };
        if hold.may_be_proven_by(round) {
            return;
        }
        let proven = hold.is_proven();
        let others_wait =
            round.count(|answer| matches!(answer.said(), Answer::Deleted { others_wait: true })) > 0;
        let report = round.report(&self.terms);
        out.push(Action::Tell(Notice::Released { outcome, proven, report, others_wait }));
        if let State::Releasing { hold, .. } = std::mem::replace(&mut self.state, State::Ended(None)) {
            self.state = State::Ended(Some(hold));
        }
    }

    fn next_round(&mut self) -> RoundId {
        let id = RoundId(self.rounds);
        self.rounds += 1;
        id
    }
}

/// How a holder goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parting {
    Done,
    /// Another claim of this client comes right behind.
    HandOver,
    /// It never had the lock in hand.
    Abandoned,
}

fn refuse_requests(hold: &mut Hold, out: &mut Vec<Action>) {
    for (ticket, request) in hold.refuse_requests() {
        out.push(Action::Tell(request.refused(ticket)));
    }
}

/// The node that the so-many-th ordered attempt (from 1) asks first: of those that answered at all, in the configured order, the
/// first one, and after some attempts in vain the next. Those who contend have failed about equally often, so they mostly agree.
fn first_to_ask(look: &Round, splits: u32) -> Option<NodeIndex> {
    let answers = look.answers().enumerate();
    let answered =
        answers.filter(|(_, answer)| matches!(answer, Some(Answer::Seen(_) | Answer::Enlisted(_))));
    let answered: Vec<NodeIndex> = answered.map(|(node, _)| node).collect();
    let turn = (splits.saturating_sub(1) / SPLITS_AT_A_NODE) as usize;
    answered.get(turn % answered.len().max(1)).copied()
}
