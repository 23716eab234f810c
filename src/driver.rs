//! A claim in the world: whoever brings an event (a node's answer, a timer, the caller, a drop) feeds it to the claim and
//! performs the actions that come out.
//!
//! There is no task for it. The caller's future waits for the verdict; if it is dropped, it feeds the release itself.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::clock::{Clock, sleep_until};
use crate::entropy::Entropy;
use crate::keeper::Keeper;
use crate::node::{Listener, Node, Reply, Watcher};
use crate::protocol::claim::{Action, Claim, Event, ExtensionFailure, Failure, Notice, Phase, Ticket};
use crate::protocol::command::{Answer, Command, Key, NodeIndex, Value};
use crate::protocol::fence::Fence;
use crate::protocol::release::ReleaseOutcome;
use crate::protocol::report::Report;
use crate::protocol::round::{Round, RoundId};
use crate::protocol::settings::Terms;
use crate::protocol::time::{Instant, Ttl};
use crate::queue::{Debt, Place};
use crate::registrar::Registrar;
use crate::switchboard::Switchboard;
use crate::sync::lock;

/// The doors to the world, shared by all claims of one deployment.
pub(crate) struct Doors {
    pub(crate) nodes: Box<[Arc<dyn Node>]>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) switchboard: Arc<Switchboard>,
    /// On which all tasks of the client live.
    pub(crate) runtime: Handle,
}

impl Doors {
    /// A holder handed over, and nobody took it up.
    fn wake_another(&self, key: &Key) {
        for node in &self.nodes {
            node.submit(Command::Delist { key: key.clone() }, Reply::to_nobody());
        }
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.keeper.stop();
    }
}

/// The claims that are on wait lists, by what they wait for: one for a resource, since the others wait in the local queue.
#[derive(Default)]
pub(crate) struct Sleepers(Mutex<HashMap<Key, Weak<Live>, RandomState>>);

impl Sleepers {
    fn enter(&self, live: &Arc<Live>) {
        lock(&self.0).insert(live.key.clone(), Arc::downgrade(live));
    }

    fn leave(&self, key: &Key) {
        lock(&self.0).remove(key);
    }

    /// It is somebody's turn. False if nobody waits for the resource any more.
    pub(crate) fn wake(&self, node: NodeIndex, key: &Key) -> bool {
        let sleeper = lock(&self.0).get(key).and_then(Weak::upgrade);
        sleeper.inspect(|live| live.feed(Event::Woken { node })).is_some()
    }

    /// Whoever waits may have been passed over.
    pub(crate) fn look_again(&self) {
        let sleepers: Vec<_> = lock(&self.0).values().filter_map(Weak::upgrade).collect();
        sleepers.iter().for_each(|live| live.feed(Event::LookAgain));
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

/// One claim, and those who wait for it.
pub(crate) struct Live {
    key: Key,
    pub(crate) doors: Arc<Doors>,
    /// Of the namespace, if the lock is of a strict kind.
    registrar: Option<Arc<Registrar>>,
    pub(crate) number: u64,
    mail: Mail,
    stage: Mutex<Stage>,
    /// What follows is kept outside the lock for those who only look, and written only by whoever is on stage. In nanoseconds,
    /// zero for "not held".
    valid_until: AtomicU64,
    wake_at: AtomicU64,
    /// Lost, released, or given up.
    ended: AtomicBool,
    results: Mutex<Results>,
    told: Notify,
    tickets: AtomicU64,
}

/// Events that nobody has taken in yet.
#[derive(Default)]
struct Mail {
    events: Mutex<VecDeque<Event>>,
    /// How many, for those who only look: mostly there are none. Only ever changed and asked in one step, so that whoever leaves an
    /// event behind the last look finds that the one who looked is gone.
    count: AtomicUsize,
}

impl Mail {
    fn leave(&self, event: Event) {
        let mut events = lock(&self.events);
        events.push_back(event);
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    fn has_come(&self) -> bool {
        self.count.fetch_add(0, Ordering::AcqRel) > 0
    }

    /// It may overlook one that is just being left.
    fn next(&self) -> Option<Event> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut events = lock(&self.events);
        self.count.fetch_sub(1, Ordering::AcqRel);
        events.pop_front()
    }
}

struct Stage {
    claim: Claim,
    /// What the one before owed to other clients when it handed over: until this one holds, and so will wake them. Before the
    /// place: it goes out before anybody hears that all have left.
    debt: Option<Debt>,
    /// The place in the local queue: given up when the claim neither competes nor holds any more, and left when its release is
    /// answered.
    place: Option<Place>,
    /// It may be on wait lists.
    sleeps: bool,
    /// Its holder is done.
    let_go: bool,
    /// When the keeper wakes this claim; `None` while its caller does.
    kept: Option<Instant>,
    watching: Watching,
}

/// Whether the nodes were asked to tell when somebody else changes the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watching {
    No,
    /// When the lock has been held for a little: one that is held for a moment is not worth the question.
    At(Instant),
    Yes,
}

const WATCH_AFTER: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Results {
    verdict: Option<Result<(), Box<Failure>>>,
    /// What was asked by hand, an extension or a proof, that somebody waits for, and what it came to.
    asking: Vec<(Ticket, Option<Settled>)>,
    released: Option<Released>,
}

/// Whether the lock is proven to have been exclusive, if that was asked; or why neither that is known nor anything extended.
type Settled = Result<Option<bool>, ExtensionFailure>;

/// What became of a lock that was given back.
#[derive(Clone)]
pub(crate) struct Released {
    pub(crate) outcome: ReleaseOutcome,
    pub(crate) proven: Option<bool>,
    pub(crate) report: Report,
}

impl Results {
    /// If nobody waits for it any more it is forgotten.
    fn settle(&mut self, ticket: Ticket, settled: Settled) {
        if let Some(place) = self.asking.iter_mut().find(|(waiting, _)| *waiting == ticket) {
            place.1 = Some(settled);
        }
    }
}

impl Live {
    pub(crate) fn new(
        doors: Arc<Doors>,
        key: Key,
        (claim, registrar): (Claim, Option<Arc<Registrar>>),
        (place, debt): (Place, Option<Debt>),
    ) -> Arc<Self> {
        let number = doors.keeper.next_number();
        Arc::new(Live {
            key,
            doors,
            registrar,
            number,
            mail: Mail::default(),
            valid_until: AtomicU64::new(0),
            wake_at: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            stage: Mutex::new(Stage {
                claim,
                debt,
                place: Some(place),
                sleeps: false,
                let_go: false,
                kept: None,
                watching: Watching::No,
            }),
            results: Mutex::default(),
            told: Notify::new(),
            tickets: AtomicU64::new(0),
        })
    }

    /// Brings an event. If somebody is at work on the claim already, on another thread or further up this very stack, the
    /// event is left for them; so a node may answer from within `submit`, and commands go out in the claim's order.
    pub(crate) fn feed(self: &Arc<Self>, event: Event) {
        if let Some(mut stage) = self.free_stage() {
            self.take_in_what_was_left(&mut stage);
            self.take_in(&mut stage, event);
        } else {
            self.mail.leave(event);
        }
        self.take_in_mail();
    }

    /// Goes on until nothing is left, and nobody is at work: somebody may leave an event between the last look and the unlocking.
    fn take_in_mail(self: &Arc<Self>) {
        while self.mail.has_come() {
            let Some(mut stage) = self.free_stage() else { return };
            self.take_in_what_was_left(&mut stage);
        }
    }

    /// The stage, if nobody is at work.
    fn free_stage(&self) -> Option<MutexGuard<'_, Stage>> {
        match self.stage.try_lock() {
            Ok(stage) => Some(stage),
            Err(TryLockError::Poisoned(stage)) => Some(stage.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn take_in_what_was_left(self: &Arc<Self>, stage: &mut Stage) {
        while let Some(event) = self.mail.next() {
            self.take_in(stage, event);
        }
    }

    /// Looks at the claim, and takes in what others could not bring meanwhile.
    fn on_stage<T>(self: &Arc<Self>, look: impl FnOnce(&mut Stage) -> T) -> T {
        let seen = look(&mut lock(&self.stage));
        self.take_in_mail();
        seen
    }

    fn take_in(self: &Arc<Self>, stage: &mut Stage, event: Event) {
        let now = self.now();
        let mut actions = room_for_actions();
        stage.claim.handle(now, event, &mut actions);
        // Read before the draw, and so before anything is sent: the validity may count from this moment.
        while let Some(place) = actions.iter().position(|action| matches!(action, Action::Draw)) {
            actions.remove(place);
            stage.claim.handle(now, Event::Attempt(self.doors.entropy.draw()), &mut actions);
        }
        // What ends is over before anybody else can hear of it, and take the resource.
        let valid_until = stage.claim.valid_until().map_or(0, Instant::as_nanos);
        if valid_until < self.valid_until.load(Ordering::Relaxed) {
            self.valid_until.store(valid_until, Ordering::Release);
        }
        for action in actions.extract_if(.., |action| matches!(action, Action::Send { .. })) {
            let Action::Send { node, round, command } = action else { continue };
            self.send(stage, node, round, command);
        }
        // Who leaves the place, leaves behind what it has heard.
        if let (Some(others_wait), Some(place)) = (do_others_wait(&actions), &stage.place) {
            place.heard(now, others_wait);
        }
        // And what begins is valid before anybody is told that it has begun.
        let mut wake = self.publish(stage, now);
        for action in actions.drain(..) {
            let Action::Tell(notice) = action else { unreachable!("drawn for and sent before") };
            wake |= self.note(notice);
        }
        give_back(actions);
        if wake {
            self.told.notify_waiters();
        }
    }

    fn send(self: &Arc<Self>, stage: &mut Stage, node: NodeIndex, round: RoundId, command: Command) {
        if matches!(command, Command::Enlist { .. }) && !std::mem::replace(&mut stage.sleeps, true) {
            self.doors.switchboard.sleepers.enter(self);
        }
        self.doors.nodes[node].submit(command, Reply::new(self.clone(), round, node));
    }

    fn note(&self, notice: Notice) -> bool {
        let mut results = lock(&self.results);
        match notice {
            Notice::Won => results.verdict = Some(Ok(())),
            Notice::Failed(failure) => results.verdict = Some(Err(Box::new(failure))),
            Notice::Extended(ticket, result) => results.settle(ticket, result.map(|()| None)),
            Notice::Verified(ticket, result) => results.settle(ticket, result),
            Notice::Lost(loss) => tracing::warn!(key = ?self.key, ?loss, "lock lost"),
            Notice::Released { outcome, proven, report, .. } => {
                results.released = Some(Released { outcome, proven, report });
            }
            Notice::HeldLong => {
                tracing::warn!(key = ?self.key, "lock held for ten minutes without hold_at_most");
                return false;
            }
        }
        true
    }

    /// Shows the outside where the claim stands now. True if those who wait should look again.
    fn publish(self: &Arc<Self>, stage: &mut Stage, now: Instant) -> bool {
        let (phase, wake_at) = (stage.claim.phase(), stage.claim.wake_at());
        let valid_until = stage.claim.valid_until();
        self.valid_until.store(valid_until.map_or(0, Instant::as_nanos), Ordering::Release);
        let before = self.wake_at.load(Ordering::Relaxed);
        self.wake_at.store(wake_at.as_nanos(), Ordering::Release);
        if phase > Phase::Claiming {
            self.has_ceased_to_compete(stage, phase);
        }
        if phase == Phase::Over || (phase == Phase::Lost && valid_until.is_none_or(|end| now >= end)) {
            let is_answered = wake_at == Instant::NEVER;
            match &mut stage.place {
                Some(place) if !is_answered => place.give_up(),
                place => *place = None,
            }
        }
        self.watch(stage, now);
        if let Some(kept) = stage.kept {
            stage.kept = (phase != Phase::Over).then_some(stage.due());
            self.doors.keeper.reschedule(self, (Some(kept), stage.kept), now);
        }
        let just_ended = phase >= Phase::Lost && !self.ended.load(Ordering::Relaxed);
        if just_ended {
            self.ended.store(true, Ordering::Release);
        }
        just_ended || wake_at.as_nanos() < before
    }

    fn has_ceased_to_compete(&self, stage: &mut Stage, phase: Phase) {
        if std::mem::take(&mut stage.sleeps) {
            self.doors.switchboard.sleepers.leave(&self.key);
        }
        match stage.debt.take() {
            Some(debt) if phase == Phase::Held => debt.forgive(),
            debt => drop(debt),
        }
    }

    /// The holder is done. If others of this client wait for the resource, the next of them comes right behind, and no other
    /// client is woken. Said again, as by a guard that is dropped after its release, it changes nothing.
    pub(crate) fn let_go(self: &Arc<Self>) {
        let doors = &self.doors;
        let debt = || {
            let (doors, key) = (doors.clone(), self.key.clone());
            Debt::new(move || doors.wake_another(&key))
        };
        let hands_over = self.on_stage(|stage| {
            let is_first = !std::mem::replace(&mut stage.let_go, true);
            is_first.then(|| stage.place.as_ref().is_some_and(|place| place.hands_over(|| self.now(), debt)))
        });
        match hands_over {
            Some(true) => self.feed(Event::HandOver),
            Some(false) => self.feed(Event::Release),
            None => {}
        }
    }

    /// From now on the keeper wakes this claim: it renews it, and notices its end.
    fn keep(self: &Arc<Self>, now: Instant) {
        self.on_stage(|stage| {
            if stage.kept.is_none() && stage.claim.phase() != Phase::Over {
                stage.watching = Watching::At(now + WATCH_AFTER);
                stage.kept = Some(stage.due());
                self.doors.keeper.reschedule(self, (None, stage.kept), now);
            }
        });
    }

    /// Asks the nodes to tell of changes when it is time, and not to when nothing is held any more.
    fn watch(self: &Arc<Self>, stage: &mut Stage, now: Instant) {
        let watcher = || -> Weak<dyn Watcher> { Arc::<Live>::downgrade(self) };
        match (stage.claim.phase(), stage.watching) {
            (Phase::Held, Watching::At(due)) if now >= due => {
                stage.watching = Watching::Yes;
                let value = stage.claim.value().expect("a claim that holds has a value");
                self.doors.nodes.iter().for_each(|node| node.watch(&self.key, value, watcher()));
            }
            (Phase::Held | Phase::Claiming, _) | (_, Watching::No) => {}
            (Phase::Lost | Phase::Over, Watching::At(_)) => stage.watching = Watching::No,
            (Phase::Lost | Phase::Over, Watching::Yes) => {
                stage.watching = Watching::No;
                self.doors.nodes.iter().for_each(|node| node.unwatch(&self.key, &watcher()));
            }
        }
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    pub(crate) fn now(&self) -> Instant {
        self.doors.clock.now()
    }

    /// The end of the validity, zero if nothing is held.
    pub(crate) fn valid_until(&self) -> Instant {
        Instant::from_nanos(self.valid_until.load(Ordering::Acquire))
    }

    /// When the claim wants to be told what time it is.
    fn wake_at(&self) -> Instant {
        Instant::from_nanos(self.wake_at.load(Ordering::Acquire))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn told(&self) -> Notified<'_> {
        self.told.notified()
    }

    /// The fence that was won with the lock, if it is of a kind that has one.
    pub(crate) fn fence(self: &Arc<Self>) -> Option<Fence> {
        let fence = self.on_stage(|stage| stage.claim.fence())?;
        if let Some(registrar) = &self.registrar {
            registrar.meet(self.now(), fence);
        }
        Some(fence)
    }

    /// What stands in the keys of what is or was held.
    pub(crate) fn value(self: &Arc<Self>) -> Option<Value> {
        self.on_stage(|stage| stage.claim.value().cloned())
    }

    pub(crate) fn votes(self: &Arc<Self>) -> Option<Report> {
        self.on_stage(|stage| stage.claim.votes())
    }

    pub(crate) fn last_answers(self: &Arc<Self>) -> Option<Report> {
        self.on_stage(|stage| stage.claim.last_answers())
    }

    /// Waits until `look` finds something, waking the claim when it wants to be woken.
    async fn wait_for<T>(self: &Arc<Self>, mut look: impl FnMut(&mut Results) -> Option<T>) -> T {
        loop {
            // Registered before looking, so that nothing told in between is missed.
            let told = self.told.notified();
            if let Some(found) = look(&mut lock(&self.results)) {
                return found;
            }
            let wake_at = self.wake_at();
            tokio::select! {
                biased;
                () = told => {}
                () = sleep_until(&*self.doors.clock, wake_at) => {
                    self.feed(Event::Tick);
                    // The claim may be at work on another thread, and take the event in only then.
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// What a release that is told of says of the other clients.
fn do_others_wait(actions: &[Action]) -> Option<bool> {
    actions.iter().find_map(|action| match action {
        Action::Tell(Notice::Released { others_wait, .. }) => Some(*others_wait),
        _ => None,
    })
}

thread_local! {
    /// One event comes to a handful of actions, which are gone when the next one comes: no claim needs room of its own for them.
    static ROOM: Cell<Vec<Action>> = const { Cell::new(Vec::new()) };
}

/// Room that others have used before; new room for those who are at work within another one's work, and when the thread ends.
fn room_for_actions() -> Vec<Action> {
    ROOM.try_with(Cell::take).unwrap_or_default()
}

fn give_back(room: Vec<Action>) {
    let _ = ROOM.try_with(|kept| kept.set(room));
}

impl Stage {
    /// When the keeper has to wake the claim.
    fn due(&self) -> Instant {
        match self.watching {
            Watching::At(due) => due.min(self.claim.wake_at()),
            Watching::No | Watching::Yes => self.claim.wake_at(),
        }
    }
}

impl Watcher for Live {
    fn changed(self: Arc<Self>) {
        self.feed(Event::Alarm);
    }
}

impl Listener for Live {
    fn hear(self: Arc<Self>, round: RoundId, node: NodeIndex, answer: Answer) {
        let answer = match &self.registrar {
            Some(registrar) => registrar.hear_vote(self.now(), node, answer),
            None => answer,
        };
        self.feed(Event::Answer { round, node, answer });
    }
}

/// The duty to leave nothing behind: dropped, it gives back what the claim has, won or not.
struct Duty<'a>(Option<&'a Arc<Live>>);

impl Drop for Duty<'_> {
    fn drop(&mut self) {
        if let Some(live) = self.0.take() {
            live.feed(Event::Abandon);
        }
    }
}

/// How an attempt to hold ended badly.
pub(crate) enum Defeat {
    Failed(Box<Failure>),
    /// Won, but the caller got to know too late.
    TooLate(Report),
}

/// Claims until won or given up. Dropped on the way, nothing stays behind.
pub(crate) async fn win(live: &Arc<Live>) -> Result<(), Defeat> {
    let mut duty = Duty(Some(live));
    live.feed(Event::Tick);
    live.wait_for(|results| results.verdict.take()).await.map_err(Defeat::Failed)?;
    // The caller may have been kept from running since: the clock is read once more.
    let now = live.now();
    if now >= live.wake_at() {
        live.feed(Event::Tick);
    }
    if live.has_ended() || now >= live.valid_until() {
        return Err(Defeat::TooLate(live.votes().expect("a claim that was won has votes")));
    }
    live.keep(now);
    duty.0 = None;
    Ok(())
}

/// Extends by hand.
pub(crate) async fn extend(live: &Arc<Live>, ttl: Ttl) -> Result<(), ExtensionFailure> {
    ask(live, |ticket| Event::Extend { ticket, ttl }).await.map(|_| ())
}

/// Asks the nodes whether the lock stands, and has stood all the time.
pub(crate) async fn verify(live: &Arc<Live>) -> Result<Option<bool>, ExtensionFailure> {
    ask(live, |ticket| Event::Verify { ticket }).await
}

async fn ask(live: &Arc<Live>, event: impl FnOnce(Ticket) -> Event) -> Settled {
    let asking = Asking::begin(live);
    let ticket = asking.ticket;
    live.feed(event(ticket));
    let mine = |results: &mut Results| {
        results.asking.iter_mut().find(|(other, _)| *other == ticket).and_then(|(_, settled)| settled.take())
    };
    live.wait_for(mine).await
}

/// Somebody who waits for what was asked. Dropped, nobody does.
struct Asking<'a> {
    live: &'a Arc<Live>,
    ticket: Ticket,
}

impl<'a> Asking<'a> {
    fn begin(live: &'a Arc<Live>) -> Self {
        let ticket = Ticket(live.tickets.fetch_add(1, Ordering::Relaxed));
        lock(&live.results).asking.push((ticket, None));
        Asking { live, ticket }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        lock(&self.live.results).asking.retain(|(other, _)| *other != self.ticket);
    }
}

/// Releases, and waits until the outcome is decided: at the latest when the node timeout is over.
pub(crate) async fn release(live: &Arc<Live>) -> Released {
    live.let_go();
    live.wait_for(|results| results.released.clone()).await
}

/// Asks all nodes the same, outside of any claim, and waits for all of them, at most for the node timeout.
pub(crate) async fn survey(doors: &Doors, terms: &Terms, question: &Command) -> Round {
    survey_each(doors, terms, |_| question.clone()).await
}

/// The same, with a question to each.
pub(crate) async fn survey_each(
    doors: &Doors,
    terms: &Terms,
    question: impl Fn(NodeIndex) -> Command,
) -> Round {
    survey_until(doors, terms, question, |round| round.answers().all(|answer| answer.is_some())).await
}

/// The same, until the answers are enough.
pub(crate) async fn survey_until(
    doors: &Doors,
    terms: &Terms,
    question: impl Fn(NodeIndex) -> Command,
    is_enough: impl Fn(&Round) -> bool,
) -> Round {
    let now = doors.clock.now();
    let survey = Arc::new(Survey {
        round: Mutex::new(Round::to_all(RoundId(0), terms.quorum, now, terms.node_timeout)),
        clock: doors.clock.clone(),
        complete: Notify::new(),
    });
    for (node, door) in doors.nodes.iter().enumerate() {
        door.submit(question(node), Reply::new(survey.clone(), RoundId(0), node));
    }
    let mut deadline = pin!(sleep_until(&*doors.clock, now + terms.node_timeout));
    loop {
        let complete = survey.complete.notified();
        {
            let round = lock(&survey.round);
            if is_enough(&round) || round.answers().all(|answer| answer.is_some()) {
                break;
            }
        }
        tokio::select! {
            () = complete => {}
            () = &mut deadline => lock(&survey.round).give_up(doors.clock.now()),
        }
    }
    let round = lock(&survey.round);
    round.clone()
}

struct Survey {
    round: Mutex<Round>,
    clock: Arc<dyn Clock>,
    complete: Notify,
}

impl Listener for Survey {
    fn hear(self: Arc<Self>, _: RoundId, node: NodeIndex, answer: Answer) {
        lock(&self.round).hear(node, answer, self.clock.now());
        self.complete.notify_waiters();
    }
}
