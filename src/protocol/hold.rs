//! A held lock: its lease, and the extensions that keep it. One extension round at a time; silence changes nothing.

use std::collections::VecDeque;
#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::attempt::{Attempt, Prize};
use super::claim::{Action, ExtensionFailure, Notice, Ticket};
use super::command::{Answer, Command, Key, NodeIndex, Value};
use super::evidence::Evidence;
use super::lease::Lease;
use super::marker::Nonce;
use super::quorum::Decision;
use super::release::Footprint;
use super::round::{Round, RoundId};
use super::settings::{Renewal, Terms};
use super::time::{Instant, Ttl};
use super::wait::fraction;

/// What is held.
#[derive(Clone, Debug, Hash)]
pub struct Hold {
    pub(super) value: Value,
    pub(super) prize: Prize,
    pub(super) lease: Lease,
    pub(super) footprint: Footprint,
    /// Of a lock that can be proven to have been exclusive.
    evidence: Option<Box<Evidence>>,
    /// The round that won. Grants that come in later still belong to the holder.
    pub(super) votes: Round,
    /// The last extension round; answers are heard until the next one begins.
    extension: Option<Box<Extension>>,
    /// What the holder has asked for, that waits for the round under way.
    asked: VecDeque<(Ticket, Request)>,
    renew_at: Instant,
    /// When a key that somebody else changed is looked after.
    look_at: Instant,
    alarms: Alarms,
    /// The longest ttl that was asked for: no key of ours lives longer from now.
    pub(super) longest: Ttl,
    jitter: u64,
    /// When a hold without a bound is worth a warning; `None` once it was given.
    warn_at: Option<Instant>,
    /// `hold_at_least`: a release before leaves the keys until then.
    linger_until: Instant,
}

#[derive(Clone, Debug, Hash)]
struct Extension {
    round: Round,
    ttl: Ttl,
    kind: Kind,
    /// Won, or certainly not won by the answers so far. Answers still matter: they may show a loss.
    settled: bool,
}

/// Why a round was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// It was due.
    Renewal,
    /// The holder asked for it.
    ByHand(Ticket),
    /// It only looks, and changes nothing.
    Look {
        /// The holder asked for it; else somebody else changed a key. Then it must not heal: whoever deletes a lock by hand does it
        /// node by node, and would find it healed behind him each time.
        ticket: Option<Ticket>,
        /// When the next renewal is due, as before.
        renew_at: Instant,
    },
}

impl Kind {
    /// What the holder has asked for, if it has.
    fn request(self, ttl: Ttl) -> Option<(Ticket, Request)> {
        match self {
            Kind::Renewal => None,
            Kind::ByHand(ticket) => Some((ticket, Request::Extend(ttl))),
            Kind::Look { ticket, .. } => ticket.map(|ticket| (ticket, Request::Verify)),
        }
    }
}

/// What the holder asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// A lease of this length from now.
    Extend(Ttl),
    /// Whether the hold is proven up to now.
    Verify,
}

impl Request {
    /// That it is refused, since the lock is lost.
    pub fn refused(self, ticket: Ticket) -> Notice {
        match self {
            Request::Extend(_) => Notice::Extended(ticket, Err(ExtensionFailure::Lost)),
            Request::Verify => Notice::Verified(ticket, Err(ExtensionFailure::Lost)),
        }
    }
}

/// The rounds that others caused by changing keys. As many as there are nodes begin at once, since whoever deletes a lock
/// deletes it node by node; after that a key that changes all the time must not make a round of each change.
#[derive(Clone, Debug, Hash)]
struct Alarms {
    since: Instant,
    count: usize,
}

/// What an extension round came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to say yet, or nothing new.
    Open,
    /// A majority confirmed: the lease is longer now. Told to whoever asked by hand.
    Extended(Option<Ticket>),
    /// A majority confirmed that the keys stand. Told to whoever asked, with what it proves.
    Verified(Option<Ticket>),
    /// Too few nodes answered: the old lease stands. Told to whoever asked by hand.
    NoQuorum(Option<(Ticket, Request)>),
    /// So many voting nodes lost the key, or hold another's, that no majority is left.
    Lost,
}

impl Hold {
    /// A majority was won by `votes` now.
    pub fn new(attempt: Attempt, lease: Lease, terms: &Terms, now: Instant) -> Self {
        let Attempt { value, prize, round: votes, footprint, mut evidence, jitter, .. } = attempt;
        let asked_at = votes.asked_at();
        if let Some(evidence) = &mut evidence {
            evidence.granted(votes.id());
        }
        let mut hold = Hold {
            value,
            prize,
            lease,
            footprint,
            evidence,
            votes,
            extension: None,
            asked: VecDeque::new(),
            renew_at: Instant::NEVER,
            look_at: Instant::NEVER,
            alarms: Alarms { since: asked_at, count: 0 },
            longest: terms.ttl,
            jitter,
            warn_at: (terms.hold_at_most == Duration::MAX).then_some(asked_at + LONG_HOLD),
            linger_until: now + terms.hold_at_least,
        };
        hold.renew_at = hold.next_renewal(terms, asked_at);
        hold
    }

    /// What tells two holds apart that have the same value, node by node.
    #[cfg(feature = "sim")]
    pub fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Hold { value: _, prize, lease, footprint, evidence, votes, extension, asked, .. } = self;
        let Hold { renew_at, look_at, alarms, longest, jitter, warn_at, linger_until, .. } = self;
        (prize, lease, asked, renew_at, look_at).hash(all);
        (alarms, longest, jitter, warn_at, linger_until).hash(all);
        footprint.hash_by_node(each);
        evidence.iter().for_each(|evidence| evidence.hash_by_node(all, each));
        votes.hash_by_node(all, each);
        extension.is_some().hash(all);
        if let Some(Extension { round, ttl, kind, settled }) = extension.as_deref() {
            (ttl, kind, settled).hash(all);
            round.hash_by_node(all, each);
        }
    }

    /// When the loss is signalled: a margin before the validity ends.
    pub fn lost_at(&self, terms: &Terms) -> Instant {
        self.lease.valid_until() - terms.margin
    }

    /// When there is something to do: extend, give up on silent nodes, or signal the loss.
    pub fn wake_at(&self, terms: &Terms) -> Instant {
        let open = self.extension.as_ref().filter(|extension| !extension.settled);
        let next = open.map_or(self.look_at, |extension| extension.round.deadline());
        self.lost_at(terms).min(self.renew_at).min(next)
    }

    /// A key may have changed: the next round begins at once, after the one under way, which may have asked too early; or,
    /// where there have been too many alarms, as soon as one may.
    pub fn look(&mut self, terms: &Terms, now: Instant) {
        let calm_at = self.alarms.since + pause(terms);
        if now >= calm_at {
            self.alarms = Alarms { since: now, count: 0 };
        }
        let at_once = self.alarms.count < terms.quorum.nodes();
        self.look_at = self.look_at.min(if at_once { now } else { calm_at });
    }

    /// Whether an extension is under way.
    pub fn is_extending(&self) -> bool {
        self.extension.as_ref().is_some_and(|extension| !extension.settled)
    }

    /// What the holder asks for: a round of its own, after the one under way.
    pub fn ask(&mut self, ticket: Ticket, request: Request) {
        self.asked.push_back((ticket, request));
    }

    /// Begins the next extension round if one is due and none is under way. Never called once the lease is over, so
    /// nothing is healed after its end.
    pub fn extend_if_due(
        &mut self,
        key: &Key,
        terms: &Terms,
        id: RoundId,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> bool {
        if self.is_extending() {
            return false;
        }
        let alarmed = now >= self.look_at;
        // No key of ours has less than a millisecond to live, so a look changes nothing.
        let look =
            |ticket| (Kind::Look { ticket, renew_at: self.renew_at }, Ttl::from_duration(ONE_MILLISECOND));
        let (kind, ttl) = match self.asked.front() {
            Some((ticket, Request::Extend(ttl))) => (Kind::ByHand(*ticket), *ttl),
            _ if now >= self.renew_at => (Kind::Renewal, terms.ttl),
            Some((ticket, Request::Verify)) => look(Some(*ticket)),
            None if alarmed => look(None),
            None => return false,
        };
        if let Kind::ByHand(_) | Kind::Look { ticket: Some(_), .. } = kind {
            self.asked.pop_front();
        }
        let heal = !matches!(kind, Kind::Look { .. });
        self.alarms.count += usize::from(alarmed);
        self.look_at = Instant::NEVER;
        self.renew_at = Instant::NEVER;
        self.longest = self.longest.max(ttl);
        let round = Round::to_all(id, terms.quorum, now, terms.node_timeout);
        self.extension = Some(Box::new(Extension { round, ttl, kind, settled: false }));
        if let Some(evidence) = &mut self.evidence {
            evidence.asked(id);
        }
        for node in 0..terms.quorum.nodes() {
            self.footprint.wrote(node);
            if let Some(evidence) = self.evidence.as_mut().filter(|_| heal) {
                evidence.wrote(node, id);
            }
            let (key, value, rules) = (key.clone(), self.value.clone(), self.prize.rules());
            let command = Command::Extend { key, value, ttl, heal, rules };
            out.push(Action::Send { node, round: id, command });
        }
        true
    }

    /// Takes in what a node said: a straggling grant, or an answer to the extension.
    pub fn hear(
        &mut self,
        terms: &Terms,
        now: Instant,
        round: RoundId,
        node: NodeIndex,
        (answer, incarnation): (Answer, Option<Nonce>),
    ) -> Verdict {
        self.hear_of_the_past(round, node, &answer, incarnation);
        if round < self.votes.id() {
            // Of an attempt before the one that won, which was rolled back.
            return Verdict::Open;
        }
        // Also of an extension that another has followed: what it wrote must be released.
        self.footprint.heard(node, &answer);
        if round == self.votes.id() {
            self.votes.hear(node, answer, now);
            return Verdict::Open;
        }
        match &mut self.extension {
            Some(extension) if extension.round.id() == round => {
                extension.round.hear(node, answer, now);
                self.judge(terms, now)
            }
            _ => Verdict::Open,
        }
    }

    /// Takes in what an answer says of the time before it, also where nothing else follows from it any more.
    pub fn hear_of_the_past(
        &mut self,
        round: RoundId,
        node: NodeIndex,
        answer: &Answer,
        incarnation: Option<Nonce>,
    ) {
        if let Some(evidence) = self.evidence.as_mut().filter(|_| round >= self.votes.id()) {
            evidence.heard(node, round, answer, incarnation);
        }
    }

    /// The keys are released in that round, and the holder is done.
    pub fn end(&mut self, round: RoundId) {
        if let Some(evidence) = &mut self.evidence {
            evidence.asked(round);
        }
    }

    /// The keys are released although the holder may not be done.
    pub fn end_unproven(&mut self) {
        if let Some(evidence) = &mut self.evidence {
            evidence.give_up();
        }
    }

    /// Whether the hold is proven to have been exclusive, up to its last round; `None` for a lock that can prove nothing.
    pub fn is_proven(&self) -> Option<bool> {
        self.evidence.as_deref().map(Evidence::is_complete)
    }

    /// Whether that may still change by answers to a round.
    pub fn may_be_proven_by(&self, round: &Round) -> bool {
        let is_open = self.evidence.as_deref().is_some_and(Evidence::is_open);
        is_open && round.answers().any(|answer| answer.is_none())
    }

    /// Gives up on the nodes that stayed silent in an extension round.
    pub fn pass(&mut self, terms: &Terms, now: Instant) -> Verdict {
        match &mut self.extension {
            Some(extension) if !extension.settled && now >= extension.round.deadline() => {
                extension.round.give_up(now);
                self.judge(terms, now)
            }
            _ => Verdict::Open,
        }
    }

    /// Reads the extension round. Only answers heard before the end of the lease ever come here.
    fn judge(&mut self, terms: &Terms, now: Instant) -> Verdict {
        let Some(extension) = &mut self.extension else { return Verdict::Open };
        let tally = extension.round.tally();
        if tally.denied > terms.quorum.spare() {
            return Verdict::Lost;
        }
        if extension.settled {
            return Verdict::Open;
        }
        let (asked_at, ttl, kind) = (extension.round.asked_at(), extension.ttl, extension.kind);
        match (terms.quorum.decide(tally), kind) {
            (Decision::Pending, _) => Verdict::Open,
            // The others may complete the proof.
            (Decision::Won, Kind::Look { ticket: Some(_), .. }) if self.is_proof_pending() => Verdict::Open,
            (decision, Kind::Look { ticket, renew_at }) => {
                self.settle(renew_at);
                match decision {
                    Decision::Won => Verdict::Verified(ticket),
                    _ => Verdict::NoQuorum(kind.request(ttl)),
                }
            }
            (Decision::Won, Kind::Renewal | Kind::ByHand(_)) => {
                self.lease.extend(asked_at, ttl, terms.drift);
                self.settle(self.next_renewal(terms, asked_at));
                Verdict::Extended(kind.request(ttl).map(|(ticket, _)| ticket))
            }
            (Decision::Failed, Kind::Renewal | Kind::ByHand(_)) => {
                self.settle(self.next_try(terms, now));
                Verdict::NoQuorum(kind.request(ttl))
            }
        }
    }

    /// The round is decided. Its answers still matter.
    fn settle(&mut self, renew_at: Instant) {
        self.renew_at = renew_at;
        if let Some(extension) = &mut self.extension {
            extension.settled = true;
        }
    }

    fn is_proof_pending(&self) -> bool {
        self.extension.as_ref().is_some_and(|extension| self.may_be_proven_by(&extension.round))
    }

    /// True once, when a hold that nothing bounds has lasted long: is its holder alive, or hung? Asked whenever something
    /// happens to the hold, which a renewal does several times in a ttl.
    pub fn is_suspiciously_long(&mut self, now: Instant) -> bool {
        self.warn_at.take_if(|warn_at| now >= *warn_at).is_some()
    }

    /// For how long the keys must go on to exclude others if they are released now: the rest of `hold_at_least`, and what a
    /// fast clock of a node may take off it.
    pub fn linger(&self, terms: &Terms, now: Instant) -> Ttl {
        let rest = self.linger_until.since(now);
        if rest.is_zero() {
            return Ttl::ZERO;
        }
        let rest = Ttl::from_duration(rest + Duration::from_millis(1));
        Ttl::from_duration(rest.as_duration() + terms.drift.allowance(rest)).min(terms.max_ttl)
    }

    /// Ends all that the holder has asked for, what is under way and what waits behind it.
    pub fn refuse_requests(&mut self) -> Vec<(Ticket, Request)> {
        let open = self.extension.as_mut().filter(|extension| !extension.settled);
        let under_way = open.and_then(|extension| {
            // Told here, and so not again when it is decided.
            std::mem::replace(&mut extension.kind, Kind::Renewal).request(extension.ttl)
        });
        under_way.into_iter().chain(self.asked.drain(..)).collect()
    }

    /// The last extension round, if there was one; else the round that won.
    pub fn last_round(&self) -> &Round {
        self.extension.as_ref().map_or(&self.votes, |extension| &extension.round)
    }

    /// After a lease that counts from `asked_at`: when two thirds of the ttl remain, a little earlier by the jitter so that
    /// locks that were taken together are not renewed together, and never in a hurry when the ttl is tiny.
    fn next_renewal(&self, terms: &Terms, asked_at: Instant) -> Instant {
        let ttl = terms.ttl.as_duration();
        match terms.renewal {
            _ if self.lease.is_capped() => Instant::NEVER,
            Renewal::Never => Instant::NEVER,
            Renewal::Every(pause) => asked_at + pause,
            Renewal::WhileHeld => {
                let due = self.lease.valid_until() - ttl * 2 / 3 - fraction(ttl / 30, self.jitter);
                due.max(asked_at + ttl / 6)
            }
        }
    }

    /// After a round without a majority: soon again, several times within one ttl.
    fn next_try(&self, terms: &Terms, now: Instant) -> Instant {
        match terms.renewal {
            Renewal::Never => Instant::NEVER,
            Renewal::Every(_) | Renewal::WhileHeld => now + pause(terms),
        }
    }
}

/// Between rounds that do not come of themselves: several fit into one ttl.
fn pause(terms: &Terms) -> Duration {
    (terms.ttl.as_duration() / 12).max(ONE_MILLISECOND)
}

const ONE_MILLISECOND: Duration = Duration::from_millis(1);

/// A hold of this length is worth a warning if nothing bounds it.
const LONG_HOLD: Duration = Duration::from_secs(600);
