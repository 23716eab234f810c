//! Waiting for a lock that is held: in one process, in turn and without a word to the servers; between processes, by a message
//! to the one that has waited longest; and by looking, where messages cannot be sent or do not come.
#![cfg(feature = "redis")]

mod harness;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use harness::waiters::{LIST, Waiting, forget_what_was_asked, listed, listening, waits};
use harness::{Cluster, LONG_TTL, SILENT, Server, over, promptly, soon, until};
use redlock_quorum::{AcquireError, Guard, Mutex, NodeConfig, Redlock, ReleaseOutcome, Severity, WakeBy};
use tokio::task::LocalSet;

/// Whoever waits for a message looks by itself no earlier than this. What is sooner was a message.
const EARLIEST_LOOK: Duration = Duration::from_millis(500);

/// And no later than this, on a machine that is busy.
const LATEST_LOOK: Duration = Duration::from_millis(1_500);

/// A lock that is held by one client, and others that want it.
struct Scene {
    cluster: Cluster,
    holder: Redlock,
    guard: Guard,
}

impl Scene {
    async fn over(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await;
        let holder = client(&cluster).await;
        let guard = promptly(holder.mutex("job").acquire()).await.expect("free");
        Scene { cluster, holder, guard }
    }

    async fn waits(&self, redlock: &Redlock) -> Waiting {
        waits(&self.cluster, redlock).await
    }

    async fn listed(&self) -> Vec<u64> {
        listed(&self.cluster).await
    }
}

/// Long before the lists would expire by themselves.
async fn nobody_is_listed(cluster: &Cluster) {
    soon(Duration::from_secs(1), async {
        until("empty lists", async || listed(cluster).await.iter().all(|count| *count == 0)).await;
    })
    .await;
}

async fn client(cluster: &Cluster) -> Redlock {
    cluster.builder().ttl(LONG_TTL).connect().await.expect("all nodes are there")
}

/// The sum over all nodes of what clients asked, without what scripts do.
async fn asked(cluster: &Cluster) -> u64 {
    let mut sum = 0;
    for server in &cluster.servers {
        for command in ["set", "evalsha", "eval"] {
            sum += server.calls(command).await;
        }
    }
    sum
}

#[tokio::test]
async fn a_release_wakes_the_one_that_has_waited_longest_and_nobody_else() {
    let scene = Scene::over(3).await;
    let (first, second) = (client(&scene.cluster).await, client(&scene.cluster).await);
    let first = scene.waits(&first).await;
    let second = scene.waits(&second).await;
    forget_what_was_asked(&scene.cluster).await;
    let released = Instant::now();
    promptly(scene.guard.release()).await.ok().expect("held until now");
    let guard = promptly(first).await.expect("no panic").expect("it is its turn");
    assert!(released.elapsed() < EARLIEST_LOOK, "after {:?}", released.elapsed());
    assert!(!second.is_finished());
    for server in &scene.cluster.servers {
        assert_eq!((server.calls("publish").await, server.calls("set").await), (1, 1));
    }
    promptly(guard.release()).await.ok().expect("held until now");
    let guard = promptly(second).await.expect("no panic").expect("it is its turn");
    promptly(guard.release()).await.ok().expect("held until now");
    nobody_is_listed(&scene.cluster).await;
    scene.cluster.assert_nothing_left().await;
}

/// A release that goes to a server in one call with others looks at the wait list of its lock, in whatever namespace.
#[tokio::test]
async fn releases_that_go_together_wake_who_waits_for_one_of_them() {
    for namespace in ["redlock", ""] {
        let cluster = Cluster::start_with(1, &SILENT).await;
        let server = &cluster.servers[0];
        // As a user that may use any key.
        let client = || over(cluster.addresses()).namespace(namespace).ttl(LONG_TTL).connect();
        let (holder, other) = (client().await.expect("a node"), client().await.expect("a node"));
        let mutexes = ["above", "job", "below"].map(|resource| holder.mutex(resource));
        let guards = promptly(try_join_all(mutexes.iter().map(Mutex::acquire))).await.expect("free");
        let waiting = tokio::spawn(async move { other.mutex("job").acquire().await });
        let count = format!("ZCARD {namespace}#wait:job");
        until("it is listed", async || server.type_in::<u64>(&count).await == 1).await;

        server.type_in::<()>("CONFIG RESETSTAT").await;
        let released = Instant::now();
        let releases = promptly(join_all(guards.into_iter().map(Guard::release))).await;
        assert!(releases.iter().all(|release| release.outcome == ReleaseOutcome::Released), "{releases:?}");
        let guard = promptly(waiting).await.expect("no panic").expect("it is its turn");
        assert!(released.elapsed() < EARLIEST_LOOK, "after {:?}", released.elapsed());
        assert_eq!((server.calls("evalsha").await, server.calls("publish").await), (1, 1));
        drop(guard);
        cluster.assert_nothing_left().await;
    }
}

/// Won without a message, a client is on the lists still, before those who came later, and is passed over.
#[tokio::test]
async fn who_hands_over_to_itself_is_not_called_by_its_own_release() {
    let cluster = Cluster::start(3).await;
    let (client, later) = (client(&cluster).await, client(&cluster).await);
    // A holder that is gone: its keys run out, and it wakes nobody.
    let gone = format!("SET redlock:job {:032x}:gone PX 300", 1);
    for server in &cluster.servers {
        server.type_in::<()>(&gone).await;
    }
    let first = waits(&cluster, &client).await;
    let guard = soon(LATEST_LOOK, first).await.expect("no panic").expect("free");
    let mutex = client.mutex("job");
    let second = tokio::spawn(async move { mutex.acquire().await });
    let third = waits(&cluster, &later).await;
    promptly(guard.release()).await.ok().expect("held until now");
    let guard = promptly(second).await.expect("no panic").expect("it is its turn");
    forget_what_was_asked(&cluster).await;
    promptly(guard.release()).await.ok().expect("held until now");
    let guard = promptly(third).await.expect("no panic").expect("it is its turn");
    for server in &cluster.servers {
        assert_eq!(server.calls("publish").await, 1);
    }
    promptly(guard.release()).await.ok().expect("held until now");
    nobody_is_listed(&cluster).await;
}

/// The release of one and the attempt of the next go out in one write: what hands over waits for whoever comes right behind.
#[tokio::test]
async fn a_turn_that_is_handed_over_takes_one_write_to_each_node() {
    const TASKS: usize = 4;
    const TURNS: usize = 50;
    for nodes in [1, 3] {
        let cluster = Cluster::start_with(nodes, &SILENT).await;
        let redlock = client(&cluster).await;
        let reads = async || {
            let counts =
                join_all(cluster.servers.iter().map(|server| server.info("stats", "total_reads_processed")));
            counts.await.iter().map(|count| count.parse().expect("a number")).collect::<Vec<usize>>()
        };
        let before = reads().await;
        let tasks = (0..TASKS).map(|_| {
            let mutex = redlock.mutex("job");
            tokio::spawn(async move {
                for _ in 0..TURNS {
                    drop(mutex.acquire().await.expect("it is its turn"));
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            promptly(task).await.expect("no panic");
        }
        cluster.assert_nothing_left().await;
        for (before, after) in before.into_iter().zip(reads().await) {
            let reads = after - before;
            assert!(reads < TASKS * TURNS * 3 / 2, "{reads} of {nodes} nodes for {} locks", TASKS * TURNS);
        }
    }
}

#[tokio::test]
async fn tasks_of_one_client_take_turns_and_ask_each_node_twice_for_each() {
    const TASKS: usize = 64;
    const TURNS: usize = 10;
    let cluster = Cluster::start(3).await;
    let redlock = client(&cluster).await;
    let order = Rc::new(RefCell::new(Vec::new()));
    forget_what_was_asked(&cluster).await;
    let tasks = LocalSet::new();
    for task in 0..TASKS {
        let (mutex, order) = (redlock.mutex("job"), order.clone());
        tasks.spawn_local(async move {
            for _ in 0..TURNS {
                let guard = mutex.acquire().await.expect("sooner or later");
                order.borrow_mut().push(task);
                guard.release().await.ok().expect("held until now");
            }
        });
    }
    soon(Duration::from_secs(30), tasks).await;
    assert_eq!(asked(&cluster).await, (TASKS * TURNS * 2 * 3) as u64, "one SET and one release each");
    let order = order.take();
    for (turn, round) in order.chunks(TASKS).enumerate() {
        let mut round = round.to_vec();
        round.sort_unstable();
        assert_eq!(round, (0..TASKS).collect::<Vec<_>>(), "everybody once in round {turn}");
    }
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_turn_is_handed_over_inside_of_a_client_without_waking_another() {
    let scene = Scene::over(3).await;
    let other = client(&scene.cluster).await;
    let other = scene.waits(&other).await;
    let mutex = scene.holder.mutex("job");
    let next = tokio::spawn(async move { mutex.acquire().await });
    // It waits in the local queue as soon as it has run.
    tokio::task::yield_now().await;
    forget_what_was_asked(&scene.cluster).await;
    promptly(scene.guard.release()).await.ok().expect("held until now");
    let guard = promptly(next).await.expect("no panic").expect("it is its turn");
    assert!(!other.is_finished());
    for server in &scene.cluster.servers {
        assert_eq!((server.calls("publish").await, server.calls("set").await), (0, 1));
    }
    // Nobody is left here, so it is the other one's turn.
    let released = Instant::now();
    promptly(guard.release()).await.ok().expect("held until now");
    let _guard = promptly(other).await.expect("no panic").expect("it is its turn");
    assert!(released.elapsed() < EARLIEST_LOOK, "after {:?}", released.elapsed());
}

#[tokio::test]
async fn who_gives_up_leaves_the_lists_when_it_said_so() {
    const WAIT: Duration = Duration::from_millis(250);
    let scene = Scene::over(3).await;
    let other = client(&scene.cluster).await;
    let began = Instant::now();
    let waited = promptly(other.mutex("job").wait(WAIT).acquire()).await;
    let took = began.elapsed();
    assert!(matches!(waited, Err(AcquireError::Held(_))), "{waited:?}");
    assert!(took >= WAIT && took < WAIT + Duration::from_millis(200), "{took:?}");
    nobody_is_listed(&scene.cluster).await;

    let waiting = scene.waits(&other).await;
    waiting.abort();
    nobody_is_listed(&scene.cluster).await;
}

/// What a claim asks for while an answer is handed out to it goes through the queue of the node. Whoever gives up before that was taken
/// in leaves the list behind it.
#[tokio::test]
async fn who_gives_up_before_it_could_be_listed_is_not_listed() {
    let cluster = Cluster::start(1).await;
    let redlock = client(&cluster).await;
    cluster.take([0], "redlock:job").await;
    let (taken, free) = (redlock.mutex("job"), redlock.mutex("free"));
    // A task, so that it runs before the node's when the answers have come, both at once.
    let winner = tokio::spawn(async move {
        tokio::select! {
            biased;
            _ = taken.acquire() => panic!("it was taken"),
            guard = free.acquire() => guard,
        }
    });
    drop(promptly(winner).await.expect("no panic").expect("free"));
    // The node answers this behind all that was sent to it before.
    promptly(redlock.diagnose()).await;
    assert_eq!(listed(&cluster).await, [0]);
}

#[tokio::test]
async fn a_client_that_is_gone_is_passed_over() {
    let scene = Scene::over(3).await;
    // A process of its own, as far as connections go.
    let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let elsewhere = elsewhere.expect("a runtime");
    let addresses = scene.cluster.builder();
    let gone = elsewhere.spawn(async move { addresses.ttl(LONG_TTL).connect().await });
    let gone = promptly(gone).await.expect("no panic").expect("all nodes are there");
    let mutex = gone.mutex("job");
    elsewhere.spawn(async move { mutex.acquire().await });
    until("one on each list", async || scene.listed().await == [1, 1, 1]).await;
    let next = client(&scene.cluster).await;
    let next = scene.waits(&next).await;
    assert_eq!(listening(&scene.cluster).await, [3, 3, 3]);
    elsewhere.shutdown_background();
    until("its connections are closed", async || listening(&scene.cluster).await == [2, 2, 2]).await;
    assert_eq!(scene.listed().await, [2, 2, 2], "nobody has taken it off the lists");

    let released = Instant::now();
    promptly(scene.guard.release()).await.ok().expect("held until now");
    let _guard = promptly(next).await.expect("no panic").expect("it is its turn");
    assert!(released.elapsed() < EARLIEST_LOOK, "after {:?}", released.elapsed());
    std::mem::forget(gone);
}

#[tokio::test]
async fn a_turn_that_nobody_wants_is_passed_on() {
    let scene = Scene::over(3).await;
    let other = client(&scene.cluster).await;
    let waiting = scene.waits(&other).await;
    let channel: Vec<String> = scene.cluster.servers[0].type_in(&format!("ZRANGE {LIST} 0 -1")).await;
    waiting.abort();
    nobody_is_listed(&scene.cluster).await;

    let next = client(&scene.cluster).await;
    let next = scene.waits(&next).await;
    // It stands there again, before everybody else, though nobody waits: as when its word that it leaves was lost.
    for server in &scene.cluster.servers {
        server.type_in::<()>(&format!("ZADD {LIST} 0 {}", channel[0])).await;
    }
    let released = Instant::now();
    promptly(scene.guard.release()).await.ok().expect("held until now");
    let _guard = promptly(next).await.expect("no panic").expect("it is its turn");
    assert!(released.elapsed() < EARLIEST_LOOK, "after {:?}", released.elapsed());
    drop(other);
}

#[tokio::test]
async fn a_message_that_never_comes_costs_one_look() {
    let scene = Scene::over(3).await;
    let other = client(&scene.cluster).await;
    let waiting = scene.waits(&other).await;
    // Somebody takes it off the lists, and so nobody will wake it.
    for server in &scene.cluster.servers {
        server.delete(LIST).await;
    }
    promptly(scene.guard.release()).await.ok().expect("held until now");
    let guard = soon(LATEST_LOOK, waiting).await.expect("no panic").expect("it looks for itself");
    promptly(guard.release()).await.ok().expect("held until now");
}

#[tokio::test]
async fn a_holder_that_dies_is_waited_for_until_its_keys_are_gone() {
    const TTL: Duration = Duration::from_millis(1_200);
    let cluster = Cluster::start(3).await;
    let (holder, other) = (client(&cluster).await, client(&cluster).await);
    let mutex = holder.mutex("job").ttl(TTL).renewal(redlock_quorum::Renewal::Never);
    let guard = promptly(mutex.acquire()).await.expect("free");
    let held = Instant::now();
    std::mem::forget(guard);
    let next = soon(TTL * 2, other.mutex("job").acquire()).await.expect("free in the end");
    assert!(held.elapsed() >= TTL - Duration::from_millis(100), "{:?}", held.elapsed());
    drop(next);
}

/// While it was not connected others may have been woken in its place, so it looks as soon as it is connected again. A machine
/// that is too slow to show that is asked again.
#[tokio::test]
async fn who_waits_is_woken_over_the_next_connection_too() {
    for _ in 0..5 {
        if listed_again_before_it_looks_by_itself().await {
            return;
        }
    }
    panic!("it is on the lists again only when it looks by itself");
}

async fn listed_again_before_it_looks_by_itself() -> bool {
    let scene = Scene::over(3).await;
    let other = client(&scene.cluster).await;
    let began = Instant::now();
    let waiting = scene.waits(&other).await;
    join_all(scene.cluster.servers.iter().map(Server::kill_clients)).await;
    join_all(scene.cluster.servers.iter().map(|server| server.delete(LIST))).await;
    until("both are connected again, and listen", async || {
        listening(&scene.cluster).await == [2, 2, 2] && scene.listed().await == [1, 1, 1]
    })
    .await;
    let in_time = began.elapsed() < EARLIEST_LOOK;
    promptly(scene.guard.release()).await.ok().expect("held until now");
    let _guard = promptly(waiting).await.expect("no panic").expect("it is its turn");
    in_time
}

/// A client that may not do all that waiting takes.
async fn without(cluster: &Cluster, rights: &str) -> Redlock {
    for server in &cluster.servers {
        let user = format!("ACL SETUSER poor on >secret resetkeys resetchannels ~* &* +@all {rights}");
        server.type_in::<()>(&user).await;
    }
    let node = |server: &Server| NodeConfig::new(server.address()).username("poor").password("secret");
    over(cluster.servers.iter().map(node)).ttl(LONG_TTL).connect().await.expect("all nodes are there")
}

#[tokio::test]
async fn who_may_not_be_woken_asks_again_and_is_told_why() {
    for (rights, reason) in [
        ("resetchannels", "may not listen on the channels"),
        ("-publish", "may not use the wait lists"),
        ("-zrem", "may not use the wait lists"),
        ("-zadd -exists", "may not use the wait lists"),
        ("-zpopmin", "may not use the wait lists"),
        ("-time", "may not use the wait lists"),
        ("resetkeys ~redlock:*", "may not use the wait lists"),
    ] {
        let scene = Scene::over(3).await;
        let other = without(&scene.cluster, rights).await;
        let diagnosis = promptly(other.diagnose()).await;
        let found: Vec<_> = diagnosis.findings().iter().filter(|it| it.what().contains(reason)).collect();
        assert_eq!(found.len(), 3, "{rights}: {diagnosis:#}");
        assert!(found.iter().all(|it| it.severity() == Severity::Notice));
        let mutex = other.mutex("job");
        let waiting = tokio::spawn(async move { mutex.acquire().await });
        until("it has asked", async || scene.cluster.servers[0].calls("set").await >= 2).await;
        assert_eq!(scene.listed().await, [0, 0, 0], "{rights}");
        promptly(scene.guard.release()).await.ok().expect("held until now");
        let guard = soon(LATEST_LOOK, waiting).await.expect("no panic").expect("it asks again");
        promptly(guard.release()).await.ok().expect("held until now");
        scene.cluster.assert_nothing_left().await;
    }
}

/// The rights are those to the namespace of the client. In another it finds out when it is refused, and does without.
#[tokio::test]
async fn a_release_goes_through_where_the_wait_lists_are_closed() {
    let cluster = Cluster::start(3).await;
    let redlock = without(&cluster, "resetkeys ~redlock:* ~redlock#* ~elsewhere:*").await;
    assert!(promptly(redlock.diagnose()).await.findings().is_empty());
    let elsewhere = redlock.namespace("elsewhere");
    let guard = promptly(elsewhere.mutex("job").acquire()).await.expect("free");
    let waited = promptly(elsewhere.namespace("elsewhere").mutex("job").try_acquire()).await;
    assert!(waited.expect("answered").is_none());
    promptly(guard.release()).await.ok().expect("held until now");
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn who_polls_enters_no_list() {
    let scene = Scene::over(3).await;
    let other = client(&scene.cluster).await;
    let mutex = other.mutex("job").wake_by(WakeBy::Poll(Duration::from_millis(20)));
    let waiting = tokio::spawn(async move { mutex.acquire().await });
    until("it has asked some times", async || scene.cluster.servers[0].calls("set").await >= 5).await;
    assert_eq!(scene.listed().await, [0, 0, 0]);
    promptly(scene.guard.release()).await.ok().expect("held until now");
    let _guard = promptly(waiting).await.expect("no panic").expect("it asks again");
    drop(scene.holder);
}

/// How often each of the clients has had the lock when one of them has had it so often, each in so many tasks that want it all
/// the time.
async fn shares(cluster: &Cluster, tasks: &[usize], most: u64) -> Vec<u64> {
    let shares = Rc::new(RefCell::new(vec![0; tasks.len()]));
    let local = LocalSet::new();
    for (client_number, tasks) in tasks.iter().enumerate() {
        let redlock = client(cluster).await;
        for _ in 0..*tasks {
            let (mutex, shares) = (redlock.mutex("job"), shares.clone());
            local.spawn_local(async move {
                while shares.borrow().iter().all(|share| *share < most) {
                    let guard = mutex.acquire().await.expect("sooner or later");
                    shares.borrow_mut()[client_number] += 1;
                    // Not awaited: the next one of this client is at the nodes before anybody else can be.
                    drop(guard);
                    tokio::task::yield_now().await;
                }
            });
        }
    }
    soon(Duration::from_secs(60), local).await;
    shares.take()
}

#[tokio::test]
async fn a_client_that_wants_it_again_lets_others_pass() {
    let cluster = Cluster::start(3).await;
    let shares = shares(&cluster, &[1, 1], 300).await;
    // Else it is far from half and half: between 40 and 210 here.
    assert!(shares.iter().all(|share| *share >= 240), "{shares:?}");
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_client_with_many_tasks_lets_others_have_their_chance() {
    let cluster = Cluster::start(3).await;
    let shares = shares(&cluster, &[8, 1], 800).await;
    assert!(shares[1] >= 20, "{shares:?}");
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn no_more_wait_in_one_client_than_may() {
    let cluster = Cluster::start(1).await;
    let redlock = cluster.builder().max_waiters(1).connect().await.expect("all nodes are there");
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
    let mutex = redlock.mutex("job");
    let waiting = tokio::spawn(async move { mutex.acquire().await });
    // It waits in the local queue as soon as it has run.
    tokio::task::yield_now().await;
    let one_more = promptly(redlock.mutex("job").acquire()).await;
    assert!(matches!(one_more, Err(AcquireError::Full { max_waiters: 1 })), "{one_more:?}");
    assert!(promptly(redlock.mutex("other").acquire()).await.is_ok(), "another resource");
    drop(guard);
    let _guard = promptly(waiting).await.expect("no panic").expect("it is its turn");
}
