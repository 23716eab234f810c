//! Nodes that refuse, that stand still, that come back without their memory, that are not what they seem. A minority of
//! them is a missing vote and nothing more; without a majority nothing is promised, and everything still ends in time.
//!
//! Never is a speed asserted, only that nothing hangs. Where a process is stopped the ttl is a second or more.
#![cfg(feature = "redis")]

mod harness;

use std::future::IntoFuture;
use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::proxy::{Proxy, Way};
use harness::{Cluster, LONG_TTL, PROMPT, Server, promptly, soon, until};
use redlock_quorum::{
    AcquireError, ConnectError, ExtendError, Guard, Mutex, NodeConfig, Redlock, ReleaseOutcome, Report,
};

const SECOND: Duration = Duration::from_secs(1);

/// How a node is away.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Its process is gone: connections are refused.
    Refused,
    /// Its process stands still: connections are silent.
    Silent,
}

impl Fault {
    const ALL: [Fault; 2] = [Fault::Refused, Fault::Silent];

    fn strikes(self, servers: &mut [Server]) {
        servers.iter_mut().for_each(|server| match self {
            Fault::Refused => server.kill(),
            Fault::Silent => server.stop(),
        });
    }

    async fn ends(self, servers: &mut [Server]) {
        for server in servers {
            match self {
                Fault::Refused => server.restart_empty().await,
                Fault::Silent => server.cont(),
            }
        }
    }
}

async fn acquired(mutex: Mutex) -> Guard {
    promptly(mutex.acquire()).await.expect("free, and a majority answers")
}

async fn released(guard: Guard) -> ReleaseOutcome {
    promptly(guard.release()).await.outcome
}

/// What a verb with no majority to answer it came to.
async fn without_quorum(mutex: Mutex) -> Report {
    match promptly(mutex.acquire()).await {
        Err(AcquireError::NoQuorum(report)) => *report,
        other => panic!("a majority is away, but: {other:?}"),
    }
}

/// After the nodes are back, the connections are: sooner or later a lock is acquired.
async fn works_again(redlock: &Redlock, cluster: &Cluster) {
    let guard = soon(PROMPT * 2, redlock.mutex("afterwards").wait_forever().acquire()).await;
    assert_eq!(released(guard.expect("a majority is back")).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

// ── a minority ──────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn without_a_minority_of_three_everything_works() {
    for fault in Fault::ALL {
        everything_works_without(1, 3, fault).await;
    }
}

#[tokio::test]
async fn without_a_minority_of_five_everything_works() {
    for fault in Fault::ALL {
        everything_works_without(2, 5, fault).await;
    }
}

async fn everything_works_without(away: usize, nodes: usize, fault: Fault) {
    let mut cluster = Cluster::start(nodes).await;
    let connected_before = cluster.redlock().await;
    fault.strikes(&mut cluster.servers[..away]);
    let connected_after = promptly(cluster.builder().connect()).await.expect("a majority is there");
    for (resource, redlock) in [("before", &connected_before), ("after", &connected_after)] {
        let guard = acquired(redlock.mutex(resource)).await;
        promptly(guard.extend(LONG_TTL)).await.expect("a majority confirms");
        assert!(guard.votes().granted() >= nodes - away, "{:#}", guard.votes());
        assert_eq!(released(guard).await, ReleaseOutcome::Released, "{fault:?}");
    }
    cluster.assert_nothing_left().await;
    fault.ends(&mut cluster.servers[..away]).await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_lock_outlives_a_node_that_is_killed_under_it() {
    let mut cluster = Cluster::start(3).await;
    let (mine, other) = (cluster.redlock().await, cluster.redlock().await);
    let guard = acquired(mine.mutex("job").ttl(SECOND)).await;
    cluster.servers[0].kill();
    let killed = Instant::now();
    while killed.elapsed() < SECOND * 3 + SECOND / 2 {
        assert!(guard.is_valid(), "after {:?}", killed.elapsed());
        let tried = promptly(other.mutex("job").try_acquire()).await.expect("a majority answers");
        assert!(tried.is_none(), "after {:?}", killed.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_node_that_stood_still_is_left_with_nothing_of_a_hundred_locks() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    cluster.servers[2].stop();
    acquire_and_release(&redlock, 100, Duration::ZERO).await;
    cluster.servers[2].cont();
    cluster.assert_nothing_left().await;
    works_again(&redlock, &cluster).await;
}

/// They come all at once, and are handed out in portions.
#[tokio::test]
async fn all_answers_of_an_only_node_that_stood_still_are_heard() {
    let mut cluster = Cluster::start(1).await;
    let redlock = cluster.redlock().await;
    cluster.servers[0].stop();
    let mutexes: Vec<Mutex> = (0..100).map(|number| redlock.mutex(format!("at-once-{number}"))).collect();
    let acquiring: Vec<_> = mutexes.into_iter().map(|mutex| tokio::spawn(acquired(mutex))).collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(acquiring.iter().all(|acquiring| !acquiring.is_finished()), "the node is silent");
    cluster.servers[0].cont();
    for acquired in acquiring {
        let guard = acquired.await.expect("no panic");
        assert_eq!(released(guard).await, ReleaseOutcome::Released);
    }
    cluster.assert_nothing_left().await;
}

/// Here the client gives up the silent connection in between, and opens another.
#[tokio::test]
async fn a_node_that_stood_still_for_long_is_left_with_nothing_either() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    cluster.servers[2].stop();
    acquire_and_release(&redlock, 100, Duration::from_millis(20)).await;
    cluster.servers[2].cont();
    cluster.assert_nothing_left().await;
    works_again(&redlock, &cluster).await;
}

async fn acquire_and_release(redlock: &Redlock, pairs: u32, pause: Duration) {
    for pair in 0..pairs {
        let guard = acquired(redlock.mutex(format!("pair-{pair}"))).await;
        assert_eq!(released(guard).await, ReleaseOutcome::Released, "pair {pair}");
        tokio::time::sleep(pause).await;
    }
}

// ── a majority ──────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn without_a_majority_of_three_a_call_ends_and_says_why() {
    for fault in Fault::ALL {
        a_call_ends_and_says_why(2, 3, fault).await;
    }
}

#[tokio::test]
async fn without_a_majority_of_five_a_call_ends_and_says_why() {
    for fault in Fault::ALL {
        a_call_ends_and_says_why(3, 5, fault).await;
    }
}

async fn a_call_ends_and_says_why(away: usize, nodes: usize, fault: Fault) {
    let mut cluster = Cluster::start(nodes).await;
    let redlock = cluster.redlock().await;
    fault.strikes(&mut cluster.servers[..away]);

    let tried = promptly(redlock.mutex("job").try_acquire()).await;
    assert!(matches!(tried, Err(AcquireError::NoQuorum(_))), "{tried:?}");
    let report = without_quorum(redlock.mutex("job").wait(SECOND)).await;
    assert_names_the_reasons(&report, &cluster, away);
    let inspected = promptly(redlock.mutex("job").inspect()).await;
    assert!(inspected.is_err(), "{inspected:?}");

    fault.ends(&mut cluster.servers[..away]).await;
    works_again(&redlock, &cluster).await;
}

fn assert_names_the_reasons(report: &Report, cluster: &Cluster, away: usize) {
    let addresses: Vec<&str> = report.nodes().iter().map(|node| node.address()).collect();
    assert_eq!(addresses, cluster.addresses());
    for node in &report.nodes()[..away] {
        let words = node.in_words();
        let reasons = ["not connected", "connection lost", "timed out"];
        assert!(reasons.iter().any(|reason| words.starts_with(reason)), "{words}");
    }
    // The call does not wait for those that are there once it is clear that they are too few.
    for node in &report.nodes()[away..] {
        assert!(node.is_granted() || node.after().is_none(), "{report:#}");
    }
}

#[tokio::test]
async fn a_stall_longer_than_the_ttl_is_a_loss_that_nothing_undoes() {
    let mut cluster = Cluster::start(3).await;
    let (mine, other) = (cluster.redlock().await, cluster.redlock().await);
    let guard = acquired(mine.mutex("job").ttl(SECOND)).await;
    Fault::Silent.strikes(&mut cluster.servers[..2]);
    let stopped = Instant::now();

    promptly(guard.lost()).await;
    let told = stopped.elapsed();
    assert!(told > SECOND / 2, "silence ended it, not the clock: after {told:?}");
    assert!(guard.remaining() <= Duration::from_millis(5), "told before the last moment: {guard:?}");
    until("the end of the validity", async || !guard.is_valid()).await;
    let extended = promptly(guard.extend(SECOND)).await;
    assert!(matches!(extended, Err(ExtendError::Lost)), "{extended:?}");
    // Longer than the ttl must pass, until whatever was sent before the stall can only be late.
    tokio::time::sleep((SECOND * 2).saturating_sub(stopped.elapsed())).await;

    Fault::Silent.ends(&mut cluster.servers[..2]).await;
    cluster.assert_nothing_left().await;
    assert!(!guard.is_valid(), "late answers do not bring it back");
    let others = soon(PROMPT * 2, other.mutex("job").acquire()).await.expect("free");
    assert!(matches!(promptly(guard.extend(SECOND)).await, Err(ExtendError::Lost)));
    assert!(others.is_valid());
    assert_ne!(released(guard).await, ReleaseOutcome::Released);
    assert_eq!(released(others).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

/// A client whose release could not be sent owes it, and pays when the node is back with its memory.
#[tokio::test]
async fn a_release_that_a_silent_majority_did_not_hear_is_heard_later() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = acquired(redlock.mutex("job").ttl(LONG_TTL)).await;
    until("all keys are set", async || cluster.ours().await.len() == 3).await;
    Fault::Silent.strikes(&mut cluster.servers[..2]);
    assert_eq!(released(guard).await, ReleaseOutcome::Unknown);
    Fault::Silent.ends(&mut cluster.servers[..2]).await;
    cluster.assert_nothing_left().await;
}

/// Here the connection is given up before the release, so that it can only be sent on the next one.
#[tokio::test]
async fn a_release_that_could_not_be_sent_is_owed() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = acquired(redlock.mutex("job").ttl(LONG_TTL)).await;
    until("all keys are set", async || cluster.ours().await.len() == 3).await;
    cluster.servers[2].stop();
    until("the silent connection is given up", async || is_cut_off(&guard, 2).await).await;
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    cluster.servers[2].cont();
    cluster.assert_nothing_left().await;
}

/// Whether the node is not even asked when the lock is extended.
async fn is_cut_off(guard: &Guard, node: usize) -> bool {
    promptly(guard.extend(LONG_TTL)).await.expect("a majority confirms");
    guard.last_answers().nodes()[node].in_words().starts_with("not connected")
}

// ── connecting ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The address of each node, and why it is not up.
async fn refused(connecting: impl Future<Output = Result<Redlock, ConnectError>>) -> Vec<(String, String)> {
    match promptly(connecting).await {
        Err(ConnectError::NoQuorum { nodes }) => {
            nodes.into_iter().map(|(address, reason)| (address, reason.unwrap_or_default())).collect()
        }
        other => panic!("no majority can be reached, but: {other:?}"),
    }
}

#[tokio::test]
async fn connecting_takes_a_majority_and_names_who_is_missing() {
    for fault in Fault::ALL {
        let mut cluster = Cluster::start(3).await;
        fault.strikes(&mut cluster.servers[..1]);
        promptly(cluster.builder().connect()).await.expect("two of three are there");

        fault.strikes(&mut cluster.servers[1..2]);
        let nodes = refused(cluster.builder().connect_timeout(SECOND).connect()).await;
        let addresses: Vec<String> = nodes.iter().map(|(address, _)| address.clone()).collect();
        assert_eq!(addresses, cluster.addresses());
        let is_missing: Vec<bool> = nodes.iter().map(|(_, reason)| !reason.is_empty()).collect();
        assert_eq!(is_missing, [true, true, false], "{fault:?}: {nodes:?}");
    }
}

#[tokio::test]
async fn a_lazy_client_works_as_soon_as_its_nodes_are_there() {
    let mut cluster = Cluster::start(3).await;
    Fault::Refused.strikes(&mut cluster.servers);
    let redlock = cluster.builder().connect_lazy().expect("nothing is asked yet");
    let report = without_quorum(redlock.mutex("job").wait(SECOND / 2)).await;
    assert!(report.unknown() >= 2, "{report:#}");
    Fault::Refused.ends(&mut cluster.servers).await;
    works_again(&redlock, &cluster).await;
}

// ── nodes that are not what they seem ───────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_server_under_two_names_has_one_vote() {
    let mut cluster = Cluster::start(2).await;
    let twice = &cluster.servers[0];
    let names = [twice.address(), format!("localhost:{}", twice.port()), cluster.servers[1].address()];
    let doubles = unfit(Redlock::builder().nodes(names.clone()).connect()).await;
    assert_eq!(doubles.len(), 1, "{doubles:?}");
    assert!(doubles[0].1.contains("is the same server as"), "{doubles:?}");

    let redlock = harness::over(names).connect_lazy().expect("good settings");
    for round in 0..20 {
        let guard = acquired(redlock.mutex(format!("round-{round}"))).await;
        promptly(guard.extend(LONG_TTL)).await.expect("both servers confirm");
        assert_eq!(guard.votes().granted(), 2, "{:#}", guard.votes());
        assert_eq!(released(guard).await, ReleaseOutcome::Released);
    }

    cluster.servers[1].kill();
    without_quorum(redlock.mutex("alone").wait(SECOND)).await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_wrong_password_is_a_reason_that_does_not_repeat_it() {
    const WRONG: &str = "hunter2";
    let cluster = Cluster::start(3).await;
    for server in &cluster.servers {
        server.type_in::<()>("CONFIG SET requirepass right").await;
    }
    let beside = cluster.addresses().into_iter().map(|address| NodeConfig::new(address).password(WRONG));
    let within = cluster.addresses().into_iter().map(|address| format!("redis://:{WRONG}@{address}"));
    let within = within.map(NodeConfig::new);
    for nodes in [beside.collect::<Vec<_>>(), within.collect()] {
        let error = promptly(Redlock::builder().nodes(nodes).connect()).await.expect_err("refused");
        for text in [format!("{error}"), format!("{error:#}"), format!("{error:?}")] {
            assert!(!text.contains(WRONG), "{text}");
            assert!(text.to_lowercase().contains("pass") || text.contains("uthentication"), "{text}");
        }
    }
    let right = cluster.addresses().into_iter().map(|address| NodeConfig::new(address).password("right"));
    // Not the default, which a busy machine may exceed.
    let right = harness::over(right).node_timeout(SECOND);
    let redlock = promptly(right.connect()).await.expect("the right password");
    assert_eq!(released(acquired(redlock.mutex("job")).await).await, ReleaseOutcome::Released);
}

#[tokio::test]
async fn a_replica_has_no_vote() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    cluster.servers[1].follow(&cluster.servers[0]).await;

    // The one that was a master when the client connected, and is none any more.
    let guard = acquired(redlock.mutex("two-masters")).await;
    until_all_have_answered(&guard).await;
    assert_eq!(guard.votes().granted(), 2, "{:#}", guard.votes());
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    // And the one that never was.
    let replicas = unfit(cluster.builder().connect()).await;
    assert_eq!(replicas, [(cluster.servers[1].address(), "is a replica: only a master can vote".to_owned())]);

    cluster.servers[2].kill();
    without_quorum(redlock.mutex("one-master").wait(SECOND)).await;
    cluster.assert_nothing_left().await;
}

/// The nodes that can never vote, and what they are.
async fn unfit(connecting: impl Future<Output = Result<Redlock, ConnectError>>) -> Vec<(String, String)> {
    match promptly(connecting).await {
        Err(ConnectError::Unfit { nodes }) => nodes,
        other => panic!("not refused: {other:?}"),
    }
}

async fn until_all_have_answered(guard: &Guard) {
    let answered = || guard.votes().nodes().iter().all(|node| node.after().is_some());
    until("all nodes answered", async || answered()).await;
}

#[tokio::test]
async fn nodes_that_restart_one_after_the_other_are_used_again() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    for node in 0..3 {
        cluster.servers[node].restart_empty().await;
        until("all three vote", async || all_vote(&redlock).await).await;
    }
    let waits = (0..3).map(|job| redlock.mutex(format!("job-{job}")).into_future());
    for acquired in promptly(join_all(waits)).await {
        assert_eq!(released(acquired.expect("free")).await, ReleaseOutcome::Released);
    }
    cluster.assert_nothing_left().await;
}

async fn all_vote(redlock: &Redlock) -> bool {
    let guard = acquired(redlock.mutex("probe")).await;
    until_all_have_answered(&guard).await;
    let all = guard.votes().granted() == 3;
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    all
}

#[tokio::test]
async fn what_is_owed_outlives_the_last_handle() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = acquired(redlock.mutex("job").ttl(LONG_TTL)).await;
    until_all_have_answered(&guard).await;
    cluster.servers[0].type_in::<()>("SAVE").await;
    cluster.servers[0].stop();
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    drop(redlock);
    // It never read the release, and comes back with the key.
    cluster.servers[0].restart_with_its_data(&[]).await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn many_owed_releases_are_worked_off_without_giving_up_a_healthy_connection() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.builder().connect().await.expect("all nodes are there");
    // Not all at once: on a busy machine a node could not answer each within the node timeout.
    let mut guards = Vec::new();
    for hundred in 0..50 {
        let numbers = hundred * 100..(hundred + 1) * 100;
        guards.extend(join_all(numbers.map(|number| acquired(redlock.mutex(format!("{number}"))))).await);
    }
    let connections = cluster.servers[1].info("stats", "total_connections_received").await;
    cluster.servers[0].kill();
    drop(guards);
    cluster.servers[0].restart_empty().await;
    works_again(&redlock, &cluster).await;
    let asked: u64 =
        cluster.servers[1].info("stats", "total_connections_received").await.parse().expect("a number");
    let before: u64 = connections.parse().expect("a number");
    // Each question of this test is a connection of its own; a client that reconnects in a circle makes many more.
    assert!(asked - before < 2_000, "{} new connections", asked - before);
}

#[tokio::test]
async fn half_open_connections_are_replaced() {
    let cluster = Cluster::start(3).await;
    let proxies = join_all(cluster.servers.iter().map(|server| Proxy::before(server.port()))).await;
    let builder = harness::over(proxies.iter().map(Proxy::address));
    let redlock =
        promptly(builder.node_timeout(Duration::from_millis(50)).connect()).await.expect("all are there");
    for _ in 0..3 {
        let guard = acquired(redlock.mutex("job")).await;
        proxies.iter().for_each(Proxy::cut_in_the_middle);
        // Nobody is told. The calls notice that nothing is answered, and the connections are made anew.
        let _ = released(guard).await;
        works_again(&redlock, &cluster).await;
    }
}

/// The connections are accepted, and nothing is ever answered on them.
#[tokio::test]
async fn a_node_may_have_its_own_bound_on_connecting() {
    const QUICKLY: Duration = Duration::from_millis(50);
    const HOUR: Duration = Duration::from_secs(3_600);
    let cluster = Cluster::start(3).await;
    let proxies = join_all(cluster.servers.iter().map(|server| Proxy::before(server.port()))).await;
    proxies.iter().for_each(|proxy| proxy.hold([Way::ToClient]));
    let connecting = |all: Duration, each: Option<Duration>| {
        let node = |proxy: &Proxy| match each {
            Some(timeout) => NodeConfig::new(proxy.address()).connect_timeout(timeout),
            None => NodeConfig::new(proxy.address()),
        };
        let builder = harness::over(proxies.iter().map(node)).node_timeout(QUICKLY);
        builder.connect_timeout(all).connect()
    };
    let patient = tokio::spawn(connecting(QUICKLY, Some(HOUR)));
    // The last is refused later than the patient one would be if it were not waited for.
    for impatient in [connecting(HOUR, Some(QUICKLY)), connecting(QUICKLY * 4, None)] {
        for (node, reason) in refused(impatient).await {
            assert_eq!(reason, "timed out while connecting", "{node}");
        }
    }
    assert!(!patient.is_finished(), "it was given an hour");
    proxies.iter().for_each(|proxy| proxy.release([Way::ToClient]));
    let redlock = promptly(patient).await.expect("no panic").expect("they answer at last");
    works_again(&redlock, &cluster).await;
}
