//! What befalls a deployment, scenario by scenario, with the outcome that the documents promise. Which faults are shown here
//! and which elsewhere stands in docs/safety.md.
//!
//! Never is a speed asserted, only that what must happen does, within a generous bound. Where processes stand still the ttl
//! is a second or more, and scenarios run one at a time. What is drawn comes from a seed, which is printed:
//! `REDLOCK_TEST_SEED=<seed>` draws it again.
#![cfg(feature = "redis")]

mod harness;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{join, join_all};
use harness::hosts::Host;
use harness::process::Process;
use harness::proxy::{Proxy, Way};
use harness::storm::{Counts, Deployment, Fault, seed};
use harness::trouble::{LOGGED, MAY_HANG};
use harness::witness::{Held, Moment, Witness, overlaps};
use harness::{Cluster, LONG_TTL, PROMPT, SILENT, Server, one_at_a_time, over, promptly, soon, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redlock_quorum::{
    AcquireError, Guard, Mutex, Redlock, RedlockBuilder, ReleaseOutcome, Renewal, RestartProtection,
    RunError, Watch,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const TTL: Duration = Duration::from_secs(1);

const KEY: &str = "redlock:job";

async fn connected(builder: RedlockBuilder) -> Redlock {
    promptly(builder.connect()).await.expect("a majority is there")
}

async fn acquired(mutex: Mutex) -> Guard {
    promptly(mutex.acquire()).await.expect("free, and a majority answers")
}

async fn released(guard: Guard) -> ReleaseOutcome {
    promptly(guard.release()).await.outcome
}

/// In the end somebody can have it: when what was lost has expired, and connections are back.
async fn in_the_end(mutex: Mutex) -> Guard {
    soon(PROMPT * 2, mutex.wait_forever().acquire()).await.expect("free in the end")
}

/// With the protection that is on by default, and as short a wait as a ttl.
fn protected(builder: RedlockBuilder) -> RedlockBuilder {
    builder.restart_protection(RestartProtection::On).ttl(TTL)
}

async fn all_vote(redlock: &Redlock) {
    until("the vote of every node", async || {
        let diagnosis = redlock.diagnose().await;
        diagnosis.voting() == diagnosis.nodes().len()
    })
    .await;
}

async fn stands_on(cluster: &Cluster, nodes: usize) {
    until("the key on so many nodes", async || cluster.ours().await.len() == nodes).await;
}

// ── a crowd, and what it saw ────────────────────────────────────────────────────────────────────────────────────────────

/// Clients that take and leave locks until they are told to end, each with a record of what it held.
struct Crowd {
    members: Vec<JoinHandle<Vec<Held>>>,
    end: watch::Sender<bool>,
    grants: Arc<AtomicUsize>,
}

impl Crowd {
    fn of(clients: impl IntoIterator<Item = Redlock>, keys: u32, holds: Holds, seed: u64) -> Self {
        let (end, grants) = (watch::Sender::new(false), Arc::new(AtomicUsize::new(0)));
        let members = clients.into_iter().enumerate().map(|(number, redlock)| {
            let random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            let member = Member { redlock, name: format!("client {number}"), keys, lengths: holds, random };
            tokio::spawn(member.lives(end.subscribe(), grants.clone()))
        });
        Crowd { members: members.collect(), end, grants }
    }

    /// Waits for another grant to any of them.
    async fn goes_on(&self) {
        let before = self.grants.load(Ordering::Acquire);
        let another = async || self.grants.load(Ordering::Acquire) > before;
        soon(PROMPT * 2, async {
            while !another().await {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Nobody hangs, and no two held the same at once.
    async fn ends(self) -> Vec<Held> {
        self.end.send_replace(true);
        let members = soon(PROMPT * 2, join_all(self.members)).await;
        let holds: Vec<Held> = members.into_iter().flat_map(|member| member.expect("no panic")).collect();
        assert_eq!(overlaps(holds.clone()), [], "two at once");
        holds
    }
}

struct Member {
    redlock: Redlock,
    name: String,
    keys: u32,
    lengths: Holds,
    random: StdRng,
}

/// How long the members of a crowd hold.
#[derive(Clone, Copy)]
enum Holds {
    /// Nearly as long as an unextended lock is valid.
    NearlyATtl,
    /// Mostly for a moment, sometimes for longer than a ttl.
    Mixed,
}

impl Member {
    async fn lives(mut self, mut end: watch::Receiver<bool>, grants: Arc<AtomicUsize>) -> Vec<Held> {
        let mut holds = Vec::new();
        loop {
            let key = self.key();
            let mutex = self.redlock.mutex(&key).wait_forever();
            let guard = tokio::select! {
                guard = mutex.acquire() => guard.expect("waits for ever"),
                _ = end.wait_for(|end| *end) => return holds,
            };
            let witness = Witness::of(&guard, &key, &self.name);
            grants.fetch_add(1, Ordering::AcqRel);
            holds.push(self.holds(guard, witness).await);
        }
    }

    /// Low numbers far more often, so that there is both contention and many keys.
    fn key(&mut self) -> String {
        let below = self.random.random_range(1..=self.keys);
        self.random.random_range(0..below).to_string()
    }

    async fn holds(&mut self, guard: Guard, mut witness: Witness) -> Held {
        let millis = match self.lengths {
            Holds::NearlyATtl => 900,
            Holds::Mixed if self.random.random_range(0..20) == 0 => 1_500,
            Holds::Mixed => 10,
        };
        let length = Duration::from_millis(self.random.random_range(0..millis));
        let begun = Moment::now();
        while guard.is_valid() && Moment::now().since(begun) < length {
            witness.look(&guard);
            tokio::select! {
                () = guard.lost() => break,
                () = sleep(Duration::from_millis(10)) => {}
            }
        }
        witness.look(&guard);
        let held = witness.ends();
        let _ = guard.release().await;
        held
    }
}

#[test]
fn the_witness_sees_two_at_once() {
    let held = |what: &str, who: &str, from, until| {
        let (what, who) = (what.to_owned(), who.to_owned());
        Held { what, who, from: Moment(from), until: Moment(until) }
    };
    let one_after_the_other = [held("a", "1", 0, 10), held("a", "2", 10, 20), held("b", "3", 5, 15)];
    assert_eq!(overlaps(one_after_the_other.to_vec()), []);
    let behind_a_short_one = [held("a", "1", 0, 10), held("a", "2", 3, 4), held("a", "3", 9, 20)];
    assert_eq!(overlaps(behind_a_short_one.to_vec()).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_32_clients_no_two_hold_at_once_and_each_has_its_turns() {
    const CLIENTS: usize = 32;
    const TURNS: usize = 3;
    let cluster = Cluster::start(3).await;
    let clients = join_all((0..CLIENTS).map(|_| cluster.redlock())).await;
    let turns = clients.into_iter().enumerate().map(|(number, redlock)| {
        tokio::spawn(async move {
            let mut holds = Vec::new();
            for _ in 0..TURNS {
                let guard = redlock.mutex("job").wait_forever().acquire().await.expect("in the end");
                let witness = Witness::of(&guard, "job", &format!("client {number}"));
                sleep(Duration::from_millis(1)).await;
                holds.push(witness.ends());
                guard.release().await.ok().expect("held until the end");
            }
            holds
        })
    });
    let turns = soon(Duration::from_secs(60), join_all(turns)).await;
    let holds: Vec<Held> = turns.into_iter().flat_map(|holds| holds.expect("no panic")).collect();
    assert_eq!(holds.len(), CLIENTS * TURNS);
    assert_eq!(overlaps(holds), [], "two at once");
    cluster.assert_nothing_left().await;
}

// ── nodes that are gone, and come back with less ────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_killed_majority_ends_a_lock_with_its_validity_and_grants_again_when_it_is_back() {
    let _turn = one_at_a_time().await;
    let mut cluster = Cluster::start(3).await;
    let (ours, theirs) =
        join(connected(protected(cluster.builder())), connected(protected(cluster.builder()))).await;
    join(all_vote(&ours), all_vote(&theirs)).await;
    let guard = acquired(ours.mutex("job")).await;
    let mut witness = Witness::of(&guard, "job", "ours");
    cluster.servers[..2].iter_mut().for_each(Server::kill);

    let tried = promptly(theirs.mutex("job").try_acquire()).await;
    assert!(matches!(tried, Err(AcquireError::NoQuorum(_))), "{tried:?}");
    assert!(guard.is_valid(), "silence is no loss before the end");
    witness.look(&guard);
    promptly(guard.lost()).await;
    assert!(guard.remaining() <= Duration::from_millis(5), "told before the last moment: {guard:?}");
    let mine = witness.ends();

    for server in &mut cluster.servers[..2] {
        server.restart_empty().await;
    }
    let others = in_the_end(theirs.mutex("job")).await;
    let theirs = Witness::of(&others, "job", "theirs").ends();
    assert_eq!(overlaps(vec![mine, theirs]), []);
    assert!(!guard.is_valid(), "what is lost stays lost");
    assert_eq!(released(others).await, ReleaseOutcome::Released);
}

/// Nobody waits here until a node votes again, as a rolling restart should. And the servers tell nobody what they lost, or the
/// holders would leave in time.
#[tokio::test]
async fn restarts_faster_than_the_wait_cost_time_and_never_make_two_holders() {
    let _turn = one_at_a_time().await;
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    let clients =
        join_all((0..4).map(|_| connected(protected(cluster.builder()).renewal(Renewal::Never)))).await;
    join_all(clients.iter().map(all_vote)).await;
    let crowd = Crowd::of(clients, 1, Holds::NearlyATtl, seed());
    for node in [0, 1, 2, 1, 0, 2] {
        crowd.goes_on().await;
        cluster.servers[node].restart_empty().await;
        // The next before this one votes.
        sleep(TTL / 4).await;
        cluster.servers[(node + 1) % 3].restart_empty().await;
    }
    crowd.goes_on().await;
    crowd.ends().await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_released_key_that_comes_back_with_a_log_costs_its_ttl_and_nothing_more() {
    const LONGER: Duration = Duration::from_secs(3);
    let _turn = one_at_a_time().await;
    let mut cluster = Cluster::start_with(3, &LOGGED).await;
    let (ours, theirs) = (cluster.redlock().await, cluster.redlock().await);
    let guard = acquired(ours.mutex("job").ttl(LONGER)).await;
    stands_on(&cluster, 3).await;
    let with_the_key: Vec<u64> = cluster.servers.iter().map(Server::log_length).collect();
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;

    // The powers of all three fail, and their last moments are lost.
    for (server, length) in cluster.servers.iter_mut().zip(with_the_key) {
        server.restart_with_a_log_of(length).await;
        let expiry = server.expiry(KEY).await.expect("it is back, for the rest of its time");
        assert!(expiry <= LONGER, "{expiry:?}");
    }
    let others = in_the_end(theirs.mutex("job")).await;
    assert_eq!(released(others).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

// ── holders that stand still ────────────────────────────────────────────────────────────────────────────────────────────

const NODES_OF_THE_HOLDER: &str = "REDLOCK_TEST_NODES";

/// A process of its own holds, is stopped until another has the lock, and goes on.
#[test]
fn a_process_that_stood_still_knows_its_loss_before_it_asks_anybody() {
    let name = "a_process_that_stood_still_knows_its_loss_before_it_asks_anybody";
    beside_a_process_that_holds(name, async |cluster, redlock, holder, told| {
        holder.stop();
        let stopped = Moment::now();
        let guard = in_the_end(redlock.mutex("job")).await;
        sleep((TTL * 2).saturating_sub(Moment::now().since(stopped))).await;
        holder.cont();
        let told: Vec<String> = told.collect();
        assert!(told.contains(&"woke valid=false".to_owned()), "{told:?}");
        assert!(told.contains(&"run lost=true".to_owned()), "{told:?}");
        assert!(guard.is_valid(), "it took nothing away");
        assert_eq!(released(guard).await, ReleaseOutcome::Released);
        cluster.assert_nothing_left().await;
    });
}

#[test]
fn a_holder_that_is_killed_blocks_others_for_its_ttl_and_no_longer() {
    let name = "a_holder_that_is_killed_blocks_others_for_its_ttl_and_no_longer";
    beside_a_process_that_holds(name, async |cluster, redlock, holder, _told| {
        stands_on(cluster, 3).await;
        holder.kill();
        let killed = Moment::now();
        until("its end", async || holder.has_ended()).await;
        let mut left: Vec<Duration> = join_all(cluster.servers.iter().map(|server| server.expiry(KEY)))
            .await
            .into_iter()
            .flatten()
            .collect();
        left.sort_unstable();
        assert!(left.len() == 3 && left[2] <= TTL, "{left:?}");
        let looked = Moment::now();
        let guard = promptly(redlock.mutex("job").wait_forever().acquire()).await.expect("free in the end");
        let (blocked, blocked_on) = (Moment::now().since(killed), Moment::now().since(looked));
        // Until a majority has no key of it any more. Times to live are rounded.
        assert!(blocked_on + Duration::from_millis(100) > left[1], "free after {blocked_on:?} of {left:?}");
        assert!(blocked < TTL * 3, "free only after {blocked:?}");
        println!("blocked for {blocked:.1?} of a ttl of {TTL:?}");
        assert_eq!(released(guard).await, ReleaseOutcome::Released);
        cluster.assert_nothing_left().await;
    });
}

/// Runs the test of that name once more, as a process that holds the lock, and does something about it: with the process, and
/// with what that says.
fn beside_a_process_that_holds(
    test: &str,
    story: impl AsyncFnOnce(&Cluster, &Redlock, &mut Process, &mut dyn Iterator<Item = String>),
) {
    if let Ok(nodes) = std::env::var(NODES_OF_THE_HOLDER) {
        return hold_until_lost(&nodes);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let _turn = one_at_a_time().await;
        let cluster = Cluster::start(3).await;
        let redlock = cluster.redlock().await;
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command
            .args(["--exact", test, "--nocapture"])
            .env(NODES_OF_THE_HOLDER, cluster.addresses().join(","))
            .stdout(Stdio::piped());
        let mut holder = Process::run(&mut command);
        let mut told = BufReader::new(holder.told()).lines().map(|line| line.expect("text"));
        assert!(told.any(|line| line == "holds"));
        let held = promptly(redlock.mutex("job").try_acquire()).await.expect("all nodes answer");
        assert!(held.is_none(), "the other process has it");
        story(&cluster, &redlock, &mut holder, &mut told).await;
    });
}

/// What the process does: it works under the lock, and a thread of it looks at the clock and the guard all the time.
fn hold_until_lost(nodes: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let redlock = connected(over(nodes.split(','))).await;
        let (woke, valid) = std::sync::mpsc::channel();
        let mutex = redlock.mutex("job").ttl(TTL);
        let lost = mutex.run(async |guard| {
            let watch = guard.watch();
            std::thread::spawn(move || woke.send(valid_when_time_has_passed(&watch)));
            std::future::pending::<()>().await;
        });
        let lost = soon(PROMPT * 3, lost).await;
        println!("woke valid={}", valid.recv().expect("it looks until then"));
        println!("run lost={}", matches!(lost, Err(RunError::Lost)));
    });
}

fn valid_when_time_has_passed(watch: &Watch) -> bool {
    let mut before = Moment::now();
    println!("holds");
    loop {
        std::thread::sleep(Duration::from_millis(1));
        let now = Moment::now();
        if now.since(before) > TTL {
            return watch.is_valid();
        }
        before = now;
    }
}

#[tokio::test]
async fn work_that_blocks_its_thread_for_longer_than_the_ttl_is_told_as_lost() {
    let cluster = Cluster::start(3).await;
    let (ours, theirs) = (cluster.redlock().await, cluster.builder());
    // On a runtime of its own, since this one is about to be blocked.
    let rival = |theirs: RedlockBuilder| {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let redlock = connected(theirs).await;
            let guard = in_the_end(redlock.mutex("job").ttl(TTL)).await;
            assert!(guard.is_valid());
            assert_eq!(released(guard).await, ReleaseOutcome::Released);
        });
    };
    let mutex = ours.mutex("job").ttl(TTL);
    let ran = mutex.run(async |guard| {
        let rival = std::thread::spawn(move || rival(theirs));
        rival.join().expect("it had its turn while this one was blocked");
        assert!(!guard.is_valid(), "known before anything else runs");
        std::future::pending::<()>().await;
    });
    assert!(matches!(soon(PROMPT * 4, ran).await, Err(RunError::Lost)));
    // With its runtime went what the rival had not yet sent to the last node.
    until("nothing left", async || cluster.ours().await.is_empty()).await;
}

// ── networks ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A client that reaches the nodes through proxies, and one that reaches them as they are.
async fn two_over(cluster: &Cluster) -> (Vec<Proxy>, Redlock, Redlock) {
    let proxies = join_all(cluster.servers.iter().map(|server| Proxy::before(server.port()))).await;
    let ours = connected(over(proxies.iter().map(Proxy::address))).await;
    (proxies, ours, cluster.redlock().await)
}

#[tokio::test]
async fn a_client_that_is_cut_off_for_long_loses_and_not_before() {
    let _turn = one_at_a_time().await;
    let cluster = Cluster::start(3).await;
    let (proxies, ours, theirs) = two_over(&cluster).await;
    let cut_off = |is_so: bool| {
        proxies[..2]
            .iter()
            .for_each(|proxy| if is_so { proxy.hold(Way::BOTH) } else { proxy.release(Way::BOTH) });
    };
    let guard = acquired(ours.mutex("job").ttl(TTL * 2)).await;
    cut_off(true);
    sleep(TTL).await;
    cut_off(false);
    assert!(guard.is_valid(), "half a ttl is no loss");
    until("an extension by a majority", async || guard.remaining() > TTL).await;

    cut_off(true);
    let others = in_the_end(theirs.mutex("job")).await;
    assert!(!guard.is_valid());
    promptly(guard.lost()).await;
    let before = scripts_called(&cluster).await;
    cut_off(false);
    // What was on its way arrives; it takes nothing away, and gives nothing back.
    let arrived = |now: Vec<u64>| now[..2].iter().zip(&before).all(|(now, before)| now > before);
    until("what was on its way", async || arrived(scripts_called(&cluster).await)).await;
    let late = promptly(guard.release()).await;
    assert_ne!(late.outcome, ReleaseOutcome::Released, "{late}");
    promptly(others.extend(LONG_TTL)).await.expect("a majority has it");
    assert_eq!(released(others).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_release_that_reaches_nobody_is_unknown_and_the_keys_expire() {
    let cluster = Cluster::start(3).await;
    let (proxies, ours, theirs) = two_over(&cluster).await;
    let guard = acquired(ours.mutex("job").ttl(TTL * 2)).await;
    stands_on(&cluster, 3).await;
    proxies.iter().for_each(|proxy| proxy.swallow([Way::ToServer]));
    assert_eq!(released(guard).await, ReleaseOutcome::Unknown);
    stands_on(&cluster, 3).await;
    let others = in_the_end(theirs.mutex("job")).await;
    assert_eq!(released(others).await, ReleaseOutcome::Released);
}

/// The replies are lost, so that the nodes do what nobody hears of.
#[tokio::test]
async fn what_is_granted_and_not_heard_is_rolled_back() {
    let cluster = Cluster::start(3).await;
    let (proxies, ours, theirs) = two_over(&cluster).await;
    proxies[..2].iter().for_each(|proxy| proxy.swallow([Way::ToClient]));
    let tried = promptly(ours.mutex("job").ttl(LONG_TTL).try_acquire()).await;
    assert!(matches!(tried, Err(AcquireError::NoQuorum(_))), "{tried:?}");
    cluster.assert_nothing_left().await;
    let others = acquired(theirs.mutex("job")).await;
    proxies.iter().for_each(Proxy::heal);
    assert!(others.is_valid());
    assert_eq!(released(others).await, ReleaseOutcome::Released);
    let ours = in_the_end(ours.mutex("job")).await;
    assert_eq!(released(ours).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

/// The client rolls back on new connections long before what it had sent arrives on the old ones.
#[tokio::test]
async fn a_set_that_arrives_after_its_roll_back_is_no_vote_and_does_not_stay() {
    let cluster = Cluster::start(3).await;
    let (proxies, ours, theirs) = two_over(&cluster).await;
    proxies.iter().for_each(Proxy::strand);
    let tried = promptly(ours.mutex("job").ttl(LONG_TTL).try_acquire()).await;
    assert!(matches!(tried, Err(AcquireError::NoQuorum(_))), "{tried:?}");
    // Of this, too, a SET may be stranded, on a connection that is given up before anything is owed: it stays for its ttl.
    let again = in_the_end(ours.mutex("other").ttl(TTL)).await;
    assert_eq!(released(again).await, ReleaseOutcome::Released);
    assert_eq!(cluster.ours().await, [], "it has not arrived");

    let sets = async || join_all(cluster.servers.iter().map(|server| server.calls("set"))).await;
    let before = sets().await;
    proxies.iter().for_each(Proxy::set_afloat);
    until("the late SETs", async || sets().await.iter().zip(&before).all(|(now, before)| now > before)).await;
    until("nothing left", async || cluster.ours().await.is_empty()).await;
    let others = acquired(theirs.mutex("job")).await;
    assert_eq!(released(others).await, ReleaseOutcome::Released);
}

#[tokio::test]
async fn a_release_that_arrives_after_the_next_grant_does_not_touch_it() {
    let cluster = Cluster::start(3).await;
    let (proxies, ours, _) = two_over(&cluster).await;
    drop(acquired(ours.mutex("warm up, so that the scripts are known")).await);
    cluster.assert_nothing_left().await;
    let first = acquired(ours.mutex("job").ttl(LONG_TTL)).await;
    stands_on(&cluster, 3).await;
    proxies.iter().for_each(Proxy::strand);
    drop(first);
    // On new connections it is released too, and acquired again when all of them are there.
    until("a release on each new connection", async || cluster.ours().await.is_empty()).await;
    let second = in_the_end(ours.mutex("job").ttl(LONG_TTL).renewal(Renewal::Never)).await;
    until("three votes", async || second.votes().granted() == 3).await;
    let values = async || join_all(cluster.servers.iter().map(|server| server.value(KEY))).await;
    let (before, scripts) = (values().await, scripts_called(&cluster).await);
    proxies.iter().for_each(Proxy::set_afloat);
    until("the late releases", async || {
        scripts_called(&cluster).await.iter().zip(&scripts).all(|(now, before)| now > before)
    })
    .await;
    assert_eq!(values().await, before);
    promptly(second.extend(LONG_TTL)).await.expect("it is ours on all nodes");
    until("three confirmations", async || second.last_answers().granted() == 3).await;
    assert_eq!(released(second).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

async fn scripts_called(cluster: &Cluster) -> Vec<u64> {
    join_all(cluster.servers.iter().map(|server| server.calls("evalsha"))).await
}

/// Connections that are late and slow, end in the middle of a command, and are reset: a minority, then all.
#[tokio::test]
async fn connections_that_are_late_slow_and_end_anywhere_leave_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let cluster = Cluster::start(3).await;
    let (proxies, ours, theirs) = two_over(&cluster).await;
    for round in 0..12 {
        let struck = if round % 2 == 0 { &proxies[..1] } else { &proxies[..] };
        for proxy in struck {
            proxy.delay(Way::BOTH, Duration::from_millis(random.random_range(0..30)));
            proxy.throttle(Way::BOTH, 20_000);
            proxy.close_after(Way::BOTH[round / 2 % 2], random.random_range(0..300));
        }
        let tried = promptly(ours.mutex("job").ttl(LONG_TTL).wait(TTL).acquire()).await;
        assert!(tried.is_ok() || struck.len() == 3, "a minority: {tried:?}");
        struck.iter().for_each(Proxy::reset);
        drop(tried);
        proxies.iter().for_each(Proxy::heal);
        cluster.assert_nothing_left().await;
    }
    let others = acquired(theirs.mutex("job")).await;
    assert_eq!(released(others).await, ReleaseOutcome::Released);
    let ours = in_the_end(ours.mutex("job")).await;
    assert_eq!(released(ours).await, ReleaseOutcome::Released);
}

/// Here the kernels lose packets, each node on a host of its own.
#[tokio::test]
async fn hosts_whose_cables_are_pulled_are_a_missing_vote_and_a_loss_in_time() {
    let _turn = one_at_a_time().await;
    let Some(hosts) = (0..3).map(|_| Host::new()).collect::<Option<Vec<_>>>() else { return };
    let cluster = Cluster { servers: join_all(hosts.iter().map(Server::start_on)).await };
    let redlock = cluster.redlock().await;

    let guard = acquired(redlock.mutex("job").ttl(TTL)).await;
    hosts[0].pull();
    sleep(TTL * 2).await;
    assert!(guard.is_valid(), "one of three");
    hosts[1].pull();
    promptly(guard.lost()).await;
    let tried = promptly(redlock.mutex("job").try_acquire()).await;
    assert!(!matches!(tried, Ok(Some(_))), "one of three is no majority: {tried:?}");
    hosts.iter().for_each(Host::plug_in);
    drop(guard);
    assert_eq!(released(in_the_end(redlock.mutex("job")).await).await, ReleaseOutcome::Released);

    // One way only: what is asked is done, and nobody hears of it; and the other way round.
    for silence in [Host::mute, Host::deafen] {
        in_the_end(redlock.mutex("job")).await.release().await.ok().expect("held");
        hosts[..2].iter().for_each(silence);
        let tried = promptly(redlock.mutex("job").ttl(LONG_TTL).try_acquire()).await;
        assert!(matches!(tried, Err(AcquireError::NoQuorum(_))), "{tried:?}");
        hosts.iter().for_each(Host::cure);
        assert_eq!(released(in_the_end(redlock.mutex("job")).await).await, ReleaseOutcome::Released);
    }
    until("nothing left", async || cluster.ours().await.is_empty()).await;
}

// ── keys that go ────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_lock_that_loses_a_random_key_before_each_extension_stays_and_never_gets_shorter() {
    let mut random = StdRng::seed_from_u64(seed());
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = acquired(redlock.mutex("job").ttl(LONG_TTL).renewal(Renewal::Never)).await;
    stands_on(&cluster, 3).await;
    let mut end = Moment::now();
    for _ in 0..50 {
        cluster.servers[random.random_range(0..3)].delete(KEY).await;
        promptly(guard.extend(LONG_TTL)).await.expect("a majority has it");
        let (asked, remaining) = (Moment::now(), guard.remaining());
        assert!(Moment::now().after(remaining) >= end, "shortened");
        // At least.
        end = asked.after(remaining);
        stands_on(&cluster, 3).await;
    }
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_lock_that_a_majority_evicts_is_a_loss_and_can_be_had_again() {
    let cluster = Cluster::start(3).await;
    let (ours, theirs) = (cluster.redlock().await, cluster.redlock().await);
    let guard = acquired(ours.mutex("job").ttl(LONG_TTL)).await;
    stands_on(&cluster, 3).await;
    for server in &cluster.servers[..2] {
        server.evict_all().await;
    }
    promptly(guard.lost()).await;
    assert!(!guard.is_valid());
    for server in &cluster.servers[..2] {
        server.evict_no_more().await;
    }
    assert_ne!(released(guard).await, ReleaseOutcome::Released);
    let others = in_the_end(theirs.mutex("job")).await;
    assert_eq!(released(others).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

/// They speak the older protocol only, in which nothing can be told.
#[tokio::test]
async fn where_servers_tell_nothing_the_next_renewal_finds_a_deleted_lock() {
    let cluster = Cluster::start_with(3, &["--rename-command", "HELLO", ""]).await;
    let redlock = cluster.redlock().await;
    let guard = acquired(redlock.mutex("job").ttl(TTL)).await;
    stands_on(&cluster, 3).await;
    cluster.delete(KEY).await;
    promptly(guard.lost()).await;
    assert!(!guard.is_valid());
    cluster.assert_nothing_left().await;
}

// ── everything at once ──────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_under_random_faults_of_all_kinds_never_have_two_holders() {
    const CLIENTS: usize = 8;
    const NODES: usize = 3;
    const STEPS: usize = 12;
    let _turn = one_at_a_time().await;
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start_with(NODES, &[LOGGED.as_slice(), &MAY_HANG].concat()).await;
    let mut deployment = Deployment::of(cluster, CLIENTS).await;
    let connect = |client| connected(protected(over(deployment.addresses(client))));
    let clients = join_all((0..CLIENTS).map(connect)).await;
    join_all(clients.iter().map(all_vote)).await;
    let crowd = Crowd::of(clients, 1_000, Holds::Mixed, seed);
    let mut counts = Counts::default();
    for _ in 0..STEPS {
        let length = Duration::from_millis(random.random_range(50..1_500));
        let first = random.random_range(0..NODES);
        // On a minority, a majority, or everywhere.
        let nodes = (0..random.random_range(1..=NODES)).map(|more| (first + more) % NODES);
        let mut faults: Vec<Fault> = nodes.map(|node| Fault::drawn(&mut random, node, CLIENTS)).collect();
        println!("for {length:?}: {faults:?}");
        for fault in &mut faults {
            counts.add(fault.name());
            deployment.strike(fault, length).await;
        }
        sleep(length).await;
        for fault in &faults {
            deployment.heal(fault).await;
        }
        crowd.goes_on().await;
    }
    let holds = crowd.ends().await;
    println!("{} grants, {} faults:\n{counts}", holds.len(), counts.total());
    // What was lost on its way expires.
    until("nothing left", async || deployment.cluster.ours().await.is_empty()).await;
}
