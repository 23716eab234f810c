//! A lock that is held: it is renewed for as long as its guard lives, it ends where it should, and whoever holds it is told
//! in time. What a lock came to is read from both sides, the guard and the servers.
#![cfg(feature = "redis")]

mod harness;

use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::{Cluster, LONG_TTL, PROMPT, promptly, soon, until};
use redlock_quorum::{ExtendError, Guard, Mutex, Redlock, ReleaseOutcome, Renewal};

const SHORT_TTL: Duration = Duration::from_millis(300);

const KEY: &str = "redlock:job";

/// Two clients that know nothing of each other, and what one of them wants.
struct Two {
    cluster: Cluster,
    mine: Redlock,
    other: Redlock,
}

impl Two {
    async fn over(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await;
        let (mine, other) = (cluster.redlock().await, cluster.redlock().await);
        Two { cluster, mine, other }
    }

    fn mutex(&self, ttl: Duration) -> Mutex {
        self.mine.mutex("job").ttl(ttl)
    }

    /// The guard, if the other client can have the resource now.
    async fn other_tries(&self) -> Option<Guard> {
        promptly(self.other.mutex("job").try_acquire()).await.expect("all nodes answer")
    }
}

async fn acquired(mutex: Mutex) -> Guard {
    promptly(mutex.acquire()).await.expect("free")
}

async fn released(guard: Guard) -> ReleaseOutcome {
    promptly(guard.release()).await.outcome
}

/// The moment at which the guard is told that the lock is lost.
async fn told_lost(guard: &Guard) -> Instant {
    promptly(guard.lost()).await;
    Instant::now()
}

/// The signal comes a margin before the end.
async fn validity_ends(guard: &Guard) {
    assert!(guard.remaining() <= Duration::from_millis(5), "told too early: {:?}", guard.remaining());
    until("the end of the validity", async || !guard.is_valid()).await;
}

#[tokio::test]
async fn a_guard_that_lives_keeps_the_lock_over_many_ttls() {
    let two = Two::over(3).await;
    let guard = acquired(two.mutex(SHORT_TTL)).await;
    let begun = Instant::now();
    while begun.elapsed() < SHORT_TTL * 10 {
        assert!(guard.is_valid(), "after {:?}", begun.elapsed());
        assert!(two.other_tries().await.is_none(), "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    two.cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn without_renewal_a_lock_ends_with_its_ttl_and_the_holder_is_told() {
    let two = Two::over(3).await;
    let guard = acquired(two.mutex(SHORT_TTL).renewal(Renewal::Never)).await;
    let watch = guard.watch();
    assert!(two.other_tries().await.is_none());

    told_lost(&guard).await;
    validity_ends(&guard).await;
    assert!(!watch.is_valid());
    let others = promptly(two.other.mutex("job").acquire()).await.expect("free when the keys have expired");
    assert_eq!(released(others).await, ReleaseOutcome::Released);
    assert!(matches!(guard.extend(SHORT_TTL).await, Err(ExtendError::Lost)));
    assert_eq!(released(guard).await, ReleaseOutcome::Expired);
    two.cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_lock_that_another_has_taken_over_is_not_released_for_them() {
    let two = Two::over(3).await;
    let guard = acquired(two.mutex(SHORT_TTL).renewal(Renewal::Never)).await;
    told_lost(&guard).await;
    let others = promptly(two.other.mutex("job").acquire()).await.expect("the first has lost it");

    assert!(!guard.is_valid());
    let release = promptly(guard.release()).await;
    assert_eq!(release.outcome, ReleaseOutcome::TakenOver, "{release}");
    release.ok().expect_err("the lock was not held until the end");
    assert!(others.is_valid());
    assert_eq!(released(others).await, ReleaseOutcome::Released);
}

#[tokio::test]
async fn keys_that_an_operator_deletes_are_a_loss_and_do_not_come_back() {
    let two = Two::over(3).await;
    let guard = acquired(two.mutex(SHORT_TTL)).await;
    two.cluster.delete(KEY).await;
    soon(SHORT_TTL * 2, guard.lost()).await;
    assert!(!guard.is_valid(), "a majority has shown that it is gone");
    two.cluster.assert_nothing_left().await;
    let others = two.other_tries().await.expect("free");
    assert_eq!(released(guard).await, ReleaseOutcome::TakenOver);
    assert_eq!(released(others).await, ReleaseOutcome::Released);
}

#[tokio::test]
async fn a_key_that_one_node_lost_is_set_again_at_the_next_renewal() {
    let two = Two::over(3).await;
    let guard = acquired(two.mutex(SHORT_TTL)).await;
    let lost_it = &two.cluster.servers[1];
    lost_it.delete(KEY).await;
    until("the key is back", async || lost_it.value(KEY).await.is_some()).await;
    assert!(guard.is_valid());
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    two.cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_bounded_hold_ends_though_its_guard_lives() {
    const BOUND: Duration = Duration::from_secs(1);
    let two = Two::over(3).await;
    let begun = Instant::now();
    let guard = acquired(two.mutex(SHORT_TTL).hold_at_most(BOUND)).await;
    let told = told_lost(&guard).await;
    assert!(told - begun > SHORT_TTL * 2, "renewed until near the bound, not only {:?}", told - begun);
    validity_ends(&guard).await;
    assert!(two.mutex(SHORT_TTL).acquire().await.is_ok(), "free for others");
    assert!(guard.extend(SHORT_TTL).await.is_err());
}

#[tokio::test]
async fn an_extension_makes_a_lease_longer_and_never_shorter() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.builder().max_ttl(LONG_TTL * 2).connect().await.expect("all nodes are there");
    let guard = acquired(redlock.mutex("job").ttl(LONG_TTL).renewal(Renewal::Never)).await;
    until("all keys are set", async || cluster.ours().await.len() == 3).await;
    let nearly = |ttl: Duration| ttl - PROMPT;

    guard.extend(SHORT_TTL).await.expect("a majority confirms");
    assert!(guard.remaining() > nearly(LONG_TTL), "{guard:?}");
    assert!(shortest_expiry(&cluster).await > nearly(LONG_TTL));

    guard.extend(LONG_TTL * 2).await.expect("a majority confirms");
    assert!(guard.remaining() > nearly(LONG_TTL * 2), "{guard:?}");
    assert!(guard.remaining() < LONG_TTL * 2, "less than the keys live");
    let all_nodes_follow = async || shortest_expiry(&cluster).await > nearly(LONG_TTL * 2);
    until("the key lives longer on all nodes", all_nodes_follow).await;

    let refused = guard.extend(LONG_TTL * 3).await.expect_err("above max_ttl");
    assert!(matches!(refused, ExtendError::Settings(_)), "{refused}");
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

/// Of the keys on all nodes.
async fn shortest_expiry(cluster: &Cluster) -> Duration {
    let expiries = join_all(cluster.servers.iter().map(|server| server.expiry(KEY))).await;
    expiries.into_iter().map(|expiry| expiry.expect("a key with a ttl")).min().expect("servers")
}

#[tokio::test]
async fn an_extension_without_a_majority_leaves_the_lease_as_it_was() {
    let mut two = Two::over(3).await;
    let guard = acquired(two.mutex(LONG_TTL)).await;
    let before = guard.remaining();
    two.cluster.servers[0].kill();
    two.cluster.servers[1].kill();

    let failed = promptly(guard.extend(LONG_TTL)).await.expect_err("one node is no majority");
    assert!(matches!(failed, ExtendError::NoQuorum(_)), "{failed:#}");
    assert!(guard.is_valid());
    assert!(guard.remaining() <= before);
    assert!(guard.remaining() > before - PROMPT, "{guard:?}");
    assert_eq!(released(guard).await, ReleaseOutcome::Unknown);
    two.cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn servers_that_forget_their_scripts_are_taught_again() {
    let two = Two::over(3).await;
    let guard = acquired(two.mutex(SHORT_TTL).metadata("nightly")).await;
    let begun = Instant::now();
    while begun.elapsed() < SHORT_TTL * 3 {
        flush_scripts(&two.cluster).await;
        let inspection = promptly(two.other.mutex("job").inspect()).await.expect("all nodes answer");
        assert!(inspection.by_majority(), "{inspection:#}");
        assert_eq!(inspection.metadata(), Some("nightly"));
        assert!(guard.is_valid(), "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    flush_scripts(&two.cluster).await;
    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    two.cluster.assert_nothing_left().await;
}

async fn flush_scripts(cluster: &Cluster) {
    join_all(cluster.servers.iter().map(|server| server.type_in::<()>("SCRIPT FLUSH"))).await;
}

#[tokio::test]
async fn an_inspection_shows_the_holder_and_takes_nothing() {
    let two = Two::over(3).await;
    let inspect = async || promptly(two.other.mutex("job").inspect()).await.expect("all nodes answer");
    assert!(!inspect().await.by_majority());

    let named = two.cluster.builder().holder("worker-7").connect().await.expect("all nodes are there");
    let guard = acquired(named.mutex("job").ttl(LONG_TTL).metadata("order 42")).await;
    until("all keys are set", async || two.cluster.ours().await.len() == 3).await;
    let seen = inspect().await;
    assert_eq!((seen.holder(), seen.metadata()), (Some("worker-7"), Some("order 42")), "{seen:#}");
    let expires_in = seen.expires_in().expect("the keys have a ttl");
    assert!(expires_in <= LONG_TTL && expires_in > LONG_TTL - PROMPT, "{expires_in:?}");

    assert_eq!(released(guard).await, ReleaseOutcome::Released);
    let free = inspect().await;
    assert_eq!((free.holder(), free.by_majority()), (None, false), "{free:#}");
}
