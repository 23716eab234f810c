//! A client that goes on for long stays as it is: ten thousand locks later it has no more tasks, no more connections and
//! no more memory than after the first thousands. Alone in its file, because it measures its own process.
#![cfg(all(feature = "redis", target_os = "linux"))]

mod harness;

use std::time::Duration;

use harness::{Cluster, soon, until};
use redlock_quorum::{Redlock, ReleaseOutcome};
use tokio::runtime::Handle;

const NODES: usize = 3;
const WARM_UP: usize = 2_000;
const PAIRS: usize = 10_000;

/// Room for what an allocator does; a leak of a kilobyte for each lock would be as much.
const GROWTH_KIB: u64 = 8 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_locks_leave_no_trace_in_the_client() {
    let cluster = Cluster::start(NODES).await;
    let redlock = cluster.redlock().await;
    acquire_and_release(&redlock, 0..WARM_UP).await;
    nothing_but_the_client_lives(&cluster).await;
    let before = resident_kib();

    acquire_and_release(&redlock, WARM_UP..PAIRS).await;
    cluster.assert_nothing_left().await;
    nothing_but_the_client_lives(&cluster).await;
    let growth = resident_kib().saturating_sub(before);
    assert!(growth < GROWTH_KIB, "grew by {growth} KiB from {before} KiB");
}

/// One task for each node and the keeper; one connection to each server, and the one that asks. Those of the questions
/// before may still be about to end.
async fn nothing_but_the_client_lives(cluster: &Cluster) {
    for server in &cluster.servers {
        let connections = async || server.info("clients", "connected_clients").await;
        until("one connection of the client, and this one", async || connections().await == "2").await;
    }
    let tasks = || Handle::current().metrics().num_alive_tasks();
    until("a task for each node and one for all", async || tasks() == NODES + 1).await;
}

/// Each pair on a resource of its own, as a long-lived client sees them.
async fn acquire_and_release(redlock: &Redlock, pairs: std::ops::Range<usize>) {
    let all = async {
        for pair in pairs {
            let guard = redlock.mutex(format!("invoices/{pair}")).acquire().await.expect("free");
            assert_eq!(guard.release().await.outcome, ReleaseOutcome::Released, "pair {pair}");
        }
    };
    soon(Duration::from_secs(60), all).await;
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line for VmRSS");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of kilobytes")
}
