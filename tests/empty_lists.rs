//! A client that comes back to a resource which nobody else wants spares the servers the look at the wait list, and whoever begins
//! to wait is woken all the same.
#![cfg(feature = "redis")]

mod harness;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::poll;
use harness::proxy::{Proxy, Way};
use harness::{Cluster, LONG_TTL, SILENT, Server, over, promptly, until};
use redlock_quorum::{AcquireError, Guard, Mutex, Redlock, ReleaseOutcome};
use tokio::task::JoinHandle;

/// Whoever waits for a message looks by itself no earlier than this. What is sooner was a message.
const EARLIEST_LOOK: Duration = Duration::from_millis(500);

/// More often than it takes until a server is asked to tell.
const OFTEN: u32 = 8;

const LIST: &str = "redlock#wait:job";

/// A client that has had `job` often, and knows that nobody waits for it.
struct Scene {
    cluster: Cluster,
    client: Redlock,
    mutex: Mutex,
}

impl Scene {
    async fn over(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await;
        let client = client(cluster.addresses()).await;
        let mutex = client.mutex("job");
        comes_back_often(&cluster, &mutex).await;
        Scene { cluster, client, mutex }
    }

    async fn looks(&self) -> Vec<u64> {
        looks(&self.cluster).await
    }

    async fn waits(&self, client: &Redlock) -> JoinHandle<Result<Guard, AcquireError>> {
        waits(&self.cluster, client).await
    }
}

/// As a user that may use any key, and is told of changes.
async fn client(nodes: Vec<String>) -> Redlock {
    over(nodes)
        .ttl(LONG_TTL)
        .node_timeout(Duration::from_secs(10))
        .connect()
        .await
        .expect("all nodes are there")
}

async fn take_turns(mutex: &Mutex, turns: u32) {
    for _ in 0..turns {
        let guard = promptly(mutex.acquire()).await.expect("free");
        promptly(guard.release()).await.ok().expect("held until now");
    }
}

/// Until all servers tell when the list changes.
async fn comes_back_often(cluster: &Cluster, mutex: &Mutex) {
    until("no look at any list", async || {
        looks(cluster).await;
        take_turns(mutex, 1).await;
        cluster.assert_nothing_left().await;
        looks(cluster).await.iter().all(|looks| *looks == 0)
    })
    .await;
}

/// How often the servers have looked at a wait list since the last time.
async fn looks(cluster: &Cluster) -> Vec<u64> {
    let looks = join_all(cluster.servers.iter().map(|server| server.calls("exists"))).await;
    join_all(cluster.servers.iter().map(|server| server.type_in::<()>("CONFIG RESETSTAT"))).await;
    looks
}

/// How many are on the list of each node.
async fn listed(cluster: &Cluster) -> Vec<u64> {
    let count = format!("ZCARD {LIST}");
    join_all(cluster.servers.iter().map(|server| server.type_in(&count))).await
}

/// Somebody begins to wait, and is on the lists of all nodes when this returns.
async fn waits(cluster: &Cluster, client: &Redlock) -> JoinHandle<Result<Guard, AcquireError>> {
    let before = listed(cluster).await;
    let mutex = client.mutex("job");
    let waiting = tokio::spawn(async move { mutex.acquire().await });
    let more: Vec<_> = before.iter().map(|count| count + 1).collect();
    until("one more on each list", async || listed(cluster).await == more).await;
    waiting
}

/// Whoever waits is called at once.
async fn is_called(waiting: JoinHandle<Result<Guard, AcquireError>>, since: Instant) -> Guard {
    let guard = promptly(waiting).await.expect("no panic").expect("it is its turn");
    assert!(since.elapsed() < EARLIEST_LOOK, "after {:?}", since.elapsed());
    guard
}

async fn released(guard: Guard) -> Instant {
    let released = Instant::now();
    promptly(guard.release()).await.ok().expect("held until now");
    released
}

#[tokio::test]
async fn who_comes_back_often_looks_at_no_list_until_somebody_waits() {
    let scene = Scene::over(3).await;
    scene.looks().await;
    take_turns(&scene.mutex, OFTEN).await;
    assert_eq!(scene.looks().await, [0, 0, 0]);

    let other = client(scene.cluster.addresses()).await;
    for _ in 0..3 {
        let guard = promptly(scene.mutex.acquire()).await.expect("free");
        let waiting = scene.waits(&other).await;
        let since = released(guard).await;
        released(is_called(waiting, since).await).await;
        comes_back_often(&scene.cluster, &scene.mutex).await;
    }
}

/// Many locks that are let go at once are one call, with or without their lists.
#[tokio::test]
async fn releases_that_go_together_look_at_the_lists_if_one_of_them_must() {
    let scene = Scene::over(1).await;
    let server = &scene.cluster.servers[0];
    let mutexes = ["above", "job", "below"].map(|resource| scene.client.mutex(resource));
    let turn = async || {
        let guards = join_all(mutexes.iter().map(|mutex| promptly(mutex.acquire()))).await;
        let releases = guards.into_iter().map(|guard| promptly(guard.expect("free").release()));
        for release in join_all(releases).await {
            release.ok().expect("held until now");
        }
    };
    for _ in 0..OFTEN {
        turn().await;
    }
    scene.looks().await;
    turn().await;
    assert_eq!(server.calls("evalsha").await, 1);
    assert_eq!(scene.looks().await, [0]);
    let other = client(scene.cluster.addresses()).await;
    let guards = join_all(mutexes.iter().map(|mutex| promptly(mutex.acquire()))).await;
    let waiting = scene.waits(&other).await;
    scene.looks().await;
    let since = Instant::now();
    let releases = join_all(guards.into_iter().map(|guard| promptly(guard.expect("free").release()))).await;
    assert!(releases.iter().all(|release| release.outcome == ReleaseOutcome::Released), "{releases:?}");
    let guard = is_called(waiting, since).await;
    assert_eq!((server.calls("evalsha").await, server.calls("publish").await), (1, 1));
    released(guard).await;
    scene.cluster.assert_nothing_left().await;
}

/// The release was on its way, without a look, when somebody entered the list: it is woken behind the release.
#[tokio::test]
async fn who_enters_before_a_release_that_does_not_look_is_woken_behind_it() {
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::before(cluster.servers[0].port()).await;
    let (holder, other) = (client(vec![proxy.address()]).await, client(cluster.addresses()).await);
    let mutex = holder.mutex("job");
    comes_back_often(&cluster, &mutex).await;
    let guard = promptly(mutex.acquire()).await.expect("free");
    proxy.hold(Way::BOTH);
    let mut release = pin!(guard.release());
    assert!(poll!(&mut release).is_pending());
    let waiting = waits(&cluster, &other).await;
    proxy.release(Way::BOTH);
    let since = Instant::now();
    promptly(release).await.ok().expect("held until now");
    released(is_called(waiting, since).await).await;
    cluster.assert_nothing_left().await;
}

/// One who enters the list behind such a release stays on it, also where that wakes somebody.
#[tokio::test]
async fn who_enters_behind_a_release_that_does_not_look_stays_on_the_list() {
    let cluster = Cluster::start(3).await;
    let proxy = Proxy::before(cluster.servers[2].port()).await;
    let addresses = [&cluster.addresses()[..2], &[proxy.address()]].concat();
    let (holder, other) = (client(addresses).await, client(cluster.addresses()).await);
    let mutex = holder.mutex("job");
    comes_back_often(&cluster, &mutex).await;
    let guard = promptly(mutex.acquire()).await.expect("free");
    until("all keys", async || cluster.ours().await.len() == 3).await;
    proxy.hold(Way::BOTH);
    let waiting = waits(&cluster, &other).await;
    let since = released(guard).await;
    let guard = is_called(waiting, since).await;
    let waiting = tokio::spawn(async move { mutex.acquire().await });
    until("it is on two lists", async || listed(&cluster).await[..2] == [1, 1]).await;
    proxy.release(Way::BOTH);
    until("nobody has the third key", async || cluster.servers[2].value("redlock:job").await.is_none()).await;
    until("it is on the third list, beside the holder", async || listed(&cluster).await == [1, 1, 2]).await;
    for server in &cluster.servers[..2] {
        server.delete(LIST).await;
    }
    let since = released(guard).await;
    released(is_called(waiting, since).await).await;
    cluster.assert_nothing_left().await;
}

/// A server does not tell of what the client does itself, and of nothing that comes after it.
#[tokio::test]
async fn who_waits_itself_looks_again_for_others() {
    let scene = Scene::over(3).await;
    let (holder, other) = (client(scene.cluster.addresses()).await, client(scene.cluster.addresses()).await);
    let guard = promptly(holder.mutex("job").acquire()).await.expect("free");
    let first = scene.waits(&scene.client).await;
    let second = scene.waits(&other).await;
    let since = released(guard).await;
    let guard = is_called(first, since).await;
    let since = released(guard).await;
    released(is_called(second, since).await).await;
    scene.cluster.assert_nothing_left().await;
}

/// With everything else a server forgets whom it is to tell of what.
#[tokio::test]
async fn where_everything_was_deleted_it_looks_again() {
    let scene = Scene::over(3).await;
    for server in &scene.cluster.servers {
        server.type_in::<()>("FLUSHALL").await;
    }
    let other = client(scene.cluster.addresses()).await;
    let guard = promptly(scene.mutex.acquire()).await.expect("free");
    let waiting = scene.waits(&other).await;
    let since = released(guard).await;
    released(is_called(waiting, since).await).await;
    scene.cluster.assert_nothing_left().await;
}

/// What was known of the lists is worth nothing on another connection.
#[tokio::test]
async fn over_another_connection_it_looks_again() {
    let scene = Scene::over(3).await;
    join_all(scene.cluster.servers.iter().map(Server::kill_clients)).await;
    let listens = async |server: &Server| -> bool {
        !server.type_in::<Vec<String>>("PUBSUB CHANNELS redlock#wake:*").await.is_empty()
    };
    until("it is connected again", async || {
        join_all(scene.cluster.servers.iter().map(listens)).await.iter().all(|listens| *listens)
    })
    .await;
    scene.looks().await;
    take_turns(&scene.mutex, 1).await;
    scene.cluster.assert_nothing_left().await;
    assert_eq!(scene.looks().await, [1, 1, 1]);
}

/// Asked whether the list is empty, the server says that it is not, and nothing is spared from then on. Also where the release that
/// wakes whoever entered finds no key.
#[tokio::test]
async fn who_enters_before_the_server_is_asked_is_seen() {
    for (turns, is_lost) in (1..OFTEN).flat_map(|turns| [(turns, false), (turns, true)]) {
        let cluster = Cluster::start(1).await;
        let proxy = Proxy::before(cluster.servers[0].port()).await;
        let (holder, other) = (client(vec![proxy.address()]).await, client(cluster.addresses()).await);
        let mutex = holder.mutex("job");
        take_turns(&mutex, turns).await;
        for _ in 0..2 {
            let guard = promptly(mutex.acquire()).await.expect("free");
            proxy.hold(Way::BOTH);
            let mut release = pin!(guard.release());
            assert!(poll!(&mut release).is_pending());
            let waiting = waits(&cluster, &other).await;
            if is_lost {
                cluster.delete("redlock:job").await;
            }
            proxy.release(Way::BOTH);
            let since = Instant::now();
            assert_eq!(promptly(release).await.outcome == ReleaseOutcome::Expired, is_lost);
            released(is_called(waiting, since).await).await;
        }
    }
}

/// Where a server tells nobody of changes, or this client no more, nothing is known of any list for longer than a moment.
#[tokio::test]
async fn where_it_is_not_told_it_looks_each_time() {
    for (from_the_start, arguments) in [(true, &SILENT[..]), (false, &[])] {
        let cluster = Cluster::start_with(1, arguments).await;
        let (client, other) = (client(cluster.addresses()).await, client(cluster.addresses()).await);
        let mutex = client.mutex("job");
        if !from_the_start {
            cluster.servers[0].type_in::<()>("ACL SETUSER default -client|caching").await;
        }
        take_turns(&mutex, OFTEN).await;
        looks(&cluster).await;
        take_turns(&mutex, OFTEN).await;
        assert_eq!(looks(&cluster).await, [u64::from(OFTEN)]);
        let guard = promptly(mutex.acquire()).await.expect("free");
        let waiting = waits(&cluster, &other).await;
        let since = released(guard).await;
        released(is_called(waiting, since).await).await;
    }
}
