//! What may happen next, and how likely it is.

use std::time::Duration;

use super::client::{Client, Life, LinkState, Way};
use super::network::Wire;
use super::{ClientIndex, Span, Step, WireId, World};
use crate::protocol::claim::{Claim, Phase};
use crate::protocol::command::NodeIndex;
use crate::protocol::time::Instant;
use crate::sim::choose::Offer;
use crate::sim::fault::{Fault, FaultClass};
use crate::sim::scope::Weather;

impl World {
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
        let spent = self.faults >= self.scope.most_faults;
        for &(class, weight) in &weather.faults {
            self.faults_of(class, &mut |fault: Fault| {
                let beginning = if spent { 0 } else { weight };
                offer(if fault.mends() { weather.mending } else { beginning }, Step::Fault(fault));
            });
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
                if now >= self.wakes_at(&wish.claim) {
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
                    if phase == Phase::Held && client.begun < self.scope.most_claims {
                        offer(weather.hand_over, Step::HandOver { client: index });
                    }
                    if phase == Phase::Held && wish.extensions < self.scope.most_extensions {
                        offer(weather.extend, Step::Extend { client: index });
                        offer(weather.alarm, Step::Alarm { client: index });
                        offer(weather.verify, Step::Verify { client: index });
                    }
                }
            }
        }
        let ends = client.ending.iter().any(|wish| now >= wish.claim.wake_at());
        let is_awake = client.wish.as_ref().is_some_and(|wish| now >= self.wakes_at(&wish.claim));
        if client.wish.is_none() && ends || !is_awake && now >= client.enrols_at() {
            offer(weather.wake, Step::Wake { client: index });
        }
        for (node, link) in client.links.iter().enumerate() {
            match link.state {
                // Connections over which nothing comes any more.
                _ if self.is_over_between(index, node) => {}
                LinkState::Down if self.server(node).up => {
                    offer(weather.dial, Step::Dial { client: index, node });
                }
                LinkState::Down => {}
                LinkState::Dialling(_) | LinkState::Up(_) => {
                    offer(self.break_weight(index, node), Step::Break { client: index, node });
                }
            }
        }
    }

    /// A connection that leads nowhere breaks soon; another breaks for no reason, as long as not too much is under way.
    fn break_weight(&self, client: ClientIndex, node: NodeIndex) -> u32 {
        const MOST_UNDER_WAY: usize = 3;
        let under_way = self.wires.iter().filter(|wire| wire.broken && wire.id.client == client).count();
        if self.is_stranded(client, node) {
            let Weather { wake, mending, .. } = self.scope.weather;
            if wake > 0 { wake } else { mending }
        } else if under_way >= MOST_UNDER_WAY || self.breaks >= self.scope.most_breaks {
            0
        } else {
            self.scope.weather.breaks
        }
    }

    /// Clients are alike: that they begin in their order loses no history, and spares a search the same ones under other names.
    fn may_begin(&self, client: ClientIndex) -> bool {
        !self.scope.in_order || client == 0 || self.clients[client - 1].begun > 0
    }

    fn offer_wire(&self, wire: &Wire, offer: &mut impl FnMut(u32, Step)) {
        let weather = &self.scope.weather;
        let WireId { client, node, .. } = wire.id;
        let (server, way) = (self.server(node), self.clients[client].links[node].way);
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

    fn faults_of(&self, class: FaultClass, offer: &mut dyn FnMut(Fault)) {
        let clients = || self.clients.iter().enumerate();
        for (node, server) in self.servers.iter().enumerate() {
            match class {
                FaultClass::Crashes if server.up => offer(Fault::Crash(node)),
                FaultClass::Crashes => offer(Fault::RestartWithMemory(node)),
                FaultClass::Amnesia if server.up => offer(Fault::Crash(node)),
                FaultClass::Amnesia => offer(Fault::RestartEmpty(node)),
                FaultClass::Staleness if server.up => {
                    offer(Fault::Copy(node));
                    if server.copy.is_some() {
                        offer(Fault::Promote(node));
                    }
                }
                FaultClass::Staleness if server.copy.is_some() => offer(Fault::RestartStale(node)),
                FaultClass::Replacement if server.up => offer(Fault::Replace(node)),
                FaultClass::Stalls if server.stalled => offer(Fault::Resume(node)),
                FaultClass::Stalls => offer(Fault::Stall(node)),
                FaultClass::Fullness if server.full => offer(Fault::Drain(node)),
                FaultClass::Fullness => offer(Fault::Fill(node)),
                FaultClass::Eviction => offer(Fault::Evict(node)),
                FaultClass::Flushes => offer(Fault::Flush(node)),
                FaultClass::Jumps => {
                    offer(Fault::JumpForward(node));
                    offer(Fault::JumpBack(node));
                }
                FaultClass::Cuts => clients().for_each(|(index, client)| match client.links[node].way {
                    Way::Open => {
                        offer(Fault::Cut(index, node));
                        offer(Fault::Mute(index, node));
                    }
                    Way::There | Way::Shut => offer(Fault::Mend(index, node)),
                }),
                _ => {}
            }
        }
        match class {
            FaultClass::Deletions => offer(Fault::Delete),
            FaultClass::Pauses => clients().for_each(|(index, client)| match client.life {
                Life::Running => offer(Fault::Pause(index)),
                Life::Paused(_) => offer(Fault::Continue(index)),
                Life::Dead => {}
            }),
            FaultClass::Deaths => {
                clients()
                    .filter(|(_, client)| client.life != Life::Dead)
                    .for_each(|(index, _)| offer(Fault::Die(index)));
            }
            FaultClass::Freezes => clients()
                .filter(|(_, client)| client.life == Life::Running)
                .for_each(|(index, _)| offer(Fault::Freeze(index))),
            _ => {}
        }
    }

    /// When a claim is woken by its client.
    fn wakes_at(&self, claim: &Claim) -> Instant {
        match self.scope.mutant {
            Some(mutant) if mutant.waits_for_ever(claim) => Instant::NEVER,
            _ => claim.wake_at(),
        }
    }

    pub(super) fn after(&self, span: Span) -> Instant {
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
                if self.scope.weather.wake > 0 {
                    consider(client.dial.when(self.wakes_at(&wish.claim)));
                }
                if let Some(valid_until) = wish.claim.valid_until() {
                    consider(client.dial.when(valid_until));
                }
            }
            consider(client.dial.when(client.enrols_at()));
            // Who will not ask any more waits for nobody's vote.
            let links = client.links.iter().filter(|_| !self.is_done(client));
            links.for_each(|link| consider(client.dial.when(link.counts_from)));
        }
        for server in self.servers.iter().filter(|server| server.up) {
            for expires_at in server.store.ends() {
                consider(server.dial.when(expires_at));
            }
        }
        (next < Instant::NEVER).then_some(next)
    }
}
