//! A server does what [`Store`] says. Random traces of commands, of operators' acts and of time are played on a real server
//! and on the store, and get the same answers, to the millisecond at which a key ends. This is what licenses every test
//! that has the store in a server's place.
//!
//! The commands go the way that they go in production: through the node that owns a connection, as hashed scripts or in
//! full, and back through the decoder. What fails is shrunk and printed with its seed; `PROPTEST_CASES=100000` draws more.

#![cfg(all(feature = "redis", feature = "sim", unix))]

mod harness;
#[path = "harness/random.rs"]
mod random;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use harness::clock::{Clock, TRUE_RATE, time_of};
use harness::{PROMPT, Server, promptly, until};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{select, subsequence};
use proptest::test_runner::TestCaseError;
use redis::aio::MultiplexedConnection;
use redlock_quorum::NodeConfig;
use redlock_quorum::node::{Bell, Listener, Node, Reply, alone};
use redlock_quorum::protocol::command::{
    Answer, Command, Key, LeaseId, NodeIndex, Refusal, Sighting, Signature, Unknown, Value, Waiter, Wake,
};
use redlock_quorum::protocol::fence::{FURTHEST_AHEAD, Fence};
use redlock_quorum::protocol::leading::Proclamation;
use redlock_quorum::protocol::marker::{Nonce, Pact, Process, Rules};
use redlock_quorum::protocol::quorum::Quorum;
use redlock_quorum::protocol::round::RoundId;
use redlock_quorum::protocol::store::{Messenger, Precision, Store};
use redlock_quorum::protocol::time::{Instant, Ttl};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// The server's clock stands still unless the trace lets it go on, so every answer is compared.
#[test]
fn a_server_whose_clock_the_trace_sets_answers_as_the_store_does() {
    let Some(clock) = Clock::stopped() else { return };
    let runtime = runtime();
    let server = runtime.block_on(Server::start_with_clock(&clock));
    let played = play_all(&runtime, &server, &Time::Set(clock), 256);
    assert_eq!(played.given_up, 0, "with a clock that stands still nothing is in doubt");
    played.assert_all_was_seen();
}

/// The server goes by the machine's clock. It is asked for the time before and after each command, and the store may have
/// been asked at any millisecond between: so it is known that the clock that can be set does not distort what is seen.
#[test]
fn a_server_that_goes_by_the_machines_clock_answers_as_the_store_does() {
    let runtime = runtime();
    let server = runtime.block_on(Server::start());
    let played = play_all(&runtime, &server, &Time::Runs, 64);
    assert!(played.answers > 0, "every trace was in doubt");
}

/// So that the first test shows what it says.
#[test]
fn a_server_goes_by_the_clock_that_it_is_shown() {
    let Some(clock) = Clock::stopped() else { return };
    runtime().block_on(async {
        let server = Server::start_with_clock(&clock).await;
        let mut asked = connect(&server).await;
        let ten = Duration::from_secs(10);
        server.type_in::<()>("SET k v PX 20000").await;
        clock.advance(ten);
        clock.is_seen_by(&mut asked).await;
        assert_eq!(server.expiry("k").await, Some(ten));
        clock.go_back(2 * ten);
        clock.is_seen_by(&mut asked).await;
        assert_eq!(server.expiry("k").await, Some(3 * ten));
        clock.advance(3 * ten + Duration::from_millis(1));
        clock.is_seen_by(&mut asked).await;
        assert_eq!(server.value("k").await, None);

        clock.run_at(2 * TRUE_RATE);
        let (before, started) = (clock.now(), std::time::Instant::now());
        until("it has run for a while", async || started.elapsed() >= Duration::from_millis(100)).await;
        let (early, seen, late) = (clock.now(), time_of(&mut asked).await, clock.now());
        let micro = Duration::from_micros(1);
        assert!(early <= seen + micro && seen <= late, "{early:?}, {seen:?}, {late:?}");
        let took = started.elapsed();
        assert!(clock.now() - before >= 2 * took, "it runs at twice the rate");
    });
}

/// Releases wait for others to go together with them; what concerns the same key keeps its order all the same.
#[test]
fn commands_for_one_key_are_carried_out_in_the_order_in_which_they_came() {
    let runtime = runtime();
    let server = runtime.block_on(Server::start());
    let rig = runtime.block_on(Rig::of(&server, &Time::Runs));
    let [one, other, _] = keys();
    let value = |id| Value::new(LeaseId(id), &Signature::new("anna", None));
    let acquire = |key: &Key, id| {
        let ttl = Ttl::from_duration(Duration::from_secs(100));
        Command::Acquire { key: key.clone(), value: value(id), ttl }
    };
    let release = |key: &Key, id| {
        let (linger, owed_for, rules) = (Ttl::ZERO, Duration::ZERO, Rules::Plain);
        Command::Release { key: key.clone(), value: value(id), linger, owed_for, wake: Wake::Next, rules }
    };
    let deleted = Answer::Deleted { others_wait: false };
    let story = [
        (acquire(&other, 1), Answer::Granted),
        (acquire(&one, 1), Answer::Granted),
        (release(&other, 1), deleted.clone()),
        (release(&one, 1), deleted.clone()),
        (acquire(&one, 2), Answer::Granted),
        (release(&one, 1), Answer::Foreign),
        (release(&one, 2), deleted),
        (release(&one, 2), Answer::Missing),
        (Command::Inspect { key: one.clone() }, Answer::Seen(None)),
    ];
    for node in [&rig.by_hash, &rig.in_full] {
        let answers = runtime.block_on(join_all(story.iter().map(|(command, _)| ask(node, command))));
        for ((command, expected), answer) in story.iter().zip(answers) {
            assert_eq!(answer, *expected, "{command:?}");
        }
    }
}

async fn connect(server: &Server) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://{}", server.address())).expect("an address");
    client.get_multiplexed_async_connection().await.expect("a server that answers")
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn play_all(runtime: &Runtime, server: &Server, time: &Time, traces: u32) -> Played {
    let rig = runtime.block_on(Rig::of(server, time));
    let played = RefCell::default();
    random::check(traces, &trace(), |trace| runtime.block_on(rig.play(&trace, &mut played.borrow_mut())));
    let played = played.into_inner();
    let version = runtime.block_on(rig.version());
    println!("{version}: {played:?}");
    played
}

/// What may happen to a server.
#[derive(Clone, Debug)]
enum Step {
    Act(Act),
    /// Time passes.
    Wait {
        millis: u64,
    },
    /// Time passes until a key ends, or a millisecond before or after; not at all if none stands there.
    WaitForTheEnd {
        key: Key,
        earlier: u64,
        later: u64,
    },
}

/// What somebody does at one moment.
#[derive(Clone, Debug)]
enum Act {
    /// A client's node sends a command.
    Ask { in_full: bool, command: Command },
    /// It sends releases of different keys at once, which go to the server together.
    ReleaseAtOnce { in_full: bool, releases: Vec<Command> },
    /// Somebody else sets a key, whatever stands there, maybe for ever.
    Put { key: Key, value: Value, millis: Option<u64> },
    /// An operator deletes a key.
    Delete { key: Key },
    /// An operator deletes what is remembered of the namespace of a key.
    DeleteMarker { key: Key },
    /// An operator takes the expiry off a key.
    Persist { key: Key },
    /// An operator makes the server forget all scripts.
    ForgetScripts,
}

/// What the server or the store has to say to that.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    /// And the messages that were sent, where their order is known.
    Answer(Answer, Vec<Message>),
    Answers(Vec<Answer>, BTreeSet<Message>),
    Changed(bool),
    Done,
}

/// Who is woken, and for which key.
type Message = (Waiter, Key);

fn trace() -> impl Strategy<Value = Vec<Step>> {
    let wait = prop_oneof![
        2 => millis().prop_map(|millis| Step::Wait { millis }),
        3 => (key(), 0..=1u64, 0..=2u64)
            .prop_map(|(key, earlier, later)| Step::WaitForTheEnd { key, earlier, later }),
    ];
    let step = prop_oneof![2 => wait, 5 => act().prop_map(Step::Act)].prop_map(|step| vec![step]);
    let parts = prop_oneof![30 => step, 1 => hand_over(), 1 => enrolment(), 2 => releases_at_once()];
    vec(parts, 1..40).prop_map(|parts| parts.concat())
}

/// Several locks are held, for some of which somebody may wait, and are let go at once.
fn releases_at_once() -> impl Strategy<Value = Vec<Step>> {
    let lingers = prop_oneof![9 => Just(Ttl::ZERO), 1 => ttl()];
    let of_each =
        (value(), ttl(), lingers, proptest::bool::weighted(0.9), proptest::bool::weighted(0.2), wake());
    let together = (subsequence(keys().to_vec(), 2..=3), vec(of_each, 3), any::<bool>(), rules());
    together.prop_map(|(keys, of_each, in_full, rules)| {
        let (mut steps, mut releases) = (Vec::new(), Vec::new());
        for (key, (value, ttl, linger, is_held, is_awaited, wake)) in keys.into_iter().zip(of_each) {
            if is_held {
                let command = Command::Acquire { key: key.clone(), value: value.clone(), ttl };
                steps.push(Step::Act(Act::Ask { in_full, command }));
            }
            if is_awaited {
                let command = Command::Enlist { key: key.clone(), waited: Duration::ZERO };
                steps.push(Step::Act(Act::Ask { in_full: !in_full, command }));
            }
            // Nearly all go together.
            let wake = if is_awaited { wake } else { Wake::Next };
            let owed_for = Duration::ZERO;
            releases.push(Command::Release { key, value, linger, owed_for, wake, rules });
        }
        steps.push(Step::Act(Act::ReleaseAtOnce { in_full, releases }));
        steps
    })
}

/// The server begins to count for fences, is asked for one, and is told what its holder proclaims, which takes commands that
/// agree.
fn enrolment() -> impl Strategy<Value = Vec<Step>> {
    let of = (key(), value(), ttl(), nonce());
    (of, fence(), pact(), any::<bool>()).prop_map(|((key, value, ttl, nonce), floor, pact, in_full)| {
        let observe = Command::Observe { key: key.clone(), nonce, pact, overrules: true };
        let anew = Nonce(nonce.0.wrapping_add(1));
        let enrol = Command::Enrol { key: key.clone(), nonce, anew, floor, pact };
        let fence = floor.next();
        let propose = Command::Propose { key: key.clone(), value: value.clone(), ttl, fence, pact };
        let raise = Command::Raise { key: key.clone(), value: value.clone(), fence: fence.next(), pact };
        let said = Proclamation::new(&value, fence, (0, "here"));
        let proclaim = Command::Proclaim { key: key.clone(), value, said, ttl };
        let follow = Command::Follow { key };
        let commands = [observe, enrol, propose, raise, proclaim, follow];
        commands.map(|command| Step::Act(Act::Ask { in_full, command })).to_vec()
    })
}

/// Somebody waits while another holds, which is seldom drawn step by step; whatever came before may spoil it.
fn hand_over() -> impl Strategy<Value = Vec<Step>> {
    (key(), value(), ttl(), any::<bool>(), wake()).prop_map(|(key, value, ttl, in_full, wake)| {
        let (linger, owed_for) = (Ttl::ZERO, Duration::ZERO);
        let commands = [
            Command::Acquire { key: key.clone(), value: value.clone(), ttl },
            Command::Enlist { key: key.clone(), waited: Duration::ZERO },
            Command::Release { key, value, linger, owed_for, wake, rules: Rules::Plain },
        ];
        // Whoever holds is not whoever waits.
        let asked_by = [!in_full, in_full, !in_full];
        let acts = asked_by.into_iter().zip(commands).map(|(in_full, command)| Act::Ask { in_full, command });
        acts.map(Step::Act).collect()
    })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        20 => (any::<bool>(), command()).prop_map(|(in_full, command)| Act::Ask { in_full, command }),
        2 => (key(), value(), proptest::option::of(millis()))
            .prop_map(|(key, value, millis)| Act::Put { key, value, millis }),
        1 => key().prop_map(|key| Act::Delete { key }),
        1 => key().prop_map(|key| Act::DeleteMarker { key }),
        1 => key().prop_map(|key| Act::Persist { key }),
        1 => Just(Act::ForgetScripts),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        4 => (key(), value(), ttl()).prop_map(|(key, value, ttl)| Command::Acquire { key, value, ttl }),
        4 => (key(), value(), ttl(), any::<bool>(), rules())
            .prop_map(|(key, value, ttl, heal, rules)| Command::Extend { key, value, ttl, heal, rules }),
        3 => (key(), value(), linger(), wake(), rules()).prop_map(|(key, value, linger, wake, rules)| {
            let owed_for = Duration::ZERO;
            Command::Release { key, value, linger, owed_for, wake, rules }
        }),
        6 => (key(), value(), ttl(), fence(), pact())
            .prop_map(|(key, value, ttl, fence, pact)| Command::Propose { key, value, ttl, fence, pact }),
        4 => (key(), value(), fence(), pact())
            .prop_map(|(key, value, fence, pact)| Command::Raise { key, value, fence, pact }),
        2 => (key(), nonce(), pact(), proptest::bool::weighted(0.2))
            .prop_map(|(key, nonce, pact, overrules)| Command::Observe { key, nonce, pact, overrules }),
        2 => (key(), nonce(), nonce(), fence(), pact())
            .prop_map(|(key, nonce, anew, floor, pact)| Command::Enrol { key, nonce, anew, floor, pact }),
        8 => (key(), 0..4u64).prop_map(|(key, millis)| {
            Command::Enlist { key, waited: Duration::from_millis(millis) }
        }),
        1 => key().prop_map(|key| Command::Delist { key }),
        3 => key().prop_map(|key| Command::Inspect { key }),
        1 => key().prop_map(|key| Command::Remove { key }),
        3 => (key(), value(), ttl(), 0..2u64).prop_map(|(key, value, ttl, revision)| {
            let said = Proclamation::new(&value, Fence::new(7), (revision, "\0 \r\n: all"));
            Command::Proclaim { key, value, said, ttl }
        }),
        3 => key().prop_map(|key| Command::Follow { key }),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    prop_oneof![1 => Just(Rules::Plain), 1 => pact().prop_map(Rules::Strict)]
}

/// Two that differ in the nodes, and two that differ in the longest ttl.
fn pact() -> impl Strategy<Value = Pact> {
    let pact = |node: &str, max_ttl| Pact::of(&[node.into()], Quorum::of(1), Ttl::from_millis(max_ttl));
    prop_oneof![3 => Just(pact("a", 10)), 1 => Just(pact("b", 10)), 1 => Just(pact("a", 1_000_000))]
}

fn nonce() -> impl Strategy<Value = Nonce> {
    select(vec![Nonce(1), Nonce(2), Nonce(u128::MAX)])
}

/// Few, and those about as far ahead of the server's clock as it lets a proposal be, to the microsecond.
fn fence() -> impl Strategy<Value = Fence> {
    let bound = (START + FURTHEST_AHEAD).as_micros() as u64;
    let numbers = prop_oneof![
        6 => 0..6u64,
        1 => (0..3u64).prop_map(move |micros| bound + micros),
        2 => (0..30u64).prop_map(move |millis| bound + millis * 1_000),
        1 => Just((1 << 53) - 1),
    ];
    numbers.prop_map(Fence::new)
}

fn wake() -> impl Strategy<Value = Wake> {
    select(vec![Wake::Next, Wake::Next, Wake::NobodyYet, Wake::Nobody])
}

fn key() -> impl Strategy<Value = Key> {
    select(keys().to_vec())
}

/// A few, so that clients meet at them.
fn keys() -> [Key; 3] {
    [Key::of_lock("redlock", b"a"), Key::of_lock("", b"\0 \r\n\xff{b}"), Key::of_lock("", b"")]
}

/// What tells whether all that was done is the same.
fn look_at_all() -> impl Iterator<Item = Step> {
    keys().into_iter().map(|key| Step::Act(Act::Ask { in_full: false, command: Command::Inspect { key } }))
}

/// Those of two clients, of whom one has two attempts, and what other libraries write.
fn value() -> impl Strategy<Value = Value> {
    let ours = |id, holder, metadata| Value::new(LeaseId(id), &Signature::new(holder, metadata));
    let theirs = [&b""[..], b"1", b"e7f3a1d2-9c4b-4f6e-8a57-1b2c3d4e5f60", b"\xff\0\r\n"];
    prop_oneof![
        8 => select(vec![ours(1, "anna", None), ours(2, "bert", Some("r\u{e9}sum\u{e9}: 1")), ours(3, "anna", None)]),
        1 => select(theirs.map(Value::from_wire).to_vec()),
    ]
}

/// Short, so that keys end while others are at them.
fn millis() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 1..=12u64, 1 => 1..=1_000_000u64]
}

/// Up to the longest that the settings let through.
fn ttl() -> impl Strategy<Value = Ttl> {
    let millis = prop_oneof![30 => millis(), 1 => Just(365 * 24 * 3_600_000)];
    millis.prop_map(|millis| Ttl::from_duration(Duration::from_millis(millis)))
}

fn linger() -> impl Strategy<Value = Ttl> {
    prop_oneof![Just(Ttl::ZERO), ttl()]
}

/// By what the server goes.
enum Time {
    Set(Clock),
    Runs,
}

/// When every trace begins, on a clock that can be set: at one moment, so that a trace is the same whatever was before it.
const START: Duration = Duration::from_secs(2_000_000_000);

impl Time {
    /// Whether all that happens at one millisecond happens at the same microsecond, by which those who wait are put in order.
    fn keeps_order(&self) -> bool {
        matches!(self, Time::Set(_))
    }
}

/// By which name a client is on wait lists.
fn waiter(in_full: bool) -> Waiter {
    Waiter(if in_full { "anna" } else { "bert" }.into())
}

/// What the clients were sent by the server.
#[derive(Default)]
struct Messages(Mutex<Vec<Message>>);

/// One of them, which hears.
struct Ring {
    waiter: Waiter,
    messages: Arc<Messages>,
}

impl Bell for Ring {
    fn ring(&self, _: NodeIndex, key: &Key) -> bool {
        self.messages.0.lock().expect("whole").push((self.waiter.clone(), key.clone()));
        true
    }

    fn connected(&self, _: NodeIndex) {}
}

/// What they are sent by the store.
struct Post<'a> {
    caller: Waiter,
    process: &'a Process,
    sent: Vec<Message>,
}

impl Messenger for Post<'_> {
    fn caller(&self) -> Option<&Waiter> {
        Some(&self.caller)
    }

    fn process(&self) -> Option<&Process> {
        Some(self.process)
    }

    fn wake(&mut self, waiter: &Waiter, key: &Key) -> bool {
        self.sent.push((waiter.clone(), key.clone()));
        true
    }
}

/// A server, and who talks to it.
struct Rig<'a> {
    time: &'a Time,
    /// Sends scripts by their hashes.
    by_hash: Arc<dyn Node>,
    /// Sends scripts in full, since its user may not load them.
    in_full: Arc<dyn Node>,
    operator: MultiplexedConnection,
    messages: Arc<Messages>,
    process: Process,
}

/// What came of the traces.
#[derive(Debug, Default)]
struct Played {
    traces: usize,
    /// Answers that were compared.
    answers: usize,
    /// Traces that were left in the middle, because the time between two readings was too long to tell what had to be said.
    given_up: usize,
    seen: BTreeSet<&'static str>,
}

impl Played {
    /// A trace that never gets to see the rare answers shows nothing. Few traces need not see them.
    fn assert_all_was_seen(&self) {
        const ALL: [&str; 34] = [
            "all deleted at once",
            "all deleted at once, by strict rules",
            "some deleted at once",
            "deleted at once, and others wait",
            "accepted",
            "accepted, and does not count",
            "busy",
            "counts",
            "does not count",
            "enrolled",
            "observed",
            "other rules",
            "raised",
            "voted",
            "delisted",
            "denied",
            "deleted",
            "deleted, and others wait",
            "enlisted",
            "enlisted behind a holder",
            "foreign",
            "free",
            "granted",
            "healed",
            "in its last millisecond",
            "missing",
            "nothing to remove",
            "present",
            "removed",
            "proclaimed",
            "stands, and nothing is proclaimed",
            "stands, and something is proclaimed",
            "stands",
            "stands for ever",
        ];
        let missing: Vec<_> = ALL.iter().filter(|kind| !self.seen.contains(*kind)).collect();
        assert!(
            self.traces < 200 || missing.is_empty(),
            "never answered in {} traces: {missing:?}",
            self.traces
        );
    }
}

/// The stores that agree with all that the server has said so far. They differ in when exactly they were asked.
type Possible = Vec<Store>;

/// More are not followed.
const MOST_POSSIBLE: usize = 256;

impl<'a> Rig<'a> {
    async fn of(server: &Server, time: &'a Time) -> Self {
        let user = "ACL SETUSER unloaded on >secret ~* &* +@all -script";
        server.type_in::<()>(user).await;
        let address = || NodeConfig::new(server.address());
        let messages = Arc::new(Messages::default());
        let node = |config, waiter| {
            let bell = Arc::new(Ring { waiter, messages: messages.clone() });
            alone(config, PROMPT, (bell.waiter.clone(), bell)).expect("an address")
        };
        let mut operator = connect(server).await;
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("server").query_async(&mut operator).await.expect("a server that answers");
        Rig {
            time,
            by_hash: node(address(), waiter(false)),
            in_full: node(address().username("unloaded").password("secret"), waiter(true)),
            operator,
            messages,
            process: Process(info.get::<String>("run_id").expect("a name").into()),
        }
    }

    async fn version(&self) -> String {
        let info: redis::InfoDict = self.operate(redis::cmd("INFO").arg("server")).await;
        let version = |name: &str| info.get::<String>(name).map(|version| format!("{name} {version}"));
        version("valkey_version").or_else(|| version("redis_version")).expect("a version")
    }

    async fn play(&self, trace: &[Step], played: &mut Played) -> Result<(), TestCaseError> {
        if let Time::Set(clock) = self.time {
            clock.show(START);
            clock.is_seen_by(&mut self.operator.clone()).await;
        }
        self.operate::<()>(&redis::cmd("FLUSHALL")).await;
        played.traces += 1;
        let mut possible = vec![Store::with_precision(Precision::Milliseconds)];
        for step in trace.iter().cloned().chain(look_at_all()) {
            match &step {
                Step::Wait { millis } => self.wait(*millis).await,
                Step::WaitForTheEnd { key, earlier, later } => {
                    let now = self.now().await;
                    if let Some(seen) = possible[0].sight(at(now), key)
                        && let Some(left) = seen.expires_in
                    {
                        self.wait((whole_millis(left) + later).saturating_sub(*earlier)).await;
                    }
                }
                // They happen at one moment if the clock stands still; else it cannot be told when each happened.
                Step::Act(Act::ReleaseAtOnce { .. }) if matches!(self.time, Time::Runs) => {}
                Step::Act(act) => {
                    if !self.compare(act, &mut possible, played).await? {
                        played.given_up += 1;
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves those stores that say what the server says. False if it cannot be told what they should say.
    async fn compare(
        &self,
        act: &Act,
        possible: &mut Possible,
        played: &mut Played,
    ) -> Result<bool, TestCaseError> {
        let before = self.now().await;
        let said = self.act(act).await;
        let moments = before..=self.now().await;
        let mut agree = Possible::new();
        let mut others = Vec::new();
        for store in &*possible {
            for moment in moments.clone() {
                let mut store = store.clone();
                let expected = self.say(&mut store, at(moment), act);
                if expected != said {
                    others.push(expected);
                } else if !agree.contains(&store) {
                    agree.push(store);
                }
            }
        }
        if agree.is_empty() && !ends_within(possible, act, &moments) {
            let reason = format!("{act:?} at {moments:?} ms:\nserver {said:?}\nstore  {others:?}");
            return Err(TestCaseError::fail(reason));
        }
        played.answers += 1;
        played.seen.extend(kind(&said));
        let in_doubt = agree.is_empty() || agree.len() > MOST_POSSIBLE;
        *possible = agree;
        Ok(!in_doubt)
    }

    /// The time on the server's clock in milliseconds.
    async fn now(&self) -> u64 {
        whole_millis(match self.time {
            Time::Set(clock) => clock.now(),
            Time::Runs => time_of(&mut self.operator.clone()).await,
        })
    }

    /// Until the server's clock shows so much more.
    async fn wait(&self, millis: u64) {
        match self.time {
            Time::Set(clock) => {
                clock.advance(Duration::from_millis(millis));
                clock.is_seen_by(&mut self.operator.clone()).await;
            }
            // No longer than for keys that end soon.
            Time::Runs => {
                let until = self.now().await + millis.min(20);
                while self.now().await < until {}
            }
        }
    }

    async fn act(&self, act: &Act) -> Said {
        let changed = |reply: i64| Said::Changed(reply == 1);
        match act {
            Act::Ask { in_full, command } => {
                let node = if *in_full { &self.in_full } else { &self.by_hash };
                let answer = ask(node, command).await;
                Said::Answer(answer, self.messages_so_far().await)
            }
            Act::ReleaseAtOnce { in_full, releases } => {
                let node = if *in_full { &self.in_full } else { &self.by_hash };
                let answers = join_all(releases.iter().map(|release| ask(node, release))).await;
                Said::Answers(answers, self.messages_so_far().await.into_iter().collect())
            }
            Act::Put { key, value, millis } => {
                let mut set = redis::cmd("SET");
                set.arg(key.as_bytes()).arg(value.as_bytes());
                millis.iter().for_each(|millis| {
                    set.arg("PX").arg(*millis);
                });
                self.operate::<()>(&set).await;
                Said::Done
            }
            Act::Delete { key } => changed(self.operate(redis::cmd("DEL").arg(key.as_bytes())).await),
            Act::DeleteMarker { key } => {
                changed(self.operate(redis::cmd("DEL").arg(key.marker().concat())).await)
            }
            Act::Persist { key } => changed(self.operate(redis::cmd("PERSIST").arg(key.as_bytes())).await),
            Act::ForgetScripts => {
                self.operate::<()>(redis::cmd("SCRIPT").arg("FLUSH")).await;
                Said::Done
            }
        }
    }

    /// The same on the store.
    fn say(&self, store: &mut Store, now: Instant, act: &Act) -> Said {
        match act {
            Act::Ask { command, in_full } => {
                let mut post = Post { caller: waiter(*in_full), process: &self.process, sent: Vec::new() };
                let answer = store.apply(now, command, &mut post);
                Said::Answer(answer, if self.time.keeps_order() { post.sent } else { Vec::new() })
            }
            Act::ReleaseAtOnce { releases, in_full } => {
                let mut post = Post { caller: waiter(*in_full), process: &self.process, sent: Vec::new() };
                let answers = releases.iter().map(|release| store.apply(now, release, &mut post)).collect();
                Said::Answers(answers, post.sent.into_iter().collect())
            }
            Act::Put { key, value, millis } => {
                store.put(now, key, value, millis.map_or(Duration::MAX, Duration::from_millis));
                Said::Done
            }
            Act::Delete { key } => Said::Changed(store.remove(now, key)),
            Act::DeleteMarker { key } => Said::Changed(store.forget_marker(key)),
            Act::Persist { key } => match store.sight(now, key) {
                Some(Sighting { value, expires_in: Some(_) }) => {
                    store.put(now, key, &value, Duration::MAX);
                    Said::Changed(true)
                }
                _ => Said::Changed(false),
            },
            Act::ForgetScripts => Said::Done,
        }
    }

    /// The messages that have been sent. On one connection a message comes before the answer to whatever was asked later.
    async fn messages_so_far(&self) -> Vec<Message> {
        let nothing = Command::Inspect { key: Key::of_lock("", b"nothing") };
        for node in [&self.by_hash, &self.in_full] {
            ask(node, &nothing).await;
        }
        let messages = std::mem::take(&mut *self.messages.0.lock().expect("whole"));
        if self.time.keeps_order() { messages } else { Vec::new() }
    }

    async fn operate<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        let mut operator = self.operator.clone();
        promptly(command.query_async(&mut operator)).await.expect("an operator may do all")
    }
}

/// Whether the key that is asked for ends between two readings of the clock that are not the same. Then a script may have
/// found it, and have come to its expiry when it had ended.
fn ends_within(possible: &Possible, act: &Act, moments: &RangeInclusive<u64>) -> bool {
    let stands = |store: &Store, moment: u64, key: &Key| store.clone().sight(at(moment), key).is_some();
    let (first, last) = (*moments.start(), *moments.end());
    key_of(act).is_some_and(|key| {
        possible.iter().any(|store| stands(store, first, key) && !stands(store, last, key))
    })
}

fn key_of(act: &Act) -> Option<&Key> {
    match act {
        Act::Ask { command, .. } => Some(command.key()),
        Act::Put { key, .. } | Act::Delete { key } | Act::Persist { key } => Some(key),
        Act::ReleaseAtOnce { .. } | Act::DeleteMarker { .. } | Act::ForgetScripts => None,
    }
}

fn kind(said: &Said) -> Option<&'static str> {
    let answer = match said {
        Said::Answer(answer, _) => answer,
        Said::Answers(answers, _) => return kind_of_all(answers),
        Said::Changed(_) | Said::Done => return None,
    };
    Some(match answer {
        Answer::Granted => "granted",
        Answer::Denied => "denied",
        Answer::Present => "present",
        Answer::Healed => "healed",
        Answer::Missing => "missing",
        Answer::Foreign => "foreign",
        Answer::Deleted { others_wait: false } => "deleted",
        Answer::Deleted { others_wait: true } => "deleted, and others wait",
        Answer::Enlisted(None) => "enlisted",
        Answer::Enlisted(Some(_)) => "enlisted behind a holder",
        Answer::Delisted => "delisted",
        Answer::Seen(None) => "free",
        Answer::Seen(Some(Sighting { expires_in: None, .. })) => "stands for ever",
        Answer::Seen(Some(Sighting { expires_in: Some(Duration::ZERO), .. })) => "in its last millisecond",
        Answer::Seen(Some(_)) => "stands",
        Answer::Followed(_, None) => "stands, and nothing is proclaimed",
        Answer::Followed(_, Some(_)) => "stands, and something is proclaimed",
        Answer::Proclaimed => "proclaimed",
        Answer::Removed(None) => "nothing to remove",
        Answer::Removed(Some(_)) => "removed",
        Answer::Accepted | Answer::Voted(_) | Answer::Busy(_) | Answer::Raised => return None,
        Answer::Enrolled(_) => "enrolled",
        Answer::Observed(_) => "observed",
        Answer::Counting { said, .. } => match **said {
            Answer::Accepted => "accepted",
            Answer::Voted(_) => "voted",
            Answer::Busy(_) => "busy",
            Answer::Raised => "raised",
            _ => "counts",
        },
        Answer::Waiting { said, .. } if matches!(**said, Answer::Accepted) => "accepted, and does not count",
        Answer::Waiting { .. } => "does not count",
        Answer::Unknown(Unknown::Refused(Refusal::OtherRules)) => "other rules",
        Answer::Unknown(_) => return None,
    })
}

fn kind_of_all(answers: &[Answer]) -> Option<&'static str> {
    let is_deleted = |answer: &Answer| matches!(answer.said(), Answer::Deleted { .. });
    let is_plain = |answer: &Answer| matches!(answer, Answer::Deleted { .. });
    if answers.iter().any(|answer| *answer.said() == Answer::Deleted { others_wait: true }) {
        Some("deleted at once, and others wait")
    } else if answers.iter().all(is_plain) {
        Some("all deleted at once")
    } else if answers.iter().all(is_deleted) {
        Some("all deleted at once, by strict rules")
    } else {
        answers.iter().any(is_deleted).then_some("some deleted at once")
    }
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn whole_millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).expect("this century")
}

/// Submits a command and waits for its answer.
async fn ask(node: &Arc<dyn Node>, command: &Command) -> Answer {
    let (answered, answer) = oneshot::channel();
    let ear = Arc::new(Ear(Mutex::new(Some(answered))));
    node.submit(command.clone(), Reply::new(ear, RoundId(1), 0));
    promptly(answer).await.expect("a node answers every command")
}

/// Hears one answer.
struct Ear(Mutex<Option<oneshot::Sender<Answer>>>);

impl Listener for Ear {
    fn hear(self: Arc<Self>, _: RoundId, _: NodeIndex, answer: Answer) {
        let answered = self.0.lock().expect("whole").take().expect("one answer");
        // If nobody waits any more, the test has failed already.
        let _ = answered.send(answer);
    }
}
