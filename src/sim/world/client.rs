//! A client: its claims, and what stands in for the driver that performs their actions.

use std::collections::VecDeque;
use std::time::Duration;

use super::strict::{ENROLMENT, Strict};
use super::{ClientIndex, Note, Proof, WireId, World};
use crate::node::owed::Owed;
use crate::protocol::admission::Admission;
use crate::protocol::claim::{Action, Claim, Draw, Event, Notice, Phase, Ticket};
use crate::protocol::command::{Command, LeaseId, NodeIndex, Signature, Waiter};
use crate::protocol::time::Instant;
use crate::sim::clock::Dial;
use crate::sim::mutant::Quirk;
use crate::sim::scope::{START, Scope};
use crate::sim::testimony::Testimony;

#[derive(Clone, Hash)]
pub(super) struct Client {
    /// By which name it is on wait lists.
    pub(super) waiter: Waiter,
    pub(super) dial: Dial,
    pub(super) life: Life,
    /// The claim that competes or holds, and those whose last answers are still to come.
    pub(super) wish: Option<Wish>,
    pub(super) ending: Vec<Wish>,
    pub(super) begun: u32,
    pub(super) attempts: u32,
    /// Others wait for the resource, by the last release, and until when that matters.
    pub(super) others_wait_until: Option<Instant>,
    pub(super) links: Vec<Link>,
    /// What it needs for locks of a strict kind.
    pub(super) strict: Option<Strict>,
    pub(super) quirk: Quirk,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Running,
    /// Since a moment of the world's time.
    Paused(Instant),
    Dead,
}

#[derive(Clone, Hash)]
pub(super) struct Wish {
    pub(super) number: u32,
    pub(super) claim: Claim,
    /// By then it is to have given up.
    pub(super) latest: Instant,
    /// The claim said that it is won.
    pub(super) won: bool,
    /// The caller knows it.
    pub(super) in_hand: bool,
    pub(super) extensions: u64,
    /// It may be on wait lists.
    pub(super) sleeps: bool,
    /// The one before handed over to it without waking another client.
    pub(super) owes: bool,
    /// It was won, and its release was sent.
    pub(super) is_given_back: bool,
    /// What mistaken judges read.
    pub(super) testimony: Testimony,
}

/// What a client knows of a node: the task of a node in production.
#[derive(Clone, Hash)]
pub(super) struct Link {
    pub(super) state: LinkState,
    pub(super) wires: u32,
    pub(super) counts_from: Instant,
    pub(super) admission: Admission,
    pub(super) owed: Owed,
    /// What a mutant sends again.
    pub(super) again: Vec<Command>,
    pub(super) way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LinkState {
    Down,
    /// The server was asked who it is.
    Dialling(WireId),
    Up(WireId),
}

/// What passes between a client and a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Way {
    Open,
    /// Commands, but no answers.
    There,
    Shut,
}

/// For so long after a release that woke another client that one is let pass.
const COURTESY: Duration = Duration::from_millis(5);

impl Client {
    /// A client that has done nothing and is not connected.
    pub(super) fn new(scope: &Scope, client: ClientIndex) -> Self {
        Client {
            waiter: Waiter(name(client).into()),
            dial: Dial::new(START, scope.client_rate(client)),
            life: Life::Running,
            wish: None,
            ending: Vec::new(),
            begun: 0,
            attempts: 0,
            others_wait_until: None,
            links: (0..scope.nodes).map(|_| Link::new(scope)).collect(),
            strict: Strict::new(scope, client),
            quirk: Quirk::default(),
        }
    }
}

impl Link {
    pub(super) fn new(scope: &Scope) -> Self {
        Link {
            state: LinkState::Down,
            wires: 0,
            counts_from: Instant::NEVER,
            admission: Admission::new(scope.protection, scope.max_ttl(), scope.drift(), false),
            owed: Owed::default(),
            again: Vec::new(),
            way: Way::Open,
        }
    }
}

impl Link {
    /// Whether something is to be sent as soon as there is a connection.
    pub(super) fn is_needed(&self) -> bool {
        !(self.owed.has_nothing() && self.again.is_empty())
    }
}

impl World {
    /// Whether nothing comes of a client any more but what it has sent and what it owes.
    pub(super) fn is_done(&self, client: &Client) -> bool {
        client.begun >= self.scope.most_claims && client.wish.is_none() && client.ending.is_empty()
    }

    pub(super) fn begin(&mut self, client: ClientIndex, wish: usize) {
        let now = self.local(client);
        let (terms, patience) = self.scope.wishes[wish].at(now);
        let signature = Signature::new(&name(client), None);
        let latest = patience.ends_at_latest();
        let mut claim = Claim::new(Self::key(), signature, terms, patience);
        let state = &mut self.clients[client];
        if let Some(strict) = &state.strict {
            claim = claim.of_kind(strict.kind());
        }
        if state.others_wait_until.is_some_and(|until| now < until) {
            claim = claim.letting_others_pass();
        }
        let number = state.begun;
        state.begun += 1;
        state.quirk.begin();
        state.wish = Some(Wish {
            number,
            claim,
            latest,
            won: false,
            in_hand: false,
            extensions: 0,
            sleeps: false,
            owes: false,
            is_given_back: false,
            testimony: Testimony::default(),
        });
        self.feed(client, number, Event::Tick);
    }

    /// A holder is done, and another caller of its client comes right behind.
    pub(super) fn hand_over(&mut self, client: ClientIndex) {
        self.tell(client, &Event::HandOver);
        self.begin(client, 0);
        if let Some(wish) = &mut self.clients[client].wish {
            wish.owes = true;
        }
    }

    /// A message says that it is the turn of a client. If nobody waits there any more, it is passed on.
    pub(super) fn wake(&mut self, client: ClientIndex, node: NodeIndex) {
        let waiting = |wish: &&Wish| wish.sleeps && wish.claim.phase() == Phase::Claiming;
        match self.clients[client].wish.as_ref().filter(waiting).map(|wish| wish.number) {
            Some(number) => self.feed(client, number, Event::Woken { node }),
            None => self.pass_on(client, node),
        }
    }

    fn pass_on(&mut self, client: ClientIndex, node: NodeIndex) {
        self.send(client, node, Command::Delist { key: Self::key() }, None);
    }

    /// Brings an event to the claim that competes or holds; time also to those that are ending.
    pub(super) fn tell(&mut self, client: ClientIndex, event: &Event) {
        let state = &self.clients[client];
        let ending = state.ending.iter().map(|wish| wish.number);
        let numbers: Vec<u32> = match &state.wish {
            Some(wish) if *event == Event::Tick => ending.chain([wish.number]).collect(),
            Some(wish) => vec![wish.number],
            None => ending.collect(),
        };
        for number in numbers {
            self.feed(client, number, event.clone());
        }
    }

    /// The caller reads the clock once more before it believes that it holds.
    pub(super) fn take(&mut self, client: ClientIndex) {
        self.tell(client, &Event::Tick);
        match self.holds_until(client) {
            Some(_) => {
                if let Some(wish) = &mut self.clients[client].wish {
                    wish.in_hand = true;
                }
            }
            None => self.tell(client, &Event::Abandon),
        }
    }

    pub(super) fn extend(&mut self, client: ClientIndex) {
        let Some(wish) = &mut self.clients[client].wish else { return };
        wish.extensions += 1;
        let number = wish.extensions;
        self.tell(client, &Event::Extend { ticket: Ticket(number), ttl: self.scope.extension(number) });
    }

    pub(super) fn verify(&mut self, client: ClientIndex) {
        let Some(wish) = &mut self.clients[client].wish else { return };
        wish.extensions += 1;
        let (ticket, claim) = (Ticket(wish.extensions), wish.number);
        self.note_proof(client, claim, Proof::AskedFor(ticket));
        self.tell(client, &Event::Verify { ticket });
    }

    fn note_proof(&mut self, client: ClientIndex, claim: u32, comes: Proof) {
        if self.clients[client].strict.is_some() {
            self.notes.push(Note::Proof { client, claim, comes });
        }
    }

    pub(super) fn alarm(&mut self, client: ClientIndex) {
        if let Some(wish) = &mut self.clients[client].wish {
            wish.extensions += 1;
        }
        self.tell(client, &Event::Alarm);
    }

    /// What the driver does: brings an event, and performs what comes out, in order.
    pub(super) fn feed(&mut self, client: ClientIndex, number: u32, event: Event) {
        if number == ENROLMENT {
            return self.feed_enrolment(client, &event);
        }
        let mut mail = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(mut event) = mail.pop_front() {
            let local = self.local(client);
            let mut now = local;
            let state = &mut *self.clients[client];
            let ending = state.ending.iter_mut().find(|wish| wish.number == number);
            let Some(wish) = state.wish.as_mut().filter(|wish| wish.number == number).or(ending) else {
                return;
            };
            match self.scope.mutant {
                Some(mutant) => {
                    if !mutant.distort_event(&mut event, &mut now, &wish.claim, &mut state.quirk, &mut mail) {
                        continue;
                    }
                    if mutant.is_of_proofs() {
                        // As the claim does: first the clock, then the event.
                        wish.claim.handle(now, Event::Tick, &mut actions);
                        wish.testimony.see(&mut actions, wish.claim.phase(), mutant, &self.scope);
                        wish.testimony.hear(&event);
                        let before = actions.len();
                        wish.claim.handle(now, event, &mut actions);
                        wish.testimony.see(&mut actions[before..], wish.claim.phase(), mutant, &self.scope);
                    } else {
                        wish.claim.handle(now, event, &mut actions);
                    }
                    mutant.distort_actions(&mut actions, &wish.claim, &mut state.quirk, local, &self.scope);
                }
                None => {
                    self.notes.push(Note::Fed {
                        client,
                        state: wish.claim.state(),
                        event: event_name(&event),
                    });
                    wish.claim.handle(now, event, &mut actions);
                }
            }
            let gives_back = wish.won && !wish.is_given_back && wish.claim.phase() == Phase::Over;
            wish.is_given_back |= gives_back;
            if gives_back {
                self.note_proof(client, number, Proof::Ends);
            }
            for action in actions.drain(..) {
                match action {
                    Action::Draw if self.clients[client].attempts >= self.scope.most_attempts => {}
                    Action::Draw => mail.push_front(Event::Attempt(self.draw(client))),
                    Action::Send { node, round, command } => {
                        if let (Command::Enlist { .. }, Some(wish)) =
                            (&command, &mut self.clients[client].wish)
                        {
                            wish.sleeps = true;
                        }
                        self.notes.push(Note::Sent { client, node, command: command.clone() });
                        if let Some(answer) = self.send(client, node, command, Some((number, round))) {
                            mail.push_back(Event::Answer { round, node, answer });
                        }
                    }
                    Action::Tell(notice) => {
                        if let (Notice::Won, Some(fence)) = (&notice, self.fence_of(client, number)) {
                            self.notes.push(Note::Granted { client, fence });
                        }
                        let comes = match &notice {
                            Notice::Won => Some(Proof::Begins),
                            Notice::Verified(ticket, Ok(Some(true))) => Some(Proof::Verified(*ticket)),
                            Notice::Released { proven: Some(proven), .. } => Some(Proof::Released(*proven)),
                            _ => None,
                        };
                        comes.into_iter().for_each(|comes| self.note_proof(client, number, comes));
                        self.hear_notice(client, number, &notice);
                        self.notes.push(Note::Told { client, notice });
                    }
                }
            }
        }
        self.settle(client);
    }

    pub(super) fn hear_notice(&mut self, client: ClientIndex, number: u32, notice: &Notice) {
        let local = self.local(client);
        if let Notice::Released { others_wait, .. } = notice {
            self.clients[client].others_wait_until = others_wait.then(|| local + COURTESY);
        }
        let wish = self.clients[client].wish.as_mut().filter(|wish| wish.number == number);
        if let (Some(wish), Notice::Won) = (wish, notice) {
            (wish.won, wish.owes) = (true, false);
            wish.in_hand = self.scope.weather.take == 0;
        }
    }

    /// A claim whose release went out makes room for the next; one that hears nothing any more is forgotten.
    pub(super) fn settle(&mut self, client: ClientIndex) {
        let state = &mut self.clients[client];
        let owes = state.wish.as_ref().is_some_and(|wish| wish.owes && wish.claim.phase() == Phase::Over);
        if let Some(wish) = state.wish.take_if(|wish| wish.claim.phase() == Phase::Over) {
            if let Some(strict) = state.strict.as_mut() {
                strict.learn(&self.scope, wish.claim.kind());
            }
            state.ending.push(wish);
        }
        let (listens, over) = (!self.scope.forgets_releases, state.attempts >= self.scope.most_attempts);
        let hopeless = |claim: &Claim| matches!(claim.state(), "Looking" | "Resting" | "Waiting" | "Drawing");
        state.wish.take_if(|wish| over && hopeless(&wish.claim));
        state.ending.retain(|wish| listens && wish.claim.wake_at() < Instant::NEVER);
        if owes {
            (0..self.servers.len()).for_each(|node| self.pass_on(client, node));
        }
    }

    /// A LeaseId and a jitter that depend on nothing but who draws for the how-manieth time.
    pub(super) fn draw(&mut self, client: ClientIndex) -> Draw {
        let state = &mut self.clients[client];
        state.attempts += 1;
        let attempt = (client as u128 + 1) << 32 | u128::from(state.attempts);
        let draw = Draw { lease_id: LeaseId(attempt), jitter: self.scope.jitter(client, state.attempts) };
        match self.scope.mutant {
            Some(mutant) => mutant.distort_draw(draw, &mut state.quirk),
            None => draw,
        }
    }
}

fn event_name(event: &Event) -> &'static str {
    match event {
        Event::Tick => "Tick",
        Event::Attempt(_) => "Attempt",
        Event::Answer { .. } => "Answer",
        Event::Extend { .. } => "Extend",
        Event::Alarm => "Alarm",
        Event::Verify { .. } => "Verify",
        Event::Woken { .. } => "Woken",
        Event::LookAgain => "LookAgain",
        Event::Release => "Release",
        Event::HandOver => "HandOver",
        Event::Abandon => "Abandon",
    }
}

fn name(client: ClientIndex) -> String {
    format!("c{}", client + 1)
}
