//! The work that is measured: pairs of acquire and release by this library and by rslock.

use std::time::{Duration, Instant};

use redlock_quorum::{Redlock, RestartProtection};
use rslock::LockManager;

/// Longer than any block takes, so that nothing is renewed.
pub const TTL: Duration = Duration::from_secs(60);

/// The servers to measure on, from `REDLOCK_NODES`.
pub fn nodes() -> Vec<String> {
    let nodes = std::env::var("REDLOCK_NODES").expect("REDLOCK_NODES: the servers, separated by commas");
    // What follows a question mark is for us only, and not needed here.
    nodes.split(',').filter_map(|node| node.split('?').next()).map(str::to_owned).collect()
}

/// A client of each library on the same nodes, warmed up.
pub async fn clients(nodes: &[String]) -> (Redlock, LockManager) {
    // Servers that were started for this need not wait: they have granted nothing before.
    let builder = Redlock::builder().restart_protection(RestartProtection::Off).ttl(TTL);
    let ours = builder.nodes(nodes.iter().map(String::as_str)).connect().await.expect("servers");
    let theirs = LockManager::new(nodes.to_vec());
    our_pairs(&ours, 1, 200).await;
    their_pairs(&theirs, 1, 200).await;
    (ours, theirs)
}

/// One thread, or several.
pub fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().expect("a runtime")
}

/// Pairs a second by this library.
pub async fn our_pairs(redlock: &Redlock, tasks: usize, pairs: usize) -> f64 {
    let start = Instant::now();
    let workers = (0..tasks).map(|task| {
        let mutex = redlock.mutex(format!("bench/{task}"));
        tokio::spawn(async move {
            for _ in 0..pairs / tasks {
                let guard = mutex.acquire().await.expect("nobody else takes it");
                guard.release().await.ok().expect("held");
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("no panic");
    }
    pairs as f64 / start.elapsed().as_secs_f64()
}

/// Pairs a second by rslock.
pub async fn their_pairs(manager: &LockManager, tasks: usize, pairs: usize) -> f64 {
    let start = Instant::now();
    let workers = (0..tasks).map(|task| {
        let (manager, key) = (manager.clone(), format!("bench-peer/{task}"));
        tokio::spawn(async move {
            for _ in 0..pairs / tasks {
                let lock = manager.lock(key.as_str(), TTL).await.expect("nobody else takes it");
                manager.unlock(&lock).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("no panic");
    }
    pairs as f64 / start.elapsed().as_secs_f64()
}
