//! What goes to and fro between a client and one server: what waits to be sent on the connection that there is, and what was sent
//! and is not answered. It sends, and does not read: whose answers come, and what comes of them, is the affair of the task.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Waker};

use foldhash::fast::RandomState;
use redis::{Cmd, PushInfo, PushKind, Value as Wire};
use tokio::sync::{mpsc, oneshot};

use super::empty_lists::{EmptyLists, Question};
use super::handshake::Link;
use super::messages::Messages;
use super::resp::Writer;
use super::tracking::Watch;
use super::wire::{Form, Lists, are_judged_alike, encode, encode_question, encode_together, simple_release};
use crate::clock::Clock;
use crate::node::Reply;
use crate::protocol::command::{Answer, Command, Key, Refusal, Unknown, Wake};
use crate::protocol::round::RoundId;
use crate::protocol::time::Instant;

/// Commands that are taken in before some are written, at most.
pub(super) const MOST_COMMANDS: usize = 1024;

/// Releases that go to a server in one call, at most: it does nothing else meanwhile.
const MOST_TOGETHER: usize = 64;

/// After so many answers in a row of which each was the only one to come, whoever asks is taken to be alone.
const ALONE: u32 = 4;

/// What the task of a node shares with those who submit commands to it. Whoever finds it locked leaves an errand: only the task
/// waits for it, for as long as it takes to write one command.
pub(super) struct Desk {
    /// What is no command, and commands that could not be [taken on](Desk::take_on).
    pub(super) inbox: mpsc::UnboundedReceiver<Errand>,
    /// While there is a connection.
    pub(super) traffic: Option<Traffic>,
}

/// What the task is asked to do.
pub(super) enum Errand {
    Job(Job),
    /// To ask the server something that is no command to a node, and to hand back what it says.
    Question(Cmd, oneshot::Sender<Wire>),
}

/// A command, and the duty to answer it.
pub(super) struct Job {
    pub(super) command: Command,
    pub(super) reply: Reply,
    pub(super) form: Form,
    /// The server shall tell when somebody else changes the key from then on.
    pub(super) is_watching: bool,
    pub(super) list: ListUse,
    /// Refused together with others.
    pub(super) goes_by_itself: bool,
}

/// Whether what concerns the wait list is sent with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListUse {
    /// It concerns none, or may not use it.
    LeftOut,
    Sent,
    /// A release leaves it out, since it is known to be empty.
    Spared,
    /// And somebody has entered it, maybe before the release was carried out.
    Overlooked,
}

/// What was sent and is not answered, in the order in which the answers will come.
pub(super) enum Sent {
    Job {
        job: Job,
        since: Instant,
    },
    /// So many of those behind this are releases in one call, with one answer.
    Together(usize),
    Question(oneshot::Sender<Wire>),
    /// Whether a wait list is there.
    List {
        key: Key,
        question: Question,
    },
    /// To be told of changes. Only a refusal matters.
    Remark,
}

/// What is under way on the connection that there is.
pub(super) struct Traffic {
    pub(super) link: Link,
    /// To be sent. Whoever puts something here while the task rests wakes it.
    pub(super) waiting: Vec<Errand>,
    pub(super) sent: VecDeque<Sent>,
    /// Since when nothing was heard, although something is to be heard. Not by the clock of a runtime: whoever submits may have another.
    pub(super) silent_since: std::time::Instant,
    /// The task looks after a silence.
    pub(super) alarm_is_set: bool,
    /// So many answers came in a row of which each was the only one that was to come, from the only node.
    pub(super) lone_answers: u32,
    /// Wakes the task.
    pub(super) task: Waker,
    messages: Arc<Messages>,
    clock: Arc<dyn Clock>,
    /// Strict locks are asked for even where the server may evict them.
    may_evict: bool,
    pub(super) empty_lists: EmptyLists,
    /// Room for those that are about to go out together.
    releases: Gathered,
}

impl Desk {
    /// Takes a command on, unless there is no connection, or some that came before are still to be taken in, or too many wait: then it
    /// comes back, to be left in the inbox.
    pub(super) fn take_on(&mut self, job: Job) -> Option<Job> {
        match &mut self.traffic {
            Some(traffic) if self.inbox.is_empty() && traffic.waiting.len() < MOST_COMMANDS => {
                traffic.take_on(job);
                None
            }
            _ => Some(job),
        }
    }
}

impl Traffic {
    pub(super) fn over(
        link: Link,
        (messages, clock): (Arc<Messages>, Arc<dyn Clock>),
        may_evict: bool,
    ) -> Self {
        Traffic {
            link,
            waiting: Vec::new(),
            sent: VecDeque::new(),
            silent_since: std::time::Instant::now(),
            alarm_is_set: false,
            lone_answers: 0,
            task: Waker::noop().clone(),
            messages,
            clock,
            may_evict,
            empty_lists: EmptyLists::default(),
            releases: Gathered::default(),
        }
    }

    /// Nothing is on its way or about to be, and whoever asks seems to be the only one.
    fn is_alone(&self) -> bool {
        self.lone_answers >= ALONE && self.sent.is_empty() && self.waiting.is_empty()
    }

    /// Puts a command behind those that wait to be sent, and wakes the task for the first of them. Whoever is alone sends it at once,
    /// which saves a turn of the task; of several who ask at the same time the others would come one write later.
    fn take_on(&mut self, job: Job) {
        let (at_once, is_first) = (self.is_alone() && !job.hands_over(), self.waiting.is_empty());
        self.waiting.push(Errand::Job(job));
        if at_once {
            self.send_at_once();
        } else if is_first {
            self.task.wake_by_ref();
        }
    }

    fn send_at_once(&mut self) {
        self.write();
        let sent = self.link.connection.send_what_can_be_sent(&mut Context::from_waker(Waker::noop()));
        // The task waits for what is left to be sent, finds out that the connection is lost, and looks after a silence.
        if !sent || !self.alarm_is_set {
            self.task.wake_by_ref();
        }
    }

    /// Hands what waits over to the connection. Releases go together, behind what asks for other locks.
    pub(super) fn write(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let since = self.clock.now();
        if self.sent.is_empty() {
            self.silent_since = std::time::Instant::now();
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        for errand in waiting.drain(..) {
            match errand {
                Errand::Job(mut job) => {
                    if let Some(refusal) = self.objection_to(&job.command) {
                        job.reply.answer(Answer::Unknown(Unknown::Refused(refusal)));
                        continue;
                    }
                    if job.form == Form::Hashed {
                        job.form = self.link.form;
                    }
                    let has_lists = self.messages.lists(&self.link, job.command.key()) != Lists::Closed;
                    let concerns_list = has_lists && job.command.concerns_list();
                    job.list = if concerns_list { self.list_use(&job.command) } else { ListUse::LeftOut };
                    let goes_together = has_lists && job.goes_together();
                    let key = job.command.key();
                    let keeps_its_place = !goes_together && !job.may_come_before_releases();
                    if keeps_its_place || self.releases.keys.contains(key) {
                        self.write_releases(since);
                    }
                    if goes_together {
                        let goes_with = |other: &Job| are_judged_alike(&other.command, &job.command);
                        let is_full = self.releases.jobs.len() == MOST_TOGETHER;
                        if is_full || !self.releases.jobs.last().is_none_or(goes_with) {
                            self.write_releases(since);
                        }
                        self.releases.push(job);
                        continue;
                    }
                    if self.link.tells && job.is_watching {
                        self.ask_to_be_told();
                    }
                    write_job(&mut self.link, &self.messages, &job, (job.form, job.list));
                    self.sent.push_back(Sent::Job { job, since });
                }
                Errand::Question(question, reply) => {
                    self.link.connection.outgoing().extend(question.get_packed_command());
                    self.sent.push_back(Sent::Question(reply));
                }
            }
        }
        self.write_releases(since);
        self.waiting = waiting;
    }

    /// What is done about the wait list with a command that concerns it. Before a release that comes back often the server is asked to
    /// tell when its list is not empty any more; not while callers of this client hand over to each other, which takes two commands
    /// for each lock.
    fn list_use(&mut self, command: &Command) -> ListUse {
        match command {
            Command::Enlist { key, .. } => self.empty_lists.forget(key),
            Command::Release { key, .. } if self.empty_lists.is_empty(key) => return ListUse::Spared,
            release if simple_release(release).is_some() => {
                let key = release.key();
                if let Some(question) = self.empty_lists.ask(key) {
                    self.ask_to_be_told();
                    encode_question(key, &mut Writer(self.link.connection.outgoing()));
                    self.sent.push_back(Sent::List { key: key.clone(), question });
                }
            }
            _ => {}
        }
        ListUse::Sent
    }

    /// When what the next command reads is changed by somebody else.
    fn ask_to_be_told(&mut self) {
        let mut out = Writer(self.link.connection.outgoing());
        out.command(3);
        [&b"CLIENT"[..], b"CACHING", b"YES"].iter().for_each(|part| out.part(part));
        self.sent.push_back(Sent::Remark);
    }

    /// What a release says of the wait list beside the key.
    pub(super) fn note(&mut self, job: &Job, answer: &mut Answer) {
        let Some(others_wait) = answer.others_wait() else { return };
        *others_wait |= job.list == ListUse::Overlooked;
        // One that lets the key linger does not look.
        let has_looked = job.list == ListUse::Sent && simple_release(&job.command).is_some();
        if has_looked && self.link.tells {
            self.empty_lists.found(job.command.key(), *others_wait);
        }
    }

    /// Takes in that keys have changed. If a list is among them that a release on its way does not look at, somebody may have entered
    /// before it was carried out, and is woken behind it. Not where this client hands over, and then owes it; nor where a waiter of this
    /// client enters behind the release: it would be taken off the list again, and it finds the lock free itself, or held by somebody
    /// who looks.
    pub(super) fn hear(&mut self, push: &PushInfo) -> Vec<Errand> {
        if push.kind != PushKind::Invalidate {
            return Vec::new();
        }
        let lists: Option<Vec<Key>> = match push.data.first() {
            Some(Wire::Array(keys)) => Some(keys.iter().filter_map(lock_key_beside).collect()),
            // Everything was deleted.
            _ => None,
        };
        match &lists {
            Some(lists) if lists.is_empty() => return Vec::new(),
            Some(lists) => lists.iter().for_each(|key| self.empty_lists.forget(key)),
            None => self.empty_lists.forget_all(),
        }
        let mut overlooked = Vec::new();
        for sent in &mut self.sent {
            if let Sent::Job { job, .. } = sent
                && job.list == ListUse::Spared
                && lists.as_ref().is_none_or(|lists| lists.contains(job.command.key()))
            {
                job.list = ListUse::Overlooked;
                if !job.hands_over() && !overlooked.contains(job.command.key()) {
                    overlooked.push(job.command.key().clone());
                }
            }
        }
        let wake = |key| Errand::Job(Job::new(Command::Delist { key }, Reply::to_nobody()));
        overlooked.into_iter().filter(|key| !self.enters(key)).map(wake).collect()
    }

    /// Whether a waiter of this client is about to enter the list.
    fn enters(&self, key: &Key) -> bool {
        let mut jobs =
            self.sent.iter().filter_map(Sent::job).chain(self.waiting.iter().filter_map(Errand::job));
        jobs.any(|job| matches!(&job.command, Command::Enlist { key: list, .. } if list == key))
    }

    /// Of a single one the server takes the plain script in less time.
    fn write_releases(&mut self, since: Instant) {
        let Traffic { link, sent, messages, releases, .. } = self;
        if releases.jobs.iter().any(|job| job.list == ListUse::Sent) {
            releases.jobs.iter_mut().for_each(|job| job.list = ListUse::Sent);
        }
        match &releases.jobs[..] {
            [] => return,
            [job] => write_job(link, messages, job, (job.form, job.list)),
            [first, rest @ ..] => {
                let is_known = first.form == Form::Hashed && rest.iter().all(|job| job.form == Form::Hashed);
                let form = if is_known { Form::Hashed } else { Form::Full };
                let lists = lists_for(first.list, messages, link, first.command.key());
                let process = link.run_id.as_deref().unwrap_or_default();
                let commands = releases.jobs.iter().map(|job| &job.command);
                let mut out = Writer(link.connection.outgoing());
                encode_together(commands, form, (lists, process), &mut out);
                sent.push_back(Sent::Together(releases.jobs.len()));
            }
        }
        sent.extend(releases.drain().map(|job| Sent::Job { job, since }));
    }

    /// Why the server is not asked at all.
    fn objection_to(&self, command: &Command) -> Option<Refusal> {
        match command {
            // It would compare with nothing.
            Command::Observe { .. } | Command::Enrol { .. } if self.link.run_id.is_none() => {
                Some(Refusal::Nameless)
            }
            // What it throws away, its marker stands for.
            Command::Propose { .. } if self.link.evicts_by.is_some() && !self.may_evict => {
                Some(Refusal::Evicts)
            }
            _ => None,
        }
    }

    /// Before a connection that does not answer is let go, the releases that wait are written on it: there, they come
    /// after the keys that they release, if the server ever reads them.
    pub(super) fn bid_farewell(&mut self, context: &mut Context<'_>) {
        let releases = self.waiting.iter().filter_map(Errand::job);
        for job in releases.filter(|job| matches!(job.command, Command::Release { .. })) {
            write_job(&mut self.link, &self.messages, job, (Form::Full, ListUse::Sent));
        }
        // As far as the socket takes it. An answer is not expected.
        self.link.connection.send_what_can_be_sent(context);
    }
}

/// The lock key, if what the server names is a wait list.
fn lock_key_beside(list: &Wire) -> Option<Key> {
    match list {
        Wire::BulkString(list) => Key::of_wait_list(list),
        _ => None,
    }
}

/// What is said of the wait list, or of several.
fn lists_for<'a>(list: ListUse, messages: &'a Messages, link: &Link, key: &Key) -> Lists<'a> {
    if list == ListUse::Sent { messages.lists(link, key) } else { Lists::Closed }
}

fn write_job(link: &mut Link, messages: &Messages, job: &Job, (form, list): (Form, ListUse)) {
    let lists = lists_for(list, messages, link, job.command.key());
    let process = link.run_id.as_deref().unwrap_or_default();
    encode(&job.command, form, (lists, process), &mut Writer(link.connection.outgoing()));
}

impl Job {
    pub(super) fn new(command: Command, reply: Reply) -> Self {
        let is_watching = matches!(command, Command::Extend { .. });
        let (form, list) = (Form::Hashed, ListUse::LeftOut);
        Job { command, reply, form, is_watching, list, goes_by_itself: false }
    }

    /// Reads a key for nothing else but to watch it.
    pub(super) fn watching(watch: Arc<Watch>) -> Self {
        let command = Command::Inspect { key: watch.key.clone() };
        Job { is_watching: true, ..Job::new(command, Reply::new(watch, RoundId(0), 0)) }
    }

    /// Whether this is the release of a holder behind which another one of this client comes right away.
    fn hands_over(&self) -> bool {
        matches!(self.command, Command::Release { wake: Wake::NobodyYet, .. })
    }

    /// Whether this is a release that may go out in one call with others.
    fn goes_together(&self) -> bool {
        !self.goes_by_itself && simple_release(&self.command).is_some()
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
    pub(super) fn releases(&self, other: &Job) -> bool {
        let Command::Release { value: released, .. } = &self.command else { return false };
        match &other.command {
            Command::Extend { value, .. } | Command::Propose { value, .. } | Command::Raise { value, .. } => {
                released == value
            }
            _ => false,
        }
    }
}

impl Sent {
    pub(super) fn job(&self) -> Option<&Job> {
        match self {
            Sent::Job { job, .. } => Some(job),
            Sent::Together(_) | Sent::Question(_) | Sent::List { .. } | Sent::Remark => None,
        }
    }
}

impl Errand {
    /// Whether another holder of this client comes right behind it.
    pub(super) fn hands_over(&self) -> bool {
        self.job().is_some_and(Job::hands_over)
    }

    pub(super) fn job(&self) -> Option<&Job> {
        match self {
            Errand::Job(job) => Some(job),
            Errand::Question(..) => None,
        }
    }
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
