//! Sees to it that the nodes count for the strict kinds of locks: performs what
//! [`enrolment`](crate::protocol::enrolment) decides, for one namespace of one client, and knows how far its fences are.

use std::sync::{Arc, Mutex, Weak};

use tokio::sync::Notify;

use crate::clock::{Clock, sleep_until};
use crate::driver::{self, Doors};
use crate::node::{Listener, Reply};
use crate::protocol::claim::{Action, Kind};
use crate::protocol::command::{Answer, Command, Key, NodeIndex, Refusal, Unknown};
use crate::protocol::enrolment::{Enrolment, Reseed};
use crate::protocol::fence::{Fence, Proposer, above_the_clock};
use crate::protocol::marker::{Nonce, Pact};
use crate::protocol::round::{Round, RoundId};
use crate::protocol::settings::Terms;
use crate::protocol::time::Instant;
use crate::sync::lock;

/// One namespace, as one client sees to it.
pub(crate) struct Registrar {
    /// Not for good: they know him.
    doors: Weak<Doors>,
    /// Any key of the namespace: its marker is beside it.
    key: Key,
    pact: Pact,
    terms: Arc<Terms>,
    stage: Mutex<Stage>,
    /// Rung when the moment may have changed at which something is to be done.
    alarm: Arc<Notify>,
}

struct Stage {
    enrolment: Enrolment,
    proposer: Proposer,
    /// Which nodes the log calls ready, and which it says stay out.
    told: Box<[Told]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    is_ready: bool,
    lacks_others: bool,
}

impl Registrar {
    /// One who knows nothing yet.
    pub(crate) fn new(
        doors: &Arc<Doors>,
        namespace: &str,
        (terms, reseed): (&Arc<Terms>, Reseed),
    ) -> Arc<Self> {
        let pact = Pact::of(&terms.nodes, terms.quorum, terms.max_ttl);
        let key = Key::of_lock(namespace, b"");
        let rules = (terms.quorum, pact, terms.drift);
        let nonces = doors.entropy.draw().lease_id.0;
        let mut enrolment = Enrolment::new(key.clone(), rules, terms.node_timeout, nonces);
        enrolment.reseed(reseed);
        let proposer = Proposer::new(doors.clock.wall_clock_at_origin());
        let told = vec![Told::default(); terms.quorum.nodes()].into();
        Arc::new(Registrar {
            doors: Arc::downgrade(doors),
            key,
            pact,
            terms: terms.clone(),
            stage: Mutex::new(Stage { enrolment, proposer, told }),
            alarm: Arc::default(),
        })
    }

    /// Looks at all nodes, and from now on at whatever is due.
    pub(crate) fn begin(self: &Arc<Self>, doors: &Doors) {
        doors.runtime.spawn(keep_looking(Arc::downgrade(self), doors.clock.clone()));
        self.look_at_all();
    }

    /// What a claim of this namespace is for that is made now.
    pub(crate) fn kind(&self) -> Kind {
        Kind::Fenced(self.pact, Box::new(lock(&self.stage).proposer.clone()))
    }

    /// A fence was accepted: whatever is proposed from now on is above it.
    pub(crate) fn meet(&self, now: Instant, fence: Fence) {
        lock(&self.stage).proposer.meet(now, fence);
    }

    /// A node was connected.
    pub(crate) fn look(self: &Arc<Self>, node: NodeIndex) {
        self.act(|enrolment, _, out| enrolment.look(node, out));
    }

    fn look_at_all(self: &Arc<Self>) {
        (0..self.terms.quorum.nodes()).for_each(|node| self.look(node));
    }

    /// Takes in what a node says to a claim. It has judged itself; how long it will be until it counts is known here.
    pub(crate) fn hear_vote(self: &Arc<Self>, now: Instant, node: NodeIndex, answer: Answer) -> Answer {
        if let Some(counter) = answer.said().counter() {
            self.meet(now, counter);
        }
        if !matches!(answer, Answer::Waiting { .. }) {
            return answer;
        }
        self.act(|enrolment, _, out| enrolment.notice(node, out));
        let counts_from = lock(&self.stage).enrolment.counts_from(node);
        answer.heard(now, counts_from)
    }

    fn act(self: &Arc<Self>, act: impl FnOnce(&mut Enrolment, Instant, &mut Vec<Action>)) {
        let Some(doors) = self.doors.upgrade() else { return };
        let mut actions = Vec::new();
        {
            let mut stage = lock(&self.stage);
            act(&mut stage.enrolment, doors.clock.now(), &mut actions);
            self.tell(&mut stage, &actions);
        }
        self.alarm.notify_one();
        // Not under the lock: a node may answer at once.
        for action in actions {
            if let Action::Send { node, round, command } = action {
                doors.nodes[node].submit(command, Reply::new(self.clone(), round, node));
            }
        }
    }

    /// The log: which nodes count.
    fn tell(&self, Stage { enrolment, told, .. }: &mut Stage, actions: &[Action]) {
        let namespace = String::from_utf8_lossy(self.key.namespace());
        for (node, told) in told.iter_mut().enumerate() {
            let name = &self.terms.nodes[node];
            let now = Told { is_ready: enrolment.counts(node), lacks_others: enrolment.lacks_others(node) };
            let before = std::mem::replace(told, now);
            if now.lacks_others && !before.lacks_others {
                tracing::warn!(
                    node = %name,
                    %namespace,
                    "stays out for fences: too few of the other nodes remember them (see fences_after_loss)"
                );
            }
            match (before.is_ready, now.is_ready) {
                (false, true) => tracing::debug!(node = %name, %namespace, "counts for fences"),
                (true, false) => tracing::warn!(
                    node = %name,
                    %namespace,
                    "does not count for fences any more: it may have forgotten some"
                ),
                _ => {}
            }
        }
        for action in actions {
            if let Action::Send { node, command: Command::Enrol { floor, .. }, .. } = action
                && enrolment.goes_by_the_clock(*node)
            {
                let name = &self.terms.nodes[*node];
                tracing::warn!(
                    node = %name,
                    %namespace,
                    %floor,
                    "too few nodes remember the fences: from now on their order rests on the wall clock"
                );
            }
        }
    }

    /// Somebody's word that nothing is held in this namespace: nodes that do not count do so at once.
    pub(crate) async fn bootstrap(self: &Arc<Self>, doors: &Doors) -> Round {
        let (key, pact, quorum) = (self.key.clone(), self.pact, self.terms.quorum);
        let nonce = Nonce(doors.entropy.draw().lease_id.0);
        let observe = Command::Observe { key: key.clone(), nonce, pact, overrules: false };
        let observed = driver::survey(doors, &self.terms, &observe).await;
        if !is_answered(&observed, &self.terms) {
            return observed;
        }
        let known = observed.answers().flatten().filter_map(Answer::counter).fold(Fence::NONE, Fence::max);
        let remember = observed.count(|answer| matches!(answer, Answer::Enrolled(_)));
        let floor = if remember > quorum.spare() {
            known
        } else {
            known.max(above_the_clock(doors.clock.wall_clock_at_origin(), doors.clock.now()))
        };
        let anew = Nonce(doors.entropy.draw().lease_id.0);
        let enrol = |node| match observed.answer(node) {
            Some(Answer::Observed(nonce)) => {
                Command::Enrol { key: key.clone(), nonce: *nonce, anew, floor, pact }
            }
            _ => observe.clone(),
        };
        let enrolled = driver::survey_each(doors, &self.terms, enrol).await;
        self.look_at_all();
        enrolled
    }

    /// Somebody's word that from now on these nodes and this `max_ttl` are the right ones.
    pub(crate) async fn reconfigure(self: &Arc<Self>, doors: &Doors) -> Round {
        let (key, nonce) = (self.key.clone(), Nonce(doors.entropy.draw().lease_id.0));
        let overrule = Command::Observe { key, nonce, pact: self.pact, overrules: true };
        let round = driver::survey(doors, &self.terms, &overrule).await;
        self.look_at_all();
        round
    }
}

/// Whether a majority has answered, and nobody goes by other rules.
pub(crate) fn is_answered(round: &Round, terms: &Terms) -> bool {
    let answered = round.count(|answer| matches!(answer, Answer::Enrolled(_) | Answer::Observed(_)));
    answered >= terms.quorum.majority() && !is_refused(round)
}

/// Whether a node says that its clients have agreed on something else.
pub(crate) fn is_refused(round: &Round) -> bool {
    round.count(|answer| *answer == Answer::Unknown(Unknown::Refused(Refusal::OtherRules))) > 0
}

impl Listener for Registrar {
    fn hear(self: Arc<Self>, round: RoundId, node: NodeIndex, answer: Answer) {
        self.act(|enrolment, now, out| enrolment.hear(now, round, node, &answer, out));
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.alarm.notify_one();
    }
}

/// Does what is due, for as long as the registrar is there.
async fn keep_looking(registrar: Weak<Registrar>, clock: Arc<dyn Clock>) {
    loop {
        let (alarm, wake_at) = match registrar.upgrade() {
            Some(registrar) if registrar.doors.strong_count() > 0 => {
                let wake_at = lock(&registrar.stage).enrolment.wake_at();
                (registrar.alarm.clone(), wake_at)
            }
            _ => return,
        };
        tokio::select! {
            () = alarm.notified() => {}
            () = sleep_until(&*clock, wake_at) => {
                if let Some(registrar) = registrar.upgrade() {
                    registrar.act(|enrolment, now, out| enrolment.pass(now, out));
                }
            }
        }
    }
}
