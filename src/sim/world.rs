//! Clients, nodes, clocks and the network between them, one step at a time. The claims are those that run in production, and so
//! are the store, the admission and the memory of owed releases; what is made up here is only the world around them.
//!
//! Nothing in it is random: [`offers`](World::offers) lists what may happen next, and [`perform`](World::perform) makes it happen.
//! Time passes only by [`Step::Pass`]; everything else happens in no time, so any delay is a matter of what is chosen when.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::choose::Offer;
use super::clock::Dial;
use super::fault::{Fault, FaultKind};
use super::mutant::Quirk;
use super::scope::{START, Scope};
use crate::node::owed::Owed;
use crate::protocol::admission::{Admission, Identity, Introduction};
use crate::protocol::claim::{Action, Claim, Draw, Event, Notice, Phase, Ticket};
use crate::protocol::command::{
    Answer, Command, Key, LeaseId, NodeIndex, Refusal, Signature, Unknown, Value,
};
use crate::protocol::round::RoundId;
use crate::protocol::store::Store;
use crate::protocol::time::Instant;

/// The number of a client.
pub type ClientIndex = usize;

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Time goes on for everybody.
    Pass(Span),
    /// A client begins to want the resource, in one of the ways that the scope knows.
    Begin {
        /// Who.
        client: ClientIndex,
        /// In which way.
        wish: usize,
    },
    /// A client's claim is woken, at or after the moment for which it asked.
    Wake {
        /// Whose.
        client: ClientIndex,
    },
    /// The caller takes in that the lock is won; until here it may have been kept from running.
    Take {
        /// Who.
        client: ClientIndex,
    },
    /// The holder extends by hand.
    Extend {
        /// Who.
        client: ClientIndex,
    },
    /// The holder releases.
    Release {
        /// Who.
        client: ClientIndex,
    },
    /// Whoever wanted the lock drops the future before having it.
    Abandon {
        /// Who.
        client: ClientIndex,
    },
    /// A client opens a connection.
    Dial {
        /// Who.
        client: ClientIndex,
        /// To which node.
        node: NodeIndex,
    },
    /// A connection breaks for its client. What is under way may still arrive.
    Break {
        /// Whose.
        client: ClientIndex,
        /// To which node.
        node: NodeIndex,
    },
    /// The oldest command on a connection arrives at its node and is carried out.
    Arrive(WireId),
    /// The oldest answer on a connection is heard.
    Hear(WireId),
    /// What is still under way on a broken connection is lost.
    Lose(WireId),
    /// Something goes wrong, or is mended.
    Fault(Fault),
}

/// How much time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// Until something is due: a claim is to be woken, a validity or a key ends.
    UntilDue,
    /// So many microseconds.
    Micros(u32),
    /// A ttl.
    Ttl,
}

/// Which connection: whose, to which node, and the how-manieth of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireId {
    /// Whose.
    pub client: ClientIndex,
    /// To which node.
    pub node: NodeIndex,
    /// Counted from 0.
    pub number: u32,
}

/// The whole world at one moment.
#[derive(Clone)]
pub struct World {
    scope: Arc<Scope>,
    now: Instant,
    clients: Vec<Client>,
    servers: Vec<Server>,
    wires: Vec<Wire>,
    /// Faults so far, without those that mend.
    faults: u32,
    /// Whether a key may have vanished, or come back, in another way than the protocol's.
    memory_changed: bool,
    notes: Vec<Note>,
}

/// What a step brought, for those who check.
#[derive(Clone, Debug)]
pub enum Note {
    /// A client sent a command.
    Sent {
        /// Who.
        client: ClientIndex,
        /// To which node.
        node: NodeIndex,
        /// What.
        command: Command,
    },
    /// A claim was woken.
    Woken {
        /// Whose.
        client: ClientIndex,
    },
    /// A claim told whoever waits for it.
    Told {
        /// Whose claim.
        client: ClientIndex,
        /// What.
        notice: Notice,
    },
}

#[derive(Clone, Hash)]
struct Client {
    dial: Dial,
    life: Life,
    /// The claim that competes or holds, and those whose last answers are still to come.
    wish: Option<Wish>,
    ending: Vec<Wish>,
    begun: u32,
    attempts: u32,
    links: Vec<Link>,
    quirk: Quirk,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Life {
    Running,
    /// Since a moment of the world's time.
    Paused(Instant),
    Dead,
}

#[derive(Clone, Hash)]
struct Wish {
    number: u32,
    claim: Claim,
    /// The claim said that it is won.
    won: bool,
    /// The caller knows it.
    in_hand: bool,
    extensions: u64,
}

/// What a client knows of a node: the task of a node in production.
#[derive(Clone, Hash)]
struct Link {
    state: LinkState,
    wires: u32,
    counts_from: Instant,
    admission: Admission,
    owed: Owed,
    /// What a mutant sends again.
    again: Vec<Command>,
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum LinkState {
    Down,
    /// The server was asked who it is.
    Dialling(WireId),
    Up(WireId),
}

/// What passes between a client and a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Open,
    OneWay,
    Shut,
}

/// One connection. Both of its directions keep their order.
#[derive(Clone, Hash)]
struct Wire {
    id: WireId,
    /// The process that it leads to.
    boot: u32,
    /// The client has given it up.
    broken: bool,
    requests: VecDeque<Request>,
    /// Sent, and neither heard nor given up: for the client.
    open: VecDeque<Sent>,
    answers: VecDeque<Reply>,
}

#[derive(Clone, Hash)]
enum Request {
    Hello,
    Command(Command),
}

#[derive(Clone, Hash)]
enum Reply {
    Hello(Introduction),
    Answer(Answer),
}

/// A command that a client sent, and the claim and the round for which it did; none for an owed release.
#[derive(Clone, Hash)]
struct Sent {
    command: Command,
    asked: Option<(u32, RoundId)>,
    since: Instant,
}

#[derive(Clone, Hash)]
struct Server {
    store: Store,
    dial: Dial,
    up: bool,
    stalled: bool,
    full: bool,
    /// Which process answers, which history of writes it continues, and whether it was always a master.
    boot: u32,
    history: u32,
    always_master: bool,
    /// By its own clock.
    started_at: Instant,
    copy: Option<Store>,
    /// Values that came too late to be undone for sure, or out of an old copy.
    late: Vec<Value>,
}

impl World {
    /// Everybody is there, connected, and nothing has happened.
    pub fn new(scope: Arc<Scope>) -> World {
        let server = |node: usize| Server {
            store: Store::default(),
            dial: Dial::new(START, scope.node_rate(node)),
            up: true,
            stalled: false,
            full: false,
            boot: 0,
            history: 0,
            always_master: true,
            started_at: Instant::from_nanos(0),
            copy: None,
            late: Vec::new(),
        };
        let mut world = World {
            now: START,
            clients: Vec::new(),
            servers: (0..scope.nodes).map(server).collect(),
            wires: Vec::new(),
            faults: 0,
            memory_changed: false,
            notes: Vec::new(),
            scope,
        };
        world.clients = (0..world.scope.clients).map(|client| world.new_client(client)).collect();
        if !world.scope.strangers {
            for (client, node) in world.pairs() {
                world.dial(client, node);
                let Some(Wire { id, .. }) = world.wires.last() else { continue };
                let id = *id;
                world.arrive(id);
                world.hear(id);
            }
        }
        world
    }

    fn new_client(&self, client: ClientIndex) -> Client {
        let scope = &self.scope;
        let link = || Link {
            state: LinkState::Down,
            wires: 0,
            counts_from: Instant::NEVER,
            admission: Admission::new(scope.protection, scope.max_ttl(), scope.drift(), false),
            owed: Owed::default(),
            again: Vec::new(),
            way: Way::Open,
        };
        Client {
            dial: Dial::new(START, scope.client_rate(client)),
            life: Life::Running,
            wish: None,
            ending: Vec::new(),
            begun: 0,
            attempts: 0,
            links: (0..scope.nodes).map(|_| link()).collect(),
            quirk: Quirk::default(),
        }
    }

    /// Makes a step happen.
    pub fn perform(&mut self, step: Step) {
        self.notes.clear();
        match step {
            Step::Pass(span) => self.now = self.after(span),
            Step::Begin { client, wish } => self.begin(client, wish),
            Step::Wake { client } => {
                self.tell(client, Event::Tick);
                self.notes.push(Note::Woken { client });
            }
            Step::Take { client } => self.take(client),
            Step::Extend { client } => self.extend(client),
            Step::Release { client } => self.tell(client, Event::Release),
            Step::Abandon { client } => self.tell(client, Event::Abandon),
            Step::Dial { client, node } => self.dial(client, node),
            Step::Break { client, node } => self.break_link(client, node),
            Step::Arrive(id) => self.arrive(id),
            Step::Hear(id) => self.hear(id),
            Step::Lose(id) => self.wires.retain(|wire| wire.id != id),
            Step::Fault(fault) => self.fault(fault),
        }
    }

    /// What the last step brought.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The world's own time, by which the clocks of clients and nodes are more or less right.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// What was assumed for it.
    pub fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// Whether a key may have vanished, or come back, in another way than the protocol's.
    pub fn memory_changed(&self) -> bool {
        self.memory_changed
    }

    // ── looking at it ───────────────────────────────────────────────────────────────────────────────────────────────

    /// Until when a client believes that it holds, on its own clock; `None` if it does not hold.
    pub fn holds_until(&self, client: ClientIndex) -> Option<Instant> {
        let Client { wish, quirk, life, .. } = &self.clients[client];
        let wish = wish.as_ref().filter(|wish| wish.won && *life != Life::Dead)?;
        let believed = match self.scope.mutant {
            Some(mutant) => mutant.believes_until(&wish.claim, quirk, &self.scope),
            None => wish.claim.valid_until().filter(|_| wish.claim.phase() == Phase::Held),
        };
        believed.filter(|until| self.local(client) < *until)
    }

    /// The clock of a client.
    pub fn local(&self, client: ClientIndex) -> Instant {
        self.clients[client].dial.read(self.now)
    }

    /// The claim of a client that competes or holds.
    pub fn claim(&self, client: ClientIndex) -> Option<&Claim> {
        self.clients[client].wish.as_ref().map(|wish| &wish.claim)
    }

    /// How many claims a client has begun.
    pub fn begun(&self, client: ClientIndex) -> u32 {
        self.clients[client].begun
    }

    /// Whether a client's process is there at all.
    pub fn is_alive(&self, client: ClientIndex) -> bool {
        self.clients[client].life != Life::Dead
    }

    /// Whether a node runs, and votes for that client now.
    pub fn votes(&self, client: ClientIndex, node: NodeIndex) -> bool {
        self.servers[node].up && self.local(client) >= self.clients[client].links[node].counts_from
    }

    /// Whether a node runs.
    pub fn is_up(&self, node: NodeIndex) -> bool {
        self.servers[node].up
    }

    /// The values that stand at the nodes, and whether nobody can be blamed for them: they came after their release was sent,
    /// over a connection that was given up, or out of an old copy.
    pub fn standing(&self) -> Vec<(NodeIndex, Value, bool)> {
        let mut standing = Vec::new();
        for (node, server) in self.servers.iter().enumerate() {
            for (_, value) in server.store.keys(server.time(self.now)) {
                standing.push((node, value.clone(), server.late.contains(value)));
            }
        }
        standing
    }

    /// Whether nothing is under way any more: no command, no answer, no claim.
    pub fn is_quiet(&self) -> bool {
        let idle = |client: &Client| {
            client.life == Life::Dead
                || (client.wish.is_none()
                    && client.ending.iter().all(|wish| wish.claim.wake_at() == Instant::NEVER))
        };
        self.clients.iter().all(idle)
            && self.wires.iter().all(|wire| wire.requests.is_empty() && wire.answers.is_empty())
    }

    /// Whether everybody who is alive is connected to every node that runs.
    pub fn is_connected(&self) -> bool {
        let up = |link: &Link| matches!(link.state, LinkState::Up(id) if !self.leads_nowhere(id));
        let alive = self.clients.iter().filter(|client| client.life != Life::Dead);
        alive
            .flat_map(|client| &client.links)
            .zip(self.servers.iter().cycle())
            .all(|(link, server)| !server.up || up(link))
    }

    pub(super) fn key() -> Key {
        Key::of_lock("redlock", b"resource")
    }

    fn pairs(&self) -> Vec<(ClientIndex, NodeIndex)> {
        let nodes = self.servers.len();
        (0..self.clients.len()).flat_map(|client| (0..nodes).map(move |node| (client, node))).collect()
    }

    // ── what may happen next ────────────────────────────────────────────────────────────────────────────────────────

    /// Lists what may happen next.
    pub fn offers(&self, out: &mut Vec<Offer>) {
        out.clear();
        let weather = &self.scope.weather;
        let mut offer = |weight: u32, step: Step| {
            if weight > 0 {
                out.push(Offer { weight, step });
            }
        };
        for &(span, weight) in &weather.spans {
            if self.after(span) > self.now && self.now < self.scope.ends_at {
                offer(weight, Step::Pass(span));
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            if client.life == Life::Running {
                self.offer_client(index, client, &mut offer);
            }
        }
        for wire in &self.wires {
            self.offer_wire(wire, &mut offer);
        }
        if self.faults < self.scope.most_faults {
            for &(kind, weight) in &weather.faults {
                self.faults_of(kind, &mut |fault: Fault| {
                    offer(if fault.mends() { weather.mending } else { weight }, Step::Fault(fault));
                });
            }
        } else {
            for &(kind, _) in &weather.faults {
                self.faults_of(kind, &mut |fault: Fault| {
                    offer(if fault.mends() { weather.mending } else { 0 }, Step::Fault(fault));
                });
            }
        }
    }

    fn offer_client(&self, index: ClientIndex, client: &Client, offer: &mut impl FnMut(u32, Step)) {
        let weather = &self.scope.weather;
        let now = client.dial.read(self.now);
        match &client.wish {
            None if client.begun < self.scope.most_claims && self.may_begin(index) => {
                for wish in 0..self.scope.wishes.len() {
                    offer(weather.begin, Step::Begin { client: index, wish });
                }
            }
            None => {}
            Some(wish) => {
                let phase = wish.claim.phase();
                if now >= wish.claim.wake_at() {
                    offer(weather.wake, Step::Wake { client: index });
                }
                if !wish.won {
                    offer(weather.abandon, Step::Abandon { client: index });
                } else if !wish.in_hand {
                    offer(weather.take, Step::Take { client: index });
                    offer(weather.abandon, Step::Abandon { client: index });
                } else {
                    offer(
                        if phase == Phase::Held { weather.release } else { weather.wake },
                        Step::Release { client: index },
                    );
                    if phase == Phase::Held && wish.extensions < self.scope.most_extensions {
                        offer(weather.extend, Step::Extend { client: index });
                    }
                }
            }
        }
        if client.wish.is_none() && client.ending.iter().any(|wish| now >= wish.claim.wake_at()) {
            offer(weather.wake, Step::Wake { client: index });
        }
        for (node, link) in client.links.iter().enumerate() {
            match link.state {
                LinkState::Down if self.servers[node].up => {
                    offer(weather.dial, Step::Dial { client: index, node })
                }
                LinkState::Down => {}
                LinkState::Dialling(id) | LinkState::Up(id) => {
                    let dead = self.leads_nowhere(id);
                    let crowded =
                        self.wires.iter().filter(|wire| wire.broken && wire.id.client == index).count() > 2;
                    let weight = if dead {
                        weather.wake
                    } else if crowded {
                        0
                    } else {
                        weather.breaks
                    };
                    offer(weight, Step::Break { client: index, node });
                }
            }
        }
    }

    /// Clients are alike: that they begin in their order loses no history, and spares a search the same ones under other names.
    fn may_begin(&self, client: ClientIndex) -> bool {
        !self.scope.in_order || client == 0 || self.clients[client - 1].begun > 0
    }

    fn offer_wire(&self, wire: &Wire, offer: &mut impl FnMut(u32, Step)) {
        let weather = &self.scope.weather;
        let WireId { client, node, .. } = wire.id;
        let (server, way) = (&self.servers[node], self.clients[client].links[node].way);
        let reaches = server.up && !server.stalled && server.boot == wire.boot && way != Way::Shut;
        if !wire.requests.is_empty() && reaches {
            offer(if wire.broken { weather.late } else { weather.arrive }, Step::Arrive(wire.id));
        }
        if !wire.answers.is_empty()
            && !wire.broken
            && way == Way::Open
            && self.clients[client].life == Life::Running
        {
            offer(weather.hear, Step::Hear(wire.id));
        }
        if wire.broken {
            offer(weather.late, Step::Lose(wire.id));
        }
    }

    fn faults_of(&self, kind: FaultKind, offer: &mut dyn FnMut(Fault)) {
        let clients = || self.clients.iter().enumerate();
        for (node, server) in self.servers.iter().enumerate() {
            match kind {
                FaultKind::Crashes if server.up => offer(Fault::Crash(node)),
                FaultKind::Crashes => offer(Fault::RestartWithMemory(node)),
                FaultKind::Amnesia if server.up => offer(Fault::Crash(node)),
                FaultKind::Amnesia => offer(Fault::RestartEmpty(node)),
                FaultKind::Staleness if server.up => {
                    offer(Fault::Copy(node));
                    if server.copy.is_some() {
                        offer(Fault::Promote(node));
                    }
                }
                FaultKind::Staleness if server.copy.is_some() => offer(Fault::RestartStale(node)),
                FaultKind::Replacement if server.up => offer(Fault::Replace(node)),
                FaultKind::Stalls if server.stalled => offer(Fault::Resume(node)),
                FaultKind::Stalls => offer(Fault::Stall(node)),
                FaultKind::Fullness if server.full => offer(Fault::Drain(node)),
                FaultKind::Fullness => offer(Fault::Fill(node)),
                FaultKind::Eviction => offer(Fault::Evict(node)),
                FaultKind::Flushes => offer(Fault::Flush(node)),
                FaultKind::Jumps => {
                    offer(Fault::JumpForward(node));
                    offer(Fault::JumpBack(node));
                }
                FaultKind::Cuts => clients().for_each(|(index, client)| match client.links[node].way {
                    Way::Open => {
                        offer(Fault::Cut(index, node));
                        offer(Fault::Mute(index, node));
                    }
                    Way::OneWay | Way::Shut => offer(Fault::Mend(index, node)),
                }),
                _ => {}
            }
        }
        match kind {
            FaultKind::Deletions => offer(Fault::Delete),
            FaultKind::Pauses => clients().for_each(|(index, client)| match client.life {
                Life::Running => offer(Fault::Pause(index)),
                Life::Paused(_) => offer(Fault::Continue(index)),
                Life::Dead => {}
            }),
            FaultKind::Deaths => {
                clients()
                    .filter(|(_, client)| client.life != Life::Dead)
                    .for_each(|(index, _)| offer(Fault::Die(index)));
            }
            FaultKind::Freezes => clients()
                .filter(|(_, client)| client.life == Life::Running)
                .for_each(|(index, _)| offer(Fault::Freeze(index))),
            _ => {}
        }
    }

    fn after(&self, span: Span) -> Instant {
        match span {
            Span::Micros(micros) => self.now + Duration::from_micros(micros.into()),
            Span::Ttl => self.now + self.scope.max_ttl().as_duration(),
            Span::UntilDue => self.next_due().unwrap_or(self.now),
        }
    }

    /// When something changes by itself: a claim is to be woken, a validity or a key ends, a node begins to vote.
    pub fn next_due(&self) -> Option<Instant> {
        let mut next = Instant::NEVER;
        let mut consider = |moment: Instant| {
            if moment > self.now && moment < next {
                next = moment;
            }
        };
        for client in self.clients.iter().filter(|client| client.life != Life::Dead) {
            for wish in client.wish.iter().chain(&client.ending) {
                consider(client.dial.when(wish.claim.wake_at()));
                if let Some(valid_until) = wish.claim.valid_until() {
                    consider(client.dial.when(valid_until));
                }
            }
            for link in &client.links {
                consider(client.dial.when(link.counts_from));
            }
        }
        for server in self.servers.iter().filter(|server| server.up) {
            for expires_at in server.store.expiries() {
                consider(server.dial.when(expires_at));
            }
        }
        (next < Instant::NEVER).then_some(next)
    }

    // ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────

    fn begin(&mut self, client: ClientIndex, wish: usize) {
        let now = self.local(client);
        let (terms, patience) = self.scope.wishes[wish].at(now);
        let signature = Signature::new(&name(client), None);
        let claim = Claim::new(Self::key(), signature, terms, patience);
        let state = &mut self.clients[client];
        let number = state.begun;
        state.begun += 1;
        state.quirk.begin();
        state.wish = Some(Wish { number, claim, won: false, in_hand: false, extensions: 0 });
        self.feed(client, number, Event::Tick);
    }

    /// Brings an event to the claim that competes or holds; time also to those that are ending.
    fn tell(&mut self, client: ClientIndex, event: Event) {
        let state = &self.clients[client];
        let ending = state.ending.iter().map(|wish| wish.number);
        let numbers: Vec<u32> = match &state.wish {
            Some(wish) if event == Event::Tick => ending.chain([wish.number]).collect(),
            Some(wish) => vec![wish.number],
            None => ending.collect(),
        };
        for number in numbers {
            self.feed(client, number, event.clone());
        }
    }

    /// The caller reads the clock once more before it believes that it holds.
    fn take(&mut self, client: ClientIndex) {
        self.tell(client, Event::Tick);
        match self.holds_until(client) {
            Some(_) => {
                if let Some(wish) = &mut self.clients[client].wish {
                    wish.in_hand = true;
                }
            }
            None => self.tell(client, Event::Abandon),
        }
    }

    fn extend(&mut self, client: ClientIndex) {
        let Some(wish) = &mut self.clients[client].wish else { return };
        wish.extensions += 1;
        let ticket = Ticket(wish.extensions);
        self.tell(client, Event::Extend { ticket, ttl: self.scope.short_ttl() });
    }

    /// What the driver does: brings an event, and performs what comes out, in order.
    fn feed(&mut self, client: ClientIndex, number: u32, event: Event) {
        let mut mail = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(mut event) = mail.pop_front() {
            let mut now = self.local(client);
            let state = &mut self.clients[client];
            let ending = state.ending.iter_mut().find(|wish| wish.number == number);
            let Some(wish) = state.wish.as_mut().filter(|wish| wish.number == number).or(ending) else {
                return;
            };
            match self.scope.mutant {
                Some(mutant) => {
                    if !mutant.distort_event(&mut event, &mut now, &wish.claim, &mut state.quirk, &mut mail) {
                        continue;
                    }
                    wish.claim.handle(now, event, &mut actions);
                    mutant.distort_actions(&mut actions, &wish.claim, &mut state.quirk, now, &self.scope);
                }
                None => wish.claim.handle(now, event, &mut actions),
            }
            for action in actions.drain(..) {
                match action {
                    Action::Draw => mail.push_front(Event::Attempt(self.draw(client))),
                    Action::Send { node, round, command } => {
                        self.notes.push(Note::Sent { client, node, command: command.clone() });
                        if let Some(answer) = self.send(client, node, command, Some((number, round))) {
                            mail.push_back(Event::Answer { round, node, answer });
                        }
                    }
                    Action::Tell(notice) => {
                        self.hear_notice(client, number, &notice);
                        self.notes.push(Note::Told { client, notice });
                    }
                }
            }
        }
        self.settle(client);
    }

    fn hear_notice(&mut self, client: ClientIndex, number: u32, notice: &Notice) {
        let wish = self.clients[client].wish.as_mut().filter(|wish| wish.number == number);
        if let (Some(wish), Notice::Won) = (wish, notice) {
            wish.won = true;
        }
    }

    /// A claim whose release went out makes room for the next; one that hears nothing any more is forgotten.
    fn settle(&mut self, client: ClientIndex) {
        let state = &mut self.clients[client];
        if let Some(wish) = state.wish.take_if(|wish| wish.claim.phase() == Phase::Over) {
            state.ending.push(wish);
        }
        state.ending.retain(|wish| wish.claim.wake_at() < Instant::NEVER);
    }

    /// A LeaseId and a jitter that depend on nothing but who draws for the how-manieth time.
    fn draw(&mut self, client: ClientIndex) -> Draw {
        let state = &mut self.clients[client];
        state.attempts += 1;
        let attempt = (client as u128 + 1) << 32 | u128::from(state.attempts);
        let draw = Draw { lease_id: LeaseId(attempt), jitter: self.scope.jitter(client, state.attempts) };
        match self.scope.mutant {
            Some(mutant) => mutant.distort_draw(draw, &mut state.quirk),
            None => draw,
        }
    }

    // ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────

    fn wire(&self, id: WireId) -> Option<&Wire> {
        self.wires.iter().find(|wire| wire.id == id)
    }

    /// Whether the process at the other end of a connection is gone, which its client will hear.
    fn leads_nowhere(&self, id: WireId) -> bool {
        self.wire(id).is_none_or(|wire| wire.boot != self.servers[id.node].boot)
    }

    /// Whether a client's connection to a node leads nowhere.
    pub(super) fn is_stranded(&self, client: ClientIndex, node: NodeIndex) -> bool {
        match self.clients[client].links[node].state {
            LinkState::Down => false,
            LinkState::Dialling(id) | LinkState::Up(id) => self.leads_nowhere(id),
        }
    }

    fn wire_mut(&mut self, id: WireId) -> Option<&mut Wire> {
        self.wires.iter_mut().find(|wire| wire.id == id)
    }

    fn dial(&mut self, client: ClientIndex, node: NodeIndex) {
        let boot = self.servers[node].boot;
        let link = &mut self.clients[client].links[node];
        let id = WireId { client, node, number: link.wires };
        link.wires += 1;
        link.state = LinkState::Dialling(id);
        let (requests, open, answers) = (VecDeque::from([Request::Hello]), VecDeque::new(), VecDeque::new());
        self.wires.push(Wire { id, boot, broken: false, requests, open, answers });
    }

    /// Puts a command on the connection, or says at once why not. A release that cannot be sent is owed.
    fn send(
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

    fn break_link(&mut self, client: ClientIndex, node: NodeIndex) {
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
    fn forget_what_is_over(&mut self) {
        let servers = &self.servers;
        let over = |wire: &Wire| wire.requests.is_empty() || wire.boot != servers[wire.id.node].boot;
        self.wires.retain(|wire| !(wire.broken && over(wire)));
    }

    fn arrive(&mut self, id: WireId) {
        let now = self.now;
        let (mutant, full) = (self.scope.mutant, self.servers[id.node].full);
        let stored = self.scope.mutant.map_or(id.node, |mutant| mutant.server_behind(id.node));
        let server = &mut self.servers[stored];
        let Some(wire) = self.wires.iter_mut().find(|wire| wire.id == id) else { return };
        let Some(request) = wire.requests.pop_front() else { return };
        let time = server.time(now);
        let reply = match request {
            Request::Hello => Reply::Hello(server.introduction(time)),
            Request::Command(command) => {
                let refused = full && server.would_set(time, &command);
                let answer = match mutant {
                    _ if refused => Answer::Unknown(Unknown::Refused(Refusal::OutOfMemory)),
                    Some(mutant) => mutant.carry_out(&mut server.store, time, &command),
                    None => server.store.apply(time, &command),
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
        if !wire.broken {
            wire.answers.push_back(reply);
        } else {
            self.forget_what_is_over();
        }
    }

    fn hear(&mut self, id: WireId) {
        let WireId { client, node, .. } = id;
        let now = self.local(client);
        let Some(wire) = self.wire_mut(id) else { return };
        match wire.answers.pop_front() {
            None => {}
            Some(Reply::Hello(introduction)) => self.meet(id, &introduction),
            Some(Reply::Answer(answer)) => {
                let Some(Sent { command, asked, since }) = wire.open.pop_front() else { return };
                let link = &mut self.clients[client].links[node];
                if let Answer::Unknown(_) = answer {
                    // A release that was refused is still owed.
                    link.owed.remember(command, since, now);
                }
                let answer = answer.heard(now, link.counts_from);
                if let Some((number, round)) = asked {
                    self.feed(client, number, Event::Answer { round, node, answer });
                }
            }
        }
    }

    /// A server has said who it is: from now on it is asked, first for what is owed.
    fn meet(&mut self, id: WireId, introduction: &Introduction) {
        let WireId { client, node, .. } = id;
        let now = self.local(client);
        let mutant = self.scope.mutant;
        let link = &mut self.clients[client].links[node];
        let standing = match mutant {
            Some(mutant) => mutant.admit(&mut link.admission, now, introduction),
            None => link.admission.admit(now, Some(introduction)),
        };
        link.counts_from = standing.counts_from;
        link.state = LinkState::Up(id);
        for release in link.owed.take(usize::MAX, now) {
            self.send(client, node, release, None);
        }
        for command in std::mem::take(&mut self.clients[client].links[node].again) {
            self.send(client, node, command, None);
        }
    }

    // ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────

    fn fault(&mut self, fault: Fault) {
        self.faults += u32::from(!fault.mends());
        self.memory_changed |= fault.changes_memory();
        match fault {
            Fault::Crash(node) => self.crash(node),
            Fault::RestartWithMemory(node) => self.restart(node, |server| server.store.clone()),
            Fault::RestartEmpty(node) => self.restart(node, |_| Store::default()),
            Fault::RestartStale(node) => self.restart(node, Server::old_store),
            Fault::Copy(node) => self.servers[node].copy = Some(self.servers[node].store.clone()),
            Fault::Promote(node) => {
                self.crash(node);
                self.restart(node, Server::old_store);
                let server = &mut self.servers[node];
                (server.started_at, server.always_master) = (Instant::from_nanos(0), false);
                server.history += 1;
            }
            Fault::Replace(node) => {
                self.crash(node);
                self.restart(node, |_| Store::default());
                let server = &mut self.servers[node];
                server.started_at = Instant::from_nanos(0);
                server.history += 1;
            }
            Fault::Stall(node) => self.servers[node].stalled = true,
            Fault::Resume(node) => self.servers[node].stalled = false,
            Fault::Fill(node) => self.servers[node].full = true,
            Fault::Drain(node) => self.servers[node].full = false,
            Fault::Cut(client, node) => self.clients[client].links[node].way = Way::Shut,
            Fault::Mute(client, node) => self.clients[client].links[node].way = Way::OneWay,
            Fault::Mend(client, node) => self.clients[client].links[node].way = Way::Open,
            Fault::Pause(client) => self.clients[client].life = Life::Paused(self.now),
            Fault::Continue(client) => self.go_on(client),
            Fault::Die(client) => self.die(client),
            Fault::Evict(node) => {
                let time = self.servers[node].time(self.now);
                self.servers[node].store.remove(time, &Self::key());
            }
            Fault::Flush(node) => self.servers[node].store = Store::default(),
            Fault::Delete => {
                for server in &mut self.servers {
                    let time = server.time(self.now);
                    server.store.remove(time, &Self::key());
                }
            }
            Fault::JumpForward(node) => {
                let by = self.scope.max_ttl().as_duration();
                self.servers[node].dial.set_forward(by);
            }
            Fault::JumpBack(node) => {
                let by = self.scope.max_ttl().as_duration();
                self.servers[node].dial.set_back(by);
            }
            Fault::Freeze(client) => {
                let by = self.scope.max_ttl().as_duration();
                self.now = self.now + by;
                self.clients[client].dial.set_back(by);
            }
        }
    }

    fn crash(&mut self, node: NodeIndex) {
        let server = &mut self.servers[node];
        (server.up, server.stalled) = (false, false);
        server.boot += 1;
        // What was answered may still be heard; what had not arrived is lost.
        self.wires.iter_mut().filter(|wire| wire.id.node == node).for_each(|wire| wire.requests.clear());
        self.forget_what_is_over();
    }

    fn restart(&mut self, node: NodeIndex, memory: impl FnOnce(&mut Server) -> Store) {
        let server = &mut self.servers[node];
        server.store = memory(server);
        server.started_at = server.time(self.now);
        (server.up, server.always_master) = (true, true);
    }

    fn go_on(&mut self, client: ClientIndex) {
        let state = &mut self.clients[client];
        if let Life::Paused(since) = state.life {
            state.life = Life::Running;
            if self.scope.mutant.is_some_and(|mutant| mutant.clock_stops_in_a_pause()) {
                state.dial.set_back(self.now.since(since));
            }
        }
    }

    fn die(&mut self, client: ClientIndex) {
        let state = &mut self.clients[client];
        state.life = Life::Dead;
        state.wish = None;
        state.ending.clear();
        state.links.iter_mut().for_each(|link| link.state = LinkState::Down);
        for wire in self.wires.iter_mut().filter(|wire| wire.id.client == client) {
            wire.broken = true;
            wire.answers.clear();
        }
        self.forget_what_is_over();
    }

    /// Ends all faults that can be ended: everybody who is alive is up, reachable and connected again before long.
    pub fn mend(&mut self) {
        let nodes = 0..self.servers.len();
        for node in nodes.filter(|node| !self.is_up(*node)).collect::<Vec<_>>() {
            self.fault(Fault::RestartEmpty(node));
        }
        self.servers.iter_mut().for_each(|server| (server.stalled, server.full) = (false, false));
        for client in 0..self.clients.len() {
            self.go_on(client);
            self.clients[client].links.iter_mut().for_each(|link| link.way = Way::Open);
        }
    }
}

impl Server {
    /// The server's clock, in the whole milliseconds in which it keeps expiries.
    fn time(&self, now: Instant) -> Instant {
        const MILLISECOND: u64 = 1_000_000;
        Instant::from_nanos(self.dial.read(now).as_nanos() / MILLISECOND * MILLISECOND)
    }

    fn introduction(&self, time: Instant) -> Introduction {
        let seconds = |moment: Instant| moment.as_nanos() / 1_000_000_000;
        let uptime = seconds(time).saturating_sub(seconds(self.started_at));
        let identity = Identity {
            run_id: format!("process {}", self.boot).into(),
            replication_id: format!("history {}", self.history).into(),
        };
        let uptime = Duration::from_secs(uptime);
        Introduction { identity, uptime, always_master: self.always_master, durable: false }
    }

    /// Whether a command would need room for a new key.
    fn would_set(&mut self, time: Instant, command: &Command) -> bool {
        match command {
            Command::Acquire { key, .. } | Command::Extend { key, heal: true, .. } => {
                self.store.sight(time, key).is_none()
            }
            _ => false,
        }
    }

    /// Remembers a write that came too late to be undone for sure.
    fn note_late(&mut self, command: &Command) {
        if let Command::Acquire { value, .. } | Command::Extend { value, .. } = command {
            self.late.push(value.clone());
        }
    }

    fn old_store(&mut self) -> Store {
        let old = self.copy.clone().unwrap_or_default();
        self.late.extend(old.keys(Instant::from_nanos(0)).map(|(_, value)| value.clone()));
        old
    }
}

fn name(client: ClientIndex) -> String {
    format!("c{}", client + 1)
}

/// Two worlds of one scope that are equal in everything that matters go on alike.
impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let World { now, clients, servers, wires, faults, memory_changed, .. } = self;
        (now, clients, servers, wires, faults, memory_changed).hash(hasher);
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Pass(Span::UntilDue) => f.write_str("until something is due"),
            Step::Pass(Span::Ttl) => f.write_str("a ttl passes"),
            Step::Pass(Span::Micros(micros)) => {
                write!(f, "{:?} pass", Duration::from_micros((*micros).into()))
            }
            Step::Begin { client, .. } => write!(f, "c{} wants the lock", client + 1),
            Step::Wake { client } => write!(f, "c{} is woken", client + 1),
            Step::Take { client } => write!(f, "c{} takes the lock in hand", client + 1),
            Step::Extend { client } => write!(f, "c{} extends by hand", client + 1),
            Step::Release { client } => write!(f, "c{} releases", client + 1),
            Step::Abandon { client } => write!(f, "c{} gives up wanting", client + 1),
            Step::Dial { client, node } => write!(f, "c{} connects to n{}", client + 1, node + 1),
            Step::Break { client, node } => {
                write!(f, "c{} loses its connection to n{}", client + 1, node + 1)
            }
            Step::Arrive(id) => write!(f, "a command of {id} arrives"),
            Step::Hear(id) => write!(f, "an answer is heard, {id}"),
            Step::Lose(id) => write!(f, "the rest of {id} is lost"),
            Step::Fault(fault) => fault.fmt(f),
        }
    }
}

impl fmt::Display for WireId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}-n{}", self.client + 1, self.node + 1)?;
        if self.number > 0 { write!(f, " (connection {})", self.number + 1) } else { Ok(()) }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Sent { client, node, command } => {
                let (what, value) = match command {
                    Command::Acquire { value, .. } => ("SET", Some(value)),
                    Command::Extend { value, .. } => ("EXTEND", Some(value)),
                    Command::Release { value, .. } => ("RELEASE", Some(value)),
                    Command::Inspect { .. } => ("INSPECT", None),
                    Command::Remove { .. } => ("REMOVE", None),
                };
                write!(f, "c{} to n{}: {what}", client + 1, node + 1)?;
                value.map_or(Ok(()), |value| write!(f, " {value:?}"))
            }
            Note::Woken { .. } => f.write_str("woken"),
            Note::Told { client, notice } => {
                let text = format!("{notice:?}");
                write!(f, "c{}: {}", client + 1, text.split([' ', '{']).next().unwrap_or_default())
            }
        }
    }
}
