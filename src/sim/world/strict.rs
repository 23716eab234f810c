//! What is different where locks come with fences: what a client knows of fences, and which nodes it lets count.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::client::{Client, Life};
use super::{ClientIndex, Note, World};
use crate::protocol::claim::{Action, Event, Kind};
use crate::protocol::command::{Answer, Command, NodeIndex};
use crate::protocol::enrolment::{Enrolment, Reseed};
use crate::protocol::fence::{Fence, Proposer};
use crate::protocol::marker::Pact;
use crate::protocol::time::Instant;
use crate::sim::mutant::Mutant;
use crate::sim::scope::{Scope, Sort};

/// Stands for the number of a claim where the one who asks is the enrolment.
pub(super) const ENROLMENT: u32 = u32::MAX;

#[derive(Clone, Hash)]
pub(super) struct Strict {
    pact: Pact,
    proposer: Proposer,
    wall_clock: u64,
    enrolment: Enrolment,
    /// An operator has taken it upon himself.
    by_wall_clock: bool,
    /// By how much a mutant is too early.
    hurry: Duration,
    /// What a mutant was told of the fences when it first looked at a node that does not count.
    early_seeds: Vec<Option<Fence>>,
}

impl Strict {
    pub(super) fn new(scope: &Scope, client: ClientIndex) -> Option<Self> {
        let Sort::Fenced { wall_clocks, .. } = &scope.sort else { return None };
        let terms = &scope.wishes[0].terms;
        let (pact, wall_clock) = (scope.pact(), wall_clocks[client]);
        let rules = (terms.quorum, pact, terms.drift);
        Some(Strict {
            pact,
            proposer: Proposer::new(wall_clock),
            wall_clock,
            enrolment: Enrolment::new(World::key(), rules, terms.node_timeout, (client as u128 + 1) << 64),
            by_wall_clock: false,
            hurry: scope.mutant.map_or(Duration::ZERO, |mutant| mutant.hurry(scope)),
            early_seeds: vec![None; scope.nodes],
        })
    }

    /// What tells two apart that are whosever: as of [`Claim::hash_by_node`](crate::protocol::claim::Claim::hash_by_node).
    pub(super) fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Strict { pact, proposer, wall_clock, enrolment, by_wall_clock, hurry, early_seeds } = self;
        (pact, proposer, wall_clock, by_wall_clock, hurry).hash(all);
        enrolment.hash_by_node(all, each);
        early_seeds.iter().zip(each).for_each(|(seed, node)| seed.hash(node));
    }

    pub(super) fn kind(&self) -> Kind {
        Kind::Fenced(self.pact, Box::new(self.proposer.clone()))
    }

    /// What a claim has met, the next one of this client knows.
    pub(super) fn learn(&mut self, scope: &Scope, kind: &Kind) {
        if let (Sort::Fenced { remembers: true, .. }, Kind::Fenced(_, proposer)) = (&scope.sort, kind) {
            self.proposer = (**proposer).clone();
        }
    }
}

impl Client {
    /// When it has something to do about a node that does not count.
    pub(super) fn enrols_at(&self) -> Instant {
        self.strict.as_ref().map_or(Instant::NEVER, |strict| match strict.enrolment.wake_at() {
            Instant::NEVER => Instant::NEVER,
            due => due - strict.hurry,
        })
    }
}

impl World {
    /// The fence that a claim has just won with its lock, as whoever waits for it believes.
    pub(super) fn fence_of(&self, client: ClientIndex, number: u32) -> Option<Fence> {
        let Client { wish, quirk, .. } = &*self.clients[client];
        let told = wish.as_ref().filter(|wish| wish.number == number)?.claim.fence();
        match self.scope.mutant {
            Some(mutant) => mutant.believed_fence(told, quirk),
            None => told,
        }
    }

    /// Has a client do something about which nodes count, and performs what comes out.
    pub(super) fn see_to(
        &mut self,
        client: ClientIndex,
        act: impl FnOnce(&mut Enrolment, Instant, &mut Vec<Action>),
    ) {
        let now = self.local(client);
        let mut actions = Vec::new();
        let Some(strict) = self.clients[client].strict.as_mut() else { return };
        act(&mut strict.enrolment, now, &mut actions);
        for action in actions {
            let Action::Send { node, round, mut command } = action else { continue };
            self.distort_enrolment(client, node, &mut command);
            self.notes.push(Note::Sent { client, node, command: command.clone() });
            if let Some(answer) = self.send(client, node, command, Some((ENROLMENT, round))) {
                self.feed_enrolment(client, &Event::Answer { round, node, answer });
            }
        }
    }

    /// Time passes for the nodes that do not count.
    pub(super) fn see_to_what_is_due(&mut self, client: ClientIndex) {
        let Some(hurry) = self.clients[client].strict.as_ref().map(|strict| strict.hurry) else { return };
        self.see_to(client, |enrolment, now, out| enrolment.pass(now + hurry, out));
    }

    pub(super) fn feed_enrolment(&mut self, client: ClientIndex, event: &Event) {
        let Event::Answer { round, node, answer } = event else { return };
        if let (Answer::Enrolled(_), Some(strict)) = (answer, self.clients[client].strict.as_mut()) {
            strict.early_seeds[*node] = None;
        }
        self.see_to(client, |enrolment, now, out| enrolment.hear(now, *round, *node, answer, out));
    }

    /// An answer to a command of a strict lock. The node has judged itself; how long it will be is for its client to say.
    pub(super) fn hear_strictly(&mut self, client: ClientIndex, node: NodeIndex, answer: Answer) -> Answer {
        let Answer::Waiting { .. } = answer else { return answer };
        self.see_to(client, |enrolment, _, out| enrolment.notice(node, out));
        let strict = self.clients[client].strict.as_ref();
        let counts_from = strict.map_or(Instant::NEVER, |strict| strict.enrolment.counts_from(node));
        answer.heard(self.local(client), counts_from)
    }

    /// Has a client look at all nodes anew, and take the wall clock for granted where too few of them count.
    pub(super) fn look_at_all(&mut self, client: ClientIndex) {
        if self.clients[client].life == Life::Dead {
            return;
        }
        if let Some(strict) = self.clients[client].strict.as_mut() {
            strict.by_wall_clock = true;
            strict.enrolment.reseed(Reseed::QuorumOrWallClock(strict.wall_clock));
        }
        for node in 0..self.servers.len() {
            self.see_to(client, |enrolment, _, out| enrolment.look(node, out));
        }
    }

    fn distort_enrolment(&mut self, client: ClientIndex, node: NodeIndex, command: &mut Command) {
        if self.scope.mutant == Some(Mutant::SeededBeforeTheWait) {
            self.seed_early(client, node);
        }
        let (Command::Enrol { nonce, anew, floor, .. }, Some(strict)) =
            (command, &self.clients[client].strict)
        else {
            return;
        };
        match self.scope.mutant {
            Some(Mutant::ForgottenNonceComesBack) => *anew = *nonce,
            _ if strict.by_wall_clock => {}
            Some(Mutant::EnrolledWithoutSeed) => *floor = Fence::NONE,
            Some(Mutant::SeededBeforeTheWait) => *floor = strict.early_seeds[node].unwrap_or(*floor),
            _ => {}
        }
    }

    /// What the other nodes would say of the fences now.
    fn seed_early(&mut self, client: ClientIndex, node: NodeIndex) {
        let others = (0..self.servers.len()).filter(|other| *other != node);
        let others: Vec<_> = others.filter(|other| self.is_up(*other)).collect();
        let seeds = others.into_iter().map(|other| self.servers[other].store.high_water(&World::key()));
        let seed = seeds.fold(Fence::NONE, Fence::max);
        if let Some(strict) = self.clients[client].strict.as_mut() {
            strict.early_seeds[node].get_or_insert(seed);
        }
    }
}
