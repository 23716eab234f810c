//! A Redis or Valkey server as a node: a task that keeps the one connection to it.
//!
//! All commands that have come are sent in one write, nearly in order: of those that ask for locks, and only of those, releases of
//! others may come behind. The task never waits for an answer before it sends the next. A client that is alone with its only node
//! sends past the task.
//! While the connection is down commands are refused at once, and the connection is tried again after every kind of error, for
//! ever. Nothing is sent twice, with three exceptions: a release that was not answered is sent first when the connection is
//! back, what a server refused for want of a script is sent again with the script, and releases that it refused together are sent
//! again one by one.

mod address;
mod connection;
mod empty_lists;
mod handshake;
mod messages;
mod resp;
#[cfg(feature = "tls")]
mod tls;
mod tracking;
mod traffic;
mod voter;
mod wire;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use redis::{PushInfo, Value as Wire};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant as Timer, Sleep, sleep, timeout};

pub use self::address::NodeConfig;
pub(crate) use self::address::{Target, check_connect_timeout};
use self::handshake::{Hearing, Link, establish, field};
use self::messages::Messages;
use self::tracking::Watched;
use self::traffic::{Desk, Errand, Job, ListUse, MOST_COMMANDS, Sent, Traffic};
use self::voter::Voter;
use self::wire::{Form, Read, Replies, decode, decode_together};
use super::owed::Owed;
use super::{Bell, Facts, FactsFuture, Node, Reply, Watcher};
#[cfg(feature = "sim")]
use crate::clock::SystemClock;
use crate::clock::{Clock, sleep_until};
#[cfg(feature = "sim")]
use crate::protocol::admission::RestartProtection;
use crate::protocol::admission::{Admission, Standing};
use crate::protocol::command::{Answer, Command, Key, NodeIndex, Refusal, Unknown, Value, Waiter};
use crate::protocol::marker::Rules;
#[cfg(feature = "sim")]
use crate::protocol::settings::SettingsError;
use crate::protocol::time::Instant;
#[cfg(feature = "sim")]
use crate::protocol::time::{Drift, Ttl};
use crate::protocol::wait::Backoff;
use crate::sync::lock;

/// Answers of an only node that are handed out before what comes of them is sent: it would have nothing to do while the rest is
/// handed out. Of several nodes those that no majority waited for are still at work then, and larger writes are worth more.
const PORTION: usize = 16;

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
    desk: Arc<Mutex<Desk>>,
    clock: Arc<dyn Clock>,
    watched: Arc<Watched>,
    state: watch::Receiver<State>,
    timeout: Duration,
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
        let desk = Arc::new(Mutex::new(Desk { inbox, traffic: None }));
        let watched = Arc::new(Watched::default());
        let Client { waiter, bell, namespace, clock, identities, may_evict, is_only_node } = client;
        let messages = Arc::new(Messages::new(waiter, index, bell, namespace, errands.downgrade()));
        let actor = Actor {
            target,
            timeouts,
            clock: clock.clone(),
            identities,
            voter: Voter::new(admission),
            desk: desk.clone(),
            owed: Owed::default(),
            hearing: Hearing { watched: watched.clone(), messages },
            is_only_node,
            has_company: runtime.runtime_flavor() != RuntimeFlavor::CurrentThread,
            abandoned: false,
            state,
            warned_of: None,
            may_evict,
        };
        runtime.spawn(actor.run());
        let (state, timeout) = (states.clone(), timeouts.node);
        let node = RedisNode { errands, desk, clock, watched, state, timeout };
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
        let job = Job::new(command, reply);
        let left = match self.desk.try_lock() {
            Ok(mut desk) => desk.take_on(job),
            Err(TryLockError::Poisoned(desk)) => desk.into_inner().take_on(job),
            Err(TryLockError::WouldBlock) => Some(job),
        };
        if let Some(job) = left {
            // If the task is gone with its runtime, the job is dropped, and its reply says so.
            let _ = self.errands.send(Errand::Job(job));
        }
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
    desk: Arc<Mutex<Desk>>,
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

/// No handle is left, nothing is on its way, and nothing is owed: the task ends.
struct Abandoned;

/// How the task serves one connection.
struct Service {
    standing: Standing,
    /// When the answers begin to count; `None` once that was said.
    admitted: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// When a silence has been long.
    alarm: Pin<Box<Sleep>>,
    /// What the server refuses to release is asked for again: one of it after a pause, and all when that is accepted.
    ask_again: Pin<Box<Sleep>>,
    ask_again_is_set: bool,
    pause: Duration,
    /// How many of the releases that are owed are still to be asked for.
    to_ask: usize,
    others: Others,
}

/// Those who are about to send more come before the task sends, so that it all goes out in one write. Unlike tokio's own way to let
/// others run this does not go round by the timers and sockets, which costs a call of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    /// Nobody is expected.
    Later,
    /// They are to have their turn.
    First,
    /// They have it; so much waited to be sent before.
    AtIt { known: usize },
}

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
                errand = poll_fn(|context| lock(&self.desk).inbox.poll_recv(context)), if !self.abandoned => match errand {
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
    async fn serve(&mut self, link: Link, standing: Standing) -> Result<&'static str, Abandoned> {
        let owed = self.owed.len();
        if owed > 0 {
            tracing::info!(node = self.target.name(), releases = owed, "sending owed releases");
        }
        let heard_by = (self.hearing.messages.clone(), self.clock.clone());
        let mut traffic = Traffic::over(link, heard_by, self.may_evict);
        traffic.waiting = self.owed_errands(owed);
        // What was watched over the connection before is read again on this one.
        traffic.waiting.extend(if traffic.link.tells { self.watching() } else { Vec::new() });
        let desk = self.desk.clone();
        lock(&desk).traffic = Some(traffic);
        let mut service = self.service(standing);
        let ending = poll_fn(|context| self.go_on(&mut service, &mut lock(&desk), context)).await;

        let traffic = lock(&desk).traffic.take().expect("it is there until it is taken");
        if ending.is_ok() {
            for sent in traffic.sent {
                if let Sent::Job { job, since } = sent {
                    self.fail_job(job, since, Unknown::ConnectionLost);
                }
            }
            traffic.waiting.into_iter().for_each(|errand| self.fail(errand, Unknown::NotConnected));
        }
        ending
    }

    fn service(&self, standing: Standing) -> Service {
        let clock = self.clock.clone();
        Service {
            standing,
            admitted: Some(Box::pin(async move { sleep_until(&*clock, standing.counts_from).await })),
            alarm: Box::pin(sleep(Duration::ZERO)),
            ask_again: Box::pin(sleep(Duration::ZERO)),
            ask_again_is_set: false,
            pause: self.timeouts.node,
            to_ask: 0,
            others: Others::Later,
        }
    }

    /// Who comes before what has come is sent.
    fn others(&self, come: &[Errand]) -> Others {
        let are_expected = !come.is_empty() && (self.has_company || come.iter().any(Errand::hands_over));
        if are_expected { Others::First } else { Others::Later }
    }

    /// Does all there is to do for now.
    fn go_on(
        &mut self,
        service: &mut Service,
        desk: &mut Desk,
        context: &mut Context<'_>,
    ) -> Poll<Result<&'static str, Abandoned>> {
        let Desk { inbox, traffic } = desk;
        let traffic = traffic.as_mut().expect("there is a connection");
        let patience = self.timeouts.node * TIMEOUTS_IN_A_ROW;
        if !traffic.task.will_wake(context.waker()) {
            traffic.task = context.waker().clone();
        }
        if service.others == Others::Later {
            service.others = self.others(&traffic.waiting);
        }
        loop {
            match service.others {
                Others::Later => {}
                Others::First => {
                    service.others = Others::AtIt { known: traffic.waiting.len() };
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Others::AtIt { known } => {
                    while traffic.waiting.len() < MOST_COMMANDS
                        && let Ok(errand) = inbox.try_recv()
                    {
                        traffic.waiting.push(errand);
                    }
                    let one_hands_over = traffic.waiting[known..].iter().any(Errand::hands_over);
                    service.others = if one_hands_over { Others::First } else { Others::Later };
                    continue;
                }
            }
            if traffic.waiting.is_empty() && service.to_ask > 0 {
                traffic.waiting.extend(self.owed_errands(service.to_ask.min(MOST_COMMANDS)));
                service.to_ask =
                    if traffic.waiting.is_empty() { 0 } else { service.to_ask - traffic.waiting.len() };
            }
            traffic.write();
            // All that waited was refused without being sent.
            if traffic.sent.is_empty() && service.to_ask > 0 {
                continue;
            }
            if !traffic.alarm_is_set && !traffic.sent.is_empty() {
                service.look_at_silence_in(patience.saturating_sub(traffic.silent_since.elapsed()));
                traffic.alarm_is_set = true;
            }
            if self.abandoned && traffic.sent.is_empty() && self.owed.is_empty(self.clock.now()) {
                return Poll::Ready(Err(Abandoned));
            }
            // Before the answers, which under load are always there.
            if service.ask_again_is_set && service.ask_again.as_mut().poll(context).is_ready() {
                service.ask_again_is_set = false;
                service.to_ask = service.to_ask.max(1);
                continue;
            }
            if let Some(admitted) = &mut service.admitted
                && admitted.as_mut().poll(context).is_ready()
            {
                service.admitted = None;
                self.voter.tell(self.target.name(), self.clock.now(), service.standing);
            }
            if let Poll::Ready(exchanged) = traffic.link.connection.poll_exchange(context) {
                match self.take_in_all(service, traffic, exchanged.is_err()) {
                    Ok(()) => continue,
                    Err(reason) => return Poll::Ready(Ok(reason)),
                }
            }
            if !self.abandoned
                && let Poll::Ready(received) =
                    inbox.poll_recv_many(context, &mut traffic.waiting, MOST_COMMANDS)
            {
                self.abandoned = received == 0;
                service.others = self.others(&traffic.waiting);
                continue;
            }
            if traffic.alarm_is_set && service.alarm.as_mut().poll(context).is_ready() {
                if traffic.sent.is_empty() && !traffic.link.connection.is_behind() {
                    traffic.alarm_is_set = false;
                } else if traffic.silent_since.elapsed() >= patience {
                    while let Ok(errand) = inbox.try_recv() {
                        traffic.waiting.push(errand);
                    }
                    traffic.bid_farewell(context);
                    return Poll::Ready(Ok("no answer for three node timeouts"));
                } else {
                    service.look_at_silence_in(patience.saturating_sub(traffic.silent_since.elapsed()));
                }
                continue;
            }
            debug_assert!(traffic.waiting.is_empty(), "nobody would send it");
            return Poll::Pending;
        }
    }

    /// Hands out what has come, and notes what comes of it.
    ///
    /// # Errors
    ///
    /// Why this connection ends.
    fn take_in_all(
        &mut self,
        service: &mut Service,
        traffic: &mut Traffic,
        is_lost: bool,
    ) -> Result<(), &'static str> {
        let unanswered = traffic.sent.len();
        let HandedOut { again, owed_was_accepted, is_nonsense } = self.hand_out(traffic, service.standing);
        traffic.waiting.extend(again);
        // What is no answer keeps no connection alive.
        if traffic.sent.len() < unanswered {
            traffic.silent_since = std::time::Instant::now();
            // With several nodes nothing is saved: their writes come one after the other all the same.
            let was_alone = self.is_only_node && unanswered == 1;
            traffic.lone_answers = if was_alone { traffic.lone_answers.saturating_add(1) } else { 0 };
            if self.is_only_node {
                service.others = Others::First;
            }
        }
        if is_nonsense {
            return Err("does not speak the protocol of Redis");
        }
        if is_lost {
            return Err("connection lost");
        }
        if owed_was_accepted {
            service.pause = self.timeouts.node;
            service.to_ask = self.owed.len();
        } else if self.owed.len() > service.to_ask && !service.ask_again_is_set {
            service.ask_again.as_mut().reset(Timer::now() + service.pause);
            service.ask_again_is_set = true;
            service.pause = (service.pause * 2).min(LONGEST_PAUSE.max(self.timeouts.node));
        }
        Ok(())
    }

    /// Hands out a portion of the answers that have come.
    fn hand_out(&mut self, traffic: &mut Traffic, standing: Standing) -> HandedOut {
        let mut handed_out = HandedOut { again: Vec::new(), owed_was_accepted: false, is_nonsense: false };
        let now = self.clock.now();
        let mut left = if self.is_only_node { PORTION } else { usize::MAX };
        while left > 0 {
            let reply = match traffic.link.connection.next_reply() {
                Ok(Some(Wire::Push { kind, data })) => {
                    let push = PushInfo { kind, data };
                    self.hearing.hear(&push);
                    handed_out.again.extend(traffic.hear(&push));
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
            match traffic.sent.pop_front() {
                Some(Sent::Job { job, since }) => {
                    self.take_in(traffic, (job, since), (reply, counts), &mut handed_out);
                }
                Some(Sent::Together(releases)) => {
                    left = left.saturating_sub(releases - 1);
                    self.take_in_together(traffic, releases, (reply, counts), &mut handed_out);
                }
                Some(Sent::Question(asker)) => drop(asker.send(reply)),
                Some(Sent::List { key, question }) => {
                    traffic.empty_lists.answered(&key, question, reply == Wire::Int(0));
                }
                Some(Sent::Remark) => {
                    if matches!(reply, Wire::ServerError(_)) {
                        traffic.empty_lists.forget_all();
                    }
                }
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
        traffic: &mut Traffic,
        (mut job, since): (Job, Instant),
        (reply, (now, counts_from)): (Wire, (Instant, Instant)),
        handed_out: &mut HandedOut,
    ) {
        match decode(&job.command, reply) {
            // Maybe not for want of rights to the key, but to the list beside it, or because the two are too much for a proxy:
            // nothing was done, and it is asked without the list.
            Read::Answer(Answer::Unknown(Unknown::Refused(Refusal::NoPermission | Refusal::Cluster)))
                if job.list == ListUse::Sent =>
            {
                traffic.link.close_lists_of(job.command.key().namespace());
                handed_out.again.push(Errand::Job(job));
            }
            Read::Answer(Answer::Unknown(unknown)) => self.fail_job(job, since, unknown),
            Read::Answer(mut answer) => {
                let is_owed = matches!(job.command, Command::Release { .. }) && job.reply.is_to_nobody();
                handed_out.owed_was_accepted |= is_owed;
                traffic.note(&job, &mut answer);
                job.reply.answer(match job.command.rules() {
                    Rules::Plain => answer.heard(now, counts_from),
                    // The server has judged itself.
                    Rules::Strict(_) => answer,
                });
            }
            Read::NoScript => {
                let is_released =
                    || traffic.sent.iter().filter_map(Sent::job).any(|other| other.releases(&job));
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
        traffic: &mut Traffic,
        releases: usize,
        (reply, counts): (Wire, (Instant, Instant)),
        handed_out: &mut HandedOut,
    ) {
        let first = traffic.sent.front().and_then(Sent::job).expect("the releases stand behind their number");
        let mut replies = decode_together(releases, first.command.rules(), reply);
        for place in 0..releases {
            let Some(Sent::Job { job, since }) = traffic.sent.pop_front() else {
                unreachable!("the releases stand behind their number")
            };
            let reply = match &mut replies {
                Replies::Same(reply) => reply.clone(),
                Replies::Each(replies) => std::mem::replace(&mut replies[place], Wire::Nil),
                // The script was there: whoever says so does not know what it was sent.
                Replies::NoScript => {
                    let goes_by_itself = job.form == Form::Full;
                    handed_out.again.push(Errand::Job(Job { form: Form::Full, goes_by_itself, ..job }));
                    continue;
                }
                Replies::Refused => {
                    handed_out.again.push(Errand::Job(Job { goes_by_itself: true, ..job }));
                    continue;
                }
            };
            self.take_in(traffic, (job, since), (reply, counts), handed_out);
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
}

/// Nobody hears any more of what is under way when the task ends, or is dropped with its runtime.
impl Drop for Actor {
    fn drop(&mut self) {
        let mut desk = lock(&self.desk);
        desk.inbox.close();
        while let Ok(errand) = desk.inbox.try_recv() {
            drop(errand);
        }
        drop(desk.traffic.take());
    }
}

impl Service {
    fn look_at_silence_in(&mut self, span: Duration) {
        self.alarm.as_mut().reset(Timer::now() + span);
    }
}

/// What came of the answers that were handed out.
struct HandedOut {
    /// To be sent again, or because of what was heard.
    again: Vec<Errand>,
    /// A release that was owed is carried out: the server takes them.
    owed_was_accepted: bool,
    /// What was read is no answer to anything.
    is_nonsense: bool,
}
