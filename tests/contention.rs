//! Several clients want the same resource, each with connections of its own as if on another machine. One gets it, the
//! others are told so or wait their turn, and no two are ever inside at once.
#![cfg(feature = "redis")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use harness::{Cluster, LONG_TTL, promptly, soon};
use redlock_quorum::{AcquireError, Guard, Redlock, ReleaseOutcome, RunError};
use tokio::sync::Barrier;
use tokio::task::JoinHandle;

const ROUNDS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_that_try_at_once_exactly_one_gets_it() {
    try_at_once(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_that_try_at_once_exactly_one_gets_it() {
    try_at_once(10).await;
}

async fn try_at_once(contenders: usize) {
    let cluster = Cluster::start(5).await;
    let clients = clients(&cluster, contenders).await;
    for round in 0..ROUNDS {
        one_gets_it(&clients, &format!("round-{round}")).await;
    }
    cluster.assert_nothing_left().await;
}

async fn one_gets_it(clients: &[Redlock], resource: &str) {
    let guards = all_try(clients, resource).await;
    assert_eq!(guards.len(), 1, "of {} in {resource}", clients.len());
    for guard in guards {
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released, "{resource}");
    }
}

/// As of a client that died on the way, or whose release was lost. Two that come at once mostly split the other nodes only by
/// chance, so they come often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_left_at_the_first_node_keeps_nobody_out() {
    for (nodes, contenders) in [(3, 2), (3, 5), (5, 5)] {
        let cluster = Cluster::start(nodes).await;
        let clients = clients(&cluster, contenders).await;
        for round in 0..10 * ROUNDS {
            let resource = format!("round-{round}");
            cluster.servers[0].set(&format!("redlock:{resource}"), "left").await;
            one_gets_it(&clients, &resource).await;
        }
    }
}

async fn clients(cluster: &Cluster, count: usize) -> Vec<Redlock> {
    let connect = |_| async { cluster.builder().ttl(LONG_TTL).connect().await.expect("all nodes are there") };
    join_all((0..count).map(connect)).await
}

/// The guards of those who got it.
async fn all_try(clients: &[Redlock], resource: &str) -> Vec<Guard> {
    let barrier = Arc::new(Barrier::new(clients.len()));
    let tries: Vec<JoinHandle<_>> = clients
        .iter()
        .map(|client| {
            let (mutex, barrier) = (client.mutex(resource), barrier.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                mutex.try_acquire().await
            })
        })
        .collect();
    let tried = promptly(join_all(tries)).await;
    tried.into_iter().filter_map(|tried| tried.expect("no panic").expect("all nodes answer")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_is_lost_between_clients_that_take_turns() {
    const CLIENTS: usize = 5;
    const INCREMENTS: u64 = 10;
    let cluster = Cluster::start(3).await;
    let counter = Arc::new(AtomicU64::new(0));
    let mut turns = Vec::new();
    for client in clients(&cluster, CLIENTS).await {
        let counter = counter.clone();
        turns.push(tokio::spawn(async move {
            for _ in 0..INCREMENTS {
                let guard = client.mutex("counter").acquire().await.expect("sooner or later");
                increment_slowly(&counter).await;
                guard.release().await.ok().expect("held until the end");
            }
        }));
    }
    for turn in soon(Duration::from_secs(60), join_all(turns)).await {
        turn.expect("no panic");
    }
    assert_eq!(counter.load(Ordering::Relaxed), CLIENTS as u64 * INCREMENTS);
    cluster.assert_nothing_left().await;
}

/// Reads, lets the others run, and writes: whoever else is inside loses an increment.
async fn increment_slowly(counter: &AtomicU64) {
    let read = counter.load(Ordering::Relaxed);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    counter.store(read + 1, Ordering::Relaxed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_of_one_client_wait_for_each_other_as_others_do() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let counter = Arc::new(AtomicU64::new(0));
    let turns = (0..20).map(|_| {
        let (mutex, counter) = (redlock.mutex("counter"), counter.clone());
        tokio::spawn(async move { mutex.run(async |_guard| increment_slowly(&counter).await).await })
    });
    for turn in promptly(join_all(turns)).await {
        turn.expect("no panic").expect("held until the end");
    }
    assert_eq!(counter.load(Ordering::Relaxed), 20);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn run_holds_the_resource_for_as_long_as_the_work_takes() {
    let cluster = Cluster::start(3).await;
    let (mine, other) = (cluster.redlock().await, cluster.redlock().await);
    let mutex = mine.mutex("job");
    let ran = mutex.run(async |guard| {
        assert!(guard.is_valid());
        let skipped = other.mutex("job").try_run(async |_guard| unreachable!("held by the first")).await;
        assert_eq!(skipped.expect("all nodes answer"), None::<()>);
        let waited = other.mutex("job").wait(Duration::from_millis(100)).run(async |_guard| ()).await;
        assert!(matches!(waited, Err(RunError::Acquire(AcquireError::Held(_)))), "{waited:?}");
        42
    });
    assert_eq!(promptly(ran).await.expect("held until the end"), 42);
    let after = promptly(other.mutex("job").try_run(async |_guard| "done")).await;
    assert_eq!(after.expect("all nodes answer"), Some("done"));
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn work_whose_lock_is_lost_is_dropped_where_it_stands() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let finished = AtomicBool::new(false);
    let mutex = redlock.mutex("job").ttl(Duration::from_millis(300));
    let ran = mutex.run(async |_guard| {
        cluster.delete("redlock:job").await;
        std::future::pending::<()>().await;
        finished.store(true, Ordering::Relaxed);
    });
    let lost = promptly(ran).await;
    assert!(matches!(lost, Err(RunError::Lost)), "{lost:?}");
    assert!(!finished.load(Ordering::Relaxed));
    cluster.assert_nothing_left().await;
}
