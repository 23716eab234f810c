//! A Redis or Valkey server as a node: a task that owns the one connection to it.
//!
//! All commands that have come are sent in one write, nearly in order: of those that ask for locks, and only of those, releases of
//! others may come behind. The task never waits for an answer before it sends the next.
//! While the connection is down commands are refused at once, and the connection is tried again after every kind of error, for
//! ever. Nothing is sent twice, with three exceptions: a release that was not answered is sent first when the connection is
//! back, what a server refused for want of a script is sent again with the script, and releases that it refused together are sent
//! again one by one.

mod address;
mod connection;
mod handshake;
mod messages;
mod resp;
#[cfg(feature = "tls")]
mod tls;
mod tracking;
mod voter;
mod wire;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;
use std::time::Duration;

use foldhash::fast::RandomState;
use redis::{Cmd, PushInfo, Value as Wire};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant as Timer, sleep, timeout};

pub use self::address::NodeConfig;
pub(crate) use self::address::{Target, check_connect_timeout};
use self::handshake::{Hearing, Link, establish, field};
use self::messages::Messages;
use self::resp::Writer;
use self::tracking::{Watch, Watched};
use self::voter::Voter;
use self::wire::{
    Form, Lists, Read, Replies, are_judged_alike, decode, decode_together, encode, encode_together,
    simple_release,
};
use super::owed::Owed;
use super::{Bell, Facts, FactsFuture, Node, Reply, Watcher};
#[cfg(feature = "sim")]
use crate::clock::SystemClock;
use crate::clock::{Clock, sleep_until};
#[cfg(feature = "sim")]
use crate::protocol::admission::RestartProtection;
use crate::protocol::admission::{Admission, Standing};
use crate::protocol::command::{Answer, Command, Key, NodeIndex, Refusal, Unknown, Value, Waiter, Wake};
use crate::protocol::marker::Rules;
use crate::protocol::round::RoundId;
#[cfg(feature = "sim")]
use crate::protocol::settings::SettingsError;
use crate::protocol::time::Instant;
#[cfg(feature = "sim")]
use crate::protocol::time::{Drift, Ttl};
use crate::protocol::wait::Backoff;
use crate::sync::lock;

/// Commands that are taken in before some are written, at most.
const MOST_COMMANDS: usize = 1024;

/// Answers of an only node that are handed out before what comes of them is sent: it would have nothing to do while the rest is
/// handed out. Of several nodes those that no majority waited for are still at work then, and larger writes are worth more.
const PORTION: usize = 16;

/// Releases that go to a server in one call, at most: it does nothing else meanwhile.
const MOST_TOGETHER: usize = 64;

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

/// The server at the other end, as far as others want to know.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    counts_from: Instant,
    /// Why it does not vote before.
    why: Arc<str>,
    distrust: Option<Arc<str>>,
    wakes_nobody_because: Option<&'static str>,
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
    errands: mpsc::UnboundedSender<Errand>,
    clock: Arc<dyn Clock>,
    watched: Arc<Watched>,
    state: watch::Receiver<State>,
    timeout: Duration,
}

/// What the task is asked to do.
enum Errand {
    Job(Job),
    /// To ask the server something that is no command to a node, and to hand back what it says.
    Question(Cmd, oneshot::Sender<Wire>),
}

/// A command, and the duty to answer it.
struct Job {
    command: Command,
    reply: Reply,
    form: Form,
    /// The server shall tell when somebody else changes the key from then on.
    is_watching: bool,
    /// Sent with what concerns the wait list.
    has_list: bool,
    /// Refused together with others.
    is_alone: bool,
}

impl Job {
    fn new(command: Command, reply: Reply) -> Self {
        let is_watching = matches!(command, Command::Extend { .. });
        Job { command, reply, form: Form::Hashed, is_watching, has_list: false, is_alone: false }
    }

    /// Reads a key for nothing else but to watch it.
    fn watching(watch: Arc<Watch>) -> Self {
        let command = Command::Inspect { key: watch.key.clone() };
        Job { is_watching: true, ..Job::new(command, Reply::new(watch, RoundId(0), 0)) }
    }

    /// Whether this is a release that may go out in one call with others.
    fn goes_together(&self) -> bool {
        self.has_list && !self.is_alone && simple_release(&self.command).is_some()
    }

    /// Whether releases of other locks may come behind it. What only looks shall see what was done before.
    fn may_come_before_releases(&self) -> bool {
        matches!(
            self.command,
            Command::Acquire { .. }
                | Command::Extend { .. }
                | Command::Propose { .. }
                | Command::Raise { .. }
        )
    }

    /// Whether this releases what the other one, a script, sets or extends.
    fn releases(&self, other: &Job) -> bool {
        let Command::Release { value: released, .. } = &self.command else { return false };
        match &other.command {
            Command::Extend { value, .. } | Command::Propose { value, .. } | Command::Raise { value, .. } => {
                released == value
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
    /// Strict locks are asked for even where a server may evict them.
    pub(crate) may_evict: bool,
    /// It has no other node.
    pub(crate) is_only_node: bool,
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
        let (errands, inbox) = mpsc::unbounded_channel();
        let (state, states) = watch::channel(State::Connecting);
        let (owed, watched) = (Owed::default(), Arc::new(Watched::default()));
        let Client { waiter, bell, namespace, clock, identities, may_evict, is_only_node } = client;
        let messages = Arc::new(Messages::new(waiter, index, bell, namespace, errands.downgrade()));
        let actor = Actor {
            target,
            timeouts,
            clock: clock.clone(),
            identities,
            voter: Voter::new(admission),
            inbox,
            releases: Gathered::default(),
            owed,
            hearing: Hearing { watched: watched.clone(), messages },
            is_only_node,
            has_company: runtime.runtime_flavor() != RuntimeFlavor::CurrentThread,
            abandoned: false,
            state,
            warned_of: None,
            may_evict,
        };
        runtime.spawn(actor.run());
        let node = RedisNode { errands, clock, watched, state: states.clone(), timeout: timeouts.node };
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
    let client = Client { waiter, bell, namespace, clock, identities, may_evict: false, is_only_node: true };
    let votes_at_once = Admission::new(RestartProtection::Off, Ttl::ZERO, Drift::DEFAULT, false);
    let (node, _) = RedisNode::start(&Handle::current(), target, timeouts, (0, client), votes_at_once);
    Ok(node)
}

impl Node for RedisNode {
    fn submit(&self, command: Command, reply: Reply) {
        // If the task is gone with its runtime, the job is dropped, and its reply says so.
        let _ = self.errands.send(Errand::Job(Job::new(command, reply)));
    }

    fn watch(&self, key: &Key, value: &Value, watcher: Weak<dyn Watcher>) {
        let watch = self.watched.insert(key.clone(), value.clone(), watcher);
        if self.watched.is_told() {
            let _ = self.errands.send(Errand::Job(Job::watching(watch)));
        }
    }

    fn unwatch(&self, key: &Key, watcher: &Weak<dyn Watcher>) {
        self.watched.remove(key, watcher);
    }

    fn facts(&self) -> FactsFuture {
        let state = self.state.borrow().clone();
        let (now, patience, errands) = (self.clock.now(), self.timeout, self.errands.clone());
        Box::pin(async move {
            Some(match state {
                State::Up(peer) => peer.facts(now, patience, &errands).await,
                other => Facts::Down {
                    can_never_vote: other.is_unfit(),
                    reason: other.reason().unwrap_or_default(),
                },
            })
        })
    }
}

impl Peer {
    /// What the server says of itself now, on the connection on which it votes.
    async fn facts(self, now: Instant, patience: Duration, errands: &mpsc::UnboundedSender<Errand>) -> Facts {
        let asked = [redis::cmd("INFO"), voter::persistence()].map(|question| {
            let (reply, said) = oneshot::channel();
            let _ = errands.send(Errand::Question(question, reply));
            said
        });
        let [info, config] = asked;
        let info = match timeout(patience, async { Ok((info.await?, config.await?)) }).await {
            Err(_) => Err(Unknown::Timeout),
            Ok(Err(oneshot::error::RecvError { .. })) => Err(Unknown::ConnectionLost),
            Ok(Ok((info, config))) => voter::server_info(info, &config),
        };
        let waits_because = (now < self.counts_from).then_some(self.why);
        let (distrust, wakes_nobody_because) = (self.distrust, self.wakes_nobody_because);
        Facts::Up { waits_because, distrust, wakes_nobody_because, info }
    }
}

struct Actor {
    target: Target,
    timeouts: Timeouts,
    clock: Arc<dyn Clock>,
    identities: Arc<Identities>,
    /// Outlives connections: what is known of the memory behind the address.
    voter: Voter,
    inbox: mpsc::UnboundedReceiver<Errand>,
    /// Room for those that are about to go out together.
    releases: Gathered,
    owed: Owed,
    hearing: Hearing,
    /// The client has no other.
    is_only_node: bool,
    /// Others run on other threads meanwhile. On a single one they have run before, and sent what they had to send, but for whoever
    /// a lock was handed over to.
    has_company: bool,
    /// No handle is left: no more commands will come.
    abandoned: bool,
    state: watch::Sender<State>,
    /// The last policy of eviction that was warned of.
    warned_of: Option<String>,
    /// Strict locks are asked for even where the server may evict them.
    may_evict: bool,
}

/// Releases that are about to go out together, each of another lock.
#[derive(Default)]
struct Gathered {
    jobs: Vec<Job>,
    /// Of which locks: asked for each command that goes before them.
    keys: HashSet<Key, RandomState>,
}

impl Gathered {
    fn push(&mut self, job: Job) {
        self.keys.insert(job.command.key().clone());
        self.jobs.push(job);
    }

    fn drain(&mut self) -> impl Iterator<Item = Job> {
        self.keys.clear();
        self.jobs.drain(..)
    }
}

/// What was sent and is not answered, in the order in which the answers will come.
enum Sent {
    Job {
        job: Job,
        since: Instant,
    },
    /// So many of those behind this are releases in one call, with one answer.
    Together(usize),
    Question(oneshot::Sender<Wire>),
    /// The answer does not matter.
    Remark,
}

/// No handle is left, nothing is on its way, and nothing is owed: the task ends.
struct Abandoned;

impl Actor {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let state = match self.connect().await {
                Err(Abandoned) => return,
                Ok(Err(state)) => state,
                Ok(Ok((link, standing))) => {
                    failures = 0;
                    self.tell(State::Up(Peer {
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
                    self.hearing.messages.connected();
                    let run_id = link.run_id.clone();
                    self.hearing.watched.set_told(link.tells);
                    let ending = self.serve(link, standing).await;
                    self.hearing.watched.set_told(false);
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
        let (target, hearing, timeouts) = (self.target.clone(), self.hearing.clone(), self.timeouts);
        let attempt = timeout(timeouts.connect, async move { establish(&target, timeouts, &hearing).await });
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
                errand = self.inbox.recv(), if !self.abandoned => match errand {
                    Some(errand) => self.fail(errand, Unknown::NotConnected),
                    None => self.abandoned = true,
                },
            }
        }
    }

    /// What will not be answered. A release is remembered; whoever asked a question hears of it when it is dropped.
    fn fail(&mut self, errand: Errand, unknown: Unknown) {
        if let Errand::Job(job) = errand {
            self.fail_job(job, self.clock.now(), unknown);
        }
    }

    fn fail_job(&mut self, job: Job, since: Instant, unknown: Unknown) {
        self.owed.remember(job.command, since, self.clock.now());
        job.reply.answer(Answer::Unknown(unknown));
    }

    /// Sends commands and hands out answers until the connection is lost or given up: the reason. What is owed goes first.
    async fn serve(&mut self, mut link: Link, standing: Standing) -> Result<&'static str, Abandoned> {
        let mut sent: VecDeque<Sent> = VecDeque::new();
        let patience = self.timeouts.node * TIMEOUTS_IN_A_ROW;
        // Since when nothing was heard, although something is to be heard.
        let mut silent_since = Timer::now();
        let mut alarm = std::pin::pin!(sleep(Duration::ZERO));
        let mut alarm_is_set = false;
        // What the server refuses to release is asked for again: one of it after a pause, and all when that is accepted.
        let mut ask_again = std::pin::pin!(sleep(Duration::ZERO));
        let mut ask_again_is_set = false;
        let mut pause = self.timeouts.node;
        let owed = self.owed.len();
        let mut waiting = self.owed_errands(owed);
        // What was watched over the connection before is read again on this one.
        waiting.extend(if link.tells { self.watching() } else { Vec::new() });
        let mut to_ask = 0;
        let clock = self.clock.clone();
        let mut admitted = std::pin::pin!(sleep_until(&*clock, standing.counts_from));
        let mut is_admitted = false;
        let mut others_first = false;
        if owed > 0 {
            tracing::info!(node = self.target.name(), releases = owed, "sending owed releases");
        }

        let reason = loop {
            while std::mem::take(&mut others_first) {
                // Those who are about to send more come first, so that it all goes out in one write.
                yield_once().await;
                let known = waiting.len();
                while waiting.len() < MOST_COMMANDS
                    && let Ok(errand) = self.inbox.try_recv()
                {
                    waiting.push(errand);
                }
                others_first = waiting[known..].iter().any(Errand::hands_over);
            }
            if waiting.is_empty() && to_ask > 0 {
                waiting.extend(self.owed_errands(to_ask.min(MOST_COMMANDS)));
                to_ask = if waiting.is_empty() { 0 } else { to_ask - waiting.len() };
            }
            if sent.is_empty() && !waiting.is_empty() {
                silent_since = Timer::now();
                if !alarm_is_set {
                    alarm.as_mut().reset(silent_since + patience);
                    alarm_is_set = true;
                }
            }
            self.write(&mut link, &mut waiting, &mut sent);
            if self.abandoned && sent.is_empty() && self.owed.is_empty(self.clock.now()) {
                return Err(Abandoned);
            }
            tokio::select! {
                biased;
                // Before the answers, which under load are always there.
                () = &mut ask_again, if ask_again_is_set => {
                    ask_again_is_set = false;
                    to_ask = to_ask.max(1);
                }
                () = &mut admitted, if !is_admitted => {
                    is_admitted = true;
                    self.voter.tell(self.target.name(), self.clock.now(), standing);
                }
                exchanged = link.connection.exchange() => {
                    let unanswered = sent.len();
                    let handed_out = self.hand_out((&mut link, standing), &mut sent);
                    let HandedOut { again, owed_was_accepted, is_nonsense } = handed_out;
                    waiting.extend(again);
                    // What is no answer keeps no connection alive.
                    if sent.len() < unanswered {
                        silent_since = Timer::now();
                        others_first = self.is_only_node;
                    }
                    if exchanged.is_err() || is_nonsense {
                        break if is_nonsense { "does not speak the protocol of Redis" } else { "connection lost" };
                    }
                    if owed_was_accepted {
                        pause = self.timeouts.node;
                        to_ask = self.owed.len();
                    } else if self.owed.len() > to_ask && !ask_again_is_set {
                        ask_again.as_mut().reset(Timer::now() + pause);
                        ask_again_is_set = true;
                        pause = (pause * 2).min(LONGEST_PAUSE.max(self.timeouts.node));
                    }
                }
                received = self.inbox.recv_many(&mut waiting, MOST_COMMANDS), if !self.abandoned => {
                    self.abandoned = received == 0;
                    others_first = self.has_company || waiting.iter().any(Errand::hands_over);
                }
                () = &mut alarm, if alarm_is_set => {
                    if sent.is_empty() && !link.connection.is_behind() {
                        alarm_is_set = false;
                    } else if silent_since.elapsed() >= patience {
                        self.farewell(&mut link, &mut waiting).await;
                        break "no answer for three node timeouts";
                    } else {
                        alarm.as_mut().reset(silent_since + patience);
                    }
                }
            }
        };
        for sent in sent {
            if let Sent::Job { job, since } = sent {
                self.fail_job(job, since, Unknown::ConnectionLost);
            }
        }
        waiting.into_iter().for_each(|errand| self.fail(errand, Unknown::NotConnected));
        Ok(reason)
    }

    /// Hands what waits over to the connection. Releases go together, behind what asks for other locks.
    fn write(&mut self, link: &mut Link, waiting: &mut Vec<Errand>, sent: &mut VecDeque<Sent>) {
        if waiting.is_empty() {
            return;
        }
        let since = self.clock.now();
        let mut releases = std::mem::take(&mut self.releases);
        for errand in waiting.drain(..) {
            match errand {
                Errand::Job(job) if let Some(refusal) = self.objection_to(&job.command, link) => {
                    job.reply.answer(Answer::Unknown(Unknown::Refused(refusal)));
                }
                Errand::Job(mut job) => {
                    if job.form == Form::Hashed {
                        job.form = link.form;
                    }
                    let key = job.command.key();
                    let has_lists = self.hearing.messages.lists(link, key) != Lists::Closed;
                    job.has_list = has_lists && job.command.concerns_list();
                    let goes_together = job.goes_together();
                    let keeps_its_place = !goes_together && !job.may_come_before_releases();
                    if keeps_its_place || releases.keys.contains(key) {
                        self.write_releases(link, (&mut releases, since), sent);
                    }
                    if goes_together {
                        let goes_with = |other: &Job| are_judged_alike(&other.command, &job.command);
                        if releases.jobs.len() == MOST_TOGETHER || !releases.jobs.last().is_none_or(goes_with)
                        {
                            self.write_releases(link, (&mut releases, since), sent);
                        }
                        releases.push(job);
                        continue;
                    }
                    if link.tells && job.is_watching {
                        let mut out = Writer(link.connection.outgoing());
                        out.command(3);
                        [&b"CLIENT"[..], b"CACHING", b"YES"].iter().for_each(|part| out.part(part));
                        sent.push_back(Sent::Remark);
                    }
                    self.write_job(link, &job, job.form);
                    sent.push_back(Sent::Job { job, since });
                }
                Errand::Question(question, reply) => {
                    link.connection.outgoing().extend(question.get_packed_command());
                    sent.push_back(Sent::Question(reply));
                }
            }
        }
        self.write_releases(link, (&mut releases, since), sent);
        self.releases = releases;
    }

    fn write_job(&self, link: &mut Link, job: &Job, form: Form) {
        let lists = self.hearing.messages.lists(link, job.command.key());
        let process = link.run_id.as_deref().unwrap_or_default();
        encode(&job.command, form, (lists, process), &mut Writer(link.connection.outgoing()));
    }

    /// Of a single one the server takes the plain script in less time.
    fn write_releases(
        &self,
        link: &mut Link,
        (releases, since): (&mut Gathered, Instant),
        sent: &mut VecDeque<Sent>,
    ) {
        let jobs = &releases.jobs;
        match &jobs[..] {
            [] => return,
            [job] => self.write_job(link, job, job.form),
            [first, ..] => {
                let is_known = jobs.iter().all(|job| job.form == Form::Hashed);
                let form = if is_known { Form::Hashed } else { Form::Full };
                let lists = self.hearing.messages.lists(link, first.command.key());
                let process = link.run_id.as_deref().unwrap_or_default();
                let commands = jobs.iter().map(|job| &job.command);
                let mut out = Writer(link.connection.outgoing());
                encode_together(commands, form, (lists, process), &mut out);
                sent.push_back(Sent::Together(jobs.len()));
            }
        }
        sent.extend(releases.drain().map(|job| Sent::Job { job, since }));
    }

    /// Why the server is not asked at all.
    fn objection_to(&self, command: &Command, link: &Link) -> Option<Refusal> {
        match command {
            // It would compare with nothing.
            Command::Observe { .. } | Command::Enrol { .. } if link.run_id.is_none() => {
                Some(Refusal::Nameless)
            }
            // What it throws away, its marker stands for.
            Command::Propose { .. } if link.evicts_by.is_some() && !self.may_evict => Some(Refusal::Evicts),
            _ => None,
        }
    }

    /// Hands out a portion of the answers that have come.
    fn hand_out(&mut self, (link, standing): (&mut Link, Standing), sent: &mut VecDeque<Sent>) -> HandedOut {
        let mut handed_out = HandedOut { again: Vec::new(), owed_was_accepted: false, is_nonsense: false };
        let now = self.clock.now();
        let mut left = if self.is_only_node { PORTION } else { usize::MAX };
        while left > 0 {
            let reply = match link.connection.next_reply() {
                Ok(Some(Wire::Push { kind, data })) => {
                    self.hearing.hear(&PushInfo { kind, data });
                    continue;
                }
                Ok(Some(reply)) => reply,
                Ok(None) => break,
                Err(resp::NoReply) => {
                    handed_out.is_nonsense = true;
                    break;
                }
            };
            let counts = (now, standing.counts_from);
            left -= 1;
            match sent.pop_front() {
                Some(Sent::Job { job, since }) => {
                    self.take_in(link, (job, since), (reply, counts), sent, &mut handed_out);
                }
                Some(Sent::Together(releases)) => {
                    left = left.saturating_sub(releases - 1);
                    self.take_in_together(link, releases, (reply, counts), sent, &mut handed_out);
                }
                Some(Sent::Question(asker)) => drop(asker.send(reply)),
                Some(Sent::Remark) => {}
                // It says something that nobody asked for: what comes next could be taken for another answer.
                None => {
                    handed_out.is_nonsense = true;
                    break;
                }
            }
        }
        handed_out
    }

    /// Answers one command. One that the server refused for want of a script comes back, to be sent in full, unless that it was, or a
    /// release that was `sent` behind it would then come before it. A release that was refused is still owed.
    ///
    /// What is heard before the node votes counts for nothing: it is this connection that tells whose answers they are.
    fn take_in(
        &mut self,
        link: &mut Link,
        (mut job, since): (Job, Instant),
        (reply, (now, counts_from)): (Wire, (Instant, Instant)),
        sent: &VecDeque<Sent>,
        handed_out: &mut HandedOut,
    ) {
        match decode(&job.command, reply) {
            // Maybe not for want of rights to the key, but to the list beside it, or because the two are too much for a proxy:
            // nothing was done, and it is asked without the list.
            Read::Answer(Answer::Unknown(Unknown::Refused(Refusal::NoPermission | Refusal::Cluster)))
                if job.has_list =>
            {
                link.close_lists_of(job.command.key().namespace());
                handed_out.again.push(Errand::Job(job));
            }
            Read::Answer(Answer::Unknown(unknown)) => self.fail_job(job, since, unknown),
            Read::Answer(answer) => {
                let is_owed = matches!(job.command, Command::Release { .. }) && job.reply.is_to_nobody();
                handed_out.owed_was_accepted |= is_owed;
                job.reply.answer(match job.command.rules() {
                    Rules::Plain => answer.heard(now, counts_from),
                    // The server has judged itself.
                    Rules::Strict(_) => answer,
                });
            }
            Read::NoScript => {
                let is_released = || sent.iter().filter_map(Sent::job).any(|other| other.releases(&job));
                if job.form == Form::Full || is_released() {
                    self.fail_job(job, since, Unknown::Refused(Refusal::Other));
                } else {
                    job.form = Form::Full;
                    handed_out.again.push(Errand::Job(job));
                }
            }
        }
    }

    /// Answers several releases, as each would have been by itself. Where they were refused together each is asked for by itself.
    fn take_in_together(
        &mut self,
        link: &mut Link,
        releases: usize,
        (reply, counts): (Wire, (Instant, Instant)),
        sent: &mut VecDeque<Sent>,
        handed_out: &mut HandedOut,
    ) {
        let first = sent.front().and_then(Sent::job).expect("the releases stand behind their number");
        let mut replies = decode_together(releases, first.command.rules(), reply);
        for place in 0..releases {
            let Some(Sent::Job { job, since }) = sent.pop_front() else {
                unreachable!("the releases stand behind their number")
            };
            let reply = match &mut replies {
                Replies::Same(reply) => reply.clone(),
                Replies::Each(replies) => std::mem::replace(&mut replies[place], Wire::Nil),
                // The script was there: whoever says so does not know what it was sent.
                Replies::NoScript => {
                    let is_alone = job.form == Form::Full;
                    handed_out.again.push(Errand::Job(Job { form: Form::Full, is_alone, ..job }));
                    continue;
                }
                Replies::Refused => {
                    handed_out.again.push(Errand::Job(Job { is_alone: true, ..job }));
                    continue;
                }
            };
            self.take_in(link, (job, since), (reply, counts), sent, handed_out);
        }
    }

    /// So many of the releases that are owed, at most.
    fn owed_errands(&mut self, most: usize) -> Vec<Errand> {
        let owed = self.owed.take(most, self.clock.now());
        owed.into_iter().map(|command| Errand::Job(Job::new(command, Reply::to_nobody()))).collect()
    }

    fn watching(&self) -> Vec<Errand> {
        let watched = self.hearing.watched.all().into_iter();
        watched.map(|watch| Errand::Job(Job::watching(watch))).collect()
    }

    /// Before a connection that does not answer is let go, the releases that wait are written on it: there, they come
    /// after the keys that they release, if the server ever reads them.
    async fn farewell(&mut self, link: &mut Link, waiting: &mut Vec<Errand>) {
        while let Ok(errand) = self.inbox.try_recv() {
            waiting.push(errand);
        }
        for job in waiting.iter().filter_map(Errand::job) {
            if matches!(job.command, Command::Release { .. }) {
                self.write_job(link, job, Form::Full);
            }
        }
        // As far as the socket takes it. An answer is not expected.
        link.connection.send_what_can_be_sent().await;
    }
}

/// Lets all other tasks run that can, once. Unlike tokio's own it does not go round by the timers and sockets, which costs a call
/// of the kernel.
async fn yield_once() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What came of the answers that were handed out.
struct HandedOut {
    /// To be sent again.
    again: Vec<Errand>,
    /// A release that was owed is carried out: the server takes them.
    owed_was_accepted: bool,
    /// What was read is no answer to anything.
    is_nonsense: bool,
}

impl Sent {
    fn job(&self) -> Option<&Job> {
        match self {
            Sent::Job { job, .. } => Some(job),
            Sent::Together(_) | Sent::Question(_) | Sent::Remark => None,
        }
    }
}

impl Errand {
    /// Whether this is the release of a holder behind which another one of this client comes right away.
    fn hands_over(&self) -> bool {
        self.job().is_some_and(|job| matches!(job.command, Command::Release { wake: Wake::NobodyYet, .. }))
    }

    fn job(&self) -> Option<&Job> {
        match self {
            Errand::Job(job) => Some(job),
            Errand::Question(..) => None,
        }
    }
}
