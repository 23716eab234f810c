//! Fenced mutexes on real servers: a node that has forgotten something, in whatever way, does not count until what it forgot is
//! over, and fences rise through it all. Each history is played a second time with plain mutexes that nothing protects: then two
//! hold at once, which shows that the history would find out.
#![cfg(all(feature = "redis", unix))]

mod harness;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::{join, join_all, select_all};
use harness::clock::{Clock, TRUE_RATE};
use harness::proxy::Proxy;
use harness::trouble::LOGGED;
use harness::{Cluster, PROMPT, SILENT, Server, over, promptly, soon, until};
use redlock_quorum::{
    AcquireError, EnrolError, Fence, FencedGuard, FencedMutex, FencesAfterLoss, Guard, NodeConfig, Redlock,
    RedlockBuilder, ReleaseOutcome, Renewal, WakeBy,
};

/// Of every lock, and the longest there is.
const TTL: Duration = Duration::from_secs(2);

/// For so long a node waits that has forgotten something: the ttl, and what a slow clock adds.
const WAIT: Duration = Duration::from_millis(2_022);

const KEY: &str = "redlock:job";

/// What a history is played with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fenced,
    /// A plain mutex without the protection against restarts.
    Unprotected,
}
use Kind::{Fenced, Unprotected};

enum Held {
    Fenced(FencedGuard),
    Plain(Guard),
}

impl Held {
    fn fence(&self) -> Option<Fence> {
        match self {
            Held::Fenced(guard) => Some(guard.fence()),
            Held::Plain(_) => None,
        }
    }
}

impl Deref for Held {
    type Target = Guard;

    fn deref(&self) -> &Guard {
        match self {
            Held::Fenced(guard) => guard,
            Held::Plain(guard) => guard,
        }
    }
}

/// What holds is not renewed, and the servers do not tell of changed keys, so that nobody mends or notices what a node forgot.
fn set(builder: RedlockBuilder, kind: Kind) -> RedlockBuilder {
    // Where nobody waits for the ttl, a longer one leaves a busy machine more time to show two holders.
    let ttl = if kind == Unprotected { TTL * 4 } else { TTL };
    builder.ttl(ttl).renewal(Renewal::Never)
}

async fn connected(builder: RedlockBuilder, kind: Kind) -> Redlock {
    let redlock = promptly(set(builder, kind).connect()).await.expect("all nodes are there");
    if kind == Fenced {
        promptly(redlock.bootstrap()).await.expect("nothing is held, and all nodes are there");
    }
    redlock
}

async fn client(cluster: &Cluster, kind: Kind) -> Redlock {
    connected(cluster.builder(), kind).await
}

async fn acquired(redlock: &Redlock, kind: Kind) -> Result<Held, AcquireError> {
    // Whoever asks often is the first to find what should not be there.
    let wake_by = WakeBy::Poll(Duration::from_millis(20));
    match kind {
        Fenced => {
            let mutex = redlock.fenced_mutex("job").wait_forever().wake_by(wake_by);
            mutex.acquire().await.map(Held::Fenced)
        }
        Unprotected => redlock.mutex("job").wait_forever().wake_by(wake_by).acquire().await.map(Held::Plain),
    }
}

/// A client holds by the votes of the first two nodes only; the third is free.
async fn held_by_the_first_two(servers: &[Server], redlock: &Redlock, kind: Kind) -> Held {
    servers[2].set(KEY, harness::FOREIGN).await;
    let guard = promptly(acquired(redlock, kind)).await.expect("two nodes are free");
    servers[2].delete(KEY).await;
    assert!(guard.is_valid(), "the machine is too slow for this test");
    guard
}

/// Others ask for what is held. True if one of them gets it while the first client still holds. Its fence is above in any case.
async fn two_hold(first: &Held, rivals: &[&Redlock], kind: Kind) -> bool {
    let tries = rivals.iter().map(|rival| Box::pin(acquired(rival, kind)));
    let (second, ..) = soon(PROMPT * 3, select_all(tries)).await;
    let both = first.is_valid();
    let second = second.expect("it waits for as long as it takes");
    assert!(second.is_valid(), "the machine is too slow for this test");
    assert!(
        kind == Unprotected || second.fence() > first.fence(),
        "{:?} {:?}",
        second.fence(),
        first.fence()
    );
    both
}

/// Plays a history with fences and without. What a busy machine was too slow to show is played again.
async fn shows<F: Future<Output = bool>>(name: &str, history: impl Fn(Kind) -> F) {
    let bites = async || {
        for _ in 0..3 {
            if history(Unprotected).await {
                return true;
            }
        }
        false
    };
    let (fenced, unprotected) = join(history(Fenced), bites()).await;
    assert!(!fenced, "{name}: two clients hold a fenced mutex at once");
    assert!(unprotected, "{name}: the history does not show what the rules are for");
}

/// Somebody holds by the votes of the first two nodes, and the second of them loses its memory.
async fn lost_by<F: Future<Output = Cluster>>(kind: Kind, lose: impl Fn(Cluster) -> F) -> bool {
    let cluster = Cluster::start_with(3, &SILENT).await;
    let (ours, theirs) = (client(&cluster, kind).await, client(&cluster, kind).await);
    let guard = held_by_the_first_two(&cluster.servers, &ours, kind).await;
    let _cluster = lose(cluster).await;
    two_hold(&guard, &[&theirs], kind).await
}

async fn typed(cluster: Cluster, line: &str) -> Cluster {
    cluster.servers[1].type_in::<()>(line).await;
    cluster
}

#[tokio::test]
async fn a_node_that_restarts_empty_or_with_an_old_memory_does_not_count() {
    tokio::join!(
        shows("restarted empty", |kind| lost_by(kind, |mut cluster| async move {
            cluster.servers[1].restart_empty().await;
            cluster
        })),
        shows("restarted with an old snapshot", restarted_with_an_old_snapshot),
        shows("restarted with a log that lost its end", restarted_with_a_cut_log),
    );
}

async fn restarted_with_an_old_snapshot(kind: Kind) -> bool {
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    let (ours, theirs) = (client(&cluster, kind).await, client(&cluster, kind).await);
    cluster.servers[1].type_in::<()>("SAVE").await;
    let guard = held_by_the_first_two(&cluster.servers, &ours, kind).await;
    cluster.servers[1].restart_with_its_data(&[]).await;
    let fence: Option<u64> = cluster.servers[1].type_in("HGET redlock#node high_water").await;
    assert_eq!(fence.is_some(), kind == Fenced, "it counted once");
    assert_eq!(cluster.servers[1].value(KEY).await, None, "it was written later");
    two_hold(&guard, &[&theirs], kind).await
}

async fn restarted_with_a_cut_log(kind: Kind) -> bool {
    let mut cluster = Cluster::start_with(3, &[&SILENT[..], &LOGGED].concat()).await;
    let (ours, theirs) = (client(&cluster, kind).await, client(&cluster, kind).await);
    let before_the_grant = cluster.servers[1].log_length();
    let guard = held_by_the_first_two(&cluster.servers, &ours, kind).await;
    cluster.servers[1].restart_with_a_log_of(before_the_grant).await;
    assert_eq!(cluster.servers[1].value(KEY).await, None, "it was written last");
    two_hold(&guard, &[&theirs], kind).await
}

/// The process lives, and the connection stands: here a plain mutex is not protected at all.
#[tokio::test]
async fn a_node_that_is_emptied_under_a_living_connection_does_not_count() {
    tokio::join!(
        shows("FLUSHALL", |kind| lost_by(kind, |cluster| typed(cluster, "FLUSHALL"))),
        shows("SWAPDB", |kind| lost_by(kind, |cluster| typed(cluster, "SWAPDB 0 1"))),
        shows("a copy of another server", copied_another),
        shows("a copy of another node", copied_another_node),
    );
}

async fn copied_another(kind: Kind) -> bool {
    let spare = Arc::new(Server::start_with(&SILENT).await);
    lost_by(kind, |cluster| {
        let spare = spare.clone();
        async move {
            cluster.servers[1].follow(&spare).await;
            typed(cluster, "REPLICAOF NO ONE").await
        }
    })
    .await
}

/// Whose marker names another process, and which has the rival's vote already.
async fn copied_another_node(kind: Kind) -> bool {
    lost_by(kind, |cluster| async move {
        cluster.servers[1].follow(&cluster.servers[2]).await;
        typed(cluster, "REPLICAOF NO ONE").await
    })
    .await
}

#[tokio::test]
async fn a_replica_that_missed_the_last_writes_does_not_count_when_it_is_promoted() {
    shows("a failover", a_stale_replica_takes_over).await;
}

async fn a_stale_replica_takes_over(kind: Kind) -> bool {
    let (cluster, spare) = join(Cluster::start_with(3, &SILENT), Server::start_with(&SILENT)).await;
    let servers = &cluster.servers;
    let proxy = Proxy::before(servers[1].port()).await;
    let addresses = [servers[0].address(), proxy.address(), servers[2].address()];
    let connect = async || connected(over(addresses.clone()), kind).await;
    let (ours, theirs) = (connect().await, connect().await);
    spare.follow(&servers[1]).await;
    // It hears of nothing any more.
    spare.type_in::<()>("REPLICAOF 127.0.0.1 1").await;
    let guard = held_by_the_first_two(servers, &ours, kind).await;
    spare.type_in::<()>("REPLICAOF NO ONE").await;
    assert_eq!(spare.value(KEY).await, None, "it missed the key");
    proxy.lead_to(spare.port());
    servers[1].kill_clients().await;
    two_hold(&guard, &[&theirs], kind).await
}

/// Whether a node counts by what it has written down.
async fn counts(server: &Server) -> bool {
    let process = server.info("server", "run_id").await;
    process_in(server).await.is_some_and(|enrolled| enrolled == process)
}

/// The process that a server's memory names.
async fn process_in(server: &Server) -> Option<String> {
    server.type_in("HGET redlock#node process").await
}

async fn all_count(servers: &[Server]) {
    for server in servers {
        until("a node that counts", async || counts(server).await).await;
    }
}

#[tokio::test]
async fn a_hold_survives_a_rolling_restart_and_its_fence_stays() {
    let mut cluster = Cluster::start(3).await;
    let redlock = promptly(cluster.builder().ttl(TTL).connect()).await.expect("all nodes are there");
    promptly(redlock.bootstrap()).await.expect("all nodes are there");
    let rival = promptly(cluster.builder().ttl(TTL).connect()).await.expect("all nodes are there");
    let guard = promptly(redlock.fenced_mutex("job").acquire()).await.expect("free");
    let fence = guard.fence();
    for node in 0..3 {
        let restarted = Instant::now();
        cluster.servers[node].restart_empty().await;
        until("its key again", async || cluster.servers[node].value(KEY).await.is_some()).await;
        assert!(!counts(&cluster.servers[node]).await || restarted.elapsed() >= WAIT, "it counts too early");
        all_count(&cluster.servers[node..=node]).await;
        assert!(restarted.elapsed() >= WAIT, "it counts after {:?}", restarted.elapsed());
        assert!(guard.is_valid(), "lost when node {node} restarted");
        assert!(promptly(rival.fenced_mutex("job").try_acquire()).await.expect("enough count").is_none());
    }
    assert_eq!(guard.fence(), fence);
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    let next = promptly(rival.fenced_mutex("job").acquire()).await.expect("free");
    assert!(next.fence() > fence, "{} after {fence}", next.fence());
}

#[tokio::test]
async fn a_restart_during_the_wait_begins_it_anew() {
    let mut cluster = Cluster::start(3).await;
    let redlock = client(&cluster, Fenced).await;
    cluster.servers[1].restart_empty().await;
    let observed = async |server: &Server| {
        let nonce: Option<String> = server.type_in("HGET redlock#node nonce").await;
        nonce.is_some()
    };
    until("it is looked at", async || observed(&cluster.servers[1]).await).await;
    tokio::time::sleep(WAIT / 2).await;
    let again = Instant::now();
    cluster.servers[1].restart_empty().await;
    until("it is looked at again", async || observed(&cluster.servers[1]).await).await;
    assert!(!counts(&cluster.servers[1]).await);
    all_count(&cluster.servers).await;
    assert!(again.elapsed() >= WAIT, "it counts after {:?}", again.elapsed());
    drop(redlock);
}

/// Of two clients the first one lets a node count, which then forgets. The second one has begun to wait a little later.
#[tokio::test]
async fn who_has_waited_does_not_let_a_node_count_that_has_forgotten_since() {
    let cluster = Cluster::start_with(3, &SILENT).await;
    let server = &cluster.servers[1];
    let first = client(&cluster, Fenced).await;
    server.type_in::<()>("FLUSHALL").await;
    let look = async |redlock: &Redlock| {
        let guard = promptly(redlock.fenced_mutex("job").acquire()).await.expect("two nodes count");
        let _ = promptly(guard.release()).await;
    };
    look(&first).await;
    let nonce = async || server.type_in::<Option<String>>("HGET redlock#node nonce").await;
    until("it is looked at", async || nonce().await.is_some()).await;
    let observed_under = nonce().await;
    tokio::time::sleep(WAIT / 2).await;
    let second = promptly(set(cluster.builder(), Fenced).connect()).await.expect("all nodes are there");
    look(&second).await;
    until("a node that counts", async || counts(server).await).await;
    assert_eq!(nonce().await, observed_under);
    // Nobody asks it for anything, so nobody notices.
    let forgot = Instant::now();
    server.type_in::<()>("FLUSHALL").await;
    until("a node that counts", async || counts(server).await).await;
    assert!(forgot.elapsed() >= WAIT, "it counts after {:?}", forgot.elapsed());
    assert_ne!(nonce().await, observed_under, "it is another incarnation");
    drop((first, second));
}

#[tokio::test]
async fn when_all_memory_is_lost_nobody_holds_for_the_wait_and_fences_go_on_above() {
    let mut cluster = Cluster::start(3).await;
    let redlock = client(&cluster, Fenced).await;
    let mut last = Fence::default();
    for how in ["FLUSHALL", "restart"] {
        let guard = promptly(redlock.fenced_mutex("job").acquire()).await.expect("free");
        assert!(guard.fence() > last);
        last = guard.fence();
        let lost = Instant::now();
        match how {
            "FLUSHALL" => {
                join_all(cluster.servers.iter().map(|server| server.type_in::<()>("FLUSHALL"))).await;
            }
            _ => {
                join_all(cluster.servers.iter_mut().map(Server::restart_empty)).await;
            }
        }
        let other = promptly(set(cluster.builder(), Fenced).connect()).await.expect("all nodes are there");
        let refused = promptly(other.fenced_mutex("job").try_acquire()).await.expect_err("nobody remembers");
        assert!(matches!(refused, AcquireError::NotReady { .. }), "{how}: {refused:#}");
        let next =
            soon(PROMPT * 2, other.fenced_mutex("job").wait_forever().acquire()).await.expect("in the end");
        assert!(lost.elapsed() >= WAIT && !guard.is_valid(), "{how}: after {:?}", lost.elapsed());
        assert!(next.fence() > last, "{how}: {} after {last}", next.fence());
        last = next.fence();
    }
}

/// Without anybody's word a new deployment is one that was lost.
#[tokio::test]
async fn a_new_deployment_waits_unless_it_is_said_to_be_new() {
    let cluster = Cluster::start(3).await;
    let redlock =
        promptly(set(over(cluster.addresses()), Fenced).connect()).await.expect("all nodes are there");
    let begin = Instant::now();
    let refused = promptly(redlock.fenced_mutex("job").try_acquire()).await.expect_err("nobody counts");
    let AcquireError::NotReady { votes_in, .. } = &refused else { panic!("{refused:#}") };
    assert!(*votes_in <= WAIT, "{refused:#}");
    // Another namespace is another deployment.
    let billing = redlock.namespace("billing");
    promptly(billing.bootstrap()).await.expect("all nodes are there");
    let guard = promptly(billing.fenced_mutex("job").try_acquire()).await.expect("it is new").expect("free");
    assert!(begin.elapsed() < WAIT, "the machine is too slow for this test");
    drop(guard);
    let guard = promptly(redlock.fenced_mutex("job").acquire()).await.expect("it waits");
    assert!(begin.elapsed() >= WAIT);
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
}

/// By an operator's word nobody waits. But fences must not go back: who says it may have met none of them.
#[tokio::test]
async fn by_an_operators_word_fences_go_on_above_what_is_remembered_or_else_above_the_clock() {
    let cluster = Cluster::start(3).await;
    let mut last = Fence::default();
    for forgetful in [&cluster.servers[..0], &cluster.servers[1..2], &cluster.servers[..]] {
        join_all(forgetful.iter().map(|server| server.type_in::<()>("FLUSHALL"))).await;
        let stranger = client(&cluster, Fenced).await;
        for server in forgetful {
            let floor: Option<u64> = server.type_in("HGET redlock#node floor").await;
            assert!(floor.map(Fence::new) >= Some(last), "{floor:?} after {last}");
        }
        let guard =
            promptly(stranger.fenced_mutex("job").try_acquire()).await.expect("all count").expect("free");
        assert!(guard.fence() > last, "{} after {last}", guard.fence());
        last = guard.fence();
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    }
}

fn other_rules(error: &AcquireError) -> bool {
    format!("{error:#}").contains("other nodes, or another max_ttl")
}

#[tokio::test]
async fn clients_that_name_other_nodes_or_another_max_ttl_are_refused_until_an_operator_says_so() {
    let cluster = Cluster::start(4).await;
    let connect = async |nodes: &[usize], max_ttl: Duration| {
        let addresses = cluster.addresses();
        let builder =
            over(nodes.iter().map(|node| NodeConfig::new(&addresses[*node]))).ttl(TTL).max_ttl(max_ttl);
        promptly(builder.connect()).await.expect("all nodes are there")
    };
    let ours = connect(&[0, 1, 2], TTL).await;
    promptly(ours.bootstrap()).await.expect("all nodes are there");
    let former = promptly(ours.fenced_mutex("job").acquire()).await.expect("free").fence();
    for (nodes, max_ttl) in [(&[1, 0, 2][..], TTL), (&[0, 1, 3], TTL), (&[0, 1], TTL), (&[0, 1, 2], TTL * 2)]
    {
        let theirs = connect(nodes, max_ttl).await;
        let refused = promptly(theirs.fenced_mutex("job").try_acquire()).await.expect_err("other rules");
        assert!(other_rules(&refused), "{nodes:?} {max_ttl:?}: {refused:#}");
        let refused = promptly(theirs.bootstrap()).await.expect_err("other rules");
        assert!(matches!(refused, EnrolError::OtherRules(_)), "{nodes:?} {max_ttl:?}: {refused:#}");
        // It does no harm to those who agree.
        drop(promptly(ours.fenced_mutex("job").acquire()).await.expect("the nodes count for us"));
    }

    // From now on there is another node in the place of the third.
    let theirs = connect(&[0, 1, 3], TTL).await;
    let begin = Instant::now();
    promptly(theirs.reconfigure()).await.expect("all nodes are there");
    let guard = soon(PROMPT * 2, theirs.fenced_mutex("job").acquire()).await.expect("after the wait");
    assert!(begin.elapsed() >= WAIT, "after {:?}", begin.elapsed());
    assert!(guard.fence() > former, "{} after {former}", guard.fence());
    drop(guard);
    let refused = promptly(ours.fenced_mutex("job").try_acquire()).await.expect_err("other rules");
    assert!(other_rules(&refused), "{refused:#}");
}

#[tokio::test]
async fn while_one_is_away_that_may_know_more_nobody_trusts_the_clock_unless_it_is_said() {
    let mut cluster = Cluster::start(3).await;
    let redlock = client(&cluster, Fenced).await;
    let last = promptly(redlock.fenced_mutex("job").acquire()).await.expect("free").fence();
    // One is gone for good, and of the two others one forgets.
    cluster.servers[2].kill();
    cluster.servers[1].restart_empty().await;
    let mutex = redlock.fenced_mutex("job").wait(WAIT * 2);
    let refused = soon(PROMPT * 2, mutex.acquire()).await.expect_err("one of three knows too little");
    assert!(matches!(refused, AcquireError::NotReady { .. } | AcquireError::NoQuorum(_)), "{refused:#}");
    let trusting = set(cluster.builder(), Fenced).fences_after_loss(FencesAfterLoss::TrustTheClock);
    let trusting = promptly(trusting.connect()).await.expect("two are there");
    let guard = soon(PROMPT * 2, trusting.fenced_mutex("job").wait_forever().acquire())
        .await
        .expect("after the wait");
    assert!(guard.fence() > last, "{} after {last}", guard.fence());
    drop(guard);
    // And by an operator's word at once.
    cluster.servers[1].restart_empty().await;
    until("a word that is heard", async || redlock.bootstrap().await.is_ok()).await;
    let next = promptly(redlock.fenced_mutex("job").acquire()).await.expect("two count");
    assert!(next.fence() > last);
}

#[tokio::test]
async fn a_server_that_may_evict_is_not_asked_unless_that_is_allowed() {
    const EVICTING: [&str; 4] = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let cluster = Cluster::start_with(3, &EVICTING).await;
    let redlock = client(&cluster, Fenced).await;
    let refused = promptly(redlock.fenced_mutex("job").try_acquire()).await.expect_err("it may evict");
    let said = format!("{refused:#}");
    assert!(matches!(refused, AcquireError::NoQuorum(_)) && said.contains("maxmemory-policy"), "{said}");
    let allowed =
        promptly(set(cluster.builder(), Fenced).allow_eviction().connect()).await.expect("all nodes");
    assert!(promptly(allowed.fenced_mutex("job").try_acquire()).await.expect("allowed").is_some());
}

/// Whoever may not ask a server for its name cannot tell whether it has forgotten something.
#[tokio::test]
async fn a_server_that_does_not_say_which_process_it_is_never_counts() {
    let cluster = Cluster::start(1).await;
    cluster.servers[0].type_in::<()>("ACL SETUSER blind on nopass ~* &* +@all -info").await;
    let builder = over([NodeConfig::new(cluster.servers[0].address()).username("blind").password("-")]);
    let redlock = promptly(set(builder, Fenced).connect()).await.expect("it is there");
    let refused = promptly(redlock.bootstrap()).await.expect_err("nobody knows what it has forgotten");
    assert!(format!("{refused:#}").contains("does not say which process it is"), "{refused:#}");
    let refused = promptly(redlock.fenced_mutex("job").try_acquire()).await.expect_err("it does not count");
    let AcquireError::NotReady { votes_in: Duration::MAX, .. } = refused else { panic!("{refused:#}") };
    assert!(refused.to_string().contains("it is not known when"), "{refused}");
}

/// Locks and fences are taken all the time, by two clients, while one node after the other loses its memory or gets an old one.
#[tokio::test]
async fn fences_rise_while_nodes_lose_their_memories_one_after_the_other() {
    let mut cluster = Cluster::start(3).await;
    let clients = [client(&cluster, Fenced).await, client(&cluster, Fenced).await];
    let is_over = Arc::new(AtomicBool::new(false));
    let (granted, mut grants) = tokio::sync::mpsc::unbounded_channel();
    let work = |redlock: Redlock| {
        let (is_over, granted) = (is_over.clone(), granted.clone());
        async move {
            let mutex: FencedMutex = redlock.fenced_mutex("job").wait_forever();
            while !is_over.load(Ordering::SeqCst) {
                let guard = mutex.acquire().await.expect("it waits for as long as it takes");
                granted.send(guard.fence()).expect("somebody counts");
                let _ = guard.release().await;
            }
        }
    };
    let workers: Vec<_> = clients.into_iter().map(|redlock| tokio::spawn(work(redlock))).collect();
    for (node, remembers) in [(0, false), (1, true), (2, false), (0, true)] {
        if remembers {
            cluster.servers[node].type_in::<()>("SAVE").await;
            cluster.servers[node].restart_with_its_data(&[]).await;
        } else {
            cluster.servers[node].restart_empty().await;
        }
        all_count(&cluster.servers).await;
    }
    is_over.store(true, Ordering::SeqCst);
    for worker in workers {
        soon(PROMPT * 2, worker).await.expect("no panic");
    }
    drop(granted);
    let mut fences = Vec::new();
    while let Some(fence) = grants.recv().await {
        fences.push(fence);
    }
    assert!(fences.len() > 100, "only {} grants", fences.len());
    assert!(fences.is_sorted_by(|earlier, later| earlier < later), "of {} fences", fences.len());
}

/// How many scripts the nodes that run were asked for.
async fn scripts(cluster: &Cluster) -> u64 {
    join_all(cluster.running().map(|server| server.calls("evalsha"))).await.into_iter().sum()
}

/// In the common case a fence costs nothing: one script at each node, and the answers of a majority.
#[tokio::test]
async fn a_fence_takes_one_round_trip_and_two_where_a_clock_is_ahead() {
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    let redlock = client(&cluster, Fenced).await;
    // The first fence is above the clock by which a new deployment begins.
    drop(promptly(redlock.fenced_mutex("job").acquire()).await.expect("free"));
    // Each node answers this behind all that was sent to it before.
    promptly(redlock.diagnose()).await;
    let (before, rounds) = (scripts(&cluster).await, 20);
    for _ in 0..rounds {
        let guard = promptly(redlock.fenced_mutex("job").acquire()).await.expect("free");
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    }
    until("all releases", async || scripts(&cluster).await >= before + rounds * 6).await;
    assert_eq!(
        scripts(&cluster).await,
        before + rounds * 6,
        "a proposal and a release at each of three nodes"
    );

    // The same client meets a resource in the hands of one whose fences are far ahead: the next has to be raised above them all. One
    // node is away, so that none that is there may be too late to be asked to raise its own.
    for (server, fence) in cluster.servers.iter().zip([5_000_000_000_000_000_u64, 4_000_000_000_000_000]) {
        server.type_in::<()>(&format!("SET redlock#fence:ahead {fence} PX 60000")).await;
    }
    cluster.servers[2].kill();
    let mutex = redlock.fenced_mutex("ahead");
    for (round_trips, fence) in [(3, 5_000_000_000_000_001), (2, 5_000_000_000_000_002)] {
        let before = scripts(&cluster).await;
        let guard = promptly(mutex.acquire()).await.expect("free");
        assert_eq!(guard.fence().as_u64(), fence);
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
        let calls = scripts(&cluster).await - before;
        assert_eq!(calls, 2 * round_trips, "a proposal, a fence that is raised if need be, and a release");
    }
}

/// In a new deployment all propose the same at first; and of a resource that nobody has used a node remembers only what it has
/// accepted for others, which is more from moment to moment.
#[tokio::test]
async fn many_resources_that_nobody_has_used_take_no_more_than_two_round_trips_each() {
    let cluster = Cluster::start_with(3, &SILENT).await;
    let redlock = client(&cluster, Fenced).await;
    let mutexes: Vec<_> = (0..32).map(|number| redlock.fenced_mutex(format!("job/{number}"))).collect();
    let before = scripts(&cluster).await;
    let guards = promptly(join_all(mutexes.iter().map(FencedMutex::acquire))).await;
    let calls = scripts(&cluster).await - before;
    assert!(guards.iter().all(Result::is_ok), "{guards:?}");
    assert!(calls <= mutexes.len() as u64 * 6, "{calls} proposals and fences that were raised");

    // What goes back at once goes together, and is judged by one look at the marker. Before, all nodes have done what they were asked.
    promptly(redlock.diagnose()).await;
    let before = scripts(&cluster).await;
    let releases = promptly(join_all(guards.into_iter().flatten().map(FencedGuard::release))).await;
    assert!(releases.iter().all(|release| release.proven == Some(true)), "{releases:?}");
    let is_lock = |standing: &harness::Standing| standing.key.starts_with("redlock:");
    until("all locks are gone", async || !cluster.keys().await.iter().any(is_lock)).await;
    assert_eq!(scripts(&cluster).await - before, 3);
}

#[tokio::test]
async fn a_plain_mutex_and_a_fenced_one_exclude_each_other() {
    let cluster = Cluster::start(3).await;
    let (ours, theirs) = (client(&cluster, Fenced).await, client(&cluster, Fenced).await);
    let fenced = promptly(ours.fenced_mutex("job").acquire()).await.expect("free");
    assert!(promptly(theirs.mutex("job").try_acquire()).await.expect("they answer").is_none());
    let waiting =
        tokio::spawn(async move { theirs.mutex("job").acquire().await.map(|guard| (guard, theirs)) });
    drop(fenced);
    let (plain, theirs) = promptly(waiting).await.expect("no panic").expect("its turn");
    assert!(promptly(ours.fenced_mutex("job").try_acquire()).await.expect("they answer").is_none());
    assert_eq!(promptly(plain.release()).await.outcome, ReleaseOutcome::Released);
    assert!(promptly(theirs.fenced_mutex("job").try_acquire()).await.expect("they answer").is_some());
}

// ── what is proven ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// For so long locks are taken in the calm: `REDLOCK_CALM_SECONDS` sets it.
fn calm() -> Duration {
    let seconds = std::env::var("REDLOCK_CALM_SECONDS").map(|text| text.parse().expect("seconds"));
    Duration::from_secs(seconds.unwrap_or(15))
}

#[tokio::test]
async fn in_the_calm_nothing_is_lost_and_every_release_is_proven() {
    let cluster = Cluster::start(3).await;
    let redlock = promptly(cluster.builder().ttl(TTL / 2).connect()).await.expect("all nodes are there");
    promptly(redlock.bootstrap()).await.expect("it is new");
    let (begin, length) = (Instant::now(), calm());
    let long = promptly(redlock.fenced_mutex("long").acquire()).await.expect("free");
    let work = |number: usize| {
        let mutex = redlock.fenced_mutex(format!("job/{}", number / 2));
        async move {
            let (mut count, mut unproven) = (0_u64, 0_u64);
            while begin.elapsed() < length {
                let guard = mutex.acquire().await.expect("free before long");
                assert!(
                    count % 100 > 0 || guard.verify().await.expect("it is held"),
                    "not proven while held"
                );
                let release = guard.release().await;
                assert_eq!(release.outcome, ReleaseOutcome::Released);
                count += 1;
                unproven += u64::from(release.proven != Some(true));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (count, unproven)
        }
    };
    let done = join_all((0..4).map(work)).await;
    assert!(long.is_valid() && promptly(long.verify()).await.expect("it is held"));
    assert_eq!(promptly(long.release()).await.proven, Some(true), "held and renewed all the time");
    let (count, unproven) =
        done.into_iter().fold((0, 0), |(a, b), (count, unproven)| (a + count, b + unproven));
    println!("{count} locks in {length:?}, of which {unproven} are not proven");
    assert!(count > 100 && unproven == 0, "{unproven} of {count} are not proven");
}

/// A hold, as those who look from outside saw it.
#[derive(Debug)]
struct Hold {
    granted: Instant,
    released: Instant,
    proven: bool,
    fence: Fence,
}

impl Hold {
    fn overlaps(&self, other: &Hold) -> bool {
        self.granted < other.released && other.granted < self.released
    }
}

/// Clocks that jump break every promise that rests on clocks: two hold at once, and the test sees it. Of those two at least one
/// is not proven, and that is told; and fences go on rising.
#[tokio::test]
async fn on_servers_whose_clocks_jump_no_two_proven_holds_overlap() {
    let clocks: Vec<Clock> = (0..3).filter_map(|_| Clock::stopped()).collect();
    if clocks.len() < 3 {
        return;
    }
    clocks.iter().for_each(|clock| clock.run_at(TRUE_RATE));
    let servers = join_all(clocks.iter().map(Server::start_with_clock)).await;
    // Or else a holder would notice, and give up.
    join_all(servers.iter().map(|server| server.type_in::<()>("ACL SETUSER default -client|tracking"))).await;
    let addresses: Vec<_> = servers.iter().map(Server::address).collect();
    let connect = async || {
        let builder = over(addresses.clone()).ttl(TTL).renewal(Renewal::Never);
        let redlock = promptly(builder.connect()).await.expect("all nodes are there");
        promptly(redlock.bootstrap()).await.expect("nothing is held");
        redlock
    };
    let (begin, length) = (Instant::now(), Duration::from_secs(8));
    let work = async |redlock: Redlock| {
        let mutex =
            redlock.fenced_mutex("job").wait_forever().wake_by(WakeBy::Poll(Duration::from_millis(10)));
        let mut holds = Vec::new();
        while begin.elapsed() < length {
            let guard = mutex.acquire().await.expect("it waits for as long as it takes");
            let (granted, fence) = (Instant::now(), guard.fence());
            tokio::time::sleep(Duration::from_millis(60)).await;
            let released = Instant::now();
            let proven = guard.release().await.proven.expect("it is of a kind that can prove");
            holds.push(Hold { granted, released, proven, fence });
        }
        holds
    };
    // Past the end of every key, now at one node, now at two.
    let trouble = async {
        let mut turn = 0;
        while begin.elapsed() < length {
            tokio::time::sleep(Duration::from_millis(110)).await;
            let first = turn % 3;
            clocks[first].advance(TTL * 2);
            if turn % 2 == 0 {
                clocks[(first + 1) % 3].advance(TTL * 2);
            }
            turn += 1;
        }
    };
    let (ours, theirs, more) = (connect().await, connect().await, connect().await);
    let (ours, theirs, more, ()) =
        soon(length * 3, async { tokio::join!(work(ours), work(theirs), work(more), trouble) }).await;
    let mut holds: Vec<Hold> = ours.into_iter().chain(theirs).chain(more).collect();
    holds.sort_by_key(|hold| hold.granted);
    let pairs =
        || holds.iter().enumerate().flat_map(|(place, a)| holds[place + 1..].iter().map(move |b| (a, b)));
    for (earlier, later) in pairs() {
        if earlier.overlaps(later) {
            assert!(!(earlier.proven && later.proven), "both are proven: {earlier:?} {later:?}");
        } else {
            assert!(earlier.fence < later.fence, "{earlier:?} {later:?}");
        }
        assert_ne!(earlier.fence, later.fence);
    }
    let overlaps = pairs().filter(|(a, b)| a.overlaps(b)).count();
    let proven = holds.iter().filter(|hold| hold.proven).count();
    println!("{} holds, {proven} proven, {overlaps} overlaps", holds.len());
    assert!(overlaps > 0, "nothing happened that a proof could find");
    assert!(proven > 0, "nothing is ever proven");
}
