//! Clients, nodes, clocks and the network between them, one step at a time. The claims are those that run in production, and so
//! are the store, the admission and the memory of owed releases; what is made up here is only the world around them.
//!
//! Nothing in it is random: [`offers`](World::offers) lists what may happen next, and [`perform`](World::perform) makes it happen.
//! Time passes only by [`Step::Pass`]; everything else happens in no time, so any delay is a matter of what is chosen when.

mod client;
mod fold;
mod network;
mod offers;
mod server;
mod step;
mod strict;

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use self::client::{Client, Life, LinkState};
pub(super) use self::fold::Folder;
use self::network::Wire;
use self::server::Server;
pub use self::step::{ClientIndex, Note, Proof, Span, Step, WireId};
use super::mutant::Mutant;
use super::part::Part;
use super::scope::{START, Scope};
use crate::protocol::claim::{Claim, Event, Phase};
use crate::protocol::command::{Key, NodeIndex, Value};
use crate::protocol::time::Instant;

/// The whole world at one moment.
#[derive(Clone)]
pub struct World {
    scope: Arc<Scope>,
    now: Instant,
    clients: Vec<Part<Client>>,
    servers: Vec<Part<Server>>,
    wires: Vec<Part<Wire>>,
    /// Faults so far, without those that mend, and connections that broke for no reason.
    faults: u32,
    breaks: u32,
    /// Whether a key may have vanished, or come back, in another way than the protocol's.
    memory_changed: bool,
    notes: Vec<Note>,
}

impl World {
    /// Everybody is there, connected, and nothing has happened.
    pub fn new(scope: Arc<Scope>) -> World {
        let mut world = World {
            now: START,
            clients: (0..scope.clients).map(|client| Part::new(Client::new(&scope, client))).collect(),
            servers: (0..scope.nodes).map(|node| Part::new(Server::new(&scope, node))).collect(),
            wires: Vec::new(),
            faults: 0,
            breaks: 0,
            memory_changed: false,
            notes: Vec::new(),
            scope,
        };
        if !world.scope.strangers {
            for (client, node) in world.pairs() {
                world.dial(client, node);
                let Some(id) = world.wires.last().map(|wire| wire.id) else { continue };
                world.arrive(id);
                world.hear(id);
                // In which the client asks whether the node counts.
                world.arrive(id);
                world.hear(id);
            }
        }
        world
    }

    /// Makes a step happen.
    pub fn perform(&mut self, step: Step) {
        self.happen(step);
        if self.scope.folds {
            self.forget();
        }
    }

    fn happen(&mut self, step: Step) {
        self.notes.clear();
        match step {
            Step::Pass(span) => self.now = self.after(span),
            Step::Begin { client, wish } => self.begin(client, wish),
            Step::Wake { client } => {
                self.tell(client, &Event::Tick);
                self.see_to_what_is_due(client);
                if !self.scope.mutant.is_some_and(Mutant::oversleeps) {
                    self.notes.push(Note::Woken { client });
                }
            }
            Step::Take { client } => self.take(client),
            Step::Extend { client } => self.extend(client),
            Step::Alarm { client } => self.alarm(client),
            Step::Verify { client } => self.verify(client),
            Step::Release { client } => self.tell(client, &Event::Release),
            Step::HandOver { client } => self.hand_over(client),
            Step::Abandon { client } => self.tell(client, &Event::Abandon),
            Step::Dial { client, node } => self.dial(client, node),
            Step::Break { client, node } => {
                self.breaks += u32::from(!self.is_stranded(client, node));
                self.break_link(client, node);
            }
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

    /// Until when a client believes that it holds, on its own clock; `None` if it does not hold.
    pub fn holds_until(&self, client: ClientIndex) -> Option<Instant> {
        let Client { wish, quirk, life, .. } = &*self.clients[client];
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

    /// By when a client's claim is to have given up, or to have told its loss if nothing else comes, on the client's clock.
    pub fn ends_by(&self, client: ClientIndex) -> Option<Instant> {
        let wish = self.clients[client].wish.as_ref()?;
        match wish.claim.phase() {
            Phase::Claiming => Some(wish.latest),
            Phase::Held => Some(wish.claim.valid_until()? - self.scope.wishes[0].terms.margin),
            Phase::Lost | Phase::Over => None,
        }
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
        self.server(node).up && self.local(client) >= self.clients[client].links[node].counts_from
    }

    /// Whether a node runs.
    pub fn is_up(&self, node: NodeIndex) -> bool {
        self.server(node).up
    }

    /// Whether a node runs, and that client still waits until it votes.
    pub fn waits(&self, client: ClientIndex, node: NodeIndex) -> bool {
        let counts_from = self.clients[client].links[node].counts_from;
        self.is_up(node) && !self.votes(client, node) && counts_from < Instant::NEVER
    }

    /// Whether a node does nothing for a while.
    pub fn is_stalled(&self, node: NodeIndex) -> bool {
        self.server(node).stalled
    }

    /// Whether a node has no room for new keys.
    pub fn is_full(&self, node: NodeIndex) -> bool {
        self.server(node).full
    }

    /// Whether a client's process stands still.
    pub fn is_paused(&self, client: ClientIndex) -> bool {
        matches!(self.clients[client].life, Life::Paused(_))
    }

    /// When the clock of a client will show a moment, in the world's time.
    pub fn when(&self, client: ClientIndex, moment: Instant) -> Instant {
        self.clients[client].dial.when(moment)
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
        let idle = |client: &Part<Client>| {
            client.life == Life::Dead
                || (client.wish.is_none()
                    && client.enrols_at() == Instant::NEVER
                    && client.ending.iter().all(|wish| wish.claim.wake_at() == Instant::NEVER))
        };
        self.clients.iter().all(idle)
            && self.wires.iter().all(|wire| wire.requests.is_empty() && wire.answers.is_empty())
    }

    /// Whether everybody who is alive is connected to every node that runs.
    pub fn is_connected(&self) -> bool {
        let connected = |client: usize, node: usize| {
            let link = &self.clients[client].links[node];
            matches!(link.state, LinkState::Up(_)) && !self.is_stranded(client, node)
        };
        self.pairs()
            .into_iter()
            .all(|(client, node)| !self.is_alive(client) || !self.server(node).up || connected(client, node))
    }

    pub(super) fn key() -> Key {
        Key::of_lock("redlock", b"resource")
    }

    fn pairs(&self) -> Vec<(ClientIndex, NodeIndex)> {
        let nodes = self.servers.len();
        (0..self.clients.len()).flat_map(|client| (0..nodes).map(move |node| (client, node))).collect()
    }
}

/// Two worlds of one scope that are equal in everything that matters go on alike.
impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let World { now, clients, servers, wires, faults, breaks, memory_changed, .. } = self;
        (now, clients, servers, wires, faults, breaks, memory_changed).hash(hasher);
    }
}
