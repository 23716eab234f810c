//! Connections. On one, order is kept in both directions; between two, there is none. What a client has given up may still
//! arrive.

use std::collections::VecDeque;

use super::client::{Client, LinkState};
use super::server::{Server, process};
use super::strict::ENROLMENT;
use super::{ClientIndex, WireId, World};
use crate::protocol::admission::Introduction;
use crate::protocol::claim::Event;
use crate::protocol::command::{Answer, Command, Key, NodeIndex, Refusal, Unknown, Waiter};
use crate::protocol::marker::{Process, Rules};
use crate::protocol::round::RoundId;
use crate::protocol::store::Messenger;
use crate::protocol::time::Instant;
use crate::sim::part::Part;
use crate::sim::scope::Sort;

/// One connection. Both of its directions keep their order.
#[derive(Clone, Hash)]
pub(super) struct Wire {
    pub(super) id: WireId,
    /// The process that it leads to.
    pub(super) boot: u32,
    /// The client has given it up.
    pub(super) broken: bool,
    pub(super) requests: VecDeque<Request>,
    /// Sent, and neither heard nor given up: for the client.
    pub(super) open: VecDeque<Sent>,
    pub(super) answers: VecDeque<Reply>,
}

#[derive(Clone, Hash)]
pub(super) enum Request {
    Hello,
    Command(Command),
}

#[derive(Clone, Hash)]
pub(super) enum Reply {
    Hello(Introduction),
    Answer(Answer),
    /// The resource is free, and it is this client's turn.
    Message,
}

/// Who asks, and the connections of all clients to a server, over which they are woken: those that a client has given up
/// last longer for the server.
struct Post {
    caller: Waiter,
    /// Which process the client takes the server for, where that matters.
    process: Option<Process>,
    connections: Vec<(Waiter, Option<WireId>)>,
    woken: Vec<WireId>,
    loses_all: bool,
}

impl Post {
    fn of(caller: Waiter) -> Self {
        Post { caller, process: None, connections: Vec::new(), woken: Vec::new(), loses_all: false }
    }
}

impl Messenger for Post {
    fn caller(&self) -> Option<&Waiter> {
        Some(&self.caller)
    }

    fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    fn wake(&mut self, waiter: &Waiter, _key: &Key) -> bool {
        let Some((_, wire)) = self.connections.iter().find(|(other, _)| other == waiter) else {
            return false;
        };
        self.woken.extend(wire.filter(|_| !self.loses_all));
        true
    }
}

/// A command that a client sent, and the claim and the round for which it did; none for an owed release.
#[derive(Clone, Hash)]
pub(super) struct Sent {
    pub(super) command: Command,
    pub(super) asked: Option<(u32, RoundId)>,
    pub(super) since: Instant,
}

impl Wire {
    /// The commands that have not arrived.
    pub(super) fn commands(&self) -> impl Iterator<Item = &Command> {
        self.requests.iter().filter_map(|request| match request {
            Request::Hello => None,
            Request::Command(command) => Some(command),
        })
    }

    pub(super) fn commands_mut(&mut self) -> impl Iterator<Item = &mut Command> {
        self.requests.iter_mut().filter_map(|request| match request {
            Request::Hello => None,
            Request::Command(command) => Some(command),
        })
    }
}

impl World {
    pub(super) fn wire(&self, id: WireId) -> Option<&Wire> {
        self.wires.iter().map(|wire| &**wire).find(|wire| wire.id == id)
    }

    /// Whether the process at the other end of a connection is gone, which its client will hear.
    pub(super) fn leads_nowhere(&self, wire: &Wire) -> bool {
        wire.boot != self.server(wire.id.node).boot
    }

    /// The server at which a node is.
    pub(super) fn server(&self, node: NodeIndex) -> &Server {
        &self.servers[self.behind(node)]
    }

    pub(super) fn behind(&self, node: NodeIndex) -> NodeIndex {
        self.scope.mutant.map_or(node, |mutant| mutant.server_behind(node))
    }

    /// Whether a client's connection to a node leads nowhere.
    pub(in crate::sim) fn is_stranded(&self, client: ClientIndex, node: NodeIndex) -> bool {
        match self.clients[client].links[node].state {
            LinkState::Down => false,
            LinkState::Dialling(id) | LinkState::Up(id) => {
                self.wire(id).is_none_or(|wire| self.leads_nowhere(wire))
            }
        }
    }

    pub(super) fn wire_mut(&mut self, id: WireId) -> Option<&mut Wire> {
        self.wires.iter_mut().find(|wire| wire.id == id).map(|wire| &mut **wire)
    }

    pub(super) fn dial(&mut self, client: ClientIndex, node: NodeIndex) {
        let boot = self.server(node).boot;
        let link = &mut self.clients[client].links[node];
        let id = WireId { client, node, number: link.wires };
        link.wires += 1;
        link.state = LinkState::Dialling(id);
        let (requests, open, answers) = (VecDeque::from([Request::Hello]), VecDeque::new(), VecDeque::new());
        self.wires.push(Part::new(Wire { id, boot, broken: false, requests, open, answers }));
    }

    /// Puts a command on the connection, or says at once why not. A release that cannot be sent is owed.
    pub(super) fn send(
        &mut self,
        client: ClientIndex,
        node: NodeIndex,
        command: Command,
        asked: Option<(u32, RoundId)>,
    ) -> Option<Answer> {
        let now = self.local(client);
        let link = &mut self.clients[client].links[node];
        let LinkState::Up(id) = link.state else {
            link.owed.remember(command, now, now);
            return Some(Answer::Unknown(Unknown::NotConnected));
        };
        if let Some(wire) = self.wire_mut(id) {
            wire.open.push_back(Sent { command: command.clone(), asked, since: now });
            wire.requests.push_back(Request::Command(command));
        }
        None
    }

    pub(super) fn break_link(&mut self, client: ClientIndex, node: NodeIndex) {
        let now = self.local(client);
        let link = &mut self.clients[client].links[node];
        let (LinkState::Dialling(id) | LinkState::Up(id)) = link.state else { return };
        link.state = LinkState::Down;
        let Some(wire) = self.wire_mut(id) else { return };
        wire.broken = true;
        wire.answers.clear();
        let open = std::mem::take(&mut wire.open);
        self.forget_what_is_over();
        for Sent { command, asked, since } in open {
            let link = &mut self.clients[client].links[node];
            if self.scope.mutant.is_some_and(|mutant| mutant.sends_again(&command)) {
                link.again.push(command.clone());
            }
            link.owed.remember(command, since, now);
            if let Some((number, round)) = asked {
                let answer = Answer::Unknown(Unknown::ConnectionLost);
                self.feed(client, number, Event::Answer { round, node, answer });
            }
        }
    }

    /// Of a connection that its client has given up nothing comes any more if nothing is under way, or nobody is left at the
    /// other end.
    pub(super) fn forget_what_is_over(&mut self) {
        let over = |wire: &Wire| wire.requests.is_empty() || self.leads_nowhere(wire);
        let over: Vec<WireId> =
            self.wires.iter().filter(|wire| wire.broken && over(wire)).map(|wire| wire.id).collect();
        self.wires.retain(|wire| !over.contains(&wire.id));
    }

    pub(super) fn arrive(&mut self, id: WireId) {
        let now = self.now;
        let (mutant, behind) = (self.scope.mutant, self.behind(id.node));
        let wakes = |wire: &Wire| matches!(wire.requests.front(), Some(Request::Command(command)) if command.concerns_list());
        let mut post = Post::of(self.clients[id.client].waiter.clone());
        if self.wire(id).is_some_and(wakes) {
            self.connect_all(&mut post, behind);
        }
        if let Sort::Fenced { .. } = self.scope.sort {
            post.process = self.wire(id).map(|wire| process(wire.boot));
        }
        let server = &mut self.servers[behind];
        let full = server.full;
        let Some(wire) = self.wires.iter_mut().find(|wire| wire.id == id) else { return };
        let Some(request) = wire.requests.pop_front() else { return };
        let time = server.time(now);
        let reply = match request {
            Request::Hello => Reply::Hello(server.introduction(time)),
            Request::Command(command) => {
                let refused = full && server.would_set(time, &command);
                let answer = match mutant {
                    _ if refused => Answer::Unknown(Unknown::Refused(Refusal::OutOfMemory)),
                    Some(mutant) => mutant.carry_out(&mut server.store, time, &command, &mut post),
                    None => server.store.apply(time, &command, &mut post),
                };
                // A key that is set when its release is under way already outlives what the client remembers of it, should the
                // connection break in between.
                let released = |other: &Request| matches!((other, command.value()), (Request::Command(Command::Release { value, .. }), Some(set)) if value == set);
                if wire.broken || wire.requests.iter().any(released) {
                    server.note_late(&command);
                }
                Reply::Answer(answer)
            }
        };
        let is_broken = wire.broken;
        if !is_broken {
            wire.answers.push_back(reply);
        }
        for woken in post.woken {
            if let Some(wire) = self.wire_mut(woken) {
                wire.answers.push_back(Reply::Message);
            }
        }
        if !is_broken {
            self.pass_over_what_nobody_hears(id);
            if self.scope.answers_at_once && self.wire(id).is_some_and(|wire| !wire.answers.is_empty()) {
                self.hear(id);
            }
        } else {
            self.forget_what_is_over();
        }
    }

    /// All whom a server can reach.
    fn connect_all(&self, post: &mut Post, behind: NodeIndex) {
        let boot = self.servers[behind].boot;
        for wire in &self.wires {
            let WireId { client, node, .. } = wire.id;
            if self.behind(node) == behind && wire.boot == boot {
                let listens = self.clients[client].links[node].state == LinkState::Up(wire.id);
                post.connections.push((self.clients[client].waiter.clone(), listens.then_some(wire.id)));
            }
        }
        // One that is heard comes before one that was given up.
        post.connections.sort_by_key(|(_, wire)| wire.is_none());
        post.loses_all = self.scope.messages_are_lost;
    }

    /// An answer that nobody listens to is heard at once: it changes nothing.
    pub(super) fn pass_over_what_nobody_hears(&mut self, id: WireId) {
        if !self.scope.forgets_releases && !self.scope.folds {
            return;
        }
        while let Some(wire) = self.wire(id) {
            let unheard = wire.open.front().is_some_and(|sent| !self.is_awaited(id.client, sent));
            if !matches!(wire.answers.front(), Some(Reply::Answer(_))) || !unheard {
                return;
            }
            self.hear(id);
        }
    }

    /// Whether a claim is still there that asked.
    pub(super) fn is_awaited(&self, client: ClientIndex, sent: &Sent) -> bool {
        let Client { wish, ending, .. } = &*self.clients[client];
        sent.asked.is_some_and(|(number, _)| {
            number == ENROLMENT || wish.iter().chain(ending).any(|wish| wish.number == number)
        })
    }

    pub(super) fn hear(&mut self, id: WireId) {
        let WireId { client, node, .. } = id;
        let now = self.local(client);
        let Some(wire) = self.wire_mut(id) else { return };
        match wire.answers.pop_front() {
            None => {}
            Some(Reply::Hello(introduction)) => self.meet(id, &introduction),
            Some(Reply::Message) => self.wake(client, node),
            Some(Reply::Answer(answer)) => {
                let Some(Sent { command, asked, since }) = wire.open.pop_front() else { return };
                let rules = command.rules();
                let link = &mut self.clients[client].links[node];
                if let Answer::Unknown(_) = answer {
                    // A release that was refused is still owed.
                    link.owed.remember(command, since, now);
                }
                let answer = match rules {
                    Rules::Plain => answer.heard(now, link.counts_from),
                    Rules::Strict(_) => self.hear_strictly(client, node, answer),
                };
                if let Some((number, round)) = asked {
                    self.feed(client, number, Event::Answer { round, node, answer });
                }
            }
        }
    }

    /// A server has said who it is: from now on it is asked, first for what is owed.
    pub(super) fn meet(&mut self, id: WireId, introduction: &Introduction) {
        let WireId { client, node, .. } = id;
        let now = self.local(client);
        let mutant = self.scope.mutant;
        let link = &mut self.clients[client].links[node];
        let standing = match mutant {
            Some(mutant) => mutant.admit(&mut link.admission, now, introduction),
            None => link.admission.admit(now, Some(introduction), false),
        };
        link.counts_from = standing.counts_from;
        link.state = LinkState::Up(id);
        for release in link.owed.take(usize::MAX, now) {
            self.send(client, node, release, None);
        }
        for command in std::mem::take(&mut self.clients[client].links[node].again) {
            self.send(client, node, command, None);
        }
        self.see_to(client, |enrolment, _, out| enrolment.look(node, out));
    }
}
