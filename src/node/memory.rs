//! A node in this process's memory: what a Redis does, without a server, and what goes wrong between a client and a Redis,
//! when a test asks for it.
//!
//! Each client has a connection of its own. On one connection commands arrive, and answers are heard, in the order in
//! which they were sent; a node carries out commands in the order in which they arrived.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use super::owed::Owed;
use super::{Bell, Listener, Node, Reply};
use crate::clock::{Clock, RuntimeClock, sleep_until};
use crate::protocol::command::{Answer, Command, Key, NodeIndex, Unknown, Value, Waiter};
use crate::protocol::fence::Fence;
use crate::protocol::marker::{Process, Rules};
use crate::protocol::round::RoundId;
use crate::protocol::store::{Messenger, Store};
use crate::protocol::time::Instant;
use crate::sync::lock;

/// The number of a client of the nodes, in the order in which they came.
pub(crate) type ClientNumber = usize;

/// How a client is cut off from nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Partition {
    /// Nothing gets through: commands are lost on their way.
    CommandsLost,
    /// One way only: commands arrive and are carried out, and their answers are lost.
    AnswersLost,
    /// Commands are held on their way. They arrive late, in their order, when the partition ends.
    CommandsHeld,
}

/// What is wrong with the clock of a node, by which its keys expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Skew {
    /// From now on it runs at another rate: so many millionths faster, or slower if negative. At -1 000 000 it stands still.
    PartsPerMillion(i32),
    /// It jumps ahead, and keys expire early.
    Ahead(Duration),
    /// It jumps back, and keys live longer.
    Back(Duration),
}

/// The connection of one client to one node: what the client submits to.
pub(crate) struct MemoryConnection {
    pub(crate) node: Arc<MemoryNode>,
    pub(crate) client: ClientNumber,
}

impl Node for MemoryConnection {
    fn submit(&self, command: Command, reply: Reply) {
        self.node.submit(self.client, command, reply);
    }
}

/// One in-memory node, with its ends of the connections to it.
pub(crate) struct MemoryNode {
    clock: RuntimeClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    store: Store,
    clock: NodeClock,
    /// How often it was another process than before.
    restarts: u64,
    condition: Condition,
    /// How much later than it is carried out a command is answered.
    delay: Duration,
    /// What arrived while the node was stalled.
    inbox: VecDeque<(ClientNumber, Job)>,
    connections: Vec<Connection>,
    /// When answers are heard that nobody has been told to wake up for.
    alarms: BTreeSet<Instant>,
    /// Nobody is left who could end a fault: what is silent then is silent for good, and is not waited for.
    abandoned: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Condition {
    #[default]
    Runs,
    /// Connections are refused.
    Stopped,
    /// Takes in commands, and carries out none.
    Stalled,
    /// Carries out commands, and answers none.
    DropsReplies,
}

/// What stands between one client and the node.
struct Connection {
    /// By which name the client is on wait lists, and how it is woken.
    waiter: Waiter,
    call: Arc<Call>,
    cut: Option<Partition>,
    /// Held on their way to the node.
    held: VecDeque<Job>,
    /// Those whose answer will not come, be it that the command was lost or the answer. The client finds out when it has a
    /// new connection, as it would with a server.
    silent: Vec<Job>,
    /// Carried out, with the moment at which the answer is heard, but not before those in front of it.
    answered: VecDeque<(Instant, Job, Answer)>,
    /// The releases that were not carried out for all the client knows.
    owed: Owed,
}

/// A command, and the duty to answer it.
struct Job {
    command: Command,
    reply: Reply,
    since: Instant,
}

/// How a client is woken.
struct Call {
    node: Weak<MemoryNode>,
    client: ClientNumber,
    /// Which of the client's nodes this is.
    index: NodeIndex,
    bell: Weak<dyn Bell>,
}

/// A message that a resource is free.
struct Message {
    call: Arc<Call>,
    key: Key,
}

impl Listener for Message {
    fn hear(self: Arc<Self>, _: RoundId, _: NodeIndex, answer: Answer) {
        let Call { node, client, index, bell } = &*self.call;
        let is_heard = answer == Answer::Delisted;
        if !is_heard || bell.upgrade().is_some_and(|bell| bell.ring(*index, &self.key)) {
            return;
        }
        // Nobody waits for it there any more: the next client shall not wait in vain.
        if let Some(node) = node.upgrade() {
            node.submit(*client, Command::Delist { key: self.key.clone() }, Reply::to_nobody());
        }
    }
}

/// Who asks, and who is there to be woken.
struct Desk<'a> {
    client: ClientNumber,
    connections: &'a [Connection],
    process: Process,
    woken: Vec<(ClientNumber, Key)>,
}

impl Messenger for Desk<'_> {
    fn caller(&self) -> Option<&Waiter> {
        Some(&self.connections[self.client].waiter)
    }

    fn process(&self) -> Option<&Process> {
        Some(&self.process)
    }

    fn wake(&mut self, waiter: &Waiter, key: &Key) -> bool {
        let listens =
            |connection: &Connection| connection.waiter == *waiter && connection.call.bell.strong_count() > 0;
        let woken = self.connections.iter().position(listens);
        woken.inspect(|woken| self.woken.push((*woken, key.clone()))).is_some()
    }
}

/// Answers that are to be heard once the state is unlocked: hearing one may submit the next command.
type Heard = Vec<(Reply, Answer)>;

impl MemoryNode {
    /// An empty node that runs.
    pub(crate) fn new(clock: RuntimeClock) -> Self {
        MemoryNode { clock, state: Mutex::default() }
    }

    /// The next client, for which this is the node `index`, has a connection from now on.
    pub(crate) fn accept(self: &Arc<Self>, index: NodeIndex, bell: Weak<dyn Bell>) {
        let connections = &mut lock(&self.state).connections;
        let client = connections.len();
        let call = Arc::new(Call { node: Arc::downgrade(self), client, index, bell });
        connections.push(Connection::new(Waiter(client.to_string().into()), call));
    }

    fn submit(self: &Arc<Self>, client: ClientNumber, command: Command, reply: Reply) {
        self.change(|state, now, heard| state.send(client, Job { command, reply, since: now }, now, heard));
    }

    /// From now on it refuses connections, and keeps its memory.
    pub(crate) fn stop(self: &Arc<Self>) {
        self.change(|state, now, heard| state.stop(now, heard));
    }

    /// From now on it takes in commands, and carries out none.
    pub(crate) fn stall(self: &Arc<Self>) {
        self.change(|state, now, heard| state.turn(Condition::Stalled, now, heard));
    }

    /// From now on it carries out commands, and answers none.
    pub(crate) fn drop_replies(self: &Arc<Self>) {
        self.change(|state, now, heard| state.turn(Condition::DropsReplies, now, heard));
    }

    /// Runs again, and first does what was left undone.
    pub(crate) fn start(self: &Arc<Self>) {
        self.change(|state, now, heard| state.turn(Condition::Runs, now, heard));
    }

    /// All its connections break, and it runs again at once; with another memory if it `forgets` its own.
    pub(crate) fn restart(self: &Arc<Self>, forgets: bool) {
        self.change(|state, now, heard| {
            state.stop(now, heard);
            state.restarts += 1;
            if forgets {
                state.store = Store::default();
            }
            state.turn(Condition::Runs, now, heard);
        });
    }

    /// From now on its answers come so much later.
    pub(crate) fn delay(&self, delay: Duration) {
        lock(&self.state).delay = delay;
    }

    /// Changes its clock.
    pub(crate) fn skew(self: &Arc<Self>, skew: Skew) {
        self.change(|state, now, _| state.clock.skew(skew, now));
    }

    /// Cuts a client off.
    pub(crate) fn cut(self: &Arc<Self>, client: ClientNumber, partition: Partition) {
        self.change(|state, now, heard| {
            if state.connections[client].cut != Some(partition) {
                state.reconnect(client, now, heard);
                state.connections[client].cut(partition);
            }
        });
    }

    /// Ends the partition between a client and this node, if there is one.
    pub(crate) fn reconnect(self: &Arc<Self>, client: ClientNumber) {
        self.change(|state, now, heard| state.reconnect(client, now, heard));
    }

    /// From now on no client waits for an answer that would need somebody to end a fault.
    pub(crate) fn abandon(self: &Arc<Self>) {
        self.change(|state, _, _| state.abandoned = true);
    }

    /// Sets a key, whatever stands there.
    pub(crate) fn put(self: &Arc<Self>, key: &Key, value: &Value, expires_in: Duration) {
        self.change(|state, now, _| state.store.put(state.clock.at(now), key, value, expires_in));
    }

    /// Deletes a key, whoever set it.
    pub(crate) fn remove(self: &Arc<Self>, key: &Key) {
        self.change(|state, now, _| state.store.remove(state.clock.at(now), key));
    }

    /// The keys that stand, in their order.
    pub(crate) fn keys(self: &Arc<Self>) -> Vec<Key> {
        self.change(|state, now, _| {
            let keys = state.store.keys(state.clock.at(now));
            keys.map(|(key, _)| key.clone()).collect()
        })
    }

    /// Lets the clients hear what has reached them.
    fn wake(self: &Arc<Self>) {
        self.change(|_, _, _| ());
    }

    /// Changes the state, and then lets the clients hear what came of it, now or when their answers have reached them.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, Instant, &mut Heard) -> T) -> T {
        let runtime = Handle::try_current().ok();
        let mut heard = Heard::new();
        let mut state = lock(&self.state);
        // Read under the lock, so that the node's clock never goes back by itself.
        let now = self.clock.now();
        let changed = change(&mut state, now, &mut heard);
        if state.abandoned {
            state.hang_up_all(now, &mut heard);
        }
        // Outside of a runtime there is nothing to wait on.
        let heard_until = if runtime.is_some() { now } else { Instant::NEVER };
        state.connections.iter_mut().for_each(|connection| connection.hear(heard_until, &mut heard));
        let alarms = std::mem::take(&mut state.alarms);
        drop(state);
        heard.into_iter().for_each(|(reply, answer)| reply.answer(answer));
        for (alarm, runtime) in alarms.into_iter().zip(runtime.iter().cycle()) {
            let node = self.clone();
            runtime.spawn(async move {
                sleep_until(&node.clock, alarm).await;
                node.wake();
            });
        }
        changed
    }
}

impl State {
    /// A client sends a command.
    fn send(&mut self, client: ClientNumber, job: Job, now: Instant, heard: &mut Heard) {
        let connection = &mut self.connections[client];
        match connection.cut {
            Some(Partition::CommandsLost) => connection.silent.push(job),
            Some(Partition::CommandsHeld) => connection.held.push_back(job),
            Some(Partition::AnswersLost) | None => self.arrive(client, job, now, heard),
        }
    }

    /// A command arrives at the node.
    fn arrive(&mut self, client: ClientNumber, job: Job, now: Instant, heard: &mut Heard) {
        let connection = &mut self.connections[client];
        match self.condition {
            // That it is refused is an answer, too.
            Condition::Stopped if connection.loses_answers() => connection.silent.push(job),
            Condition::Stopped => connection.fail(job, Unknown::NotConnected, now, heard),
            Condition::Stalled => self.inbox.push_back((client, job)),
            Condition::Runs | Condition::DropsReplies => self.carry_out(client, job, now),
        }
    }

    fn carry_out(&mut self, client: ClientNumber, job: Job, now: Instant) {
        let answer = self.apply(client, &job.command, now);
        self.answer(client, job, answer, now);
    }

    /// Does what a client asks, and sends the messages that come of it.
    fn apply(&mut self, client: ClientNumber, command: &Command, now: Instant) -> Answer {
        let process = Process(self.restarts.to_string().into());
        // What is as new as all that uses it has forgotten nothing.
        if let (Rules::Strict(pact), 0) = (command.rules(), self.restarts) {
            self.store.begin_to_count(command.key(), &process, Fence::NONE, pact);
        }
        let mut desk = Desk { client, connections: &self.connections, process, woken: Vec::new() };
        let answer = self.store.apply(self.clock.at(now), command, &mut desk);
        for (woken, key) in desk.woken {
            // A message is an answer that nobody asked for.
            let call = self.connections[woken].call.clone();
            let message = Arc::new(Message { call, key: key.clone() });
            let reply = Reply::new(message, RoundId(0), 0);
            self.answer(
                woken,
                Job { command: Command::Delist { key }, reply, since: now },
                Answer::Delisted,
                now,
            );
        }
        answer
    }

    fn answer(&mut self, client: ClientNumber, job: Job, answer: Answer, now: Instant) {
        let connection = &mut self.connections[client];
        if self.condition == Condition::DropsReplies || connection.loses_answers() {
            connection.silent.push(job);
        } else {
            let heard_at = now + self.delay;
            connection.answered.push_back((heard_at, job, answer));
            if heard_at > now {
                self.alarms.insert(heard_at);
            }
        }
    }

    fn stop(&mut self, now: Instant, heard: &mut Heard) {
        self.condition = Condition::Stopped;
        for (client, job) in self.inbox.drain(..) {
            self.connections[client].silent.push(job);
        }
        for connection in &mut self.connections {
            connection.break_off(now, heard);
        }
    }

    /// From one condition to another, of which none stops it.
    fn turn(&mut self, condition: Condition, now: Instant, heard: &mut Heard) {
        let before = std::mem::replace(&mut self.condition, condition);
        if before == Condition::DropsReplies && condition != before {
            // It was as if the connections had been half open: now they are replaced.
            let open = self.connections.iter_mut().filter(|connection| connection.cut.is_none());
            open.for_each(|connection| connection.hang_up(now, heard));
        }
        self.catch_up(now);
    }

    fn reconnect(&mut self, client: ClientNumber, now: Instant, heard: &mut Heard) {
        let connection = &mut self.connections[client];
        if connection.cut.take().is_none() {
            return;
        }
        connection.hang_up(now, heard);
        let held = std::mem::take(&mut connection.held);
        self.catch_up(now);
        for job in held {
            self.arrive(client, job, now, heard);
        }
    }

    /// Does what was left undone, if the node can: first the releases that are owed on a new connection, then what arrived.
    fn catch_up(&mut self, now: Instant) {
        if matches!(self.condition, Condition::Stopped | Condition::Stalled) {
            return;
        }
        for client in 0..self.connections.len() {
            if self.connections[client].lets_commands_pass() {
                for release in self.connections[client].owed.take(usize::MAX, now) {
                    self.apply(client, &release, now);
                }
            }
        }
        for (client, job) in std::mem::take(&mut self.inbox) {
            self.carry_out(client, job, now);
        }
    }

    fn hang_up_all(&mut self, now: Instant, heard: &mut Heard) {
        for (client, job) in self.inbox.drain(..) {
            self.connections[client].silent.push(job);
        }
        for connection in &mut self.connections {
            connection.silent.extend(connection.held.drain(..));
            connection.hang_up(now, heard);
        }
    }
}

impl Connection {
    fn new(waiter: Waiter, call: Arc<Call>) -> Self {
        Connection {
            waiter,
            call,
            cut: None,
            held: VecDeque::new(),
            silent: Vec::new(),
            answered: VecDeque::new(),
            owed: Owed::default(),
        }
    }

    fn lets_commands_pass(&self) -> bool {
        matches!(self.cut, None | Some(Partition::AnswersLost))
    }

    fn loses_answers(&self) -> bool {
        matches!(self.cut, Some(Partition::CommandsLost | Partition::AnswersLost))
    }

    fn cut(&mut self, partition: Partition) {
        self.cut = Some(partition);
        if self.loses_answers() {
            self.silent.extend(self.answered.drain(..).map(|(_, job, _)| job));
        }
    }

    /// What is on its way is lost, and so is the connection. A client that is cut off does not notice yet.
    fn break_off(&mut self, now: Instant, heard: &mut Heard) {
        self.silent.extend(self.answered.drain(..).map(|(_, job, _)| job));
        self.silent.extend(self.held.drain(..));
        if self.cut.is_none() {
            self.hang_up(now, heard);
        }
    }

    /// The client notices that the connection is lost, and what was not answered on it.
    fn hang_up(&mut self, now: Instant, heard: &mut Heard) {
        for job in std::mem::take(&mut self.silent) {
            self.fail(job, Unknown::ConnectionLost, now, heard);
        }
    }

    /// A command that will not be answered. A release is remembered.
    fn fail(&mut self, job: Job, unknown: Unknown, now: Instant, heard: &mut Heard) {
        self.owed.remember(job.command, job.since, now);
        heard.push((job.reply, Answer::Unknown(unknown)));
    }

    /// The client hears the answers that have reached it by now.
    fn hear(&mut self, now: Instant, heard: &mut Heard) {
        while self.answered.front().is_some_and(|(heard_at, ..)| *heard_at <= now) {
            let (_, job, answer) = self.answered.pop_front().expect("one that is heard now");
            heard.push((job.reply, answer));
        }
    }
}

/// The clock of a node.
struct NodeClock {
    /// Since then it has run at the present rate.
    since: Instant,
    /// What it said then.
    said: Instant,
    parts_per_million: i32,
}

impl Default for NodeClock {
    /// At the true rate.
    fn default() -> Self {
        NodeClock { since: Instant::from_nanos(0), said: RuntimeClock::BEGIN, parts_per_million: 0 }
    }
}

impl NodeClock {
    /// What it says now.
    fn at(&self, now: Instant) -> Instant {
        const MILLION: i64 = 1_000_000;
        let rate = (MILLION + i64::from(self.parts_per_million)).max(0).unsigned_abs();
        let ran = now.since(self.since).as_nanos() * u128::from(rate) / u128::from(MILLION.unsigned_abs());
        self.said + Duration::from_nanos(u64::try_from(ran).unwrap_or(u64::MAX))
    }

    fn skew(&mut self, skew: Skew, now: Instant) {
        self.said = self.at(now);
        self.since = now;
        match skew {
            Skew::PartsPerMillion(parts_per_million) => self.parts_per_million = parts_per_million,
            Skew::Ahead(by) => self.said = self.said + by,
            Skew::Back(by) => self.said = self.said - by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Listener;
    use crate::protocol::command::NodeIndex;
    use crate::protocol::round::RoundId;
    use crate::protocol::time::Ttl;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// What was heard, in order, as the number of the round and the answer.
    #[derive(Default)]
    struct Ear(Mutex<Vec<(u32, Answer)>>);

    impl Listener for Ear {
        fn hear(self: Arc<Self>, round: RoundId, _: NodeIndex, answer: Answer) {
            lock(&self.0).push((round.0, answer));
        }
    }

    /// A node with two clients, and what is heard from it.
    struct Bench {
        node: Arc<MemoryNode>,
        ear: Arc<Ear>,
    }

    impl Bench {
        fn new() -> Self {
            let node = Arc::new(MemoryNode::new(RuntimeClock::new()));
            let bell: Arc<dyn Bell> = Arc::new(Deaf);
            (0..2).for_each(|_| node.accept(0, Arc::downgrade(&bell)));
            Bench { node, ear: Arc::default() }
        }

        /// `acquire` or `release` of one key.
        fn submit(&self, client: ClientNumber, round: u32, what: &str) {
            let (key, value) = (Key::of_lock("", b"k"), Value::from_wire(&[client as u8]));
            let ttl = Ttl::from_duration(ms(1_000));
            let command = match what {
                "acquire" => Command::Acquire { key, value, ttl },
                _ => Command::Release {
                    key,
                    value,
                    linger: Ttl::ZERO,
                    owed_for: ms(1_000),
                    wake: crate::protocol::command::Wake::Nobody,
                    rules: crate::protocol::marker::Rules::Plain,
                },
            };
            self.node.submit(client, command, Reply::new(self.ear.clone(), RoundId(round), 0));
        }

        fn heard(&self) -> Vec<(u32, Answer)> {
            std::mem::take(&mut lock(&self.ear.0))
        }
    }

    /// A client that waits for nothing.
    struct Deaf;

    impl Bell for Deaf {
        fn ring(&self, _: NodeIndex, _: &Key) -> bool {
            false
        }

        fn connected(&self, _: NodeIndex) {}
    }

    #[tokio::test(start_paused = true)]
    async fn answers_of_one_connection_do_not_overtake_each_other() {
        let bench = Bench::new();
        bench.node.delay(ms(100));
        bench.submit(0, 1, "acquire");
        bench.node.delay(ms(10));
        bench.submit(0, 2, "release");
        bench.submit(1, 3, "acquire");
        tokio::time::sleep(ms(50)).await;
        assert_eq!(bench.heard(), [(3, Answer::Granted)], "another connection, carried out at once");
        tokio::time::sleep(ms(51)).await;
        assert_eq!(bench.heard(), [(1, Answer::Granted), (2, Answer::Deleted { others_wait: false })]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backlog_is_carried_out_in_the_order_of_arrival_and_answered_with_the_delay_of_then() {
        let bench = Bench::new();
        bench.node.stall();
        bench.submit(1, 1, "acquire");
        bench.submit(0, 2, "acquire");
        bench.submit(1, 3, "release");
        bench.submit(0, 4, "acquire");
        tokio::time::sleep(ms(5_000)).await;
        assert!(bench.heard().is_empty());
        bench.node.delay(ms(10));
        bench.node.start();
        assert!(bench.heard().is_empty());
        tokio::time::sleep(ms(11)).await;
        let heard = [
            (2, Answer::Denied),
            (4, Answer::Granted),
            (1, Answer::Granted),
            (3, Answer::Deleted { others_wait: false }),
        ];
        assert_eq!(bench.heard(), heard, "client by client");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_is_of_one_connection_and_ends_with_its_loss() {
        let lost = Answer::Unknown(Unknown::ConnectionLost);
        let bench = Bench::new();
        bench.node.cut(0, Partition::CommandsLost);
        bench.submit(0, 1, "acquire");
        bench.submit(1, 2, "acquire");
        assert_eq!(bench.heard(), [(2, Answer::Granted)]);
        bench.submit(1, 3, "release");
        bench.node.reconnect(0);
        assert_eq!(bench.heard(), [(3, Answer::Deleted { others_wait: false }), (1, lost.clone())]);
        assert!(bench.node.keys().is_empty());

        // An answer that is on its way when the connection is cut does not come.
        bench.node.delay(ms(100));
        bench.submit(0, 4, "acquire");
        bench.node.cut(0, Partition::AnswersLost);
        tokio::time::sleep(ms(200)).await;
        assert!(bench.heard().is_empty());
        bench.node.stop();
        assert!(bench.heard().is_empty(), "it is not heard there that the node is down");
        bench.node.reconnect(0);
        assert_eq!(bench.heard(), [(4, lost)]);
        assert_eq!(bench.node.keys().len(), 1);
    }

    #[test]
    fn outside_of_a_runtime_nothing_is_waited_for() {
        let bench = Bench::new();
        bench.node.delay(ms(100));
        bench.submit(0, 1, "acquire");
        assert_eq!(bench.heard(), [(1, Answer::Granted)]);
    }

    #[test]
    fn a_clock_that_is_skewed_goes_on_from_where_it_was() {
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let mut clock = NodeClock::default();
        let start = clock.at(at(0));
        let mut said = |skew, millis| {
            clock.skew(skew, at(millis));
            clock.at(at(millis + 1_000)).since(start)
        };
        assert_eq!(said(Skew::PartsPerMillion(500_000), 1_000), ms(2_500));
        assert_eq!(said(Skew::PartsPerMillion(-1_000_000), 2_000), ms(2_500));
        assert_eq!(said(Skew::PartsPerMillion(-2_000_000), 3_000), ms(2_500), "it stands still at the least");
        assert_eq!(said(Skew::Ahead(ms(500)), 4_000), ms(3_000));
        assert_eq!(said(Skew::Back(ms(2_000)), 5_000), ms(1_000));
        assert_eq!(said(Skew::PartsPerMillion(1), 6_000), ms(2_000) + Duration::from_micros(1));
    }
}
