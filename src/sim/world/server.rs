//! Nodes, and everything that goes wrong.

use std::time::Duration;

use super::client::{Life, LinkState, Way};
use super::{ClientIndex, World};
use crate::protocol::admission::{Identity, Introduction};
use crate::protocol::command::{Command, NodeIndex, Value};
use crate::protocol::fence::Fence;
use crate::protocol::marker::Process;
use crate::protocol::store::{Precision, Store};
use crate::protocol::time::Instant;
use crate::sim::clock::Dial;
use crate::sim::fault::Fault;
use crate::sim::scope::{START, Scope, Sort};

#[derive(Clone, Hash)]
pub(super) struct Server {
    pub(super) precision: Precision,
    pub(super) store: Store,
    pub(super) dial: Dial,
    pub(super) up: bool,
    pub(super) stalled: bool,
    pub(super) full: bool,
    /// Which process answers, which history of writes it continues, and whether it was always a master.
    pub(super) boot: u32,
    pub(super) history: u32,
    pub(super) always_master: bool,
    /// By its own clock.
    pub(super) started_at: Instant,
    pub(super) copy: Option<Store>,
    /// Values that came too late to be undone for sure, or out of an old copy.
    pub(super) late: Vec<Value>,
}

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        self.faults += u32::from(!fault.mends());
        self.memory_changed |= fault.changes_memory();
        match fault {
            Fault::Crash(node) => self.crash(node),
            Fault::RestartWithMemory(node) => self.restart(node, |server| server.store.clone()),
            Fault::RestartEmpty(node) => self.restart(node, Server::empty_store),
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
                self.restart(node, Server::empty_store);
                let server = &mut self.servers[node];
                server.started_at = Instant::from_nanos(0);
                server.history += 1;
            }
            Fault::Stall(node) => self.servers[node].stalled = true,
            Fault::Resume(node) => self.servers[node].stalled = false,
            Fault::Fill(node) => self.servers[node].full = true,
            Fault::Drain(node) => self.servers[node].full = false,
            Fault::Cut(client, node) => self.clients[client].links[node].way = Way::Shut,
            Fault::Mute(client, node) => self.clients[client].links[node].way = Way::There,
            Fault::Mend(client, node) => self.clients[client].links[node].way = Way::Open,
            Fault::Pause(client) => self.clients[client].life = Life::Paused(self.now),
            Fault::Continue(client) => self.go_on(client),
            Fault::Die(client) => self.die(client),
            Fault::Evict(node) => {
                let time = self.servers[node].time(self.now);
                self.servers[node].store.remove(time, &Self::key());
            }
            Fault::Flush(node) => self.servers[node].store = self.servers[node].empty_store(),
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

    pub(super) fn crash(&mut self, node: NodeIndex) {
        let server = &mut self.servers[node];
        (server.up, server.stalled) = (false, false);
        server.boot += 1;
        // What was answered may still be heard; what had not arrived is lost.
        self.wires.iter_mut().filter(|wire| wire.id.node == node).for_each(|wire| wire.requests.clear());
        self.forget_what_is_over();
    }

    pub(super) fn restart(&mut self, node: NodeIndex, memory: impl FnOnce(&mut Server) -> Store) {
        let server = &mut self.servers[node];
        server.store = memory(server);
        server.started_at = server.time(self.now);
        (server.up, server.always_master) = (true, true);
    }

    pub(super) fn go_on(&mut self, client: ClientIndex) {
        let state = &mut self.clients[client];
        if let Life::Paused(since) = state.life {
            state.life = Life::Running;
            if self.scope.mutant.is_some_and(|mutant| mutant.clock_stops_in_a_pause()) {
                state.dial.set_back(self.now.since(since));
            }
        }
    }

    pub(super) fn die(&mut self, client: ClientIndex) {
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

    /// Ends all faults that can be ended, and an operator takes it upon himself that nodes count although too few others do: everybody who is alive is up, reachable and connected again before long.
    pub fn mend(&mut self) {
        let nodes = 0..self.servers.len();
        for node in nodes.filter(|node| !self.is_up(*node)).collect::<Vec<_>>() {
            self.fault(Fault::RestartEmpty(node));
        }
        self.servers.iter_mut().for_each(|server| (server.stalled, server.full) = (false, false));
        for client in 0..self.clients.len() {
            self.go_on(client);
            self.clients[client].links.iter_mut().for_each(|link| link.way = Way::Open);
            self.look_at_all(client);
        }
    }
}

impl Server {
    /// A server that has run for long, and is empty.
    pub(super) fn new(scope: &Scope, node: NodeIndex) -> Self {
        let mut store = Store::with_precision(scope.precision);
        if let Sort::Fenced { high_waters, .. } = &scope.sort {
            let high_water = Fence::new(high_waters.get(node).copied().unwrap_or(0));
            store.begin_to_count(&World::key(), &process(0), high_water, scope.pact());
        }
        Server {
            precision: scope.precision,
            store,
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
        }
    }

    /// The server's clock.
    pub(super) fn time(&self, now: Instant) -> Instant {
        self.dial.read(now)
    }

    pub(super) fn introduction(&self, time: Instant) -> Introduction {
        let seconds = |moment: Instant| moment.as_nanos() / 1_000_000_000;
        let uptime = seconds(time).saturating_sub(seconds(self.started_at));
        let identity = Identity {
            run_id: process(self.boot).0,
            replication_id: format!("history {}", self.history).into(),
        };
        let uptime = Duration::from_secs(uptime);
        Introduction { identity, uptime, always_master: self.always_master }
    }

    /// Whether a command would need room for a new key.
    pub(super) fn would_set(&mut self, time: Instant, command: &Command) -> bool {
        match command {
            Command::Acquire { key, .. }
            | Command::Propose { key, .. }
            | Command::Extend { key, heal: true, .. } => self.store.sight(time, key).is_none(),
            _ => false,
        }
    }

    /// Remembers a write that came too late to be undone for sure.
    pub(super) fn note_late(&mut self, command: &Command) {
        if let Command::Acquire { value, .. }
        | Command::Propose { value, .. }
        | Command::Extend { value, .. } = command
        {
            self.late.push(value.clone());
        }
    }

    pub(super) fn empty_store(&mut self) -> Store {
        Store::with_precision(self.precision)
    }

    pub(super) fn old_store(&mut self) -> Store {
        let old = self.copy.clone().unwrap_or_else(|| self.empty_store());
        self.late.extend(old.keys(Instant::from_nanos(0)).map(|(_, value)| value.clone()));
        old
    }
}

/// The name of a process.
pub(super) fn process(boot: u32) -> Process {
    Process(format!("process {boot}").into())
}
