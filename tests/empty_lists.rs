//! A client that comes back to a resource which nobody else wants spares the servers the look at the wait list, and whoever begins
//! to wait is woken all the same, by a message.
#![cfg(feature = "redis")]

mod harness;

use std::pin::pin;
use std::time::Duration;

use futures::future::join_all;
use futures::poll;
use harness::proxy::{Proxy, Way};
use harness::waiters::{LIST, Waiting, forget_what_was_asked, listed, listening, waits};
use harness::{Cluster, LONG_TTL, SILENT, Server, over, promptly, until};
use redlock_quorum::{Guard, Mutex, Redlock, Release, ReleaseOutcome};

/// More often than it takes until a server is asked to tell.
const OFTEN: u32 = 100;

const KEY: &str = "redlock:job";

/// A client that has had `job` often, and knows that nobody waits for it; and another one.
struct Scene {
    cluster: Cluster,
    client: Redlock,
    mutex: Mutex,
    other: Redlock,
}

impl Scene {
    async fn over(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await;
        let (client, other) = (client(cluster.addresses()).await, client(cluster.addresses()).await);
        let mutex = client.mutex("job");
        comes_back_often(&cluster, &mutex).await;
        Scene { cluster, client, mutex, other }
    }

    /// Somebody else waits while the client holds, and is woken.
    async fn another_is_called(&self) {
        let guard = held(&self.mutex).await;
        let waiting = waits(&self.cluster, &self.other).await;
        forget_what_was_asked(&self.cluster).await;
        released(guard).await;
        released(called(&self.cluster, waiting).await).await;
        self.cluster.assert_nothing_left().await;
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

async fn held(mutex: &Mutex) -> Guard {
    promptly(mutex.acquire()).await.expect("free")
}

async fn released(guard: Guard) {
    promptly(guard.release()).await.ok().expect("held until now");
}

async fn take_turns(mutex: &Mutex, turns: u32) {
    for _ in 0..turns {
        released(held(mutex).await).await;
    }
}

/// Until all servers tell when the list changes.
async fn comes_back_often(cluster: &Cluster, mutex: &Mutex) {
    until("no look at any list", async || {
        take_turns(mutex, OFTEN).await;
        cluster.assert_nothing_left().await;
        forget_what_was_asked(cluster).await;
        take_turns(mutex, 1).await;
        cluster.assert_nothing_left().await;
        calls(cluster, "exists").await.iter().all(|looks| *looks == 0)
    })
    .await;
}

/// How often each server has carried out a command, alone or in a script: `exists` is a look at a list, and `publish` a wake.
async fn calls(cluster: &Cluster, command: &str) -> Vec<u64> {
    join_all(cluster.servers.iter().map(|server| server.calls(command))).await
}

/// Whoever waits is called, once by each server, and by nothing else.
async fn called(cluster: &Cluster, waiting: Waiting) -> Guard {
    let guard = promptly(waiting).await.expect("no panic").expect("it is its turn");
    let once = vec![1; cluster.servers.len()];
    until("a message of each server", async || calls(cluster, "publish").await == once).await;
    guard
}

#[tokio::test]
async fn who_comes_back_often_looks_at_no_list_until_somebody_waits() {
    let scene = Scene::over(3).await;
    forget_what_was_asked(&scene.cluster).await;
    take_turns(&scene.mutex, OFTEN).await;
    assert_eq!(calls(&scene.cluster, "exists").await, [0, 0, 0]);
    for _ in 0..3 {
        scene.another_is_called().await;
        comes_back_often(&scene.cluster, &scene.mutex).await;
    }
}

#[tokio::test]
async fn with_a_fence_it_is_the_same() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (client(cluster.addresses()).await, client(cluster.addresses()).await);
    client.bootstrap().await.expect("new servers");
    let mutexes = ["job", "another"].map(|resource| client.fenced_mutex(resource));
    // Alone, and two in one call.
    let turn = async |together: bool| {
        let mutexes = if together { &mutexes[..] } else { &mutexes[..1] };
        let guards = join_all(mutexes.iter().map(|mutex| promptly(mutex.acquire()))).await;
        let releases = guards.into_iter().map(|guard| promptly(guard.expect("free").release()));
        for release in join_all(releases).await {
            assert_eq!((release.outcome, release.proven), (ReleaseOutcome::Released, Some(true)));
        }
    };
    for (together, locks) in [(false, 1), (true, 2)] {
        for _ in 0..OFTEN {
            turn(together).await;
        }
        forget_what_was_asked(&cluster).await;
        turn(together).await;
        assert_eq!(calls(&cluster, "exists").await, [locks], "each time, whether the key is there");
    }
    let guard = promptly(mutexes[0].acquire()).await.expect("free");
    let waiting = waits(&cluster, &other).await;
    forget_what_was_asked(&cluster).await;
    promptly(guard.release()).await.ok().expect("held until now");
    released(called(&cluster, waiting).await).await;
}

/// Many locks that are let go at once are one call, with all their lists or without.
#[tokio::test]
async fn releases_that_go_together_look_at_the_lists_if_one_of_them_must() {
    let scene = Scene::over(1).await;
    let server = &scene.cluster.servers[0];
    let mutexes = ["above", "job", "below"].map(|resource| scene.client.mutex(resource));
    let held = async || -> Vec<Guard> { join_all(mutexes.iter().map(held)).await };
    let let_go = async |guards: Vec<Guard>| join_all(guards.into_iter().map(released)).await;
    for _ in 0..OFTEN {
        let_go(held().await).await;
    }
    forget_what_was_asked(&scene.cluster).await;
    let_go(held().await).await;
    assert_eq!((server.calls("evalsha").await, server.calls("exists").await), (1, 0));

    let guards = held().await;
    let waiting = waits(&scene.cluster, &scene.other).await;
    forget_what_was_asked(&scene.cluster).await;
    let_go(guards).await;
    let guard = called(&scene.cluster, waiting).await;
    assert_eq!(server.calls("evalsha").await, 1);
    released(guard).await;
    scene.cluster.assert_nothing_left().await;
}

/// A client behind a proxy.
struct Distant {
    cluster: Cluster,
    proxy: Proxy,
    client: Redlock,
    mutex: Mutex,
    others: [Redlock; 2],
}

impl Distant {
    async fn from_one_node() -> Self {
        let cluster = Cluster::start(1).await;
        let proxy = Proxy::before(cluster.servers[0].port()).await;
        let others = [client(cluster.addresses()).await, client(cluster.addresses()).await];
        let client = client(vec![proxy.address()]).await;
        let mutex = client.mutex("job");
        Distant { cluster, proxy, client, mutex, others }
    }

    /// Others begin to wait while the release is on its way, and an operator may delete the key.
    async fn release(&self, guard: Guard, others: &[Redlock], deletes: bool) -> (Release, Vec<Waiting>) {
        self.proxy.hold(Way::BOTH);
        let mut release = pin!(guard.release());
        assert!(poll!(&mut release).is_pending());
        let mut waiting = Vec::new();
        for other in others {
            waiting.push(waits(&self.cluster, other).await);
        }
        if deletes {
            self.cluster.delete(KEY).await;
        }
        forget_what_was_asked(&self.cluster).await;
        self.proxy.release(Way::BOTH);
        (promptly(release).await, waiting)
    }
}

/// The release was on its way, without a look, when somebody entered the list: it is woken behind the release, alone, and let pass by
/// a holder that wants it again at once.
#[tokio::test]
async fn who_enters_before_a_release_that_does_not_look_is_woken_behind_it() {
    let scene = Distant::from_one_node().await;
    for _ in 0..10 {
        comes_back_often(&scene.cluster, &scene.mutex).await;
        let guard = held(&scene.mutex).await;
        let (release, mut waiting) = scene.release(guard, &scene.others, false).await;
        assert_eq!(release.outcome, ReleaseOutcome::Released);
        let mutex = scene.mutex.clone();
        let again = tokio::spawn(async move { mutex.acquire().await });
        let guard = called(&scene.cluster, waiting.remove(0)).await;
        assert_eq!(calls(&scene.cluster, "set").await, [1], "nobody else has tried");
        released(guard).await;
        for waiting in [waiting.remove(0), again] {
            released(promptly(waiting).await.expect("no panic").expect("it is its turn")).await;
        }
        scene.cluster.assert_nothing_left().await;
    }
}

/// A holder that hands over inside of its client wakes nobody, and says so to whoever comes next, which does.
#[tokio::test]
async fn who_enters_while_a_lock_is_handed_over_is_woken_by_the_next_holder() {
    let scene = Distant::from_one_node().await;
    comes_back_often(&scene.cluster, &scene.mutex).await;
    let guard = held(&scene.mutex).await;
    let mut next = pin!(scene.mutex.acquire());
    assert!(poll!(&mut next).is_pending());
    let (release, mut waiting) = scene.release(guard, &scene.others[..1], false).await;
    assert_eq!(release.outcome, ReleaseOutcome::Released);
    let guard = promptly(next).await.expect("its turn");
    take_turns(&scene.client.mutex("behind"), 1).await;
    let said = (calls(&scene.cluster, "evalsha").await, calls(&scene.cluster, "publish").await);
    assert_eq!(said, (vec![2], vec![0]), "two releases, and no wake");
    released(guard).await;
    released(called(&scene.cluster, waiting.remove(0)).await).await;
    scene.cluster.assert_nothing_left().await;
}

/// Of releases that go together those that know their lists to be empty look, too, where another one must: then they have overlooked
/// nobody, and wake one.
#[tokio::test]
async fn who_is_woken_by_a_release_that_looks_is_woken_alone() {
    let scene = Distant::from_one_node().await;
    comes_back_often(&scene.cluster, &scene.mutex).await;
    // At once, so that neither is sent alone.
    let guards = join_all([&scene.mutex, &scene.client.mutex("new")].map(held)).await;
    scene.proxy.hold(Way::BOTH);
    let mut releases = pin!(join_all(guards.into_iter().map(released)));
    assert!(poll!(&mut releases).is_pending());
    let far = Proxy::before(scene.cluster.servers[0].port()).await;
    let first = waits(&scene.cluster, &client(vec![far.address()]).await).await;
    let second = waits(&scene.cluster, &scene.others[1]).await;
    // So the key is free for a while.
    far.delay([Way::ToServer], Duration::from_millis(100));
    forget_what_was_asked(&scene.cluster).await;
    scene.proxy.release(Way::BOTH);
    promptly(releases).await;
    let guard = called(&scene.cluster, first).await;
    take_turns(&scene.client.mutex("behind"), 1).await;
    assert_eq!((calls(&scene.cluster, "publish").await, second.is_finished()), (vec![1], false));
    released(guard).await;
    released(promptly(second).await.expect("no panic").expect("it is its turn")).await;
}

/// However many releases overlook somebody, one is woken behind them; and nobody for what happens to another list.
#[tokio::test]
async fn one_is_woken_behind_all_releases_that_overlooked_somebody() {
    const TURNS: u32 = 3;
    let cluster = Cluster::start(3).await;
    let (proxy, server) = (Proxy::before(cluster.servers[2].port()).await, &cluster.servers[2]);
    let client = client([&cluster.addresses()[..2], &[proxy.address()]].concat()).await;
    let [mutex, another] = ["job", "another"].map(|resource| client.mutex(resource));
    for (entered, wakes) in [("redlock#wait:another", 0), (LIST, 1)] {
        comes_back_often(&cluster, &mutex).await;
        comes_back_often(&cluster, &another).await;
        proxy.hold(Way::BOTH);
        take_turns(&mutex, TURNS).await;
        server.type_in::<()>(&format!("ZADD {entered} 1 somebody")).await;
        forget_what_was_asked(&cluster).await;
        proxy.release(Way::BOTH);
        until("all releases", async || server.calls("evalsha").await >= u64::from(TURNS)).await;
        cluster.assert_nothing_left().await;
        take_turns(&client.mutex("behind"), 1).await;
        cluster.assert_nothing_left().await;
        assert_eq!(server.calls("evalsha").await, u64::from(TURNS) + wakes + 1);
        server.delete(entered).await;
    }
}

/// Asked whether the list is empty, the server says that it is not, and nothing is spared from then on. Also where the release that
/// wakes whoever entered finds no key.
#[tokio::test]
async fn who_enters_before_the_server_is_asked_is_seen() {
    let asks_after = {
        let scene = Distant::from_one_node().await;
        let mut turns = 0;
        while calls(&scene.cluster, "eval").await == [0] {
            take_turns(&scene.mutex, 1).await;
            turns += 1;
        }
        turns
    };
    for deletes in [false, true] {
        let scene = Distant::from_one_node().await;
        take_turns(&scene.mutex, asks_after - 1).await;
        for _ in 0..2 {
            let guard = held(&scene.mutex).await;
            let (release, waiting) = scene.release(guard, &scene.others[..1], deletes).await;
            assert_eq!(release.outcome == ReleaseOutcome::Expired, deletes);
            for waiting in waiting {
                released(called(&scene.cluster, waiting).await).await;
            }
        }
    }
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
    let guard = held(&mutex).await;
    until("all keys", async || cluster.ours().await.len() == 3).await;
    proxy.hold(Way::BOTH);
    let waiting = waits(&cluster, &other).await;
    released(guard).await;
    let guard = promptly(waiting).await.expect("no panic").expect("it is its turn");
    let waiting = tokio::spawn(async move { mutex.acquire().await });
    until("it is on two lists", async || listed(&cluster).await[..2] == [1, 1]).await;
    proxy.release(Way::BOTH);
    until("nobody has the third key", async || cluster.servers[2].value(KEY).await.is_none()).await;
    until("it is on the third list, beside the holder", async || listed(&cluster).await == [1, 1, 2]).await;
    for server in &cluster.servers[..2] {
        server.delete(LIST).await;
    }
    forget_what_was_asked(&cluster).await;
    released(guard).await;
    released(promptly(waiting).await.expect("no panic").expect("it is its turn")).await;
    assert_eq!(calls(&cluster, "publish").await, [0, 0, 1]);
    cluster.assert_nothing_left().await;
}

/// A server does not tell of what the client does itself, and of nothing that comes after it.
#[tokio::test]
async fn who_waits_itself_looks_again_for_others() {
    let scene = Scene::over(3).await;
    let third = client(scene.cluster.addresses()).await;
    let guard = held(&third.mutex("job")).await;
    let first = waits(&scene.cluster, &scene.client).await;
    let second = waits(&scene.cluster, &scene.other).await;
    forget_what_was_asked(&scene.cluster).await;
    released(guard).await;
    let guard = called(&scene.cluster, first).await;
    forget_what_was_asked(&scene.cluster).await;
    released(guard).await;
    released(called(&scene.cluster, second).await).await;
    scene.cluster.assert_nothing_left().await;
}

/// Two resources in two namespaces may have one key, and have two lists.
#[tokio::test]
async fn who_waits_in_another_namespace_is_woken_by_a_release_there() {
    let scene = Scene::over(3).await;
    let bare = |client: &Redlock| client.namespace("").mutex(KEY);
    let guard = held(&bare(&scene.client)).await;
    let mutex = bare(&scene.other);
    let waiting = tokio::spawn(async move { mutex.acquire().await });
    let is_listed = async |server: &Server| server.type_in::<u64>(&format!("ZCARD #wait:{KEY}")).await == 1;
    until("it is listed", async || {
        join_all(scene.cluster.servers.iter().map(is_listed)).await.iter().all(|is_listed| *is_listed)
    })
    .await;
    forget_what_was_asked(&scene.cluster).await;
    released(guard).await;
    released(called(&scene.cluster, waiting).await).await;
}

/// With everything else a server forgets whom it is to tell of what.
#[tokio::test]
async fn where_everything_was_deleted_it_looks_again() {
    let scene = Scene::over(3).await;
    for server in &scene.cluster.servers {
        server.type_in::<()>("FLUSHALL").await;
    }
    scene.another_is_called().await;
}

/// What was known of the lists is worth nothing on another connection.
#[tokio::test]
async fn over_another_connection_it_looks_again() {
    let scene = Scene::over(3).await;
    join_all(scene.cluster.servers.iter().map(Server::kill_clients)).await;
    until("both are connected again", async || listening(&scene.cluster).await == [2, 2, 2]).await;
    scene.another_is_called().await;
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
        forget_what_was_asked(&cluster).await;
        take_turns(&mutex, OFTEN).await;
        assert!(calls(&cluster, "exists").await[0] >= u64::from(OFTEN));
        assert_eq!(calls(&cluster, "eval").await == [0], from_the_start, "asked in vain, or not at all");
        let guard = held(&mutex).await;
        let waiting = waits(&cluster, &other).await;
        forget_what_was_asked(&cluster).await;
        released(guard).await;
        released(called(&cluster, waiting).await).await;
    }
}

/// Whom a server is to tell of a list that nobody ever enters it does not remember when they are gone.
#[tokio::test]
async fn clients_that_come_and_go_are_not_remembered_for_ever() {
    let cluster = Cluster::start(1).await;
    for _ in 0..5 {
        let client = client(cluster.addresses()).await;
        comes_back_often(&cluster, &client.mutex("job")).await;
        assert_eq!(cluster.servers[0].info("stats", "tracking_total_items").await, "1");
        assert_eq!(listed(&cluster).await, [0]);
    }
}
