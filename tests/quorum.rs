//! Who holds is decided by a majority of all configured nodes, and by nothing else. Here every subset of one to five nodes
//! is taken by another client in turn; what is won, what is refused, and what is left behind is read from the servers.
#![cfg(feature = "redis")]

mod harness;

use std::time::{Duration, Instant};

use harness::{Cluster, FOREIGN, LONG_TTL, promptly};
use redlock_quorum::{AcquireError, Redlock, ReleaseOutcome};

#[tokio::test]
async fn a_free_majority_wins_and_anything_less_does_not() {
    let cluster = Cluster::start(5).await;
    for nodes in 1..=5 {
        let redlock = over_the_first(nodes, &cluster).await;
        for mask in 0..1 << nodes {
            try_with_nodes_taken(&cluster, &redlock, nodes, mask).await;
        }
    }
}

async fn over_the_first(nodes: usize, cluster: &Cluster) -> Redlock {
    let addresses = cluster.addresses().into_iter().take(nodes);
    harness::over(addresses).ttl(LONG_TTL).connect().await.expect("all nodes are there")
}

/// Bit by bit the mask says which nodes are taken.
async fn try_with_nodes_taken(cluster: &Cluster, redlock: &Redlock, nodes: usize, mask: usize) {
    let story = format!("{nodes} nodes, taken: {mask:0nodes$b}");
    let resource = format!("taken-{nodes}-{mask}");
    let key = format!("redlock:{resource}");
    let taken: Vec<usize> = (0..nodes).filter(|node| mask & (1 << node) != 0).collect();
    let free = nodes - taken.len();
    cluster.take(taken.iter().copied(), &key).await;

    let tried = promptly(redlock.mutex(&resource).try_acquire()).await.expect(&story);
    assert_eq!(tried.is_some(), free > nodes / 2, "{story}");
    if let Some(guard) = tried {
        let release = promptly(guard.release()).await;
        assert_eq!(release.outcome, ReleaseOutcome::Released, "{story}");
    }
    cluster.assert_nothing_left().await;
    assert_eq!(foreign_nodes(cluster, &key).await, taken, "{story}");
}

/// The nodes on which the key of the other client stands as it was set.
async fn foreign_nodes(cluster: &Cluster, key: &str) -> Vec<usize> {
    let mut nodes = Vec::new();
    for (node, server) in cluster.servers.iter().enumerate() {
        if server.value(key).await.as_deref() == Some(FOREIGN) {
            assert_eq!(server.expiry(key).await, None, "node {node}: no ttl was given to it");
            nodes.push(node);
        }
    }
    nodes
}

#[tokio::test]
async fn where_everybody_has_one_node_nobody_holds_and_a_try_still_ends() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    for (node, server) in cluster.servers.iter().enumerate() {
        server.set("redlock:split", &format!("stranger-{node}")).await;
    }
    let tried = promptly(redlock.mutex("split").try_acquire()).await.expect("all nodes answer");
    assert!(tried.is_none());
    let inspection = redlock.mutex("split").inspect().await.expect("all nodes answer");
    assert!(!inspection.by_majority(), "{inspection}");
}

#[tokio::test]
async fn who_waits_gets_the_resource_when_a_majority_becomes_free() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    cluster.take([0, 1], "redlock:waited-for").await;

    let short_wait = redlock.mutex("waited-for").wait(Duration::from_millis(200));
    let refused = promptly(short_wait.acquire()).await.expect_err("another holds it");
    assert!(matches!(refused, AcquireError::Held(_)), "{refused:#}");

    let mutex = redlock.mutex("waited-for");
    let waiting = tokio::spawn(async move { mutex.acquire().await });
    until_an_attempt_was_made(&cluster).await;
    assert!(!waiting.is_finished(), "a majority is taken");
    cluster.servers[1].delete("redlock:waited-for").await;
    let guard = promptly(waiting).await.expect("no panic").expect("a majority is free");
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

/// The free node sees the key come and go.
async fn until_an_attempt_was_made(cluster: &Cluster) {
    let writes = async || cluster.servers[2].info("commandstats", "cmdstat_set").await;
    let before = writes().await;
    harness::until("an attempt", async || writes().await != before).await;
}

/// Half of an even number is taken: nobody can have a majority, and each node says so as often as it is asked. Attempts to
/// settle that must not become so slow that one outlasts its own timeout and takes an answer that comes for a silence.
#[tokio::test]
async fn that_half_of_the_nodes_are_taken_is_soon_clear() {
    const SOON: Duration = Duration::from_secs(1);
    let cluster = Cluster::start(2).await;
    let redlock = cluster.redlock().await;
    let mut quickest = Duration::MAX;
    for attempt in 0..3 {
        let resource = format!("half-{attempt}");
        cluster.take([1], &format!("redlock:{resource}")).await;
        let begun = Instant::now();
        let tried = promptly(redlock.mutex(&resource).try_acquire()).await.expect("all nodes answer");
        quickest = quickest.min(begun.elapsed());
        assert!(tried.is_none());
    }
    assert!(quickest < SOON, "of three tries the quickest took {quickest:?}");
    cluster.assert_nothing_left().await;
}
