//! A Redis or Valkey server as a node: a task that owns the one connection to it.
//!
//! All commands that wait are sent in one pipeline, in order, as soon as they come; the task never waits for an answer
//! before it sends the next. While the connection is down commands are refused at once, and the connection is tried again
//! after every kind of error, for ever. Nothing is sent twice, with two exceptions: a release that was not answered is sent
//! first when the connection is back, and what a server refused for want of a script is sent again with the script.

mod address;
mod messages;
#[cfg(feature = "tls")]
mod tls;
mod tracking;
mod voter;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::stream::{FuturesOrdered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ErrorKind, InfoDict, ProtocolVersion, PushInfo,
    RedisConnectionInfo, Value as Wire,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant as Timer, sleep, timeout};

pub use self::address::NodeConfig;
pub(crate) use self::address::{Target, check_connect_timeout};
use self::messages::Messages;
use self::tracking::{Watch, Watched};
use self::voter::Voter;
use self::wire::{Form, Lists, Read, SCRIPTS, decode, encode};
use super::owed::Owed;
use super::{Bell, Facts, FactsFuture, Node, Reply, Watcher};
use crate::clock::Clock;
#[cfg(feature = "sim")]
use crate::clock::SystemClock;
#[cfg(feature = "sim")]
use crate::protocol::admission::RestartProtection;
use crate::protocol::admission::{Admission, Introduction, Standing};
use crate::protocol::command::{Answer, Command, Key, NodeIndex, Refusal, Unknown, Value, Waiter};
use crate::protocol::round::RoundId;
#[cfg(feature = "sim")]
use crate::protocol::settings::SettingsError;
use crate::protocol::time::Instant;
#[cfg(feature = "sim")]
use crate::protocol::time::{Drift, Ttl};
use crate::protocol::wait::Backoff;
use crate::sync::lock;

/// Batches on their way at most. What comes on top waits and goes out as one larger batch.
const MOST_BATCHES: usize = 48;

/// The queue between us and the crate's writer: longer than [`MOST_BATCHES`], so that handing over a batch never waits.
const WRITER_QUEUE: usize = 64;

/// Commands in one batch at most.
const MOST_COMMANDS: usize = 1024;

/// A connection on which no answer came for so many node timeouts is replaced: it may be half open.
const TIMEOUTS_IN_A_ROW: u32 = 3;

/// The longest pause before a refused release is asked for again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The rests between attempts to connect.
const RECONNECT: Backoff = Backoff::exponential(Duration::from_millis(20), Duration::from_secs(1));

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    pub(crate) node: Duration,
}

impl Timeouts {
    /// Those of one node, which may have a bound of its own for the connection.
    pub(crate) fn at(self, target: &Target) -> Self {
        Timeouts { connect: target.connect_timeout().unwrap_or(self.connect), ..self }
    }
}

/// How a node is doing.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// The first attempt to connect is under way.
    Connecting,
    Up(Peer),
    Down(String),
    /// Reached, but not what can vote: tried again like one that is down, in case the address leads elsewhere one day.
    Unfit(String),
}

impl State {
    /// Waits for the end of the first attempt to connect.
    pub(crate) async fn is_up_at_first(state: &mut watch::Receiver<State>) -> bool {
        match state.wait_for(|state| !matches!(state, State::Connecting)).await {
            Ok(state) => matches!(*state, State::Up(_)),
            Err(_) => false,
        }
    }

    /// Why the node is not up.
    pub(crate) fn reason(&self) -> Option<String> {
        match self {
            State::Connecting => Some("still connecting".to_owned()),
            State::Up(_) => None,
            State::Down(reason) | State::Unfit(reason) => Some(reason.clone()),
        }
    }

    /// Whether it was reached, and is not what can vote.
    pub(crate) fn is_unfit(&self) -> bool {
        matches!(self, State::Unfit(_))
    }
}

/// The server at the other end, as far as others may deal with it: to ask it who it is.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    connection: MultiplexedConnection,
    counts_from: Instant,
    /// Why it does not vote before.
    why: Arc<str>,
    distrust: Option<Arc<str>>,
    wakes_nobody_because: Option<&'static str>,
}

impl Peer {
    /// What the server says of itself now, on the connection on which it votes.
    async fn facts(mut self, now: Instant, patience: Duration) -> Facts {
        let mut questions = redis::Pipeline::new();
        questions.cmd("INFO");
        voter::ask_for_persistence(&mut questions);
        let asked = self.connection.send_packed_commands(&questions, 0, questions.len());
        let info = match timeout(patience, asked).await {
            Err(_) => Err(Unknown::Timeout),
            Ok(Err(_)) => Err(Unknown::ConnectionLost),
            Ok(Ok(replies)) => voter::server_info(replies),
        };
        let waits_because = (now < self.counts_from).then_some(self.why);
        let (distrust, wakes_nobody_because) = (self.distrust, self.wakes_nobody_because);
        Facts::Up { waits_because, distrust, wakes_nobody_because, info }
    }
}

/// Which server is behind which node: a server that is named twice under two addresses has one vote.
#[derive(Default)]
pub(crate) struct Identities {
    run_ids: Mutex<BTreeMap<String, String>>,
}

impl Identities {
    /// The server belongs to the node `name` from now on, unless it belongs to another, which is returned.
    fn claim(&self, run_id: &str, name: &str) -> Result<(), String> {
        let mut run_ids = lock(&self.run_ids);
        match run_ids.get(run_id) {
            Some(other) if other != name => Err(other.clone()),
            _ => {
                run_ids.insert(run_id.to_owned(), name.to_owned());
                Ok(())
            }
        }
    }

    fn let_go(&self, run_id: &str) {
        lock(&self.run_ids).remove(run_id);
    }
}

/// The handle on the task of one node.
pub(crate) struct RedisNode {
    jobs: mpsc::UnboundedSender<Job>,
    clock: Arc<dyn Clock>,
    watched: Arc<Watched>,
    state: watch::Receiver<State>,
    timeout: Duration,
}

/// A command, and the duty to answer it.
struct Job {
    command: Command,
    reply: Reply,
    form: Form,
    since: Instant,
    /// The server shall tell when somebody else changes the key from then on.
    is_watching: bool,
    /// Sent with what concerns the wait list.
    has_list: bool,
}

impl Job {
    fn new(command: Command, reply: Reply, form: Form, since: Instant) -> Self {
        let is_watching = matches!(command, Command::Extend { .. });
        Job { command, reply, form, since, is_watching, has_list: false }
    }

    /// Reads a key for nothing else but to watch it.
    fn watching(watch: Arc<Watch>, form: Form, since: Instant) -> Self {
        let command = Command::Inspect { key: watch.key.clone() };
        Job { is_watching: true, ..Job::new(command, Reply::new(watch, RoundId(0), 0), form, since) }
    }

    /// Whether this releases what the other one extends.
    fn releases(&self, other: &Job) -> bool {
        match (&self.command, &other.command) {
            (Command::Release { value: released, .. }, Command::Extend { value: extended, .. }) => {
                released == extended
            }
            _ => false,
        }
    }
}

/// The client that a node serves.
#[derive(Clone)]
pub(crate) struct Client {
    /// By which channel it is woken.
    pub(crate) waiter: Waiter,
    pub(crate) bell: Arc<dyn Bell>,
    /// The namespace in whose wait lists it is to be found out what it may do.
    pub(crate) namespace: Arc<str>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Which server is behind which of its nodes.
    pub(crate) identities: Arc<Identities>,
}

impl RedisNode {
    /// Starts the task.
    pub(crate) fn start(
        runtime: &Handle,
        target: Target,
        timeouts: Timeouts,
        (index, client): (NodeIndex, Client),
        admission: Admission,
    ) -> (Arc<dyn Node>, watch::Receiver<State>) {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (state, states) = watch::channel(State::Connecting);
        let (owed, watched) = (Owed::default(), Arc::new(Watched::default()));
        let Client { waiter, bell, namespace, clock, identities } = client;
        let messages =
            Arc::new(Messages::new(waiter, index, bell, namespace, (jobs.downgrade(), clock.clone())));
        let actor = Actor {
            target,
            timeouts,
            clock: clock.clone(),
            identities,
            voter: Voter::new(admission),
            inbox,
            owed,
            watched: watched.clone(),
            messages,
            abandoned: false,
            state,
            warned_of: None,
        };
        runtime.spawn(actor.run());
        let node = RedisNode { jobs, clock, watched, state: states.clone(), timeout: timeouts.node };
        (Arc::new(node), states)
    }
}

/// A server as a node of its own, without a deployment around it: connects to it from the runtime that this is called on, and
/// lets it vote at once.
///
/// # Errors
///
/// If the address cannot be read.
#[cfg(feature = "sim")]
pub fn alone(
    config: NodeConfig,
    node_timeout: Duration,
    (waiter, bell): (Waiter, Arc<dyn Bell>),
) -> Result<Arc<dyn Node>, SettingsError> {
    let target = Target::all(&[config])?.remove(0);
    let timeouts = Timeouts { connect: node_timeout, node: node_timeout };
    let (clock, identities, namespace) = (Arc::new(SystemClock), Arc::default(), "".into());
    let client = Client { waiter, bell, namespace, clock, identities };
    let votes_at_once = Admission::new(RestartProtection::Off, Ttl::ZERO, Drift::DEFAULT, false);
    let (node, _) = RedisNode::start(&Handle::current(), target, timeouts, (0, client), votes_at_once);
    Ok(node)
}

impl Node for RedisNode {
    fn submit(&self, command: Command, reply: Reply) {
        let since = self.clock.now();
        // If the task is gone with its runtime, the job is dropped, and its reply says so.
        let _ = self.jobs.send(Job::new(command, reply, Form::Hashed, since));
    }

    fn watch(&self, key: &Key, value: &Value, watcher: Weak<dyn Watcher>) {
        let watch = self.watched.insert(key.clone(), value.clone(), watcher);
        if self.watched.is_told() {
            let _ = self.jobs.send(Job::watching(watch, Form::Hashed, self.clock.now()));
        }
    }

    fn unwatch(&self, key: &Key, watcher: &Weak<dyn Watcher>) {
        self.watched.remove(key, watcher);
    }

    fn facts(&self) -> FactsFuture {
        let state = self.state.borrow().clone();
        let (now, patience) = (self.clock.now(), self.timeout);
        Box::pin(async move {
            Some(match state {
                State::Up(peer) => peer.facts(now, patience).await,
                other => Facts::Down {
                    can_never_vote: other.is_unfit(),
                    reason: other.reason().unwrap_or_default(),
                },
            })
        })
    }
}

struct Actor {
    target: Target,
    timeouts: Timeouts,
    clock: Arc<dyn Clock>,
    identities: Arc<Identities>,
    /// Outlives connections: what is known of the memory behind the address.
    voter: Voter,
    inbox: mpsc::UnboundedReceiver<Job>,
    owed: Owed,
    watched: Arc<Watched>,
    messages: Arc<Messages>,
    /// No handle is left: no more commands will come.
    abandoned: bool,
    state: watch::Sender<State>,
    /// The last policy of eviction that was warned of.
    warned_of: Option<String>,
}

/// A living connection.
struct Link {
    connection: MultiplexedConnection,
    /// Reads and writes; completes when the connection is lost. Polled here, in the node's own task, so that no command
    /// has to change tasks.
    driver: Driver,
    form: Form,
    /// The server tells when keys change that were read to be watched.
    tells: bool,
    /// The server wakes this client, or why it does not.
    wakes: Result<(), &'static str>,
    /// This client may wake others.
    has_lists: bool,
    /// But not in these namespaces.
    closed_to: Vec<Box<[u8]>>,
    /// What the server says of itself, as far as it may be asked.
    role: Option<String>,
    mode: Option<String>,
    run_id: Option<String>,
    introduction: Option<Introduction>,
    /// What is said against the operator's word for its disk.
    distrust: Option<String>,
    /// The policy by which it may throw keys away, if it may.
    evicts_by: Option<String>,
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The commands of one pipeline that was sent and not answered.
struct Batch {
    jobs: Vec<Job>,
    sent_at: Timer,
}

/// What came of the answers to a batch.
struct HandedOut {
    /// To be sent in full.
    again: Vec<Job>,
    /// A release that was owed is carried out: the server takes them.
    owed_was_accepted: bool,
    /// The namespaces whose wait lists the user may not use: from now on it does without.
    closed_to: Vec<Box<[u8]>>,
}

/// No handle is left, nothing is on its way, and nothing is owed: the task ends.
struct Abandoned;

impl Actor {
    async fn run(mut self) {
        let mut failures = 0;
        let mut is_first = true;
        loop {
            let state = match self.connect().await {
                Err(Abandoned) => return,
                Ok(Err(state)) => state,
                Ok(Ok((link, standing))) => {
                    failures = 0;
                    self.tell(State::Up(Peer {
                        connection: link.connection.clone(),
                        counts_from: standing.counts_from,
                        why: self.voter.why(),
                        distrust: self.voter.distrust(),
                        wakes_nobody_because: link.wakes.err(),
                    }));
                    self.voter.tell(self.target.name(), self.clock.now(), standing);
                    self.warn_of_eviction(link.evicts_by.as_deref());
                    if !link.tells {
                        tracing::debug!(node = self.target.name(), "does not tell when keys are changed");
                    }
                    if let Err(reason) = link.wakes {
                        tracing::debug!(node = self.target.name(), reason, "does not wake who waits");
                    }
                    if !std::mem::take(&mut is_first) {
                        self.messages.connected_again();
                    }
                    let run_id = link.run_id.clone();
                    self.watched.set_told(link.tells);
                    let ending = self.serve(link, standing).await;
                    self.watched.set_told(false);
                    run_id.iter().for_each(|run_id| self.identities.let_go(run_id));
                    match ending {
                        Err(Abandoned) => return,
                        Ok(reason) => State::Down(reason.to_owned()),
                    }
                }
            };
            self.tell(state);
            failures = (failures + 1).min(16);
            let rest = RECONNECT.delay(failures, rand::random()).unwrap_or_default();
            if let Err(Abandoned) = self.refusing(sleep(rest)).await {
                return;
            }
        }
    }

    fn tell(&self, state: State) {
        let before = self.state.send_replace(state.clone());
        let node = self.target.name();
        match (before, state) {
            (State::Connecting, State::Up(_)) => tracing::debug!(node, "connected"),
            (_, State::Up(_)) => tracing::info!(node, "connected again"),
            (State::Down(before), State::Down(reason)) if before == reason => {}
            (State::Unfit(before), State::Unfit(reason)) if before == reason => {}
            (_, State::Down(reason)) => tracing::warn!(node, reason, "not connected"),
            (_, State::Unfit(reason)) => tracing::error!(node, reason, "can never vote"),
            (_, State::Connecting) => {}
        }
    }

    /// Once for each policy: a server that evicts forgets locks that are held, and then a second client can have them.
    fn warn_of_eviction(&mut self, policy: Option<&str>) {
        if self.warned_of.as_deref() != policy {
            self.warned_of = policy.map(str::to_owned);
            if let Some(policy) = policy {
                let node = self.target.name();
                tracing::warn!(
                    node,
                    policy,
                    "may evict locks that are held: set maxmemory-policy to noeviction"
                );
            }
        }
    }

    /// One attempt to connect. Only during the very first do commands wait for it.
    async fn connect(&mut self) -> Result<Result<(Link, Standing), State>, Abandoned> {
        let attempt = timeout(
            self.timeouts.connect,
            establish(self.target.clone(), self.timeouts, (self.watched.clone(), self.messages.clone())),
        );
        let is_first = matches!(*self.state.borrow(), State::Connecting);
        let connected = if is_first { attempt.await } else { self.refusing(attempt).await? };
        let connected = connected.unwrap_or_else(|_| Err("timed out while connecting".to_owned()));
        Ok(connected.map_err(State::Down).and_then(|link| {
            // Also of one that can never vote: whoever comes after it is not the one that was before it.
            let (node, introduction) = (self.target.name(), link.introduction.as_ref());
            let standing = self.voter.meet(node, self.clock.now(), introduction, link.distrust.as_deref());
            match self.objection(&link) {
                Some(objection) => Err(State::Unfit(objection)),
                None => Ok((link, standing)),
            }
        }))
    }

    /// Only an independent master can vote, and a server has one vote, whatever it is called.
    fn objection(&self, link: &Link) -> Option<String> {
        match (link.role.as_deref(), link.mode.as_deref()) {
            (Some("slave" | "replica"), _) => Some("is a replica: only a master can vote".to_owned()),
            (_, Some(mode)) if mode != "standalone" => {
                Some(format!("is in {mode} mode: only an independent server can vote"))
            }
            _ => {
                let claimed =
                    link.run_id.as_ref().map(|run_id| self.identities.claim(run_id, self.target.name()));
                claimed?.err().map(|other| format!("is the same server as {other}"))
            }
        }
    }

    /// Refuses commands until `what` is done. What is owed keeps the task alive when all handles are gone.
    async fn refusing<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Abandoned> {
        let mut what = std::pin::pin!(what);
        loop {
            if self.abandoned && self.owed.is_empty(self.clock.now()) {
                return Err(Abandoned);
            }
            tokio::select! {
                biased;
                done = &mut what => return Ok(done),
                job = self.inbox.recv(), if !self.abandoned => match job {
                    Some(job) => self.fail(job, Unknown::NotConnected),
                    None => self.abandoned = true,
                },
            }
        }
    }

    /// A command that will not be answered. A release is remembered.
    fn fail(&mut self, job: Job, unknown: Unknown) {
        self.owed.remember(job.command, job.since, self.clock.now());
        job.reply.answer(Answer::Unknown(unknown));
    }

    /// Sends commands and hands out answers until the connection is lost or given up: the reason. What is owed goes first.
    async fn serve(&mut self, mut link: Link, standing: Standing) -> Result<&'static str, Abandoned> {
        let mut batches: VecDeque<Batch> = VecDeque::new();
        let mut answers = FuturesOrdered::new();
        let mut lost = false;
        let patience = self.timeouts.node * TIMEOUTS_IN_A_ROW;
        let mut heard_at = Timer::now();
        let mut alarm = std::pin::pin!(sleep(Duration::ZERO));
        let mut alarm_is_set = false;
        // What the server refuses to release is asked for again: one of it after a pause, and all when that is accepted.
        let mut ask_again = std::pin::pin!(sleep(Duration::ZERO));
        let mut ask_again_is_set = false;
        let mut pause = self.timeouts.node;
        let owed = self.owed.len();
        let mut waiting = self.owed_jobs(owed, link.form);
        // What was watched over the connection before is read again on this one.
        waiting.extend(if link.tells { self.watching_jobs(link.form) } else { Vec::new() });
        let mut to_ask = 0;
        let mut admitted = self.clock.sleep_until(standing.counts_from);
        let mut is_admitted = false;
        if owed > 0 {
            tracing::info!(node = self.target.name(), releases = owed, "sending owed releases");
        }

        let reason = loop {
            while batches.len() < MOST_BATCHES && !lost {
                if waiting.is_empty() {
                    waiting = self.owed_jobs(to_ask.min(MOST_COMMANDS), link.form);
                    to_ask = if waiting.is_empty() { 0 } else { to_ask - waiting.len() };
                }
                if waiting.is_empty() {
                    break;
                }
                let mut jobs: Vec<Job> = waiting.drain(..waiting.len().min(MOST_COMMANDS)).collect();
                answers.push_back(self.send(&link, &mut jobs));
                batches.push_back(Batch { jobs, sent_at: Timer::now() });
                if !alarm_is_set {
                    alarm.as_mut().reset(Timer::now() + patience);
                    alarm_is_set = true;
                }
            }
            if lost && batches.is_empty() {
                break "connection lost";
            }
            if self.abandoned && batches.is_empty() && self.owed.is_empty(self.clock.now()) {
                return Err(Abandoned);
            }
            tokio::select! {
                biased;
                // What was answered before the end is still handed out.
                () = &mut link.driver, if !lost => lost = true,
                // Before the answers, which under load are always there.
                () = &mut ask_again, if ask_again_is_set => {
                    ask_again_is_set = false;
                    to_ask = to_ask.max(1);
                }
                () = &mut admitted, if !is_admitted => {
                    is_admitted = true;
                    self.voter.tell(self.target.name(), self.clock.now(), standing);
                }
                Some(answered) = answers.next(), if !batches.is_empty() => {
                    heard_at = Timer::now();
                    let batch = batches.pop_front().expect("a batch for each answer");
                    let Ok(replies) = answered else {
                        batches.push_front(batch);
                        break "connection lost";
                    };
                    let heard = (standing, link.tells);
                    let handed_out = self.hand_out((batch, replies), heard, &batches, &waiting);
                    waiting.extend(handed_out.again);
                    link.closed_to.extend(handed_out.closed_to);
                    link.closed_to.dedup();
                    if handed_out.owed_was_accepted {
                        pause = self.timeouts.node;
                        to_ask = self.owed.len();
                    } else if self.owed.len() > to_ask && !ask_again_is_set {
                        ask_again.as_mut().reset(Timer::now() + pause);
                        ask_again_is_set = true;
                        pause = (pause * 2).min(LONGEST_PAUSE.max(self.timeouts.node));
                    }
                }
                received = self.inbox.recv_many(&mut waiting, MOST_COMMANDS),
                    if !self.abandoned && !lost && batches.len() < MOST_BATCHES =>
                {
                    waiting.iter_mut().filter(|job| job.form == Form::Hashed).for_each(|job| job.form = link.form);
                    self.abandoned = received == 0;
                }
                () = &mut alarm, if alarm_is_set => match batches.front() {
                    None => alarm_is_set = false,
                    Some(oldest) => {
                        let silent_since = oldest.sent_at.max(heard_at);
                        if silent_since.elapsed() >= patience {
                            self.farewell(&mut link, &mut waiting).await;
                            break "no answer for three node timeouts";
                        }
                        alarm.as_mut().reset(silent_since + patience);
                    }
                },
            }
        };
        let unanswered = batches.into_iter().flat_map(|batch| batch.jobs);
        unanswered.for_each(|job| self.fail(job, Unknown::ConnectionLost));
        waiting.into_iter().for_each(|job| self.fail(job, Unknown::NotConnected));
        Ok(reason)
    }

    /// Sends a batch; completes with its replies. The bytes are handed over when it is first polled, and batches are polled in
    /// order.
    fn send(
        &self,
        link: &Link,
        jobs: &mut [Job],
    ) -> impl Future<Output = redis::RedisResult<Vec<Wire>>> + use<> {
        let mut pipeline = redis::Pipeline::with_capacity(jobs.len());
        for job in &mut *jobs {
            if link.tells && job.is_watching {
                pipeline.cmd("CLIENT").arg("CACHING").arg("YES");
            }
            let lists = self.messages.lists(link, job.command.key());
            job.has_list = lists != Lists::Closed && job.command.concerns_list();
            pipeline.add_command(encode(&job.command, job.form, lists));
        }
        let mut connection = link.connection.clone();
        async move { connection.send_packed_commands(&pipeline, 0, pipeline.len()).await }
    }

    /// Answers the commands of a batch. Those that the server refused for want of a script come back, to be sent in full,
    /// unless a release that follows, in this batch, in a `later` one or among those that are `waiting`, would then come
    /// before them. A release that was refused is still owed.
    ///
    /// What is heard before the node votes counts for nothing: it is this connection that tells whose answers they are.
    fn hand_out(
        &mut self,
        (batch, replies): (Batch, Vec<Wire>),
        (standing, tells): (Standing, bool),
        later: &VecDeque<Batch>,
        waiting: &[Job],
    ) -> HandedOut {
        let mut again = Vec::new();
        let (mut owed_was_accepted, mut closed_to) = (false, Vec::new());
        let now = self.clock.now();
        let (mut jobs, mut replies) = (VecDeque::from(batch.jobs), replies.into_iter());
        while let Some(mut job) = jobs.pop_front() {
            if tells && job.is_watching {
                let _caching = replies.next();
            }
            let Some(reply) = replies.next() else { break };
            match decode(&job.command, reply) {
                // Maybe not for want of rights to the key, but to the list beside it, or because the two are too much for a proxy:
                // nothing was done, and it is asked without the list.
                Read::Answer(Answer::Unknown(Unknown::Refused(Refusal::NoPermission | Refusal::Cluster)))
                    if job.has_list =>
                {
                    closed_to.push(job.command.key().namespace().into());
                    again.push(job);
                }
                Read::Answer(Answer::Unknown(unknown)) => self.fail(job, unknown),
                Read::Answer(answer) => {
                    let is_owed = matches!(job.command, Command::Release { .. }) && job.reply.is_to_nobody();
                    owed_was_accepted |= is_owed;
                    job.reply.answer(answer.heard(now, standing.counts_from));
                }
                Read::NoScript => {
                    let following =
                        jobs.iter().chain(later.iter().flat_map(|batch| &batch.jobs)).chain(waiting);
                    let mut releases = following.filter(|other| other.releases(&job));
                    if releases.next().is_some() {
                        self.fail(job, Unknown::Refused(Refusal::Other));
                    } else {
                        job.form = Form::Full;
                        again.push(job);
                    }
                }
            }
        }
        HandedOut { again, owed_was_accepted, closed_to }
    }

    /// So many of the releases that are owed, at most.
    fn owed_jobs(&mut self, most: usize, form: Form) -> Vec<Job> {
        let since = self.clock.now();
        let owed = self.owed.take(most, since);
        let job = |command| Job::new(command, Reply::to_nobody(), form, since);
        owed.into_iter().map(job).collect()
    }

    fn watching_jobs(&self, form: Form) -> Vec<Job> {
        let since = self.clock.now();
        self.watched.all().into_iter().map(|watch| Job::watching(watch, form, since)).collect()
    }

    /// Before a connection that does not answer is let go, the releases that wait are written on it: there, they come
    /// after the keys that they release, if the server ever reads them.
    async fn farewell(&mut self, link: &mut Link, waiting: &mut Vec<Job>) {
        while let Ok(job) = self.inbox.try_recv() {
            waiting.push(job);
        }
        let releases = waiting.iter().filter(|job| matches!(job.command, Command::Release { .. }));
        let mut pipeline = redis::Pipeline::new();
        releases.for_each(|job| {
            pipeline.add_command(encode(
                &job.command,
                Form::Full,
                self.messages.lists(link, job.command.key()),
            ));
        });
        if !pipeline.is_empty() {
            let mut connection = link.connection.clone();
            let count = pipeline.len();
            let mut written = std::pin::pin!(connection.send_packed_commands(&pipeline, 0, count));
            // Polled once each: handed over, and written as far as the socket takes it. An answer is not expected.
            let _ = futures::poll!(&mut written);
            let _ = futures::poll!(&mut link.driver);
        }
    }
}

/// Who hears what a server says without being asked.
type Hearing = (Arc<Watched>, Arc<Messages>);

/// Connects, logs in, loads the scripts, and learns who answers. An error is a reason for people, without a password.
async fn establish(target: Target, timeouts: Timeouts, hearing: Hearing) -> Result<Link, String> {
    let login = target.info().redis_settings().clone();
    match speak(&target, login.clone(), timeouts, hearing.clone()).await {
        Err(Failure::Resp3Missing) => {
            speak(&target, login.set_protocol(ProtocolVersion::RESP2), timeouts, hearing).await
        }
        spoken => spoken,
    }
    .map_err(|failure| match failure {
        Failure::Resp3Missing => "does not know HELLO".to_owned(),
        Failure::Because(reason) => reason,
    })
}

/// Why a server could not be spoken to.
enum Failure {
    /// It does not know HELLO, or does not let us say it.
    Resp3Missing,
    Because(String),
}

impl Failure {
    fn of_a_login(error: &redis::RedisError) -> Self {
        let text = error.to_string();
        let unknown = text.contains("unknown command") && text.contains("HELLO");
        if unknown || error.kind() == ErrorKind::RESP3NotSupported {
            Failure::Resp3Missing
        } else {
            Failure::Because(text)
        }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Because(error.to_string())
    }
}

async fn speak(
    target: &Target,
    login: RedisConnectionInfo,
    timeouts: Timeouts,
    hearing: Hearing,
) -> Result<Link, Failure> {
    match target.info().addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            tune(&stream, timeouts)?;
            #[cfg(feature = "tls")]
            if let Some(tls) = target.tls() {
                let stream = tls.over(stream).await.map_err(Failure::Because)?;
                return shake_hands(&login, stream, target.trusts_disk(), hearing).await;
            }
            shake_hands(&login, stream, target.trusts_disk(), hearing).await
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path).await?;
            shake_hands(&login, stream, target.trusts_disk(), hearing).await
        }
        _ => Err(Failure::Because("an address of a kind that this build does not support".to_owned())),
    }
}

/// Small commands at once, and a peer that is gone noticed by the kernel too.
fn tune(stream: &TcpStream, timeouts: Timeouts) -> std::io::Result<()> {
    use rustix::net::sockopt;
    // While nobody listens on a local port, a socket that tries to connect to it may be given this very port.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(std::io::Error::other("connected to itself: nobody listens there"));
    }
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let patience = timeouts.connect.max(timeouts.node * TIMEOUTS_IN_A_ROW);
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        sockopt::set_tcp_user_timeout(stream, millis.unsigned_abs())?;
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = timeouts;
    Ok(())
}

async fn shake_hands<S>(
    login: &RedisConnectionInfo,
    stream: S,
    trusts_disk: bool,
    (watched, messages): Hearing,
) -> Result<Link, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut config =
        AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(WRITER_QUEUE);
    // The older protocol has no way to tell what was not asked for.
    let can_tell = login.protocol() != ProtocolVersion::RESP2;
    if can_tell {
        let messages = messages.clone();
        config = config.set_push_sender(move |push: PushInfo| {
            watched.hear(&push);
            messages.hear(&push);
            Ok::<_, Infallible>(())
        });
    }
    let made = MultiplexedConnection::new_with_config(login, stream, config).await;
    let (connection, driver) = made.map_err(|error| Failure::of_a_login(&error))?;
    let mut driver: Driver = Box::pin(driver);

    let mut questions = redis::Pipeline::new();
    questions.cmd("HELLO").cmd("INFO");
    if trusts_disk {
        voter::ask_for_persistence(&mut questions);
    }
    if can_tell {
        questions.cmd("CLIENT").arg(&["TRACKING", "ON", "OPTIN", "NOLOOP"]);
        questions.cmd("CLIENT").arg(&["CACHING", "YES"]);
    }
    messages.ask(&mut questions, can_tell);
    for script in SCRIPTS {
        questions.cmd("SCRIPT").arg("LOAD").arg(script.text);
    }
    let mut asked = connection.clone();
    let replies = tokio::select! {
        replies = asked.send_packed_commands(&questions, 0, questions.len()) => replies?,
        () = &mut driver => return Err(Failure::Because("connection lost while logging in".to_owned())),
    };
    let mut replies = replies.into_iter();
    let hello = replies.next().unwrap_or(Wire::Nil);
    let info = replies.next().unwrap_or(Wire::Nil);
    // Refused for a moment, it would wait for the longest ttl for want of an introduction.
    if let Some(refusal) = refusal(&info).filter(|refusal| refusal.is_passing()) {
        return Err(Failure::Because(refusal.to_string()));
    }
    let info = redis::from_redis_value::<InfoDict>(info).ok();
    let config = trusts_disk.then(|| replies.next()).flatten();
    let tells = can_tell && {
        let (tracking, caching) = (replies.next(), replies.next());
        tracking == Some(Wire::Okay) && caching == Some(Wire::Okay)
    };
    let (wakes, has_lists) = messages.read(&mut replies, can_tell);
    let refusals: Vec<_> = replies.filter_map(|reply| refusal(&reply)).collect();
    // It would refuse the releases that go first on a new connection as well.
    if let Some(refusal) = refusals.iter().find(|refusal| refusal.is_passing()) {
        return Err(Failure::Because(refusal.to_string()));
    }
    // A user that may not load scripts may still send them in full.
    let form = if refusals.is_empty() { Form::Hashed } else { Form::Full };
    let told = |name: &str| info.as_ref().and_then(|info| info.get::<String>(name));
    // Whoever may not ask for INFO may still say HELLO, and the other way round.
    let role = told("role").or_else(|| field(&hello, "role"));
    let mode = told("redis_mode").or_else(|| field(&hello, "mode"));
    let run_id = told("run_id");
    let distrust = config.as_ref().and_then(voter::distrust);
    let introduction = info.as_ref().and_then(voter::introduction);
    let has_a_limit = told("maxmemory").is_some_and(|bytes| bytes != "0");
    let evicts_by = told("maxmemory_policy").filter(|policy| has_a_limit && policy != "noeviction");
    Ok(Link {
        connection,
        driver,
        form,
        tells,
        wakes,
        has_lists,
        closed_to: Vec::new(),
        role,
        mode,
        run_id,
        introduction,
        distrust,
        evicts_by,
    })
}

fn refusal(reply: &Wire) -> Option<Refusal> {
    match reply {
        Wire::ServerError(error) => Some(Refusal::from_code(error.code())),
        _ => None,
    }
}

/// A field in the reply to HELLO.
fn field(hello: &Wire, name: &str) -> Option<String> {
    let text = |value: &Wire| redis::from_redis_value_ref::<String>(value).ok();
    let mut fields = hello.as_map_iter()?;
    fields.find(|(field, _)| text(field).as_deref() == Some(name)).and_then(|(_, value)| text(value))
}
