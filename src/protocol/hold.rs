//! A held lock: its lease, and the extensions that keep it. One extension round at a time; silence changes nothing.

use std::collections::VecDeque;
#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::attempt::Prize;
use super::claim::{Action, Ticket};
use super::command::{Answer, Command, Key, NodeIndex, Value};
use super::lease::Lease;
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
    /// The round that won. Grants that come in later still belong to the holder.
    pub(super) votes: Round,
    /// The last extension round; answers are heard until the next one begins.
    extension: Option<Extension>,
    /// Extensions by hand that wait for the round under way.
    asked: VecDeque<(Ticket, Ttl)>,
    renew_at: Instant,
    /// When a key that somebody else changed is looked after.
    verify_at: Instant,
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
    /// Somebody else changed a key. It heals nothing: whoever deletes a lock by hand does it node by node, and would find it
    /// healed behind him each time.
    Verification {
        /// When the next renewal is due, as before.
        renew_at: Instant,
    },
}

impl Kind {
    fn ticket(self) -> Option<Ticket> {
        match self {
            Kind::ByHand(ticket) => Some(ticket),
            Kind::Renewal | Kind::Verification { .. } => None,
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
    /// Too few nodes answered: the old lease stands. Told to whoever asked by hand.
    NoQuorum(Option<Ticket>),
    /// So many voting nodes lost the key, or hold another's, that no majority is left.
    Lost,
}

impl Hold {
    /// A majority was won by `votes` now.
    pub fn new(
        (value, prize, votes, footprint): (Value, Prize, Round, Footprint),
        lease: Lease,
        terms: &Terms,
        jitter: u64,
        now: Instant,
    ) -> Self {
        let asked_at = votes.asked_at();
        let mut hold = Hold {
            value,
            prize,
            lease,
            footprint,
            votes,
            extension: None,
            asked: VecDeque::new(),
            renew_at: Instant::NEVER,
            verify_at: Instant::NEVER,
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
        let Hold { value: _, prize, lease, footprint, votes, extension, asked, renew_at, verify_at, .. } =
            self;
        (prize, lease, asked, renew_at, verify_at).hash(all);
        let Hold { alarms, longest, jitter, warn_at, linger_until, .. } = self;
        (alarms, longest, jitter, warn_at, linger_until).hash(all);
        footprint.hash_by_node(each);
        votes.hash_by_node(all, each);
        extension.is_some().hash(all);
        if let Some(Extension { round, ttl, kind, settled }) = extension {
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
        let next = open.map_or(self.verify_at, |extension| extension.round.deadline());
        self.lost_at(terms).min(self.renew_at).min(next)
    }

    /// A key may have changed: the next round begins at once, after the one under way, which may have asked too early; or,
    /// where there have been too many alarms, as soon as one may.
    pub fn verify(&mut self, terms: &Terms, now: Instant) {
        let calm_at = self.alarms.since + pause(terms);
        if now >= calm_at {
            self.alarms = Alarms { since: now, count: 0 };
        }
        let at_once = self.alarms.count < terms.quorum.nodes();
        self.verify_at = self.verify_at.min(if at_once { now } else { calm_at });
    }

    /// Whether an extension is under way.
    pub fn is_extending(&self) -> bool {
        self.extension.as_ref().is_some_and(|extension| !extension.settled)
    }

    /// Extends by hand: a round of its own, after the one under way.
    pub fn ask(&mut self, ticket: Ticket, ttl: Ttl) {
        self.asked.push_back((ticket, ttl));
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
        let alarmed = now >= self.verify_at;
        let (kind, ttl) = match self.asked.front() {
            _ if self.is_extending() => return false,
            Some((ticket, ttl)) => (Kind::ByHand(*ticket), *ttl),
            None if now >= self.renew_at => (Kind::Renewal, terms.ttl),
            // No key of ours has less than a millisecond to live, so this changes nothing.
            None if alarmed => {
                (Kind::Verification { renew_at: self.renew_at }, Ttl::from_duration(ONE_MILLISECOND))
            }
            None => return false,
        };
        if let Kind::ByHand(_) = kind {
            self.asked.pop_front();
        }
        let heal = !matches!(kind, Kind::Verification { .. });
        self.alarms.count += usize::from(alarmed);
        self.verify_at = Instant::NEVER;
        self.renew_at = Instant::NEVER;
        self.longest = self.longest.max(ttl);
        let round = Round::to_all(id, terms.quorum, now, terms.node_timeout);
        self.extension = Some(Extension { round, ttl, kind, settled: false });
        for node in 0..terms.quorum.nodes() {
            self.footprint.wrote(node);
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
        answer: Answer,
    ) -> Verdict {
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
        match terms.quorum.decide(tally) {
            Decision::Pending => Verdict::Open,
            Decision::Won => {
                extension.settled = true;
                self.lease.extend(asked_at, ttl, terms.drift);
                self.renew_at = match kind {
                    Kind::Verification { renew_at } => renew_at,
                    Kind::Renewal | Kind::ByHand(_) => self.next_renewal(terms, asked_at),
                };
                Verdict::Extended(kind.ticket())
            }
            Decision::Failed => {
                extension.settled = true;
                self.renew_at = match kind {
                    Kind::Verification { renew_at } => renew_at,
                    Kind::Renewal | Kind::ByHand(_) => self.next_try(terms, now),
                };
                Verdict::NoQuorum(kind.ticket())
            }
        }
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

    /// Ends all extensions by hand, the one under way and those that wait behind it.
    pub fn refuse_extensions(&mut self) -> Vec<Ticket> {
        let open = self.extension.as_mut().filter(|extension| !extension.settled);
        let under_way = open.and_then(|extension| {
            // Told here, and so not again when it is decided.
            std::mem::replace(&mut extension.kind, Kind::Renewal).ticket()
        });
        under_way.into_iter().chain(self.asked.drain(..).map(|(ticket, _)| ticket)).collect()
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
