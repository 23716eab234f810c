//! Clients that wait for the lock `job`, as the servers see them.

use futures::future::join_all;
use redlock_quorum::{AcquireError, Guard, Redlock};
use tokio::task::JoinHandle;

use super::{Cluster, until};

/// The wait list beside the lock.
pub const LIST: &str = "redlock#wait:job";

/// A call that waits.
pub type Waiting = JoinHandle<Result<Guard, AcquireError>>;

/// Somebody begins to wait, and is on the lists of all nodes when this returns.
pub async fn waits(cluster: &Cluster, redlock: &Redlock) -> Waiting {
    let before = listed(cluster).await;
    let mutex = redlock.mutex("job");
    let waiting = tokio::spawn(async move { mutex.acquire().await });
    let more: Vec<_> = before.iter().map(|count| count + 1).collect();
    until("one more on each list", async || listed(cluster).await == more).await;
    waiting
}

/// How many are on the list of each node.
pub async fn listed(cluster: &Cluster) -> Vec<u64> {
    let count = format!("ZCARD {LIST}");
    join_all(cluster.servers.iter().map(|server| server.type_in(&count))).await
}

/// How many clients listen at each node.
pub async fn listening(cluster: &Cluster) -> Vec<usize> {
    let channels = cluster.servers.iter().map(|server| server.type_in("PUBSUB CHANNELS redlock#wake:*"));
    join_all(channels).await.iter().map(Vec::<String>::len).collect()
}

/// From now on the servers count anew what they are asked.
pub async fn forget_what_was_asked(cluster: &Cluster) {
    join_all(cluster.servers.iter().map(|server| server.type_in::<()>("CONFIG RESETSTAT"))).await;
}
