//! Which worlds go on alike, so that a search need look at one of them only.
//!
//! **Clients are alike, and so are nodes**, where each client makes one claim of one attempt under the same terms, waits for
//! nobody, and all clocks run alike: to exchange two of them in a world, and in everything that happens afterwards, changes no more than names. So a world
//! is read as a table, with a row for each client, a column for each node, and between them what concerns both: the
//! connection, what the claim heard from the node, whether its key stands there. Nothing in it is written with a name: a value
//! is "mine", since a client has only one. Of two tables that differ by the order of rows and columns one is looked at.
//!
//! **What cannot matter any more is forgotten**: keys that have expired; questions and answers that nobody listens to; of a client
//! that is done, everything but what may still change a node; of a node that is down and will have forgotten, what it stored.
//!
//! Neither is taken on trust: [`verify`](crate::sim::search::verify) looks at all worlds of a scope one by one, and at where each
//! step leads from those that are folded into one.

use std::array;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::{FixedState, FoldHasher};

use super::client::{Client, Link, LinkState, Wish};
use super::network::{Reply, Request, Sent, Wire};
use super::server::Server;
use super::{ClientIndex, World};
use crate::protocol::command::{Command, NodeIndex, Value};
use crate::sim::check::Checker;
use crate::sim::mutant::Mutant;
use crate::sim::part::{Print, fingerprint};
use crate::sim::scope::{START, Scope, Weather};

/// Of so many nodes at most a world is folded.
const MOST_NODES: usize = 5;

/// A fingerprint of what concerns no node alone, and of what concerns each.
#[derive(Clone, Copy)]
pub(in crate::sim) struct ByNode {
    all: u64,
    each: [u64; MOST_NODES],
}

/// A fingerprint of a server without what is stored there, and of what is: whose key, and until when.
#[derive(Clone, Copy)]
pub(in crate::sim) struct Shelf {
    all: u64,
    key: Option<(ClientIndex, u64)>,
}

/// Takes the fingerprints of worlds.
pub(in crate::sim) struct Folder {
    /// All orders of the clients.
    orders: Vec<Vec<ClientIndex>>,
    nodes_are_alike: bool,
}

impl Folder {
    /// Tells apart in that scope what must be told apart.
    pub(in crate::sim) fn new(scope: &Scope) -> Self {
        assert!(
            !scope.folds || scope.nodes <= MOST_NODES,
            "a world of more than {MOST_NODES} nodes is not folded"
        );
        let alike = scope.mutant.is_none_or(|mutant| mutant.server_behind(1) == 1);
        // Answers that are known at once are brought in node order. With one such node at a time there is no order.
        let most_away = scope.most_faults.saturating_add(scope.most_breaks);
        Folder { orders: orders(scope.clients), nodes_are_alike: alike && most_away <= 1 }
    }

    /// The same for all worlds that go on alike.
    pub(in crate::sim) fn fingerprint(&self, world: &World, checker: &Checker) -> u64 {
        if !world.scope.folds {
            return fingerprint(&(world, checker));
        }
        let World { now, faults, breaks, memory_changed, .. } = world;
        let rest = fingerprint(&(now, faults, breaks, memory_changed, checker.fence()));
        let table = Table::of(world, checker);
        let all = self.orders.iter().map(|order| table.read(order, self.nodes_are_alike));
        all.min().map_or(rest, |table| fingerprint(&(rest, table)))
    }
}

/// All orders of so many.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![Vec::new()] };
    let put = |order: Vec<usize>| {
        (0..=last).map(move |place| {
            let mut order = order.clone();
            order.insert(place, last);
            order
        })
    };
    orders(last).into_iter().flat_map(put).collect()
}

/// A world without names: a row for each client, a column for each node, and what is between them.
struct Table {
    rows: Vec<u64>,
    columns: Vec<u64>,
    between: Vec<[u64; MOST_NODES]>,
}

impl Table {
    fn of(world: &World, checker: &Checker) -> Table {
        let mut between: Vec<[u64; MOST_NODES]> = Vec::with_capacity(world.clients.len());
        let mut rows = Vec::with_capacity(world.clients.len());
        for (index, client) in world.clients.iter().enumerate() {
            let ByNode { all, each } = client.print();
            let mut hasher = hasher();
            all.hash(&mut hasher);
            if !world.is_done(client) {
                checker.hash_of(index, &mut hasher);
            }
            rows.push(hasher.finish());
            between.push(each);
            checker.raised_at(index).iter().for_each(|node| mix(&mut between[index][*node], 0));
        }
        let columns = world.servers.iter().enumerate().map(|(node, server)| {
            let Shelf { all, key } = server.print();
            if let Some((owner, key)) = key {
                mix(&mut between[owner][node], key);
            }
            all
        });
        let columns = columns.collect();
        // Connections of one client to one node stand in the order in which they were made.
        for wire in &world.wires {
            mix(&mut between[wire.id.client][wire.id.node], wire.print());
        }
        Table { rows, columns, between }
    }

    /// With the clients in that order, and the nodes in any, if they are alike.
    fn read(&self, order: &[ClientIndex], nodes_are_alike: bool) -> u64 {
        let column = |node: usize| {
            let mut hasher = hasher();
            self.columns[node].hash(&mut hasher);
            order.iter().for_each(|client| self.between[*client][node].hash(&mut hasher));
            hasher.finish()
        };
        let mut columns: [u64; MOST_NODES] =
            array::from_fn(|node| if node < self.columns.len() { column(node) } else { 0 });
        if nodes_are_alike {
            columns.sort_unstable();
        }
        let mut hasher = hasher();
        order.iter().for_each(|client| self.rows[*client].hash(&mut hasher));
        columns.hash(&mut hasher);
        hasher.finish()
    }
}

fn hasher() -> FoldHasher<'static> {
    FixedState::with_seed(0).build_hasher()
}

fn mix(into: &mut u64, more: u64) {
    let mut hasher = hasher();
    (*into, more).hash(&mut hasher);
    *into = hasher.finish();
}

impl Print for Client {
    type Print = ByNode;

    fn take_print(&self) -> ByNode {
        let mut all = hasher();
        let mut each: [_; MOST_NODES] = array::from_fn(|_| hasher());
        let Client {
            waiter: _,
            dial,
            life,
            wish,
            ending,
            begun,
            attempts,
            others_wait_until,
            links,
            strict,
            quirk,
        } = self;
        (dial, life, begun, wish.is_some(), ending.len(), others_wait_until).hash(&mut all);
        strict.iter().for_each(|strict| strict.hash_by_node(&mut all, &mut each));
        for wish in wish.iter().chain(ending) {
            let Wish { number, claim, latest, won, in_hand, extensions, sleeps, owes, is_given_back, .. } =
                wish;
            (number, latest, won, in_hand, extensions, sleeps, owes, is_given_back).hash(&mut all);
            claim.hash_by_node(&mut all, &mut each);
        }
        if wish.is_some() || !ending.is_empty() {
            attempts.hash(&mut all);
            quirk.hash_by_node(&mut all, &mut each);
        }
        for (link, node) in links.iter().zip(&mut each) {
            let state = match link.state {
                LinkState::Down => 0_u8,
                LinkState::Dialling(_) => 1,
                LinkState::Up(_) => 2,
            };
            (state, link.counts_from, &link.admission, link.way).hash(node);
            link.owed.hash_whosever(node);
            link.again.iter().for_each(|command| hash_command(command, node));
        }
        ByNode { all: all.finish(), each: each.map(|node| node.finish()) }
    }
}

impl Print for Server {
    type Print = Shelf;

    fn take_print(&self) -> Shelf {
        let mut all = hasher();
        let Server { dial, up, stalled, full, boot, history, always_master, started_at, copy, store, .. } =
            self;
        (dial, up, stalled, full, boot, history).hash(&mut all);
        (always_master, started_at, copy).hash(&mut all);
        store.hash_strict_part(&mut all);
        let key = store
            .entries()
            .next()
            .map(|(value, until)| (owner(value).expect("the value of a client"), fingerprint(&until)));
        Shelf { all: all.finish(), key }
    }
}

impl Print for Wire {
    type Print = u64;

    fn take_print(&self) -> u64 {
        let mut hasher = hasher();
        let Wire { id: _, boot, broken, requests, open, answers } = self;
        (boot, broken, requests.len(), open.len(), answers.len()).hash(&mut hasher);
        for request in requests {
            match request {
                Request::Hello => 0_u8.hash(&mut hasher),
                Request::Command(command) => hash_command(command, &mut hasher),
            }
        }
        for Sent { command, asked, since } in open {
            hash_command(command, &mut hasher);
            (asked, since).hash(&mut hasher);
        }
        for reply in answers {
            match reply {
                Reply::Hello(introduction) => (0_u8, introduction).hash(&mut hasher),
                Reply::Answer(answer) => (1_u8, answer).hash(&mut hasher),
                Reply::Message => 2_u8.hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

fn owe_nothing(command: &mut Command) {
    if let Command::Release { owed_for, .. } = command {
        *owed_for = Duration::ZERO;
    }
}

fn owner(value: &Value) -> Option<ClientIndex> {
    let number: usize = value.holder()?.strip_prefix('c')?.parse().ok()?;
    number.checked_sub(1)
}

/// A command of a client that has one value.
fn hash_command(command: &Command, hasher: &mut impl Hasher) {
    match command {
        Command::Acquire { ttl, .. } => (1_u8, ttl).hash(hasher),
        Command::Extend { ttl, heal, rules, .. } => (2_u8, ttl, heal, rules).hash(hasher),
        Command::Release { linger, owed_for, wake, rules, .. } => {
            (3_u8, linger, owed_for, wake, rules).hash(hasher);
        }
        Command::Inspect { .. } | Command::Remove { .. } => 4_u8.hash(hasher),
        Command::Enlist { waited, .. } => (5_u8, waited).hash(hasher),
        Command::Delist { .. } => 6_u8.hash(hasher),
        Command::Propose { ttl, fence, pact, .. } => (7_u8, ttl, fence, pact).hash(hasher),
        Command::Raise { fence, pact, .. } => (8_u8, fence, pact).hash(hasher),
        Command::Observe { nonce, pact, .. } => (9_u8, nonce, pact).hash(hasher),
        Command::Enrol { nonce, anew, floor, pact, .. } => (10_u8, nonce, anew, floor, pact).hash(hasher),
        Command::Proclaim { .. } | Command::Follow { .. } => unreachable!("no claim's command"),
    }
}

impl World {
    /// The same in a scope that folds.
    pub(in crate::sim) fn folded(&self, scope: &Arc<Scope>) -> World {
        let mut world = World { scope: scope.clone(), ..self.clone() };
        world.forget();
        world
    }

    /// Forgets what cannot matter any more.
    pub(in crate::sim) fn forget(&mut self) {
        let now = self.now;
        let restarts_are_empty = self.scope.restarts_are_empty();
        for server in &mut self.servers {
            let time = server.time(now);
            if !server.up && restarts_are_empty && server.store.entries().next().is_some() {
                server.store = server.empty_store();
            }
            if server.store.entries().any(|(_, until)| time >= until) {
                server.store.forget_what_is_over(time);
            }
        }
        for client in 0..self.clients.len() {
            self.forget_a_claim(client);
        }
        for place in 0..self.wires.len() {
            self.pass_over_what_nobody_hears(self.wires[place].id);
            self.forget_questions(place);
            self.forget_who_asked(place);
        }
        self.forget_what_is_over();
        for client in 0..self.clients.len() {
            (0..self.servers.len()).for_each(|node| self.forget_a_pair(client, node));
        }
    }

    /// Where nobody is woken, nothing follows from a lock that is lost and released.
    fn forget_a_claim(&mut self, client: ClientIndex) {
        let ends = |wish: &Wish| wish.claim.state() == "Lost, released";
        let Weather { wake, take, .. } = self.scope.weather;
        if wake == 0 && take == 0 && self.clients[client].wish.as_ref().is_some_and(ends) {
            self.clients[client].wish = None;
        }
    }

    /// Of a command of a client that is done nobody waits for an answer; where no connection breaks, nothing is ever owed.
    fn forget_who_asked(&mut self, place: usize) {
        let wire = &self.wires[place];
        let lasts = self.scope.nothing_breaks();
        let open = wire.open.iter().any(|sent| sent.asked.is_some() || lasts && sent.since > START);
        if open && self.is_done(&self.clients[wire.id.client]) {
            let wire = &mut *self.wires[place];
            for sent in &mut wire.open {
                sent.asked = None;
                if lasts {
                    sent.since = START;
                    owe_nothing(&mut sent.command);
                }
            }
            if lasts {
                wire.commands_mut().for_each(owe_nothing);
            }
        }
    }

    /// A look that nobody waits for changes nothing, whether or not it arrives.
    fn forget_questions(&mut self, place: usize) {
        let wire = &self.wires[place];
        let answered = wire.answers.len();
        let is_look = |command: &Command| matches!(command, Command::Inspect { .. });
        if !wire.commands().any(is_look) && !wire.open.iter().any(|sent| is_look(&sent.command)) {
            return;
        }
        let idle = |sent: &Sent| is_look(&sent.command) && !self.is_awaited(wire.id.client, sent);
        let sent: Vec<bool> =
            wire.open.iter().enumerate().map(|(at, sent)| at >= answered && idle(sent)).collect();
        let is_idle = |request: usize, command: &Command| match wire.broken {
            true => is_look(command),
            false => sent.get(answered + request).is_some_and(|idle| *idle),
        };
        let requests = wire.requests.iter().enumerate();
        let requests: Vec<bool> = requests
            .map(|(at, request)| matches!(request, Request::Command(command) if is_idle(at, command)))
            .collect();
        if sent.iter().chain(&requests).any(|idle| *idle) {
            let wire = &mut *self.wires[place];
            let (mut sent, mut requests) = (sent.into_iter(), requests.into_iter());
            wire.open.retain(|_| !sent.next().unwrap_or_default());
            wire.requests.retain(|_| !requests.next().unwrap_or_default());
        }
    }

    /// Forgets what is between a client and a node if nothing comes of it.
    fn forget_a_pair(&mut self, client: ClientIndex, node: NodeIndex) {
        if !self.is_over_between(client, node) {
            return;
        }
        let link = &self.clients[client].links[node];
        if link.state != LinkState::Down || link.wires > 0 || link.is_needed() {
            self.clients[client].links[node] = Link::new(&self.scope);
            self.wires.retain(|wire| wire.id.client != client || wire.id.node != node);
        }
    }

    /// Whether a client is done and can change nothing on a node any more, nor be asked to.
    pub(super) fn is_over_between(&self, client: ClientIndex, node: NodeIndex) -> bool {
        let state = &self.clients[client];
        if !self.is_done(state) || self.scope.mutant.is_some_and(Mutant::changes_nodes) {
            return false;
        }
        let link = &state.links[node];
        let wires = || self.wires.iter().filter(|wire| wire.id.client == client && wire.id.node == node);
        let under_way = || wires().flat_map(|wire| wire.commands());
        let writes = |command: &Command| {
            matches!(command, Command::Acquire { .. } | Command::Propose { .. } | Command::Extend { .. })
        };
        let releases = |command: &Command| matches!(command, Command::Release { .. });
        let may_write = under_way().any(writes) || !link.again.is_empty();
        let may_release = under_way().any(releases)
            || wires().flat_map(|wire| &wire.open).any(|sent| releases(&sent.command))
            || !link.owed.has_nothing();
        let server = self.server(node);
        let mut standing = server.store.keys(server.time(self.now));
        let may_stand = server.copy.is_some() || standing.any(|(_, value)| owner(value) == Some(client));
        !(may_write || may_release && may_stand)
    }
}
